"""Where the new connections of one frontend go now, also when only time has passed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import structlog

from clojarsd.core.history import stamp
from clojarsd.core.names import Role
from clojarsd.core.routing import Failback, Route, choose
from clojarsd.core.view import Next


class Router:
    """Keeps the route of one frontend true; the frontend makes and closes it.

    Args:
        failback: for how long the primary must have been eligible before it gets connections back.
        on_change: called when somebody else is active, or nobody. The argument is the role that was active before when
            it was another one, also with a time between in which nobody was; None otherwise.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: structlog.typing.FilteringBoundLogger,
        failback: Failback,
        on_change: Callable[[Role | None], None],
    ) -> None:
        self.failback = failback
        self.eligible_since: Mapping[Role, float | None] = dict.fromkeys(Role)
        self._loop = loop
        self._log = log
        self._on_change = on_change
        self._route = Route()
        self._last_active: Role | None = None
        self._recheck: asyncio.TimerHandle | None = None

    @property
    def active(self) -> Role | None:
        """Who gets new connections."""
        return self._route.active

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
            return None
        waits, usual = self.failback.after(self.failures), self.failback.delay
        why = f"it has failed {self.failures} times in a row and must be eligible for {waits:g} s, not {usual:g} s"
        at = datetime.now(UTC) + timedelta(seconds=self.changes_at - self._loop.time())
        return Next("primary gets its new connections", stamp(at), why if waits > usual else None)

    def resume(self, active: Role | None, *, primary_has_served: bool, failures: int = 0) -> None:
        """Begin where another process has ended, until it is said who is eligible."""
        home_since = self._loop.time() if active is Role.PRIMARY else None  # for how long before is not known
        self._route = Route(active, primary_has_served=primary_has_served, failures=failures, home_since=home_since)
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
