"""Both ends of a watchdog's leash: the daemon's own to the service manager, and that of an instance to the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

from clojarsd.core.names import Role

log = structlog.get_logger()

MOST_LATE = 0.5
"""Seconds by which a timer may be late; if it is later, this process stood still, and others may have, too."""


class KeepAlive(Protocol):
    """The line to the service manager."""

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between two calls of `watchdog`; None for no watchdog."""

    def watchdog(self) -> None:
        """Say that the daemon is alive."""


@contextmanager
def keeping_alive(notifier: KeepAlive) -> Iterator[None]:
    """Tell the service manager within the block that the loop moves, from the loop itself and as often as it wants."""
    interval = notifier.watchdog_interval
    if interval is None:
        yield
        return
    loop, timer = asyncio.get_running_loop(), None

    def tell() -> None:
        nonlocal timer
        notifier.watchdog()
        timer = loop.call_later(interval, tell)

    tell()
    assert timer is not None
    try:
        yield
    finally:
        timer.cancel()


class WatchdogTimer:
    """Expects an instance's keep-alives, one incarnation after the other; nothing to close but with `end`.

    Args:
        expired: called once for each `begin` at the most, with the role and the seconds without a keep-alive.
    """

    def __init__(self, role: Role, expired: Callable[[Role, float], None]) -> None:
        self._role = role
        self._expired = expired
        self._loop = asyncio.get_running_loop()
        self._allowed = 0.0
        self._due = 0.0
        self._look_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._resumed: Callable[[Role], None] | None = None

    def begin(self, seconds: float, resumed: Callable[[Role], None] | None = None) -> None:
        """Expect a keep-alive within every so many seconds, beginning now; to be called when the instance is ready.

        Args:
            resumed: called with the role at the first one.
        """
        self.end()
        self._allowed, self._resumed = seconds, resumed
        self._due = self._loop.time() + seconds
        self._set_timer()

    def end(self) -> None:
        """Expect nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._resumed = None

    def feed(self) -> None:
        """A keep-alive has come."""
        self._due = max(self._due, self._loop.time() + self._allowed)
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed(self._role)

    def extend(self, seconds: float) -> None:
        """Expect the next one not before so many seconds from now, should that be later than so far."""
        self._due = max(self._due, self._loop.time() + seconds)

    def trigger(self) -> None:
        """Act as if the time were over."""
        if self._timer is not None:
            self._expire()

    def _set_timer(self) -> None:
        self._look_at = self._due
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        """The time is over, unless keep-alives have moved it, or this process was not there to read them."""
        now = self._loop.time()
        if now - self._look_at > MOST_LATE:
            log.info("watchdog_starts_over", role=self._role.value, late_s=round(now - self._look_at, 1))
            self._due = max(self._due, now + self._allowed)
        if self._due > now:
            self._set_timer()
        else:
            self._expire()

    def _expire(self) -> None:
        self.end()
        log.warning("watchdog_expired", role=self._role.value, allowed_s=self._allowed)
        self._expired(self._role, self._allowed)
