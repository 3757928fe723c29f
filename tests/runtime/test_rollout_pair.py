"""Restarts for a rollout, by the real orders over real runners: what they come to, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from clojarsd.core.errors import CommandFailed, LaunchFailed, Refused
from clojarsd.core.names import ExitStatus, LaunchStage, Role, UnitState
from clojarsd.core.rollout import Relaunch
from clojarsd.core.rollout_facts import Outcome, StepName
from clojarsd.core.unit_events import Start, Stop
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.rollout_pair import PairOfRollout
from clojarsd.runtime.rollout_work import RolloutWork
from clojarsd.system.log_since import LastLines
from tests.support.units import BAD, Units
from tests.support.waiting import PATIENCE, until

P, B = Role.PRIMARY, Role.BACKUP
RUNS = "1.jar"
"""What every process of `Units` was launched with."""


class Desk:
    """A pair that serves, and what a rollout does to it."""

    def __init__(self, units: Units, orders: Orders) -> None:
        self.units = units
        self.orders = orders
        self.work = RolloutWork()
        self.listened: list[Role] = []
        self.asked: list[tuple[Role, int]] = []
        self.pair = self.pair_with_soak(0.0)

    def pair_with_soak(self, soak: float) -> PairOfRollout:
        return PairOfRollout(self.orders, self.units.board, "ann", soak, lambda role: 0.05, self.listen)

    @asynccontextmanager
    async def listen(self, role: Role) -> AsyncIterator[LastLines]:
        self.listened.append(role)
        since = len(self.units.launched[role])

        async def last_lines(count: int) -> Sequence[str]:
            self.asked.append((role, count))
            return [f"launch {n} of {role.value}" for n in range(since, len(self.units.launched[role]))]

        yield last_lines

    async def relaunch(self, step: StepName, role: Role, into: str | None = RUNS, **how: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.pair.relaunch(Relaunch(step, role, into, **how), self.work)

    async def failure(self, step: StepName, role: Role, into: str | None = RUNS, **how: Any) -> CommandFailed:
        return await caught(self.relaunch(step, role, into, **how))

    async def told(self) -> list[str]:
        self.work.end(Outcome.DONE, "")
        return [line["step"]["message"] async for line in self.work.lines()]


async def caught(watching: Coroutine[Any, Any, None]) -> CommandFailed:
    with pytest.raises(CommandFailed) as failed:
        await watching
    return failed.value


@asynccontextmanager
async def a_desk() -> AsyncIterator[Desk]:
    async def nothing(by: str = "") -> None:
        """Neither configuration nor disk matter here."""

    units = Units()
    units.is_lively = units.traffic.calls_back_at_once = True
    orders = Orders(units.runners, units.board, lambda failures: 5.0, nothing, nothing)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        running = group.create_task(orders.run())
        for role in Role:
            units.runners[role].order(Start(), "test")
        await units.board.until(lambda view: all(seen.is_eligible for seen in view.instances.values()))
        yield Desk(units, orders)
        running.cancel()
    for runner in units.runners.values():
        runner.abandon()
    assert units.bugs == []


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with a_desk() as desk:
        yield desk


async def test_a_backup_is_restarted_and_watched(desk: Desk) -> None:
    await desk.relaunch(StepName.BACKUP, B)
    assert len(desk.units.launched[B]) == 2
    told = await desk.told()
    assert (told[0], told[-2:]) == ("backup is to be restarted", ["backup is ready", "backup is watched for 0 s"])


async def test_a_primary_is_restarted_and_not_watched_alone(desk: Desk) -> None:
    await desk.relaunch(StepName.PRIMARY, P)
    assert len(desk.units.launched[P]) == 2
    assert "primary is watched for 0 s" not in await desk.told()
    await desk.pair.watch_both()


async def test_one_that_serves_with_it_already_is_only_looked_at(desk: Desk) -> None:
    await desk.relaunch(StepName.BACKUP, B, is_there=True)
    assert len(desk.units.launched[B]) == 1
    assert await desk.told() == ["backup is watched for 0 s"]


async def test_one_that_comes_up_with_something_else_has_failed(desk: Desk) -> None:
    failed = await desk.failure(StepName.BACKUP, B, "2.jar")
    assert str(failed) == "backup runs 1.jar instead of 2.jar"
    assert failed.last_lines == ("launch 1 of backup",)  # and nothing of the one before
    assert desk.asked == [(B, 20)]


async def test_one_that_does_not_come_up(desk: Desk) -> None:
    desk.units.launch_fails = LaunchFailed(LaunchStage.EXECUTE, "java: no such command")
    failed = await desk.failure(StepName.BACKUP, B)
    assert str(failed) == "cannot start backup: running its command: java: no such command"
    assert desk.units.seen(P).is_eligible


async def test_one_that_falls_over_while_it_is_watched(desk: Desk) -> None:
    desk.pair = desk.pair_with_soak(3600.0)
    async with asyncio.TaskGroup() as group:
        failing = group.create_task(desk.failure(StepName.BACKUP, B))
        await until(lambda: len(desk.units.launched[B]) == 2 and desk.units.seen(B).is_eligible)
        desk.units.process(B).heed = lambda: None
        desk.units.exit(B, ExitStatus(1, None))
    assert str(failing.result()) == "backup has ended: exited with 1"


async def test_one_that_is_unwell_for_longer_than_it_may(desk: Desk) -> None:
    desk.pair = desk.pair_with_soak(0.05)
    async with asyncio.TaskGroup() as group:
        failing = group.create_task(desk.failure(StepName.BACKUP, B))
        await until(lambda: len(desk.units.launched[B]) == 2 and desk.units.seen(B).is_eligible)
        desk.units.check(B, BAD)
    assert str(failing.result()).startswith("backup does not serve: ")


@pytest.mark.parametrize("role", Role)
async def test_one_that_ends_while_both_are_watched_is_told_with_its_own_words(desk: Desk, role: Role) -> None:
    desk.pair = desk.pair_with_soak(3600.0)
    async with asyncio.TaskGroup() as group:
        failing = group.create_task(caught(desk.pair.watch_both()))
        await until(lambda: desk.listened == list(Role))
        desk.units.exit(role, ExitStatus(1, None))
    assert str(failing.result()) == f"{role.value} has ended: exited with 1"
    assert desk.asked == [(role, 20)]


async def test_a_backup_that_falls_over_during_the_question_is_told_with_its_last_words(desk: Desk) -> None:
    async with asyncio.TaskGroup() as group:
        failing = group.create_task(caught(desk.pair.until_answered(lambda: False)))
        await until(lambda: desk.listened == [B])
        desk.units.exit(B, ExitStatus(1, None))
    assert str(failing.result()) == "backup has fallen over: exited with 1"
    assert desk.asked == [(B, 20)]


async def test_the_last_one_that_serves_is_not_restarted_unless_it_cannot_serve_anyway(desk: Desk) -> None:
    desk.units.runners[P].order(Stop(), "test")
    await desk.units.board.until(lambda view: view.instances[P].unit.state is UnitState.STOPPED)
    with pytest.raises(Refused, match=r"^cannot restart backup: primary could not take over, it is stopped"):
        await desk.relaunch(StepName.BACKUP, B)
    assert len(desk.units.launched[B]) == 1
    await desk.relaunch(StepName.BACKUP, B, alone=True)
    assert len(desk.units.launched[B]) == 2


async def test_one_that_is_to_rest_because_there_is_no_release_any_more(desk: Desk) -> None:
    desk.units.lacking = "no release: clojarsctl deploy TAG"
    await desk.relaunch(StepName.BACKUP_BACK, B, None, alone=True)
    assert desk.units.seen(B).unit.state is UnitState.STOPPED
    assert len(desk.units.launched[B]) == 1


async def test_a_release_that_goes_meanwhile_fails_the_restart(desk: Desk) -> None:
    async with asyncio.TaskGroup() as group:
        desk.units.is_lively = False
        desk.units.process(B).heed = lambda: None
        failing = group.create_task(desk.failure(StepName.BACKUP, B))
        await until(lambda: desk.units.seen(B).unit.state is UnitState.STOPPING)
        desk.units.lacking = "the current release 1.jar is missing"
        desk.units.exit(B, ExitStatus(143, None))
    assert str(failing.result()) == "the current release 1.jar is missing"


async def test_an_operator_who_stops_it_meanwhile_fails_the_restart(desk: Desk) -> None:
    async with asyncio.TaskGroup() as group:
        desk.units.is_lively = False
        failing = group.create_task(desk.failure(StepName.BACKUP, B))
        await until(lambda: desk.units.seen(B).unit.state is UnitState.STARTING)
        desk.units.runners[B].order(Stop(), "bob")
        desk.units.exit(B, ExitStatus(143, None))
    assert str(failing.result()) == "backup was told to stop meanwhile"


async def test_who_is_cancelled_leaves_the_restart_to_itself(desk: Desk) -> None:
    desk.units.is_lively = False
    restarting = asyncio.ensure_future(desk.relaunch(StepName.BACKUP, B))
    await until(lambda: desk.units.seen(B).unit.state is UnitState.STARTING)
    restarting.cancel()
    await asyncio.wait((restarting,))
    desk.units.serve(B)
    await desk.units.board.until(lambda view: view.instances[B].is_eligible)
    await until(lambda: desk.orders.under_way is None)
