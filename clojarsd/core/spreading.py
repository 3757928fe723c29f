"""Which new connections go to the role that is not active: a part of them, spread evenly, when both may get some.

There are two reasons for it. Operators may give the backup a share for a time, to see how it does; and a primary that
gets its connections back may be given them little by little (slow start).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from clojarsd.core.names import Role
from clojarsd.core.routing import Route

WHOLE: Final = 1 << 16
"""All connections, as numbers that are added up without error, and that the kernel compares."""
MOST: Final = 0.5
"""The largest share that can be ordered: more would be a failover."""
LEAST_AT_HOME: Final = 0.05
"""The part of new connections that a primary gets at once in a slow start."""


def slow_until(route: Route, slow_start: float, now: float) -> float | None:
    """The monotonic instant at which the primary gets all new connections again; None: it does, or gets none.

    Args:
        slow_start: seconds.
    """
    if route.active is not Role.PRIMARY or route.failback_at is None or now >= route.failback_at + slow_start:
        return None
    return route.failback_at + slow_start


def part_elsewhere(route: Route, able: Mapping[Role, float | None], slow_start: float, now: float) -> int:
    """How many of `WHOLE` new connections go to the backup though the primary is active.

    Args:
        able: since when each role may get connections, or None.
        slow_start: seconds over which a primary gets its connections back, evenly more of them as time passes.
    """
    if route.active is not Role.PRIMARY or able[Role.BACKUP] is None:
        return 0
    share = route.share
    if route.failback_at is not None and slow_until(route, slow_start, now) is not None:
        share = max(share, 1.0 - max((now - route.failback_at) / slow_start, LEAST_AT_HOME))
    return as_part(share)


def as_part(share: float) -> int:
    """The share of `WHOLE`; one that is not 0 is at least 1."""
    return max(round(share * WHOLE), 1) if share > 0.0 else 0


def deal(owed: int, part: int) -> tuple[bool, int]:
    """Whether the next connection goes elsewhere, and what is owed to elsewhere after it.

    Of connections in a row with the same part those that go elsewhere are as far from each other as can be, and never
    one too many or too few.

    Args:
        owed: what the call before has returned; at first 0. Below `WHOLE`.
        part: of `WHOLE` connections so many are to go elsewhere.
    """
    owed += part
    return (True, owed - WHOLE) if owed >= WHOLE else (False, owed)
