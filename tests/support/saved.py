"""A pair as a daemon would save it."""

from __future__ import annotations

from dataclasses import replace

from clojarsd.core.health import CheckRecord, Result
from clojarsd.core.identity import ProcessIdentity
from clojarsd.core.names import ExitStatus, Goal, Health, Incarnation, Role, Rotation, UnitState
from clojarsd.core.restart import Failures
from clojarsd.core.saved import InForce, SavedInstance, SavedPair
from clojarsd.core.unit_events import Exited
from clojarsd.core.unit_facts import Unit
from clojarsd.core.view import LastExit

BOOT = "7a9b5b0e-0f3c-4f6f-9d0c-2b4a61a3b5f1"
NOON, LATER = "2026-11-23T12:00:00.000Z", "2026-11-23T12:05:00.000Z"


def a_unit() -> Unit:
    """One that runs for the third time, out of rotation by order."""
    return Unit(
        goal=Goal.UP,
        state=UnitState.DRAINING,
        rotation=Rotation.OUT,
        incarnation=Incarnation(3),
        ready_at=1234.5,
        failures=Failures(2, (1000.0, 1200.0)),
        last_end=Exited(Incarnation(2), ExitStatus(1, None)),
    )


def an_instance(role: Role = Role.PRIMARY, *, checked: str = "200 in 3 ms") -> SavedInstance:
    """One with everything in it."""
    return SavedInstance(
        unit=a_unit(),
        since=NOON,
        process=ProcessIdentity(901, 123456, BOOT, (66, 4711)),
        release="clojars-web-0.8.1-standalone.jar",
        restarts=2,
        started_at=NOON,
        last_exit=LastExit(ExitStatus(1, None), NOON),
        wanted=Goal.UP,
        goal_by="ann",
        goal_at=NOON,
        records=(CheckRecord(Health.UP, 4, Result(True, checked, 0.003)), CheckRecord()),
        checked_at=(LATER, None),
        in_force=InForce("127.0.0.1", {"http": 8001, "nailgun": 8101}, notify=True, cgroup=True),
        checks=("http /health", "tcp nailgun"),
        noticed=True,
        status_text="all is well",
    )


def a_pair(generation: int = 1, *, checked: str = "200 in 3 ms", saved_at: str = LATER) -> SavedPair:
    """Both instances; no two generations are alike."""
    instances = {role: an_instance(role, checked=checked) for role in Role}
    return SavedPair("clojars", BOOT, generation, instances, saved_at)


def another(pair: SavedPair) -> SavedPair:
    """The pair after something has changed that the next daemon must know."""
    return replace(pair, generation=pair.generation + 1)
