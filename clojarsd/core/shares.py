"""What several relay processes are for one frontend: each has its share of the limits, and the sums are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from clojarsd.core.frontend_plan import CountedFrom, FrontendPlan
from clojarsd.core.names import Role
from clojarsd.core.routing import Caps
from clojarsd.core.view import FrontendView

Counts = Mapping[Role | None, int]


def share(limit: int, number: int, workers: int) -> int:
    """Which part of a limit one of so many relay processes has; the first, which is 1, has the largest.

    The parts make up the limit, unless that is less than one for each: none is 0, which would be no limit.
    """
    if limit == 0:
        return 0
    return max(limit // workers + (number <= limit % workers), 1)


def share_of_caps(caps: Caps, number: int, workers: int) -> Caps:
    """The same for each of the limits of a frontend."""
    total, primary, backup = (share(limit, number, workers) for limit in (caps.total, caps.primary, caps.backup))
    return Caps(total, primary, backup)


def all_caps(caps: Iterable[Caps]) -> Caps:
    """What limits add up to."""
    parts = tuple(caps)
    return Caps(*(sum(getattr(one, name) for one in parts) for name in ("total", "primary", "backup")))


def in_force(caps: Caps, workers: int) -> Caps:
    """What the limits come to if so many processes share them."""
    return all_caps(share_of_caps(caps, number, workers) for number in range(1, workers + 1))


def share_of_plan(plan: FrontendPlan, number: int, workers: int) -> FrontendPlan:
    """The plan with its limits divided."""
    if workers == 1:
        return plan
    return replace(
        plan,
        hold_connections=share(plan.hold_connections, number, workers),
        max_connections=share(plan.max_connections, number, workers),
        max_per_instance=share(plan.max_per_instance, number, workers),
    )


def undivided(plan: FrontendPlan, wanted: FrontendPlan) -> FrontendPlan:
    """The plan with the limits of the wanted one, of which it has a share."""
    return replace(
        plan,
        hold_connections=wanted.hold_connections,
        max_connections=wanted.max_connections,
        max_per_instance=wanted.max_per_instance,
    )


def unserved(view: FrontendView, caps: Caps) -> FrontendView:
    """What a process has shown as one shows it that goes on beside it, and has served nobody yet."""
    none: dict[Role | None, int] = dict.fromkeys((*Role, None), 0)
    counted_from = replace(view.counted_from, accepted=none) if view.counted_from is not None else None
    return replace(
        view, connections=none, accepted_total=none, counted_from=counted_from, paused=None, caps=caps, draining={}
    )


def summed(views: Sequence[FrontendView], leaving: Sequence[FrontendView] = ()) -> FrontendView:
    """One frontend as all its relay processes together show it. An order is shown when all have carried it out.

    Args:
        views: of the processes that accept clients, the first one's first; at least one.
        leaving: of those that only let their connections end.
    """
    every, first = (*views, *leaving), views[0]
    if len(every) == 1:
        return first
    until: dict[Role, str] = {}
    for view in every:
        for role, at in view.draining.items():
            until[role] = max(at, until.get(role, at))
    return replace(
        first,
        active=next((view.active for view in views if view.active is not None), None),
        connections=added(view.connections for view in every),
        accepted_total=added(view.accepted_total for view in every),
        paused=first.paused if all(view.paused is not None for view in views) else None,
        caps=all_caps(view.caps for view in views),
        counted_from=_counted_from(views, every),
        draining=until,
        failures=max(view.failures for view in views),
    )


def added(counts: Iterable[Counts]) -> dict[Role | None, int]:
    """Counts by role, and by None, added up."""
    parts = tuple(counts)
    return {one: sum(part.get(one, 0) for part in parts) for one in (*Role, None)}


def _counted_from(views: Sequence[FrontendView], every: Sequence[FrontendView]) -> CountedFrom | None:
    """From where on is counted in all: what only some have heard of is not shown yet."""
    if any(view.counted_from is None for view in views):
        return None
    known = [view.counted_from for view in every if view.counted_from is not None]
    return replace(min(known, key=lambda one: one.at), accepted=added(one.accepted for one in known))
