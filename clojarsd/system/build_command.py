"""One command of a rollout, run to its end: in nobody's way, within its time and its memory, and ended as a whole tree.

A command runs as the service user, in a session and where possible a control group of its own, more gladly ended by
the kernel than anything else when memory runs out, and with the mark of its rollout, by which everything that it has
started is found wherever it went: when the command has ended, when it is cancelled, and by the next daemon when this
one has died.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from clojarsd.core import command_output as words
from clojarsd.core.errors import LaunchFailed, reason_of
from clojarsd.core.identity import ROLLOUT, RolloutMark
from clojarsd.core.launch import LaunchSpec, World
from clojarsd.core.names import ExitStatus
from clojarsd.system import cgroup
from clojarsd.system.hook_command import HookLauncher, HookProcess
from clojarsd.system.rollout_family import end_rollout
from clojarsd.system.rollout_log import OutputTail, RolloutLog

log = structlog.get_logger()

NICE: Final = 10
OOM_SCORE: Final = 500
"""Added to the daemon's own, so that a build is ended before an instance is."""
UMASK: Final = 0o022
GRACE: Final = 3.0
"""Seconds that a command has after SIGTERM."""
GIVE_UP: Final = 10.0
"""Seconds after SIGKILL until a process that does not go is left alone: it is in uninterruptible sleep."""
MOST_OUTPUT: Final = 256 * 1024**2
"""Bytes that one command may write to the log."""


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """What became of a command.

    Attributes:
        seconds: how long it took.
        failure: why it has failed, as a sentence; None when it has ended with 0.
        last_lines: of its output, at most 20.
        output: of its output as much as was asked for, from its beginning.
    """

    seconds: float
    failure: str | None
    last_lines: tuple[str, ...]
    output: str = ""


@dataclass(slots=True)
class Builder:
    """Runs the commands of one rollout, one at a time.

    Attributes:
        launch: makes processes; see `system.process.Processes.launch`.
        mark: of the rollout.
        log: the file that gets the output of all its commands.
        world: the daemon's.
        user: whom commands run as, name or number; looked at where the daemon is able to be somebody else.
        group: their main group, or None for the user's own.
        environment: variables of all commands, besides the world's.
        groups: where a command gets a control group; None: there are none.
        memory_max: bytes that a command and all that it starts may use together; None for no limit.
        most_output: bytes that a command may write to the log; it is ended when it has written more.
    """

    launch: HookLauncher
    mark: RolloutMark
    log: Path
    world: World
    user: str
    group: str | None
    environment: Mapping[str, str]
    groups: cgroup.Groups | None = None
    memory_max: int | None = None
    most_output: int = MOST_OUTPUT
    _told: str | None = None

    async def run(
        self,
        step: str,
        command: Sequence[str],
        directory: Path,
        *,
        timeout: float,
        environment: Mapping[str, str] | None = None,
        on_output: Callable[[Sequence[str]], None] | None = None,
        keep: int = 0,
        shown: Sequence[str] | None = None,
    ) -> CommandOutcome:
        """Run a command to its end, and end what it has left.

        When this is cancelled the command gets SIGTERM and a few seconds, then everything of it SIGKILL, and only then
        this returns; when it is cancelled again the seconds are over.

        Args:
            step: what it is for, as the log's header says.
            timeout: seconds; then it is ended in the same way.
            environment: variables that win over all others.
            on_output: called with the lines that it writes, soon after they are written. Of output that comes too fast
                to be read much is left out there.
            keep: bytes of its output that are wanted as text.
            shown: the command as people are to see it, if not as it is.
        """
        group, note = self._make_group()
        shown = shown or command
        head = words.header(step, shown, datetime.now(UTC).isoformat(" ", "seconds"))
        written = RolloutLog(self.log)
        try:
            await asyncio.to_thread(written.open, f"{head}{note}\n" if note else head)
            if note and on_output is not None:
                on_output([note])
            running = _Running(self, self._spec(command, directory, environment or {}), group)
            tail = OutputTail(written, on_output, running.has_written)
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(tail.follow())
                try:
                    await running.outcome(timeout)
                finally:
                    following.cancel()
            await tail.finish()
            last = await asyncio.to_thread(written.last_lines)
            output = await asyncio.to_thread(written.output, keep) if keep else ""
            return CommandOutcome(running.seconds, running.failure(shown, timeout), last, output)
        except OSError as error:
            return CommandOutcome(0.0, words.describe_log_failure(shown, str(self.log), reason_of(error)), ())
        finally:
            written.close()

    def users(self) -> tuple[int, ...]:
        """The numbers of the users that commands run as, besides root and the daemon's own."""
        return (self.world.uid,) if self.world.uid is not None else ()

    def _make_group(self) -> tuple[Path | None, str | None]:
        """The control group for a command, None where there is none; and what is to be told of its limits, once."""
        name, files, why = f"{cgroup.ROLLOUT}-{self.mark.rollout}", {}, "no control group is delegated to clojarsd"
        if self.memory_max is not None:
            files = {"memory.max": str(self.memory_max)}
        group = None
        if self.groups is not None:
            try:
                return self.groups.make_named(name, files), None
            except LaunchFailed as failed:
                why = failed.reason
            with suppress(LaunchFailed):  # then the mark is what its processes are found by
                group = self.groups.make_named(name, {}) if files else None
        if self.memory_max is None or self._told is not None:
            return group, None
        self._told = words.no_memory_limit(self.memory_max, why)
        return group, self._told

    def _spec(self, command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> LaunchSpec:
        becomes_user = self.world.becomes_user
        return LaunchSpec(
            command=tuple(command),
            directory=str(directory),
            environment={
                **self.world.environment,
                **self.environment,
                "CLOJARSD_ROLLOUT": self.mark.rollout,
                **environment,
            },
            environment_file=None,
            log=str(self.log),
            ports={},
            user=self.user if becomes_user else None,
            group=self.group if becomes_user else None,
            umask=UMASK,
            nice=max(NICE, os.getpriority(os.PRIO_PROCESS, 0)),
            oom_score_adjust=min(1000, OOM_SCORE + int(Path("/proc/self/oom_score_adj").read_text())),
            limits={},
            soft_nofile=self.world.soft_nofile,
            imposed={ROLLOUT: str(self.mark)},
        )


class _Running:
    """A command on its way, from its launch until nothing of it is left.

    Attributes:
        seconds: how long it took, once it is over.
    """

    def __init__(self, builder: Builder, spec: LaunchSpec, group: Path | None) -> None:
        self._builder = builder
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._how: ExitStatus | LaunchFailed | None = None
        self._left: tuple[str, ...] = ()
        self._out_of_time = self._flooded = self._was_short_of_memory = False
        self._timer: asyncio.TimerHandle | None = None
        self._process: HookProcess | None = None
        self._group = group
        self.seconds = 0.0
        if group is not None:
            spec = replace(spec, cgroup_directory=str(group))
        try:
            self._process = builder.launch(spec, lambda pid: self)
        except LaunchFailed as failed:
            self.ended(failed)

    def executed(self) -> None:
        """The command runs."""

    def ended(self, how: ExitStatus | LaunchFailed) -> None:
        """The process is gone, and what was in its session."""
        self._process, self._how = None, how
        self.seconds = self._loop.time() - self._began
        self._end_rest()

    async def outcome(self, timeout: float) -> None:
        """Return when nothing of the command is left, after so many seconds by force; also when this is cancelled."""
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._gone)
        except TimeoutError:
            self._out_of_time = self._process is not None
        finally:
            await self._see_off()

    def has_written(self, size: int) -> None:
        """End it when that is too much."""
        if size > self._builder.most_output and self._process is not None:
            self._flooded = True
            self._end()

    def failure(self, command: Sequence[str], timeout: float) -> str | None:
        """Why it has failed, as a sentence, or None."""
        if isinstance(self._how, LaunchFailed):
            return words.describe_launch_failure(command, self._how)
        if self._flooded:
            text = words.describe_flood(command, self._builder.most_output)
        elif self._out_of_time or self._how is None:
            text = words.describe_timeout(command, timeout)
        elif self._how != ExitStatus(0, None):
            text = words.describe_end(command, self._how, self.seconds)
            if self._was_short_of_memory and self._builder.memory_max is not None:
                text += words.describe_memory_kill(self._builder.memory_max)
        elif self._left:
            text = words.describe_end(command, self._how, self.seconds)
        else:
            return None
        return text + words.describe_left(self._left)

    async def _see_off(self) -> None:
        """Wait until it is gone, whatever is cancelled meanwhile; bounded by `GRACE`, `GIVE_UP` and some more."""
        self._end()
        cancelled = None
        while not self._gone.done():
            try:
                await asyncio.shield(self._gone)
            except asyncio.CancelledError as error:
                cancelled = error
                self._kill()
        if cancelled is not None:
            raise cancelled

    def _end(self) -> None:
        if self._process is not None and self._timer is None:
            self._process.signal(signal.SIGTERM)
            self._timer = self._loop.call_later(GRACE, self._kill)

    def _kill(self) -> None:
        if self._process is not None and self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_later(GIVE_UP, self._give_up)
            self._process.signal(signal.SIGKILL)

    def _give_up(self) -> None:
        """It cannot be ended: nobody waits for it any more."""
        if self._process is not None:
            self._process.abandon()
            self._process = None
            self.seconds = self._loop.time() - self._began
            self._end_rest()

    def _end_rest(self) -> None:
        """End what has left the session; in a thread, whose end nothing can prevent."""
        if self._timer is not None:
            self._timer.cancel()
        ending = self._loop.run_in_executor(None, _end_all, self._builder, self._group)
        ending.add_done_callback(self._rest_ended)

    def _rest_ended(self, ending: asyncio.Future[tuple[tuple[str, ...], bool]]) -> None:
        try:
            self._left, self._was_short_of_memory = ending.result()
        except OSError as error:  # no descriptor, or no memory, to look with
            self._left = (f"what it has started ({reason_of(error)})",)
        if self._left:
            log.warning("command_left", rollout=self._builder.mark.rollout, left=", ".join(self._left))
        self._gone.set_result(None)


def _end_all(builder: Builder, group: Path | None) -> tuple[tuple[str, ...], bool]:
    """End all of the rollout; what could not be ended, and whether its memory ran out meanwhile. Blocks."""
    left: tuple[str, ...] = ()
    was_short = False
    if group is not None:
        was_short = cgroup.has_killed(group)
        if not cgroup.end_group(group, GIVE_UP):
            left = (f"processes in {group}",)
        else:
            cgroup.remove(group)
    return (*left, *end_rollout(builder.mark.state_dir, builder.mark.rollout, builder.users())), was_short
