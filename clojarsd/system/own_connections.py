"""Which connections to the instances are our own: checks and probes, which nobody else may answer.

A check that another instance answered would make a stuck one look well.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from clojarsd.core.names import Address

_MOST = 256
"""So many are remembered, the latest ones: a stuck instance's accept queue keeps what was given up long ago."""


class OwnConnections:
    """Our own connections that have not come to their end: whence they come, and to which port.

    Both, because the kernel gives one port of a client to several connections that go to different places: a client of
    a steered frontend may come from where a check of ours has come from, and is in the same accept queue.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Address, int], None] = {}
        self._left: set[tuple[Address, int]] = set()
        """Those of them that we have given up, and that may wait all the same."""
        self._taken: set[tuple[Address, int]] = set()
        """Those that have come out of an accept queue while somebody still waited for their answer."""

    def remember(self, local: Address, to: int) -> None:
        """The connection from this address to that port is our own, until it is said to be over."""
        self._known[local, to] = None
        if len(self._known) > _MOST:
            self.forget(*next(iter(self._known)))

    def give_up(self, local: Address, to: int) -> None:
        """The connection from this address to that port is our own, and was given up already."""
        self.remember(local, to)
        self.leave(local, to)

    def leave(self, local: Address, to: int) -> None:
        """It was given up: it may wait until it is accepted, or until nothing waits there."""
        self._taken.discard((local, to))
        if (local, to) in self._known:
            self._left.add((local, to))

    def nothing_waits(self, to: int) -> None:
        """The accept queue of that port is empty, so that nothing that was given up is in it."""
        for one in [one for one in self._left if one[1] == to]:
            self.forget(*one)

    def forget(self, local: Address, to: int) -> None:
        """It was served, or reset: it waits in no accept queue, and somebody else may get its port."""
        self._known.pop((local, to), None)
        self._left.discard((local, to))

    def claim(self, remote: Address, to: int) -> bool:
        """Whether a connection from there to that port, out of an accept queue, is our own; asked once for each."""
        if (remote, to) in self._known:
            if (remote, to) not in self._left:
                self._taken.add((remote, to))
            self.forget(remote, to)
            return True
        return False

    def was_taken(self, local: Address, to: int) -> bool:
        """Whether it has come out of an accept queue, so that the instance can never answer it."""
        return (local, to) in self._taken


class OwnSocket(socket.socket):
    """A TCP socket that is remembered as our own from the moment at which it connects.

    Attributes:
        local: where it comes from; None before.
    """

    def __init__(self, own: OwnConnections, family: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._own = own
        self._to = 0
        self.local: Address | None = None

    def connect(self, address: Any) -> None:
        """As every socket."""
        try:
            super().connect(address)
        finally:
            with suppress(OSError):
                self.local = Address(*self.getsockname()[:2])
                self._to = address[1]
                self._own.remember(self.local, self._to)

    @property
    def was_taken(self) -> bool:
        """Whether it waited in an accept queue until somebody else took it out."""
        return self.local is not None and self._own.was_taken(self.local, self._to)

    def is_left(self) -> None:
        """Nobody waits for its answer any more, if it has had none."""
        if self.local is not None:
            self._own.leave(self.local, self._to)

    def is_over(self) -> None:
        """It was answered or reset."""
        if self.local is not None:
            self._own.leave(self.local, self._to)
            self._own.forget(self.local, self._to)
