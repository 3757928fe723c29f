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
        (None, 10.0, 10.0, 10.0, Route(P)),
        (None, 10.0, None, 10.0, Route(P)),
        (None, None, 10.0, 10.0, Route(B)),
        (None, None, None, 10.0, Route(None)),
        (P, 10.0, 10.0, 10.0, Route(P)),
        (P, None, 5.0, 10.0, Route(B)),
        (P, None, None, 10.0, Route(None)),
        (B, 10.0, 5.0, 12.0, Route(B, 15.0)),
        (B, 10.0, 5.0, 14.999, Route(B, 15.0)),
        (B, 10.0, 5.0, 15.0, Route(P)),
        (B, 10.0, None, 10.0, Route(P)),
        (B, None, 5.0, 10.0, Route(B)),
        (B, None, None, 10.0, Route(None)),
    ],
)
def test_the_primary_gets_connections_if_it_may_else_the_backup_else_nobody(
    active: Role | None, primary: float | None, backup: float | None, now: float, expected: Route
) -> None:
    assert choose(active, {P: primary, B: backup}, 5.0, now) == expected


def test_without_a_failback_time_the_primary_gets_connections_at_once() -> None:
    assert choose(B, {P: 10.0, B: 5.0}, 0.0, 10.0) == Route(P)


def test_whoever_is_chosen_is_eligible() -> None:
    instants = (None, 0.0, 9.0, 10.0)
    for active, primary, backup in itertools.product((None, P, B), instants, instants):
        since = {P: primary, B: backup}
        chosen = choose(active, since, 5.0, 10.0).active
        assert chosen is None or since[chosen] is not None
        assert (chosen is None) == (primary is None and backup is None)
