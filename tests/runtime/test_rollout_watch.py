"""Instances that are watched while they serve: what counts as falling over, and what as a weak moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from clojarsd.core.errors import Failed
from clojarsd.core.names import Goal, Health, Role, UnitState
from clojarsd.core.rollout_facts import SeenInstance
from clojarsd.runtime.rollout_watch import how_it_is, look, settled, soak, until_answered
from clojarsd.runtime.status import Board
from tests.support.rollouts import NEW, OLD, make_board, serving
from tests.support.waiting import PATIENCE

P, B = Role.PRIMARY, Role.BACKUP
LONG = 3600.0


@asynccontextmanager
async def watching(act: Any) -> AsyncIterator[asyncio.Task[None]]:
    """The act under way, waiting for the board; who fails the block has it cancelled."""
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        task = group.create_task(act)
        await asyncio.sleep(0)
        yield task


async def failure(act: Any) -> str:
    with pytest.raises(Failed) as caught:
        await act
    return str(caught.value)


async def turn() -> None:
    """Let who waits have a look."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_who_serves_for_the_whole_time_has_passed() -> None:
    board, loop = make_board(), asyncio.get_running_loop()
    began = loop.time()
    await soak(board, (P, B), 0.1, LONG)
    assert loop.time() - began >= 0.1
    await soak(board, (B,), 0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"state": UnitState.FAILED, "reason": "given up after 10 launches"}, "given up after 10 launches"),
        (
            {"state": UnitState.BACKOFF, "reason": "exited with 1; next try at 12:00", "ended": "exited with 1"},
            "exited with 1",
        ),
        ({"state": UnitState.STOPPED, "ended": "exited with 0"}, "exited with 0"),
        ({"state": UnitState.STOPPED}, "it is stopped"),
        ({"incarnation": 2, "reason": "it was restarted"}, "it was restarted"),
    ],
)
async def test_who_ends_has_not(changes: dict[str, Any], why: str) -> None:
    """However soon it is there again."""
    board = make_board()
    async with watching(failure(soak(board, (P, B), LONG, LONG))) as task:
        board.publish(serving(B, NEW, **changes))
    assert task.result() == f"backup has ended: {why}"


async def test_a_weak_moment_begins_the_time_anew() -> None:
    board, loop = make_board(), asyncio.get_running_loop()
    async with watching(soak(board, (P, B), 0.3, LONG)) as task:
        board.publish(serving(B, NEW, health=Health.DOWN))
        await turn()
        assert not task.done()
        since = loop.time()
        board.publish(serving(B, NEW))
    assert loop.time() - since >= 0.3


async def test_patience_ends() -> None:
    board = make_board()
    board.publish(serving(B, NEW, health=Health.DOWN, reason="http: 503"))
    assert await failure(soak(board, (P, B), 0.02, 0.05)) == "backup does not serve: http: 503"


@pytest.mark.parametrize(
    "changes",
    [
        {"state": UnitState.FAILED, "reason": "given up"},
        {"state": UnitState.BACKOFF, "reason": "given up"},
        {"restarts": 1, "reason": "given up"},
        {"state": UnitState.STOPPED, "goal": Goal.UP, "reason": "given up"},  # it has exited, with success
    ],
)
async def test_a_backup_that_falls_over_ends_the_question(changes: dict[str, Any]) -> None:
    board = make_board()
    async with watching(failure(until_answered(board, B, lambda: False))) as task:
        board.publish(serving(B, NEW, **changes))
    assert task.result() == "backup has fallen over: given up"


async def test_what_operators_do_to_the_backup_does_not() -> None:
    board, answers = make_board(), list[str]()
    board.publish(serving(B, NEW, restarts=3))
    async with watching(until_answered(board, B, lambda: bool(answers))) as task:
        for changes in (
            {"state": UnitState.STOPPING, "goal": Goal.DOWN},
            {"state": UnitState.STOPPED, "goal": Goal.DOWN},
            {"state": UnitState.STARTING, "incarnation": 2},
            {"incarnation": 2},
            {"incarnation": 2, "health": Health.DOWN},
        ):
            board.publish(serving(B, NEW, restarts=3, **changes))
            await turn()
            assert not task.done(), changes
        answers.append("yes")
        board.wake()


async def test_how_the_pair_is() -> None:
    board = make_board()
    board.publish(serving(B, NEW, health=Health.DOWN))
    seen = look(board, NEW)
    assert seen.link == NEW
    assert seen.instances == {P: SeenInstance(OLD, True), B: SeenInstance(NEW, False)}
    board.publish(serving(P, OLD, state=UnitState.BACKOFF))
    board.publish(serving(B, NEW, state=UnitState.STOPPED))
    assert look(board, None).instances == {P: SeenInstance(OLD, False), B: SeenInstance(None, False)}


@pytest.mark.parametrize(
    ("changes", "is_settled"),
    [
        ({}, True),
        ({"health": Health.DOWN}, True),
        ({"health": Health.STALLED}, True),
        ({"health": Health.UNKNOWN}, False),
        ({"state": UnitState.STARTING}, False),
        ({"state": UnitState.STOPPING}, False),
        ({"state": UnitState.STOPPED}, True),
        ({"state": UnitState.FAILED}, True),
        ({"state": UnitState.BACKOFF}, True),
        ({"state": UnitState.DRAINING}, True),
    ],
)
async def test_when_it_is_known_how_an_instance_is(changes: dict[str, Any], is_settled: bool) -> None:
    board = make_board()
    board.publish(serving(B, NEW, **changes))
    async with watching(settled(board)) as task:
        await turn()
        assert task.done() is is_settled
        board.publish(serving(B, NEW))


def test_how_an_instance_is_in_words() -> None:
    assert how_it_is(serving(P, OLD, reason="http: 503", ended="exited with 1")) == "http: 503"
    assert how_it_is(serving(P, OLD)) == "it is ready"
    assert how_it_is(serving(P, OLD, ended="exited with 1")) == "exited with 1"


def test_a_board_of_a_pair_without_a_release_rests() -> None:
    board: Board = make_board(None)
    assert [board.instance(role).unit.state for role in Role] == [UnitState.STOPPED] * 2
