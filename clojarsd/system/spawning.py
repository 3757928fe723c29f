"""Processes that become a command: a launcher made for it, or one that was made before and has waited."""

from __future__ import annotations

import fcntl
import marshal
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clojarsd.core.launch import LaunchSpec
from clojarsd.system.identity import stat_of
from clojarsd.system.launcher import WAITING

LAUNCHER = Path(__file__).with_name("launcher.py")
_ABOVE_LAUNCHER_FDS = 10
"""Duplicates are made from here up, so that moving one to 3 or 4 in the child cannot close the other."""
_CATCHABLE = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
_RUNS = frozenset("SRD")


@dataclass(slots=True)
class Spawned:
    """A launcher in a session of its own; whoever holds this closes it or passes its descriptors on.

    Attributes:
        pid: not reaped, and a child of ours.
        pidfd: readable when it has ended.
        failure: what the launcher says on its way; ends when the command runs.
        line: where the launch goes.
    """

    pid: int
    pidfd: int
    failure: int
    line: socket.socket

    def give(self, spec: LaunchSpec) -> None:
        """Send the launch; the line is closed. Raises OSError when that cannot be: nothing was launched."""
        memory = os.memfd_create("clojarsd-launch")
        try:
            os.write(memory, marshal.dumps(spec.as_json()))  # for this very interpreter
            os.lseek(memory, 0, os.SEEK_SET)
            socket.send_fds(self.line, [b"+"], [memory])
        finally:
            os.close(memory)
        self.line.close()

    def is_waiting(self) -> bool:
        """Whether it is a launcher that is ready for its launch, and runs."""
        stat = stat_of(self.pid)
        return stat is not None and stat.name == WAITING and stat.state in _RUNS

    def kill(self) -> None:
        """End it, whatever it is about, and forget it."""
        os.kill(self.pid, signal.SIGKILL)  # our own child, not reaped: the number is its own
        os.waitpid(self.pid, 0)
        self.line.close()
        os.close(self.pidfd)
        os.close(self.failure)


def spawn() -> Spawned:
    """A launcher that waits for its launch. Raises OSError when none is to be had; nothing is left then."""
    opened: list[int] = []

    def own(fd: int) -> int:
        opened.append(fd)
        return fd

    ours, theirs = socket.socketpair()
    try:
        failure, told = map(own, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        pid = _spawn(own(_duplicate_above(theirs.fileno())), own(_duplicate_above(told)))
        try:
            pidfd = own(os.pidfd_open(pid))
        except OSError:
            os.kill(pid, signal.SIGKILL)  # our own child, not reaped: the number is its own
            os.waitpid(pid, 0)
            raise
    except OSError:
        ours.close()
        for fd in opened:
            os.close(fd)
        raise
    finally:
        theirs.close()
    for fd in opened:
        if fd not in (pidfd, failure):
            os.close(fd)
    return Spawned(pid, pidfd, failure, ours)


class Spare:
    """One launcher kept waiting, so that a launch need not wait for an interpreter. Whoever makes it closes it.

    It ends with the daemon: when that dies or becomes another program, the launcher's line ends.

    Attributes:
        ours: the numbers of children that are not to be reaped by others; the spare's is among them.
    """

    def __init__(self, ours: set[int]) -> None:
        self._ours = ours
        self._spawned: Spawned | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The number of the launcher that waits, or None."""
        return self._spawned.pid if self._spawned is not None else None

    def replenish(self) -> None:
        """See to it that one waits. That none can be had is no matter: a launch makes its own then."""
        if self._spawned is None and not self._closed:
            with suppress(OSError):
                self._spawned = spawn()
                self._ours.add(self._spawned.pid)

    def launch(self, spec: LaunchSpec) -> Spawned:
        """A launcher that has got its launch: the one that waited, unless something is wrong with it, or a new one.

        Raises:
            OSError: neither is to be had.
        """
        spare, self._spawned = self._spawned, None
        if spare is not None:
            if spare.is_waiting():
                with suppress(OSError):
                    spare.give(spec)
                    return spare
            self.end(spare)
        fresh = spawn()
        self._ours.add(fresh.pid)
        try:
            fresh.give(spec)
        except OSError:
            self.end(fresh)
            raise
        return fresh

    def close(self) -> None:
        """End the launcher that waits; none is made any more."""
        self._closed = True
        if self._spawned is not None:
            self.end(self._spawned)
            self._spawned = None

    def end(self, spawned: Spawned) -> None:
        """Kill a launcher and reap it."""
        spawned.kill()
        self._ours.discard(spawned.pid)


def _duplicate_above(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE_LAUNCHER_FDS)


def _spawn(line_fd: int, failure_fd: int) -> int:
    """The pid of a launcher in a session of its own, with default signals."""
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", str(LAUNCHER)],
        {},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, line_fd, 3),
            (os.POSIX_SPAWN_DUP2, failure_fd, 4),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=list(_CATCHABLE),
    )
