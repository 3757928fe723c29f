"""The life of one instance as a state machine: facts in, the next facts and what must be done about them out.

Three facts are kept apart: the goal (what the operator wants), the state (where the unit is in its life) and the health
(what the checks say, which lives in `core.health`). A fourth, the rotation, is the operator's wish about traffic. Hooks
run within a state: pre_start and post_start make `starting` longer, pre_stop and post_stop `stopping`. The warm-up is
a part of `starting`, too, and the last: checks and post_start are through when it begins.

The diagram; a test holds it against the table::

    stopped  Start Restart -> starting
    stopped  Stop Undrain Proved HookEnded Drained TimeAsked Warmed -> stopped
    starting Start Drain Undrain Reload TimeAsked -> starting
    starting Stop -> stopped stopping
    starting Restart -> starting stopping
    starting Proved -> starting ready draining
    starting HookEnded -> stopped starting ready draining stopping backoff failed
    starting Warmed -> starting ready draining stopping
    starting NotLaunched -> stopped backoff failed
    starting Exited -> stopping backoff failed
    starting DeadlinePassed -> ready draining stopping backoff failed
    ready    Start Undrain Reload Proved HookEnded Drained TimeAsked Warmed -> ready
    ready    Stop Restart Drain -> draining
    ready    Exited -> stopped stopping backoff failed
    draining Start Undrain -> ready draining
    draining Stop Restart Drain Reload Proved HookEnded TimeAsked Warmed -> draining
    draining Drained -> draining stopping
    draining Exited -> stopped starting stopping backoff failed
    draining DeadlinePassed -> stopping
    stopping Start Stop Restart Undrain Proved Drained TimeAsked Warmed -> stopping
    stopping HookEnded DeadlinePassed -> stopped starting stopping backoff
    stopping NotLaunched -> stopped starting backoff failed
    stopping Exited -> stopped starting stopping backoff failed
    backoff  Start Restart DeadlinePassed -> starting
    backoff  Stop -> stopped
    backoff  Drain Undrain Proved HookEnded Drained TimeAsked Warmed -> backoff
    failed   Start Restart -> starting
    failed   Stop -> stopped
    failed   Undrain Proved HookEnded Drained TimeAsked Warmed -> failed

Where there is no release to launch, the unit rests as it does after its work: `stopped`, its goal still `up`, and no
failure is counted. `Unit.lacks` says what is missing.

An order that is not listed for a state is refused; any other event that is not listed there is a bug in the caller.
"""

from __future__ import annotations

from collections.abc import Mapping

from clojarsd.core import unit_acts as act
from clojarsd.core.errors import IllegalTransition, Refused
from clojarsd.core.names import UnitState
from clojarsd.core.unit_events import (
    DeadlinePassed,
    Drain,
    Drained,
    Event,
    Exited,
    HookEnded,
    NotLaunched,
    Order,
    Proved,
    Reload,
    Report,
    Restart,
    Start,
    Stop,
    TimeAsked,
    Undrain,
    Warmed,
)
from clojarsd.core.unit_facts import SIGKILL, EndCause, Step, Unit, UnitPolicy

__all__ = ["SIGKILL", "TRANSITIONS", "EndCause", "Step", "Unit", "UnitPolicy", "step"]


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
        carry_out = TRANSITIONS[unit.state, type(event)]
    except KeyError:
        if isinstance(event, Order):
            raise Refused(f"it is {unit.state.value}") from None
        raise IllegalTransition(unit.state, event) from None
    return carry_out(unit, event, now, policy)


_LATE_NEWS: Mapping[type[Event], act.Act] = {
    Proved: act.ignore,
    Drained: act.ignore,
    HookEnded: act.ignore,
    TimeAsked: act.ignore,
    Warmed: act.ignore,
}
"""What can still arrive when there is nothing left that it could change."""

_BY_STATE: Mapping[UnitState, Mapping[type[Event], act.Act]] = {
    UnitState.STOPPED: {
        **_LATE_NEWS,
        Start: act.launch,
        Stop: act.rest,
        Restart: act.launch,
        Undrain: act.take_in,
    },
    UnitState.STARTING: {
        Start: act.ignore,
        Stop: act.end,
        Restart: act.end,
        Drain: act.take_out,
        Undrain: act.take_in,
        Reload: act.reload,
        Proved: act.prove,
        HookEnded: act.hook_ended_at_start,
        Warmed: act.warmed,
        TimeAsked: act.give_time,
        NotLaunched: act.ended,
        Exited: act.ended,
        DeadlinePassed: act.give_up_start,
    },
    UnitState.READY: {
        **_LATE_NEWS,
        Start: act.ignore,
        Stop: act.drain_to_end,
        Restart: act.drain_to_end,
        Drain: act.drain_by_wish,
        Undrain: act.ignore,
        Reload: act.reload,
        Exited: act.ended,
    },
    UnitState.DRAINING: {
        **_LATE_NEWS,
        Start: act.keep,
        Stop: act.change_drain,
        Restart: act.change_drain,
        Drain: act.drain_sooner,
        Undrain: act.undrain,
        Reload: act.reload,
        Drained: act.drained,
        DeadlinePassed: act.cut_and_end,
        Exited: act.ended,
    },
    UnitState.STOPPING: {
        **_LATE_NEWS,
        Start: act.change_end,
        Stop: act.change_end,
        Restart: act.change_end,
        Undrain: act.take_in,
        HookEnded: act.hook_ended_at_end,
        TimeAsked: act.give_time,
        DeadlinePassed: act.escalate,
        NotLaunched: act.ended,
        Exited: act.ended,
    },
    UnitState.BACKOFF: {
        **_LATE_NEWS,
        Start: act.launch,
        Stop: act.rest,
        Restart: act.launch,
        Drain: act.take_out,
        Undrain: act.take_in,
        DeadlinePassed: act.launch,
    },
    UnitState.FAILED: {
        **_LATE_NEWS,
        Start: act.launch,
        Stop: act.rest,
        Restart: act.launch,
        Undrain: act.take_in,
    },
}

TRANSITIONS: Mapping[tuple[UnitState, type[Event]], act.Act] = {
    (state, event): carry_out for state, acts in _BY_STATE.items() for event, carry_out in acts.items()
}
