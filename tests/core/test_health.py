from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from clojarsd.core.health import CheckRecord, Result, count, verdict
from clojarsd.core.names import Health

PASS, FAIL = Result(True, "200 in 3 ms", 0.003), Result(False, "refused", 0.0)


def counted(results: list[Result], rise: int, fall: int) -> list[Health]:
    record, seen = CheckRecord(), []
    for result in results:
        record = count(record, result, rise, fall)
        seen.append(record.health)
    return seen


def test_one_pass_is_enough_when_rise_is_one() -> None:
    assert counted([PASS], 1, 2) == [Health.UP]


def test_nothing_is_known_before_rise_or_fall_is_reached() -> None:
    assert counted([PASS, FAIL, PASS, PASS], 2, 2) == [Health.UNKNOWN, Health.UNKNOWN, Health.UNKNOWN, Health.UP]


def test_one_failure_does_not_decide_alone() -> None:
    assert counted([PASS, FAIL, PASS, FAIL, FAIL], 1, 2) == [Health.UP, Health.UP, Health.UP, Health.UP, Health.DOWN]


@given(some.lists(some.booleans(), min_size=1, max_size=60), some.integers(1, 5), some.integers(1, 5))
def test_the_verdict_turns_only_after_enough_results_in_a_row(passes: list[bool], rise: int, fall: int) -> None:
    seen = counted([PASS if passed else FAIL for passed in passes], rise, fall)
    before = Health.UNKNOWN
    for at, health in enumerate(seen):
        if health is not before:
            need = rise if health is Health.UP else fall
            assert passes[at - need + 1 : at + 1] == [health is Health.UP] * need
        before = health


def test_a_record_is_settled_when_the_last_result_agrees_with_it() -> None:
    assert not CheckRecord().is_settled()
    assert count(CheckRecord(), PASS, 1, 2).is_settled()
    assert not count(count(CheckRecord(), PASS, 1, 2), FAIL, 1, 2).is_settled()
    assert count(CheckRecord(), FAIL, 1, 1).is_settled()


UP, DOWN, UNKNOWN = CheckRecord(Health.UP), CheckRecord(Health.DOWN), CheckRecord(Health.UNKNOWN)


def test_all_checks_must_be_up() -> None:
    assert verdict([UP, UP]) is Health.UP
    assert verdict([UP, UNKNOWN]) is Health.UNKNOWN
    assert verdict([UP, DOWN, UNKNOWN]) is Health.DOWN


def test_there_is_no_verdict_without_a_check() -> None:
    with pytest.raises(ValueError, match="a verdict needs a check"):
        verdict([])
