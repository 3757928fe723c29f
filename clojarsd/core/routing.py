"""Which backend the next connection gets: the primary if it may, else the backup, else it waits."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from clojarsd.core.names import Health, Role, UnitState


def is_eligible(state: UnitState, health: Health) -> bool:
    """Whether an instance may get connections."""
    return state is UnitState.READY and health is Health.UP


def is_down(state: UnitState, health: Health) -> bool:
    """Whether an instance may not get connections as something is wrong with it, and not because it is to leave."""
    return state is UnitState.READY and health in (Health.DOWN, Health.STALLED)


@dataclass(frozen=True, slots=True)
class Route:
    """Where new connections go.

    Attributes:
        active: the role that gets them, or None: they are held.
        recheck_at: monotonic instant at which the answer may change though no fact does, or None.
        primary_has_served: whether the primary was ever active, so that its return is a failback.
        failures: how often in a row the primary has ceased to serve before it had served for long.
        home_since: monotonic instant since when the primary has served, or had when it ceased; None: it never did.
        failback_at: monotonic instant at which the primary took over from the backup last, if it did so after it had
            failed; None: it has not, or nobody asks any more.
        share: the part of new connections, from 0 to 0.5, that operators want to go to the backup meanwhile.
    """

    active: Role | None = None
    recheck_at: float | None = None
    primary_has_served: bool = False
    failures: int = 0
    home_since: float | None = None
    failback_at: float | None = None
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Failback:
    """When the primary gets its connections back.

    Attributes:
        delay: seconds for which it must have been eligible without a break.
        longest: the most that flapping makes of them, and for how many seconds it must have served to be trusted again.
    """

    delay: float
    longest: float = 0.0

    def after(self, failures: int) -> float:
        """Seconds for which it must have been eligible: doubled with each failure in a row after the first."""
        if failures <= 1:
            return self.delay
        doubled = self.delay * 2.0 ** min(failures - 1, 60)
        return min(doubled, max(self.longest, self.delay))


def choose(
    before: Route,
    eligible_since: Mapping[Role, float | None],
    failback: Failback,
    now: float,
    *,
    is_ordered: bool = False,
) -> Route:
    """Where new connections go now.

    The primary gets them when it is eligible; after a failover it must have been so for a time, as long as the backup
    can serve meanwhile. A primary that is merely up later than the backup takes its place at once.

    Depends on nothing else, so that two processes that are told the same choose the same.

    Args:
        before: where they went so far.
        eligible_since: for each role the monotonic instant since when it is eligible without a break, or None.
        now: monotonic instant.
        is_ordered: whether who may serve is another one because an operator wants it so. A primary that leaves so has
            not failed, and its earlier failures are forgiven, as those of its launches are.
    """
    primary, backup = eligible_since[Role.PRIMARY], eligible_since[Role.BACKUP]
    if before.active is Role.PRIMARY and primary is None:
        before = replace(before, failures=0 if is_ordered else _failures(before, failback, now))
    elsewhere = Role.BACKUP if backup is not None else None
    if primary is None:
        return replace(before, active=elsewhere, recheck_at=None)
    if before.active is Role.BACKUP and before.primary_has_served and elsewhere is not None:
        home_at = primary + failback.after(before.failures)
        if now < home_at:
            return replace(before, active=elsewhere, recheck_at=home_at)
    if before.active is not Role.PRIMARY:
        is_failback = before.active is Role.BACKUP and before.primary_has_served
        before = replace(before, home_since=now, failback_at=now if is_failback else None)
    return replace(before, active=Role.PRIMARY, recheck_at=None, primary_has_served=True)


def _failures(before: Route, failback: Failback, now: float) -> int:
    """How many there are in a row, with the one that is happening: a primary that has served for long begins anew."""
    has_lasted = before.home_since is not None and now - before.home_since >= max(failback.longest, failback.delay)
    return 1 if has_lasted else before.failures + 1


@dataclass(frozen=True, slots=True)
class Caps:
    """How many connections there may be. 0: no limit.

    Attributes:
        total: of a frontend.
        primary, backup: of one instance in that frontend.
    """

    total: int = 0
    primary: int = 0
    backup: int = 0

    def of(self, role: Role) -> int:
        """The limit of one instance."""
        return self.primary if role is Role.PRIMARY else self.backup

    @property
    def are_set(self) -> bool:
        """Whether there is any limit."""
        return bool(self.total or self.primary or self.backup)


NO_CAPS = Caps()


def room(able: Collection[Role], open_now: Mapping[Role, int], caps: Caps) -> int | None:
    """How many connections more there may be, with these instances able to get them; None: any number."""
    free = sum(max(caps.of(role) - open_now[role], 0) if caps.of(role) else math.inf for role in able)
    if caps.total:
        free = min(free, caps.total - sum(open_now.values()))
    return None if free == math.inf else max(int(free), 0)


def pick(active: Role, able: Collection[Role], open_now: Mapping[Role, int], caps: Caps) -> Role | None:
    """Which instance the next connection gets: the active one, the other when that is full, None when both are.

    Args:
        able: who may get it; not the active one alone, when that could not be connected to.
        open_now: how many connections each has.
    """
    if caps.total and sum(open_now.values()) >= caps.total:
        return None
    for role in (active, active.other):
        cap = caps.of(role)
        if role in able and (not cap or open_now[role] < cap):
            return role
    return None
