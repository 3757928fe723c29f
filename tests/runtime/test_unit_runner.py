"""One instance from order to effect: in which order things are done, what is believed, and what is shown."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.errors import IllegalTransition, LaunchFailed, Refused
from clojarsd.core.health import Result
from clojarsd.core.history import EventName
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import Address, ExitStatus, Goal, Health, HookName, Incarnation, LaunchStage, Role, UnitState
from clojarsd.core.saved import InForce, SavedInstance
from clojarsd.core.unit import EndCause
from clojarsd.core.unit_events import (
    DeadlinePassed,
    Drain,
    Drained,
    Exited,
    NotLaunched,
    Order,
    Proved,
    Reload,
    Restart,
    Start,
    Stop,
    Undrain,
)
from clojarsd.core.view import CheckView
from clojarsd.runtime.health_watch import HealthWatch, PlannedCheck
from clojarsd.runtime.unit_parts import HookPlan, Plan, PlannedLaunch
from clojarsd.runtime.unit_runner import UnitRunner
from clojarsd.system.process import Processes
from tests.support.units import BAD, CRASHED, GOOD, LONG, POLICY, TERMED, Units, a_spec
from tests.support.waiting import PATIENCE, until

ROLE = Role.PRIMARY
FIRST, SECOND = Incarnation(1), Incarnation(2)
QUICK = replace(POLICY, restart=replace(POLICY.restart, first_delay=0.001, max_delay=0.001))


@pytest.fixture
async def units() -> AsyncIterator[Units]:
    made = Units()
    yield made
    for runner in made.runners.values():
        runner.abandon()


@pytest.fixture
async def ready(units: Units) -> Units:
    units.runners[ROLE].order(Start(), "root")
    units.serve(ROLE)
    units.deeds.clear()
    units.history.events.clear()
    return units


async def test_a_start_checks_only_what_runs(units: Units) -> None:
    units.runners[ROLE].order(Start(), "root")
    assert units.deeds == ["primary end drain", "primary launch"]
    units.execute(ROLE)
    assert units.deeds[2:] == ["primary checks 1"]
    units.check(ROLE)
    assert units.deeds[3:] == ["primary eligible"]
    started = units.seen(ROLE).start_seconds
    assert started is not None
    took = {"start_seconds": round(started, 3), "cds": False}
    assert units.history.events == [
        (
            EventName.INSTANCE_STARTED,
            "primary was launched as process 100",
            ROLE,
            "root",
            {"pid": 100, "incarnation": 1},
        ),
        (EventName.INSTANCE_READY, "primary is ready", ROLE, "root", {"incarnation": 1, **took}),
    ]


async def test_a_stop_takes_traffic_away_before_anything_else(ready: Units) -> None:
    ready.runners[ROLE].order(Stop(), "root")
    assert ready.deeds == ["primary not eligible", "primary drain"]
    assert ready.traffic.is_ordered, "which is no failure of the primary"
    ready.traffic.when_drained[ROLE]()
    assert ready.deeds[2:] == ["primary cut", "primary checks nothing", "primary signal 15"]
    ready.exit(ROLE, TERMED)
    assert ready.deeds[5:] == ["primary checks nothing"]
    assert ready.history.messages == [
        "primary gets no new connections; open ones may end",
        "primary has no connections left",
        "primary exited with 143",
    ]


@pytest.mark.parametrize("order", [Stop(), Restart()])
async def test_a_stop_that_needed_sigkill_is_not_told_as_a_killing_by_who_ordered_it(
    ready: Units, order: Order
) -> None:
    ready.traffic.calls_back_at_once = True
    ready.runners[ROLE].order(order, "root")
    ready.runners[ROLE].report(DeadlinePassed())
    assert ready.deeds[-1] == "primary signal 9"
    ready.exit(ROLE, ExitStatus(None, 9))
    ended = [event for event in ready.history.events if event[0] is EventName.INSTANCE_EXITED]
    assert ended == [
        (
            EventName.INSTANCE_EXITED,
            "primary had not ended after SIGTERM and was killed",
            ROLE,
            "root",
            {"incarnation": 1, "code": None, "signal": 9},
        )
    ]


async def test_a_killing_by_somebody_else_is_told_as_one(ready: Units) -> None:
    ready.exit(ROLE, ExitStatus(None, 9))
    assert ready.history.messages == ["primary was killed by SIGKILL"]


async def test_a_trouble_is_shown_until_it_is_over_or_the_process_is(ready: Units) -> None:
    ready.runners[ROLE].show_trouble("it is silent")
    assert ready.seen(ROLE).trouble == "it is silent"
    ready.runners[ROLE].show_trouble(None)
    assert ready.seen(ROLE).trouble is None
    ready.runners[ROLE].show_trouble("it is silent")
    ready.exit(ROLE, CRASHED)
    assert ready.seen(ROLE).trouble is None


STALLED = "it has not accepted 3 waiting connections for 0.5 s"


async def test_a_stalled_instance_gets_no_connections_at_once_until_it_accepts_again(ready: Units) -> None:
    runner, saves = ready.runners[ROLE], ready.saves
    runner.stalled(runner.unit.incarnation, STALLED)
    assert ready.deeds[-1] == "primary not eligible"
    assert ready.traffic.down == {ROLE}
    seen = ready.seen(ROLE)
    assert (seen.health, seen.is_eligible, seen.stalls) == (Health.STALLED, False, 1)
    assert re.fullmatch(rf"{STALLED}, as of 20\d\d-\S+Z", seen.reason or ""), "it is shown for as long as it lasts"
    assert ready.saves > saves
    runner.stalled(runner.unit.incarnation, "again")
    assert ready.seen(ROLE).reason == seen.reason
    runner.stalled(runner.unit.incarnation, None)
    assert ready.deeds[-1] == "primary eligible"
    assert ready.traffic.down == set()
    seen = ready.seen(ROLE)
    assert (seen.health, seen.is_eligible, seen.reason, seen.stalls) == (Health.UP, True, None, 1)
    assert seen.stall_seconds > 0
    runner.stalled(runner.unit.incarnation, None)
    assert ready.seen(ROLE) == seen


async def test_checks_that_fail_say_more_than_a_stall_and_those_that_pass_do_not_end_it(ready: Units) -> None:
    runner = ready.runners[ROLE]
    runner.stalled(runner.unit.incarnation, STALLED)
    ready.check(ROLE, BAD)
    assert (ready.seen(ROLE).health, ready.seen(ROLE).is_eligible) == (Health.DOWN, False)
    ready.check(ROLE)
    assert (ready.seen(ROLE).health, ready.seen(ROLE).is_eligible) == (Health.STALLED, False)


async def test_a_stall_is_of_one_process_and_its_time_is_counted_when_that_ends(ready: Units) -> None:
    runner = ready.runners[ROLE]
    runner.stalled(Incarnation(runner.unit.incarnation + 1), "late news of another one")
    assert not runner.is_stalled
    runner.stalled(runner.unit.incarnation, STALLED)
    ready.exit(ROLE, CRASHED)
    seen = ready.seen(ROLE)
    assert (runner.is_stalled, seen.stalls) == (False, 1)
    assert seen.stall_seconds > 0
    assert ready.seen(ROLE).stall_seconds == seen.stall_seconds


async def test_the_next_daemon_sends_nothing_to_a_stalled_instance(ready: Units) -> None:
    runner = ready.runners[ROLE]
    runner.stalled(runner.unit.incarnation, STALLED)
    before = runner.saved()
    assert before.process is not None
    units = Units(before={ROLE: before}, running=[before.process.pid])
    assert units.traffic.eligible[ROLE] is False
    seen = units.seen(ROLE)
    assert (seen.health, seen.reason, seen.stalls) == (Health.STALLED, ready.seen(ROLE).reason, 1)
    units.runners[ROLE].stalled(seen.unit.incarnation, None)
    assert units.traffic.eligible[ROLE] is True


async def test_a_drain_that_is_over_at_once_is_understood(ready: Units) -> None:
    """The news comes out of the effect itself, and is taken after it."""
    ready.traffic.calls_back_at_once = True
    ready.runners[ROLE].order(Restart(), "root")
    assert ready.deeds == [
        "primary not eligible",
        "primary drain",
        "primary cut",
        "primary checks nothing",
        "primary signal 15",
    ]
    assert ready.seen(ROLE).unit.state is UnitState.STOPPING
    assert ready.bugs == []


async def test_a_restart_launches_when_the_old_process_is_gone(ready: Units) -> None:
    ready.traffic.calls_back_at_once = True
    ready.runners[ROLE].order(Restart(), "root")
    ready.deeds.clear()
    ready.exit(ROLE, TERMED)
    assert ready.deeds == ["primary checks nothing", "primary end drain", "primary launch"]
    assert (ready.seen(ROLE).unit.incarnation, ready.seen(ROLE).pid) == (SECOND, 101)


async def test_a_drain_whose_time_is_over_is_cut_before_the_signal() -> None:
    units = Units(replace(POLICY, drain_timeout=0.001))
    runner = units.runners[ROLE]
    runner.order(Start(), "root")
    units.serve(ROLE)
    units.deeds.clear()
    runner.order(Stop(), "root")
    await until(lambda: len(units.deeds) == 5, "the cut")
    assert units.deeds[2:] == ["primary cut", "primary checks nothing", "primary signal 15"]
    runner.abandon()


async def test_the_end_of_a_drain_says_what_has_become_of_the_connections(ready: Units) -> None:
    ready.traffic.tallies[ROLE] = DrainTally(ended=1, cut=2, after=30.0)
    ready.runners[ROLE].order(Restart(), "ann")
    assert ready.seen(ROLE).drained is None
    ready.traffic.when_drained[ROLE]()
    told = [
        (message, detail) for event, message, _, _, detail in ready.history.events if event is EventName.DRAIN_FINISHED
    ]
    [(message, detail)] = told
    assert message == (
        "primary has no connections left: 2 of 3 connections were cut after 30 s (drain), 1 ended by itself"
    )
    assert (detail["cut"], detail["ended"], detail["cut_after_seconds"]) == (2, 1, 30.0)
    assert ready.seen(ROLE).drained == ready.traffic.tallies[ROLE]


async def test_an_undrain_ends_the_drain(ready: Units) -> None:
    runner = ready.runners[ROLE]
    runner.order(Drain(), "ann")
    ready.traffic.when_drained[ROLE]()
    runner.order(Undrain(), "bob")
    assert ready.deeds == ["primary not eligible", "primary drain", "primary eligible", "primary end drain"]
    assert [(message, by) for _, message, _, by, _ in ready.history.events] == [
        ("primary gets no new connections; open ones may end", "ann"),
        ("primary has no connections left", "ann"),
        ("primary gets connections again", "bob"),
    ]


async def test_a_refused_order_changes_nothing(units: Units) -> None:
    runner = units.runners[ROLE]
    before, shown = runner.unit, units.seen(ROLE)
    with pytest.raises(Refused, match=r"^cannot drain primary: it is stopped$"):
        runner.order(Drain(), "root")
    assert (runner.unit, units.seen(ROLE), units.deeds, units.bugs) == (before, shown, [], [])
    assert units.history.events == []


async def test_a_refused_order_is_not_what_happens_next(ready: Units) -> None:
    """What goes on carries the name of who began it."""
    runner = ready.runners[ROLE]
    ready.traffic.calls_back_at_once = True
    runner.order(Stop(), "ann")
    with pytest.raises(Refused, match=r"^cannot drain primary: it is stopping$"):
        runner.order(Drain(), "bob")
    ready.exit(ROLE, TERMED)
    assert {by for *_, by, _ in ready.history.events} == {"ann"}


async def test_what_happens_unasked_is_nobodys_order() -> None:
    units = Units(QUICK)
    units.runners[ROLE].order(Start(), "root")
    units.serve(ROLE)
    units.exit(ROLE, CRASHED)
    await until(lambda: len(units.launched[ROLE]) == 2, "the next launch")
    units.serve(ROLE)
    assert [(event, by) for event, _, _, by, _ in units.history.events] == [
        (EventName.INSTANCE_STARTED, "root"),
        (EventName.INSTANCE_READY, "root"),
        (EventName.INSTANCE_EXITED, None),
        (EventName.INSTANCE_STARTED, None),
        (EventName.INSTANCE_READY, None),
    ]
    units.runners[ROLE].abandon()


async def test_results_of_an_earlier_incarnation_are_ignored(ready: Units) -> None:
    ready.traffic.calls_back_at_once = True
    ready.runners[ROLE].order(Restart(), "root")
    ready.exit(ROLE, TERMED)
    shown = ready.seen(ROLE)
    ready.check(ROLE, GOOD, FIRST)
    ready.runners[ROLE].report(Proved(FIRST))
    ready.runners[ROLE].report(Drained(FIRST))
    assert ready.seen(ROLE) == shown
    assert (shown.health, shown.checks) == (Health.UNKNOWN, (CheckView("http", Health.UNKNOWN, None, None),))


async def test_results_for_nobody_are_ignored(ready: Units) -> None:
    ready.exit(ROLE, CRASHED)
    shown = ready.seen(ROLE)
    ready.check(ROLE, GOOD)
    assert ready.seen(ROLE) == shown
    assert shown.health is Health.UNKNOWN


async def test_failing_checks_take_traffic_away_and_passing_ones_bring_it_back(ready: Units) -> None:
    ready.check(ROLE, BAD)
    assert ready.deeds == ["primary not eligible"]
    assert not ready.traffic.is_ordered
    assert (ready.seen(ROLE).unit.state, ready.seen(ROLE).health) == (UnitState.READY, Health.DOWN)
    assert ready.seen(ROLE).reason == "its checks fail (http: 127.0.0.1:1 refused)"
    ready.check(ROLE, GOOD)
    assert ready.deeds[1:] == ["primary eligible"]


async def test_a_process_that_runs_only_after_it_was_told_to_stop_is_not_checked(units: Units) -> None:
    units.runners[ROLE].order(Start(), "root")
    units.runners[ROLE].order(Stop(), "root")
    units.deeds.clear()
    units.execute(ROLE)
    assert units.deeds == []


@pytest.mark.parametrize("stage", [LaunchStage.SPAWN, LaunchStage.EXECUTE])
async def test_a_launch_that_fails_is_said_and_tried_again(units: Units, stage: LaunchStage) -> None:
    """Whether it fails at once or later."""
    failed = LaunchFailed(stage, "because")
    units.launch_fails = failed if stage is LaunchStage.SPAWN else None
    units.runners[ROLE].order(Start(), "root")
    if stage is not LaunchStage.SPAWN:
        units.exit(ROLE, failed)
    seen = units.seen(ROLE)
    assert (seen.unit.state, seen.pid, seen.last_exit, seen.restarts) == (UnitState.BACKOFF, None, None, 0)
    assert seen.reason is not None
    assert seen.reason.startswith(f"cannot start primary: {stage.value}: because; next try at ")
    (exited,) = units.history.events
    assert exited == (
        EventName.INSTANCE_EXITED,
        f"cannot start primary: {stage.value}: because",
        ROLE,
        None,
        {"incarnation": 1},
    )


async def test_relaunches_are_counted_and_the_limit_is_told() -> None:
    units = Units(replace(QUICK, restart=replace(QUICK.restart, limit_count=2)))
    runner = units.runners[ROLE]
    runner.order(Start(), "root")
    for launched in (1, 2, 3):
        await until(lambda launched=launched: len(units.launched[ROLE]) == launched, "a launch")  # type: ignore[misc]
        assert units.seen(ROLE).restarts == launched - 1
        units.exit(ROLE, CRASHED)
    assert units.seen(ROLE).unit.state is UnitState.FAILED
    assert units.history.events[-1][:3] == (
        EventName.INSTANCE_FAILED,
        "primary is not started again: exited with 3; given up after 2 restarts within 3600 s;"
        " `clojarsctl start primary` tries again",
        ROLE,
    )
    runner.order(Start(), "root")
    assert units.seen(ROLE).restarts == 2, "an operator's start is no relaunch"
    runner.abandon()


async def test_a_restart_by_order_is_no_relaunch_though_there_was_a_crash_before() -> None:
    units = Units(QUICK)
    runner = units.runners[ROLE]
    units.traffic.calls_back_at_once = True
    runner.order(Start(), "root")
    units.exit(ROLE, CRASHED)
    await until(lambda: len(units.launched[ROLE]) == 2, "the relaunch")
    units.serve(ROLE)
    runner.order(Restart(), "root")
    units.exit(ROLE, TERMED)
    assert (len(units.launched[ROLE]), units.seen(ROLE).restarts) == (3, 1)
    runner.abandon()


async def test_the_last_exit_and_the_next_try_are_shown(ready: Units) -> None:
    before = datetime.now(UTC)
    ready.exit(ROLE, ExitStatus(None, 9))
    seen = ready.seen(ROLE)
    assert seen.last_exit is not None
    assert seen.last_exit.status == ExitStatus(None, 9)
    assert before.timestamp() - 1 <= datetime.fromisoformat(seen.last_exit.at).timestamp() <= before.timestamp() + 60
    match = re.fullmatch(r"was killed by SIGKILL; next try at (\S+Z)", seen.reason or "")
    assert match is not None
    assert 3540 < (datetime.fromisoformat(match[1]) - before).total_seconds() < 3660
    assert ready.history.events[-1][4] == {"incarnation": 1, "code": None, "signal": 9}


async def test_the_view_before_anything_happened(units: Units) -> None:
    seen = units.seen(ROLE)
    assert (seen.unit.goal, seen.unit.state, seen.pid, seen.restarts, seen.release) == (
        Goal.DOWN,
        UnitState.STOPPED,
        None,
        0,
        None,
    )
    assert (seen.reason, seen.ports, seen.name) == ("not started yet", {"http": 1}, "primary")
    assert seen.checks == (CheckView("http", Health.UNKNOWN, None, None),)


async def test_since_moves_with_the_state_only(ready: Units) -> None:
    since = ready.seen(ROLE).since
    ready.check(ROLE, BAD)
    ready.check(ROLE, GOOD)
    assert ready.seen(ROLE).since == since
    assert ready.seen(ROLE).release == "1.jar"


async def test_a_bug_ends_the_daemon(units: Units) -> None:
    with pytest.raises(IllegalTransition):
        units.runners[ROLE].report(Exited(Incarnation(0), TERMED))
    (bug,) = units.bugs
    assert isinstance(bug, IllegalTransition)


async def test_an_error_out_of_an_effect_ends_the_daemon(ready: Units) -> None:
    def broken(role: Role, when_drained: Callable[[], None], within: float | None = None) -> None:
        raise RuntimeError("a bug")

    ready.traffic.begin_drain = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a bug"):
        ready.runners[ROLE].order(Stop(), "root")
    assert [str(bug) for bug in ready.bugs] == ["a bug"]


async def test_abandon_leaves_the_process_and_no_timer(units: Units) -> None:
    runner = units.runners[ROLE]
    runner.order(Start(), "root")
    process = units.process(ROLE)
    runner.abandon()
    assert process.is_abandoned
    assert units.deeds == ["primary end drain", "primary launch"]
    runner.abandon()


# Hooks.

HOOKS = {hook: HookPlan(lambda: (("/bin/true",),), 5.0) for hook in HookName}
HOOKED = replace(POLICY, hooks=dict.fromkeys(HookName, LONG))


async def test_hooks_run_at_their_time_in_the_world_of_the_instance() -> None:
    units = Units(HOOKED, hooks=HOOKS)
    runner = units.runners[ROLE]
    runner.order(Start(), "ann", environment={"SPEED": "9"})
    assert units.deeds == ["primary pre_start"]
    units.hooks[-1].on_end(None)
    assert units.environments[-1] == {"SPEED": "9"}, "for the launch, as for what came before it"
    units.serve(ROLE)
    assert units.seen(ROLE).unit.state is UnitState.STARTING
    units.hooks[-1].on_end(None)
    assert units.seen(ROLE).is_eligible
    units.traffic.calls_back_at_once = True
    runner.order(Stop(), "ann")
    assert units.deeds[-1] == "primary pre_stop"
    units.hooks[-1].on_end("/bin/true exited with 1")
    assert units.deeds[-1] == "primary signal 15"
    units.exit(ROLE, TERMED)
    assert units.hooks[-1].spec.imposed["EXIT_CODE"] == "exited"
    assert units.hooks[-1].spec.imposed["EXIT_STATUS"] == "143"
    assert units.seen(ROLE).unit.state is UnitState.STOPPING
    units.hooks[-1].on_end(None)
    assert units.seen(ROLE).unit.state is UnitState.STOPPED
    assert [hook.name for hook in units.hooks] == [f"primary {name}" for name in (*HOOKS_IN_ORDER,)]


HOOKS_IN_ORDER = ("pre_start", "post_start", "pre_stop", "post_stop")


async def test_a_pre_start_that_fails_says_which_command() -> None:
    units = Units(HOOKED, hooks=HOOKS)
    units.runners[ROLE].order(Start(), "ann")
    units.hooks[-1].on_end("/bin/true exited with 3: no database")
    reason = units.seen(ROLE).reason or ""
    assert "cannot start primary: running pre_start: /bin/true exited with 3: no database" in reason
    assert "primary launch" not in units.deeds


@pytest.mark.parametrize("hooks", [{}, HOOKS])
async def test_without_a_release_it_rests_says_so_once_and_starts_by_order(
    hooks: Mapping[HookName, HookPlan],
) -> None:
    units = Units(HOOKED if hooks else POLICY, hooks=hooks)
    units.lacking = "no release: clojarsctl deploy TAG"
    runner = units.runners[ROLE]
    runner.order(Start(), "ann")
    await until(lambda: runner.unit.state is UnitState.STOPPED, "its rest")
    seen = units.seen(ROLE)
    assert (seen.unit.goal, seen.unit.deadline, seen.reason) == (Goal.UP, None, units.lacking)
    assert (seen.restarts, seen.next, runner.lacking) == (0, None, units.lacking)
    assert units.history.messages == ["cannot start primary: no release: clojarsctl deploy TAG"]
    assert (units.launched[ROLE], units.hooks) == ([], [])
    kept = Units(POLICY, before={ROLE: runner.saved()})
    assert kept.seen(ROLE).reason == units.lacking, "the next daemon says the same"
    units.lacking = "the current release x.jar is missing"
    assert units.seen(ROLE).reason == "no release: clojarsctl deploy TAG"
    runner.renew_lack()
    assert (units.seen(ROLE).reason, runner.unit.lacks) == (units.lacking, units.lacking)
    units.lacking = None
    runner.renew_lack()
    assert runner.unit.lacks is not None, "an order is awaited all the same"
    runner.order(Start(), "ann")
    assert runner.unit.state is UnitState.STARTING
    assert bool(units.hooks) == bool(hooks)
    for one in (runner, *kept.runners.values()):
        one.abandon()


async def test_a_start_has_the_archive_unless_the_one_before_has_failed(units: Units) -> None:
    """And whether it maps it, which the process of a test does not, is seen when its checks pass."""
    units.archive = "/r/.cds/1.jar.jsa"
    runner = units.runners[ROLE]
    runner.order(Start(), "ann")
    assert list(units.specs[-1].command) == ["/bin/true", "-quick"]
    assert (units.seen(ROLE).start_seconds, units.seen(ROLE).cds) == (None, None)
    units.execute(ROLE)
    units.check(ROLE, BAD)
    assert units.seen(ROLE).start_seconds is None
    units.check(ROLE)
    first = units.seen(ROLE).start_seconds
    assert first is not None
    assert units.seen(ROLE).cds is False
    units.check(ROLE, BAD)
    units.check(ROLE)
    assert units.seen(ROLE).start_seconds == first, "it is that of the start"
    units.exit(ROLE, CRASHED)
    assert (units.seen(ROLE).start_seconds, units.seen(ROLE).cds) == (None, None)
    runner.report(DeadlinePassed())
    assert list(units.specs[-1].command) == ["/bin/true"]
    units.exit(ROLE, CRASHED)
    runner.order(Start(), "ann")
    assert list(units.specs[-1].command) == ["/bin/true", "-quick"], "an operator has forgiven it"


async def test_what_a_start_took_is_known_to_the_next_daemon(ready: Units) -> None:
    before = ready.seen(ROLE)
    next_one = Units(before={ROLE: ready.runners[ROLE].saved()}, running=[100])
    assert (next_one.seen(ROLE).start_seconds, next_one.seen(ROLE).cds) == (before.start_seconds, False)
    for runner in next_one.runners.values():
        runner.abandon()


async def test_a_crash_ends_the_hook_that_runs() -> None:
    units = Units(HOOKED, hooks=HOOKS)
    units.runners[ROLE].order(Start(), "ann")
    units.hooks[-1].on_end(None)
    units.serve(ROLE)
    units.exit(ROLE, CRASHED)
    assert "primary post_start cancelled" in units.deeds
    assert units.deeds[-1] == "primary post_stop"


async def test_the_environment_of_one_start_is_not_that_of_the_next() -> None:
    units = Units()
    runner = units.runners[ROLE]
    runner.order(Start(), "ann", environment={"SPEED": "9"})
    units.serve(ROLE)
    units.traffic.calls_back_at_once = True
    runner.order(Restart(), "ann")
    units.exit(ROLE, TERMED)
    assert units.environments == [{"SPEED": "9"}, {}]


# What the instance says of itself.


async def test_an_instance_that_tells_is_ready_when_it_has_told_and_its_checks_pass() -> None:
    units = Units(notify=True)
    runner = units.runners[ROLE]
    runner.order(Start(), "ann")
    units.serve(ROLE)
    assert units.seen(ROLE).unit.state is UnitState.STARTING
    runner.notified_status(runner.unit.incarnation, "loading the index")
    assert units.seen(ROLE).status_text == "loading the index"
    runner.notified_ready(runner.unit.incarnation)
    assert units.seen(ROLE).is_eligible


async def test_what_an_earlier_incarnation_tells_is_not_heard() -> None:
    units = Units(notify=True)
    runner = units.runners[ROLE]
    runner.order(Start(), "ann")
    units.serve(ROLE)
    runner.notified_ready(Incarnation(0))
    runner.notified_status(Incarnation(0), "old")
    assert units.seen(ROLE).unit.state is UnitState.STARTING
    assert units.seen(ROLE).status_text is None


async def test_reload_reaches_the_main_process_alone() -> None:
    units = Units()
    units.runners[ROLE].order(Start(), "ann")
    units.serve(ROLE)
    units.runners[ROLE].order(Reload(), "ann")
    assert units.deeds[-1] == "primary signal 1 to the main process"


# From one daemon to the next.


def served(units: Units) -> SavedInstance:
    """What is saved of an instance that serves."""
    units.runners[ROLE].order(Start(), "ann")
    units.serve(ROLE)
    return units.runners[ROLE].saved()


async def test_a_running_instance_is_adopted_and_serves_without_a_break() -> None:
    before = served(Units())
    assert before.process is not None
    process = replace(before.process, pid=901)
    units = Units(before={ROLE: replace(before, process=process)}, running=[901])
    seen = units.seen(ROLE)
    assert (seen.is_eligible, seen.pid, seen.adopted, seen.goal_by) == (True, 901, True, "ann")
    assert "primary not eligible" not in units.deeds
    assert units.checkers[ROLE].target == before.unit.incarnation
    assert units.checkers[ROLE].known == before.records
    units.check(ROLE, BAD)
    assert not units.seen(ROLE).is_eligible
    units.exit(ROLE, CRASHED)
    assert units.seen(ROLE).unit.state is UnitState.BACKOFF


@pytest.mark.parametrize("cause", [EndCause.STOP, None])
async def test_a_drain_that_is_taken_up_has_the_time_that_is_left(cause: EndCause | None) -> None:
    """And a drain by wish all the time that there is."""
    before = served(Units())
    assert before.process is not None
    deadline = asyncio.get_running_loop().time() + 5.0 if cause else None
    unit = replace(before.unit, state=UnitState.DRAINING, cause=cause, deadline=deadline)
    units = Units(before={ROLE: replace(before, unit=unit, process=replace(before.process, pid=901))}, running=[901])
    within = units.traffic.within[ROLE]
    assert within is None if cause is None else within is not None and 4.0 < within <= 5.0


async def test_one_whose_executable_cannot_be_seen_is_checked_on_with_what_is_known() -> None:
    """Not as one that is still being launched: it would have to prove itself again, and lose its connections."""
    before = served(Units())
    assert before.process is not None
    process = replace(before.process, pid=901, executable=None)
    units = Units(before={ROLE: replace(before, process=process)}, running=[901])
    assert (units.checkers[ROLE].target, units.checkers[ROLE].known) == (before.unit.incarnation, before.records)
    deeds = len(units.deeds)
    units.execute(ROLE)
    assert units.deeds[deeds:] == []
    assert units.seen(ROLE).is_eligible


async def test_a_start_that_nobody_watched_until_its_deadline_has_its_time_again() -> None:
    """It may long be up; so may both, which would be ended together."""
    before = served(Units())
    assert before.process is not None
    unit = replace(before.unit, state=UnitState.STARTING, ready_at=None, deadline=1.0)
    units = Units(before={ROLE: replace(before, unit=unit, process=replace(before.process, pid=901))}, running=[901])
    await asyncio.sleep(0.01)  # a timer that is due would have its turn
    assert "primary signal 15" not in units.deeds
    units.check(ROLE)
    assert units.seen(ROLE).is_eligible


async def test_a_hook_that_is_run_again_has_its_whole_time_again() -> None:
    before = served(Units())
    assert before.process is not None
    policy = replace(POLICY, hooks={HookName.POST_START: LONG})
    hook = {HookName.POST_START: HookPlan(lambda: (("/bin/true",),), LONG)}
    unit = replace(before.unit, state=UnitState.STARTING, ready_at=None, hook=HookName.POST_START, deadline=1.0)
    saved = replace(before, unit=unit, process=replace(before.process, pid=901))
    units = Units(policy, hooks=hook, before={ROLE: saved}, running=[901])
    await asyncio.sleep(0.01)  # a timer that is due would have its turn
    units.hooks[-1].on_end(None)
    assert units.seen(ROLE).is_eligible


async def test_an_instance_that_ended_while_no_daemon_was_there_is_launched_again() -> None:
    before = served(Units())
    units = Units(before={ROLE: before})
    async with asyncio.timeout(PATIENCE):
        await units.board.until(lambda view: view.instances[ROLE].unit.state is UnitState.BACKOFF)
    assert not units.seen(ROLE).is_eligible
    assert units.seen(ROLE).last_exit is not None


async def test_a_restart_goes_on_in_the_next_daemon() -> None:
    first = Units()
    served(first)
    first.runners[ROLE].order(Restart(), "ann")
    before = first.runners[ROLE].saved()
    assert before.process is not None
    units = Units(before={ROLE: replace(before, process=replace(before.process, pid=901))}, running=[901])
    assert units.deeds[-1] == "primary drain"
    units.traffic.when_drained[ROLE]()
    assert units.deeds[-1] == "primary signal 15"
    units.exit(ROLE, TERMED)
    units.serve(ROLE)
    assert units.seen(ROLE).is_eligible
    assert units.seen(ROLE).unit.incarnation == before.unit.incarnation + 1


async def test_a_hook_that_ran_when_the_daemon_ended_is_run_again() -> None:
    first = Units(HOOKED, hooks=HOOKS)
    first.runners[ROLE].order(Start(), "ann")
    units = Units(HOOKED, hooks=HOOKS, before={ROLE: first.runners[ROLE].saved()})
    assert units.deeds == ["primary pre_start"]
    units.hooks[-1].on_end(None)
    assert units.deeds[-1] == "primary launch"


async def test_what_an_operator_wants_is_kept_and_what_the_daemon_does_is_not() -> None:
    units = Units()
    runner = units.runners[ROLE]
    runner.order(Start(), "clojarsd", remember=False)
    assert (runner.saved().wanted, runner.saved().goal_by) == (Goal.UP, None)
    runner.order(Stop(), "ann")
    assert (runner.saved().wanted, runner.saved().goal_by) == (Goal.DOWN, "ann")
    at = runner.saved().goal_at
    runner.order(Stop(), "bob")
    assert (runner.saved().goal_by, runner.saved().goal_at) == ("ann", at)
    runner.order(Start(), "bob")
    assert (runner.saved().wanted, runner.saved().goal_by) == (Goal.UP, "bob")
    assert units.saves > 0


# Other settings under a running process.


async def test_a_check_that_is_new_takes_no_ready_instance_out_of_rotation() -> None:
    units = Units()
    served(units)
    units.check(ROLE, GOOD)
    units.runners[ROLE].replan(units.plan(ROLE, POLICY, ("http", "tcp other")))
    assert units.seen(ROLE).is_eligible
    assert [record.health for record in units.checkers[ROLE].known] == [Health.UP, Health.UP]
    assert units.checkers[ROLE].known[0].last == GOOD


async def test_other_ports_wait_for_the_next_process() -> None:
    units = Units()
    served(units)
    units.runners[ROLE].replan(units.plan(ROLE, POLICY, ("http",), port=2))
    assert units.seen(ROLE).ports == {"http": 1}
    units.traffic.calls_back_at_once = True
    units.runners[ROLE].order(Restart(), "ann")
    units.exit(ROLE, TERMED)
    assert units.seen(ROLE).ports == {"http": 2}


# With real processes.


class Real:
    """A runner with the real launcher, and a check of a port where there is one."""

    def __init__(self, directory: Path, command: tuple[str, ...], port: int | None = None) -> None:
        self.units = Units()
        self.log = directory / "log"
        processes = Processes()
        spec = a_spec(ROLE, command, str(self.log))
        oom = int(Path("/proc/self/oom_score_adj").read_text())
        spec = replace(spec, nice=os.getpriority(os.PRIO_PROCESS, 0), oom_score_adjust=oom)
        if port is not None:
            spec = replace(spec, ports={"http": Address("127.0.0.1", port)})
        self.spec: LaunchSpec = spec
        in_force = InForce("127.0.0.1", {})
        launch = PlannedLaunch(self.spec, None, in_force)
        plan = Plan("x", in_force, POLICY, ("tcp",), ("tcp",), lambda incarnation, environment: launch)
        self.runner = UnitRunner(ROLE, plan, replace(self.units.around, launch=processes.launch))
        self.asked = 0
        self.is_abandoned = False
        self.watch = HealthWatch(ROLE, [PlannedCheck("tcp", self._ask, 0.005, 1, 1)], self.runner)
        self.runner.attach(self.watch, self.units.warmers[ROLE])

    async def _ask(self) -> Result:
        self.asked += 1
        return GOOD

    async def state(self, state: UnitState) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.units.board.until(lambda view: view.instances[ROLE].unit.state is state)


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Callable[..., Real]]:
    made: list[Real] = []
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        tasks = []

        def make(*command: str, port: int | None = None) -> Real:
            made.append(Real(tmp_path, command, port))
            tasks.append(group.create_task(made[-1].watch.run()))
            return made[-1]

        yield make
        for one in made:
            if one.runner.unit.has_process and not one.is_abandoned:
                one.units.traffic.calls_back_at_once = True
                one.runner.order(Stop(), "test")
                if ROLE in one.units.traffic.when_drained:
                    one.runner.report(Drained(one.runner.unit.incarnation))
                await one.state(UnitState.STOPPED)
            one.runner.abandon()
        for task in tasks:
            task.cancel()


async def test_a_real_process_lives_and_ends(real: Callable[..., Real]) -> None:
    one = real("/bin/sleep", "600")
    one.units.traffic.calls_back_at_once = True
    one.runner.order(Start(), "root")
    await one.state(UnitState.READY)
    process = psutil.Process(one.units.seen(ROLE).pid)
    assert process.name() == "sleep"
    one.runner.order(Restart(), "root")
    await until(lambda: one.runner.unit.incarnation == SECOND, "the new process")
    await one.state(UnitState.READY)
    assert not process.is_running()
    assert one.units.seen(ROLE).last_exit is not None
    one.runner.order(Stop(), "root")
    await one.state(UnitState.STOPPED)
    assert (one.units.seen(ROLE).pid, one.units.bugs) == (None, [])


async def test_a_stranger_on_the_port_makes_nobody_ready(real: Callable[..., Real]) -> None:
    """The check would pass at once; the command never runs, so no check is made."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        one = real("/bin/sleep", "600", port=port)
        one.runner.order(Start(), "root")
        await one.state(UnitState.BACKOFF)
    assert one.asked == 0
    last = one.runner.unit.last_end
    assert isinstance(last, NotLaunched)
    assert last.stage is LaunchStage.PORTS
    assert f"port {port} (http): address already in use by process {os.getpid()}" in last.reason
    assert EventName.INSTANCE_STARTED not in [event for event, *_ in one.units.history.events]


@pytest.mark.parametrize("order", [Stop(), Restart()])
async def test_an_order_right_after_a_start_is_carried_out(real: Callable[..., Real], order: Order) -> None:
    """The process has not even become its command."""
    one = real("/bin/sleep", "600")
    one.runner.order(Start(), "root")
    one.runner.order(order, "root")
    await one.state(UnitState.STOPPED if isinstance(order, Stop) else UnitState.READY)
    assert one.runner.unit.incarnation == (FIRST if isinstance(order, Stop) else SECOND)
    assert one.units.bugs == []


async def test_an_abandoned_process_runs_on(real: Callable[..., Real]) -> None:
    one = real("/bin/sleep", "600")
    one.runner.order(Start(), "root")
    await one.state(UnitState.READY)
    pid = one.units.seen(ROLE).pid
    assert pid is not None
    one.runner.abandon()
    one.runner.abandon()
    assert psutil.Process(pid).is_running()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert one.runner.unit.state is UnitState.READY, "nobody watches any more"
    one.is_abandoned = True
