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
    """

    active: Role | None
    recheck_at: float | None = None


def choose(active: Role | None, eligible_since: Mapping[Role, float | None], failback: float, now: float) -> Route:
    """Where new connections go now.

    The primary gets them when it is eligible; after a failover it must have been so for `failback` seconds, as long as
    the backup can serve meanwhile.

    Args:
        active: who got them so far.
        eligible_since: for each role the monotonic instant since when it is eligible without a break, or None.
        failback: seconds.
        now: monotonic instant.
    """
    primary, backup = eligible_since[Role.PRIMARY], eligible_since[Role.BACKUP]
    if primary is None:
        return Route(Role.BACKUP if backup is not None else None)
    if active is Role.BACKUP and backup is not None and now < primary + failback:
        return Route(Role.BACKUP, primary + failback)
    return Route(Role.PRIMARY)
