"""A deployer with real journals on a real disk, over a pair and steps that exist on paper only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from clojarsd.core.errors import Failed
from clojarsd.core.history import stamp
from clojarsd.core.names import Goal, Health, Incarnation, Role, UnitState
from clojarsd.core.rollout import Relaunch, steps_for
from clojarsd.core.rollout_facts import GATES, Kind, Rollout, StepName, Wish
from clojarsd.core.rollout_journal import Record
from clojarsd.core.rollout_view import Question
from clojarsd.core.unit import Unit
from clojarsd.core.view import DaemonView, InstanceView
from clojarsd.runtime.deployer import Deployer, Facts
from clojarsd.runtime.rollout_journals import Journals
from clojarsd.runtime.rollout_record import RolloutRecord
from clojarsd.runtime.rollout_watch import until_answered
from clojarsd.runtime.rollout_work import RolloutWork
from clojarsd.runtime.status import Board
from tests.support.units import FakeHistory
from tests.support.waiting import PATIENCE, until

OLD, NEW = "old.jar", "new.jar"
AT = "2026-11-28T12:00:00.000Z"
ID = "20261128-120000"
ALL = steps_for(Kind.DEPLOY, from_tag=True, tests=True, asks=True, smokes=True, archives=True, gates=frozenset(GATES))
AUTOMATIC = tuple(step for step in ALL if step is not StepName.APPROVE)


def make_wish(**changes: Any) -> Wish:
    """A deploy with every step."""
    wish = Wish(ID, Kind.DEPLOY, "1.2.0", "c0ffee", None, None, OLD, "ann", AT, ALL)
    return replace(wish, **changes)


def serving(role: Role, release: str | None, **changes: Any) -> InstanceView:
    """An instance that serves with that release, but for the changes; `state` stands for that of its unit."""
    state = changes.pop("state", UnitState.READY)
    goal = changes.pop("goal", Goal.UP)
    unit = Unit(goal=goal, state=state, incarnation=Incarnation(changes.pop("incarnation", 1)))
    pid = 901 if unit.has_process else None
    view = InstanceView(role, role.value, unit, Health.UP, pid, AT, 0, None, None, release, {"http": 8001}, ())
    return replace(view, **changes)


def make_board(release: str | None = OLD) -> Board:
    """The picture of a pair that serves with that release; None: that has none and rests."""
    board = Board("demo", DaemonView("1", 1, AT, "/etc/clojarsd.toml"), lambda: release)
    for role in Role:
        at_rest: dict[str, Any] = {"state": UnitState.STOPPED, "reason": "no release"} if release is None else {}
        board.publish(serving(role, release, **at_rest))
    return board


class SlowJournals(Journals):
    """Journals on a disk that takes its time, and not every record.

    Attributes:
        refused: why the disk does not take a record; None when it does.
        wanted, written: the records that were to be written, and those that were.
        may_begin, may_write, may_end: what the disk waits for.
    """

    def __init__(self, directory: Path, logs: Path) -> None:
        super().__init__(directory, logs)
        self.refused: Callable[[Record], str | None] = lambda record: None
        self.written: list[Record] = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.wanted: list[Record] = []
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.is_ending = False
        self.may_begin = asyncio.Event()
        self.may_begin.set()
        self.is_beginning = False

    async def begin(self, id: str, records: Sequence[Record]) -> None:
        self.is_beginning = True
        await self.may_begin.wait()
        await super().begin(id, records)

    async def end(self) -> None:
        self.is_ending = True
        await self.may_end.wait()
        await super().end()

    async def write(self, record: Record) -> None:
        self.wanted.append(record)
        await self.may_write.wait()
        if (why := self.refused(record)) is not None:
            raise Failed(f"cannot write to the log: {why}; the record is not in it")
        await super().write(record)
        self.written.append(record)


@dataclass
class PaperSteps:
    """Steps that succeed at once, unless they are to fail or to wait; what they do to the pair shows on the board.

    Attributes:
        acts: what was done, in its order.
        failures: what a step raises, by its word.
        doors: a step waits until its door is open.
        leaves: what is seen of an instance whose restart fails.
        approval_timeout: seconds that the question is asked for.
        is_deaf: who waits for the answer does not get its turn.
        end_failure: what the cleaning up raises.
    """

    pair: PaperPair
    acts: list[str] = field(default_factory=list)
    failures: dict[str, BaseException] = field(default_factory=dict)
    doors: dict[str, asyncio.Event] = field(default_factory=dict)
    leaves: dict[str, InstanceView] = field(default_factory=dict)
    approval_timeout: float = 3600.0
    cut: list[str] = field(default_factory=list)
    shares: int = 0
    is_deaf: bool = False
    end_failure: BaseException | None = None

    def block(self, step: StepName) -> asyncio.Event:
        """Have the step wait for what is returned."""
        return self.doors.setdefault(step.value, asyncio.Event())

    async def do(self, step: StepName, rollout: Rollout, work: RolloutWork) -> Facts:
        await self._act(step)
        return {"release": NEW} if step is StepName.INSTALL else {}

    async def switch(self, release: str | None) -> None:
        step = StepName.SWITCH_BACK if release == self.pair.previous else StepName.SWITCH
        await self._act(step)
        self.pair.link = release

    async def relaunch(self, move: Relaunch, work: RolloutWork) -> None:
        try:
            await self._act(move.step)
        except Failed:
            if (left := self.leaves.get(move.step.value)) is not None:
                self.pair.board.publish(left)
            raise
        if not move.is_there:
            at_rest: dict[str, Any] = {"state": UnitState.STOPPED} if move.into is None else {}
            before = self.pair.board.instance(move.role).unit.incarnation
            self.pair.board.publish(serving(move.role, move.into, incarnation=before + 1, **at_rest))

    async def question(self, rollout: Rollout) -> Question:
        until = stamp(datetime.now(UTC) + timedelta(seconds=self.approval_timeout))
        return Question(rollout.until or until, ("curl -i http://127.0.0.1:8002/",), ())

    def sharing(self) -> AbstractContextManager[None]:
        self.shares += 1
        return nullcontext()

    async def until_answered(self, is_answered: Callable[[], bool]) -> None:
        if self.is_deaf:
            await asyncio.Event().wait()
        await until_answered(self.pair.board, Role.BACKUP, is_answered)

    async def ended(self, rollout: Rollout) -> None:
        self.acts.append("ended")
        if self.end_failure is not None:
            raise self.end_failure

    async def _act(self, step: StepName) -> None:
        self.acts.append(step.value)
        try:
            if (door := self.doors.get(step.value)) is not None:
                await door.wait()
        except asyncio.CancelledError:
            self.cut.append(step.value)
            raise
        if (failure := self.failures.get(step.value)) is not None:
            raise failure


@dataclass
class PaperPair:
    """The link and the picture of the pair."""

    previous: str | None
    link: str | None
    board: Board


class Daemon:
    """One daemon's deployer; another one may take up its journals."""

    def __init__(self, bench: Bench) -> None:
        self.journals = SlowJournals(bench.directory / "rollouts", bench.directory / "logs")
        self.record = RolloutRecord(self.journals, bench.pair.board, bench.history)
        self.deployer = Deployer(
            self.record,
            bench.pair.board,
            lambda wish: bench.make_steps(),
            lambda: bench.pair.link,
            lambda id: f"/var/log/clojarsd/rollouts/{id}.log",
            bench.clean,
        )

    async def begin(self, wish: Wish | None = None, approved_by: str | None = None) -> RolloutWork:
        return await self.deployer.begin(wish or make_wish(), approved_by)

    async def at(self, step: StepName) -> None:
        """Return when the step was begun, and is known to be."""
        await until(lambda: self.record.under_way is not None and self.record.under_way.at_step is step, step.value)

    async def asked(self) -> RolloutWork:
        """Return when the question is asked."""
        await until(lambda: self.deployer.work.question, "the question")
        return self.deployer.work

    async def end(self) -> Rollout:
        """The rollout when it has ended."""
        await until(lambda: self.record.latest is not None and self.record.latest.outcome, "the end")
        assert self.record.latest is not None
        return self.record.latest


class Bench:
    """Daemons, one after the other, with the same directory and the same pair."""

    def __init__(self, directory: Path, *, release: str | None = OLD) -> None:
        self.directory = directory
        self.history = FakeHistory()
        self.pair = PaperPair(release, release, make_board(release))
        self.steps = PaperSteps(self.pair)
        self.cleaned: list[str] = []
        self.no_steps: Exception | None = None
        self.clean_fails: Exception | None = None
        (directory / "logs").mkdir(exist_ok=True)

    def make_steps(self) -> PaperSteps:
        if self.no_steps is not None:
            raise self.no_steps
        return self.steps

    async def clean(self, id: str) -> None:
        self.cleaned.append(id)
        if self.clean_fails is not None:
            raise self.clean_fails

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[Daemon]:
        """A daemon that takes up what there is; at the end of the block it is gone, as after a `kill -9`."""
        made = Daemon(self)
        made.deployer.load()
        try:
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
                running = group.create_task(made.deployer.run())
                yield made
                assert not running.done(), "nothing ends the loop"
                running.cancel()
        finally:
            made.journals.close()

    def runs(self) -> dict[Role, str | None]:
        return {role: self.pair.board.instance(role).release for role in Role}
