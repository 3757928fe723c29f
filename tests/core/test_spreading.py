"""Which connections go to the role that is not active: how many, spread how, and from when to when."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as some

from clojarsd.core.names import Role
from clojarsd.core.routing import Failback, Route, choose
from clojarsd.core.spreading import LEAST_AT_HOME, MOST, WHOLE, as_part, deal, part_elsewhere, slow_until

P, B = Role.PRIMARY, Role.BACKUP
BOTH: dict[Role, float | None] = {P: 0.0, B: 0.0}


def dealt(part: int, count: int) -> list[bool]:
    """Who of so many connections in a row goes elsewhere."""
    owed, went = 0, []
    for _ in range(count):
        goes, owed = deal(owed, part)
        went.append(goes)
    return went


@given(some.integers(0, WHOLE // 2), some.integers(0, 500))
def test_it_is_never_one_too_many_or_too_few(part: int, count: int) -> None:
    assert sum(dealt(part, count)) == part * count // WHOLE


@given(some.integers(1, WHOLE // 2))
def test_they_are_as_far_from_each_other_as_can_be(part: int) -> None:
    went = [number for number, goes in enumerate(dealt(part, 5 * WHOLE // part)) if goes]
    apart = {two - one for one, two in pairwise(went)}
    assert apart <= {WHOLE // part, -(-WHOLE // part)}


def test_one_of_twenty_is_each_twentieth() -> None:
    assert [number for number, goes in enumerate(dealt(WHOLE // 16, 64), 1) if goes] == [16, 32, 48, 64]
    assert not any(dealt(0, 1000))


@pytest.mark.parametrize(("share", "part"), [(0.0, 0), (1e-9, 1), (0.05, 3277), (MOST, WHOLE // 2)])
def test_a_share_as_a_part(share: float, part: int) -> None:
    assert as_part(share) == part


@pytest.mark.parametrize(
    ("route", "able", "part"),
    [
        (Route(P, share=0.25), BOTH, WHOLE // 4),
        (Route(P), BOTH, 0),
        (Route(B, share=0.25), BOTH, 0),
        (Route(None, share=0.25), {P: None, B: None}, 0),
        (Route(P, share=0.25), {P: 0.0, B: None}, 0),
    ],
)
def test_a_share_needs_an_active_primary_and_a_backup_that_may(
    route: Route, able: dict[Role, float | None], part: int
) -> None:
    assert part_elsewhere(route, able, 0.0, 10.0) == part


HOME = Route(P, failback_at=100.0)


@pytest.mark.parametrize(
    ("now", "home"),
    [(100.0, LEAST_AT_HOME), (100.4, LEAST_AT_HOME), (105.0, 0.5), (109.0, 0.9), (110.0, 1.0), (200.0, 1.0)],
)
def test_a_slow_start_gives_the_primary_more_and_more(now: float, home: float) -> None:
    assert part_elsewhere(HOME, BOTH, 10.0, now) == as_part(round(1.0 - home, 9))
    assert slow_until(HOME, 10.0, now) == (110.0 if now < 110.0 else None)


def test_without_a_slow_start_it_gets_all_at_once() -> None:
    assert part_elsewhere(HOME, BOTH, 0.0, 100.0) == 0
    assert slow_until(HOME, 0.0, 100.0) is None


def test_a_slow_start_never_gives_the_backup_less_than_its_share() -> None:
    shared = Route(P, failback_at=100.0, share=0.25)
    assert part_elsewhere(shared, BOTH, 10.0, 101.0) == as_part(0.9)
    assert part_elsewhere(shared, BOTH, 10.0, 109.0) == as_part(0.25)
    assert part_elsewhere(shared, BOTH, 10.0, 200.0) == as_part(0.25)


def test_a_slow_start_needs_a_backup() -> None:
    assert part_elsewhere(HOME, {P: 0.0, B: None}, 10.0, 100.0) == 0
    assert slow_until(Route(B, failback_at=100.0), 10.0, 101.0) is None


def test_the_primary_gets_half_of_them_over_the_whole_slow_start() -> None:
    """At a steady rate, and at the end the same as without one."""
    owed, elsewhere = 0, 0
    for number in range(10_000):
        goes, owed = deal(owed, part_elsewhere(HOME, BOTH, 10.0, 100.0 + number / 1000))
        elsewhere += goes
    assert Fraction(elsewhere, 10_000) == pytest.approx(Fraction(1, 2), abs=0.01)


def test_only_a_failback_from_the_backup_is_one() -> None:
    """Not the first start of a pair, nor the return of a primary that found nobody serving."""
    failback = Failback(5.0)
    first = choose(Route(), {P: 1.0, B: 0.0}, failback, 1.0)
    later = choose(choose(Route(), {P: None, B: 0.0}, failback, 0.0), {P: 1.0, B: 0.0}, failback, 1.0)
    assert first.failback_at is None
    assert later.failback_at is None
    away = choose(later, {P: None, B: 0.0}, failback, 2.0)
    home = choose(away, {P: 3.0, B: 0.0}, failback, 8.0)
    assert home.failback_at == 8.0
    assert choose(home, {P: 3.0, B: 0.0}, failback, 9.0).failback_at == 8.0
    nobody = choose(home, {P: None, B: None}, failback, 10.0)
    assert choose(nobody, {P: 11.0, B: 11.0}, failback, 11.0).failback_at is None


def test_a_share_outlasts_a_failover() -> None:
    away = choose(Route(P, share=0.1), {P: None, B: 0.0}, Failback(0.0), 1.0)
    home = choose(away, BOTH, Failback(0.0), 2.0)
    assert (away.share, home.share) == (0.1, 0.1)
