from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from clojarsd.core.restart import NO_FAILURES, Failures, RestartPolicy, RestartWhen, count_failure, next_delay

POLICY = RestartPolicy(
    RestartWhen.ON_FAILURE, first_delay=1.0, max_delay=30.0, reset_after=60.0, limit_count=3, limit_within=120.0
)


def test_the_delay_doubles_up_to_its_most() -> None:
    assert [next_delay(n, POLICY) for n in range(1, 8)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert next_delay(1_000_000, POLICY) == 30.0


def test_no_failure_has_no_delay_after_it() -> None:
    with pytest.raises(ValueError, match="the first failure counts as 1"):
        next_delay(0, POLICY)


def test_the_limit_counts_launches_within_its_window() -> None:
    failures, delays = NO_FAILURES, []
    for at in (0.0, 10.0, 20.0, 30.0):
        failures, delay = count_failure(failures, 0.0, at, POLICY)
        delays.append(delay)
    assert delays == [1.0, 2.0, 4.0, None]
    assert failures.relaunched_at == (1.0, 12.0, 24.0)


def test_launches_before_the_window_are_forgotten() -> None:
    old = Failures(3, (0.0, 10.0, 20.0))
    failures, delay = count_failure(old, 0.0, 121.0, POLICY)
    assert delay == 8.0
    assert failures == Failures(4, (10.0, 20.0, 129.0))


def test_a_stable_run_resets_the_delay_and_the_limit() -> None:
    worn = Failures(3, (0.0, 10.0, 20.0))
    assert count_failure(worn, 60.0, 100.0, POLICY) == (Failures(1, (101.0,)), 1.0)
    assert count_failure(worn, 59.9, 100.0, POLICY)[1] is None


@given(some.lists(some.floats(0, 1000), max_size=40), some.floats(0, 100))
def test_delays_stay_between_zero_and_their_most(gaps: list[float], ready_for: float) -> None:
    failures, now = NO_FAILURES, 0.0
    for gap in gaps:
        now += gap
        failures, delay = count_failure(failures, ready_for, now, POLICY)
        assert len(failures.relaunched_at) <= POLICY.limit_count
        assert delay is None or 0 <= delay <= POLICY.max_delay
