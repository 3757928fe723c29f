"""Takes clients off listening sockets, and leaves them in the backlog when they cannot be taken in."""

from __future__ import annotations

import asyncio
import enum
import errno
import socket
from collections.abc import Callable, Sequence

import structlog

from clojarsd.system.sockets import BACKLOG

ACCEPTS_A_TURN = 64
ACCEPT_PAUSE = 0.1
"""Seconds without accepting when descriptors or memory have run out: clients wait in the backlog, nothing spins."""
EPISODE_GAP = 10.0
"""Seconds after which running out again is news."""
_STREAM = int(socket.SOCK_STREAM)
_OF_ONE_CLIENT = frozenset(
    {
        errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT,
        errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ETIMEDOUT,
    }
)  # fmt: skip
"""What accept(2) says when the connection itself was lost or forbidden: it is gone, and the next one may be well."""


class _State(enum.Enum):
    CLOSED = "not begun, or over"
    OPEN = "clients are accepted"
    FULL = "there is no room; goes on when told that there is"
    PAUSED = "descriptors or memory have run out, or accepting fails; goes on by itself"


_CLOSED, _OPEN, _FULL, _PAUSED = _State  # by name, as in relay_phases.py


class Acceptor:
    """The accepting side of a frontend. It watches the listening sockets; their owner opens and closes them.

    Args:
        take: called with each client's socket, non-blocking, which is the callee's from there on.
        room: how many more clients may be taken in; asked again when so many were.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[socket.SocketType], None],
        room: Callable[[], int],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._loop = loop
        self._take = take
        self._room = room
        self._log = log
        self._listeners: Sequence[socket.socket] = ()
        self._state = _CLOSED
        self._resume: asyncio.TimerHandle | None = None
        self._failed_at: float | None = None

    def begin(self, listeners: Sequence[socket.socket]) -> None:
        """Accept clients from now on."""
        self._listeners = listeners
        self._become(_OPEN)

    @property
    def is_on(self) -> bool:
        """Whether it was begun and has not ended."""
        return self._state is not _CLOSED

    def end(self) -> None:
        """Accept nobody any more; the listening sockets may be closed."""
        self._become(_CLOSED)
        self._listeners = ()

    def accept_waiting(self) -> None:
        """Accept all who are in the backlog now: who is left there when its listener is closed is reset."""
        for listener in self._listeners:
            for _ in range(BACKLOG // ACCEPTS_A_TURN):  # more come while we accept, but not without end
                if self._state is not _OPEN or self._accept(listener) < ACCEPTS_A_TURN:
                    break

    def look(self) -> None:
        """Go on if there is room again."""
        if self._state is _FULL and self._room():
            self._become(_OPEN)

    def pause(self, error: OSError) -> None:
        """Leave clients in the backlog for a moment; said once per episode."""
        now = self._loop.time()
        if self._failed_at is None or now - self._failed_at > EPISODE_GAP:
            self._log.warning("accept_paused", reason=error.strerror, pause_s=ACCEPT_PAUSE)
        self._failed_at = now
        if self._state is not _CLOSED:
            self._become(_PAUSED)

    def _become(self, state: _State) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if state is _PAUSED:
            self._resume = self._loop.call_later(ACCEPT_PAUSE, self._become, _OPEN)
        if (state is _OPEN) != (self._state is _OPEN):
            for listener in self._listeners:
                if state is _OPEN:
                    self._loop.add_reader(listener.fileno(), self._accept, listener)
                else:
                    self._loop.remove_reader(listener.fileno())
        self._state = state

    def _accept(self, listener: socket.socket) -> int:
        """Accept what one turn allows. How many there were, lost ones included."""
        family, room = int(listener.family), 0
        for count in range(ACCEPTS_A_TURN):
            if self._state is not _OPEN:  # a client that was taken has used up the last descriptor
                return count
            if not room and not (room := self._room()):
                self._become(_FULL)
                return count
            room -= 1
            try:
                # what `accept` does, without turning numbers into enums and back
                number, _ = listener._accept()  # type: ignore[attr-defined]
                client = socket.SocketType(family, _STREAM, 0, number)
            except BlockingIOError:
                return count
            except OSError as error:
                if error.errno in _OF_ONE_CLIENT:
                    continue
                self.pause(error)  # whatever it is: raising would not stop the loop from calling again at once
                return count
            client.setblocking(False)
            self._take(client)
        return ACCEPTS_A_TURN
