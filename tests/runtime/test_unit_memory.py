"""What is kept of an instance, how it is shown, and what of it the next daemon knows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.health import CheckRecord, Result, count
from clojarsd.core.history import EventName, stamp
from clojarsd.core.identity import ProcessIdentity
from clojarsd.core.names import ExitStatus, Goal, Health, HookName, Incarnation, LaunchStage, Role, UnitState
from clojarsd.core.saved import InForce
from clojarsd.core.unit import EndCause, Unit, step
from clojarsd.core.unit_events import DeadlinePassed, Exited, NotLaunched
from clojarsd.core.view import CheckView, LastExit, Next
from clojarsd.runtime.unit_memory import (
    UnitMemory,
    announcement,
    merge_records,
    next_step,
    remembered,
    saved,
    view,
)
from clojarsd.runtime.unit_parts import Plan, PlannedLaunch
from tests.support.units import BAD, GOOD, LONG, POLICY, a_spec

ROLE = Role.PRIMARY
SINCE = datetime(2026, 11, 23, 12, 0, 9, tzinfo=UTC)
FIRST = Incarnation(1)
IN_FORCE = InForce("127.0.0.1", {"http": 1})
AT = "2026-11-23T12:00:10Z"
CRASH = Exited(FIRST, ExitStatus(3, None))
UP, DOWN = CheckRecord(Health.UP, 1, GOOD), CheckRecord(Health.DOWN, 2, BAD)
READY = Unit(Goal.UP, UnitState.READY, incarnation=FIRST, ready_at=1.0)


def a_plan(*checks: str, ports: dict[str, int] | None = None) -> Plan:
    in_force = replace(IN_FORCE, ports=ports or {"http": 1})
    launch = PlannedLaunch(a_spec(ROLE), None, in_force)
    kinds = tuple(check.partition(" ")[0] for check in checks)
    return Plan("clojars", in_force, POLICY, checks, kinds, lambda incarnation, environment: launch)


def memory(*records: CheckRecord) -> UnitMemory:
    return UnitMemory(SINCE, records, [AT if record.last else None for record in records])


STATES = [
    (Unit(), None),
    (READY, None),
    (Unit(Goal.UP, UnitState.FAILED, last_end=CRASH), None),
    (replace(READY, state=UnitState.STARTING, deadline=9.0), "it is given up and ended if it is not ready"),
    (Unit(Goal.UP, UnitState.BACKOFF, deadline=9.0, last_end=CRASH), "it is launched again"),
    (
        replace(READY, state=UnitState.DRAINING, cause=EndCause.STOP, deadline=9.0),
        "its open connections are cut and it is ended",
    ),
    (replace(READY, state=UnitState.DRAINING), None),
    (
        replace(READY, state=UnitState.STOPPING, cause=EndCause.STOP, deadline=9.0),
        "it gets the next stop signal, at last SIGKILL",
    ),
    *(
        (replace(READY, state=state, hook=hook, deadline=9.0), f"{hook.value} is given up if it has not ended")
        for hook, state in {
            HookName.PRE_START: UnitState.STARTING,
            HookName.POST_START: UnitState.STARTING,
            HookName.PRE_STOP: UnitState.STOPPING,
            HookName.POST_STOP: UnitState.STOPPING,
        }.items()
    ),
]


@pytest.mark.parametrize(("unit", "what"), STATES)
def test_what_happens_by_itself_is_said_for_each_state(unit: Unit, what: str | None) -> None:
    assert next_step(unit, AT if unit.deadline is not None else None) == (Next(what, AT) if what else None)


def test_a_deadline_is_shown_as_the_time_of_day() -> None:
    """It is an instant of the monotonic clock, so what counts is how far away it is."""
    unit = replace(READY, state=UnitState.BACKOFF, deadline=1000.0 + LONG, last_end=CRASH)
    before = datetime.now(UTC)
    seen = view(ROLE, unit, memory(), a_plan("http"), None, 1000.0)
    assert seen.next is not None
    assert LONG - 2 < (datetime.fromisoformat(seen.next.at) - before).total_seconds() < LONG + 60
    assert seen.reason == f"exited with 3; next try at {seen.next.at}"


@pytest.mark.parametrize(
    ("records", "health"),
    [
        ((), Health.UNKNOWN),
        ((UP,), Health.UP),
        ((UP, DOWN), Health.DOWN),
        ((UP, CheckRecord()), Health.UNKNOWN),
    ],
)
def test_the_health_is_that_of_the_process_there_is(records: tuple[CheckRecord, ...], health: Health) -> None:
    assert memory(*records).health(READY) is health
    assert memory(*records).health(replace(READY, state=UnitState.BACKOFF)) is Health.UNKNOWN
    hooked = replace(READY, state=UnitState.STARTING, hook=HookName.PRE_START)
    assert memory(*records).health(hooked) is Health.UNKNOWN


@pytest.mark.parametrize("records", [(), (UP,), (UP, UP, UP)])
def test_checks_of_which_nothing_fitting_is_known_are_shown_as_unknown(records: tuple[CheckRecord, ...]) -> None:
    unknown = tuple(CheckView(kind, Health.UNKNOWN, None, None) for kind in ("http", "tcp"))
    assert memory(*records).checks(READY, a_plan("http /", "tcp other")) == unknown


def test_checks_show_what_they_saw_last_and_when() -> None:
    plan = a_plan("http /", "tcp other")
    assert memory(UP, CheckRecord()).checks(READY, plan) == (
        CheckView("http", Health.UP, "200 in 1 ms", AT),
        CheckView("tcp", Health.UNKNOWN, None, None),
    )
    unknown = tuple(CheckView(kind, Health.UNKNOWN, None, None) for kind in ("http", "tcp"))
    assert memory(UP, UP).checks(replace(READY, state=UnitState.BACKOFF), plan) == unknown


@pytest.mark.parametrize(
    ("notify", "noticed", "reason"),
    [
        (True, None, "its checks pass; it has not said READY=1 yet"),
        (True, Incarnation(0), "its checks pass; it has not said READY=1 yet"),
        (True, FIRST, "its checks pass"),
        (False, None, "its checks pass"),
    ],
)
def test_a_start_that_waits_for_the_word_of_the_instance_says_so(
    notify: bool, noticed: Incarnation | None, reason: str
) -> None:
    kept = memory(UP)
    kept.in_force, kept.noticed = replace(IN_FORCE, notify=notify), noticed
    starting = replace(READY, state=UnitState.STARTING, ready_at=None)
    assert view(ROLE, starting, kept, a_plan("http"), 901, 0.0).reason == reason


def test_a_trouble_is_shown_of_the_process_that_has_it() -> None:
    kept = memory(UP)
    kept.trouble = "it is silent"
    seen = view(ROLE, READY, kept, a_plan("http"), 901, 0.0)
    assert (seen.trouble, seen.reason, seen.is_eligible) == ("it is silent", None, True)
    kept.forget_process()
    assert view(ROLE, READY, kept, a_plan("http"), 902, 0.0).trouble is None


def test_the_view_has_everything() -> None:
    kept = memory(DOWN)
    kept.restarts, kept.last_exit, kept.release = 2, LastExit(ExitStatus(3, None), AT), "1.jar"
    kept.goal_by, kept.goal_at, kept.started_at = "ann", AT, stamp(SINCE)
    kept.in_force, kept.adopted, kept.status_text = IN_FORCE, True, "indexing"
    seen = view(ROLE, READY, kept, a_plan("http", ports={"http": 2}), 901, 0.0)
    assert (seen.role, seen.name, seen.unit, seen.health, seen.pid) == (ROLE, "clojars", READY, Health.DOWN, 901)
    assert (seen.since, seen.started_at) == (stamp(SINCE), stamp(SINCE))
    assert (seen.restarts, seen.last_exit, seen.release) == (2, LastExit(ExitStatus(3, None), AT), "1.jar")
    assert seen.reason == "its checks fail (http: 127.0.0.1:1 refused)"
    assert (seen.goal_by, seen.goal_at, seen.adopted, seen.status_text) == ("ann", AT, True, "indexing")
    assert (seen.ports, seen.next, seen.reload_signal) == ({"http": 1}, None, 1)
    kept.forget_process()
    kept.in_force = None
    stopped = view(ROLE, Unit(), kept, a_plan("http", ports={"http": 2}), None, 0.0)
    assert (stopped.ports, stopped.adopted, stopped.status_text, stopped.started_at) == ({"http": 2}, False, None, None)
    assert stopped.release == "1.jar", "the latest one is still told"


@pytest.mark.parametrize(
    ("unit", "left", "reason"),
    [
        (READY, None, None),
        (READY, "port 8001 is still taken", None),
        (Unit(), None, "not started yet"),
        (Unit(), "port 8001 is still taken", "not started yet; port 8001 is still taken"),
    ],
)
def test_what_is_left_behind_is_told_of_an_instance_that_does_not_serve(
    unit: Unit, left: str | None, reason: str | None
) -> None:
    kept = memory(UP)
    kept.left = left
    assert view(ROLE, unit, kept, a_plan("http"), None, 0.0).reason == reason


# From one daemon to the next.


def test_what_is_saved_is_remembered() -> None:
    plan = a_plan("http", "tcp")
    kept = memory(UP, CheckRecord())
    kept.restarts, kept.last_exit, kept.release, kept.in_force = 2, LastExit(ExitStatus(3, None), AT), "1.jar", IN_FORCE
    kept.wanted, kept.goal_by, kept.goal_at, kept.started_at = Goal.DOWN, "ann", AT, AT
    kept.noticed, kept.status_text = FIRST, "all is well"
    identity = ProcessIdentity(901, 1, "boot")
    before = saved(READY, kept, plan, identity)
    assert (before.unit, before.process, before.since) == (READY, identity, stamp(SINCE))
    again = remembered(before, plan)
    assert again == kept
    assert saved(READY, again, plan, identity) == before


def test_who_has_said_that_it_is_ready_need_not_say_it_again() -> None:
    plan, starting = a_plan("http"), replace(READY, state=UnitState.STARTING, ready_at=None)
    silent, told = memory(UP), memory(UP)
    told.noticed = FIRST
    assert remembered(saved(starting, silent, plan, None), plan).noticed is None
    assert remembered(saved(starting, told, plan, None), plan).noticed == FIRST


def test_times_that_do_not_fit_the_records_are_forgotten() -> None:
    """A document of another making must not end the daemon when it first shows the instance."""
    plan = a_plan("http", "tcp")
    before = replace(saved(READY, memory(UP, DOWN), plan, None), checked_at=(AT,))
    again = remembered(before, plan)
    assert again.records == (UP, DOWN)
    assert [check.at for check in again.checks(READY, plan)] == [None, None]


def test_records_follow_their_checks_through_another_configuration() -> None:
    before = saved(READY, memory(UP, DOWN), a_plan("http", "tcp"), None)
    again = remembered(before, a_plan("tcp", "exec", "http"))
    assert [record.health for record in again.records] == [Health.DOWN, Health.UP, Health.UP]
    assert again.checked_at == [None, None, None]


# What the history is told.

NEVER_RAN = NotLaunched(FIRST, LaunchStage.LOG, "disk full")


@pytest.mark.parametrize(
    ("event", "unit", "sentence"),
    [
        (EventName.INSTANCE_READY, READY, "primary is ready"),
        (EventName.INSTANCE_EXITED, replace(READY, last_end=CRASH), "primary exited with 3"),
        (
            EventName.INSTANCE_EXITED,
            replace(READY, last_end=NEVER_RAN),
            f"cannot start primary: {NEVER_RAN.stage.value}: disk full",
        ),
        (EventName.INSTANCE_FAILED, READY, "primary is not started again: because"),
        (EventName.DRAIN_STARTED, READY, "primary gets no new connections; open ones may end"),
        (EventName.DRAIN_FINISHED, READY, "primary gets connections again"),
        (EventName.DRAIN_FINISHED, replace(READY, state=UnitState.DRAINING), "primary has no connections left"),
        (EventName.DRAIN_FINISHED, replace(READY, state=UnitState.STOPPING), "primary has no connections left"),
    ],
)
def test_the_history_gets_a_sentence(event: EventName, unit: Unit, sentence: str) -> None:
    kept = replace(memory(UP), drained=DrainTally())
    assert announcement(ROLE, event, unit, "because", POLICY, kept) == sentence


def test_the_end_of_a_drain_tells_what_has_become_of_the_connections() -> None:
    stopping, kept = replace(READY, state=UnitState.STOPPING), memory(UP)
    kept.drained = DrainTally(ended=3, silent=4, cut=2, after=30.0)
    assert announcement(ROLE, EventName.DRAIN_FINISHED, stopping, None, POLICY, kept) == (
        "primary has no connections left: 2 of 9 connections were cut after 30 s (drain),"
        " 3 ended by themselves, 4 were silent and closed"
    )
    kept.drained = None
    assert announcement(ROLE, EventName.DRAIN_FINISHED, stopping, None, POLICY, kept) == (
        "primary waits for its connections no longer: those that are still open are cut"
    )


KILLED = Exited(FIRST, ExitStatus(None, 9))
STOPPING = replace(
    READY, state=UnitState.STOPPING, cause=EndCause.RESTART, deadline=9.0, stop_step=len(POLICY.stop_steps) + 1
)


@pytest.mark.parametrize("cause", [EndCause.STOP, EndCause.RESTART])
def test_an_instance_that_had_to_be_killed_is_told_so_although_the_next_is_launched_at_once(cause: EndCause) -> None:
    """The machine counts the stop signals of the incarnation that comes from zero in the very same step."""
    kept, before = memory(UP), replace(STOPPING, cause=cause)
    after, _ = step(before, KILLED, 5.0, POLICY)
    kept.count(before, after, KILLED, a_plan("http"))
    text = announcement(ROLE, EventName.INSTANCE_EXITED, after, None, POLICY, kept)
    assert text == "primary had not ended after SIGTERM and was killed"


def test_a_killing_that_nobody_has_ordered_is_told_as_one_after_an_escalated_stop() -> None:
    kept, again = memory(UP), replace(READY, incarnation=Incarnation(2))
    after, _ = step(STOPPING, KILLED, 5.0, POLICY)
    kept.count(STOPPING, after, KILLED, a_plan("http"))
    shot = Exited(Incarnation(2), ExitStatus(None, 9))
    after, _ = step(again, shot, 6.0, POLICY)
    kept.count(again, after, shot, a_plan("http"))
    text = announcement(ROLE, EventName.INSTANCE_EXITED, after, None, POLICY, kept)
    assert text == "primary was killed by SIGKILL"


def test_the_next_daemon_tells_the_end_in_the_same_words() -> None:
    plan = a_plan("http")
    starting = replace(READY, incarnation=STOPPING.incarnation, state=UnitState.STARTING, ready_at=None)
    late = replace(STOPPING, cause=EndCause.START_TIMEOUT, ready_at=None)
    waiting, _ = step(late, KILLED, 5.0, POLICY)
    assert waiting.state is UnitState.BACKOFF
    kept = memory(DOWN)
    kept.count(starting, late, DeadlinePassed(), plan)
    kept.count(late, waiting, KILLED, plan)
    seen = view(ROLE, waiting, kept, plan, None, 5.0).reason
    again = remembered(saved(waiting, kept, plan, None), plan)
    assert (again.ended_after, again.unready) == (kept.ended_after, kept.unready)
    assert seen is not None
    why = f"was not ready in time (http: {DOWN.last and DOWN.last.text}) and was ended"
    assert seen.startswith(f"{why} (had not ended after SIGTERM and was killed); next try")
    assert remembered(saved(STOPPING, kept, plan, None), plan).ended_after == 0, "of one that has not ended yet"


# Other checks under a running process.

FRESH, TRUSTED = CheckRecord(), CheckRecord(Health.UP)


@pytest.mark.parametrize(
    ("old", "records", "new", "is_ready", "merged"),
    [
        (("a", "b"), (UP, DOWN), ("a", "b"), True, (UP, DOWN)),
        (("a", "b"), (UP, DOWN), ("b", "a"), True, (DOWN, UP)),
        (("a", "b"), (UP, DOWN), ("b",), True, (DOWN,)),
        (("a",), (UP,), ("b", "a"), True, (TRUSTED, UP)),
        (("a",), (DOWN,), ("b", "a"), False, (FRESH, DOWN)),
        ((), (), ("a", "b"), True, (TRUSTED, TRUSTED)),
        ((), (), ("a",), False, (FRESH,)),
        (("a", "b"), (UP,), ("a", "b"), True, (UP, TRUSTED)),
        (("a",), (UP, DOWN), ("a", "b"), False, (UP, FRESH)),
        (("a",), (UP,), (), True, ()),
    ],
)
def test_records_follow_their_checks(
    old: tuple[str, ...],
    records: tuple[CheckRecord, ...],
    new: tuple[str, ...],
    is_ready: bool,
    merged: tuple[CheckRecord, ...],
) -> None:
    assert merge_records(old, records, new, is_ready) == merged


def test_a_trusted_check_fails_when_it_has_failed_as_often_as_it_may() -> None:
    record = count(TRUSTED, Result(False, "refused", 0.0), 1, 2)
    assert record.health is Health.UP
    assert count(record, Result(False, "refused", 0.0), 1, 2).health is Health.DOWN
