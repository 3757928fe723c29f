"""Which backend the next connection gets: the primary if it may, else the backup, else it waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clojarsd.core.names import Health, Role, UnitState


def is_eligible(state: UnitState, health: Health) -> bool:
    """Whether an instance may get connections."""
    return state is UnitState.READY and health is Health.UP


@dataclass(frozen=True, slots=True)
class Route:
    """Where new connections go.

    Attributes:
        active: the role that gets them, or None: they are held.
        recheck_at: monotonic instant at which the answer may change though no fact does, or None.
        primary_has_served: whether the primary was ever active, so that its return is a failback.
    """

    active: Role | None = None
    recheck_at: float | None = None
    primary_has_served: bool = False


def choose(before: Route, eligible_since: Mapping[Role, float | None], failback: float, now: float) -> Route:
    """Where new connections go now.

    The primary gets them when it is eligible; after a failover it must have been so for `failback` seconds, as long as
    the backup can serve meanwhile. A primary that is merely up later than the backup takes its place at once.

    Args:
        before: where they went so far.
        eligible_since: for each role the monotonic instant since when it is eligible without a break, or None.
        failback: seconds.
        now: monotonic instant.
    """
    primary, backup = eligible_since[Role.PRIMARY], eligible_since[Role.BACKUP]
    served = before.primary_has_served
    if primary is None:
        return Route(Role.BACKUP if backup is not None else None, None, served)
    if before.active is Role.BACKUP and served and backup is not None and now < primary + failback:
        return Route(Role.BACKUP, primary + failback, served)
    return Route(Role.PRIMARY, None, True)
