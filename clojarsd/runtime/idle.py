"""Ends connections that have been silent for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from clojarsd.system.relay import EndReason, Session

LOOKS_PER_LIMIT = 4
LONGEST_PAUSE = 15.0
SHORTEST_PAUSE = 0.01
"""Seconds between two sweeps: a connection lives this much longer than its limit at most."""
SESSIONS_A_TURN = 500
"""How many are looked at before everybody else has a turn: a millisecond, or less."""


class IdleSweep:
    """Looks at all connections of a frontend now and then, so that bytes cost nothing and no connection has a timer.

    The frontend makes and closes it.

    Args:
        sessions: gives the open connections.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sessions: Callable[[], Iterable[Session]]) -> None:
        self._loop = loop
        self._sessions = sessions
        self._idle: float | None = None
        self._half_closed: float | None = None
        self._pause = 0.0
        self._seen: dict[Session, tuple[int, bool, float]] = {}
        """Of each that has a limit: how much it had carried, whether it was half closed, and since when that is so."""
        self._next: asyncio.Handle | None = None

    def configure(self, idle: float | None, half_closed: float | None) -> None:
        """Go by these limits, seconds or None, from now on."""
        self.close()
        self._idle, self._half_closed = idle, half_closed
        limits = [limit for limit in (idle, half_closed) if limit is not None]
        if limits:
            self._pause = max(min(min(limits) / LOOKS_PER_LIMIT, LONGEST_PAUSE), SHORTEST_PAUSE)
            self._next = self._loop.call_later(self._pause, self._sweep)

    def close(self) -> None:
        """Look at nothing until `configure`, and begin anew then."""
        self._seen = {}
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _sweep(self) -> None:
        self._look(list(self._sessions()), {})

    def _look(self, left: list[Session], seen: dict[Session, tuple[int, bool, float]]) -> None:
        """Look at some of those that are left, then go on with the others, or pause."""
        now = self._loop.time()
        some = left[-SESSIONS_A_TURN:]
        del left[-SESSIONS_A_TURN:]
        for session in some:
            is_half_closed = session.is_half_closed
            limit, reason = self._idle, EndReason.IDLE
            if is_half_closed and self._half_closed is not None and (limit is None or self._half_closed < limit):
                limit, reason = self._half_closed, EndReason.HALF_CLOSED
            if limit is None:
                continue
            carried = session.bytes_up + session.bytes_down
            before = self._seen.get(session)
            if before is None or before[0] != carried or before[1] is not is_half_closed:
                seen[session] = (carried, is_half_closed, now)
            elif now - before[2] < limit:
                seen[session] = before
            else:
                end_silent(session, reason)
        if left:
            self._next = self._loop.call_soon(self._look, left, seen)
        else:
            self._seen = seen
            self._next = self._loop.call_later(self._pause, self._sweep)


def end_silent(session: Session, reason: EndReason) -> None:
    """End it as fits: with an end where all was said and delivered, with a reset where something is missing."""
    if session.is_quiet():
        session.finish(reason)
    else:
        session.cut(reason)
