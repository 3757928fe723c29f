"""Where the new connections of one frontend go now, also when only time has passed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from clojarsd.core.history import stamp
from clojarsd.core.names import Role
from clojarsd.core.routing import Failback, Route, choose
from clojarsd.core.spreading import deal, part_elsewhere, slow_until
from clojarsd.core.view import Next


class Router:
    """Keeps the route of one frontend true; the frontend makes and closes it.

    Args:
        failback: for how long the primary must have been eligible before it gets connections back, and slow_start: in
            how many seconds it gets all of them then.
        on_change: called when somebody else is active, or nobody. The argument is the role that was active before when
            it was another one, also with a time between in which nobody was; None otherwise.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: structlog.typing.FilteringBoundLogger,
        failback: Failback,
        on_change: Callable[[Role | None], None],
        slow_start: float = 0.0,
    ) -> None:
        self.failback = failback
        self.slow_start = slow_start
        self.eligible_since: Mapping[Role, float | None] = dict.fromkeys(Role)
        self._loop = loop
        self._log = log
        self._on_change = on_change
        self._route = Route()
        self._last_active: Role | None = None
        self._owed = 0
        self._recheck: asyncio.TimerHandle | None = None

    @property
    def active(self) -> Role | None:
        """Who gets new connections."""
        return self._route.active

    @property
    def share(self) -> float:
        """The part of new connections that operators want to go to the backup while the primary is active."""
        return self._route.share

    @share.setter
    def share(self, share: float) -> None:
        self._route = replace(self._route, share=share)

    @property
    def is_dealing(self) -> bool:
        """Whether some new connections may go to the one that is not active."""
        return self._route.share > 0.0 or (self.slow_start > 0.0 and self._route.failback_at is not None)

    def deal(self) -> Role | None:
        """Who is to get the next new connection; each call counts as one."""
        route, now = self._route, self._loop.time()
        goes_elsewhere, self._owed = deal(self._owed, part_elsewhere(route, self.eligible_since, self.slow_start, now))
        if route.failback_at is not None and slow_until(route, self.slow_start, now) is None:
            self._route = replace(route, failback_at=None)
        return route.active.other if goes_elsewhere and route.active is not None else route.active

    @property
    def primary_has_served(self) -> bool:
        """Whether the primary was ever active, so that its return is a failback."""
        return self._route.primary_has_served

    @property
    def changes_at(self) -> float | None:
        """The loop time at which the primary gets new connections again if it stays eligible; None: no such time."""
        return self._route.recheck_at

    @property
    def failures(self) -> int:
        """How often in a row the primary has ceased to serve before it had served for long."""
        return self._route.failures

    def next(self) -> Next | None:
        """When new connections go home again, if they do by themselves, and why that takes longer than usual."""
        if self.changes_at is None:
            return self._next_of_slow_start()
        waits, usual = self.failback.after(self.failures), self.failback.delay
        why = f"it has failed {self.failures} times in a row and must be eligible for {waits:g} s, not {usual:g} s"
        at = datetime.now(UTC) + timedelta(seconds=self.changes_at - self._loop.time())
        return Next("primary gets its new connections", stamp(at), why if waits > usual else None)

    def _next_of_slow_start(self) -> Next | None:
        now = self._loop.time()
        until = slow_until(self._route, self.slow_start, now)
        if until is None or self.eligible_since[Role.BACKUP] is None:
            return None
        at = datetime.now(UTC) + timedelta(seconds=until - now)
        return Next("primary gets all of its new connections (slow start)", stamp(at))

    def resume(self, active: Role | None, *, primary_has_served: bool, failures: int = 0, share: float = 0.0) -> None:
        """Begin where another process has ended, until it is said who is eligible."""
        home_since = self._loop.time() if active is Role.PRIMARY else None  # for how long before is not known
        self._route = Route(
            active, primary_has_served=primary_has_served, failures=failures, home_since=home_since, share=share
        )
        self._last_active = active

    def freeze(self) -> tuple[Route, Role | None]:
        """Choose no more by itself until `look`; the route, and who was active last."""
        self.close()
        return self._route, self._last_active

    def thaw(self, route: Route, last_active: Role | None, eligible_since: Mapping[Role, float | None]) -> None:
        """Become what another process's was, without choosing until `look`."""
        self._route, self._last_active, self.eligible_since = route, last_active, dict(eligible_since)

    def set_eligible(self, eligible_since: Mapping[Role, float | None], *, is_ordered: bool = False) -> None:
        """Take who may get connections, since when (loop time), and whether by order; act on it at once."""
        self.eligible_since = dict(eligible_since)
        self.look(is_ordered=is_ordered)

    def look(self, *, is_ordered: bool = False) -> None:
        """Choose anew."""
        self.close()
        before = self._route
        self._route = choose(before, self.eligible_since, self.failback, self._loop.time(), is_ordered=is_ordered)
        if self._route.recheck_at is not None:
            self._recheck = self._loop.call_at(self._route.recheck_at, self.look)
        active = self._route.active
        if active is before.active:
            return
        self._log.info("route_changed", before=before.active and before.active.value, now=active and active.value)
        moved_from = None
        if active is not None:
            if before.primary_has_served and self._last_active is not active:
                moved_from = self._last_active
            self._last_active = active
        self._on_change(moved_from)

    def close(self) -> None:
        """Choose no more by itself."""
        if self._recheck is not None:
            self._recheck.cancel()
            self._recheck = None
