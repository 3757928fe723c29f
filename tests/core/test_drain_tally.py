"""What is told of the connections of a drained instance: how many ended by themselves, were silent, or were cut."""

from __future__ import annotations

import pytest

from clojarsd.core.drain_tally import DrainTally, with_end
from clojarsd.core.end_reason import EndReason

NOTHING = DrainTally()


@pytest.mark.parametrize(
    ("tally", "sentence"),
    [
        (NOTHING, "has no connections left"),
        (DrainTally(ended=1), "has no connections left: 1 ended by itself"),
        (DrainTally(ended=2, moved=3), "has no connections left: 2 ended by themselves, 3 moved to the other instance"),
        (DrainTally(silent=1), "has no connections left: 1 was silent and closed"),
        (
            DrainTally(ended=6, stay=1, cut=2, after=30.0),
            "waits for none of its connections: 2 of 9 connections were cut after 30 s (drain),"
            " 6 ended by themselves, 1 is silent and left open",
        ),
        (
            DrainTally(stay=2, cut=1, after=2.5, is_sooner=True),
            "waits for none of its connections: 1 of 3 connections was cut after 2.5 s (sooner than drain),"
            " 2 are silent and left open",
        ),
        (
            DrainTally(left=2, trouble="cannot reset them: operation not permitted"),
            "waits for none of its connections: 2 may be open (cannot reset them: operation not permitted)",
        ),
        (
            DrainTally(trouble="cannot see them: no route"),
            "waits for none of its connections: some may be open (cannot see them: no route)",
        ),
    ],
)
def test_a_sentence_tells_what_became_of_them(tally: DrainTally, sentence: str) -> None:
    assert tally.told() == sentence


def test_one_connection_is_told_as_one() -> None:
    assert DrainTally(cut=1, after=30.0).told_cut() == "1 of 1 connection was cut after 30 s (drain)"


def test_the_detail_of_the_event_has_the_numbers() -> None:
    assert NOTHING.detail() == {"ended": 0, "moved": 0, "silent": 0, "cut": 0}
    assert DrainTally(ended=3, silent=2, stay=2, cut=2, after=30.0).detail() == {
        "ended": 3,
        "moved": 0,
        "silent": 4,
        "cut": 2,
        "cut_after_seconds": 30.0,
    }
    assert DrainTally(left=1, trouble="why").detail() == NOTHING.detail() | {"left": 1, "trouble": "why"}


@pytest.mark.parametrize("reason", EndReason)
def test_each_end_counts_as_one_connection(reason: EndReason) -> None:
    tally = with_end(NOTHING, reason, 30.0, is_sooner=False)
    assert tally.total == 1
    assert tally.cut == (reason in (EndReason.CUT, EndReason.DRAIN_DEADLINE))
    assert tally.moved == (reason is EndReason.MOVED)
    assert tally.silent == (reason is EndReason.DRAINED)


def test_two_tallies_are_one_of_both() -> None:
    first, second = (
        DrainTally(1, 2, 3, 4, 5, 2.0, is_sooner=True, left=6),
        DrainTally(ended=1, after=30.0, trouble="no"),
    )
    assert first + second == DrainTally(2, 2, 3, 4, 5, 30.0, is_sooner=True, left=6, trouble="no")
    assert (first + second).total == 22
