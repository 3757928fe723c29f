"""The orders about the daemon itself: what they are refused for, what a rehearsal decides, and who hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from clojarsd.core.api import Verb
from clojarsd.core.errors import Failed, Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import HookName, Role
from clojarsd.core.unit_events import Start
from clojarsd.runtime.life import End, Life
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.unit_parts import HookPlan
from clojarsd.runtime.work import Work
from tests.support.units import LONG, POLICY, TERMED, Units
from tests.support.waiting import PATIENCE, until

P, B = Role.PRIMARY, Role.BACKUP


class House:
    """A life over two units. `version` is what a rehearsal ends with, when it may end.

    Attributes:
        held: how often signals were told to wait for the code that comes.
    """

    def __init__(self, units: Units) -> None:
        self.units = units
        self.version: str | Exception = "2.0"
        self.may_end, self.may_be_kept = asyncio.Event(), asyncio.Event()
        self.may_end.set()
        self.may_be_kept.set()
        self.rehearsals = self.held = 0
        self.orders = Orders(units.runners, units.board, lambda failures: 5.0, self._refresh, self._kept)
        self.life = Life("1.0", self.orders, units.runners, self._rehearse, self._kept, units.history, self._hold)

    async def _refresh(self, by: str) -> None:
        """The configuration is what it was."""

    async def _kept(self) -> None:
        await self.may_be_kept.wait()

    async def _rehearse(self) -> str:
        self.rehearsals += 1
        await self.may_end.wait()
        if isinstance(self.version, Exception):
            raise self.version
        return self.version

    def _hold(self) -> None:
        self.held += 1

    async def serve_both(self) -> None:
        for role in Role:
            self.units.runners[role].order(Start(), "test")
        await self.units.board.until(lambda view: all(view.instances[role].is_eligible for role in Role))


@asynccontextmanager
async def living(units: Units) -> AsyncIterator[House]:
    house = House(units)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        running = [group.create_task(house.orders.run()), group.create_task(house.life.run())]
        await until(lambda: hasattr(house.life, "_group") and hasattr(house.orders, "_group"))
        yield house
        for task in running:
            task.cancel()
    for runner in units.runners.values():
        runner.abandon()
    assert units.bugs == []


@pytest.fixture
async def house() -> AsyncIterator[House]:
    units = Units()
    units.is_lively = units.traffic.calls_back_at_once = True
    async with living(units) as made:
        await made.serve_both()
        yield made


async def steps(work: Work) -> list[str]:
    async with asyncio.timeout(PATIENCE):
        return [step.message async for step in work.steps()]


async def failure(work: Work) -> str:
    with pytest.raises(Failed) as caught:
        async with asyncio.timeout(PATIENCE):
            await work.result()
    return str(caught.value)


def refusal(house: House) -> str:
    with pytest.raises(Refused) as caught:
        house.life.upgrade("ann")
    return str(caught.value)


async def test_an_upgrade_is_rehearsed_told_and_then_ends_this_code(house: House) -> None:
    house.may_end.clear()
    work = house.life.upgrade("ann")
    await until(lambda: house.rehearsals)
    assert house.life.end is None
    assert house.held == 0
    house.may_end.set()
    assert await house.life.ended() is End.UPGRADE
    assert await steps(work) == [
        "the new code reads the configuration and the state, and touches nothing",
        "clojarsd 2.0 takes over from 1.0",
    ]
    assert await work.result() == "clojarsd 2.0 takes over from 1.0"
    assert (house.life.by, house.held) == ("ann", 1)


async def test_after_an_upgrade_was_decided_nothing_is_begun(house: House) -> None:
    """What begins now would not be in the state that the new code reads."""
    house.life.upgrade("ann")
    await house.life.ended()
    with pytest.raises(Refused) as caught:
        house.orders.submit(Verb.STOP, (B,), "bob")
    assert str(caught.value) == "cannot stop backup: clojarsd is being upgraded"
    with pytest.raises(Refused) as caught:
        house.life.stop("bob")
    assert str(caught.value) == "cannot stop: clojarsd is being upgraded; the one that comes can be stopped"
    assert refusal(house) == "cannot upgrade: an upgrade is under way; clojarsd 1.0 goes on"


async def test_a_rehearsal_that_fails_leaves_everything_as_it_was(house: House) -> None:
    house.version = Failed("the new code cannot take over: SyntaxError: invalid syntax")
    work = house.life.upgrade("ann")
    assert await failure(work) == (
        "cannot upgrade: the new code cannot take over: SyntaxError: invalid syntax; clojarsd 1.0 stays in charge"
    )
    event, message, role, by, detail = house.units.history.events[-1]
    assert (event, role, by) == (EventName.ORDER, None, "ann")
    assert message == f"cannot upgrade: {detail['failed']}; clojarsd 1.0 stays in charge"
    assert (house.life.end, house.held) == (None, 0)
    house.orders.submit(Verb.DRAIN, (B,), "bob")
    house.version = "2.0"
    await until(lambda: house.orders.under_way is None)
    house.life.upgrade("ann")
    assert await house.life.ended() is End.UPGRADE


async def test_a_state_that_cannot_be_kept_is_not_handed_over(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clojarsd.runtime.life.KEEP_TIMEOUT", 0.01)
    house.may_be_kept.clear()
    work = house.life.upgrade("ann")
    assert await failure(work) == (
        "cannot upgrade: the state is not on the disk within 0.01 s; clojarsd 1.0 stays in charge"
    )
    assert house.rehearsals == 0


@pytest.mark.parametrize("verb", [Verb.RESTART, Verb.STOP, Verb.DRAIN])
async def test_an_upgrade_waits_for_no_order(house: House, verb: Verb) -> None:
    house.units.is_lively = house.units.traffic.calls_back_at_once = False
    work = house.orders.submit(verb, (B,), "bob")
    assert refusal(house) == (
        f"cannot upgrade: an order is under way: {verb.value} backup (by bob); clojarsd 1.0 goes on"
    )
    other = house.orders.submit(Verb.UNDRAIN, (P,), "eve")
    await other.result()
    house.units.traffic.when_drained[B]()
    if verb is Verb.RESTART:
        await until(lambda: len(house.units.launched[B]) == 2)
        house.units.serve(B)
    await work.result()
    await until(lambda: house.orders.under_way is None)
    house.life.upgrade("ann")
    assert await house.life.ended() is End.UPGRADE


async def test_an_order_that_begins_during_the_rehearsal_goes_first(house: House) -> None:
    house.may_end.clear()
    work = house.life.upgrade("ann")
    await until(lambda: house.rehearsals)
    house.units.is_lively = house.units.traffic.calls_back_at_once = False
    house.orders.submit(Verb.STOP, (B,), "bob")
    house.may_end.set()
    assert await failure(work) == (
        "cannot upgrade: an order is under way: stop backup (by bob); clojarsd 1.0 stays in charge"
    )
    assert house.life.end is None


async def test_two_upgrades_at_once_are_one(house: House) -> None:
    house.may_end.clear()
    house.life.upgrade("ann")
    assert refusal(house) == "cannot upgrade: an upgrade is under way; clojarsd 1.0 goes on"
    house.may_end.set()
    await house.life.ended()
    assert house.rehearsals == 1
    assert house.life.by == "ann"


async def test_a_stop_during_the_rehearsal_wins(house: House) -> None:
    house.may_end.clear()
    upgrade = house.life.upgrade("ann")
    await until(lambda: house.rehearsals)
    stop = house.life.stop("bob")
    assert await house.life.ended() is End.STOP
    house.may_end.set()
    assert (await failure(upgrade)).startswith("cannot upgrade: clojarsd is ending")
    assert (house.life.end, house.life.by, house.held) == (End.STOP, "bob", 0)
    house.life.stopped()
    assert await steps(stop) == ["the primary is stopped, then the backup, then clojarsd"]
    assert await stop.result() == "primary and backup are stopped; clojarsd ends"


async def test_everybody_who_asks_for_the_end_hears_of_it(house: House) -> None:
    first, second = house.life.stop("ann"), house.life.stop("bob")
    assert await house.life.ended() is End.STOP
    assert house.life.by == "ann"
    with pytest.raises(Refused) as caught:
        house.orders.submit(Verb.RESTART, (B,), "bob")
    assert str(caught.value) == "cannot restart backup: clojarsd is stopping"
    assert refusal(house) == "cannot upgrade: clojarsd is ending; clojarsd 1.0 goes on"
    house.life.stopped()
    assert await first.result() == await second.result() == "primary and backup are stopped; clojarsd ends"
    late = house.life.stop("eve")
    assert await late.result() == "primary and backup are stopped; clojarsd ends"


@pytest.mark.parametrize("hook", [HookName.PRE_START, HookName.POST_STOP])
async def test_an_upgrade_is_refused_while_a_hook_runs(hook: HookName) -> None:
    units = Units(replace(POLICY, hooks={hook: LONG}), hooks={hook: HookPlan(lambda: (("x",),), LONG)})
    units.traffic.calls_back_at_once = True
    async with living(units) as house:
        units.runners[B].order(Start(), "test")
        if hook is HookName.POST_STOP:
            units.serve(B)
            units.exit(B, TERMED)
        assert refusal(house) == f"cannot upgrade: {hook.value} of backup runs; clojarsd 1.0 goes on"
        units.hooks[-1].on_end(None)
        house.life.upgrade("ann")
        assert await house.life.ended() is End.UPGRADE
