"""Runs the commands of one instance's hooks, in the instance's own world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.identity import HOOK
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import UNKNOWN_END, ExitStatus, HookName, Role
from clojarsd.runtime.unit_parts import HookPlan, HookRunner, RunningHook


class UnitHooks:
    """The hook of one instance that runs, if any; its runner makes it and nothing is to be closed.

    Args:
        run: runs commands.
    """

    def __init__(self, role: Role, run: HookRunner) -> None:
        self._role = role
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._running: RunningHook | None = None

    def begin(
        self,
        hook: HookName,
        plan: HookPlan | None,
        spec: Callable[[], LaunchSpec],
        how: ExitStatus | None,
        on_end: Callable[[str | LaunchFailed | None], None],
    ) -> None:
        """Run the commands; `on_end` is told later how one failed, or why none could be run, or None.

        Args:
            plan: None when the settings have no such commands any more.
            spec: the world of the instance; raises LaunchFailed.
            how: how the process has ended, for post_stop.
        """

        def ended(failure: str | LaunchFailed | None) -> None:
            self._running = None
            on_end(failure)

        if plan is None:
            self._running = _Nothing(self._loop.call_soon(ended, None))
            return
        try:
            world = spec()
            world = replace(world, imposed={**world.imposed, **self._told(hook, how)})
            self._running = self._run(plan.commands(), world, plan.timeout, ended)
        except LaunchFailed as failed:
            self._running = _Nothing(self._loop.call_soon(ended, failed))

    def cancel(self) -> None:
        """Kill what runs; its end is not told."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    def abandon(self) -> None:
        """Let what runs go on; its end is not told."""
        if self._running is not None:
            self._running.abandon()
            self._running = None

    def _told(self, hook: HookName, how: ExitStatus | None) -> dict[str, str]:
        """What a hook finds in its environment besides the instance's own; nothing of an end that nobody saw.

        Source: the idea of EXIT_CODE and EXIT_STATUS in systemd.exec(5); here the signal is told by its number.
        """
        told = {"CLOJARSD_ROLE": self._role.value, HOOK: hook.value}
        if hook is HookName.POST_STOP and how is not None and how != UNKNOWN_END:
            told["EXIT_CODE"] = "exited" if how.signal is None else "killed"
            told["EXIT_STATUS"] = str(how.code if how.signal is None else how.signal)
        return told


class _Nothing:
    """A hook of which nothing runs, and whose end is told in the loop's next turn."""

    def __init__(self, telling: asyncio.Handle) -> None:
        self._telling = telling

    def cancel(self) -> None:
        """Tell nothing."""
        self._telling.cancel()

    def abandon(self) -> None:
        """Tell nothing."""
        self._telling.cancel()
