"""The checks of one instance: when they are made, what is told, and what becomes of a check that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog

from clojarsd.core.errors import Failed
from clojarsd.core.health import CheckRecord, Result
from clojarsd.core.names import Health, Incarnation, Role
from clojarsd.runtime.health_watch import STARTING_SPEED, HealthWatch, PlannedCheck
from tests.support.waiting import PATIENCE, until

FIRST, SECOND = Incarnation(1), Incarnation(2)
GOOD, BAD = Result(True, "good", 0.0), Result(False, "bad", 0.0)
NEVER = 3600.0


class Asked:
    """A check that waits for its answer. `questions` are the ones that nobody has answered yet."""

    def __init__(self, *answers: Result | Exception) -> None:
        self.questions: list[asyncio.Future[Result]] = []
        self.count = 0
        self.cancelled = 0
        self._answers = list(answers)
        self._loop = asyncio.get_running_loop()
        self.times: list[float] = []

    async def __call__(self) -> Result:
        self.count += 1
        self.times.append(self._loop.time())
        if self._answers:
            answer = self._answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        question: asyncio.Future[Result] = self._loop.create_future()
        self.questions.append(question)
        try:
            return await question
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def answer(self, result: Result) -> None:
        await until(lambda: self.questions, "a question")
        self.questions.pop(0).set_result(result)


class Heard:
    def __init__(self) -> None:
        self.told: list[tuple[Incarnation, tuple[CheckRecord, ...], int]] = []
        self.breaks_with: Exception | None = None

    def checked(self, incarnation: Incarnation, records: tuple[CheckRecord, ...], which: int) -> None:
        if self.breaks_with is not None:
            raise self.breaks_with
        self.told.append((incarnation, records, which))

    async def times(self, count: int) -> None:
        await until(lambda: len(self.told) >= count, f"{count} results")

    @property
    def health(self) -> list[Health]:
        return [records[which].health for _, records, which in self.told]


def planned(ask: Asked, interval: float = NEVER, rise: int = 1, fall: int = 1) -> PlannedCheck:
    return PlannedCheck("http", ask, interval, rise, fall)


@asynccontextmanager
async def watching(heard: Heard, *checks: PlannedCheck) -> AsyncIterator[HealthWatch]:
    watch = HealthWatch(Role.PRIMARY, checks, heard)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        task = group.create_task(watch.run())
        yield watch
        task.cancel()


async def test_nothing_is_checked_before_it_is_said() -> None:
    asked, heard = Asked(), Heard()
    async with watching(heard, planned(asked)) as watch:
        watch.end()
        watch.hurry()
        for _ in range(10):
            await asyncio.sleep(0)
        assert asked.count == 0
        watch.begin(FIRST)
        await asked.answer(GOOD)
        await heard.times(1)
    assert heard.told == [(FIRST, (CheckRecord(Health.UP, 1, GOOD),), 0)]


async def test_rise_and_fall_are_counted_for_each_check() -> None:
    one, other, heard = Asked(GOOD, GOOD, BAD, BAD), Asked(BAD), Heard()
    async with watching(heard, planned(one, 0.001, rise=2, fall=2), planned(other)) as watch:
        watch.begin(FIRST)
        await heard.times(5)
    ours = [records[0].health for _, records, which in heard.told if which == 0]
    assert ours == [Health.UNKNOWN, Health.UP, Health.UP, Health.DOWN]
    assert heard.told[-1][1][1] == CheckRecord(Health.DOWN, 1, BAD)


async def test_a_new_target_drops_what_was_asked_for_the_old_one_and_counts_from_the_start() -> None:
    asked, heard = Asked(BAD), Heard()
    async with watching(heard, planned(asked, 0.005, fall=2)) as watch:
        watch.begin(FIRST)
        await until(lambda: asked.questions, "the second check")
        late = asked.questions.pop()
        late.set_result(BAD)
        watch.end()  # in the same turn: the task of the old target has its answer before it can be cancelled
        watch.begin(SECOND)
        await asked.answer(BAD)
        await heard.times(2)
    assert [(incarnation, records[0].streak) for incarnation, records, _ in heard.told] == [(FIRST, 1), (SECOND, 1)]


async def test_an_ended_target_is_asked_no_more() -> None:
    asked, heard = Asked(), Heard()
    async with watching(heard, planned(asked, 0.001)) as watch:
        watch.begin(FIRST)
        await until(lambda: asked.questions, "a question")
        watch.end()
        await until(lambda: asked.cancelled, "its end")
        assert asked.count == 1
    assert heard.told == []


async def test_a_settled_check_waits_its_interval() -> None:
    asked, heard = Asked(GOOD), Heard()
    async with watching(heard, planned(asked, 0.2)) as watch:
        watch.begin(FIRST)
        await until(lambda: asked.count == 2, "the second check")
    assert asked.times[1] - asked.times[0] >= 0.199


@pytest.mark.slow
async def test_an_instance_that_has_not_passed_yet_is_asked_more_often() -> None:
    """A result comes after a fifth of the interval, and no sooner."""
    asked, heard = Asked(*[BAD] * 5), Heard()
    interval = 0.02 * STARTING_SPEED
    async with watching(heard, planned(asked, interval, 1, 2)) as watch:
        watch.begin(FIRST)
        await heard.times(5)
    pauses = [after - before for before, after in zip(asked.times, asked.times[1:], strict=False)]
    assert interval / STARTING_SPEED <= min(pauses) < interval  # a loaded machine may delay some, not every one


@pytest.mark.slow
@pytest.mark.parametrize("answers", [[GOOD] * 4, [GOOD, BAD, BAD, BAD]])
async def test_rise_and_fall_are_counted_at_the_interval(answers: list[Result]) -> None:
    """So many results in a row also means so much time."""
    asked, heard = Asked(*answers), Heard()
    interval = 0.05
    async with watching(heard, planned(asked, interval, 4, 3)) as watch:
        watch.begin(FIRST)
        await heard.times(len(answers))
    pauses = [after - before for before, after in zip(asked.times, asked.times[1:], strict=False)]
    assert min(pauses) >= interval * 0.99


async def test_doubt_makes_the_next_check_come_now_and_once() -> None:
    asked, heard = Asked(GOOD), Heard()
    async with watching(heard, planned(asked)) as watch:
        watch.begin(FIRST)
        await heard.times(1)
        watch.hurry()
        watch.hurry()
        await until(lambda: asked.count == 2, "the hurried check")
        await asked.answer(GOOD)
        await heard.times(2)
        for _ in range(10):
            await asyncio.sleep(0)
        assert asked.count == 2


async def test_doubt_during_a_check_makes_another_one() -> None:
    """The check under way may have had its answer before whatever is doubted."""
    asked, heard = Asked(), Heard()
    async with watching(heard, planned(asked)) as watch:
        watch.begin(FIRST)
        await until(lambda: asked.questions, "a question")
        watch.hurry()
        await asked.answer(GOOD)
        await asked.answer(BAD)
        await heard.times(2)
    assert heard.health == [Health.UP, Health.DOWN]


async def test_a_storm_of_doubts_makes_no_storm_of_checks() -> None:
    """Every client of an instance that refuses connections doubts it; the instance is asked at a bounded rate."""
    asked, heard = Asked(*[GOOD] * 1000), Heard()
    interval = 0.25
    async with watching(heard, planned(asked, interval)) as watch:
        watch.begin(FIRST)
        await heard.times(1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        while len(heard.told) < 6:
            watch.hurry()
            await asyncio.sleep(0)
        assert loop.time() - began >= 4 * interval / STARTING_SPEED


async def test_a_check_that_breaks_has_not_passed_and_is_made_again() -> None:
    asked, heard = Asked(GOOD, ValueError("what"), GOOD), Heard()
    with structlog.testing.capture_logs() as logs:
        async with watching(heard, planned(asked, 0.001)) as watch:
            watch.begin(FIRST)
            await heard.times(3)
    assert heard.health == [Health.UP, Health.DOWN, Health.UP]
    assert heard.told[1][1][0].last == Result(False, "the check itself broke (ValueError: what)", 0.0)
    broke = [line for line in logs if line["event"] == "check_broke"]
    assert [(line["kind"], line["role"], line["log_level"]) for line in broke] == [("http", "primary", "error")]


async def test_a_bug_in_who_hears_the_results_ends_the_watch() -> None:
    asked, heard = Asked(GOOD), Heard()
    heard.breaks_with = AssertionError("a bug")
    watch = HealthWatch(Role.PRIMARY, [planned(asked)], heard)
    watch.begin(FIRST)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(PATIENCE):
            await watch.run()
    assert caught.value.exceptions == (heard.breaks_with,)


async def test_checks_that_answer_at_once_leave_the_loop_its_turns() -> None:
    """Even with an interval of next to nothing other tasks get on, and cancelling ends it."""
    asked, heard = Asked(*[GOOD] * 1_000_000), Heard()
    async with watching(heard, planned(asked, 0.000_001)) as watch:
        watch.begin(FIRST)
        await heard.times(20)
    ended_at = asked.count
    await asyncio.sleep(0)
    assert asked.count == ended_at


async def test_an_answer_that_comes_just_after_the_checks_have_changed_is_not_told() -> None:
    """Whoever has changed them knows of no check with that number any more."""
    first, second, heard = Asked(), Asked(), Heard()
    async with watching(heard, planned(first), planned(second)) as watch:
        watch.begin(FIRST)
        await until(lambda: first.questions and second.questions, "both questions")
        second.questions[0].set_result(GOOD)  # it is read in the next turn of the loop, which is too late
        watch.replan((planned(Asked()),))
        watch.begin(FIRST, (CheckRecord(),))
        for _ in range(10):
            await asyncio.sleep(0)
    assert heard.told == []


async def test_cancelling_takes_the_question_under_way_back() -> None:
    asked, heard = Asked(), Heard()
    async with watching(heard, planned(asked)) as watch:
        watch.begin(FIRST)
        await until(lambda: asked.questions, "a question")
    assert asked.cancelled == 1


async def test_a_turned_verdict_is_one_line() -> None:
    asked, heard = Asked(GOOD, BAD, BAD), Heard()
    with structlog.testing.capture_logs() as logs:
        async with watching(heard, planned(asked, 0.001, fall=2)) as watch:
            watch.begin(FIRST)
            await heard.times(3)
    turned = [(line["health"], line["seen"]) for line in logs if line["event"] == "check_turned"]
    assert turned == [("up", "good"), ("down", "bad")]


async def test_a_check_that_could_not_be_made_leaves_the_verdict_as_it_was() -> None:
    asked, heard = Asked(GOOD, Failed("cannot check: too many open files"), GOOD), Heard()
    async with watching(heard, planned(asked, 0.001)) as watch:
        watch.begin(FIRST)
        await heard.times(2)
    assert heard.health[:2] == [Health.UP, Health.UP]
    assert heard.told[1][1] == (CheckRecord(Health.UP, 2, GOOD),)


async def test_that_a_check_cannot_be_made_is_said_once_for_each_episode() -> None:
    broken = Failed("cannot check: too many open files")
    asked, heard = Asked(broken, broken, GOOD, broken, GOOD), Heard()
    with structlog.testing.capture_logs() as logs:
        async with watching(heard, planned(asked, 0.001)) as watch:
            watch.begin(FIRST)
            await heard.times(2)
    said = [line["event"] for line in logs if "made" in line["event"]]
    assert said == ["check_not_made", "check_made_again"] * 2
