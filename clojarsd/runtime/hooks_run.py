"""Runs the commands of one hook, one after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from clojarsd.core.hook import command_text
from clojarsd.core.launch import LaunchSpec
from clojarsd.system.hook_command import HookCommand, HookLauncher

log = structlog.get_logger()


class HookRun:
    """The commands of a hook on their way; the first begins when this is made, each further one after a success.

    Made by a unit runner, in the loop's thread; it needs no task, and nothing is to be closed.

    Args:
        spec: the world of the instance; its environment with what the caller has to add.
        timeout: seconds for each command, after which its group is killed and the hook has failed.
        on_end: called once, with the failure in words or None; never while this is being made, never after `cancel`.
    """

    def __init__(
        self,
        launch: HookLauncher,
        commands: Sequence[Sequence[str]],
        spec: LaunchSpec,
        timeout: float,
        on_end: Callable[[str | None], None],
    ) -> None:
        self._launch = launch
        self._commands = deque(commands)
        self._spec = spec
        self._timeout = timeout
        self._on_end: Callable[[str | None], None] | None = on_end
        self._running: HookCommand | None = None
        if self._commands:
            self._next()
        else:
            asyncio.get_running_loop().call_soon(self._tell, None)

    def cancel(self) -> None:
        """Kill what runs, at once; nothing more is told or begun."""
        self._on_end = None
        if self._running is not None:
            self._running.cancel()
            self._running = None

    def abandon(self) -> None:
        """Let what runs go on, unwatched; nothing more is told or begun."""
        self._on_end = None
        if self._running is not None:
            self._running.abandon()
            self._running = None

    def _next(self) -> None:
        command = self._commands.popleft()
        log.info("hook_command_begun", command=command_text(command), log=self._spec.log)
        self._running = HookCommand(self._launch, self._spec, command, self._timeout, self._ended)

    def _ended(self, failure: str | None) -> None:
        self._running = None
        if self._on_end is None:
            return
        if failure is None and self._commands:
            self._next()
        else:
            self._tell(failure)

    def _tell(self, failure: str | None) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(failure)
