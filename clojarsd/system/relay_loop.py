"""asyncio's own loop, with one epoll set for what it watches and for what a poller watches.

A turn of a nested poller costs two system calls and a round through the loop. Here the loop's wait itself serves the
poller, and comes back when there is something for the loop to do.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import time
from typing import TYPE_CHECKING, TypeVarTuple

from clojarsd.system.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from _typeshed import FileDescriptorLike

Arguments = TypeVarTuple("Arguments")


class RelayLoop(asyncio.SelectorEventLoop):
    """The loop of a process that carries bytes; made and closed like any loop.

    Attributes:
        poller: served by this loop. Whoever uses it closes it before the loop is closed.
        failed: called with an error of the loop itself, or of telling one, before anything is undone.
    """

    def __init__(self) -> None:
        self.failed: Callable[[Exception], object] = lambda error: None
        self._waiting = _Waiting()
        self._set = self._waiting.duplicate()
        self.poller = self._waiting.poller = Poller(self._set, shared_with=self)
        super().__init__(self._waiting)

    def close(self) -> None:
        """Close it, and the set."""
        super().close()
        self._set.close()

    def _run_once(self) -> None:
        """One turn. Where memory has run out each further act may crash the interpreter, so it is told at once."""
        try:
            asyncio.SelectorEventLoop._run_once(self)  # type: ignore[attr-defined]
        except Exception as error:
            self.failed(error)
            raise

    def call_soon(
        self, callback: Callable[[*Arguments], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        """As of any loop; also while the poller is served."""
        self._waiting.is_over = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Arguments], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As of any loop; also while the poller is served."""
        self._waiting.is_over = True
        return super().call_at(when, callback, *args, context=context)

    def stop(self) -> None:
        """As of any loop; also while the poller is served."""
        self._waiting.is_over = True
        super().stop()


class _Waiting(selectors.EpollSelector):
    """How the loop waits. Its set is the poller's, by a duplicate.

    Attributes:
        is_over: whether the loop has more to do than it knew when it began to wait.
    """

    poller: Poller

    def __init__(self) -> None:
        super().__init__()
        self.is_over = False

    def duplicate(self) -> select.epoll:
        """The same set, to be closed by itself."""
        return select.epoll.fromfd(os.dup(self.fileno()))

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        key = super().unregister(fileobj)
        self.poller.forgets(key.fd)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready of the loop's own; the poller is served meanwhile."""
        self.is_over = False
        turn, now = self.poller.turn, time.monotonic
        if timeout is None:
            left, ends_at = -1.0, float("inf")
        else:
            left = max(timeout, 0.0)
            ends_at = now() + left
        while True:
            strangers = turn(left)
            if strangers:
                return [ready for fd, events in strangers if (ready := self._ready(fd, events)) is not None]
            if self.is_over or left == 0:
                return []
            if left > 0:
                left = ends_at - now()
                if left <= 0:
                    return []

    def _ready(self, fd: int, events: int) -> tuple[selectors.SelectorKey, int] | None:
        """What became ready of what the loop has asked for, if it asks still."""
        try:
            key = self.get_key(fd)
        except KeyError:
            return None
        mask = 0
        if events & ~select.EPOLLIN:
            mask |= selectors.EVENT_WRITE
        if events & ~select.EPOLLOUT:
            mask |= selectors.EVENT_READ
        mask &= key.events
        return (key, mask) if mask else None
