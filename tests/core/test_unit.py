"""Every state with every event is decided, and no walk through the machine breaks what must always hold."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from clojarsd.core import unit as machine
from clojarsd.core.errors import IllegalTransition, Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import ExitStatus, Goal, HookName, Incarnation, LaunchStage, Rotation, UnitState
from clojarsd.core.restart import Failures, RestartPolicy, RestartWhen
from clojarsd.core.unit import TRANSITIONS, EndCause, Step, Unit, UnitPolicy, step
from clojarsd.core.unit_acts import DRAIN_MARGIN
from clojarsd.core.unit_events import (
    Announce,
    BeginDrain,
    BeginWarmup,
    CutConnections,
    DeadlinePassed,
    Drain,
    Drained,
    EndChecks,
    EndDrain,
    EndHook,
    EndWarmup,
    Event,
    Exited,
    HookEnded,
    Launch,
    NotLaunched,
    Order,
    Proved,
    Reload,
    Restart,
    RunHook,
    Signal,
    SignalMain,
    Start,
    Stop,
    TimeAsked,
    Undrain,
    Warmed,
)
from clojarsd.core.warmup import MARGIN

RESTARTS = RestartPolicy(RestartWhen.ON_FAILURE, 1.0, 30.0, 60.0, 3, 120.0)
POLICY = UnitPolicy(120.0, 30.0, ((15, 20.0),), frozenset({0, 143}), RESTARTS)
HOOKS = {HookName.PRE_START: 7.0, HookName.POST_START: 8.0, HookName.PRE_STOP: 9.0, HookName.POST_STOP: 10.0}
HOOKED = replace(POLICY, hooks=HOOKS)
WARMED = replace(POLICY, warmup=20.0)
MUST_BE_WARM = replace(HOOKED, warmup=20.0, must_be_warm=True)
POLICIES = (POLICY, HOOKED, WARMED, MUST_BE_WARM)
NOW = 1000.0
FIRST, SECOND = Incarnation(1), Incarnation(2)
CRASHED, TERMED, FINISHED = ExitStatus(1, None), ExitStatus(143, None), ExitStatus(0, None)

REPORTS: tuple[Event, ...] = (
    Proved(FIRST),
    NotLaunched(FIRST, LaunchStage.LOG, "no"),
    NotLaunched(FIRST, LaunchStage.RELEASE, "no release"),
    Exited(FIRST, CRASHED),
    Exited(FIRST, TERMED),
    Exited(FIRST, FINISHED),
    Drained(FIRST),
    *(HookEnded(FIRST, hook, failure) for hook in HookName for failure in (None, "/bin/no exited with 1")),
    HookEnded(FIRST, HookName.PRE_START, "no release", LaunchStage.RELEASE),
    TimeAsked(FIRST, 500.0),
    Warmed(FIRST, None),
    Warmed(FIRST, "/ answered 500"),
)
ORDERS: tuple[Order, ...] = (
    *(Start(), Stop(), Restart(), Drain(), Undrain(), Reload()),
    *(Stop(5.0), Restart(5.0), Drain(5.0)),
)
EVENTS: tuple[Event, ...] = (*ORDERS, *REPORTS, DeadlinePassed())

STOPPED = Unit()
STARTING = Unit(Goal.UP, UnitState.STARTING, incarnation=FIRST, deadline=1100.0)
WARMING = replace(STARTING, warming_since=990.0)
READY = replace(STARTING, state=UnitState.READY, deadline=None, ready_at=900.0)
PARKED = replace(READY, state=UnitState.DRAINING, rotation=Rotation.OUT)
DRAINING = replace(READY, state=UnitState.DRAINING, cause=EndCause.RESTART, deadline=1030.0)
STOPPING = replace(DRAINING, state=UnitState.STOPPING, stop_step=1)
BACKOFF = replace(STARTING, state=UnitState.BACKOFF, deadline=1002.0, failures=Failures(1, (1002.0,)))
FAILED = replace(BACKOFF, state=UnitState.FAILED, deadline=None)
VARIANTS: tuple[Unit, ...] = (
    STOPPED,
    STARTING,
    replace(STARTING, rotation=Rotation.OUT),
    replace(STARTING, failures=Failures(3, (990.0, 991.0, 992.0))),
    READY,
    replace(READY, ready_at=999.0, failures=Failures(3, (990.0, 991.0, 992.0))),
    PARKED,
    replace(PARKED, ready_at=999.0, failures=Failures(3, (990.0, 991.0, 992.0))),
    DRAINING,
    replace(DRAINING, goal=Goal.DOWN, cause=EndCause.STOP),
    STOPPING,
    replace(STOPPING, goal=Goal.DOWN, cause=EndCause.STOP),
    replace(STOPPING, cause=EndCause.START_TIMEOUT, ready_at=None),
    replace(STOPPING, cause=EndCause.START_TIMEOUT, ready_at=None, failures=Failures(3, (990.0, 991.0, 992.0))),
    replace(STARTING, hook=HookName.PRE_START),
    replace(STARTING, hook=HookName.PRE_START, failures=Failures(3, (990.0, 991.0, 992.0))),
    replace(STARTING, hook=HookName.POST_START),
    replace(STARTING, hook=HookName.POST_START, rotation=Rotation.OUT),
    WARMING,
    replace(WARMING, rotation=Rotation.OUT),
    replace(STOPPING, cause=EndCause.WARMUP, ready_at=None, warmup_failure="/ answered 500"),
    replace(STOPPING, cause=EndCause.POST_START, ready_at=None, hook_failure="/bin/no exited with 1"),
    replace(STOPPING, stop_step=0, hook=HookName.PRE_STOP),
    *(
        replace(STOPPING, hook=HookName.POST_STOP, cause=cause, last_end=Exited(FIRST, status))
        for cause in (None, EndCause.STOP, EndCause.RESTART)
        for status in (CRASHED, FINISHED)
    ),
    replace(
        STOPPING,
        hook=HookName.POST_STOP,
        cause=None,
        last_end=Exited(FIRST, CRASHED),
        failures=Failures(3, (990.0, 991.0, 992.0)),
    ),
    BACKOFF,
    FAILED,
    replace(FAILED, state=UnitState.STOPPED, last_end=NotLaunched(FIRST, LaunchStage.RELEASE, "no release")),
)


def is_possible(unit: Unit, event: Event) -> bool:
    """Whether the event can come at all: where there is no process none ends."""
    return unit.has_process or not isinstance(event, Exited | NotLaunched)


def after(unit: Unit, event: Event, policy: UnitPolicy = POLICY) -> Step:
    return step(unit, event, NOW, policy)


def test_the_variants_cover_every_state() -> None:
    assert {unit.state for unit in VARIANTS} == set(UnitState)


@pytest.mark.parametrize(
    ("unit", "event"), list(itertools.product(VARIANTS, EVENTS)), ids=lambda one: getattr(one, "state", one)
)
def test_every_pair_is_decided(unit: Unit, event: Event) -> None:
    """A pair of the table steps; any other order is refused; any other news is a bug of the caller."""
    if unit.incarnation == 0:
        unit = replace(unit, incarnation=FIRST)
    if (unit.state, type(event)) in TRANSITIONS:
        if isinstance(event, Reload) and not unit.has_process:
            with pytest.raises(Refused, match=r"^it has no process yet$"):
                after(unit, event)
            return
        for policy in POLICIES:
            became, effects = after(unit, event, policy)
            assert isinstance(became, Unit)
            assert isinstance(effects, tuple)
    elif isinstance(event, Order):
        with pytest.raises(Refused, match=f"^it is {unit.state.value}$"):
            after(unit, event)
    else:
        with pytest.raises(IllegalTransition):
            after(unit, event)


def test_the_diagram_is_the_table() -> None:
    assert machine.__doc__ is not None
    drawn: dict[tuple[str, str], set[str]] = {}
    for line in machine.__doc__.splitlines():
        left, arrow, right = line.partition("->")
        if arrow and line.startswith("    "):
            state, *happenings = left.split()
            drawn |= {(state, happening): set(right.split()) for happening in happenings}
    seen: dict[tuple[str, str], set[str]] = {}
    for variant, happening, policy in itertools.product(VARIANTS, EVENTS, POLICIES):
        if (variant.state, type(happening)) in TRANSITIONS and is_possible(variant, happening):
            if isinstance(happening, Reload) and not variant.has_process:
                continue
            became = after(replace(variant, incarnation=FIRST), happening, policy)[0].state.value
            seen.setdefault((variant.state.value, type(happening).__name__), set()).add(became)
    assert seen == drawn


@pytest.mark.parametrize("unit", VARIANTS, ids=lambda unit: unit.state.value)
@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_news_of_an_earlier_incarnation_changes_nothing(unit: Unit, report: Event) -> None:
    later = replace(unit, incarnation=SECOND)
    assert after(later, report) == (later, ())


def test_start_launches() -> None:
    became, effects = after(STOPPED, Start())
    assert became == Unit(Goal.UP, UnitState.STARTING, incarnation=FIRST, deadline=NOW + 120.0)
    assert effects == (Launch(FIRST),)


def test_a_proof_makes_ready() -> None:
    became, effects = after(STARTING, Proved(FIRST))
    assert became == replace(READY, ready_at=NOW)
    assert effects == (Announce(EventName.INSTANCE_READY),)


def test_a_proof_out_of_rotation_makes_draining() -> None:
    became, effects = after(replace(STARTING, rotation=Rotation.OUT), Proved(FIRST))
    assert became == replace(PARKED, ready_at=NOW)
    assert effects == (Announce(EventName.INSTANCE_READY), BeginDrain(FIRST))


def test_stop_drains_then_signals_then_rests() -> None:
    draining, effects = after(READY, Stop())
    assert draining == replace(
        READY, goal=Goal.DOWN, state=UnitState.DRAINING, cause=EndCause.STOP, deadline=NOW + 30.0 + DRAIN_MARGIN
    )
    assert effects == (BeginDrain(FIRST), Announce(EventName.DRAIN_STARTED))
    stopping, effects = after(draining, Drained(FIRST))
    assert (stopping.state, stopping.deadline, stopping.stop_step) == (UnitState.STOPPING, NOW + 20.0, 1)
    assert effects == (CutConnections(FIRST), Announce(EventName.DRAIN_FINISHED), EndChecks(FIRST), Signal(FIRST, 15))
    stopped, effects = after(stopping, Exited(FIRST, TERMED))
    assert stopped == Unit(incarnation=FIRST, last_end=Exited(FIRST, TERMED), ended_by=EndCause.STOP, stop_step=1)
    assert effects == (EndChecks(FIRST), Announce(EventName.INSTANCE_EXITED))


def test_restart_keeps_the_goal_and_launches_again() -> None:
    draining, _ = after(READY, Restart())
    assert (draining.goal, draining.cause) == (Goal.UP, EndCause.RESTART)
    stopping, _ = after(draining, Drained(FIRST))
    starting, effects = after(stopping, Exited(FIRST, TERMED))
    assert (starting.state, starting.incarnation, starting.cause) == (UnitState.STARTING, SECOND, None)
    assert effects == (EndChecks(FIRST), Announce(EventName.INSTANCE_EXITED), Launch(SECOND))


def test_a_restart_by_order_forgives_earlier_failures() -> None:
    worn = replace(STOPPING, failures=Failures(2, (990.0, 991.0)))
    assert after(worn, Exited(FIRST, TERMED))[0].failures == Failures()


def test_the_time_for_draining_ends() -> None:
    became, effects = after(DRAINING, DeadlinePassed())
    assert became.state is UnitState.STOPPING
    assert effects == (
        CutConnections(FIRST),
        Announce(EventName.DRAIN_FINISHED),
        EndChecks(FIRST),
        Signal(FIRST, 15),
    )


def test_sigkill_follows_the_stop_signals_and_is_repeated() -> None:
    policy = replace(POLICY, stop_steps=((3, 10.0), (15, 20.0)))
    unit, sent = replace(STARTING, goal=Goal.UP), []
    unit, effects = step(unit, Stop(), NOW, policy)
    for _ in range(4):
        sent += [effect.number for effect in effects if isinstance(effect, Signal)]
        unit, effects = step(unit, DeadlinePassed(), NOW, policy)
    assert sent == [3, 15, 9, 9]
    assert unit.deadline == NOW + 20.0


def test_an_operators_drain_lasts_until_undrain() -> None:
    draining, effects = after(READY, Drain())
    assert draining == PARKED
    assert effects == (BeginDrain(FIRST), Announce(EventName.DRAIN_STARTED))
    drained, effects = after(draining, Drained(FIRST))
    assert (drained, effects) == (PARKED, (Announce(EventName.DRAIN_FINISHED),))
    serving, effects = after(drained, Undrain())
    assert serving == READY
    assert effects == (EndDrain(FIRST), Announce(EventName.DRAIN_FINISHED))


def test_a_stop_of_a_drained_unit_gets_a_deadline() -> None:
    became, effects = after(PARKED, Stop())
    assert (became.deadline, became.cause, became.rotation) == (NOW + 30.0 + DRAIN_MARGIN, EndCause.STOP, Rotation.IN)
    assert effects == (BeginDrain(FIRST),)


def test_a_second_order_does_not_lengthen_a_drain() -> None:
    assert after(DRAINING, Stop())[0].deadline == DRAINING.deadline


@pytest.mark.parametrize("order", [Stop, Restart])
def test_an_order_says_how_long_its_drain_may_take_where_that_is_sooner(order: type[Stop] | type[Restart]) -> None:
    for within, seconds in ((5.0, 5.0), (0.0, 0.0), (300.0, 30.0)):
        draining, effects = after(READY, order(within))
        assert draining.deadline == NOW + seconds + DRAIN_MARGIN
        assert effects == (BeginDrain(FIRST, within), Announce(EventName.DRAIN_STARTED))


def test_a_second_order_shortens_a_drain_that_is_under_way() -> None:
    assert DRAINING.deadline is not None
    assert DRAINING.deadline > NOW + 5.0
    for order in (Stop(5.0), Restart(5.0), Drain(5.0)):
        became, effects = after(DRAINING, order)
        assert became.deadline == NOW + 5.0 + DRAIN_MARGIN
        assert effects == (BeginDrain(FIRST, 5.0),)
    assert after(DRAINING, Stop(3000.0))[0].deadline == DRAINING.deadline


def test_an_operators_drain_can_be_shortened_and_has_no_deadline_of_its_own() -> None:
    assert after(READY, Drain(5.0)) == (PARKED, (BeginDrain(FIRST, 5.0), Announce(EventName.DRAIN_STARTED)))
    assert after(PARKED, Drain(2.0)) == (PARKED, (BeginDrain(FIRST, 2.0),))
    assert after(PARKED, Drain()) == (PARKED, ())
    became, effects = after(PARKED, Restart(2.0))
    assert (became.deadline, effects) == (NOW + 2.0 + DRAIN_MARGIN, (BeginDrain(FIRST, 2.0),))


def test_a_drain_by_wish_survives_a_crash() -> None:
    crashed, _ = after(PARKED, Exited(FIRST, CRASHED))
    launched, _ = after(crashed, DeadlinePassed())
    proved, _ = after(launched, Proved(SECOND))
    assert (proved.state, proved.rotation) == (UnitState.DRAINING, Rotation.OUT)


def test_start_calls_a_stop_off_that_still_drains() -> None:
    draining, _ = after(READY, Stop())
    kept, effects = after(draining, Start())
    assert kept == READY
    assert effects == (EndDrain(FIRST), Announce(EventName.DRAIN_FINISHED))


def test_start_after_the_stop_signal_launches_again_after_the_end() -> None:
    stopping, _ = after(STARTING, Stop())
    wanted, _ = after(stopping, Start())
    assert wanted.goal is Goal.UP
    assert after(wanted, Exited(FIRST, TERMED))[0].incarnation == SECOND


def test_a_crash_is_followed_by_growing_delays_and_then_failed() -> None:
    unit, delays = STARTING, []
    for _ in range(4):
        unit, effects = after(unit, Exited(unit.incarnation, CRASHED))
        assert EndChecks(unit.incarnation) in effects
        if unit.deadline is None:
            break
        delays.append(unit.deadline - NOW)
        unit, effects = after(unit, DeadlinePassed())
        assert effects == (Launch(unit.incarnation),)
    assert delays == [1.0, 2.0, 4.0]
    assert unit.state is UnitState.FAILED
    assert Announce(EventName.INSTANCE_FAILED) in effects
    assert after(unit, Start())[0].failures == Failures()


def test_a_launch_that_failed_counts_as_a_crash() -> None:
    became, _ = after(STARTING, NotLaunched(FIRST, LaunchStage.DIRECTORY, "/nowhere: no such file or directory"))
    assert (became.state, became.failures.in_a_row) == (UnitState.BACKOFF, 1)


@pytest.mark.parametrize("when", RestartWhen)
@pytest.mark.parametrize("failures", [Failures(), Failures(3, (990.0, 991.0, 992.0))])
def test_without_a_release_it_rests_and_nothing_is_counted(when: RestartWhen, failures: Failures) -> None:
    """Its goal stays, and an order launches it as ever."""
    policy = replace(POLICY, restart=replace(RESTARTS, when=when))
    absent = NotLaunched(FIRST, LaunchStage.RELEASE, "no release: clojarsctl deploy TAG")
    rests, effects = after(replace(STARTING, failures=failures), absent, policy)
    assert (rests.state, rests.goal, rests.deadline) == (UnitState.STOPPED, Goal.UP, None)
    assert (rests.failures, rests.lacks) == (failures, "no release: clojarsctl deploy TAG")
    assert effects == (EndChecks(FIRST), Announce(EventName.INSTANCE_EXITED))
    for order in (Start(), Restart()):
        launched, effects = after(rests, order, policy)
        assert (launched.state, launched.lacks, effects) == (UnitState.STARTING, None, (Launch(SECOND),))
    assert after(rests, Stop(), policy)[0].lacks is None, "it is stopped because somebody wants it so"


def test_a_crash_after_the_release_is_gone_comes_to_rest() -> None:
    crashed, _ = after(READY, Exited(FIRST, CRASHED))
    assert crashed.state is UnitState.BACKOFF
    launched, _ = after(crashed, DeadlinePassed())
    rests, _ = after(launched, NotLaunched(SECOND, LaunchStage.RELEASE, "the current release 1.jar is missing"))
    assert (rests.state, rests.goal, rests.failures) == (UnitState.STOPPED, Goal.UP, crashed.failures)
    assert rests.lacks == "the current release 1.jar is missing"


def test_an_instance_that_has_done_its_work_lacks_nothing() -> None:
    assert after(READY, Exited(FIRST, FINISHED))[0].lacks is None


def test_a_pre_start_that_needs_the_release_comes_to_rest_without_one() -> None:
    hooked, _ = after(STOPPED, Start(), HOOKED)
    absent = HookEnded(FIRST, HookName.PRE_START, "no release", LaunchStage.RELEASE)
    rests, effects = after(hooked, absent, HOOKED)
    assert (rests.state, rests.lacks) == (UnitState.STOPPED, "no release")
    assert not any(isinstance(effect, Launch | RunHook) for effect in effects)


def test_a_start_that_takes_too_long_is_ended_and_counts_as_a_crash() -> None:
    stopping, effects = after(STARTING, DeadlinePassed())
    assert stopping.cause is EndCause.START_TIMEOUT
    assert effects == (EndChecks(FIRST), Signal(FIRST, 15))
    became, _ = after(stopping, Exited(FIRST, TERMED))
    assert (became.state, became.failures.in_a_row) == (UnitState.BACKOFF, 1)
    assert became.ended_by is EndCause.START_TIMEOUT


@pytest.mark.parametrize(
    ("when", "status", "state"),
    [
        (RestartWhen.ON_FAILURE, CRASHED, UnitState.BACKOFF),
        (RestartWhen.ON_FAILURE, FINISHED, UnitState.STOPPED),
        (RestartWhen.ON_FAILURE, TERMED, UnitState.BACKOFF),  # a stranger's SIGTERM: nobody here asked for it
        (RestartWhen.ON_FAILURE, ExitStatus(None, 9), UnitState.BACKOFF),
        (RestartWhen.ALWAYS, FINISHED, UnitState.BACKOFF),
        (RestartWhen.ALWAYS, CRASHED, UnitState.BACKOFF),
        (RestartWhen.NEVER, FINISHED, UnitState.STOPPED),
        (RestartWhen.NEVER, CRASHED, UnitState.FAILED),
    ],
)
def test_the_restart_setting_decides_what_follows_an_unasked_exit(
    when: RestartWhen, status: ExitStatus, state: UnitState
) -> None:
    policy = replace(POLICY, restart=replace(RESTARTS, when=when))
    assert step(READY, Exited(FIRST, status), NOW, policy)[0].state is state


def test_an_exit_before_the_proof_is_a_failure_whatever_its_code() -> None:
    assert after(STARTING, Exited(FIRST, FINISHED))[0].state is UnitState.BACKOFF


def test_a_crash_during_a_stop_is_no_failure() -> None:
    draining, _ = after(READY, Stop())
    stopped, _ = after(draining, Exited(FIRST, CRASHED))
    assert (stopped.state, stopped.failures) == (UnitState.STOPPED, Failures())


def test_a_stable_run_forgives_earlier_failures() -> None:
    stable = replace(READY, ready_at=NOW - 60.0, failures=Failures(3, (990.0, 991.0, 992.0)))
    assert after(stable, Exited(FIRST, CRASHED))[0].failures == Failures(1, (NOW + 1.0,))


def test_pre_start_comes_before_the_launch_and_has_its_own_time() -> None:
    hooked, effects = after(STOPPED, Start(), HOOKED)
    assert (hooked.state, hooked.hook, hooked.deadline) == (UnitState.STARTING, HookName.PRE_START, NOW + 7.0)
    assert effects == (RunHook(FIRST, HookName.PRE_START),)
    assert not hooked.has_process
    launched, effects = after(hooked, HookEnded(FIRST, HookName.PRE_START, None), HOOKED)
    assert (launched.hook, launched.deadline) == (None, NOW + 120.0)
    assert effects == (Launch(FIRST),)


def test_a_pre_start_that_fails_is_a_launch_that_failed() -> None:
    hooked, _ = after(STOPPED, Start(), HOOKED)
    failed, effects = after(hooked, HookEnded(FIRST, HookName.PRE_START, "/bin/no exited with 1"), HOOKED)
    assert failed.state is UnitState.BACKOFF
    assert failed.last_end == NotLaunched(FIRST, LaunchStage.PRE_START, "/bin/no exited with 1")
    assert not any(isinstance(effect, Launch | RunHook) for effect in effects), "nothing had run that post_stop ends"


def test_a_pre_start_that_hangs_is_a_launch_that_failed() -> None:
    hooked, _ = after(STOPPED, Start(), HOOKED)
    failed, effects = after(hooked, DeadlinePassed(), HOOKED)
    assert (failed.state, failed.hook) == (UnitState.BACKOFF, None)
    assert EndHook(FIRST) in effects


def test_a_stop_during_pre_start_has_no_process_to_wait_for() -> None:
    hooked, _ = after(STOPPED, Start(), HOOKED)
    assert after(hooked, Stop(), HOOKED) == (Unit(incarnation=FIRST), (EndHook(FIRST),))


def test_a_restart_during_pre_start_begins_again() -> None:
    hooked, _ = after(STOPPED, Start(), HOOKED)
    again, effects = after(hooked, Restart(), HOOKED)
    assert (again.incarnation, again.hook) == (SECOND, HookName.PRE_START)
    assert effects == (EndHook(FIRST), RunHook(SECOND, HookName.PRE_START))


def test_ready_waits_for_post_start() -> None:
    hooked, effects = after(STARTING, Proved(FIRST), HOOKED)
    assert (hooked.state, hooked.hook, hooked.deadline) == (UnitState.STARTING, HookName.POST_START, NOW + 8.0)
    assert effects == (RunHook(FIRST, HookName.POST_START),)
    assert after(hooked, Proved(FIRST), HOOKED) == (hooked, ())
    ready, effects = after(hooked, HookEnded(FIRST, HookName.POST_START, None), HOOKED)
    assert (ready.state, ready.hook, ready.ready_at) == (UnitState.READY, None, NOW)
    assert effects == (Announce(EventName.INSTANCE_READY),)


@pytest.mark.parametrize("how", [HookEnded(FIRST, HookName.POST_START, "not through in time"), DeadlinePassed()])
def test_a_post_start_that_fails_or_hangs_ends_the_process_and_counts_as_a_failure(how: Event) -> None:
    hooked, _ = after(STARTING, Proved(FIRST), HOOKED)
    ending, effects = after(hooked, how, HOOKED)
    assert (ending.state, ending.cause) == (UnitState.STOPPING, EndCause.POST_START)
    assert ending.hook_failure == "not through in time"
    assert Signal(FIRST, 15) in effects
    gone, _ = after(ending, Exited(FIRST, TERMED))
    assert (gone.state, gone.failures.in_a_row, gone.ended_by) == (UnitState.BACKOFF, 1, EndCause.POST_START)


def test_a_crash_during_post_start_ends_the_hook() -> None:
    hooked, _ = after(STARTING, Proved(FIRST), HOOKED)
    crashed, effects = after(hooked, Exited(FIRST, CRASHED), HOOKED)
    assert crashed.hook is HookName.POST_STOP
    assert effects[0] == EndHook(FIRST)


@pytest.mark.parametrize("how", [HookEnded(FIRST, HookName.PRE_STOP, None), DeadlinePassed()])
def test_pre_stop_comes_after_the_drain_and_before_the_first_signal(how: Event) -> None:
    draining, _ = after(READY, Stop(), HOOKED)
    hooked, effects = after(draining, Drained(FIRST), HOOKED)
    assert (hooked.state, hooked.hook, hooked.deadline) == (UnitState.STOPPING, HookName.PRE_STOP, NOW + 9.0)
    assert effects == (
        CutConnections(FIRST),
        Announce(EventName.DRAIN_FINISHED),
        EndChecks(FIRST),
        RunHook(FIRST, HookName.PRE_STOP),
    )
    signalled, effects = after(hooked, how, HOOKED)
    assert (signalled.hook, signalled.stop_step, signalled.deadline) == (None, 1, NOW + 20.0)
    assert Signal(FIRST, 15) in effects


def test_pre_stop_is_not_run_for_what_was_never_ready() -> None:
    _, effects = after(STARTING, Stop(), HOOKED)
    assert effects == (EndChecks(FIRST), Signal(FIRST, 15))


@pytest.mark.parametrize("how", [HookEnded(FIRST, HookName.POST_STOP, "it failed"), DeadlinePassed()])
@pytest.mark.parametrize(
    ("unit", "state"),
    [
        (READY, UnitState.BACKOFF),
        (STOPPING, UnitState.STARTING),
        (replace(STOPPING, goal=Goal.DOWN, cause=EndCause.STOP), UnitState.STOPPED),
    ],
)
def test_post_stop_comes_between_the_end_and_what_follows_it(unit: Unit, state: UnitState, how: Event) -> None:
    policy = replace(HOOKED, hooks={HookName.POST_STOP: 10.0})
    hooked, effects = after(unit, Exited(FIRST, CRASHED), policy)
    assert (hooked.state, hooked.hook, hooked.deadline) == (UnitState.STOPPING, HookName.POST_STOP, NOW + 10.0)
    assert effects == (
        EndChecks(FIRST),
        Announce(EventName.INSTANCE_EXITED),
        RunHook(FIRST, HookName.POST_STOP),
    )
    assert after(hooked, how, policy)[0].state is state


def test_a_stop_during_post_stop_ends_the_restarts() -> None:
    hooked, _ = after(READY, Exited(FIRST, CRASHED), HOOKED)
    wanted, _ = after(hooked, Stop(), HOOKED)
    assert after(wanted, HookEnded(FIRST, HookName.POST_STOP, None), HOOKED)[0].state is UnitState.STOPPED


@pytest.mark.parametrize("unit", [READY, PARKED, DRAINING, STARTING])
def test_reload_signals_the_main_process(unit: Unit) -> None:
    assert after(unit, Reload(), replace(POLICY, reload_signal=12)) == (unit, (SignalMain(FIRST, 12),))


def test_a_process_may_ask_for_time_and_never_shortens_it() -> None:
    assert after(STARTING, TimeAsked(FIRST, 500.0))[0].deadline == NOW + 500.0
    assert after(STOPPING, TimeAsked(FIRST, 500.0))[0].deadline == NOW + 500.0
    assert after(STARTING, TimeAsked(FIRST, 1.0)) == (STARTING, ())
    assert after(READY, TimeAsked(FIRST, 500.0)) == (READY, ())


def test_a_proof_begins_the_warm_up_which_has_its_own_deadline() -> None:
    became, effects = after(STARTING, Proved(FIRST), WARMED)
    assert became == replace(STARTING, warming_since=NOW, deadline=NOW + 20.0 + MARGIN)
    assert effects == (BeginWarmup(FIRST),)
    assert after(became, Proved(FIRST), WARMED) == (became, ())
    assert after(became, TimeAsked(FIRST, 500.0), WARMED) == (became, ())


def test_the_warm_up_comes_after_post_start() -> None:
    hooked, _ = after(STARTING, Proved(FIRST), MUST_BE_WARM)
    assert (hooked.hook, hooked.warming_since) == (HookName.POST_START, None)
    warming, effects = after(hooked, HookEnded(FIRST, HookName.POST_START, None), MUST_BE_WARM)
    assert (warming.hook, warming.warming_since, effects) == (None, NOW, (BeginWarmup(FIRST),))


@pytest.mark.parametrize(("failure", "policy"), [(None, MUST_BE_WARM), (None, WARMED), ("/ answered 500", WARMED)])
def test_what_is_warm_or_need_not_be_is_ready(failure: str | None, policy: UnitPolicy) -> None:
    became, effects = after(WARMING, Warmed(FIRST, failure), policy)
    assert became == replace(READY, ready_at=NOW)
    assert effects == (Announce(EventName.INSTANCE_READY),)
    parked, _ = after(replace(WARMING, rotation=Rotation.OUT), Warmed(FIRST, failure), policy)
    assert parked.state is UnitState.DRAINING


def test_what_must_be_warm_and_is_not_has_failed_to_start() -> None:
    ending, effects = after(WARMING, Warmed(FIRST, "/ answered 500"), MUST_BE_WARM)
    assert (ending.state, ending.cause, ending.warming_since) == (UnitState.STOPPING, EndCause.WARMUP, None)
    assert effects == (EndChecks(FIRST), Signal(FIRST, 15))
    again, _ = after(ending, Exited(FIRST, TERMED))
    assert (again.state, again.failures.in_a_row) == (UnitState.BACKOFF, 1)
    assert (again.ended_by, again.warmup_failure) == (EndCause.WARMUP, "/ answered 500")
    assert after(again, DeadlinePassed())[0].warmup_failure is None


@pytest.mark.parametrize(("policy", "state"), [(WARMED, UnitState.READY), (MUST_BE_WARM, UnitState.STOPPING)])
def test_a_warm_up_that_never_ends_has_failed(policy: UnitPolicy, state: UnitState) -> None:
    became, effects = after(WARMING, DeadlinePassed(), policy)
    assert (became.state, became.warming_since) == (state, None)
    assert effects[0] == EndWarmup(FIRST)


@pytest.mark.parametrize("event", [Stop(), Restart(), Exited(FIRST, CRASHED)])
def test_whatever_ends_a_start_ends_its_warm_up(event: Event) -> None:
    became, effects = after(WARMING, event, WARMED)
    assert became.warming_since is None
    assert effects[0] == EndWarmup(FIRST)
    assert after(became, Warmed(FIRST, None), WARMED) == (became, ())


class Walk(RuleBasedStateMachine):
    """Orders and the outside world in any order, with a model of the one process there may be."""

    @initialize(
        when=some.sampled_from(RestartWhen),
        steps=some.sampled_from([((15, 20.0),), ((3, 1.0), (15, 5.0))]),
        limit=some.integers(1, 3),
        hooks=some.sets(some.sampled_from(HookName)),
        warmup=some.sampled_from([None, 20.0]),
        must_be_warm=some.booleans(),
    )
    def begin(
        self,
        when: RestartWhen,
        steps: tuple[tuple[int, float], ...],
        limit: int,
        hooks: set[HookName],
        warmup: float | None,
        must_be_warm: bool,
    ) -> None:
        restarts = replace(RESTARTS, when=when, limit_count=limit)
        wanted = {hook: HOOKS[hook] for hook in hooks}
        self.policy = replace(POLICY, restart=restarts, stop_steps=steps, hooks=wanted)
        self.policy = replace(self.policy, warmup=warmup, must_be_warm=must_be_warm)
        self.warming: Incarnation | None = None
        self.warm: set[Incarnation] = set()
        self.unit, self.now = Unit(), 0.0
        self.alive: Incarnation | None = None
        self.draining: Incarnation | None = None
        self.proved: set[Incarnation] = set()
        self.hook: HookName | None = None

    def feed(self, event: Event) -> None:
        self.unit, effects = step(self.unit, event, self.now, self.policy)
        for effect in effects:
            match effect:
                case Launch(incarnation):
                    assert self.alive is None, "a second process"
                    self.alive = incarnation
                case Signal(incarnation, number):
                    assert incarnation == self.alive, "a signal to a process that is not ours"
                    assert number in (3, 9, 15)
                case SignalMain(incarnation, number):
                    assert (incarnation, number) == (self.alive, 1)
                case RunHook(incarnation, hook):
                    assert self.hook is None, "a second hook"
                    assert (self.alive is None) == (hook in (HookName.PRE_START, HookName.POST_STOP))
                    self.hook = hook
                case EndHook(incarnation):
                    assert self.hook is not None
                    self.hook = None
                case BeginWarmup(incarnation):
                    assert (self.warming, self.hook) == (None, None)
                    assert incarnation in self.proved
                    assert incarnation == self.alive
                    self.warming = incarnation
                case EndWarmup(incarnation):
                    assert incarnation == self.warming
                    self.warming = None
                    self.warm.add(incarnation)
                case BeginDrain(incarnation):
                    assert incarnation == self.alive
                    self.draining = incarnation
                case EndDrain(incarnation) | CutConnections(incarnation):
                    assert incarnation == self.draining

    @rule(order=some.sampled_from(ORDERS))
    def order(self, order: Order) -> None:
        before = self.unit
        try:
            self.feed(order)
        except Refused:
            assert self.unit == before, "a refused order changed something"

    @precondition(lambda self: self.alive is not None)
    @rule(status=some.sampled_from([CRASHED, TERMED, FINISHED, ExitStatus(None, 9)]))
    def exit(self, status: ExitStatus) -> None:
        assert self.alive is not None
        gone, self.alive = self.alive, None
        self.feed(Exited(gone, status))

    @precondition(lambda self: self.alive is not None and self.alive not in self.proved)
    @rule(stage=some.sampled_from([LaunchStage.RELEASE, LaunchStage.EXECUTE]))
    def fail_launch(self, stage: LaunchStage) -> None:
        assert self.alive is not None
        gone, self.alive = self.alive, None
        self.feed(NotLaunched(gone, stage, "it is not there"))

    @precondition(lambda self: self.alive is not None)
    @rule()
    def prove(self) -> None:
        assert self.alive is not None
        if self.unit.state is UnitState.STARTING:
            self.proved.add(self.alive)
        self.feed(Proved(self.alive))

    @precondition(lambda self: self.hook is not None)
    @rule(
        failure=some.sampled_from([None, "/bin/no exited with 1"]),
        stage=some.sampled_from([LaunchStage.PRE_START, LaunchStage.RELEASE]),
    )
    def end_hook(self, failure: str | None, stage: LaunchStage) -> None:
        assert self.hook is not None
        through, self.hook = self.hook, None
        self.feed(HookEnded(self.unit.incarnation, through, failure, stage))

    @precondition(lambda self: self.warming is not None)
    @rule(failure=some.sampled_from([None, "/ answered 500"]))
    def end_warmup(self, failure: str | None) -> None:
        assert self.warming is not None
        through, self.warming = self.warming, None
        self.warm.add(through)
        self.feed(Warmed(through, failure))
        assert self.unit.state in (UnitState.READY, UnitState.DRAINING) or (failure and self.policy.must_be_warm)

    @rule(seconds=some.floats(0, 200))
    def ask_for_time(self, seconds: float) -> None:
        before = self.unit.deadline
        self.feed(TimeAsked(self.unit.incarnation, seconds))
        assert before is None or (self.unit.deadline is not None and self.unit.deadline >= before)

    @precondition(lambda self: self.alive is not None and self.alive == self.draining)
    @rule()
    def drained(self) -> None:
        assert self.alive is not None
        self.feed(Drained(self.alive))

    @precondition(lambda self: self.unit.incarnation > 1)
    @rule(event=some.sampled_from([Proved, Drained]))
    def late_news(self, event: type[Proved] | type[Drained]) -> None:
        before = self.unit
        self.feed(event(Incarnation(self.unit.incarnation - 1)))
        assert self.unit == before

    @precondition(lambda self: self.unit.deadline is not None)
    @rule()
    def wait_for_the_deadline(self) -> None:
        assert self.unit.deadline is not None
        self.now = max(self.now, self.unit.deadline)
        self.feed(DeadlinePassed())

    @rule(seconds=some.floats(0, 200))
    def pass_time(self, seconds: float) -> None:
        limit = self.unit.deadline if self.unit.deadline is not None else self.now + seconds
        self.now = min(self.now + seconds, limit)

    @invariant()
    def the_state_tells_whether_there_is_a_process(self) -> None:
        assert self.unit.has_process == (self.alive is not None)
        assert self.unit.hook is self.hook
        assert (self.unit.warming_since is not None) == (self.warming is not None)
        assert self.alive in (None, self.unit.incarnation)

    @invariant()
    def ready_is_proved(self) -> None:
        if self.unit.state is UnitState.READY:
            assert self.unit.incarnation in self.proved
            assert self.unit.ready_at is not None
            assert self.policy.warmup is None or self.unit.incarnation in self.warm

    @invariant()
    def what_must_not_last_has_a_deadline(self) -> None:
        passing = {UnitState.STARTING, UnitState.STOPPING, UnitState.BACKOFF}
        on_its_way = self.unit.state is UnitState.DRAINING and self.unit.cause is not None
        assert (self.unit.deadline is not None) == (self.unit.state in passing or on_its_way)

    @invariant()
    def who_rests_against_its_goal_has_come_to_an_end_or_lacks_something(self) -> None:
        if self.unit.state is UnitState.STOPPED and self.unit.goal is Goal.UP:
            assert (self.unit.lacks is None) == isinstance(self.unit.last_end, Exited)
        else:
            assert self.unit.lacks is None

    @invariant()
    def a_cause_belongs_to_a_process_that_is_ended(self) -> None:
        ending = self.unit.state in (UnitState.DRAINING, UnitState.STOPPING)
        assert self.unit.cause is None or ending
        unasked = self.unit.hook is HookName.POST_STOP
        assert self.unit.cause is not None or unasked or self.unit.state is not UnitState.STOPPING

    @invariant()
    def goal_down_leads_down(self) -> None:
        if self.unit.goal is Goal.DOWN:
            assert self.unit.state in (UnitState.STOPPED, UnitState.DRAINING, UnitState.STOPPING)


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


@given(some.lists(some.sampled_from(EVENTS), max_size=30))
def test_a_step_never_changes_the_unit_it_was_given(events: list[Event]) -> None:
    unit = READY
    for event in events:
        kept = replace(unit)
        try:
            became, _ = after(unit, event)
        except (Refused, IllegalTransition):
            became = unit
        assert unit == kept
        unit = replace(became, incarnation=FIRST)
