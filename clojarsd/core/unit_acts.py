"""What each event does to a unit: one function for each thing that can happen, named by the table in `core.unit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from clojarsd.core.errors import Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import ExitStatus, Goal, HookName, Incarnation, LaunchStage, Rotation, UnitState
from clojarsd.core.restart import NO_FAILURES, RestartWhen, count_failure
from clojarsd.core.unit_events import (
    Announce,
    BeginDrain,
    BeginWarmup,
    CutConnections,
    Drain,
    Effect,
    EndChecks,
    EndDrain,
    EndHook,
    EndWarmup,
    Event,
    Exited,
    HookEnded,
    Launch,
    NotLaunched,
    Restart,
    RunHook,
    Signal,
    SignalMain,
    Start,
    Stop,
    TimeAsked,
    Warmed,
)
from clojarsd.core.unit_facts import SIGKILL, EndCause, Step, Unit, UnitPolicy
from clojarsd.core.warmup import MARGIN

DRAIN_MARGIN = 1.0
"""Seconds beyond the time of the connections in which a drain shall have said what has become of them."""

Act: TypeAlias = Callable[[Unit, Event, float, UnitPolicy], Step]


def ignore(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """Nothing changes: what is asked for holds already, or the news is of no consequence here."""
    return unit, ()


# Towards ready.


def launch(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """A new incarnation begins; an operator who asked for it has forgiven the earlier failures."""
    incarnation = Incarnation(unit.incarnation + 1)
    asked = isinstance(event, Start | Restart) or unit.cause is EndCause.RESTART
    new = replace(
        unit,
        goal=Goal.UP,
        state=UnitState.STARTING,
        incarnation=incarnation,
        deadline=now + policy.start_timeout,
        cause=None,
        ready_at=None,
        hook_failure=None,
        warmup_failure=None,
        stop_step=0,
        failures=NO_FAILURES if asked else unit.failures,
    )
    if (seconds := policy.hooks.get(HookName.PRE_START)) is not None:
        return replace(new, hook=HookName.PRE_START, deadline=now + seconds), (
            RunHook(incarnation, HookName.PRE_START),
        )
    return new, (Launch(incarnation),)


def prove(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """It can serve; it is ready when its post_start is through, too, and it is warm."""
    if unit.hook is not None or unit.warming_since is not None:
        return unit, ()
    if (seconds := policy.hooks.get(HookName.POST_START)) is not None:
        waiting = replace(unit, hook=HookName.POST_START, deadline=now + seconds)
        return waiting, (RunHook(unit.incarnation, HookName.POST_START),)
    return _warm_up(unit, now, policy)


def hook_ended_at_start(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """A start goes on; a failure of pre_start is a failed launch, one of post_start a failed start."""
    assert isinstance(event, HookEnded)
    if event.hook is not unit.hook:
        return unit, ()
    through = replace(unit, hook=None)
    if event.hook is HookName.PRE_START:
        if event.failure is not None:
            return _ended(through, NotLaunched(unit.incarnation, event.stage, event.failure), now, policy)
        return replace(through, deadline=now + policy.start_timeout), (Launch(unit.incarnation),)
    if event.failure is not None:
        failed = replace(through, cause=EndCause.POST_START, hook_failure=event.failure)
        return _signal_next(failed, now, policy)
    return _warm_up(through, now, policy)


def _warm_up(unit: Unit, now: float, policy: UnitPolicy) -> Step:
    """Only warmth is missing, if that is wanted; the start has no deadline any more, the warm-up has its own."""
    if policy.warmup is None:
        return _become_ready(unit, now)
    warming = replace(unit, warming_since=now, deadline=now + policy.warmup + MARGIN)
    return warming, (BeginWarmup(unit.incarnation),)


def warmed(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """It is ready: warm, or as it is; unless it had to become warm and has not, which is a failed start."""
    assert isinstance(event, Warmed)
    if unit.warming_since is None:
        return unit, ()
    through = replace(unit, warming_since=None)
    if event.failure is not None and policy.must_be_warm:
        failed = replace(through, cause=EndCause.WARMUP, warmup_failure=event.failure)
        return _signal_next(failed, now, policy)
    return _become_ready(through, now)


def give_up_start(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """It was not ready in time: it is ended, which counts as a failure. A warm-up that says nothing has failed."""
    if unit.warming_since is not None:
        given_up, more = warmed(unit, Warmed(unit.incarnation, "it has not come to its end in time"), now, policy)
        return given_up, (EndWarmup(unit.incarnation), *more)
    unhooked, effects = _unoccupied(unit)
    if unit.hook is HookName.PRE_START:
        late = NotLaunched(unit.incarnation, LaunchStage.PRE_START, "not through in time")
        given_up, more = _ended(unhooked, late, now, policy)
    elif unit.hook is HookName.POST_START:
        failed = replace(unhooked, cause=EndCause.POST_START, hook_failure="not through in time")
        given_up, more = _signal_next(failed, now, policy)
    else:
        given_up, more = _signal_next(replace(unhooked, cause=EndCause.START_TIMEOUT), now, policy)
    return given_up, (*effects, *more)


def give_time(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """It says itself that it needs longer. What others do, a hook or the warm-up, has its own time."""
    assert isinstance(event, TimeAsked)
    if unit.hook is not None or unit.warming_since is not None or unit.deadline is None:
        return unit, ()
    return replace(unit, deadline=max(unit.deadline, now + event.seconds)), ()


def _become_ready(unit: Unit, now: float) -> Step:
    """It serves, unless the operator wants it out of rotation."""
    ready = replace(unit, state=UnitState.READY, deadline=None, ready_at=now)
    effects: tuple[Effect, ...] = (Announce(EventName.INSTANCE_READY),)
    if unit.rotation is Rotation.OUT:
        return replace(ready, state=UnitState.DRAINING), (*effects, BeginDrain(unit.incarnation))
    return ready, effects


# The operator's wishes while it runs, or does not.


def rest(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """No process, and none is to come."""
    at_rest = replace(
        unit, goal=Goal.DOWN, state=UnitState.STOPPED, rotation=Rotation.IN, deadline=None, failures=NO_FAILURES
    )
    return at_rest, ()


def take_out(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The wish that it gets no connections, kept for when it runs."""
    return replace(unit, rotation=Rotation.OUT), ()


def take_in(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The wish that it gets connections, kept for when it runs."""
    return replace(unit, rotation=Rotation.IN), ()


def reload(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The main process is told to read its configuration again; what it makes of that shows in its checks."""
    if not unit.has_process:
        raise Refused("it has no process yet")
    return unit, (SignalMain(unit.incarnation, policy.reload_signal),)


# Draining.


def drain_by_wish(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """It runs on without new connections, for as long as the operator wants."""
    assert isinstance(event, Drain)
    draining = replace(unit, state=UnitState.DRAINING, rotation=Rotation.OUT)
    return draining, (BeginDrain(unit.incarnation, event.within), Announce(EventName.DRAIN_STARTED))


def drain_to_end(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """Its connections may end until a deadline; the end of the process comes after."""
    assert isinstance(event, Stop | Restart)
    deadline = now + _shorter(policy.drain_timeout, event.within) + DRAIN_MARGIN
    draining = replace(_wish(unit, event), state=UnitState.DRAINING, deadline=deadline)
    return draining, (BeginDrain(unit.incarnation, event.within), Announce(EventName.DRAIN_STARTED))


def change_drain(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The process that is being drained is to be ended; a deadline already set holds, unless this one is sooner."""
    assert isinstance(event, Stop | Restart)
    deadline = now + _shorter(policy.drain_timeout, event.within) + DRAIN_MARGIN
    if unit.deadline is not None:
        deadline = min(unit.deadline, deadline) if event.within is not None else unit.deadline
    return replace(_wish(unit, event), deadline=deadline), (BeginDrain(unit.incarnation, event.within),)


def drain_sooner(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """It stays out of rotation; what is open may last for a shorter time, if that is wished."""
    assert isinstance(event, Drain)
    out = replace(unit, rotation=Rotation.OUT)
    if event.within is None:
        return out, ()
    if unit.deadline is not None:
        out = replace(out, deadline=min(unit.deadline, now + event.within + DRAIN_MARGIN))
    return out, (BeginDrain(unit.incarnation, event.within),)


def _shorter(seconds: float, within: float | None) -> float:
    return seconds if within is None else min(seconds, within)


def keep(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """A stop that is still draining is called off; a drain by wish and a restart go on as they are."""
    if unit.cause is not EndCause.STOP:
        return unit, ()
    kept = replace(unit, goal=Goal.UP, state=UnitState.READY, deadline=None, cause=None)
    return kept, (EndDrain(unit.incarnation), Announce(EventName.DRAIN_FINISHED))


def undrain(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """Connections come again, unless the process is on its way to its end."""
    if unit.cause is not None:
        return replace(unit, rotation=Rotation.IN), ()
    serving = replace(unit, state=UnitState.READY, rotation=Rotation.IN)
    return serving, (EndDrain(unit.incarnation), Announce(EventName.DRAIN_FINISHED))


def drained(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """No connection is waited for any more: now the process may end, if it is to, and silent connections before it."""
    if unit.cause is None:
        return unit, (Announce(EventName.DRAIN_FINISHED),)
    stopping, effects = _begin_end(unit, now, policy)
    return stopping, (CutConnections(unit.incarnation), Announce(EventName.DRAIN_FINISHED), *effects)


def cut_and_end(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The time for draining is over, and nobody has said in time what has become of the connections."""
    stopping, effects = _begin_end(unit, now, policy)
    return stopping, (CutConnections(unit.incarnation), Announce(EventName.DRAIN_FINISHED), *effects)


# Towards the end.


def end(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The process is ended; it has no connections to drain. Without a process there is nothing to wait for."""
    unhooked, effects = _unoccupied(unit)
    if unit.hook is not HookName.PRE_START:
        ending, more = _signal_next(_wish(unhooked, event), now, policy)
    elif isinstance(event, Stop):
        ending, more = rest(unhooked, event, now, policy)
    else:
        ending, more = launch(unhooked, event, now, policy)
    return ending, (*effects, *more)


def change_end(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The process is being ended already; only what comes after it changes."""
    return _wish(unit, event), ()


def escalate(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """It has not ended in time: the next stop signal, at last SIGKILL, which is repeated. A hook is not waited for."""
    unhooked, effects = _unoccupied(unit)
    if unit.hook is HookName.POST_STOP:
        settled, more = _settle(unhooked, now, policy)
    else:
        settled, more = _signal_next(unhooked, now, policy)
    return settled, (*effects, *more)


def hook_ended_at_end(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """What the first stop signal, or the next launch, has waited for; a failure keeps nobody from going on."""
    assert isinstance(event, HookEnded)
    if event.hook is not unit.hook:
        return unit, ()
    through = replace(unit, hook=None)
    return (_settle if event.hook is HookName.POST_STOP else _signal_next)(through, now, policy)


def ended(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The process is gone, or has never come to be."""
    assert isinstance(event, Exited | NotLaunched)
    return _ended(unit, event, now, policy)


def _ended(unit: Unit, end: Exited | NotLaunched, now: float, policy: UnitPolicy) -> Step:
    """Nothing of the process is left; what follows waits for post_stop, if there was a process at all."""
    gone, effects = _unoccupied(replace(unit, last_end=end, ended_by=unit.cause))
    effects = (*effects, EndChecks(unit.incarnation), Announce(EventName.INSTANCE_EXITED))
    seconds = policy.hooks.get(HookName.POST_STOP)
    if seconds is not None and isinstance(end, Exited):
        hooked = replace(gone, state=UnitState.STOPPING, hook=HookName.POST_STOP, deadline=now + seconds)
        return hooked, (*effects, RunHook(unit.incarnation, HookName.POST_STOP))
    settled, more = _settle(gone, now, policy)
    return settled, (*effects, *more)


def _settle(unit: Unit, now: float, policy: UnitPolicy) -> Step:
    """What follows the end: rest, the next launch at once, or later, or none any more."""
    assert unit.last_end is not None
    if unit.cause is EndCause.RESTART:
        return launch(unit, unit.last_end, now, policy)
    if unit.cause is EndCause.STOP:
        at_rest, _ = rest(unit, unit.last_end, now, policy)
        return replace(at_rest, cause=None, ready_at=None), ()
    settled = replace(unit, deadline=None, cause=None, ready_at=None)
    if isinstance(unit.last_end, NotLaunched) and unit.last_end.stage.waits_for_operator:
        return replace(settled, state=UnitState.STOPPED), ()  # no failure: nothing is wrong with the instance
    exited = unit.last_end if isinstance(unit.last_end, Exited) else None
    finished = unit.ready_at is not None and exited is not None and _finished(exited.status, policy)
    if finished and policy.restart.when is not RestartWhen.ALWAYS:
        return replace(settled, state=UnitState.STOPPED), ()
    ready_for = now - unit.ready_at if unit.ready_at is not None else 0.0
    failures, delay = count_failure(unit.failures, ready_for, now, policy.restart)
    settled = replace(settled, failures=failures)
    if delay is None or policy.restart.when is RestartWhen.NEVER:
        return replace(settled, state=UnitState.FAILED), (Announce(EventName.INSTANCE_FAILED),)
    return replace(settled, state=UnitState.BACKOFF, deadline=now + delay), ()


def _wish(unit: Unit, event: Event) -> Unit:
    """The unit with the goal and the cause of end that the order stands for."""
    if isinstance(event, Stop):
        return replace(unit, goal=Goal.DOWN, rotation=Rotation.IN, cause=EndCause.STOP)
    return replace(unit, goal=Goal.UP, cause=EndCause.RESTART)


def _begin_end(unit: Unit, now: float, policy: UnitPolicy) -> Step:
    """The end of a process that was ready: pre_stop, and then the first stop signal."""
    if (seconds := policy.hooks.get(HookName.PRE_STOP)) is None:
        return _signal_next(unit, now, policy)
    hooked = replace(unit, state=UnitState.STOPPING, hook=HookName.PRE_STOP, deadline=now + seconds)
    return hooked, (EndChecks(unit.incarnation), RunHook(unit.incarnation, HookName.PRE_STOP))


def _signal_next(unit: Unit, now: float, policy: UnitPolicy) -> Step:
    """The unit in `STOPPING` with the next stop signal sent; SIGKILL when the configured ones are used up."""
    steps = policy.stop_steps
    if unit.stop_step < len(steps):
        number, wait = steps[unit.stop_step]
    else:
        number, wait = SIGKILL, steps[-1][1]  # a process in uninterruptible sleep is asked again, and waited for
    stopping = replace(unit, state=UnitState.STOPPING, deadline=now + wait, stop_step=unit.stop_step + 1)
    first = (EndChecks(unit.incarnation),) if unit.stop_step == 0 else ()
    return stopping, (*first, Signal(unit.incarnation, number))


def _unoccupied(unit: Unit) -> Step:
    """The unit whose hook or warm-up, if there is one under way, is called off."""
    if unit.hook is not None:
        return replace(unit, hook=None), (EndHook(unit.incarnation),)
    if unit.warming_since is not None:
        return replace(unit, warming_since=None), (EndWarmup(unit.incarnation),)
    return unit, ()


def _finished(status: ExitStatus, policy: UnitPolicy) -> bool:
    """Whether an unasked exit means that the program had done its work; one after a stranger's signal never does."""
    return status.code is not None and status.code < 128 and status.code in policy.success_codes
