"""What a daemon that begins makes of what an earlier one left: the saved state, and the processes that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from clojarsd.core.health import CheckRecord
from clojarsd.core.identity import ProcessIdentity
from clojarsd.core.names import NO_INCARNATION, Goal, Health, Incarnation, Role, UnitState
from clojarsd.core.saved import InForce, SavedInstance, SavedPair
from clojarsd.core.unit_facts import Unit, UnitPolicy
from clojarsd.core.warmup import MARGIN

Found: TypeAlias = Mapping[Role, Sequence[tuple[Incarnation, ProcessIdentity]]]
"""The main processes of earlier launches by their marks, the latest incarnation of each role first."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is known of one role's processes that no state speaks of.

    Attributes:
        in_force: what the settings would launch it with.
        checks: how many there are.
        start_timeout: seconds that it has to prove itself.
        serves: whether it gets connections now, because the relay process was told so.
    """

    in_force: InForce
    checks: int
    start_timeout: float
    serves: bool


@dataclass(frozen=True, slots=True)
class Adoption:
    """Where a daemon begins.

    Attributes:
        instances: what to take up; a role that is missing begins anew.
        leftovers: processes of launches that are over, which are to be ended.
        notes: what did not fit together, in words.
    """

    instances: Mapping[Role, SavedInstance]
    leftovers: tuple[tuple[Role, Incarnation], ...]
    notes: tuple[str, ...]


def adopt(
    saved: SavedPair | None,
    running: Found,
    expected: Mapping[Role, Expectation],
    now: float,
    at: str,
) -> Adoption:
    """What to take up of the saved state, if there is one that can be used, and of the processes that were found.

    Args:
        saved: as it holds in this boot.
        running: what was found among all processes.
        now: monotonic instant; `at`: the same for people (UTC).
    """
    instances, leftovers, notes = dict[Role, SavedInstance](), list[tuple[Role, Incarnation]](), list[str]()
    for role in Role:
        before = saved.instances[role] if saved is not None else None
        found = list(running.get(role, ()))
        newest = found[0][0] if found else NO_INCARNATION
        known = before.unit.incarnation if before is not None else NO_INCARNATION
        if before is not None and newest <= known:
            before = _with_process(before, dict(reversed(found)))
            if saved is not None and saved.ending and before.unit.has_process and newest != known:
                before = _at_rest(before)
            instances[role] = before
            kept = known if before.unit.has_process else None
        elif found:
            kept = newest
            instances[role] = _unknown(before, *found[0], expected[role], now, at)
            notes.append(f"{role.value} runs as process {found[0][1].pid}, of which the state knows nothing")
        else:
            kept = None
        leftovers += [(role, incarnation) for incarnation, _ in found if incarnation != kept]
    return Adoption(instances, tuple(leftovers), tuple(notes))


def resumed(unit: Unit, now: float, policy: UnitPolicy) -> Unit:
    """The unit as the next daemon begins with it: its deadline goes on, but never passed for want of a daemon alone.

    A hook is run again, from its beginning, and has its whole time again; so has a warm-up. A start whose time was over
    while nobody was there to see how far it came has it again, too: it may long be up.
    """
    if unit.deadline is None:
        return unit
    if unit.hook is not None:
        return replace(unit, deadline=now + policy.hooks.get(unit.hook, policy.start_timeout))
    if unit.warming_since is not None:
        return replace(unit, warming_since=now, deadline=now + (policy.warmup or 0.0) + MARGIN)
    if unit.state is UnitState.STARTING and unit.deadline <= now:
        return replace(unit, deadline=now + policy.start_timeout)
    return unit


def _with_process(before: SavedInstance, found: Mapping[Incarnation, ProcessIdentity]) -> SavedInstance:
    """The state with the process that it should name: the daemon may have died between making and saving it."""
    if before.unit.has_process and before.process is None:
        return replace(before, process=found.get(before.unit.incarnation))
    return before


def _at_rest(before: SavedInstance) -> SavedInstance:
    """An instance that ended with a daemon that was ending it: it was no failure, and nothing of it goes on."""
    unit = Unit(rotation=before.unit.rotation, incarnation=before.unit.incarnation)
    gone = replace(before, unit=unit, process=None, started_at=None, in_force=None, noticed=False, status_text=None)
    return replace(gone, launched_at=None, start_seconds=None, cds=None)


def _unknown(
    before: SavedInstance | None,
    incarnation: Incarnation,
    process: ProcessIdentity,
    expected: Expectation,
    now: float,
    at: str,
) -> SavedInstance:
    """A process of which only its mark tells: it is ready if it serves, else it has to prove itself.

    Nothing that was saved of an earlier process holds for it. It was launched after the state was saved, so whoever
    wanted the instance down then has wanted it up since.
    """
    unit = Unit(
        goal=Goal.UP,
        state=UnitState.READY if expected.serves else UnitState.STARTING,
        incarnation=incarnation,
        deadline=None if expected.serves else now + expected.start_timeout,
        ready_at=now if expected.serves else None,
    )
    if before is not None:
        unit = replace(unit, rotation=before.unit.rotation, failures=before.unit.failures)
    record = CheckRecord(Health.UP if expected.serves else Health.UNKNOWN)
    fresh = SavedInstance(
        unit=unit,
        since=at,
        process=process,
        records=(record,) * expected.checks,
        checked_at=(None,) * expected.checks,
        in_force=expected.in_force,
    )
    if before is None:
        return fresh
    kept = replace(fresh, restarts=before.restarts, last_exit=before.last_exit)
    if before.wanted is Goal.DOWN:
        return kept
    return replace(kept, goal_by=before.goal_by, goal_at=before.goal_at)
