"""Warm-ups of one instance: rounds, their end, and whom they must not keep waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import structlog

from clojarsd.core.health import Result
from clojarsd.core.names import Goal, Health, Incarnation, Role, Rotation, UnitState
from clojarsd.core.saved import InForce
from clojarsd.core.unit import Unit
from clojarsd.core.view import DaemonView
from clojarsd.core.warmup import Outcome, Warmup
from clojarsd.runtime.status import Board
from clojarsd.runtime.unit_parts import PlannedWarmup
from clojarsd.runtime.warmer import Warmer
from tests.support.control import instance
from tests.support.waiting import PATIENCE, until

FIRST, SECOND = Incarnation(1), Incarnation(2)
BOUND = InForce("127.0.0.1", {"http": 8002})
LONG = 3600.0


class Asked:
    """What is asked, which answers as the test says: seconds, or why not; the last word holds on. None: not at all."""

    def __init__(self, *answers: float | str | Exception | None) -> None:
        self.paths: list[str] = []
        self.within: set[float] = set()
        self.bound: list[InForce] = []
        self.is_open = False
        self._answers = list(answers)

    @asynccontextmanager
    async def __call__(self, bound: InForce) -> AsyncIterator[Asked]:
        self.bound.append(bound)
        self.is_open = True
        try:
            yield self
        finally:
            self.is_open = False

    async def get(self, path: str, within: float) -> Result:
        self.paths.append(path)
        self.within.add(within)
        await asyncio.sleep(0)
        answer = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await asyncio.Event().wait()
        return Result(False, answer, 0.0) if isinstance(answer, str) else Result(True, "200", answer or 0.0)


class Rig:
    """A warmer of the backup, and what it tells."""

    def __init__(self) -> None:
        self.told: list[tuple[Incarnation, Warmup]] = []
        self.board = Board("demo", DaemonView("1", 1, "then", "x"), lambda: None)
        self.publish()
        self.warmer = Warmer(Role.BACKUP, self, self.board)

    def publish(self, *, other_serves: bool = True, rotation: Rotation = Rotation.IN) -> None:
        unit = Unit(Goal.UP, UnitState.STARTING, rotation, FIRST)
        self.board.publish(replace(instance(Role.BACKUP), unit=unit))
        self.board.publish(replace(instance(Role.PRIMARY), health=Health.UP if other_serves else Health.DOWN))

    def warming(self, incarnation: Incarnation, warmup: Warmup) -> None:
        self.told.append((incarnation, warmup))

    def begin(
        self, asked: Asked, *paths: str, incarnation: Incarnation = FIRST, rounds: int = 3, timeout: float = LONG
    ) -> None:
        self.warmer.begin(incarnation, PlannedWarmup(paths or ("/",), rounds, timeout, asked), BOUND)

    async def over(self) -> Warmup:
        await until(lambda: self.told and self.told[-1][1].is_over, "the end")
        return self.told[-1][1]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        task = group.create_task(rig.warmer.run())
        yield rig
        task.cancel()


async def test_each_round_asks_each_request_and_is_told(rig: Rig) -> None:
    asked = Asked(0.04, 0.02, 0.002, 0.004, 0.002, 0.004)
    rig.begin(asked, "/", "/search")
    over = await rig.over()
    assert asked.paths == ["/", "/search"] * 3
    assert (asked.bound, asked.within, asked.is_open) == ([BOUND], {LONG / 4}, False)
    assert [(incarnation, seen.rounds) for incarnation, seen in rig.told] == [(FIRST, 1), (FIRST, 2), (FIRST, 3)]
    assert [seen.latency for _, seen in rig.told] == pytest.approx([0.03, 0.003, 0.003])
    assert (over.outcome, over.of) == (Outcome.ROUNDS_DONE, 3)
    assert over.first == pytest.approx(0.03)


async def test_it_ends_as_soon_as_latency_has_settled(rig: Rig) -> None:
    asked = Asked(0.003)
    rig.begin(asked, rounds=1000)
    assert (await rig.over()).outcome is Outcome.SETTLED
    assert len(asked.paths) == 10


async def test_failures_are_told_and_the_last_round_decides(rig: Rig) -> None:
    rig.begin(Asked("/ answered 503", 0.01), rounds=2)
    assert (await rig.over()).outcome is Outcome.ROUNDS_DONE
    assert rig.told[0][1].failure == "/ answered 503"
    rig.begin(Asked(0.01, "/ answered 503"), incarnation=SECOND, rounds=2)
    await until(lambda: rig.told[-1][0] == SECOND, "the second")
    over = await rig.over()
    assert (over.outcome, over.failure) == (Outcome.FAILED, "/ answered 503")


async def test_time_is_limited(rig: Rig) -> None:
    rig.begin(Asked(None), timeout=0.05)
    over = await rig.over()
    assert (over.outcome, over.failure) == (Outcome.TIMED_OUT, "not one round was through within 0.05 s")


async def test_a_request_that_breaks_here_fails_alone(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logs:
        rig.begin(Asked(RuntimeError("oh"), 0.01), rounds=2)
        assert (await rig.over()).outcome is Outcome.ROUNDS_DONE
    assert rig.told[0][1].failure == "/: the request itself broke (RuntimeError: oh)"
    assert [line["event"] for line in logs] == ["warm_request_broke"]


async def test_nobody_is_kept_waiting_while_nobody_else_serves(rig: Rig) -> None:
    rig.publish(other_serves=False)
    asked = Asked(None)
    rig.begin(asked)
    assert (await rig.over()).outcome is Outcome.CUT_SHORT
    assert not asked.is_open


@pytest.mark.parametrize("rotation", Rotation)
async def test_of_two_that_become_warm_at_a_time_only_the_primary_is_needed(rig: Rig, rotation: Rotation) -> None:
    """It is cut short in that very moment, unless it is out of rotation."""
    unit = Unit(Goal.UP, UnitState.STARTING, rotation, FIRST, warming_since=1.0)
    rig.board.publish(replace(instance(Role.PRIMARY), unit=unit))
    asked = Asked(None)
    rig.begin(asked)
    if rotation is Rotation.OUT:
        assert (await rig.over()).outcome is Outcome.CUT_SHORT
        return
    await until(lambda: asked.paths, "a request")
    rig.publish()
    rig.publish(other_serves=False)
    assert (await rig.over()).outcome is Outcome.CUT_SHORT


@pytest.mark.parametrize("rotation", Rotation)
async def test_it_is_cut_short_when_the_other_ceases_to_serve(rig: Rig, rotation: Rotation) -> None:
    """Unless it is out of rotation, so that clients would not come to it anyway; they may later."""
    asked = Asked(0.01, None)
    rig.publish(rotation=rotation)
    rig.begin(asked)
    await until(lambda: len(asked.paths) == 2, "the second round")
    assert not rig.told[-1][1].is_over
    rig.publish(other_serves=False, rotation=rotation)
    if rotation is Rotation.OUT:
        for _ in range(10):
            await asyncio.sleep(0)
        assert asked.is_open
        rig.publish(other_serves=False)
    over = await rig.over()
    assert (over.outcome, over.rounds, over.latency) == (Outcome.CUT_SHORT, 1, 0.01)


@pytest.mark.parametrize("what", ["end", "another"])
async def test_what_is_called_off_tells_nothing_more(rig: Rig, what: str) -> None:
    asked, other = Asked(None), Asked(0.01)
    rig.begin(asked)
    await until(lambda: asked.paths, "a request")
    act: Callable[[], None] = rig.warmer.end if what == "end" else lambda: rig.begin(other, incarnation=SECOND)
    act()
    await until(lambda: not asked.is_open, "the end of the first")
    if what == "another":
        await rig.over()
    assert {incarnation for incarnation, _ in rig.told} <= {SECOND}
