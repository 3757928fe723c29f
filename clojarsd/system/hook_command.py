"""One command of a hook: run in the world of its instance, within its time, and told of in a sentence when it fails."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.hook import describe_failure
from clojarsd.core.identity import MARK
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import ExitStatus
from clojarsd.system.last_words import LastWords, place_in
from clojarsd.system.process import ProcessEvents


class HookProcess(Protocol):
    """The command's process."""

    def signal(self, number: int) -> None:
        """Send a signal to its whole group; nothing happens when it has ended."""

    def abandon(self) -> None:
        """Watch it no more, and let it run."""


class HookLauncher(Protocol):
    """Makes processes; see `system.process.Processes.launch`."""

    def __call__(self, spec: LaunchSpec, make_events: Callable[[int], ProcessEvents], /) -> HookProcess:
        """A process that is becoming the spec's command; raises LaunchFailed when there is none."""


def hook_spec(spec: LaunchSpec, command: Sequence[str]) -> LaunchSpec:
    """The launch of a command in the world of an instance: its user, limits, directory, environment and log.

    Neither its ports nor its release are looked at. The process carries the mark of the instance's launch and is no
    instance itself: it has no control group of its own, and when it ends nothing of the instance is ended with it.
    """
    mark = {MARK: str(spec.mark)} if spec.mark is not None else {}
    imposed = {**spec.imposed, **mark}
    return replace(spec, command=tuple(command), ports={}, cgroup={}, mark=None, verify=(), imposed=imposed)


class HookCommand:
    """A command on its way; begins to run when it is made, and ends by itself.

    Args:
        spec: the world of the instance.
        timeout: seconds after which its group is killed.
        on_end: called once with the failure in words, or None; never while this is being made, never after `cancel`.
    """

    def __init__(
        self,
        launch: HookLauncher,
        spec: LaunchSpec,
        command: Sequence[str],
        timeout: float,
        on_end: Callable[[str | None], None],
    ) -> None:
        self._command = tuple(command)
        self._timeout = timeout
        self._on_end: Callable[[str | None], None] | None = on_end
        self._place = place_in(spec.log)
        self._timed_out = False
        self._loop = asyncio.get_running_loop()
        self._process: HookProcess | None = None
        self._words: LastWords | None = None
        self._timer = self._loop.call_later(timeout, self._time_out)
        try:
            self._process = launch(hook_spec(spec, command), lambda pid: _Events(self))
        except LaunchFailed as failed:
            self._timer.cancel()
            self._timer = self._loop.call_later(0, self._tell, describe_failure(self._command, failed))

    def cancel(self) -> None:
        """Kill its group at once; its end is not told. The process is reaped all the same."""
        self._forget()
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    def abandon(self) -> None:
        """Let it run on, unwatched; its end is not told."""
        self._forget()
        if self._process is not None:
            self._process.abandon()

    def _forget(self) -> None:
        self._on_end = None
        self._timer.cancel()
        if self._words is not None:
            self._words.cancel()

    def _time_out(self) -> None:
        self._timed_out = True
        assert self._process is not None
        self._process.signal(signal.SIGKILL)

    def _ended(self, how: ExitStatus | LaunchFailed) -> None:
        self._timer.cancel()
        self._process = None
        if self._on_end is None:
            return
        if how == ExitStatus(0, None) and not self._timed_out:
            self._tell(None)
        elif isinstance(how, LaunchFailed):
            self._tell(describe_failure(self._command, how))
        else:
            self._tell_with_last_words(how)

    def _tell_with_last_words(self, how: ExitStatus) -> None:
        """Tell the failure as soon as what the command has written is read, or when that takes too long."""
        timeout = self._timeout if self._timed_out else None
        self._words = LastWords(
            self._place, lambda words: self._tell(describe_failure(self._command, how, timeout, words))
        )

    def _tell(self, failure: str | None) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(failure)


class _Events:
    """Tells a command about its process."""

    def __init__(self, command: HookCommand) -> None:
        self._command = command

    def executed(self) -> None:
        """The command runs."""

    def ended(self, how: ExitStatus | LaunchFailed) -> None:
        """The process is gone."""
        self._command._ended(how)
