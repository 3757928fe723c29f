"""One process of an instance, launched or adopted: seen through a pidfd, ended with all that it has started."""

from __future__ import annotations

import asyncio
import marshal
import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from clojarsd.core.errors import LaunchFailed, reason_of
from clojarsd.core.identity import InstanceMark, ProcessIdentity
from clojarsd.core.names import ExitStatus, LaunchStage
from clojarsd.system.cgroup import Groups, end_group, is_populated
from clojarsd.system.family import Family, children_of, descendants_of, end_family
from clojarsd.system.identity import how_it_ended, identify, is_between_programs, mark_of, stat_of
from clojarsd.system.sockets import holder_of
from clojarsd.system.spawning import LAUNCHER, Spare
from clojarsd.system.threads import executor

log = structlog.get_logger()

END_WITHIN = 5.0
"""Seconds after which what a process has started is given up: it is in uninterruptible sleep, or forks too fast."""
_WHOLE_GROUP = 1 << 2
"""PIDFD_SIGNAL_PROCESS_GROUP, from Linux 6.9 on."""
_LAUNCH_LOOK_EVERY = 0.005


class ProcessEvents(Protocol):
    """Who is told about a process. Each is called once, in the loop's thread; `ended` is the last."""

    def executed(self) -> None:
        """The command runs. Not told of a process that was adopted while its command ran already."""

    def ended(self, how: ExitStatus | LaunchFailed) -> None:
        """The process is reaped and nothing that it started is left running; or the command never ran, and why."""


class Process:
    """A process, from its launch or adoption until it is reaped. Made by `Processes`; closes itself at the end.

    Attributes:
        pid: its number, valid until `ended` was called; also the number of its session and its process group.
        identity: which process it is; its executable is None until the command runs.
        mark: of its launch, or None.
    """

    def __init__(
        self,
        identity: ProcessIdentity,
        pidfd: int,
        events: ProcessEvents,
        shared: Shared,
        mark: InstanceMark | None,
        *,
        failure: int = -1,
        is_child: bool = True,
        got_orphans: bool = False,
    ) -> None:
        """Watch it.

        Args:
            failure: what its launcher says; -1: nobody is there to hear it.
            got_orphans: we have been the subreaper as long as it lives, so that what it left is below us.
        """
        self.pid = identity.pid
        self.identity = identity
        self.mark = mark
        self._pidfd = pidfd
        self._failure = failure
        self._shared = shared
        self._is_child = is_child
        self._got_orphans = got_orphans
        self._failed: LaunchFailed | None = None
        self._taken: int | None = None
        self._known: frozenset[tuple[int, int]] = frozenset()
        self._has_ended = False
        self._abandoned = False
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._end)
        if failure >= 0:
            self._loop.add_reader(failure, self._read_failure)

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group; nothing happens when the process has ended already.

        What descends from it now is remembered: it may be about to leave what it started, with nothing that tells.
        """
        if not self._has_ended and self._pidfd >= 0:
            with suppress(OSError):  # no descriptor is left to look with: the signal matters more
                self._known |= descendants_of(self.pid)
            self._send(number, _WHOLE_GROUP)

    def signal_main(self, number: int) -> None:
        """Send a signal to this process alone; nothing happens when it has ended already."""
        if not self._has_ended and self._pidfd >= 0:
            self._send(number, 0)

    def abandon(self) -> None:
        """Watch it no more; it runs on. `ended` will not be called."""
        self._abandoned = True
        self._close()

    def _send(self, number: int, flags: int) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number, None, flags)
        except ProcessLookupError:
            pass
        except PermissionError:
            log.warning("signal_not_allowed", pid=self.pid, signal=number)
        except OSError:  # an old kernel, which knows no groups here
            self._send_by_number(number)

    def _send_by_number(self, number: int) -> None:
        """Signal the group by its number, which is its own while the leader is our zombie, or runs."""
        is_proved = self._is_child
        if not is_proved:
            with suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, 0)
                is_proved = not self._has_ended
        if is_proved:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _read_failure(self) -> None:
        """The launcher said where it stopped, or exec closed its end."""
        told = os.read(self._failure, 65536)
        self._close_failure()
        if told:
            failure = marshal.loads(told)
            self._failed = LaunchFailed(LaunchStage[failure["stage"]], failure["reason"])
            self._taken = failure["taken"]
        elif self._seems_to_run():
            self._command_runs()

    def _seems_to_run(self) -> bool:
        """Whether the process has not ended, as far as that can be seen; else its pidfd tells soon."""
        try:
            stat = stat_of(self.pid)
        except OSError:  # no descriptor is left to look with
            return True
        return stat is not None and not stat.has_ended

    def _command_runs(self) -> None:
        with suppress(OSError):
            self.identity = identify(self.pid) or self.identity
        self._events.executed()
        self._shared.replenish()

    def look_for_command(self) -> None:
        """Begin to look whether the command runs: nobody tells it of a process adopted while it is being launched."""
        if self._abandoned or self._has_ended:
            return
        if _is_launcher(self.pid) or is_between_programs(self.pid):
            self._loop.call_later(_LAUNCH_LOOK_EVERY, self.look_for_command)
        elif (stat := stat_of(self.pid)) is not None and not stat.has_ended:
            self.mark = self.mark or mark_of(self.pid)  # the launcher showed none
            self._command_runs()

    def _end(self) -> None:
        """The process has ended. A child stays a zombie until its family is ended: so long the number is its own."""
        self._loop.remove_reader(self._pidfd)  # whatever goes wrong below must not be tried for ever
        if self._failure >= 0:
            self._read_failure()
        self._has_ended = True
        self._send(signal.SIGKILL, _WHOLE_GROUP)
        group = self._shared.group_of(self.mark)
        if self._has_left_nothing(group):
            self._finish()  # the usual case costs neither a thread nor a millisecond
        else:
            ending = self._loop.run_in_executor(self._shared.threads, self._end_rest, group)
            ending.add_done_callback(self._rest_ended)

    def _has_left_nothing(self, group: Path | None) -> bool:
        """Whether a quick look shows that nothing is left of what the process has started."""
        try:
            if group is not None:
                return not is_populated(group)
            return self._got_orphans and not children_of(os.getpid()) - self._shared.ours
        except OSError:
            return False  # no descriptor is left to look with; the thread tries again

    def _end_rest(self, group: Path | None) -> tuple[str, ...]:
        """End what the process has started; what could not be ended. In a thread."""
        if group is not None:
            return () if end_group(group, END_WITHIN) else (f"processes in {group}",)
        ours = self._shared.ours
        family = Family(self.pid, self._got_orphans, self.mark, lambda: set(ours), self._known)
        return end_family(family, END_WITHIN)

    def _rest_ended(self, ending: asyncio.Future[tuple[str, ...]]) -> None:
        if self._abandoned or ending.cancelled():
            return
        try:
            if left := ending.result():
                log.warning("descendants_left", pid=self.pid, left=", ".join(left))
        except OSError as error:  # no descriptor, or no memory, to look with
            log.warning("descendants_not_ended", pid=self.pid, reason=reason_of(error))
        self._finish()

    def _finish(self) -> None:
        """Reap the process and report it, once nothing of it is left."""
        status = self._reap()
        self._close()
        self._shared.forget_group(self.mark)
        self._shared.replenish()
        if self._failed is not None and self._taken is not None:
            search = self._loop.run_in_executor(self._shared.threads, holder_of, self._taken)
            search.add_done_callback(partial(self._report_taken, self._failed))
        else:
            self._events.ended(self._failed or status)

    def _reap(self) -> ExitStatus:
        """How the process ended; a child is reaped."""
        with suppress(ChildProcessError):  # none of ours, or somebody else of this daemon has reaped it
            seen = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            assert seen is not None
            exited = seen.si_code == os.CLD_EXITED
            return ExitStatus(seen.si_status, None) if exited else ExitStatus(None, seen.si_status)
        return how_it_ended(self.pid, self._pidfd)

    def _report_taken(self, failed: LaunchFailed, search: asyncio.Future[str | None]) -> None:
        """Report a launch that found its port taken, with who has it where that could be seen."""
        if self._abandoned:
            return
        holder = None if search.cancelled() or search.exception() else search.result()
        by = f" by {holder}" if holder is not None else ""
        self._events.ended(LaunchFailed(failed.stage, failed.reason + by))

    def _close_failure(self) -> None:
        if self._failure >= 0:
            self._loop.remove_reader(self._failure)
            os.close(self._failure)
            self._failure = -1

    def _close(self) -> None:
        self._close_failure()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            self._shared.ours.discard(self.pid)


class Shared:
    """What the processes of a daemon share: its threads, its control groups, its spare launcher.

    Attributes:
        ours: the numbers of the children that somebody watches and will reap.
        spare: None while none is to wait.
    """

    def __init__(self, groups: Groups | None) -> None:
        self.ours: set[int] = set()
        self.groups = groups
        self.spare = Spare(self.ours)
        self.keeps_spare = False
        self.is_subreaper = False
        self.threads = executor("clojarsd-family", 3)

    def replenish(self) -> None:
        """See to it that a launcher waits for the next launch."""
        if self.keeps_spare:
            self.spare.replenish()

    def group_of(self, mark: InstanceMark | None) -> Path | None:
        """The control group of a launch, if it has one."""
        return self.groups.of(mark) if self.groups is not None and mark is not None else None

    def forget_group(self, mark: InstanceMark | None) -> None:
        """Remove the control group of a launch that is over."""
        if self.groups is not None and mark is not None and self.groups.of(mark) is not None:
            self.groups.forget(mark)


def _is_launcher(pid: int) -> bool:
    """Whether the process is still a launcher on its way to its command."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(LAUNCHER) in words
