"""Several real relay processes for one pair: told the same, shown as one, and each may come, go and die."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.core.frontend_plan import CountedFrom, FrontendPlan
from clojarsd.core.history import EventName
from clojarsd.core.names import Address, Role
from clojarsd.core.routing import Caps
from clojarsd.core.view import FrontendView
from clojarsd.runtime import relay_fleet as module
from clojarsd.runtime.relay_fleet import RelayFleet
from clojarsd.runtime.relay_link import RelayLink
from clojarsd.runtime.relay_owner import numbers_in
from clojarsd.system.port_group import is_shared
from clojarsd.system.sockets import free_ports
from tests.support.fronts import LOOPBACK, NEVER, B, P, Past
from tests.support.relays import NOBODY, Client, Pair, a_pair, is_relay
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.slow

MANY = 40
"""Connections of which each of two processes gets some: that one gets none happens once in 2**39 times."""


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with a_pair(tmp_path, NOBODY if os.geteuid() == 0 else None) as pair:
        yield pair


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of these tests is on its way from another machine."""
    monkeypatch.setattr(module, "SETTLE", 0.1)


def view(fleet: RelayFleet, name: str = "line") -> FrontendView:
    return fleet.views[name].view()


def counts(fleet: RelayFleet) -> tuple[int, int, int]:
    shown = view(fleet).connections
    return shown[P], shown[B], shown[None]


def open_in(link: RelayLink) -> int:
    return sum(link.views["line"].view().connections.values())


def is_over(pid: int) -> bool:
    return not is_relay(pid)


async def clients(pair: Pair, fleet: RelayFleet, count: int = MANY) -> list[Client]:
    """So many clients that have been answered by the primary, some by each process."""
    seen = await pair.listening(fleet)
    found = [await pair.client(seen) for _ in range(count)]
    assert {await client.ask() for client in found} == {b"p"}
    await until(lambda: counts(fleet) == (count, 0, 0), "all to be counted")
    assert all(open_in(link) for link in fleet._workers)
    return found


class Loop:
    """A client that connects, asks and leaves, over and over, and counts what fails."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._port = port

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with socket.socket() as end:
                end.setblocking(False)
                try:
                    async with asyncio.timeout(PATIENCE):
                        await loop.sock_connect(end, (LOOPBACK, self._port))
                        await loop.sock_sendall(end, b"?")
                        assert await loop.sock_recv(end, 10) == b"p"
                    self.answered += 1
                except (OSError, TimeoutError, AssertionError) as error:
                    self.failed.append(repr(error))


async def test_clients_are_spread_over_the_processes_and_counted_together(pair: Pair) -> None:
    async with pair.fleet() as fleet:
        assert len(set(fleet.pids)) == 2
        assert fleet.pid == fleet.pids[0]
        found = await clients(pair, fleet)
        assert view(fleet).accepted_total == {P: MANY, B: 0, None: 0}
        assert view(fleet).active is P
        listed = await fleet.connections()
        assert len(listed.connections) == MANY
        fleet.count_from("line", CountedFrom({P: 0, B: 0, None: 0}, "then", "ann"))
        await until(lambda: view(fleet).counted_from is not None, "the order to be known")
        await until(lambda: view(fleet).accepted == {P: 0, B: 0, None: 0}, "nothing to be counted")
        for client in found:
            client.close()
        await until(lambda: counts(fleet) == (0, 0, 0), "all to have left")


async def test_one_process_alone_is_as_if_there_were_no_others(pair: Pair) -> None:
    async with pair.fleet(workers=1) as fleet:
        assert await (await pair.client(await pair.listening(fleet))).ask() == b"p"
        assert len(fleet.pids) == 1
        assert numbers_in(pair.dir) == set()
        assert not any(map(is_shared, fleet._workers[0].listeners.every))
        assert fleet.plans == fleet._workers[0].plans


async def test_all_go_where_the_supervisor_says_and_it_is_recorded_once(pair: Pair) -> None:
    async with pair.fleet(pair.plan(failback=0.0)) as fleet:
        past = Past()
        fleet.attach(past)
        await clients(pair, fleet)
        fleet.set_eligible(P, False)
        await until(lambda: all(link.views["line"].view().active is B for link in fleet._workers), "the failover")
        assert {await (await pair.client(fleet)).ask() for _ in range(MANY)} == {b"b"}
        fleet.set_eligible(P, True)
        await until(lambda: all(link.views["line"].view().active is P for link in fleet._workers), "the failback")
        assert past.events == [EventName.FAILOVER, EventName.FAILBACK]


async def test_a_hold_is_on_while_it_is_in_any_and_is_recorded_once(pair: Pair) -> None:
    async with pair.fleet(pair.plan(hold=NEVER)) as fleet:
        past = Past()
        fleet.attach(past)
        seen = await pair.listening(fleet)
        for role in (B, P):
            fleet.set_eligible(role, False)
        found = [await pair.client(seen) for _ in range(MANY)]
        await until(lambda: counts(fleet) == (0, 0, MANY), "all to wait")
        assert past.events == [EventName.HOLD_STARTED]
        fleet.set_eligible(B, True)
        assert {await client.ask() for client in found} == {b"b"}
        await until(lambda: past.events[-1] is EventName.HOLD_ENDED, "the end of the hold")
        held = [event for event in past.events if event in (EventName.HOLD_STARTED, EventName.HOLD_ENDED)]
        assert held == [EventName.HOLD_STARTED, EventName.HOLD_ENDED]


async def test_a_pause_holds_in_all_and_its_end_lets_go_in_all(pair: Pair) -> None:
    async with pair.fleet(pair.plan(hold=NEVER)) as fleet:
        seen = await pair.listening(fleet)
        fleet.pause("line", asyncio.get_running_loop().time() + NEVER, "ann")
        assert set(fleet.paused) == {"line"}
        found = [await pair.client(seen) for _ in range(MANY)]
        await until(lambda: counts(fleet) == (0, 0, MANY), "all to wait")
        assert view(fleet).paused is not None
        fleet.resume("line")
        assert {await client.ask() for client in found} == {b"p"}
        await until(lambda: view(fleet).paused is None, "the end of the pause")


async def test_a_drain_is_over_when_it_is_over_in_all(pair: Pair) -> None:
    async with pair.fleet(pair.plan(drain=NEVER, drain_idle=NEVER)) as fleet:
        found = await clients(pair, fleet)
        drained: list[str] = []
        fleet.begin_drain(P, lambda: drained.append("all"))
        of_second = set((await fleet._workers[1].connections()).connections)
        ports = {one.client.port for one in of_second if one.client is not None}
        for client in found:
            if client.writer.get_extra_info("sockname")[1] not in ports:
                client.close()
        await until(lambda: not open_in(fleet._workers[0]), "the first process's to have left")
        await until(lambda: not fleet._workers[0]._drains[P].is_in_relay, "the drain to be over there")
        assert drained == []
        for client in found:
            client.close()
        await until(lambda: drained == ["all"], "the end of the drain")


async def test_limits_are_divided_and_shown_as_they_were_wished(pair: Pair) -> None:
    async with pair.fleet(pair.plan(max_connections=5, hold=NEVER, hold_connections=9), workers=2) as fleet:
        assert [link.plans["line"].max_connections for link in fleet._workers] == [3, 2]
        assert fleet.plans["line"].max_connections == 5
        assert fleet.plans["line"].hold_connections == 9
        await until(lambda: view(fleet).caps == Caps(total=5), "the limits")
        fleet.cap("line", Caps(total=9, primary=4))
        await until(lambda: view(fleet).caps == Caps(total=9, primary=4), "other limits")
        await fleet.configure([pair.plan(max_connections=5)], workers=3)
        await until(lambda: view(fleet).caps == Caps(total=9, primary=4), "the same in three processes")
        assert [link.views["line"].view().caps.total for link in fleet._workers] == [3, 3, 3]
        fleet.cap("line", Caps(total=2))
        await until(lambda: view(fleet).caps == Caps(total=2), "a limit that is less than one for each")
        assert [link.views["line"].view().caps.total for link in fleet._workers] == [1, 1, 1]
        await fleet.configure([pair.plan(max_connections=6)])
        await until(lambda: view(fleet).caps == Caps(total=6), "what the settings say anew")


async def test_no_more_clients_are_served_than_there_may_be(pair: Pair) -> None:
    async with pair.fleet(pair.plan(max_connections=4, hold=0.0)) as fleet:
        seen = await pair.listening(fleet)
        for _ in range(MANY):  # most wait in the backlog
            await pair.client(seen)
        await until(lambda: counts(fleet) == (4, 0, 0), "as many as may be")
        assert [open_in(link) for link in fleet._workers] == [2, 2]


async def test_a_killed_process_is_replaced_and_the_others_serve(pair: Pair) -> None:
    async with pair.fleet() as fleet:
        found = await clients(pair, fleet)
        second = fleet._workers[1]
        left = open_in(fleet._workers[0])
        before, killed = fleet.pids, second.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask_anew(pair, view(fleet))) for _ in range(MANY)]
        assert {one.result() for one in asked} == {b"p"}
        await until(lambda: second.pid not in (None, killed), "another process")
        assert fleet.pids[0] == before[0]
        assert view(fleet).accepted_total[P] >= MANY
        still = [client for client in found if await survives(client)]
        assert len(still) == left


async def ask_anew(pair: Pair, seen: FrontendView) -> bytes:
    return await (await pair.client(seen)).ask()


async def survives(client: Client) -> bool:
    try:
        return await client.ask() == b"p"
    except (OSError, EOFError):
        return False


async def test_the_next_supervisor_adopts_all(pair: Pair) -> None:
    async with pair.fleet(pair.plan(failback=0.0)) as fleet:
        found = await clients(pair, fleet)
        before, port = fleet.pids, view(fleet).listen
    assert {await client.ask() for client in found} == {b"p"}
    async with pair.fleet(pair.plan(failback=0.0), begin=False) as fleet:
        assert fleet.pids == before
        assert fleet.eligible == set(Role)
        assert view(fleet).listen == port
        await until(lambda: counts(fleet) == (MANY, 0, 0), "all to be known")
        assert {await (await pair.client(fleet)).ask() for _ in range(MANY)} == {b"p"}
        fleet.set_eligible(P, False)
        assert {await ask_until(pair, fleet, b"b") for _ in range(MANY)} == {b"b"}


async def ask_until(pair: Pair, fleet: RelayFleet, answer: bytes) -> bytes:
    await until(lambda: view(fleet).active is B, "the failover")
    return await (await pair.client(fleet)).ask()


async def test_one_that_was_lost_with_its_supervisor_is_made_again_beside_the_others(pair: Pair) -> None:
    """The first one's sockets are gone; the new ones join those of the second, and nobody else could."""
    plan = pair.plan(listen=(Address(LOOPBACK, free_ports(1)[0]),))
    async with pair.fleet(plan) as fleet:
        await clients(pair, fleet)
        first, second = fleet._workers
        kept = second.pid
        fleet.detach()
        assert first.pid is None
    for pid in set(pair._pids) - {kept}:
        os.kill(pid, signal.SIGKILL)
        await until(lambda pid=pid: is_over(pid), "its end")  # type: ignore[misc]
    async with pair.fleet(plan) as fleet:
        assert fleet._workers[1].pid == kept
        assert fleet.pid not in (None, kept)
        assert {await (await pair.client(fleet)).ask() for _ in range(MANY)} == {b"p"}
        await until(lambda: all(open_in(link) for link in fleet._workers), "both to have some")


async def test_new_processes_take_over_from_all_one_after_the_other(pair: Pair) -> None:
    async with pair.fleet() as fleet:
        found = await clients(pair, fleet)
        before = set(fleet.pids)
        await fleet.replace()
        assert not before & set(fleet.pids)
        assert len(fleet.pids) == 2
        assert {await client.ask() for client in found} == {b"p"}
        assert {await (await pair.client(fleet)).ask() for _ in range(MANY)} == {b"p"}


async def test_more_and_fewer_processes_while_clients_come(pair: Pair, soon: None) -> None:
    """Nobody is refused or reset, whether processes come, go or stay after all."""
    plan = pair.plan(listen=(Address(LOOPBACK, free_ports(1)[0]),), drain=NEVER, drain_idle=0.1)
    async with pair.fleet(plan, workers=1) as fleet, asyncio.TaskGroup() as group:
        loops = [Loop(plan.listen[0].port) for _ in range(4)]
        tasks = [group.create_task(loop.run()) for loop in loops]

        async def more_come() -> None:
            before = [loop.answered for loop in loops]
            done = lambda: all(loop.answered > had + 20 for loop, had in zip(loops, before, strict=True))  # noqa: E731
            await until(done, "more answers")

        for count in (2, 1, 3, 2, 1, 2):
            await fleet.configure([plan], workers=count)
            await more_come()
            if count > 1:
                await until(lambda: len(fleet._leaving) == 0, "those that leave to have left")
        assert len(fleet.pids) == 2
        await fleet.configure([plan], workers=1)
        await fleet.configure([plan], workers=2)  # it stays
        await more_come()
        await fleet.configure([plan], workers=1)
        await until(lambda: not fleet._leaving, "the other one to have left")
        assert set(fleet.pids) == {fleet.pid}
        await more_come()
        assert not any(map(is_shared, fleet._workers[0].listeners.every))
        for task in tasks:
            task.cancel()
    assert [loop.failed for loop in loops] == [[]] * 4
    assert sum(loop.answered for loop in loops) > 100


async def test_one_that_leaves_lets_its_connections_end_and_its_counts_stay(pair: Pair, soon: None) -> None:
    plan = pair.plan(drain=NEVER, drain_idle=NEVER)
    async with pair.fleet(plan) as fleet:
        found = await clients(pair, fleet)
        second, pid = fleet._workers[1], fleet._workers[1].pid
        assert pid is not None
        await fleet.configure([plan], workers=1)
        await until(lambda: P in second._drains, "its drain")
        assert counts(fleet) == (MANY, 0, 0)
        assert {await client.ask() for client in found} == {b"p"}
        drained: list[Role] = []
        fleet.begin_drain(P, lambda: drained.append(P))
        for client in found[1:]:
            client.close()
        await until(lambda: sum(counts(fleet)) <= 1, "most to have left")
        assert not drained
        found[0].close()
        await until(lambda: is_over(pid), "its end")
        await until(lambda: drained == [P], "the end of the drain of all")
        await until(lambda: view(fleet).accepted_total == {P: MANY, B: 0, None: 0}, "all to be counted")
        assert numbers_in(pair.dir) == set()


async def test_one_that_stays_after_all_goes_on_with_a_drain(pair: Pair, soon: None) -> None:
    plan = pair.plan(drain=NEVER, drain_idle=NEVER)
    async with pair.fleet(plan) as fleet:
        found = await clients(pair, fleet)
        await fleet.configure([plan], workers=1)
        drained: list[Role] = []
        fleet.begin_drain(P, lambda: drained.append(P))
        await fleet.configure([plan], workers=2)
        for client in found[1:]:
            client.close()
        await until(lambda: sum(counts(fleet)) == 1, "all but one to have left")
        assert drained == []
        found[0].close()
        await until(lambda: drained == [P], "the end of the drain")


async def test_one_that_leaves_is_cut_after_the_drains_time(pair: Pair, soon: None) -> None:
    plan = pair.plan(drain=0.3, drain_idle=NEVER)
    async with pair.fleet(plan) as fleet:
        await clients(pair, fleet)
        pid = fleet.pids[1]
        await fleet.configure([plan], workers=1)
        await until(lambda: is_over(pid), "its end")


async def test_a_supervisor_that_wants_fewer_sees_the_others_out(pair: Pair, soon: None) -> None:
    async with pair.fleet() as fleet:
        found = await clients(pair, fleet)
        before = fleet.pids
    async with pair.fleet(workers=1) as fleet:
        assert set(fleet.pids) == set(before)
        await until(lambda: counts(fleet) == (MANY, 0, 0), "all to be known")
        assert {await (await pair.client(fleet)).ask() for _ in range(MANY)} == {b"p"}
        for client in found:
            client.close()
        await until(lambda: is_over(before[1]), "the other one's end")
        assert fleet.pids == before[:1]


async def test_one_that_is_killed_while_it_leaves_is_not_replaced(pair: Pair, soon: None) -> None:
    plan = pair.plan(drain=NEVER, drain_idle=NEVER)
    async with pair.fleet(plan) as fleet:
        await clients(pair, fleet)
        pid = fleet.pids[1]
        await fleet.configure([plan], workers=1)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not fleet._leaving, "it to be gone")
        assert fleet.pids == fleet.pids[:1]
        await fleet.configure([plan], workers=2)
        assert {await (await pair.client(fleet)).ask() for _ in range(MANY)} == {b"p"}


async def test_what_cannot_be_listened_on_changes_nothing(pair: Pair) -> None:
    async with pair.fleet() as fleet:
        before = dict(fleet.plans)
        with socket.create_server((LOOPBACK, 0)) as taken:
            other = pair.plan("other", listen=(Address(LOOPBACK, taken.getsockname()[1]),))
            with pytest.raises(Failed, match="cannot listen on"):
                await fleet.configure([*before.values(), other], workers=3)
        assert fleet.plans == before
        assert len(fleet.pids) == 2
        assert {await (await pair.client(fleet)).ask() for _ in range(MANY)} == {b"p"}


async def test_a_port_of_another_daemon_is_an_error_although_it_could_be_shared(pair: Pair, tmp_path: Path) -> None:
    plan = pair.plan(listen=(Address(LOOPBACK, free_ports(1)[0]),))
    other = tmp_path / "other"
    other.mkdir()
    async with pair.fleet(plan):
        with pytest.raises(Failed, match=r"address already in use by process \d+ "):
            async with RelayFleet.open([plan], other, workers=2):
                pass
        assert {await (await pair.client(view_of(plan))).ask() for _ in range(4)} == {b"p"}


def view_of(plan: FrontendPlan) -> FrontendView:
    none = dict.fromkeys((P, B, None), 0)
    return FrontendView(tuple(map(str, plan.listen)), "relay", None, P, none, none)


async def test_a_doubt_of_any_is_passed_on(pair: Pair) -> None:
    async with pair.fleet() as fleet:
        doubted: list[Role] = []
        fleet.doubt = doubted.append
        pair._serving[P].close()
        pair.instances[P].refuse()
        seen = await pair.listening(fleet)
        assert {await (await pair.client(seen)).ask() for _ in range(MANY)} == {b"b"}
        await until(lambda: P in doubted, "the doubt")


async def test_closing_ends_all_and_leaves_nothing(pair: Pair) -> None:
    async with pair.fleet(workers=3) as fleet:
        pids = fleet.pids
        assert len(pids) == 3
        await fleet.close()
    assert all(map(is_over, pids))
    assert not (pair.dir / "relay").exists()
    assert pair.owned == set()


async def test_clients_of_a_stuck_instance_go_back_to_the_process_that_has_them(pair: Pair) -> None:
    """Each is served by the other instance and counted there, whichever process has connected it."""
    async with pair.fleet() as fleet:
        pair._serving[P].close()
        pair.instances[P].listen()
        seen = await pair.listening(fleet)
        found = [await pair.client(seen) for _ in range(MANY)]
        for client in found:
            client.writer.write(b"?")
        await until(lambda: counts(fleet) == (MANY, 0, 0), "all to be at the primary")
        assert all(open_in(link) for link in fleet._workers)
        fleet.set_eligible(P, False)
        fleet.adopt("line", P, [pair.instances[P].accept() for _ in range(MANY)])
        assert {await client.hear() for client in found} == {b"b"}
        await until(lambda: not counts(fleet)[0], "none to be counted with the primary")
