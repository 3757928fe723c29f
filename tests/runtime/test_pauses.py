"""The supervisor's own knowledge of pauses: one for each frontend, which ends by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from clojarsd.core.frontend_plan import Pause
from clojarsd.runtime.pauses import Pauses
from tests.support.fronts import NEVER
from tests.support.waiting import until

SOON = 0.02


class Told:
    """Pauses, and the names that were told each time."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []
        self._loop = asyncio.get_running_loop()
        self.pauses = Pauses(self._loop, self._changed)

    def _changed(self, names: Collection[str]) -> None:
        self.names.append(sorted(names))

    def begin(self, name: str, seconds: float, by: str = "ada") -> None:
        self.pauses.begin(name, Pause(self._loop.time() + seconds, by))


async def test_each_ends_by_itself_and_that_is_told() -> None:
    told = Told()
    told.begin("http", SOON)
    told.begin("line", NEVER)
    assert told.names == [["http"], ["http", "line"]]
    await until(lambda: len(told.names) == 3, "the end of one")
    assert told.names[-1] == ["line"]
    assert told.pauses.paused.keys() == {"line"}
    told.pauses.end("line")
    assert told.names[-1] == []


async def test_another_one_of_the_same_frontend_takes_its_place_and_its_time() -> None:
    told = Told()
    told.begin("http", SOON)
    told.begin("http", NEVER, by="bob")
    told.begin("line", 2 * SOON)
    await until(lambda: told.names[-1] == ["http"], "the end of the other frontend's")
    assert told.pauses.paused["http"].by == "bob"
    told.pauses.end("http")


async def test_what_is_forgotten_is_not_told() -> None:
    told = Told()
    told.begin("http", SOON)
    told.pauses.forget_all()
    told.begin("line", 2 * SOON)
    await until(lambda: told.names[-1] == [], "the end of the one that was not forgotten")
    assert told.names == [["http"], ["line"], []]
