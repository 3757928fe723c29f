"""The life of one instance as a state machine: facts in, the next facts and what must be done about them out.

Three facts are kept apart: the goal (what the operator wants), the state (where the unit is in its life) and the health
(what the checks say, which lives in `core.health`). A fourth, the rotation, is the operator's wish about traffic.

The diagram; a test holds it against the table::

    stopped  Start Restart -> starting
    stopped  Stop Undrain Proved Drained -> stopped
    starting Start Drain Undrain -> starting
    starting Stop Restart DeadlinePassed -> stopping
    starting Proved -> ready draining
    starting NotLaunched Exited -> backoff failed
    ready    Start Undrain Proved Drained -> ready
    ready    Stop Restart Drain -> draining
    ready    Exited -> backoff failed stopped
    draining Start Undrain -> draining ready
    draining Stop Restart Drain Proved -> draining
    draining Drained -> draining stopping
    draining DeadlinePassed -> stopping
    draining Exited -> backoff failed stopped starting
    stopping Start Stop Restart Undrain Proved Drained DeadlinePassed -> stopping
    stopping NotLaunched Exited -> backoff failed stopped starting
    backoff  Start Restart DeadlinePassed -> starting
    backoff  Stop -> stopped
    backoff  Drain Undrain Proved Drained -> backoff
    failed   Start Restart -> starting
    failed   Stop -> stopped
    failed   Undrain Proved Drained -> failed

An order that is not listed for a state is refused; any other event that is not listed there is a bug in the caller.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from clojarsd.core.errors import IllegalTransition, Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import NO_INCARNATION, ExitStatus, Goal, Incarnation, Rotation, UnitState
from clojarsd.core.restart import NO_FAILURES, Failures, RestartPolicy, RestartWhen, count_failure
from clojarsd.core.unit_events import (
    Announce,
    BeginDrain,
    CutConnections,
    DeadlinePassed,
    Drain,
    Drained,
    Effect,
    EndChecks,
    EndDrain,
    Event,
    Exited,
    Launch,
    NotLaunched,
    Order,
    Proved,
    Report,
    Restart,
    Signal,
    Start,
    Stop,
    Undrain,
)

SIGKILL = 9


class EndCause(enum.Enum):
    """Why the process of a unit is being ended by us."""

    STOP = "an order to stop"
    RESTART = "an order to restart"
    START_TIMEOUT = "it was not ready in time"


@dataclass(frozen=True, slots=True)
class UnitPolicy:
    """What the settings say about a unit's life.

    Attributes:
        start_timeout: seconds from the launch to the proof by checks.
        drain_timeout: seconds that open connections may last when the process is to be ended.
        stop_steps: signal number and seconds until the next one; after the last comes SIGKILL.
        success_codes: exit codes that are no failure; those from 128 up only when the end was ordered.
    """

    start_timeout: float
    drain_timeout: float
    stop_steps: tuple[tuple[int, float], ...]
    success_codes: frozenset[int]
    restart: RestartPolicy


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit as a value.

    Attributes:
        deadline: monotonic instant at which this state has lasted too long, or None.
        cause: why the process is being ended, or None while nobody ends it: `DRAINING` without a cause lasts.
        ready_at: monotonic instant of this incarnation's proof, or None.
        stop_step: how many stop signals were sent to this incarnation.
        last_end: how the latest process that has ended did so, or why it could not be launched.
        ended_by: why that one was ended by us, or None when it ended unasked.
    """

    goal: Goal = Goal.DOWN
    state: UnitState = UnitState.STOPPED
    rotation: Rotation = Rotation.IN
    incarnation: Incarnation = NO_INCARNATION
    deadline: float | None = None
    cause: EndCause | None = None
    ready_at: float | None = None
    stop_step: int = 0
    failures: Failures = NO_FAILURES
    last_end: Exited | NotLaunched | None = None
    ended_by: EndCause | None = None


Step: TypeAlias = tuple[Unit, tuple[Effect, ...]]


def step(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """What the unit becomes, and what must be done about it. The unit given is unchanged in every case.

    Args:
        now: monotonic instant of the event.

    Raises:
        Refused: the order does not fit the state.
        IllegalTransition: the event cannot happen in this state.
    """
    if isinstance(event, Report) and event.incarnation != unit.incarnation:
        return unit, ()  # late news from an earlier process
    try:
        act = TRANSITIONS[unit.state, type(event)]
    except KeyError:
        if isinstance(event, Order):
            raise Refused(f"it is {unit.state.value}") from None
        raise IllegalTransition(unit.state, event) from None
    return act(unit, event, now, policy)


def ignore(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """Nothing changes: what is asked for holds already, or the news is of no consequence here."""
    return unit, ()


def launch(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """A new incarnation begins; an operator who asked for it has forgiven the earlier failures."""
    incarnation = Incarnation(unit.incarnation + 1)
    asked = isinstance(event, Start | Restart) or unit.cause is EndCause.RESTART
    launched = replace(
        unit,
        goal=Goal.UP,
        state=UnitState.STARTING,
        incarnation=incarnation,
        deadline=now + policy.start_timeout,
        cause=None,
        ready_at=None,
        stop_step=0,
        failures=NO_FAILURES if asked else unit.failures,
    )
    return launched, (Launch(incarnation),)


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


def prove(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """It can serve, and does unless the operator wants it out of rotation."""
    proved = replace(unit, state=UnitState.READY, deadline=None, ready_at=now)
    effects: tuple[Effect, ...] = (Announce(EventName.INSTANCE_READY),)
    if unit.rotation is Rotation.OUT:
        return replace(proved, state=UnitState.DRAINING), (*effects, BeginDrain(unit.incarnation))
    return proved, effects


def drain_by_wish(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """It runs on without new connections, for as long as the operator wants."""
    draining = replace(unit, state=UnitState.DRAINING, rotation=Rotation.OUT)
    return draining, (BeginDrain(unit.incarnation), Announce(EventName.DRAIN_STARTED))


def drain_to_end(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """Its connections may end until a deadline; the end of the process comes after."""
    draining = replace(_wish(unit, event), state=UnitState.DRAINING, deadline=now + policy.drain_timeout)
    return draining, (BeginDrain(unit.incarnation), Announce(EventName.DRAIN_STARTED))


def change_drain(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The process that is being drained is to be ended; a deadline already set holds."""
    deadline = unit.deadline if unit.deadline is not None else now + policy.drain_timeout
    return replace(_wish(unit, event), deadline=deadline), (BeginDrain(unit.incarnation),)


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
    """The last connection has ended: now the process may, if it is to end at all."""
    if unit.cause is None:
        return unit, (Announce(EventName.DRAIN_FINISHED),)
    stopping, effects = _signal_next(unit, now, policy)
    return stopping, (Announce(EventName.DRAIN_FINISHED), *effects)


def cut_and_end(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The time for draining is over."""
    stopping, effects = _signal_next(unit, now, policy)
    return stopping, (CutConnections(unit.incarnation), Announce(EventName.DRAIN_FINISHED), *effects)


def end(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The process is ended; it has no connections to drain."""
    return _signal_next(_wish(unit, event), now, policy)


def change_end(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The process is being ended already; only what comes after it changes."""
    return _wish(unit, event), ()


def give_up_start(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """It was not ready in time: it is ended, which counts as a failure."""
    return _signal_next(replace(unit, cause=EndCause.START_TIMEOUT), now, policy)


def signal_again(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """It has not ended in time: the next stop signal, at last SIGKILL, which is repeated."""
    return _signal_next(unit, now, policy)


def end_unasked(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The process has ended though nobody asked it to."""
    assert isinstance(event, Exited | NotLaunched)
    effects: tuple[Effect, ...] = (EndChecks(unit.incarnation), Announce(EventName.INSTANCE_EXITED))
    finished = unit.ready_at is not None and isinstance(event, Exited) and _finished(event.status, policy)
    ended = replace(unit, deadline=None, cause=None, last_end=event, ended_by=unit.cause)
    if finished and policy.restart.when is not RestartWhen.ALWAYS:
        return replace(ended, state=UnitState.STOPPED, ready_at=None), effects
    ready_for = now - unit.ready_at if unit.ready_at is not None else 0.0
    failures, delay = count_failure(unit.failures, ready_for, now, policy.restart)
    ended = replace(ended, failures=failures, ready_at=None)
    if delay is None or policy.restart.when is RestartWhen.NEVER:
        return replace(ended, state=UnitState.FAILED), (*effects, Announce(EventName.INSTANCE_FAILED))
    return replace(ended, state=UnitState.BACKOFF, deadline=now + delay), effects


def end_as_asked(unit: Unit, event: Event, now: float, policy: UnitPolicy) -> Step:
    """The process that was to end has ended; the goal decides what follows."""
    assert isinstance(event, Exited | NotLaunched)
    if unit.cause is None or unit.cause is EndCause.START_TIMEOUT:
        return end_unasked(unit, event, now, policy)
    ended = replace(unit, last_end=event, ended_by=unit.cause)
    effects: tuple[Effect, ...] = (EndChecks(unit.incarnation), Announce(EventName.INSTANCE_EXITED))
    if unit.cause is EndCause.RESTART:
        launched, more = launch(ended, event, now, policy)
        return launched, (*effects, *more)
    at_rest, _ = rest(ended, event, now, policy)
    return replace(at_rest, cause=None, ready_at=None), effects


def _wish(unit: Unit, event: Event) -> Unit:
    """The unit with the goal and the cause of end that the order stands for."""
    if isinstance(event, Stop):
        return replace(unit, goal=Goal.DOWN, rotation=Rotation.IN, cause=EndCause.STOP)
    return replace(unit, goal=Goal.UP, cause=EndCause.RESTART)


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


def _finished(status: ExitStatus, policy: UnitPolicy) -> bool:
    """Whether an unasked exit means that the program had done its work; one after a stranger's signal never does."""
    return status.code is not None and status.code < 128 and status.code in policy.success_codes


Act: TypeAlias = Callable[[Unit, Event, float, UnitPolicy], Step]

_BY_STATE: Mapping[UnitState, Mapping[type[Event], Act]] = {
    UnitState.STOPPED: {
        Start: launch,
        Stop: rest,
        Restart: launch,
        Undrain: take_in,
        Proved: ignore,
        Drained: ignore,
    },
    UnitState.STARTING: {
        Start: ignore,
        Stop: end,
        Restart: end,
        Drain: take_out,
        Undrain: take_in,
        Proved: prove,
        NotLaunched: end_unasked,
        Exited: end_unasked,
        DeadlinePassed: give_up_start,
    },
    UnitState.READY: {
        Start: ignore,
        Stop: drain_to_end,
        Restart: drain_to_end,
        Drain: drain_by_wish,
        Undrain: ignore,
        Proved: ignore,
        Drained: ignore,
        Exited: end_unasked,
    },
    UnitState.DRAINING: {
        Start: keep,
        Stop: change_drain,
        Restart: change_drain,
        Drain: take_out,
        Undrain: undrain,
        Proved: ignore,
        Drained: drained,
        DeadlinePassed: cut_and_end,
        Exited: end_as_asked,
    },
    UnitState.STOPPING: {
        Start: change_end,
        Stop: change_end,
        Restart: change_end,
        Undrain: take_in,
        Proved: ignore,
        Drained: ignore,
        DeadlinePassed: signal_again,
        NotLaunched: end_as_asked,
        Exited: end_as_asked,
    },
    UnitState.BACKOFF: {
        Start: launch,
        Stop: rest,
        Restart: launch,
        Drain: take_out,
        Undrain: take_in,
        Proved: ignore,
        Drained: ignore,
        DeadlinePassed: launch,
    },
    UnitState.FAILED: {
        Start: launch,
        Stop: rest,
        Restart: launch,
        Undrain: take_in,
        Proved: ignore,
        Drained: ignore,
    },
}

TRANSITIONS: Mapping[tuple[UnitState, type[Event]], Act] = {
    (state, event): act for state, acts in _BY_STATE.items() for event, act in acts.items()
}
