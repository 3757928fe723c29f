"""asyncio's own loop, with one epoll set for what it watches and for what a poller watches.

A turn of a nested poller costs two system calls and a round through the loop. Here the loop's wait itself serves the
poller, and the loop sees only what is its own.
"""

from __future__ import annotations

import asyncio
import math
import os
import select
import selectors
from typing import TYPE_CHECKING

from clojarsd.system.poller import Poller

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike


class RelayLoop(asyncio.SelectorEventLoop):
    """The loop of a process that carries bytes. Made by `asyncio.Runner` or as any loop.

    Attributes:
        poller: served by this loop, and closed with it.
    """

    def __init__(self) -> None:
        selector = _Shared()
        self.poller = selector.poller = Poller(selector.duplicate(), shared_with=self)
        super().__init__(selector)

    def close(self) -> None:
        """Close the loop, and the poller after it."""
        super().close()
        self.poller.close()


class _Shared(selectors.EpollSelector):
    """What the loop asks. Its set is the poller's, by a duplicate."""

    poller: Poller

    def duplicate(self) -> select.epoll:
        """The same set, to be closed by itself."""
        return select.epoll.fromfd(os.dup(self.fileno()))

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        key = super().unregister(fileobj)
        self.poller.forgets(key.fd)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready of the loop's own; what is the poller's has been served when this returns."""
        if timeout is None:
            timeout = -1
        elif timeout > 0:
            timeout = math.ceil(timeout * 1e3) * 1e-3  # epoll counts milliseconds, and must not wake before the time
        else:
            timeout = 0
        found: list[tuple[selectors.SelectorKey, int]] = []
        for fd, events in self.poller.turn(timeout):
            try:
                key = self.get_key(fd)
            except KeyError:
                continue
            mask = 0
            if events & ~select.EPOLLIN:
                mask |= selectors.EVENT_WRITE
            if events & ~select.EPOLLOUT:
                mask |= selectors.EVENT_READ
            if mask & key.events:
                found.append((key, mask & key.events))
        return found
