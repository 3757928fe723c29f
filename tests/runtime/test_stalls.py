"""Both watches over a pair of units: who may be rescued, and what is left where nothing can be watched."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Role
from clojarsd.core.settings import StallSettings
from clojarsd.core.unit_events import Start, Stop
from clojarsd.runtime.relay_launch import Owner
from clojarsd.runtime.stalls import Stalls
from clojarsd.system.own_connections import OwnConnections
from tests.support.fronts import descriptors_left
from tests.support.units import Units
from tests.support.waiting import until

P, B = Role.PRIMARY, Role.BACKUP
STALLED = "it has not accepted 1 waiting connection for 0.5 s"


@dataclass
class FakeRelay:
    """A relay process that has no frontends."""

    plans: Mapping[str, FrontendPlan] = field(default_factory=dict)
    is_outdated: bool = False

    def adopt(self, frontend: str, role: Role, clients: Sequence[socket.socket]) -> None:
        raise AssertionError


@pytest.fixture
async def units() -> AsyncIterator[Units]:
    made = Units()
    for role in Role:
        made.runners[role].order(Start(), "root")
        made.serve(role)
    yield made
    assert made.bugs == []


@contextmanager
def stalls_of(units: Units, relay: FakeRelay | None = None) -> Iterator[Stalls]:
    with Stalls.open(
        units.runners,
        units.board,
        units.history,
        relay or FakeRelay(),
        lambda role: (1,),
        "/var/lib/x",
        OwnConnections(),
        Owner(),
    ) as stalls:
        stalls.configure(StallSettings())
        yield stalls


async def test_who_waits_may_be_rescued_while_the_other_one_may_serve(units: Units) -> None:
    relay = FakeRelay()
    with stalls_of(units, relay) as stalls:
        may: Callable[[], bool] = stalls.watches[P].may_rescue
        units.runners[P].stalled(units.runners[P].unit.incarnation, STALLED)
        assert may()
        relay.is_outdated = True
        assert not may(), "it may not know what it is told"
        relay.is_outdated = False
        units.runners[B].stalled(units.runners[B].unit.incarnation, STALLED)
        assert not may()
        units.runners[B].stalled(units.runners[B].unit.incarnation, None)
        units.traffic.calls_back_at_once = True
        units.runners[P].order(Stop(), "root")
        assert not may(), "it is being ended"


async def test_a_process_is_watched_from_its_proof_to_its_end(units: Units) -> None:
    with stalls_of(units) as stalls:
        watch = stalls.watches[P]
        stalls.proved(P)
        target = watch._listeners.target
        assert target is not None
        assert (target.incarnation, target.leader, target.ports) == (1, units.process(P).pid, (1,))
        assert str(target.mark) == "/var/lib/x:primary:1"
        stalls.gone(P)
        assert watch._listeners.target is None


async def test_without_the_kernels_answers_nothing_is_watched_and_nothing_breaks(units: Units) -> None:
    with descriptors_left(0) as restore, stalls_of(units) as stalls:
        restore()
        assert not stalls.watches
        stalls.proved(P)
        stalls.gone(P)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(stalls.run())
            await until(lambda: not running.done(), "it runs")
            running.cancel()
