"""One launched process: in a session of its own, seen through a pidfd, ended with its whole group."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import ExitStatus, LaunchStage
from clojarsd.system.sockets import holder_of

log = structlog.get_logger()

CHILDREN = Path("/proc/thread-self/children")
_PR_SET_CHILD_SUBREAPER = 36
LAUNCHER = Path(__file__).with_name("launcher.py")
_ABOVE_LAUNCHER_FDS = 10
"""Duplicates are made from here up, so that moving one to 3 or 4 in the child cannot close the other."""
_GROUP_LOOK_EVERY = 0.005
_GROUP_LOOKS = 200
_CATCHABLE = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}


class ProcessEvents(Protocol):
    """Who is told about a process. Each is called once, in the loop's thread; `ended` is the last."""

    def executed(self) -> None:
        """The command runs."""

    def ended(self, how: ExitStatus | LaunchFailed) -> None:
        """The process is reaped and nothing of its group is left running; or the command never ran, and why."""


class Process:
    """A launched process, from its launch until it is reaped. Made by `Processes.launch`; closes itself at the end.

    Attributes:
        pid: its number, valid until `ended` was called; also the number of its session and its process group.
    """

    def __init__(self, pid: int, pidfd: int, failure: int, events: ProcessEvents, ours: set[int]) -> None:
        self.pid = pid
        self._ours = ours
        self._pidfd = pidfd
        self._failure = failure
        self._failed: LaunchFailed | None = None
        self._taken: int | None = None
        self._abandoned = False
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._end)
        self._loop.add_reader(failure, self._read_failure)

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group; nothing happens when the process has ended already.

        The process is not reaped before `ended`, so that its number cannot belong to anybody else here.
        """
        if self._pidfd >= 0:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                pass
            except PermissionError:
                log.warning("signal_not_allowed", pid=self.pid, signal=number)

    def abandon(self) -> None:
        """Watch it no more; it runs on. `ended` will not be called."""
        self._abandoned = True
        self._close()

    def _read_failure(self) -> None:
        """The launcher said where it stopped, or exec closed its end."""
        told = os.read(self._failure, 65536)
        self._close_failure()
        if told:
            failure = json.loads(told)
            self._failed = LaunchFailed(LaunchStage[failure["stage"]], failure["reason"])
            self._taken = failure["taken"]
        elif os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            self._events.executed()

    def _end(self) -> None:
        """The process has ended. It stays a zombie until its group is ended too, so that the number remains ours."""
        self._loop.remove_reader(self._pidfd)  # whatever goes wrong below must not be tried for ever
        if self._failure >= 0:
            self._read_failure()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        seen = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        assert seen is not None
        self._close()
        status = ExitStatus(seen.si_status, None) if seen.si_code == os.CLD_EXITED else ExitStatus(None, seen.si_status)
        self._report_when_group_is_gone(self._failed or status, _GROUP_LOOKS)

    def _report_when_group_is_gone(self, how: ExitStatus | LaunchFailed, looks: int) -> None:
        """Report the end once the killed rest of the group is gone, or is in uninterruptible sleep for too long.

        The kernel tells nobody when a group empties, so this looks again; only who left children pays for it.
        """
        if self._abandoned:
            return
        _reap_group(self.pid)
        if looks > 0 and _group_exists(self.pid):
            self._loop.call_later(_GROUP_LOOK_EVERY, self._report_when_group_is_gone, how, looks - 1)
        elif self._failed is not None and self._taken is not None:
            search = self._loop.run_in_executor(None, holder_of, self._taken)
            search.add_done_callback(partial(self._report_taken, self._failed))
        else:
            self._events.ended(how)

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
            self._ours.discard(self.pid)


class Processes:
    """Makes processes, and is the parent of what they leave behind. One per daemon; nothing to close.

    As a child subreaper (prctl(2)) the daemon gets descendants whose parent has ended, and reaps them: neither zombies
    nor a lazy PID 1 of a container stay in the way of a process group's end.
    """

    def __init__(self) -> None:
        self._ours: set[int] = set()

    @contextmanager
    def adopting_orphans(self) -> Iterator[None]:
        """Be the subreaper within the block, where the kernel can list children, and reap strangers.

        The handler is Python's own: uvloop keeps that of SIGCHLD to itself, and uses it only for processes it makes.
        """
        if not CHILDREN.exists():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would take our children's statuses
            yield
            return
        loop, libc = asyncio.get_running_loop(), ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        before = signal.signal(signal.SIGCHLD, lambda *_: loop.call_soon_threadsafe(self._reap_strangers))
        try:
            yield
        finally:
            signal.signal(signal.SIGCHLD, before)
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def _reap_strangers(self) -> None:
        """Reap the children that have ended and are not launched by us; ours are reaped by who watches them."""
        for children in Path("/proc/self/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
                for pid in map(int, children.read_text().split()):
                    if pid not in self._ours:
                        with suppress(ChildProcessError):
                            os.waitpid(pid, os.WNOHANG)

    def launch(self, spec: LaunchSpec, make_events: Callable[[int], ProcessEvents]) -> Process:
        """A process that is becoming the command of the spec; how far it comes is told to the events.

        Args:
            make_events: called with the pid before anything can be told.

        Raises:
            LaunchFailed: there is no process; the stage is SPAWN.
        """
        opened: list[int] = []

        def own(fd: int) -> int:
            opened.append(fd)
            return fd

        try:
            memory = own(os.memfd_create("clojarsd-launch"))
            os.write(memory, json.dumps(spec.as_json()).encode())
            os.lseek(memory, 0, os.SEEK_SET)
            failure, told = map(own, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
            pid = _spawn(own(_duplicate_above(memory)), own(_duplicate_above(told)))
            self._ours.add(pid)
            try:
                pidfd = own(os.pidfd_open(pid))
            except OSError:
                os.kill(pid, signal.SIGKILL)  # our own child, not reaped: the number is its own
                os.waitpid(pid, 0)
                self._ours.discard(pid)
                raise
        except OSError as error:
            for fd in opened:
                os.close(fd)
            raise LaunchFailed(LaunchStage.SPAWN, (error.strerror or str(error)).lower()) from error
        for fd in opened:
            if fd not in (pidfd, failure):
                os.close(fd)
        return Process(pid, pidfd, failure, make_events(pid), self._ours)


def _reap_group(group: int) -> None:
    """Reap what the group's leader has left to us."""
    with suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass


def _group_exists(group: int) -> bool:
    """Whether a process of the group is left; signal 0 reaches nobody."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _duplicate_above(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE_LAUNCHER_FDS)


def _spawn(spec_fd: int, failure_fd: int) -> int:
    """The pid of a launcher in a session of its own, with default signals."""
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", str(LAUNCHER)],
        {},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, spec_fd, 3),
            (os.POSIX_SPAWN_DUP2, failure_fd, 4),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=list(_CATCHABLE),
    )
