"""A frontend as operators and programs see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.names import Role
from clojarsd.core.view import FrontendView
from clojarsd.runtime.gate import wall_clock

if TYPE_CHECKING:
    from clojarsd.runtime.frontend import Frontend


def view_of(frontend: Frontend) -> FrontendView:
    """The frontend now. A part of it, set apart."""
    counts: dict[Role | None, int] = {None: len(frontend.waiting)}
    counts.update((role, count) for role, count in frontend.open_now().items())
    loop, drains, gate = frontend._loop, frontend._drains, frontend.gate
    return FrontendView(
        listen=tuple(map(str, frontend.addresses() or frontend.plan.listen)),
        mode="relay",
        mode_reason=frontend.plan.mode_reason,
        active=frontend._router.active,
        connections=counts,
        accepted_total=frontend.accepted_total(),
        next=frontend._router.next(),
        paused=gate.view(),
        caps=gate.caps,
        counted_from=gate.counted_from,
        draining={role: wall_clock(loop, at) for role, drain in drains.items() if (at := drain.until) is not None},
        failures=frontend._router.failures,
        share=frontend._router.share,
    )


def count_on(frontend: Frontend, accepted: Mapping[Role | None, int]) -> None:
    """Count what another process had accepted as if it had been here."""
    for role in Role:
        frontend._accepted[role] += accepted.get(role, 0)
    frontend.waiting.accepted += accepted.get(None, 0)
    frontend.counted()


def tally_of(frontend: Frontend, role: Role) -> DrainTally:
    """What has become of the connections of the role in its latest drain there, so far."""
    drain = frontend._drains.get(role)
    return drain.tally if drain is not None else DrainTally()
