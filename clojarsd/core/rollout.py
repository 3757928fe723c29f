"""Deploy and rollback as a plan: what is true now and what the journal tells in, the next safe move out.

The planner remembers nothing. It is asked before each move, after each failure and by the next daemon when one has
died, and it looks at the facts each time, so a rollout that was cut anywhere goes on from where the pair really is.

Forward, the steps of the wish are taken in their order; `backup` and `primary` are done when the instance runs the
release and may get connections. Back, after a failure, an abort or an answer that did not come: first the link, then
each instance that was touched and does not run the former release, the one that cannot serve first.

What holds at every move, and `broken_rule` finds broken:

- the primary is restarted only when the release has passed every gate on the backup and was approved; in a rollback one
  that serves nobody gets it first, where the backup is the only one that serves: that is what the rollback is for;
- an instance that may get connections is restarted only while the other one may, too;
- after the release is recorded as good nothing goes back;
- before the switch, and after a return, link and instances are what they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from clojarsd.core.names import Role
from clojarsd.core.rollout_facts import (
    BACK,
    FORWARD,
    GATES,
    RESTARTS,
    GoingBack,
    HeldBack,
    Kind,
    Outcome,
    Rollout,
    Seen,
    StepName,
)

MOST_BEGINNINGS = 2
"""How often a step is begun: once, and once more by the daemon after the one that died in it."""
MOST_RETURNS = 4
"""How often an instance is brought back; one that has not stayed there by then is left to its own restarts."""


@dataclass(frozen=True, slots=True)
class Do:
    """Carry the step out: a command, a copy, a wait."""

    step: StepName


@dataclass(frozen=True, slots=True)
class Switch:
    """Let the link name that release; None: take it away."""

    step: StepName
    release: str | None


@dataclass(frozen=True, slots=True)
class Relaunch:
    """Restart the instance into what the link names.

    Attributes:
        alone: the instance cannot serve as it is, so that it does not matter whether the other one can.
        into: the release that it must run then; None: it must rest, because there is none.
        is_there: it serves with that already, as after a death of the daemon: it is only looked at.
    """

    step: StepName
    role: Role
    into: str | None
    alone: bool = False
    is_there: bool = False


@dataclass(frozen=True, slots=True)
class TurnBack:
    """It cannot go on: write down why, and ask again."""

    back: GoingBack


@dataclass(frozen=True, slots=True)
class End:
    """Nothing is left to do."""

    outcome: Outcome


Move: TypeAlias = Do | Switch | Relaunch | TurnBack | End


def next_move(rollout: Rollout, seen: Seen) -> Move:
    """What is to be done now. The rollout has not ended."""
    assert rollout.outcome is None
    return _forward(rollout, seen) if rollout.back is None else _back(rollout, seen)


def why_not_resumed(rollout: Rollout) -> GoingBack | None:
    """Why a rollout that the former daemon has left does not go on but back; None when it goes on.

    What was being built is in nobody's hands any more, and nothing has changed yet; a step in which two daemons have
    died is not given to a third.
    """
    step = rollout.at_step
    if rollout.back is not None or rollout.is_good:
        return None
    if StepName.SWITCH not in rollout.begun:
        last = step if step is not None else rollout.next_step
        return GoingBack(f"clojarsd ended during {last.value}", last)
    if step is not None and rollout.begun[step] >= MOST_BEGINNINGS and step is not StepName.APPROVE:
        return GoingBack(f"clojarsd ended twice during {step.value}", step)
    return None


def _forward(rollout: Rollout, seen: Seen) -> Move:
    release = rollout.release
    if StepName.SWITCH in rollout.done and not rollout.is_good and seen.link != release:
        named = "nothing" if seen.link is None else seen.link
        return TurnBack(GoingBack(f"somebody has changed the link, which names {named} now", rollout.next_step))
    over = {*rollout.done, *(rollout.failed if rollout.is_good else ())}  # what comes after is only told when it fails
    step = next((step for step in rollout.wish.steps if step not in over), None)
    if step is None:
        return End(Outcome.DONE)
    if step is StepName.SWITCH:  # also when the link is there: who died in between may not have recorded it
        return Switch(step, release)
    if step not in RESTARTS:
        return Do(step)
    role = RESTARTS[step]
    if seen.instances[role].serves(release):
        return Relaunch(step, role, release, is_there=True)
    if seen.is_eligible(role) and not seen.is_eligible(role.other):
        if _may_begin_with_primary(rollout) and role is Role.BACKUP:
            return Relaunch(StepName.PRIMARY, Role.PRIMARY, release, alone=True)
        why = f"{role.other.value} cannot take over while {role.value} is restarted"
        return TurnBack(GoingBack(why, step))
    return Relaunch(step, role, release, alone=not seen.is_eligible(role))


def _may_begin_with_primary(rollout: Rollout) -> bool:
    """Whether a primary that serves nobody may get the release before the backup: one that was good before."""
    return rollout.wish.kind is Kind.ROLLBACK and StepName.PRIMARY not in rollout.done


def _back(rollout: Rollout, seen: Seen) -> Move:
    """The way back. What has failed on it is not tried again."""
    assert rollout.back is not None
    returned = Outcome.ABORTED if rollout.back.is_abort else Outcome.FAILED
    if not rollout.has_changed:
        return End(returned)
    previous = rollout.wish.previous
    if seen.link != previous:
        if StepName.SWITCH_BACK in rollout.failed:
            return End(Outcome.STUCK)
        return Switch(StepName.SWITCH_BACK, previous)
    astray = [role for role in Role if rollout.touched(role) and not is_back(rollout, seen, role)]
    open_to = [role for role in astray if _may_return(rollout, BACK[role])]
    for role in sorted(open_to, key=lambda role: (seen.is_eligible(role), role is Role.PRIMARY)):
        if not seen.is_eligible(role) or seen.is_eligible(role.other) or previous is None:
            alone = not seen.is_eligible(role) or previous is None
            return Relaunch(BACK[role], role, previous, alone=alone)
    return End(Outcome.STUCK if astray else returned)


def _may_return(rollout: Rollout, step: StepName) -> bool:
    return step not in rollout.failed and rollout.begun.get(step, 0) < MOST_RETURNS


def is_back(rollout: Rollout, seen: Seen, role: Role) -> bool:
    """Whether the instance runs what it ran before; where there was nothing, whether it does not run the release."""
    previous, there = rollout.wish.previous, seen.instances[role]
    return there.release != rollout.release if previous is None else there.serves(previous)


def held_back(rollout: Rollout, role: Role) -> HeldBack | None:
    """What an instance that must be launched now gets instead of what the link names; None: that.

    Between the switch and the approval the link is ahead of what the primary may run, and on the way back of what both
    may: one that dies meanwhile comes back with what was there before. Where the link could not be brought back, that
    stays so for a primary that never had the release, until the link is brought elsewhere or another rollout begins.
    """
    wish, is_untouched = rollout.wish, role is Role.PRIMARY and not rollout.touched(role)
    if not rollout.has_changed:
        return None
    if rollout.outcome is Outcome.STUCK and is_untouched:
        return HeldBack(wish.previous, f"{wish.text} could not be taken back", only_from=rollout.release)
    if rollout.outcome is None and (rollout.back is not None or is_untouched):
        return HeldBack(wish.previous, f"{wish.text} is under way")
    return None


def broken_rule(rollout: Rollout, seen: Seen, move: Move) -> str | None:
    """Which rule of this module the move would break; None when it breaks none. Asked before each move is made."""
    if rollout.is_good and not isinstance(move, Do | End):
        return "the release is good, and nothing goes back"
    if isinstance(move, Switch) and move.release == rollout.release and _missing(rollout, StepName.SWITCH):
        return "the link is switched before the release is there"
    if isinstance(move, Relaunch):
        is_free = move.is_there or move.into is None or not seen.is_eligible(move.role)
        if not is_free and not seen.is_eligible(move.role.other):
            return f"{move.role.value} is the only one that serves"
        is_first = move.alone and _may_begin_with_primary(rollout) and not seen.is_eligible(Role.PRIMARY)
        is_proved = rollout.approved_by is not None and not _missing(rollout, StepName.PRIMARY)
        if move.step is StepName.PRIMARY and not is_first and not is_proved:
            return "the primary is restarted before the release has proved itself"
    return None


def _missing(rollout: Rollout, step: StepName) -> bool:
    """Whether something that the wish has before that step is not done."""
    before = rollout.wish.steps[: rollout.wish.steps.index(step)]
    return any(one not in rollout.done for one in before)


def why_not_abort(rollout: Rollout) -> str | None:
    """Why it is too late to abort; None when it is not."""
    if rollout.is_good:
        return f"{rollout.release} is recorded as good already; clojarsctl rollback brings the former release back"
    if rollout.at_step is StepName.GOOD:
        return f"{rollout.release} is just being recorded as good; clojarsctl rollback brings the former release back"
    if rollout.back is not None:
        return f"it is on its way back already: {rollout.back.why}"
    return None


def steps_for(
    kind: Kind, *, from_tag: bool, tests: bool, asks: bool, smokes: bool, archives: bool, gates: frozenset[StepName]
) -> tuple[StepName, ...]:
    """The steps of a rollout, in their order.

    Args:
        from_tag: whether it begins with a checkout.
        gates: those of the steps that have commands, by the settings.
    """
    left_out = set()
    if kind is Kind.ROLLBACK:
        left_out |= {StepName.CHECKOUT, StepName.TEST, StepName.BUILD, StepName.INSTALL, StepName.ARCHIVE}
    if not from_tag:
        left_out |= {StepName.CHECKOUT, StepName.TEST, StepName.BUILD}
    optional = {
        StepName.TEST: tests,
        StepName.APPROVE: asks,
        StepName.SMOKE: smokes,
        StepName.ARCHIVE: archives,
        **{gate: gate in gates for gate in GATES},
    }
    left_out |= {step for step, is_wanted in optional.items() if not is_wanted}
    return tuple(step for step in FORWARD if step not in left_out)
