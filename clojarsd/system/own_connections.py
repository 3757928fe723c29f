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
    """The local addresses of our own connections that have not come to their end: as the other side sees them."""

    def __init__(self) -> None:
        self._locals: dict[Address, None] = {}

    def remember(self, local: Address) -> None:
        """A connection from this address is our own, until it is said to be over."""
        self._locals[local] = None
        if len(self._locals) > _MOST:
            del self._locals[next(iter(self._locals))]

    def forget(self, local: Address) -> None:
        """It was served, or reset: it waits in no accept queue, and somebody else may get its port."""
        self._locals.pop(local, None)

    def claim(self, remote: Address) -> bool:
        """Whether a connection from there, which came out of an accept queue, is our own; asked once for each."""
        if remote in self._locals:
            del self._locals[remote]
            return True
        return False


class OwnSocket(socket.socket):
    """A TCP socket that is remembered as our own from the moment at which it connects.

    Attributes:
        local: where it comes from; None before.
    """

    def __init__(self, own: OwnConnections, family: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._own = own
        self.local: Address | None = None

    def connect(self, address: Any) -> None:
        """As every socket."""
        try:
            super().connect(address)
        finally:
            with suppress(OSError):
                self.local = Address(*self.getsockname()[:2])
                self._own.remember(self.local)

    def is_over(self) -> None:
        """It was answered or reset."""
        if self.local is not None:
            self._own.forget(self.local)
