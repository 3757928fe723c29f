"""Durations beside those of last time."""

from __future__ import annotations

import pytest

from clojarsd.core.rollout_facts import StepName
from clojarsd.core.rollout_journal import begun, done
from clojarsd.core.step_times import last_times, short_text, step_text

AT = "2026-11-28T21:23:45Z"


def test_the_last_success_of_each_step_counts() -> None:
    earlier = [done(StepName.CHECKOUT, AT, 1.5), done(StepName.BUILD, AT, 20)]
    later = [begun(StepName.CHECKOUT, AT), done(StepName.CHECKOUT, AT, 2.25), begun(StepName.BUILD, AT)]
    assert last_times([earlier, later]) == {"checkout": 2.25, "build": 20.0}
    assert last_times([]) == {}


@pytest.mark.parametrize(
    "record",
    [
        {"what": "failed", "step": "build", "seconds": 3},
        {"what": "done", "step": 7, "seconds": 3},
        {"what": "done", "step": "build"},
        {"what": "done", "step": "build", "seconds": "3"},
        {"what": "done", "step": "build", "seconds": True},
        {"what": "done", "step": "build", "seconds": -1},
    ],
)
def test_what_says_no_duration_is_skipped(record: dict[str, object]) -> None:
    assert last_times([[record]]) == {}


def test_the_text() -> None:
    assert step_text("build", 12.2, 14.4) == "build: 12 s (last time 14 s)"
    assert step_text("build", 0.04, None) == "build: 0.0 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (3599.7, "1 h"),
        (3725, "1 h 2 min"),
    ],
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert short_text(seconds) == text
