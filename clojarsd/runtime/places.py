"""Whether a frontend, and which instance of it, has a place for one more client. A part of `Frontend`, set apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clojarsd.core import routing
from clojarsd.core.names import Role
from clojarsd.runtime.acceptor import ACCEPTS_A_TURN
from clojarsd.runtime.dial import Client

if TYPE_CHECKING:
    from clojarsd.runtime.frontend import Frontend

_NOT_COUNTED = dict.fromkeys(Role, 0)


def may_serve(frontend: Frontend, role: Role) -> bool:
    """Whether the instance may get connections."""
    return frontend._router.eligible_since[role] is not None and role not in frontend._drains


def room_to_wait(frontend: Frontend) -> int:
    """How many more clients may be without an instance; while nobody has to wait, a turn's worth always may."""
    most = frontend._budget.room()
    held, dialled, caps = len(frontend.waiting), len(frontend._dials), frontend.gate.caps
    if most and caps.total:
        most = min(most, caps.total - held - sum(frontend.open_now().values()))
    if most <= 0:
        return 0
    if (left := frontend.plan.hold_connections - held - dialled) > 0:
        if frontend.plan.hold <= 0 and frontend._router.active is not None and caps.are_set:
            places = room(frontend)  # who finds no instance would be turned away
            most = most if places is None else min(most, places)
        return min(most, left)
    return int(not held and dialled < ACCEPTS_A_TURN and room(frontend) != 0)


def room(frontend: Frontend) -> int | None:
    """How many new connections may go to an instance now; None: any number."""
    if frontend._router.active is None or frontend.gate.paused is not None:
        return 0
    caps = frontend.gate.caps
    if not caps.are_set:
        return None
    return routing.room([role for role in Role if may_serve(frontend, role)], frontend.open_now(), caps)


def next_role(frontend: Frontend, client: Client) -> Role | None:
    """Who gets the client: the active instance, the other if that was tried, is full or silent, or its share is due.

    None: nobody.
    """
    active, caps = frontend._router.active, frontend.gate.caps
    if active is None or (frontend.gate.paused is not None and client.is_new):
        return None
    able = [role for role in Role if may_serve(frontend, role) and role not in client.tried]
    counts = frontend.open_now() if caps.are_set else _NOT_COUNTED
    first = active
    if frontend._router.is_dealing and client.is_new and not client.tried:
        first = frontend._router.deal() or active
    chosen = routing.pick(first, able, counts, caps)
    suspicion, trial = frontend._suspicion, frontend.plan.connect_timeout
    if suspicion.until and chosen is not None and suspicion.passes_over(chosen, trial):
        instead = routing.pick(active, [role for role in able if role is not chosen], counts, caps)
        if instead is not None and not suspicion.passes_over(instead, trial):
            return instead
    return chosen


def why_wait(frontend: Frontend) -> tuple[str, str | None]:
    """Why a client has to wait, in words; and how the latest connect came to nothing, if that is why."""
    if (pause := frontend.gate.paused) is not None:
        return f"paused by {pause.by}", None
    if frontend._router.active is None:
        return "no instance is eligible", None
    if room(frontend) == 0:
        return "there are as many connections as there may be", None
    last = frontend._suspicion.last
    return "no instance can be connected to" + (f" ({last})" if last is not None else ""), last
