"""What people are told of a rollout: what cannot be done, how it has ended, and what holds then."""

from __future__ import annotations

from clojarsd.core.names import Role
from clojarsd.core.progress import what_serves
from clojarsd.core.rollout_facts import DOING, GATES, Kind, Outcome, Rollout, StepName, Wish
from clojarsd.core.view import PairView

WITH_COMMANDS = frozenset({StepName.CHECKOUT, StepName.TEST, StepName.BUILD, StepName.SMOKE, *GATES})
"""The steps whose output is in the log of the rollout."""


def cannot(wish: Wish) -> str:
    """`cannot deploy 1.2.0`, `cannot roll back to x.jar`."""
    if wish.kind is Kind.ROLLBACK:
        return f"cannot roll back to {wish.release}"
    return f"cannot deploy {wish.tag if wish.tag is not None else wish.artifact}"


def how_it_ended(rollout: Rollout, outcome: Outcome, view: PairView, log: str) -> str:
    """The sentence at the end.

    Args:
        log: where the whole output of its commands is.
    """
    wish = rollout.wish
    if outcome is Outcome.DONE:
        instead = f" instead of {wish.previous}" if wish.previous not in (None, rollout.release) else ""
        return f"{wish.text} is done and recorded as good: primary and backup run {rollout.release}{instead}"
    back = rollout.back
    assert back is not None
    if back.is_abort:
        begin = f"{wish.text} was given up while {DOING[back.step]}: {back.why}"
    else:
        begin = f"{cannot(wish)}: {DOING[back.step]}: {back.why}"
    whole = f"; whole log: {log}" if WITH_COMMANDS.intersection(rollout.begun) else ""
    return f"{begin}; {_what_holds(rollout, outcome, view)}{whole}"


def _what_holds(rollout: Rollout, outcome: Outcome, view: PairView) -> str:
    previous = rollout.wish.previous
    serves = what_serves(view)
    if outcome is Outcome.STUCK:
        return f"not everything could be brought back: {'; '.join(_where(view, role) for role in Role)}; {serves}"
    if not rollout.has_changed:
        return f"nothing was changed, {serves}" + (f", with {previous}" if previous is not None else "")
    if previous is None:
        return "there is no release, as before"
    touched = [role.value for role in Role if rollout.touched(role)]
    if not touched:
        return f"the link names {previous}, as before, and no instance was touched, {serves}"
    names = " and ".join([", ".join(["the link", *touched[:-1]]), *touched[-1:]])
    left = "" if "primary" in touched else "the primary was not touched, "
    return f"{names} are back at {previous}, {left}{serves}"


def _where(view: PairView, role: Role) -> str:
    seen = view.instances[role]
    return f"{role.value} is {seen.unit.state.value}" + (f" with {seen.release}" if seen.release is not None else "")
