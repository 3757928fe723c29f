from __future__ import annotations

import itertools

import pytest

from clojarsd.core.names import Health, Role, UnitState
from clojarsd.core.routing import Route, choose, is_eligible

P, B = Role.PRIMARY, Role.BACKUP


@pytest.mark.parametrize(("state", "health"), list(itertools.product(UnitState, Health)))
def test_only_ready_and_up_is_eligible(state: UnitState, health: Health) -> None:
    assert is_eligible(state, health) == (state is UnitState.READY and health is Health.UP)


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
    chosen = choose(Route(active, None, True), {P: primary, B: backup}, 5.0, now)
    assert (chosen.active, chosen.recheck_at) == expected
    assert chosen.primary_has_served


def test_a_primary_that_has_not_served_yet_waits_for_nothing() -> None:
    started = choose(Route(), {P: None, B: 10.0}, 5.0, 10.0)
    assert started == Route(B)
    assert choose(started, {P: 10.1, B: 10.0}, 5.0, 10.1) == Route(P, None, True)


def test_without_a_failback_time_the_primary_gets_connections_at_once() -> None:
    assert choose(Route(B, None, True), {P: 10.0, B: 5.0}, 0.0, 10.0).active is P


def test_whoever_is_chosen_is_eligible() -> None:
    instants = (None, 0.0, 9.0, 10.0)
    for active, served, primary, backup in itertools.product((None, P, B), (False, True), instants, instants):
        since = {P: primary, B: backup}
        chosen = choose(Route(active, None, served), since, 5.0, 10.0).active
        assert chosen is None or since[chosen] is not None
        assert (chosen is None) == (primary is None and backup is None)
