"""When a warm-up is over, what came of it, and that in words."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as some

from clojarsd.core.warmup import BETTER, PATIENCE, WINDOW, Outcome, Warmup, is_settled, milliseconds

LEAST = WINDOW + PATIENCE
"""Rounds before which nothing is settled."""
FLAT = [0.003] * LEAST


@pytest.mark.parametrize(
    ("latencies", "settled"),
    [
        ([], False),
        (FLAT[:-1], False),
        (FLAT, True),
        ([0.003] * 3 + [0.9] + [0.003] * 6, True),  # a collection
        ([0.04, 0.03, 0.02, 0.02, 0.02, *[0.003] * 5], False),  # it has just become better
        ([0.04, 0.03, 0.02, 0.02, 0.02, *[0.003] * 6], False),
        ([0.04, 0.03, 0.02, 0.02, 0.02, *[0.003] * 12], True),
        ([0.001 * number for number in range(1, LEAST + 1)], True),  # worse is not better
    ],
)
def test_when_latency_has_settled(latencies: list[float], settled: bool) -> None:
    assert is_settled(latencies) is settled


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_a_steady_gain_goes_on(share: float) -> None:
    """As long as five rounds together gain more than what counts as better."""
    latencies = [0.04 * (1 - share) ** number for number in range(40)]
    assert not any(is_settled(latencies[:end]) for end in range(len(latencies)))


def test_a_gain_too_small_to_wait_for_ends_it() -> None:
    latencies = [0.04 * (1 - BETTER / 10) ** number for number in range(LEAST)]
    assert is_settled(latencies)


@given(some.lists(some.floats(0.0001, 10.0), max_size=30), some.floats(1.0, 100.0))
def test_the_unit_of_time_does_not_matter(latencies: list[float], factor: float) -> None:
    scaled = [one * 2.0 ** round(factor) for one in latencies]
    assert is_settled(scaled) == is_settled(latencies)


@given(some.lists(some.floats(0.001, 1.0), min_size=WINDOW, max_size=25))
def test_the_same_again_settles_everything(latencies: list[float]) -> None:
    best = min(latencies)
    assert is_settled([*latencies, *[best] * (2 * LEAST)])


def after(*rounds: float | None, of: int = 20) -> Warmup:
    """A warm-up after these rounds, a second each; None: one in which a request failed."""
    seen = Warmup(of)
    for number, latency in enumerate(rounds, 1):
        if latency is None:
            seen = seen.failed("/ answered 500")
        seen = seen.after_round(latency, float(number))
    return seen


def test_a_round_after_the_other() -> None:
    seen = after(0.04, 0.02)
    assert seen == Warmup(20, rounds=2, first=0.04, latency=0.02, seconds=2.0, latencies=(0.04, 0.02))
    assert not seen.is_over


def test_it_ends_when_settled_or_when_the_rounds_are_through() -> None:
    assert after(*FLAT).outcome is Outcome.SETTLED
    assert after(*FLAT, of=LEAST).outcome is Outcome.SETTLED
    done = after(0.04, 0.03, of=2)
    assert (done.outcome, done.failure, done.latencies) == (Outcome.ROUNDS_DONE, None, ())


def test_only_the_last_round_decides_whether_it_has_failed() -> None:
    assert after(None, 0.03, of=2).outcome is Outcome.ROUNDS_DONE
    failed = after(0.03, None, of=2)
    assert (failed.outcome, failed.failure, failed.first) == (Outcome.FAILED, "/ answered 500", 0.03)


def test_a_failed_round_begins_the_settling_anew() -> None:
    assert not after(*FLAT[:-1], None, *FLAT[:-1], of=99).is_over
    assert after(*FLAT[:-1], None, *FLAT, of=99).outcome is Outcome.SETTLED


@pytest.mark.parametrize(
    ("seen", "outcome", "failure"),
    [
        (Warmup(20), Outcome.TIMED_OUT, "not one round was through within 20 s"),
        (after(0.04), Outcome.TIMED_OUT, None),
        (after(0.04).failed("/ answered 500"), Outcome.FAILED, "/ answered 500"),
        (after(0.04, None), Outcome.FAILED, "/ answered 500"),
        (after(None, 0.04), Outcome.TIMED_OUT, None),
    ],
)
def test_the_end_of_its_time(seen: Warmup, outcome: Outcome, failure: str | None) -> None:
    over = seen.timed_out(20.0)
    assert (over.outcome, over.failure, over.seconds, over.latencies) == (outcome, failure, 20.0, ())


def test_what_is_cut_short_has_not_failed() -> None:
    over = after(0.04, None).cut_short(2.5)
    assert (over.outcome, over.failure, over.seconds, over.is_over) == (Outcome.CUT_SHORT, None, 2.5, True)


@given(some.lists(some.one_of(some.none(), some.floats(0.001, 1.0)), max_size=30), some.integers(1, 20))
def test_nothing_lasts_longer_than_its_rounds(rounds: list[float | None], of: int) -> None:
    seen, states = Warmup(of), [Warmup(of)]
    for number, latency in enumerate(rounds):
        if seen.is_over:
            break
        seen = (seen.failed("no") if latency is None else seen).after_round(latency, float(number))
        states.append(seen)
    assert all(two.rounds == one.rounds + 1 for one, two in pairwise(states))
    assert seen.rounds <= of
    assert seen.is_over or seen.rounds < of
    assert (seen.first is None) == (seen.latency is None)


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (Warmup(20), "round 1 of 20"),
        (after(0.04, 0.0031), "round 3 of 20, 3.1 ms"),
        (after(0.04, None), "round 3 of 20; / answered 500"),
        (replace(after(0.04, of=1), outcome=Outcome.WARMING), "round 1 of 1, 40 ms"),
    ],
)
def test_how_far_it_is(seen: Warmup, told: str) -> None:
    assert seen.progress() == told


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (after(0.04, 0.0031, of=2), "is warm: 40 ms -> 3.1 ms in 2 rounds"),
        (after(0.04, of=1), "is warm: 40 ms -> 40 ms in 1 round"),
        (after(0.04, 0.01).timed_out(20.0), "is as warm as it got within 20 s: 40 ms -> 10 ms in 2 rounds"),
        (Warmup(20).timed_out(20.0), "was not warmed up: not one round was through within 20 s"),
        (after(None, of=1), "was not warmed up: / answered 500"),
        (Warmup(20).cut_short(0.0), "is not warmed up any longer, because nobody else can serve"),
        (
            after(0.04, 0.02).cut_short(0.0),
            "is not warmed up any longer, because nobody else can serve (40 ms -> 20 ms in 2 rounds)",
        ),
        (
            after(None).cut_short(0.0),
            "is not warmed up any longer, because nobody else can serve (no answer in 1 round)",
        ),
    ],
)
def test_what_came_of_it_in_words(seen: Warmup, told: str) -> None:
    assert seen.result() == told


def test_as_programs_see_it() -> None:
    assert after(0.0402, 0.00313).as_json() == {
        "rounds": 2,
        "of": 20,
        "latency_ms": 3.1,
        "first_ms": 40.2,
        "outcome": "warming",
        "seconds": 2.0,
        "failure": None,
    }
    assert Warmup(20).as_json()["latency_ms"] is None


def test_milliseconds() -> None:
    assert [milliseconds(one) for one in (0.0402, 0.01, 0.0099, 0.00031)] == ["40 ms", "10 ms", "9.9 ms", "0.3 ms"]
