"""Many descriptors watched through one: an epoll set of our own, inside the event loop or shared with it.

Why not `loop.add_reader` for each socket: uvloop calls the reader of a socket that was reset once and then drops it
silently, also when the reader has left bytes behind, so what came before the reset and the reset itself would never be
seen. An epoll set of ours is level-triggered to the end, is the same on every loop, and costs less memory and time for
each socket.

On any loop it is nested: the loop watches the set as one descriptor. On the loop of relay_loop.py both watch one set,
which saves a system call and a round through the loop for each turn.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Sequence
from typing import Protocol

READ = select.EPOLLIN | select.EPOLLRDHUP
WRITE = select.EPOLLOUT
ERRORS = select.EPOLLONESHOT
"""Watch for a reset alone, and say it once. The kernel reports resets whatever is asked for."""
FORGET = 0
"""Watch for nothing, not even for a reset."""
_END = select.EPOLLRDHUP
_NEWS = select.EPOLLIN
_ANY = READ | WRITE

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

    def ending(self) -> None:
        """Called instead of `readable` when the end has come, too: behind what waits to be read is nothing but that."""

    def writable(self) -> None:
        """There is room again, or there was a reset."""

    def broken(self) -> None:
        """It was reset, and was watched for `ERRORS` alone."""


class Poller:
    """An epoll set that the event loop serves.

    Whoever makes it closes it. The first `attach` ties it to a loop, and no task runs inside.

    Args:
        epoll: the set, if it is shared with a loop, which closes it.
        shared_with: that loop. It calls `turn`, and need not watch the set.
    """

    __slots__ = ("_epoll", "_forgotten", "_is_nested", "_loop", "_subjects")

    def __init__(self, epoll: select.epoll | None = None, shared_with: asyncio.AbstractEventLoop | None = None) -> None:
        self._epoll = select.epoll() if epoll is None else epoll
        self._loop = shared_with
        self._is_nested = False
        self._subjects: dict[int, Watched] = {}
        self._forgotten: set[int] = set()
        """Descriptors that were let go of since the last turn began."""

    def __len__(self) -> int:
        """How many descriptors are watched here."""
        return len(self._subjects)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the loop serve it; nothing happens when it does so already."""
        if self._loop is None:
            self._loop = loop
            self._is_nested = True
            loop.add_reader(self._epoll.fileno(), self.turn)
        assert self._loop is loop, "a poller belongs to one loop"

    def watch(self, subject: Watched, wanted: int) -> None:
        """Watch the subject's descriptor for `READ`, `WRITE`, both, `ERRORS`, or no longer at all (`FORGET`).

        Must be called with `FORGET` before the descriptor is closed, unless `closes` is.
        """
        watched = subject.watched
        if watched == wanted:
            return
        fd = subject.fd
        if not watched:
            self._epoll.register(fd, wanted)
            self._subjects[fd] = subject
        elif wanted:
            self._epoll.modify(fd, wanted)
        else:
            del self._subjects[fd]
            self._forgotten.add(fd)
            self._epoll.unregister(fd)
        subject.watched = wanted

    def closes(self, subject: Watched) -> None:
        """Watch the subject's descriptor no longer, because the caller closes it now, and nobody has a duplicate.

        The kernel takes an open file out of the set with the last descriptor, so nothing has to be said to it here.
        """
        if subject.watched:
            del self._subjects[subject.fd]
            self._forgotten.add(subject.fd)
            subject.watched = FORGET

    def forgets(self, fd: int) -> None:
        """What the kernel has told of a descriptor that is not watched here concerns nobody any more."""
        self._forgotten.add(fd)

    def close(self) -> None:
        """Watch nothing any more, and leave the loop; the watched descriptors stay open."""
        for subject in list(self._subjects.values()):
            self.watch(subject, FORGET)
        if self._is_nested:
            assert self._loop is not None
            self._loop.remove_reader(self._epoll.fileno())
        if self._is_nested or self._loop is None:
            self._epoll.close()

    def turn(self, timeout: float = 0) -> Sequence[tuple[int, int]]:
        """Call what is ready, or becomes so within the time; what is ready and not watched here, with its events.

        A call may change or end a later one's subject, so each is looked up afresh.

        Args:
            timeout: seconds; below 0: for ever.
        """
        subjects, forgotten = self._subjects, self._forgotten
        forgotten.clear()
        strangers: Sequence[tuple[int, int]] = ()
        for fd, events in self._epoll.poll(timeout, BATCH):
            if fd in forgotten:  # the number may be another socket's by now, with no news yet
                continue
            subject = subjects.get(fd)
            if subject is None:
                strangers = (*strangers, (fd, events))
                continue
            try:
                if events == _NEWS:  # what nearly all are: nothing else is looked at
                    if subject.watched & _NEWS:
                        subject.readable()
                    continue
                if events & _NEWS:
                    if subject.watched & _NEWS:
                        if events & _END:
                            subject.ending()
                        else:
                            subject.readable()
                    if not events & WRITE:
                        continue
                    subject = subjects.get(fd)
                    if subject is None:
                        continue
                if events & WRITE and subject.watched & WRITE:
                    subject.writable()
                elif subject.watched == ERRORS and not events & _ANY:
                    subject.broken()
            except Exception as error:  # it concerns one connection; raised, it would end a loop that shares the set
                self._report(error)
        return strangers

    def _report(self, error: Exception) -> None:
        assert self._loop is not None
        self._loop.call_exception_handler({"message": "cannot serve a connection", "exception": error})
