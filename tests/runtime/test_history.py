"""The history: at once in memory, soon on disk, and never in the way."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from clojarsd.core.api import MOST_EVENTS
from clojarsd.core.errors import Failed
from clojarsd.core.history import EventName, PastEvent
from clojarsd.core.names import Role
from clojarsd.runtime import history as module
from clojarsd.runtime.history import History, Overrun
from clojarsd.system.event_store import EventStore
from tests.support.control import DEADLINE_S, MemoryStore

ROOT = Path(__file__).parent.parent.parent


class TellingStore(MemoryStore):
    """Tells the loop of each act, and can be as slow as the test wants."""

    def __init__(self, *past: PastEvent) -> None:
        super().__init__(*past)
        self.acts: asyncio.Queue[str] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.gate: asyncio.Event | None = None

    def write(self, events: Sequence[PastEvent]) -> None:
        if self.gate is not None:
            asyncio.run_coroutine_threadsafe(self.gate.wait(), self._loop).result(DEADLINE_S)
        try:
            super().write(events)
        except Failed:
            self._tell("failed")
            raise
        self._tell("written")

    def prune(self, before: str) -> None:
        super().prune(before)
        self._tell("pruned")

    def _tell(self, act: str) -> None:
        self._loop.call_soon_threadsafe(self.acts.put_nowait, act)

    async def until(self, act: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while await self.acts.get() != act:
                pass


@asynccontextmanager
async def running(store: MemoryStore | EventStore) -> AsyncIterator[History]:
    async with History(store) as history, asyncio.TaskGroup() as group:
        task = group.create_task(history.run())
        yield history
        task.cancel()


def past(number: int) -> PastEvent:
    return PastEvent(number, "2026-11-23T12:00:00.000Z", EventName.FAILOVER, Role.BACKUP, "ann", "x", {"a": 1})


async def test_an_event_is_seen_at_once_and_written_soon() -> None:
    store = TellingStore()
    async with running(store) as history:
        history.record(EventName.ORDER, "ann orders: stop backup", Role.BACKUP, "ann", verb="stop")
        (event,) = history.recent(50)
        assert (event.id, event.event, event.role, event.by) == (1, EventName.ORDER, Role.BACKUP, "ann")
        assert (event.message, event.detail) == ("ann orders: stop backup", {"verb": "stop"})
        assert datetime.fromisoformat(event.at).tzinfo == UTC
        assert event.at.endswith("Z")
        await store.until("written")
        assert store.events == {1: event}


async def test_ids_and_recent_events_go_on_after_a_restart() -> None:
    store = MemoryStore(past(41), past(42))
    async with running(store) as history:
        assert [event.id for event in history.recent(50)] == [41, 42]
        history.record(EventName.FAILBACK, "primary serves http again")
        assert [event.id for event in history.recent(2)] == [42, 43]
        assert history.recent(0) == ()


async def test_what_is_unwritten_at_the_end_is_written_then() -> None:
    store = TellingStore()
    store.gate = asyncio.Event()
    async with running(store) as history:
        history.record(EventName.FAILOVER, "first")
        history.record(EventName.FAILBACK, "second")
        asyncio.get_running_loop().call_later(0.05, store.gate.set)  # in the middle of the end
    assert [event.message for event in store.events.values()] == ["first", "second"]
    assert store.is_closed


async def test_recording_goes_on_while_the_disk_hangs() -> None:
    store = TellingStore()
    store.gate = asyncio.Event()
    async with running(store) as history:
        for number in range(5):
            history.record(EventName.DEPLOY_STEP, f"step {number}")
            await asyncio.sleep(0)
        assert len(history.recent(50)) == 5
        assert store.events == {}
        store.gate.set()


async def test_one_warning_for_an_episode_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_RETRY", 0.01)
    store = TellingStore()
    with structlog.testing.capture_logs() as logged:
        async with running(store) as history:
            await store.until("pruned")
            store.failure = Failed("cannot write the history: the disk is full")
            history.record(EventName.FAILOVER, "during")
            for _ in range(3):
                await store.until("failed")
            store.failure = None
            await store.until("written")
            history.record(EventName.FAILBACK, "after")
            await store.until("written")
    assert [event.message for event in store.events.values()] == ["during", "after"]
    names = [line["event"] for line in logged]
    assert names == ["history_not_written", "history_written_again"]
    assert logged[0]["reason"] == "cannot write the history: the disk is full"
    assert logged[1]["lost"] == 0


async def test_ids_still_grow_when_the_past_cannot_be_read() -> None:
    store = MemoryStore(past(41))
    store.failure = Failed("cannot read the history")
    async with History(store, now=lambda: datetime(2026, 11, 23, tzinfo=UTC)) as history:
        history.record(EventName.FAILOVER, "x")
        assert history.recent(1)[0].id > 1_700_000_000
        store.failure = None
    assert len(store.events) == 2


async def test_waiting_events_are_bounded_and_what_is_given_up_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNWRITTEN", 3)
    monkeypatch.setattr(module, "FIRST_RETRY", 0.01)
    store = TellingStore()
    with structlog.testing.capture_logs() as logged:
        async with running(store) as history:
            await store.until("pruned")
            store.failure = Failed("full")
            for number in range(10):
                history.record(EventName.DEPLOY_STEP, f"step {number}")
            await store.until("failed")
            store.failure = None
            await store.until("written")
            history.record(EventName.FAILBACK, "after")
            await store.until("written")
    assert [event.message for event in store.events.values()] == ["step 7", "step 8", "step 9", "after"]
    assert logged[-1]["lost"] == 7


async def test_odd_values_are_recorded_as_json_has_them() -> None:
    loop: list[object] = []
    loop.append(loop)
    async with running(MemoryStore()) as history:
        changing = ["a"]
        history.record(EventName.ORDER, "a\udcffb", None, "\udcff", path=Path("/x"), at=(1, 2), changing=changing)
        changing.append("b")
        history.record(EventName.ORDER, "x", loop=loop)
        first, second = history.recent(2)
    assert (first.message, first.by) == ("a\\udcffb", "\\udcff")
    assert first.detail == {"path": "/x", "at": [1, 2], "changing": ["a"]}
    assert "unreadable" in second.detail


async def test_a_follower_gets_what_comes_in_order() -> None:
    async with running(MemoryStore(past(7))) as history:
        history.record(EventName.FAILOVER, "a")
        history.record(EventName.FAILOVER, "b")
        assert [event.message for event in await history.after(7)] == ["a", "b"]
        asyncio.get_running_loop().call_soon(history.record, EventName.FAILOVER, "c")
        async with asyncio.timeout(DEADLINE_S):
            assert [event.message for event in await history.after(9)] == ["c"]


async def test_a_follower_that_falls_behind_is_told_by_how_much() -> None:
    async with running(MemoryStore()) as history:
        for number in range(MOST_EVENTS + 5):
            history.record(EventName.DEPLOY_STEP, str(number))
        assert len(history.recent(MOST_EVENTS)) == MOST_EVENTS
        with pytest.raises(Overrun) as overrun:
            await history.after(2)
        assert overrun.value.missed == 3


async def test_old_events_are_forgotten_at_the_start() -> None:
    store = TellingStore()
    async with running(store):
        await store.until("pruned")
    (before,) = store.pruned
    age = datetime.now(UTC) - datetime.fromisoformat(before)
    assert 89.9 < age.days + age.seconds / 86400 < 90.1


async def test_the_real_store_remembers(tmp_path: Path) -> None:
    path = tmp_path / "state" / "events.sqlite"
    async with running(EventStore(path)) as history:
        history.record(EventName.DAEMON_STARTED, "clojarsd 0.1.0 started", pid=812)
        before = history.recent(1)
    async with running(EventStore(path)) as history:
        assert history.recent(50) == before
        history.record(EventName.DAEMON_STARTED, "again")
        assert history.last_id == 2
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["events.sqlite"]


def test_a_disk_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    program = """
import asyncio, threading
from clojarsd.core.history import EventName
from clojarsd.runtime import history as module
from tests.support.control import MemoryStore

class HungStore(MemoryStore):
    def write(self, events):
        threading.Event().wait()

async def main():
    module.CLOSE_TIMEOUT = 0.1
    async with module.History(HungStore()) as history:
        history.record(EventName.FAILOVER, "x")

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=DEADLINE_S
    )
    assert "history_not_written" in done.stdout
    assert "the disk is too slow" in done.stdout
