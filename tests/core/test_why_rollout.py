"""Where a deploy is, in sentences, out of the JSON of the status."""

from __future__ import annotations

from typing import Any

import pytest

from clojarsd.core import rollout_journal as journal
from clojarsd.core.rollout_facts import GoingBack, Kind, Outcome, Rollout, StepName, Wish
from clojarsd.core.rollout_view import Question, RolloutView
from clojarsd.core.why_rollout import ANSWER, rollout_line, rollout_next, rollout_sentences, rollout_todo

AT, LATER = "2026-11-28T12:00:00.000Z", "2026-11-28T12:00:09.000Z"
STEPS = (StepName.BUILD, StepName.INSTALL, StepName.SWITCH, StepName.BACKUP, StepName.APPROVE)
WISH = Wish("20261128-120000", Kind.DEPLOY, "1.2.0", "c0ffee", None, None, "old.jar", "ann", AT, STEPS)
ASKING = [journal.done(StepName.INSTALL, AT, 1.0, release="new.jar"), journal.begun(StepName.APPROVE, LATER, "then")]
TURNED = journal.turned(GoingBack("lein failed", StepName.BUILD), LATER)
NOTHING: dict[str, Any] = {"rollout": None, "last_rollout": None}


def told(*records: journal.Record) -> Rollout:
    return journal.told([journal.asked(WISH), *records])


def status(*records: journal.Record, look: tuple[str, ...] = ("curl x",)) -> dict[str, Any]:
    rollout = told(*records)
    question = Question("2026-11-28T12:30:00.000Z", look, ()) if rollout.at_step is StepName.APPROVE else None
    view = RolloutView(rollout, "/log", question)
    if view.is_under_way:
        return {**NOTHING, "rollout": view.as_json()}
    return {**NOTHING, "last_rollout": view.as_past()}


def clock(at: str) -> str:
    return at[11:19]


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([], "deploy of 1.2.0 by ann: step 1 of 5, building it"),
        ([TURNED], "deploy of 1.2.0 by ann: on its way back"),
        (
            [TURNED, journal.begun(StepName.BACKUP_BACK, LATER)],
            "deploy of 1.2.0 by ann: on its way back, bringing backup back",
        ),
    ],
)
def test_the_line(records: list[journal.Record], line: str) -> None:
    assert rollout_line(status(*records)["rollout"]) == line


def test_one_that_is_under_way() -> None:
    assert rollout_sentences(status(), clock) == ["deploy of 1.2.0 by ann: step 1 of 5, building it, since 12:00:00"]
    assert rollout_next(status()) == []
    assert rollout_todo(status()) == []


def test_one_that_goes_back() -> None:
    assert rollout_sentences(status(TURNED), clock) == [
        "deploy of 1.2.0 by ann: on its way back, since 12:00:00",
        "it goes back: lein failed",
    ]


def test_one_that_waits() -> None:
    assert rollout_sentences(status(*ASKING), clock) == [
        "deploy of 1.2.0 by ann: step 5 of 5, waiting for promote or abort, since 12:00:09",
        "the backup runs new.jar, and it waits for an answer",
    ]
    what = "it goes back, if nobody has answered"
    assert rollout_next(status(*ASKING)) == [{"at": "2026-11-28T12:30:00.000Z", "of": "deploy of 1.2.0", "what": what}]
    assert rollout_todo(status(*ASKING)) == ["look at the backup: curl x", ANSWER]
    assert rollout_todo(status(*ASKING, look=())) == [ANSWER]


@pytest.mark.parametrize(
    ("outcome", "sentences"),
    [
        (Outcome.DONE, []),
        (Outcome.ABORTED, []),
        (Outcome.FAILED, ["the latest deploy of 1.2.0 has failed", "so it is"]),
        (Outcome.STUCK, ["the latest deploy of 1.2.0 is stuck between two releases", "so it is"]),
    ],
)
def test_one_that_has_ended(outcome: Outcome, sentences: list[str]) -> None:
    seen = status(journal.ended(outcome, "so it is", LATER))
    assert rollout_sentences(seen, clock) == sentences
    assert rollout_next(seen) == []
    todo = "`clojarsctl releases` shows which instance runs what; `clojarsctl rollback RELEASE` brings both to one"
    assert rollout_todo(seen) == ([todo] if outcome is Outcome.STUCK else [])


def test_none_at_all() -> None:
    for seen in (NOTHING, {}):
        assert rollout_sentences(seen, clock) == []
        assert rollout_next(seen) == []
        assert rollout_todo(seen) == []
