"""How fast clients that have waited are let go."""

from __future__ import annotations

from clojarsd.core.pacing import FIRST, PATIENCE, WARM, Pace


def test_few_go_at_first() -> None:
    assert Pace().allows(0) == FIRST
    assert Pace().allows(FIRST - 1) == 1
    assert Pace().allows(FIRST) == 0
    assert Pace().allows(FIRST + 1) == 0


def test_each_answer_makes_room_for_two() -> None:
    """One in the place of that which was answered, and one more."""
    assert Pace().answered(3).allows(FIRST - 3) == 3 + 3


def test_an_instance_that_answers_all_is_not_slowed_down_for_long() -> None:
    pace, rounds, sent = Pace(), 0, 0
    while (allowed := pace.allows(0)) is not None:
        pace, rounds, sent = pace.answered(allowed), rounds + 1, sent + allowed
    assert (rounds, sent) == (4, WARM - FIRST)


def test_an_instance_that_never_answers_has_all_after_five_times_patience() -> None:
    pace, sent = Pace(), []
    while (allowed := pace.allows(0)) is not None:
        sent.append(allowed)
        pace = pace.answered(allowed)
    assert sent == [8, 16, 32, 64]
    assert (len(sent) + 1) * PATIENCE <= 5.0
    assert Pace().answered(0) == Pace()
