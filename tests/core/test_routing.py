from __future__ import annotations

import itertools
import random

import pytest

from clojarsd.core.names import Health, Role, UnitState
from clojarsd.core.routing import Caps, Failback, Route, choose, is_down, is_eligible, pick, room

P, B = Role.PRIMARY, Role.BACKUP


@pytest.mark.parametrize(("state", "health"), list(itertools.product(UnitState, Health)))
def test_only_ready_and_up_is_eligible(state: UnitState, health: Health) -> None:
    assert is_eligible(state, health) == (state is UnitState.READY and health is Health.UP)
    assert is_down(state, health) == (state is UnitState.READY and health in (Health.DOWN, Health.STALLED))


@pytest.mark.parametrize(
    ("active", "primary", "backup", "now", "expected"),
    [
        (None, 10.0, 10.0, 10.0, (P, None)),
        (None, 10.0, None, 10.0, (P, None)),
        (None, None, 10.0, 10.0, (B, None)),
        (None, None, None, 10.0, (None, None)),
        (P, 10.0, 10.0, 10.0, (P, None)),
        (P, None, 5.0, 10.0, (B, None)),
        (P, None, None, 10.0, (None, None)),
        (B, 10.0, 5.0, 12.0, (B, 15.0)),
        (B, 10.0, 5.0, 14.999, (B, 15.0)),
        (B, 10.0, 5.0, 15.0, (P, None)),
        (B, 10.0, None, 10.0, (P, None)),
        (B, None, 5.0, 10.0, (B, None)),
        (B, None, None, 10.0, (None, None)),
    ],
)
def test_the_primary_gets_connections_if_it_may_else_the_backup_else_nobody(
    active: Role | None,
    primary: float | None,
    backup: float | None,
    now: float,
    expected: tuple[Role | None, float | None],
) -> None:
    chosen = choose(Route(active, None, True), {P: primary, B: backup}, Failback(5.0), now)
    assert (chosen.active, chosen.recheck_at) == expected
    assert chosen.primary_has_served


def test_a_primary_that_has_not_served_yet_waits_for_nothing() -> None:
    started = choose(Route(), {P: None, B: 10.0}, Failback(5.0), 10.0)
    assert started == Route(B)
    assert choose(started, {P: 10.1, B: 10.0}, Failback(5.0), 10.1) == Route(P, None, True, 0, 10.1)


def test_without_a_failback_time_the_primary_gets_connections_at_once() -> None:
    assert choose(Route(B, None, True), {P: 10.0, B: 5.0}, Failback(0.0), 10.0).active is P


def test_whoever_is_chosen_is_eligible() -> None:
    instants = (None, 0.0, 9.0, 10.0)
    for active, served, primary, backup in itertools.product((None, P, B), (False, True), instants, instants):
        since = {P: primary, B: backup}
        chosen = choose(Route(active, None, served), since, Failback(5.0), 10.0).active
        assert chosen is None or since[chosen] is not None
        assert (chosen is None) == (primary is None and backup is None)


# A primary that flaps.

FAILBACK = Failback(5.0, 60.0)


def test_each_failure_in_a_row_doubles_the_time_until_it_is_at_its_longest() -> None:
    assert [FAILBACK.after(failures) for failures in range(7)] == [5.0, 5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    assert FAILBACK.after(100_000) == 60.0
    assert Failback(5.0, 1.0).after(9) == 5.0, "a longest time below the usual one changes nothing"
    assert Failback(0.0, 60.0).after(9) == 0.0


def fail_and_return(route: Route, now: float, serves: float) -> tuple[Route, float]:
    """The primary fails, returns a second later, and serves so long from when it may; the delay that it had."""
    route = choose(route, {P: None, B: 0.0}, FAILBACK, now)
    assert route.active is B
    since = {P: now + 1.0, B: 0.0}
    route = choose(route, since, FAILBACK, now + 1.0)
    assert route.recheck_at is not None
    assert choose(route, since, FAILBACK, route.recheck_at - 0.001).active is B
    home = choose(route, since, FAILBACK, route.recheck_at)
    assert home.active is P
    return home, route.recheck_at + serves


def test_a_primary_that_flaps_waits_longer_each_time_and_is_forgiven_when_it_has_served_for_long() -> None:
    route = choose(Route(), {P: 0.0, B: 0.0}, FAILBACK, 0.0)
    now, waits = 1.0, []
    for serves in (2.0, 2.0, 59.0, 60.0, 2.0):
        before = now
        route, now = fail_and_return(route, now, serves)
        waits.append(now - serves - before - 1.0)
    assert waits == pytest.approx([5.0, 10.0, 20.0, 40.0, 5.0])
    assert route.failures == 1


def test_a_flapping_primary_serves_at_once_when_nobody_else_can() -> None:
    flapping = Route(B, None, True, failures=5, home_since=0.0)
    assert choose(flapping, {P: 10.0, B: None}, FAILBACK, 10.0).active is P


def test_a_failure_while_the_backup_serves_is_no_failover() -> None:
    route = Route(B, None, True, failures=2, home_since=0.0)
    for now, primary in ((10.0, 10.0), (11.0, None), (12.0, 12.0), (13.0, None)):
        route = choose(route, {P: primary, B: 0.0}, FAILBACK, now)
        assert (route.active, route.failures) == (B, 2)


def test_a_primary_that_leaves_by_order_has_not_failed_and_is_forgiven_what_it_had() -> None:
    flapped = Route(P, None, True, failures=4, home_since=8.0)
    away = choose(flapped, {P: None, B: 0.0}, FAILBACK, 10.0, is_ordered=True)
    assert (away.active, away.failures) == (B, 0)
    assert choose(away, {P: 11.0, B: 0.0}, FAILBACK, 11.0).recheck_at == 16.0


@pytest.mark.parametrize("seed", range(20))
def test_two_processes_that_are_told_the_same_choose_the_same_and_sensibly(seed: int) -> None:
    """Each is asked at moments of its own besides; whoever serves may, and home again means having been well enough."""
    chance = random.Random(seed)
    now, since = 0.0, dict[Role, float | None]({P: None, B: None})
    one, other = Route(), Route()
    for _ in range(2000):
        now += chance.choice((0.1, 1.0, 7.0, 70.0)) * chance.random()
        if chance.random() < 0.6:
            role = chance.choice((P, B))
            since[role] = None if since[role] is not None else now
        before = one
        one = choose(one, since, FAILBACK, now)
        for moment in sorted(chance.uniform(now - 0.001, now) for _ in range(chance.randrange(3))):
            if moment >= max((at for at in since.values() if at is not None), default=now):
                other = choose(other, since, FAILBACK, moment)
        other = choose(other, since, FAILBACK, now)
        assert (one.active, one.failures) == (other.active, other.failures), f"seed {seed}"
        assert one.active is None or since[one.active] is not None
        assert (one.active is None) == (since[P] is None and since[B] is None)
        if before.active is B and one.active is P and since[B] is not None and before.primary_has_served:
            began = since[P]
            assert began is not None
            assert now - began >= FAILBACK.after(before.failures) - 1e-9
        assert one.recheck_at is None or (one.active is B and one.recheck_at > now)


# Limits.


@pytest.mark.parametrize(
    ("able", "open_now", "caps", "picked", "left"),
    [
        ((P, B), (9, 9), Caps(), P, None),
        ((B,), (0, 0), Caps(), B, None),
        ((), (0, 0), Caps(), None, 0),
        ((P, B), (1, 0), Caps(0, 2, 2), P, 3),
        ((P, B), (2, 0), Caps(0, 2, 2), B, 2),
        ((P, B), (2, 2), Caps(0, 2, 2), None, 0),
        ((P, B), (3, 2), Caps(0, 2, 2), None, 0),
        ((P, B), (2, 7), Caps(0, 2, 0), B, None),
        ((P,), (2, 0), Caps(0, 2, 0), None, 0),
        ((P, B), (2, 1), Caps(3, 0, 0), None, 0),
        ((P, B), (2, 0), Caps(3, 2, 2), B, 1),
        ((P, B), (5, 5), Caps(3, 0, 0), None, 0),
    ],
)
def test_who_is_full_passes_connections_on_to_the_other(
    able: tuple[Role, ...], open_now: tuple[int, int], caps: Caps, picked: Role | None, left: int | None
) -> None:
    counts = dict(zip((P, B), open_now, strict=True))
    assert pick(P, able, counts, caps) is picked
    assert room(able, counts, caps) == left


def test_there_is_room_exactly_when_somebody_is_picked() -> None:
    for primary, backup, total, most_p, most_b in itertools.product((0, 1, 2), (0, 1, 2), (0, 2), (0, 1), (0, 2)):
        counts, caps = {P: primary, B: backup}, Caps(total, most_p, most_b)
        for able in ((), (P,), (B,), (P, B)):
            for active in (P, B):
                assert (pick(active, able, counts, caps) is None) == (room(able, counts, caps) == 0)
        assert caps.are_set == bool(total or most_p or most_b)
