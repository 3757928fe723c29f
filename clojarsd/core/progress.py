"""How far an order has come: the picture in, done or failed or not yet out, and the steps in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clojarsd.core.api import Awaited, Verb
from clojarsd.core.names import Goal, Health, HookName, Incarnation, Role, Rotation, UnitState
from clojarsd.core.signal_names import signal_name
from clojarsd.core.unit import EndCause
from clojarsd.core.view import InstanceView, PairView


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of an order for one instance: whether it came to what was asked, and the sentence about it."""

    done: bool
    message: str


def judge(verb: Verb, role: Role, view: PairView, before: Incarnation) -> Verdict | None:
    """Whether what the verb asks for holds now, or no longer can; None while it is under way.

    Args:
        before: the incarnation that there was when the order was placed.
    """
    seen = view.instances[role]
    match verb:
        case Verb.START:
            return _without_verb(_judge_up(seen), f"cannot start {role.value}: ")
        case Verb.RESTART:
            return _judge_old(seen) if seen.unit.incarnation == before else _judge_up(seen)
        case Verb.STOP:
            return _judge_down(seen)
        case Verb.DRAIN:
            return _judge_out(seen, view)
        case Verb.UNDRAIN:
            return _judge_in(seen)
        case Verb.RELOAD:  # what the instance makes of it shows in its checks
            return Verdict(True, f"{seen.role.value} was told to reload ({signal_name(seen.reload_signal)})")


def already(verb: Verb, seen: InstanceView) -> str | None:
    """The sentence that says that what is asked for holds before anything was done; None when it does not."""
    name, unit = seen.role.value, seen.unit
    if verb is Verb.START and seen.is_eligible:
        return f"{name} is already up"
    if verb is Verb.STOP and unit.state is UnitState.STOPPED and unit.goal is Goal.DOWN:
        return f"{name} is already stopped"
    if verb is Verb.UNDRAIN and unit.rotation is Rotation.IN:
        return f"{name} is already in rotation"
    return None


def why_not_restart(role: Role, view: PairView) -> str | None:
    """Why a restart would leave nobody to serve; None when it may go on. A unit without a process serves nobody.

    The sentence has no end yet: what was done before, and what to do now.
    """
    other = view.instances[role.other]
    if other.is_eligible or not view.instances[role].unit.has_process:
        return None
    return f"cannot restart {role.value}: {other.role.value} could not take over, it {_is(other)} ({other.reason})"


def why_not_launch(verb: Verb, role: Role, view: PairView, lacking: str | None) -> str | None:
    """Why the order would lead to no process; None when it can.

    Args:
        lacking: what must be there before the instance can be launched, in words, or None.
    """
    unit = view.instances[role].unit
    stays = verb is Verb.START and unit.has_process and unit.state is not UnitState.STOPPING
    if lacking is None or stays:
        return None
    return f"cannot {verb.value} {role.value}: {lacking}; nothing was done"


def why_not_reload(role: Role, view: PairView) -> str | None:
    """Why there is nobody who could be told to reload; None when there is."""
    seen = view.instances[role]
    if seen.pid is not None and seen.unit.state is not UnitState.STOPPING:
        return None
    return f"cannot reload {role.value}: it {_is(seen)} ({seen.reason}); nothing was done"


def why_not_with_environment(verb: Verb, role: Role, view: PairView) -> str | None:
    """Why a start cannot have an environment of its own; None when it can."""
    seen = view.instances[role]
    if verb is not Verb.START or not seen.unit.has_process:
        return None
    which = f", as process {seen.pid}" if seen.pid is not None else ""
    return (
        f"cannot start {role.value} with this environment: it runs already{which};"
        f" nothing was done; `clojarsctl restart {role.value} --env ...` gives it to a new one"
    )


def as_sentence(role: Role, step: str) -> str:
    """A step of an instance with its name before it, unless it is a sentence of its own."""
    return step if step.startswith("cannot") else f"{role.value} {step}"


def describe_reached(awaited: Awaited, roles: Sequence[Role]) -> str:
    """`backup is eligible`, or for several `backup and primary are ready`."""
    names = " and ".join(role.value for role in roles)
    return f"{names} {'is' if len(roles) == 1 else 'are'} {awaited.value}"


def why_still_waiting(awaited: Awaited, roles: Sequence[Role], view: PairView, patience: float) -> str:
    """What there is instead, `patience` seconds after somebody began to wait."""
    missing = [view.instances[role] for role in roles if not awaited.holds(view.instances[role])]
    seen = "; ".join(f"{one.role.value} {_is(one)}" + (f" ({one.reason})" if one.reason else "") for one in missing)
    verb = "was" if len(missing) == 1 else "were"
    names = " and ".join(one.role.value for one in missing)
    return f"{names} {verb} not {awaited.value} within {patience:g} s: {seen}"


def connections(view: PairView, role: Role) -> int:
    """How many connections to the instance are open, over all frontends."""
    return sum(frontend.connections.get(role, 0) for frontend in view.frontends.values())


def _waits_for_connections(view: PairView, role: Role) -> bool:
    """Whether open connections of the instance are still let end; silent ones that the kernel has steered stay."""
    return any(
        role in frontend.draining or (frontend.mode != "steer" and frontend.connections.get(role, 0))
        for frontend in view.frontends.values()
    )


def what_serves(view: PairView) -> str:
    """Who can get connections, as the end of a sentence: `backup still serves`."""
    able = [role.value for role in Role if view.instances[role].is_eligible]
    return f"{' and '.join(able)} still serve{'s' if len(able) == 1 else ''}" if able else "nothing serves now"


def gets_traffic(role: Role, view: PairView) -> bool:
    """Whether new connections of every frontend go to the instance."""
    return all(frontend.active is role for frontend in view.frontends.values())


def narrate(role: Role, before: PairView, after: PairView) -> tuple[str, ...]:
    """The steps between two pictures of an instance, in words; those as well that no picture has shown.

    Whoever watches may come to look when a process has ended already, and the next one begun.
    """
    was, seen = before.instances[role], after.instances[role]
    is_next = was.unit.incarnation != seen.unit.incarnation
    is_same = not is_next and was.unit.state is seen.unit.state and was.pid == seen.pid
    cut = _told_cut(was, seen)
    if seen.unit.state is UnitState.STOPPING and seen.pid is not None and not is_same:
        return (_end_of(seen.pid, cut),)
    if is_next and was.pid is not None and was.unit.state is not UnitState.STOPPING:
        ended: str | None = _end_of(was.pid, cut)
    else:
        ended = f"is drained, and {cut}" if cut is not None else None
    begun = f"starts (process {seen.pid})" if is_next and seen.unit.state in _BEGUN else None
    warmth = _warmth(was, seen)
    step = None if is_same and was.is_eligible == seen.is_eligible else _step(seen, connections(after, role))
    is_drained_since = seen.unit.state is UnitState.DRAINING and not is_next
    if is_drained_since:
        steps: tuple[str | None, ...] = (warmth, step, ended)
    elif seen.unit.state is UnitState.STARTING:
        steps = (ended, step, warmth)
    else:
        steps = (ended, begun, warmth, step)
    return tuple(one for one in steps if one is not None)


_BEGUN = (UnitState.READY, UnitState.DRAINING)
"""States of a process whose start was a step before."""


def _step(seen: InstanceView, left: int) -> str | None:
    """How it came to be as it is; None when that is no step.

    Args:
        left: how many connections to it are open.
    """
    match seen.unit.state:
        case UnitState.DRAINING:
            return f"gets no new connections; {left} open one{'' if left == 1 else 's'} may end"
        case UnitState.STOPPING:  # it has ended
            return seen.reason if seen.unit.hook is HookName.POST_STOP else "ends"
        case UnitState.STARTING:
            return f"starts (process {seen.pid})" if seen.pid is not None else None
        case UnitState.READY:
            return "is ready" if seen.is_eligible else f"is ready, but {seen.reason}"
        case UnitState.STOPPED:
            return "is stopped" if seen.unit.lacks is None else f"cannot start {seen.role.value}: {seen.unit.lacks}"
        case UnitState.BACKOFF | UnitState.FAILED:
            return seen.reason


def _warmth(was: InstanceView, seen: InstanceView) -> str | None:
    """That a warm-up has begun, or what came of it, if that is news."""
    if seen.warmup is None:
        return None
    is_known = was.warmup is not None and was.unit.incarnation == seen.unit.incarnation
    if seen.warmup.is_over:
        is_news = not (is_known and was.warmup is not None and was.warmup.is_over)
        return seen.warmup.result() if is_news else None
    return None if is_known else f"is warming up (at most {seen.warmup.of} rounds)"


def _end_of(pid: int, cut: str | None) -> str:
    return f"ends (process {pid})" + (f", and {cut}" if cut is not None else "")


def _told_cut(was: InstanceView, seen: InstanceView) -> str | None:
    """How many connections were cut, if that has become known between the pictures; what ended by itself is no news."""
    if seen.drained is None or seen.drained == was.drained or not seen.drained.cut:
        return None
    return seen.drained.told_cut()


def _is(seen: InstanceView) -> str:
    """Its state as what it does: `is starting`."""
    return "waits for its next launch" if seen.unit.state is UnitState.BACKOFF else f"is {seen.unit.state.value}"


def _without_verb(verdict: Verdict | None, beginning: str) -> Verdict | None:
    """The verdict on an order whose failure is told with that beginning before it."""
    return verdict and Verdict(verdict.done, verdict.message.removeprefix(beginning))


def _judge_old(seen: InstanceView) -> Verdict | None:
    """The verdict on a restart while there is no new process: it may have been called off by later orders."""
    if seen.unit.cause is EndCause.RESTART:
        return None
    if seen.unit.goal is Goal.DOWN:
        return _judge_up(seen)
    return Verdict(False, f"{seen.role.value} was told to stop and to start meanwhile, and runs on")


def _judge_up(seen: InstanceView) -> Verdict | None:
    name, unit = seen.role.value, seen.unit
    if unit.goal is Goal.DOWN:
        return Verdict(False, f"{name} was told to stop meanwhile")
    if seen.is_eligible:
        return Verdict(True, f"{name} is up")
    if unit.state is UnitState.DRAINING and unit.cause is None and seen.health is Health.UP:
        return Verdict(True, f"{name} is up and {seen.reason}")
    if unit.lacks is not None:
        return Verdict(False, unit.lacks)
    if unit.state in (UnitState.BACKOFF, UnitState.FAILED, UnitState.STOPPED):
        reason = seen.reason or ""
        return Verdict(False, reason if reason.startswith("cannot") else f"{name} {reason}")
    return None


def _judge_down(seen: InstanceView) -> Verdict | None:
    if seen.unit.goal is Goal.UP:
        return Verdict(False, f"{seen.role.value} was told to start meanwhile")
    return Verdict(True, f"{seen.role.value} is stopped") if seen.unit.state is UnitState.STOPPED else None


def _judge_out(seen: InstanceView, view: PairView) -> Verdict | None:
    name, unit = seen.role.value, seen.unit
    if unit.rotation is Rotation.IN:
        return Verdict(False, f"{name} was brought back into rotation or stopped meanwhile")
    if unit.state is not UnitState.DRAINING:
        return Verdict(True, f"{name} {_is(seen)} and gets no connections when it is ready")
    if _waits_for_connections(view, seen.role):
        return None
    is_steered = any(frontend.mode == "steer" for frontend in view.frontends.values())
    what = "waits for none of its connections" if is_steered else "has no connections left"
    cut = f"; {seen.drained.told_cut()}" if seen.drained is not None and seen.drained.cut else ""
    return Verdict(True, f"{name} is out of rotation and {what}{cut}")


def _judge_in(seen: InstanceView) -> Verdict | None:
    name = seen.role.value
    if seen.unit.rotation is Rotation.OUT:
        return Verdict(False, f"{name} was taken out of rotation meanwhile")
    if seen.is_eligible:
        return Verdict(True, f"{name} gets connections again")
    return Verdict(True, f"{name} gets connections as soon as it can serve; now it {_is(seen)}")
