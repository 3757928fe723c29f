"""The newest state comes to the disk, and neither the loop nor the daemon's end waits for that."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from clojarsd.core.errors import Failed
from clojarsd.runtime import state_keeper as module
from clojarsd.runtime.state_keeper import StateKeeper
from clojarsd.system.state_file import StateFile
from tests.support.saved import NOON, a_pair
from tests.support.waiting import PATIENCE, until

CHECKOUT = Path(__file__).parents[2]


class Disk:
    """A disk that fails and hangs as the test says.

    Attributes:
        written: the generation of each version that came to it.
        attempts: how often somebody tried.
    """

    def __init__(self) -> None:
        self.written: list[int] = []
        self.attempts = 0
        self.failure: Failed | None = None
        self.open = threading.Event()
        self.open.set()

    def write(self, document: Mapping[str, Any]) -> None:
        self.attempts += 1
        assert self.open.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure
        self.written.append(document["generation"])


@asynccontextmanager
async def running(disk: Disk | StateFile) -> AsyncIterator[StateKeeper]:
    async with StateKeeper(disk) as keeper, asyncio.TaskGroup() as group:
        task = group.create_task(keeper.run())
        try:
            async with asyncio.timeout(PATIENCE):
                yield keeper
        finally:
            task.cancel()


async def test_what_is_saved_comes_to_the_disk_by_itself(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json")
    async with running(file) as keeper:
        keeper.save(a_pair(1))
        assert await until(file.read) == a_pair(1)
        keeper.save(a_pair(2))
        await keeper.flushed()
        assert file.read() == a_pair(2)
        await keeper.flushed()


async def test_only_the_newest_of_many_is_written() -> None:
    disk = Disk()
    async with running(disk) as keeper:
        disk.open.clear()
        keeper.save(a_pair(1))
        await until(lambda: disk.attempts)
        for generation in range(2, 1000):
            keeper.save(a_pair(generation))
        disk.open.set()
        await keeper.flushed()
        assert disk.written == [1, 999]


async def test_a_hanging_disk_does_not_hold_the_loop() -> None:
    disk = Disk()
    async with running(disk) as keeper:
        disk.open.clear()
        keeper.save(a_pair(1))
        await until(lambda: disk.attempts)
        loop = asyncio.get_running_loop()
        before = loop.time()
        for generation in range(2, 100):
            keeper.save(a_pair(generation))
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await keeper.flushed()
        assert loop.time() - before < PATIENCE / 2
        assert disk.written == []
        disk.open.set()


async def test_who_waits_gets_what_was_saved_before_and_not_only_what_was_under_way() -> None:
    disk = Disk()
    async with running(disk) as keeper, asyncio.TaskGroup() as group:
        disk.open.clear()
        keeper.save(a_pair(1))
        await until(lambda: disk.attempts)
        first = group.create_task(keeper.flushed())
        await asyncio.sleep(0)
        keeper.save(a_pair(2))
        second = group.create_task(keeper.flushed())
        await asyncio.sleep(0)
        disk.open.set()
        await first
        assert disk.written[0] == 1
        await second
        assert disk.written == [1, 2]


async def test_what_checks_saw_last_waits_for_a_reason_to_write() -> None:
    disk = Disk()
    async with running(disk) as keeper:
        keeper.save(a_pair(1))
        await keeper.flushed()
        keeper.save(a_pair(1, checked="200 in 9 ms", saved_at=NOON))
        await asyncio.sleep(0.05)  # nothing must come
        assert disk.written == [1]
        await keeper.flushed()
        assert disk.written == [1, 1]
    assert disk.written == [1, 1]


async def test_the_same_again_is_not_written_again() -> None:
    disk = Disk()
    async with running(disk) as keeper:
        for _ in range(3):
            keeper.save(a_pair(1))
            await keeper.flushed()
    assert disk.written == [1]


async def test_what_is_unwritten_at_the_end_is_written_then() -> None:
    disk = Disk()
    async with StateKeeper(disk) as keeper:
        keeper.save(a_pair(1))
        keeper.save(a_pair(1, checked="200 in 9 ms"))
    assert disk.written == [1]


async def test_nothing_saved_is_nothing_written() -> None:
    disk = Disk()
    async with running(disk) as keeper:
        await keeper.flushed()
    assert disk.attempts == 0


async def test_one_warning_for_an_episode_and_a_word_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_RETRY", 0.001)
    monkeypatch.setattr(module, "LONGEST_RETRY", 0.01)
    disk = Disk()
    with structlog.testing.capture_logs() as logged:
        async with running(disk) as keeper:
            for sentence in ("cannot write the state: no space left on device", "... again"):
                disk.failure = Failed(sentence)
                keeper.save(a_pair(disk.attempts + 1))
                tried = disk.attempts
                await until(lambda tried=tried: disk.attempts > tried + 3)  # type: ignore[misc]
                disk.failure = None
                keeper.save(a_pair(999 + disk.attempts))
                await keeper.flushed()
    assert [(entry["event"], entry["log_level"], entry.get("reason")) for entry in logged] == [
        ("state_not_written", "warning", "cannot write the state: no space left on device"),
        ("state_written_again", "info", None),
        ("state_not_written", "warning", "... again"),
        ("state_written_again", "info", None),
    ]


async def test_who_waits_for_a_disk_that_fails_is_told_so_at_once() -> None:
    """Also in the middle of the pause before the next attempt, which is then cut short."""
    disk = Disk()
    disk.failure = Failed("cannot write the state: no space left on device")
    async with running(disk) as keeper:
        keeper.save(a_pair(1))
        for _ in range(10):
            with pytest.raises(Failed, match="no space left on device"):
                await keeper.flushed()
        disk.failure = None
        await keeper.flushed()
        assert disk.written == [1]


async def test_a_failing_disk_is_not_hammered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_RETRY", 3600.0)
    disk = Disk()
    disk.failure = Failed("cannot write the state")
    async with running(disk) as keeper:
        keeper.save(a_pair(1))
        await until(lambda: disk.attempts)
        for generation in range(2, 20):
            keeper.save(a_pair(generation))
            await asyncio.sleep(0.001)
        assert disk.attempts == 1


async def test_a_disk_that_takes_very_long_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW", 0.01)
    disk = Disk()
    with structlog.testing.capture_logs() as logged:
        async with running(disk) as keeper:
            disk.open.clear()
            keeper.save(a_pair(1))
            await until(lambda: logged)
            disk.open.set()
            await keeper.flushed()
    assert [(entry["event"], entry.get("reason")) for entry in logged] == [
        ("state_not_written", "the disk has taken nothing for 0.01 s"),
        ("state_written_again", None),
    ]


async def test_a_hanging_disk_holds_the_end_up_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_TIMEOUT", 0.05)
    disk = Disk()
    disk.open.clear()
    with structlog.testing.capture_logs() as logged:
        async with asyncio.timeout(PATIENCE / 2):
            async with StateKeeper(disk) as keeper:
                keeper.save(a_pair(1))
    assert [(entry["event"], entry.get("reason")) for entry in logged] == [
        ("state_not_written", "the disk is too slow")
    ]
    disk.open.set()


async def save_and_fail(disk: Disk) -> None:
    async with StateKeeper(disk) as keeper:
        keeper.save(a_pair(1))
        raise KeyError


async def test_a_failure_at_the_end_is_told_and_does_not_hide_why_it_ends() -> None:
    disk = Disk()
    disk.failure = Failed("cannot write the state: no space left on device")
    with structlog.testing.capture_logs() as logged, pytest.raises(KeyError):
        await save_and_fail(disk)
    assert [entry["reason"] for entry in logged] == ["cannot write the state: no space left on device"]


async def test_who_stops_waiting_is_forgotten() -> None:
    disk = Disk()
    async with running(disk) as keeper, asyncio.TaskGroup() as group:
        disk.open.clear()
        keeper.save(a_pair(1))
        waiting = group.create_task(keeper.flushed())
        await until(lambda: disk.attempts)
        waiting.cancel()
        disk.open.set()
        await keeper.flushed()


HANGS = """
import asyncio, threading
from clojarsd.runtime import state_keeper
from tests.support.saved import a_pair

class Hanging:
    def write(self, document):
        threading.Event().wait()

async def main():
    state_keeper.CLOSE_TIMEOUT = 0.05
    async with state_keeper.StateKeeper(Hanging()) as keeper:
        keeper.save(a_pair())

asyncio.run(main())
"""


@pytest.mark.slow
def test_the_process_ends_though_the_disk_hangs_for_ever() -> None:
    subprocess.run([sys.executable, "-c", HANGS], cwd=CHECKOUT, timeout=PATIENCE, check=True, capture_output=True)
