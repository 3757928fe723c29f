"""Limits of several relay processes, and what they show together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clojarsd.core.frontend_plan import CountedFrom
from clojarsd.core.names import Address, Role
from clojarsd.core.routing import NO_CAPS, Caps
from clojarsd.core.shares import (
    all_caps,
    in_force,
    share,
    share_of_caps,
    share_of_plan,
    summed,
    undivided,
    unserved,
)
from clojarsd.core.view import FrontendView, PausedView
from tests.support.fronts import make_plan

P, B = Role.PRIMARY, Role.BACKUP
SEEN = FrontendView(
    listen=("127.0.0.1:80",),
    mode="relay",
    mode_reason=None,
    active=P,
    connections={P: 2, B: 1, None: 0},
    accepted_total={P: 10, B: 3, None: 1},
)
PLAN = make_plan({role: Address("127.0.0.1", 1) for role in Role}, hold_connections=5, max_connections=7)


@pytest.mark.parametrize(
    ("limit", "workers", "shares"),
    [(0, 3, [0, 0, 0]), (7, 1, [7]), (7, 2, [4, 3]), (8, 3, [3, 3, 2]), (1, 3, [1, 1, 1]), (16, 16, [1] * 16)],
)
def test_the_shares_of_a_limit(limit: int, workers: int, shares: list[int]) -> None:
    assert [share(limit, number, workers) for number in range(1, workers + 1)] == shares


def test_no_share_of_a_limit_is_no_limit_and_the_shares_make_it_up() -> None:
    for limit in range(1, 60):
        for workers in range(1, 17):
            shares = [share(limit, number, workers) for number in range(1, workers + 1)]
            assert min(shares) > 0
            assert sum(shares) == max(limit, workers)


def test_the_limits_of_a_frontend_are_divided_each() -> None:
    caps = Caps(total=5, primary=2)
    assert [share_of_caps(caps, number, 2) for number in (1, 2)] == [Caps(3, 1), Caps(2, 1)]
    assert all_caps([Caps(3, 1), Caps(2, 1)]) == caps
    assert in_force(caps, 2) == caps
    assert in_force(Caps(total=1), 4) == Caps(total=4)


def test_a_plan_has_its_share_and_can_be_made_whole() -> None:
    assert share_of_plan(PLAN, 1, 1) is PLAN
    second = share_of_plan(PLAN, 2, 2)
    assert (second.hold_connections, second.max_connections, second.max_per_instance) == (2, 3, 0)
    assert undivided(second, PLAN) == PLAN


def test_one_view_alone_is_shown_as_it_is() -> None:
    assert summed([SEEN]) is SEEN


def test_views_are_added_up() -> None:
    other = replace(SEEN, connections={P: 1, B: 0, None: 4}, accepted_total={P: 5, B: 0, None: 4}, failures=2)
    seen = summed([SEEN, other])
    assert seen.connections == {P: 3, B: 1, None: 4}
    assert seen.accepted_total == {P: 15, B: 3, None: 5}
    assert (seen.active, seen.failures, seen.caps) == (P, 2, NO_CAPS)
    assert seen.listen == SEEN.listen


def test_the_first_that_has_an_active_instance_tells_who_it_is() -> None:
    assert summed([replace(SEEN, active=None), replace(SEEN, active=B)]).active is B
    assert summed([replace(SEEN, active=None)] * 2).active is None


def test_limits_and_routes_are_those_of_the_processes_that_accept() -> None:
    capped, leaving = replace(SEEN, caps=Caps(total=3)), replace(SEEN, caps=Caps(total=9), active=None)
    seen = summed([capped, capped], [leaving])
    assert seen.caps == Caps(total=6)
    assert seen.connections == {P: 6, B: 3, None: 0}


def test_pauses_counts_and_drains_of_any_are_shown() -> None:
    paused = PausedView("2026-01-01T00:00:00Z", "ann")
    count = CountedFrom({P: 4, B: 1, None: 0}, "then", "ann")
    one = replace(SEEN, draining={P: "2026-01-01T00:00:01Z"}, counted_from=count)
    other = replace(SEEN, draining={P: "2026-01-01T00:00:02Z", B: "2026-01-01T00:00:00Z"}, paused=paused)
    seen = summed([one, other])
    assert seen.counted_from is None, "only one has heard of it"
    assert seen.paused is None
    one, other = replace(one, paused=paused), replace(other, counted_from=replace(count, at="then, or later"))
    seen = summed([one, other], [replace(SEEN, counted_from=count), SEEN])
    assert seen.draining == {P: "2026-01-01T00:00:02Z", B: "2026-01-01T00:00:00Z"}
    assert seen.paused == paused
    assert seen.counted_from == CountedFrom({P: 12, B: 3, None: 0}, "then", "ann")
    assert summed([SEEN, SEEN]).counted_from is None


def test_a_process_beside_another_begins_with_its_route_and_without_its_counts() -> None:
    seen = unserved(
        replace(SEEN, active=B, failures=2, paused=PausedView("x", "ann"), draining={P: "x"}), Caps(total=3)
    )
    assert (seen.active, seen.failures, seen.caps, seen.paused) == (B, 2, Caps(total=3), None)
    assert sum(seen.connections.values()) == sum(seen.accepted_total.values()) == 0
    assert not seen.draining
    assert seen.counted_from is None
    counted = replace(SEEN, counted_from=CountedFrom({P: 4, B: 1, None: 0}, "then", "ann"))
    assert unserved(counted, NO_CAPS).counted_from == CountedFrom({P: 0, B: 0, None: 0}, "then", "ann")
