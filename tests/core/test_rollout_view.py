"""A rollout as operators and programs see it, field by field."""

from __future__ import annotations

import pytest

from clojarsd.core import rollout_journal as journal
from clojarsd.core.rollout_facts import GoingBack, Kind, Outcome, Rollout, StepName, Wish
from clojarsd.core.rollout_view import Question, RolloutView, place, under_way

AT, LATER = "2026-11-28T12:00:00.000Z", "2026-11-28T12:00:09.000Z"
STEPS = (StepName.BUILD, StepName.INSTALL, StepName.SWITCH, StepName.BACKUP, StepName.APPROVE, StepName.PRIMARY)
WISH = Wish("20261128-120000", Kind.DEPLOY, "1.2.0", "c0ffee", None, None, "old.jar", "ann", AT, STEPS)
QUESTION = Question("2026-11-28T12:30:00.000Z", ("curl -i http://127.0.0.1:8002/",), ("one", "two"))
BACK = GoingBack("lein failed", StepName.BUILD)


def told(*records: journal.Record) -> Rollout:
    return journal.told([journal.asked(WISH), *records])


def test_one_that_has_just_begun() -> None:
    assert RolloutView(told(), "/log").as_json() == {
        "id": "20261128-120000",
        "kind": "deploy",
        "text": "deploy of 1.2.0",
        "tag": "1.2.0",
        "commit": "c0ffee",
        "release": None,
        "previous": "old.jar",
        "by": "ann",
        "started_at": AT,
        "state": "running",
        "step": "build",
        "step_text": "building it",
        "step_number": 1,
        "steps": ["build", "install", "switch", "backup", "approve", "primary"],
        "step_since": None,
        "approved_by": None,
        "failure": None,
        "question": None,
        "log": "/log",
    }


@pytest.mark.parametrize(
    ("records", "state", "where", "number"),
    [
        ([journal.begun(StepName.BUILD, LATER)], "running", "step 1 of 6 (building it)", 1),
        ([journal.done(StepName.BUILD, LATER, 1.0)], "running", "step 2 of 6 (installing it)", 2),
        (
            [journal.begun(StepName.APPROVE, LATER, QUESTION.until)],
            "waiting",
            "step 5 of 6 (waiting for promote or abort)",
            5,
        ),
        ([journal.turned(BACK, LATER)], "going back", "its way back", 1),
        (
            [journal.turned(BACK, LATER), journal.begun(StepName.SWITCH_BACK, LATER)],
            "going back",
            "its way back (switching the link back)",
            None,
        ),
    ],
)
def test_where_it_is(records: list[journal.Record], state: str, where: str, number: int | None) -> None:
    rollout = told(*records)
    seen = RolloutView(rollout, "/log").as_json()
    assert (seen["state"], seen["step_number"]) == (state, number)
    assert place(rollout) == where
    since = LATER if rollout.at_step is not None else AT
    assert under_way(rollout) == f"deploy of 1.2.0 by ann is at {where}, since {since}"


def test_what_it_asks() -> None:
    rollout = told(journal.begun(StepName.APPROVE, LATER, QUESTION.until))
    view = RolloutView(rollout, "/log", QUESTION)
    assert view.as_json()["question"] == {
        "until": "2026-11-28T12:30:00.000Z",
        "look": ["curl -i http://127.0.0.1:8002/"],
        "changes": ["one", "two"],
    }
    assert view.in_short == (
        "deploy of 1.2.0 by ann is at step 5 of 6 (waiting for promote or abort), since 2026-11-28T12:00:09.000Z,"
        " and waits for an answer until 2026-11-28T12:30:00.000Z"
    )
    assert RolloutView(told(), "/log").in_short == under_way(told())


def test_why_it_goes_back_and_who_approved_it() -> None:
    seen = RolloutView(told(journal.approved("bob", LATER), journal.turned(BACK, LATER)), "/log").as_json()
    assert (seen["failure"], seen["approved_by"]) == ("lein failed", "bob")


@pytest.mark.parametrize("outcome", Outcome)
def test_one_that_has_ended(outcome: Outcome) -> None:
    view = RolloutView(told(journal.ended(outcome, "so it is", LATER)), "/log")
    assert not view.is_under_way
    assert view.as_past() == {
        "id": "20261128-120000",
        "text": "deploy of 1.2.0",
        "outcome": outcome.value,
        "message": "so it is",
        "log": "/log",
    }
    assert view.in_short == ("deploy of 1.2.0 is stuck: clojarsctl why" if outcome is Outcome.STUCK else None)
