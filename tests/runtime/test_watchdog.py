"""Keep-alives: those that the daemon sends, and those that it expects."""

from __future__ import annotations

import asyncio
import time

import pytest

from clojarsd.core.names import Role
from clojarsd.runtime import watchdog
from clojarsd.runtime.watchdog import WatchdogTimer, keeping_alive
from tests.support.waiting import PATIENCE, until

LONG = 3600.0


class Manager:
    """A service manager that remembers when it was told."""

    def __init__(self, interval: float | None) -> None:
        self.watchdog_interval = interval
        self.told = 0

    def watchdog(self) -> None:
        self.told += 1


async def test_the_service_manager_is_told_at_once_and_then_at_its_interval() -> None:
    manager = Manager(0.01)
    with keeping_alive(manager):
        assert manager.told == 1
        await until(lambda: manager.told >= 5)
    told = manager.told
    await asyncio.sleep(0.03)
    assert manager.told == told


async def test_a_service_manager_without_a_watchdog_is_told_nothing() -> None:
    manager = Manager(None)
    with keeping_alive(manager):
        await asyncio.sleep(0)
    assert manager.told == 0


class Expiries:
    """What a timer has called."""

    def __init__(self) -> None:
        self.seen: list[tuple[Role, float]] = []
        self.timer = WatchdogTimer(Role.BACKUP, self._expired)

    def _expired(self, role: Role, seconds: float) -> None:
        self.seen.append((role, seconds))


async def test_silence_expires_once() -> None:
    expiries = Expiries()
    expiries.timer.begin(0.02)
    await until(lambda: expiries.seen)
    expiries.timer.feed()
    await asyncio.sleep(0.06)
    assert expiries.seen == [(Role.BACKUP, 0.02)]
    expiries.timer.begin(0.01)
    await until(lambda: len(expiries.seen) == 2)


async def test_the_first_keep_alive_is_told_once_for_each_beginning() -> None:
    told: list[Role] = []
    expiries = Expiries()
    expiries.timer.begin(LONG, told.append)
    assert told == []
    expiries.timer.feed()
    expiries.timer.feed()
    assert told == [Role.BACKUP]
    expiries.timer.begin(LONG, told.append)
    expiries.timer.feed()
    assert told == [Role.BACKUP] * 2
    expiries.timer.begin(LONG)
    expiries.timer.feed()
    assert told == [Role.BACKUP] * 2
    expiries.timer.end()


async def test_a_keep_alive_that_is_not_expected_any_more_is_not_told() -> None:
    told: list[Role] = []
    expiries = Expiries()
    expiries.timer.begin(LONG, told.append)
    expiries.timer.end()
    expiries.timer.feed()
    expiries.timer.begin(LONG, told.append)
    expiries.timer.trigger()
    expiries.timer.feed()
    assert told == []


async def test_one_that_has_expired_can_begin_again_and_tell_of_its_recovery() -> None:
    told: list[Role] = []
    timer: WatchdogTimer

    def expired(role: Role, seconds: float) -> None:
        timer.begin(LONG, told.append)

    timer = WatchdogTimer(Role.BACKUP, expired)
    timer.begin(LONG)
    timer.trigger()
    assert told == []
    timer.feed()
    assert told == [Role.BACKUP]
    timer.end()


@pytest.mark.slow
async def test_keep_alives_hold_it_off() -> None:
    expiries, loop = Expiries(), asyncio.get_running_loop()
    expiries.timer.begin(0.2)
    begun = loop.time()
    while loop.time() < begun + 0.5:
        await asyncio.sleep(0.02)
        expiries.timer.feed()
    assert not expiries.seen
    async with asyncio.timeout(PATIENCE):
        await until(lambda: expiries.seen)


async def test_an_extension_holds_it_off_and_never_shortens() -> None:
    expiries, loop = Expiries(), asyncio.get_running_loop()
    begun = loop.time()
    expiries.timer.begin(0.02)
    expiries.timer.extend(0.15)
    expiries.timer.extend(0.01)
    expiries.timer.feed()
    await until(lambda: expiries.seen)
    assert loop.time() - begun >= 0.15


async def test_a_trigger_expires_at_once_but_only_what_is_expected() -> None:
    expiries = Expiries()
    expiries.timer.trigger()
    assert not expiries.seen
    expiries.timer.begin(LONG)
    expiries.timer.trigger()
    expiries.timer.trigger()
    assert expiries.seen == [(Role.BACKUP, LONG)]


async def test_after_the_end_nothing_is_expected() -> None:
    expiries = Expiries()
    expiries.timer.begin(0.01)
    expiries.timer.end()
    expiries.timer.feed()
    await asyncio.sleep(0.03)
    assert not expiries.seen


async def test_a_daemon_that_stood_still_does_not_blame_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keep-alives may be waiting in the socket; it gets its whole time again."""
    monkeypatch.setattr(watchdog, "MOST_LATE", 0.05)
    expiries = Expiries()
    expiries.timer.begin(0.1)
    time.sleep(0.3)  # the loop stands still
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not expiries.seen
    await until(lambda: expiries.seen)
