"""Many descriptors watched through one: an epoll set of our own inside the event loop.

Why not `loop.add_reader` for each socket: uvloop calls the reader of a socket that was reset once and then drops it
silently, also when the reader has left bytes behind, so what came before the reset and the reset itself would never be
seen. An epoll set nested in the loop is level-triggered to the end, is the same on every loop, and costs less memory
and time for each socket.
"""

from __future__ import annotations

import asyncio
import select
from typing import Protocol

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
ERRORS = select.EPOLLONESHOT
"""Watch for a reset alone, and say it once. The kernel reports resets whatever is asked for."""
FORGET = 0
"""Watch for nothing, not even for a reset."""

BATCH = 64
"""Events in one turn; the rest come in the next turn of the loop, after everybody else."""


class Watched(Protocol):
    """What is called about a descriptor. Calls may come without cause: reading and writing must bear EAGAIN.

    Attributes:
        fd: the descriptor.
        watched: what it is watched for now; the poller alone changes it.
    """

    fd: int
    watched: int

    def readable(self) -> None:
        """Bytes have come, or the end of them, or a reset."""

    def writable(self) -> None:
        """There is room again, or there was a reset."""

    def broken(self) -> None:
        """It was reset, and was watched for `ERRORS` alone."""


class Poller:
    """An epoll set that is served by one reader of the event loop.

    Whoever makes it closes it. The first `attach` ties it to a loop, and no task runs inside.
    """

    __slots__ = ("_epoll", "_forgotten", "_loop", "_subjects")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subjects: dict[int, Watched] = {}
        self._forgotten: set[int] = set()
        """Descriptors that were let go of since the last turn began."""

    def __len__(self) -> int:
        """How many descriptors are watched."""
        return len(self._subjects)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the loop serve it; nothing happens when it does so already."""
        if self._loop is None:
            self._loop = loop
            loop.add_reader(self._epoll.fileno(), self._turn)
        assert self._loop is loop, "a poller belongs to one loop"

    def watch(self, subject: Watched, wanted: int) -> None:
        """Watch the subject's descriptor for `READ`, `WRITE`, both, `ERRORS`, or no longer at all (`FORGET`).

        Must be called with `FORGET` before the descriptor is closed.
        """
        if subject.watched == wanted:
            return
        fd = subject.fd
        if not wanted:
            del self._subjects[fd]
            self._forgotten.add(fd)
            self._epoll.unregister(fd)
        elif subject.watched:
            self._epoll.modify(fd, wanted)
        else:
            self._epoll.register(fd, wanted)
            self._subjects[fd] = subject
        subject.watched = wanted

    def close(self) -> None:
        """Leave the loop and close the set; the watched descriptors stay open."""
        if self._loop is not None:
            self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._subjects.clear()

    def _turn(self) -> None:
        """Call what became ready. A call may change or end a later one's subject, so each is looked up afresh."""
        subjects, forgotten = self._subjects, self._forgotten
        forgotten.clear()
        for fd, events in self._epoll.poll(0, BATCH):
            subject = subjects.get(fd)
            if subject is None or fd in forgotten:  # the number may be another socket's by now, with no news yet
                continue
            if events & READ:
                if subject.watched & READ:
                    subject.readable()
                if events == READ:
                    continue
                subject = subjects.get(fd)
                if subject is None:
                    continue
            if events & WRITE and subject.watched & WRITE:
                subject.writable()
            elif subject.watched == ERRORS and not events & (READ | WRITE):
                subject.broken()
