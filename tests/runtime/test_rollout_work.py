"""What watchers of a rollout see: those from the beginning, late ones, slow ones, and those who only want the rest."""

from __future__ import annotations

import asyncio
from typing import Any

from clojarsd.core.names import Role
from clojarsd.core.rollout_facts import Outcome
from clojarsd.core.rollout_view import Question
from clojarsd.runtime.rollout_work import MOST_LINES, RolloutWork
from tests.support.waiting import PATIENCE

QUESTION = Question("2026-11-28T12:30:00.000Z", ("curl x",), ())
ASKED = {"question": QUESTION.as_json()}


async def lines(work: RolloutWork, since: int = 0) -> list[dict[str, Any]]:
    async with asyncio.timeout(PATIENCE):
        return [line async for line in work.lines(since)]


def texts(told: list[dict[str, Any]]) -> list[str]:
    return [line["step"]["message"] if "step" in line else line.get("output", "?") for line in told]


async def test_a_watcher_sees_all_of_it_in_its_order() -> None:
    work = RolloutWork()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(lines(work))
        await asyncio.sleep(0)
        work.note("building it")
        await asyncio.sleep(0)
        work.show_output(["Compiling", "done"])
        work.note("restarting backup", Role.BACKUP)
        work.end(Outcome.FAILED, "no", ["one"])
    told = watching.result()
    assert texts(told) == ["building it", "Compiling", "done", "restarting backup"]
    assert [line["step"]["role"] for line in told if "step" in line] == [None, "backup"]
    assert (work.outcome, work.message, work.output) == (Outcome.FAILED, "no", ("one",))


async def test_who_comes_late_sees_the_same() -> None:
    work = RolloutWork()
    work.note("building it")
    work.end(Outcome.DONE, "so it is")
    assert texts(await lines(work)) == ["building it"]
    assert texts(await lines(work)) == ["building it"], "and who comes later still"


async def test_who_wants_only_the_rest() -> None:
    work = RolloutWork()
    work.note("building it")
    told = work.told
    work.note("ann has approved it")
    work.end(Outcome.DONE, "so it is")
    assert texts(await lines(work, told)) == ["ann has approved it"]


async def test_a_slow_reader_misses_the_oldest_and_keeps_nothing_from_going_on() -> None:
    work = RolloutWork()
    work.note("first")
    reading = work.lines()
    assert texts([await anext(reading)]) == ["first"]
    work.show_output([str(number) for number in range(MOST_LINES + 100)])
    work.end(Outcome.DONE, "so it is")
    rest = texts([line async for line in reading])
    assert (rest[0], rest[-1], len(rest)) == ("100", str(MOST_LINES + 99), MOST_LINES)
    assert len(await lines(work)) == MOST_LINES


async def test_a_question_is_asked_until_it_is_answered() -> None:
    work = RolloutWork()
    work.ask(None)
    assert work.told == 0, "nothing was asked"
    reading = work.lines()
    work.ask(QUESTION)
    assert work.question == QUESTION
    assert await anext(reading) == ASKED
    work.ask(None)
    assert await anext(reading) == {"question": None}
    work.ask(None)
    work.end(Outcome.DONE, "so it is")
    assert [line async for line in reading] == []


async def test_who_comes_after_the_answer_is_asked_nothing() -> None:
    work = RolloutWork()
    work.ask(QUESTION)
    work.ask(None)
    later = Question("2026-11-28T13:00:00.000Z", (), ())
    work.ask(later)
    reading = work.lines()
    assert [await anext(reading), await anext(reading)] == [{"question": None}, {"question": later.as_json()}]
    work.end(Outcome.DONE, "so it is")
    assert [line async for line in reading] == []


async def test_several_watch_at_their_own_pace() -> None:
    work = RolloutWork()
    slow = work.lines()
    async with asyncio.TaskGroup() as group:
        watching = [group.create_task(lines(work)) for _ in range(3)]
        for number in range(10):
            work.note(str(number))
            await asyncio.sleep(0)
        work.end(Outcome.DONE, "so it is")
    assert {tuple(texts(task.result())) for task in watching} == {tuple(map(str, range(10)))}
    assert len([line async for line in slow]) == 10
