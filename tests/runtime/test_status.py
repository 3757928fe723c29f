"""The picture of the pair, and who is woken by a change of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest

from clojarsd.core.names import Goal, Health, Role, UnitState
from clojarsd.core.unit import Unit
from clojarsd.core.view import DaemonView, FrontendView, InstanceView, PairView
from clojarsd.runtime.status import Board
from tests.support.waiting import PATIENCE

DAEMON = DaemonView("1.0.0", 812, "then", "/etc/clojarsd.toml")


@dataclass
class UnderWay:
    """What is asked of a rollout here."""

    is_under_way: bool


class Counting:
    """A frontend whose counters move whenever somebody looks."""

    looks = 0

    def view(self) -> FrontendView:
        self.looks += 1
        return FrontendView((), "relay", None, None, {}, {None: self.looks})


def instance(role: Role, restarts: int = 0) -> InstanceView:
    return InstanceView(role, role.value, Unit(), Health.UNKNOWN, None, "then", restarts, None, None, None, {}, ())


@pytest.fixture
def board() -> Board:
    made = Board("demo", DAEMON, lambda: "1.jar", {"http": Counting()})
    for role in Role:
        made.publish(instance(role))
    return made


def test_the_picture_has_what_was_published_last_and_frontends_as_they_are(board: Board) -> None:
    board.publish(instance(Role.PRIMARY, restarts=1))
    assert board.instance(Role.PRIMARY).restarts == 1
    seen = board.view()
    assert (seen.service, seen.daemon, seen.current_release) == ("demo", DAEMON, "1.jar")
    assert {role: one.restarts for role, one in seen.instances.items()} == {Role.PRIMARY: 1, Role.BACKUP: 0}
    assert [board.view().frontends["http"].accepted_total for _ in range(2)] == [{None: 2}, {None: 3}]


def running(role: Role, release: str | None) -> InstanceView:
    return replace(instance(role), release=release, unit=Unit(Goal.UP, UnitState.READY))


def test_who_runs_another_release_than_the_link_names_is_told(board: Board) -> None:
    board.previous_release = lambda current: "0.jar" if current == "1.jar" else None
    board.publish(running(Role.PRIMARY, "1.jar"))
    board.publish(replace(instance(Role.BACKUP), release="0.jar"))
    seen = board.view()
    assert seen.previous_release == "0.jar"
    assert [one.other_release for one in seen.instances.values()] == [None, None], "one that does not run runs nothing"
    board.publish(running(Role.BACKUP, "0.jar"))
    told = "backup runs 0.jar, and the link names 1.jar: clojarsctl restart backup"
    assert board.view().instances[Role.BACKUP].other_release == told
    board.runs = lambda role, launched_with: "1.jar"
    assert board.view().instances[Role.BACKUP].other_release is None, "what it really runs counts"


def test_a_rollout_explains_why_an_instance_runs_another_release(board: Board) -> None:
    board.publish(running(Role.BACKUP, "0.jar"))
    for under_way in (True, False):
        board.rollout = lambda is_under_way=under_way: UnderWay(is_under_way)  # type: ignore[assignment, misc]
        assert (board.view().instances[Role.BACKUP].other_release is None) == under_way


def test_a_picture_stays_as_it_was(board: Board) -> None:
    before = board.view()
    board.publish(instance(Role.PRIMARY, restarts=1))
    assert before.instances[Role.PRIMARY].restarts == 0


async def test_what_holds_already_is_not_waited_for(board: Board) -> None:
    assert (await board.until(lambda view: view.service == "demo")).service == "demo"


async def test_everybody_is_woken_and_only_by_what_they_wait_for(board: Board) -> None:
    def restarted(count: int) -> asyncio.Future[PairView]:
        return asyncio.ensure_future(board.until(lambda view: view.instances[Role.PRIMARY].restarts >= count))

    waiting = [restarted(1), restarted(1), restarted(2)]
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        board.publish(instance(Role.BACKUP, restarts=5))
        await asyncio.sleep(0)
        assert not any(one.done() for one in waiting)
        board.publish(instance(Role.PRIMARY, restarts=1))
        assert [(await one).instances[Role.PRIMARY].restarts for one in waiting[:2]] == [1, 1]
        assert not waiting[2].done()
        board.publish(instance(Role.PRIMARY, restarts=2))
        assert (await waiting[2]).instances[Role.PRIMARY].restarts == 2


async def test_facts_that_are_only_read_wake_too(board: Board) -> None:
    waiting = asyncio.ensure_future(board.until(lambda view: view.frontends["http"].accepted_total[None] >= 3))
    for _ in range(2):
        await asyncio.sleep(0)
        board.wake()
    async with asyncio.timeout(PATIENCE):
        await waiting


async def test_who_stops_waiting_is_forgotten(board: Board) -> None:
    waiting = asyncio.ensure_future(board.change())
    other = asyncio.ensure_future(board.change())
    await asyncio.sleep(0)
    waiting.cancel()
    board.wake()  # in the same turn: it is cancelled and has not left yet
    await other
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert board._changed == set()
