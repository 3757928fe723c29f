"""How a rollout has ended, word for word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clojarsd.core import rollout_journal as journal
from clojarsd.core.names import Goal, Health, Incarnation, Role, UnitState
from clojarsd.core.rollout_facts import GoingBack, Kind, Outcome, Rollout, StepName, Wish
from clojarsd.core.rollout_texts import cannot, how_it_ended
from clojarsd.core.unit import Unit
from clojarsd.core.view import DaemonView, InstanceView, PairView

AT, LOG = "2026-11-28T12:00:00.000Z", "/var/log/clojarsd/rollouts/1.log"
STEPS = (StepName.BUILD, StepName.INSTALL, StepName.SWITCH, StepName.BACKUP, StepName.PRIMARY, StepName.GOOD)
WISH = Wish("20261128-120000", Kind.DEPLOY, "1.2.0", "c0ffee", None, None, "old.jar", "ann", AT, STEPS)
ROLLBACK = replace(WISH, kind=Kind.ROLLBACK, tag=None, release="older.jar", steps=STEPS[2:])


def pair(primary: UnitState = UnitState.READY, backup: UnitState = UnitState.READY) -> PairView:
    def seen(role: Role, state: UnitState) -> InstanceView:
        release = "old.jar" if state is UnitState.READY else None
        unit = Unit(Goal.UP, state, incarnation=Incarnation(1))
        return InstanceView(role, role.value, unit, Health.UP, 1, AT, 0, None, None, release, {}, ())

    instances = {Role.PRIMARY: seen(Role.PRIMARY, primary), Role.BACKUP: seen(Role.BACKUP, backup)}
    return PairView("demo", DaemonView("1", 1, AT, "x"), instances, {})


def at(step: StepName, why: GoingBack | None, wish: Wish = WISH) -> Rollout:
    """A rollout that came as far as that step."""
    steps = wish.steps[: wish.steps.index(step) + 1]
    records = [journal.asked(wish)]
    for one in steps:
        facts = {"release": "new.jar"} if one is StepName.INSTALL else {}
        records += [journal.begun(one, AT), journal.done(one, AT, 1.0, **facts)]
    return journal.told([*records, *([journal.turned(why, AT)] if why is not None else [])])


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (WISH, "cannot deploy 1.2.0"),
        (replace(WISH, tag=None, artifact="/tmp/x.jar"), "cannot deploy /tmp/x.jar"),
        (ROLLBACK, "cannot roll back to older.jar"),
    ],
)
def test_what_cannot_be_done(wish: Wish, text: str) -> None:
    assert cannot(wish) == text


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (WISH, "deploy of 1.2.0 is done and recorded as good: primary and backup run new.jar instead of old.jar"),
        (replace(WISH, previous=None), "deploy of 1.2.0 is done and recorded as good: primary and backup run new.jar"),
        (
            replace(WISH, previous="new.jar"),
            "deploy of 1.2.0 is done and recorded as good: primary and backup run new.jar",
        ),
        (
            ROLLBACK,
            "rollback to older.jar is done and recorded as good: primary and backup run older.jar instead of old.jar",
        ),
    ],
)
def test_a_good_end(wish: Wish, text: str) -> None:
    told = how_it_ended(at(StepName.GOOD, None, wish), Outcome.DONE, pair(), LOG)
    assert told == text


def failed(step: StepName, **changes: object) -> str:
    wish = replace(WISH, **changes)  # type: ignore[arg-type]
    return how_it_ended(at(step, GoingBack("it did not work", step), wish), Outcome.FAILED, pair(), LOG)


def test_what_holds_after_a_failure() -> None:
    log = f"; whole log: {LOG}"
    why = "it did not work"
    assert failed(StepName.BUILD) == (
        f"cannot deploy 1.2.0: building it: {why}; nothing was changed, primary and backup still serve, with old.jar"
        f"{log}"
    )
    assert failed(StepName.BUILD, previous=None) == (
        f"cannot deploy 1.2.0: building it: {why}; nothing was changed, primary and backup still serve{log}"
    )
    assert failed(StepName.SWITCH) == (
        f"cannot deploy 1.2.0: switching the link: {why}; the link names old.jar, as before, and no instance was"
        f" touched, primary and backup still serve{log}"
    )
    assert failed(StepName.BACKUP) == (
        f"cannot deploy 1.2.0: restarting backup: {why}; the link and backup are back at old.jar, the primary was not"
        f" touched, primary and backup still serve{log}"
    )
    assert failed(StepName.PRIMARY) == (
        f"cannot deploy 1.2.0: restarting primary: {why}; the link, primary and backup are back at old.jar,"
        f" primary and backup still serve{log}"
    )
    assert failed(StepName.BACKUP, previous=None) == (
        f"cannot deploy 1.2.0: restarting backup: {why}; there is no release, as before{log}"
    )
    assert failed(StepName.SWITCH, steps=STEPS[2:]).endswith("still serve"), "without commands there is no log"


def test_what_was_given_up() -> None:
    back = GoingBack("aborted by bob", StepName.BUILD, is_abort=True, by="bob")
    assert how_it_ended(at(StepName.BUILD, back), Outcome.ABORTED, pair(), LOG) == (
        "deploy of 1.2.0 was given up while building it: aborted by bob; nothing was changed,"
        f" primary and backup still serve, with old.jar; whole log: {LOG}"
    )


def test_what_is_stuck_says_where_each_instance_is() -> None:
    rollout = at(StepName.PRIMARY, GoingBack("it did not come up", StepName.PRIMARY), ROLLBACK)
    assert how_it_ended(rollout, Outcome.STUCK, pair(primary=UnitState.FAILED), LOG) == (
        "cannot roll back to older.jar: restarting primary: it did not come up; not everything could be brought back:"
        " primary is failed; backup is ready with old.jar; backup still serves"
    )
