"""A unit that is warmed up before clients come: when, what is told, and what becomes of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import structlog

from clojarsd.core.history import EventName
from clojarsd.core.names import Role, UnitState
from clojarsd.core.unit import EndCause, UnitPolicy
from clojarsd.core.unit_events import Drained, Restart, Start, Stop
from clojarsd.core.warmup import Outcome, Warmup
from clojarsd.runtime.unit_parts import PlannedWarmup
from tests.runtime.test_warmer import Asked
from tests.support.units import CRASHED, LONG, POLICY, TERMED, Units

ROLE = Role.BACKUP
WARMED = replace(POLICY, warmup=LONG)
PLANNED = PlannedWarmup(("/",), 20, LONG, Asked())
WARM = Warmup(20, Outcome.SETTLED, 12, first=0.04, latency=0.003)
FAILED = Warmup(20, Outcome.FAILED, 20, failure="/ answered 503")


def units(policy: UnitPolicy = WARMED, **given: object) -> Units:
    """Units whose plans have a warm-up."""
    made = Units(policy, **given)  # type: ignore[arg-type]
    for role in Role:
        made.runners[role].replan(replace(made.plan(role, policy, ("http",)), warmup=PLANNED))
    return made


async def proved(policy: UnitPolicy = WARMED) -> Units:
    """Units of which the backup has passed its checks."""
    made = units(policy)
    made.runners[ROLE].order(Start(), "ann")
    made.serve(ROLE)
    return made


async def test_checks_that_pass_begin_the_warm_up_and_its_end_makes_ready() -> None:
    made = await proved()
    assert made.deeds[-1] == "backup warms up 1"
    assert made.warmers[ROLE].planned is PLANNED
    seen = made.seen(ROLE)
    assert (seen.unit.state, seen.is_eligible, seen.reason) == (
        UnitState.STARTING,
        False,
        "warming up: round 1 of 20",
    )
    assert seen.next is not None
    assert seen.next.what == "its warm-up ends, if it has not by then"
    made.runners[ROLE].warming(seen.unit.incarnation, Warmup(20, rounds=6, first=0.04, latency=0.0031))
    assert made.seen(ROLE).reason == "warming up: round 7 of 20, 3.1 ms"
    made.runners[ROLE].warming(seen.unit.incarnation, WARM)
    assert (made.seen(ROLE).is_eligible, made.seen(ROLE).warmup) == (True, WARM)
    told = [(event, message, by) for event, message, _, by, _ in made.history.events[-2:]]
    assert told == [
        (EventName.WARMUP_FINISHED, "backup is warm: 40 ms -> 3.0 ms in 12 rounds", "ann"),
        (EventName.INSTANCE_READY, "backup is ready", "ann"),
    ]
    assert made.history.events[-2][4]["first_ms"] == 40.0


async def test_a_failed_warm_up_says_so_and_the_instance_serves() -> None:
    made = await proved()
    with structlog.testing.capture_logs() as logs:
        made.runners[ROLE].warming(made.seen(ROLE).unit.incarnation, FAILED)
    assert made.seen(ROLE).is_eligible
    assert made.seen(ROLE).warmup == FAILED
    assert EventName.WARMUP_FAILED in [event for event, *_ in made.history.events]
    assert "backup was not warmed up: / answered 503; it serves all the same" in made.history.messages
    assert ("warmup_failed", "warning") in [(line["event"], line["log_level"]) for line in logs]


async def test_a_failed_warm_up_that_is_required_ends_the_instance_which_counts_as_a_failure() -> None:
    made = await proved(replace(WARMED, must_be_warm=True))
    made.runners[ROLE].warming(made.seen(ROLE).unit.incarnation, FAILED)
    assert made.deeds[-1] == "backup signal 15"
    assert made.seen(ROLE).reason == "its warm-up failed (/ answered 503): SIGTERM sent"
    assert "backup was not warmed up: / answered 503; it is ended, because it must be warm" in made.history.messages
    made.exit(ROLE, TERMED)
    unit = made.seen(ROLE).unit
    assert (unit.state, unit.ended_by, unit.failures.in_a_row) == (UnitState.BACKOFF, EndCause.WARMUP, 1)
    text = "backup was ended because its warm-up failed: / answered 503 (exited with 143)"
    assert text in made.history.messages


@pytest.mark.parametrize("end", ["stop", "restart", "crash"])
async def test_what_ends_the_instance_ends_its_warm_up(end: str) -> None:
    made = await proved()
    if end == "crash":
        made.exit(ROLE, CRASHED)
    else:
        made.runners[ROLE].order(Stop() if end == "stop" else Restart(), "ann")
    assert "backup warms up nothing" in made.deeds
    assert made.seen(ROLE).warmup is None
    if end != "crash":
        made.exit(ROLE, TERMED)
    made.runners[ROLE].warming(made.seen(ROLE).unit.incarnation, WARM)
    assert not made.seen(ROLE).is_eligible
    assert made.seen(ROLE).warmup is None


async def test_each_launch_is_warmed_up_anew() -> None:
    made = await proved()
    made.runners[ROLE].warming(made.seen(ROLE).unit.incarnation, WARM)
    made.runners[ROLE].order(Restart(), "ann")
    made.runners[ROLE].report(Drained(made.seen(ROLE).unit.incarnation))
    made.exit(ROLE, TERMED)
    assert made.seen(ROLE).warmup is None
    made.serve(ROLE)
    assert made.deeds[-1] == "backup warms up 2"


async def test_without_requests_nothing_is_warmed_up() -> None:
    made = Units()
    made.runners[ROLE].order(Start(), "ann")
    made.serve(ROLE)
    assert made.seen(ROLE).is_eligible
    assert made.seen(ROLE).warmup is None


async def test_what_was_proved_already_is_not_warmed_up_by_the_next_daemon() -> None:
    made = await proved()
    made.runners[ROLE].warming(made.seen(ROLE).unit.incarnation, WARM)
    before = {role: made.runners[role].saved() for role in Role}
    after = Units(WARMED, before=before, running=[made.process(ROLE).pid])
    assert after.seen(ROLE).is_eligible
    assert after.seen(ROLE).warmup == WARM
    assert not any("warms" in deed for deed in after.deeds)


async def test_what_was_being_warmed_up_begins_again_under_the_next_daemon() -> None:
    made = await proved()
    made.runners[ROLE].warming(made.seen(ROLE).unit.incarnation, Warmup(20, rounds=6, first=0.04, latency=0.003))
    before = {role: made.runners[role].saved() for role in Role}
    assert before[ROLE].warmup is None
    without = Units(WARMED, before=before, running=[made.process(ROLE).pid])
    await asyncio.sleep(0)
    assert without.seen(ROLE).is_eligible  # by settings that have none

    class Warmed(Units):
        def plan(self, role: Role, *given: object) -> object:  # type: ignore[override]
            return replace(super().plan(role, *given), warmup=PLANNED)  # type: ignore[arg-type]

    after = Warmed(WARMED, before=before, running=[made.process(ROLE).pid])
    assert "backup warms up 1" in after.deeds
    assert after.seen(ROLE).reason == "warming up: round 1 of 20"
    after.runners[ROLE].warming(after.seen(ROLE).unit.incarnation, WARM)
    assert after.seen(ROLE).is_eligible
