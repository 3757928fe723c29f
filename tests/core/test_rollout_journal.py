"""The journal: what is written is what is told, from any cut on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from clojarsd.core import rollout_journal as journal
from clojarsd.core.errors import Failed
from clojarsd.core.rollout_facts import GoingBack, Kind, Outcome, Rollout, StepName, Wish

AT, LATER = "2026-11-28T12:00:00.000Z", "2026-11-28T12:00:09.000Z"
STEPS = (StepName.CHECKOUT, StepName.INSTALL, StepName.SWITCH, StepName.APPROVE)
WISH = Wish("20261128-120000", Kind.DEPLOY, "1.2.0", "c0ffee", None, None, "old.jar", "ann", AT, STEPS)
RECORDS = [
    journal.asked(WISH),
    journal.begun(StepName.CHECKOUT, AT),
    journal.done(StepName.CHECKOUT, LATER, 8.99999),
    journal.begun(StepName.INSTALL, AT),
    journal.done(StepName.INSTALL, LATER, 0.5, release="new.jar"),
    journal.begun(StepName.APPROVE, AT, until=LATER),
    journal.approved("bob", LATER),
    journal.turned(GoingBack("it broke", StepName.APPROVE, True, "bob", ("a", "b")), LATER),
    journal.begun(StepName.SWITCH_BACK, LATER),
    journal.failed(StepName.SWITCH_BACK, LATER, "the disk is gone"),
    journal.ended(Outcome.STUCK, "it is stuck", LATER),
]


def test_each_record_adds_what_it_tells_and_goes_through_json() -> None:
    told = [journal.told(json.loads(json.dumps(RECORDS[: count + 1]))) for count in range(len(RECORDS))]
    first = Rollout(WISH)
    assert told[0] == first
    assert told[1] == replace(first, begun={StepName.CHECKOUT: 1}, at_step=StepName.CHECKOUT, step_at=AT)
    assert told[2] == replace(first, begun={StepName.CHECKOUT: 1}, done={StepName.CHECKOUT: 9.0})
    assert told[4].release == "new.jar"
    assert (told[5].at_step, told[5].until) == (StepName.APPROVE, LATER)
    assert (told[6].approved_by, told[6].until) == ("bob", LATER)
    assert told[7].back == GoingBack("it broke", StepName.APPROVE, True, "bob", ("a", "b"))
    assert (told[7].at_step, told[7].until) == (None, None)
    assert told[7].failed == {StepName.APPROVE}
    assert told[9].failed == {StepName.APPROVE, StepName.SWITCH_BACK}
    assert (told[10].outcome, told[10].message) == (Outcome.STUCK, "it is stuck")


def test_a_rollback_knows_its_release_from_the_start() -> None:
    wish = replace(WISH, kind=Kind.ROLLBACK, tag=None, release="good.jar")
    assert journal.told([journal.asked(wish)]).release == "good.jar"


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([], "it is empty"),
        ([RECORDS[1]], "it begins with begun, not with what was asked for"),
        ([RECORDS[0], {"what": "sung"}], "a record of it cannot be understood: ValueError: no record is called sung"),
        ([RECORDS[0], {"what": "begun"}], "a record of it cannot be understood: KeyError: 'step'"),
        ([{}], "a record of it cannot be understood: KeyError: 'what'"),
    ],
)
def test_what_is_no_journal_is_told(records: list[journal.Record], why: str) -> None:
    with pytest.raises(Failed) as failed:
        journal.told(records)
    assert str(failed.value) == why
