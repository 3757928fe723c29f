"""A supervisor and a real relay process: each may die, and the other goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.errors import Failed
from clojarsd.core.frontend_plan import CountedFrom, FrontendPlan, Pause
from clojarsd.core.history import EventName
from clojarsd.core.names import Address, Role
from clojarsd.core.relay_messages import PROTOCOL, HandOver, Hello, Refusal, from_relay, to_relay
from clojarsd.core.routing import Caps
from clojarsd.runtime import relay_link as module
from clojarsd.runtime import relay_replacement as replacement
from clojarsd.runtime.budget import Budget
from clojarsd.runtime.frontend import Frontend
from clojarsd.runtime.handover import take_over
from clojarsd.runtime.relay_link import RelayLink
from clojarsd.runtime.relay_owner import SOCKET
from clojarsd.system.channel import Channel, Descriptors
from clojarsd.system.channel import pair as channel_pair
from clojarsd.system.relay import RelayResources
from clojarsd.system.relay_socket import RelaySocket, connect, make_room
from tests.support.app import blocked
from tests.support.fronts import LOOPBACK, NEVER, B, P, Past, descriptors_left
from tests.support.relays import NOBODY, Pair, a_pair, is_relay, limit
from tests.support.sockets import open_descriptors, tcp_pair
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.slow


ACCOUNTS = [None, NOBODY] if os.geteuid() == 0 else [None]


@pytest.fixture(params=ACCOUNTS, ids=lambda account: "nobody" if account else "same-user")
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    async with a_pair(tmp_path, request.param) as pair:
        yield pair


def counts(link: RelayLink, name: str = "line") -> tuple[int, int, int]:
    """The connections that are open, by role, and those that are held."""
    shown = link.views[name].view().connections
    return shown[P], shown[B], shown[None]


def accepted(link: RelayLink, name: str = "line") -> tuple[int, int, int]:
    shown = link.views[name].view().accepted_total
    return shown[P], shown[B], shown[None]


def pid_of(link: RelayLink) -> int:
    assert link.pid is not None
    return link.pid


async def leave_without_ceremony(link: RelayLink) -> None:
    """What is left of a supervisor that is killed: its descriptors are closed."""
    link.detach()


# Doing what the supervisor says.


async def test_clients_go_where_the_supervisor_says(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        assert await (await pair.client(view)).ask() == b"p"
        link.set_eligible(P, False)
        await until(lambda: link.views["line"].view().active is B, "the backup")
        assert await (await pair.client(view)).ask() == b"b"
        await until(lambda: counts(link) == (1, 1, 0), "the numbers")
        assert accepted(link) == (1, 1, 0)
        await link.close()


async def test_nobody_is_accepted_before_it_begins(pair: Pair) -> None:
    async with pair.link(begin=False) as link:
        link.set_eligible(P, True)
        view = await pair.listening(link)
        client = await pair.client(view)
        client.writer.write(b"early")
        await link.configure([pair.plan(hold=1.0)])  # and the answer has come, so that it had its time
        assert accepted(link) == (0, 0, 0)
        link.begin()
        assert await client.ask() == b"p"
        await link.close()


async def test_who_waits_is_told_at_once_and_events_go_to_the_history(pair: Pair) -> None:
    async with pair.link(begin=False) as link:
        past, changes = Past(), list[bool]()
        link.attach(past)
        link.changed = lambda: changes.append(True)
        link.set_eligible(P, True)
        link.begin()
        await until(lambda: link.views["line"].view().active is P, "the primary")
        assert changes
        link.set_eligible(B, True)
        link.set_eligible(P, False)
        await until(lambda: past.events == [EventName.FAILOVER], "the failover")
        link.set_eligible(B, False)
        await until(lambda: link.views["line"].view().active is None, "nobody")
        before = len(changes)
        client = await pair.client(link)
        await until(lambda: counts(link) == (0, 0, 1) and len(changes) > before, "the one who waits")
        await until(lambda: past.events[1:] == [EventName.HOLD_STARTED], "the hold")
        link.set_eligible(B, True)
        assert await client.ask() == b"b"
        await until(lambda: past.events[2:] == [EventName.HOLD_ENDED], "the end of the hold")
        await link.close()


async def test_an_instance_that_cannot_be_connected_to_is_doubted(pair: Pair) -> None:
    async with pair.link() as link:
        doubts: list[Role] = []
        link.doubt = doubts.append
        pair._serving[P].close()
        pair.instances[P].refuse()
        assert await (await pair.client(await pair.listening(link))).ask() == b"b"
        await until(lambda: doubts == [P], "the doubt")
        await link.close()


async def test_a_drain_is_over_when_the_last_connection_has_ended(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        client = await pair.client(view)
        assert await client.ask() == b"p"
        drained: list[str] = []
        link.set_eligible(P, False)
        link.begin_drain(P, lambda: drained.append("first"))
        link.end_drain(P)
        link.begin_drain(P, lambda: drained.append("second"))
        assert await client.ask() == b"p"
        assert drained == []
        assert link.tally(P) is None, "it is not over"
        client.close()
        await until(lambda: drained == ["second"], "the end of the drain")
        assert link.tally(P) == DrainTally(ended=1)
        await link.close()


async def test_a_cut_resets_the_connections_of_one_role(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        at_primary = await pair.client(view)
        assert await at_primary.ask() == b"p"
        link.set_eligible(P, False)
        at_backup = await pair.client(view)
        await until(lambda: counts(link) == (1, 1, 0), "both")
        link.cut(P)
        assert await at_primary.is_cut()
        assert await at_backup.ask() == b"b"
        await link.close()


async def test_a_stop_takes_in_who_waits_and_refuses_others_everywhere(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        client = await pair.client(view)
        assert await client.ask() == b"p"
        os.kill(pid_of(link), signal.SIGSTOP)
        waiting = await pair.client(view)
        link.stop_accepting()
        os.kill(pid_of(link), signal.SIGCONT)
        assert await waiting.ask() == b"p"

        def is_refused() -> bool:
            with socket.socket() as late:
                return late.connect_ex((LOOPBACK, int(view.listen[0].rpartition(":")[2]))) != 0

        await until(is_refused, "the refusal")
        assert await client.ask() == b"p"
        await link.close()


async def test_closing_ends_the_process_and_leaves_nothing(pair: Pair) -> None:
    before = open_descriptors()
    async with pair.link() as link:
        pid = pid_of(link)
        assert pair.owned == {pid}
        client = await pair.client(await pair.listening(link))
        assert await client.ask() == b"p"
        await link.close()
        assert not is_relay(pid)
        assert link.pid is None
        assert await client.is_cut()
        client.close()
    assert list(pair.dir.iterdir()) == []
    assert pair.owned == set()
    await until(lambda: open_descriptors() <= before, "the closing of all descriptors")
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def test_a_process_that_was_made_and_never_begun_ends_with_the_link(pair: Pair) -> None:
    async with pair.link(begin=False) as link:
        pid = pid_of(link)
    assert not is_relay(pid)


async def test_an_address_that_is_taken_is_said_and_nothing_is_left(pair: Pair) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        plan = pair.plan(listen=(Address(LOOPBACK, 0), Address(LOOPBACK, port)))
        before = open_descriptors()
        with pytest.raises(
            Failed, match=f"cannot listen on {LOOPBACK}:{port} for frontend line: address already in use"
        ):
            async with RelayLink.open([plan], pair.dir):
                pass
        assert open_descriptors() == before
        assert list(pair.dir.iterdir()) == []


# The supervisor goes, and another one comes.


async def test_everything_goes_on_without_a_supervisor_and_the_next_one_adopts_it(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        pid = pid_of(link)
        client = await pair.client(view)
        assert await client.ask() == b"p"
        await until(lambda: accepted(link) == (1, 0, 0), "the count")
        await leave_without_ceremony(link)
    assert await client.ask() == b"p"
    assert await (await pair.client(view)).ask() == b"p"
    pair._serving[P].close()
    pair.instances[P].refuse()
    assert await (await pair.client(view)).ask() == b"b", "the other is taken, though nobody says so"
    async with pair.link(begin=False) as link:
        assert link.pid == pid
        assert link.is_adopted
        assert not link.is_outdated
        assert pair.owned == {pid}
        assert link.views["line"].view().listen == view.listen
        assert counts(link) == (2, 1, 0)
        assert accepted(link) == (2, 1, 0)
        link.begin()
        assert await client.ask() == b"p"
        assert await (await pair.client(view)).ask() == b"b"
        await link.close()


async def test_what_happens_without_a_supervisor_is_told_to_the_next_one(pair: Pair) -> None:
    past = Past()
    async with pair.link(begin=False) as link:
        link.set_eligible(B, True)
        link.begin()
        await until(lambda: link.views["line"].view().active is B, "the backup")
        await leave_without_ceremony(link)
    pair._serving[B].close()
    pair.instances[B].refuse()
    client = await pair.client(link)
    async with pair.link(begin=False) as link:
        await until(lambda: counts(link) == (0, 0, 1), "the one who waits")
        link.attach(past)
        await until(lambda: past.events == [EventName.HOLD_STARTED], "the event")
        client.close()
        await until(lambda: past.events[1:] == [EventName.HOLD_ENDED], "the next event")
        await link.close()


async def test_a_failback_comes_also_when_nobody_supervises(pair: Pair) -> None:
    async with pair.link(pair.plan(failback=0.5)) as link:
        view = await pair.listening(link)
        await until(lambda: link.views["line"].view().active is P, "the primary")
        link.set_eligible(P, False)
        await until(lambda: link.views["line"].view().active is B, "the backup")
        link.set_eligible(P, True)
        await link.configure([pair.plan(failback=0.51)])  # all before is done when this is
        await leave_without_ceremony(link)
    answers = []

    async def ask() -> bool:
        client = await pair.client(view)
        answers.append(await client.ask())
        client.close()
        return answers[-1] == b"p"

    async with asyncio.timeout(30):
        while not await ask():
            pass
    async with pair.link(pair.plan(failback=0.51), begin=False) as link:
        await link.close()


async def test_a_drain_goes_on_over_the_death_of_its_supervisor(pair: Pair) -> None:
    drained: list[str] = []
    async with pair.link() as link:
        clients = [await pair.client(await pair.listening(link)) for _ in range(2)]
        for client in clients:
            assert await client.ask() == b"p"
        link.set_eligible(P, False)
        link.begin_drain(P, lambda: drained.append("nobody hears it"))
        await link.configure([pair.plan(hold=1.0)])
        await leave_without_ceremony(link)
    clients[0].close()
    async with pair.link(pair.plan(hold=1.0), begin=False) as link:
        assert link.draining == {P}
        link.begin_drain(P, lambda: drained.append("still going on"))
        assert link.draining == set()
        assert await clients[1].ask() == b"p"
        await leave_without_ceremony(link)
    clients[1].close()
    async with pair.link(pair.plan(hold=1.0), begin=False) as link:
        await until(lambda: counts(link) == (0, 0, 0), "that nobody is left")
        link.begin_drain(P, lambda: drained.append("was over before"))
        await until(lambda: drained == ["was over before"], "the end of the drain")
        await link.close()


async def test_a_shorter_drain_is_heard_of_by_a_later_supervisor_too(pair: Pair) -> None:
    async with pair.link() as link:
        client = await pair.client(await pair.listening(link))
        assert await client.ask() == b"p"
        link.set_eligible(P, False)
        link.begin_drain(P, lambda: None)
        await until(lambda: P in link.views["line"].view().draining, "the drain in the view")
        await leave_without_ceremony(link)
    drained: list[str] = []
    async with pair.link(begin=False) as link:
        link.begin_drain(P, lambda: drained.append("over"))
        link.begin_drain(P, lambda: drained.append("over at once"), 0.0)
        assert await client.is_cut()
        await until(lambda: drained == ["over at once"], "the end of the drain")
        tally = link.tally(P)
        assert tally is not None
        assert (tally.cut, tally.total, tally.is_sooner) == (1, 1, True)
        await until(lambda: not link.views["line"].view().draining, "no drain in the view")
        await link.close()


# What operators order.


def paused_by(link: RelayLink) -> str | None:
    seen = link.views["line"].view().paused
    return seen.by if seen is not None else None


async def test_a_pause_ends_by_itself_on_both_sides(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        until_then = asyncio.get_running_loop().time() + 0.3
        link.pause("line", until_then, "ada")
        assert link.paused == {"line": Pause(until_then, "ada")}
        await until(lambda: paused_by(link) == "ada", "the pause")
        client = await pair.client(view)
        client.writer.write(b"?")
        await until(lambda: counts(link) == (0, 0, 1), "the one who waits")
        assert await client.hear() == b"p"
        await until(lambda: link.paused == {}, "the end on our side")
        await until(lambda: paused_by(link) is None, "the end in the view")
        await link.close()


async def test_a_pause_can_be_ended_and_nothing_is_said_of_one_that_is_not(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        link.resume("line")
        link.pause("line", asyncio.get_running_loop().time() + NEVER, "ada")
        await until(lambda: paused_by(link) == "ada", "the pause")
        link.resume("line")
        assert link.paused == {}
        assert await (await pair.client(view)).ask() == b"p"
        await link.close()


async def test_a_frontend_of_the_same_name_that_comes_later_is_not_paused(pair: Pair) -> None:
    async with pair.link() as link:
        link.pause("line", asyncio.get_running_loop().time() + NEVER, "ada")
        assert link.steering._paused == {"line"}
        await link.configure([])
        assert link.paused == {}
        assert link.steering._paused == set(), "the kernel would not be told of the next one"
        await link.close()


async def test_a_pause_goes_on_and_ends_without_a_supervisor(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        link.pause("line", asyncio.get_running_loop().time() + 0.5, "ada")
        await until(lambda: paused_by(link) == "ada", "the pause")
        await leave_without_ceremony(link)
    client = await pair.client(view)
    client.writer.write(b"?")
    assert await client.hear() == b"p"
    async with pair.link() as link:
        assert link.paused == {}
        await link.close()


async def test_the_next_supervisor_knows_of_a_pause_and_can_end_it(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    async with pair.link() as link:
        view = await pair.listening(link)
        link.pause("line", loop.time() + NEVER, "ada")
        await until(lambda: paused_by(link) == "ada", "the pause")
        await leave_without_ceremony(link)
    async with pair.link() as link:
        assert paused_by(link) == "ada"
        assert link.paused["line"].by == "ada"
        assert link.paused["line"].until == pytest.approx(loop.time() + NEVER, abs=NEVER / 2)
        client = await pair.client(view)
        client.writer.write(b"?")
        await until(lambda: counts(link)[2] == 1, "the one who waits")
        link.resume("line")
        assert await client.hear() == b"p"
        await link.close()


async def test_pauses_limits_shares_and_counts_go_on_when_the_relay_process_dies_or_is_replaced(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        assert await (await pair.client(view)).ask() == b"p"
        await until(lambda: accepted(link) == (1, 0, 0), "the number")
        link.pause("line", asyncio.get_running_loop().time() + NEVER, "ada")
        link.cap("line", Caps(7, 5, 3))
        link.share("line", 0.25)
        since = CountedFrom({P: 1, B: 0, None: 0}, "2026-11-23T12:00:00.000Z", "ada")
        link.count_from("line", since)

        def all_there() -> bool:
            seen = link.views["line"].view()
            is_limited = paused_by(link) == "ada" and seen.caps == Caps(7, 5, 3)
            return is_limited and seen.share == 0.25 and seen.counted_from == since

        await until(all_there, "what was ordered")
        await link.replace()
        await until(all_there, "what was ordered, in another process")
        before = pid_of(link)
        os.kill(before, signal.SIGKILL)
        await until(lambda: link.pid not in (None, before), "the next one")
        await until(all_there, "what was ordered, in a process that knew nothing")
        client = await pair.client(view)
        client.writer.write(b"?")
        await until(lambda: counts(link)[2] == 1, "the one who waits")
        await link.close()


async def test_a_pause_of_a_frontend_that_is_removed_is_forgotten(pair: Pair) -> None:
    async with pair.link(pair.plan(), pair.plan("old")) as link:
        link.pause("old", asyncio.get_running_loop().time() + NEVER, "ada")
        await link.configure([pair.plan()])
        assert link.paused == {}
        await link.close()


async def test_who_waits_because_of_a_pause_is_served_when_clients_are_refused_from_now_on(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        link.pause("line", asyncio.get_running_loop().time() + NEVER, "ada")
        await until(lambda: paused_by(link) == "ada", "the pause")
        client = await pair.client(view)
        client.writer.write(b"?")
        await until(lambda: counts(link)[2] == 1, "the one who waits")
        link.stop_accepting()
        assert await client.hear() == b"p"
        await link.close()


async def test_a_supervisor_with_other_plans_changes_what_is_different(pair: Pair) -> None:
    async with pair.link(pair.plan(), pair.plan("old")) as link:
        view, old = await pair.listening(link), await pair.listening(link, "old")
        client, at_old = await pair.client(view), await pair.client(old)
        assert [await client.ask(), await at_old.ask()] == [b"p", b"p"]
        await leave_without_ceremony(link)
    async with pair.link(pair.plan(hold=1.0), pair.plan("new")) as link:
        new = await pair.listening(link, "new")
        assert set(link.views) == {"line", "new"}
        assert [await client.ask(), await at_old.ask()] == [b"p", b"p"]
        assert await (await pair.client(view)).ask() == b"p"
        assert await (await pair.client(new)).ask() == b"p"
        await link.close()


async def test_a_second_supervisor_is_refused_while_the_first_one_lives(pair: Pair) -> None:
    async with pair.link() as link:
        with pytest.raises(Failed, match=f"cannot use the relay process {link.pid}: .* process number {os.getpid()}"):
            async with RelayLink.open([pair.plan()], pair.dir):
                pass
        assert await (await pair.client(await pair.listening(link))).ask() == b"p"
        await link.close()


async def test_signals_are_the_supervisors_business_until_there_is_none(pair: Pair) -> None:
    async with pair.link() as link:
        pid = pid_of(link)
        view = await pair.listening(link)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        await link.configure([pair.plan(hold=1.0)])
        assert await (await pair.client(view)).ask() == b"p"
        await leave_without_ceremony(link)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGHUP)
    assert await (await pair.client(view)).ask() == b"p"
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    assert list((pair.dir / SOCKET).parent.iterdir()) == []


async def test_signals_wait_for_the_main_thread_and_for_nobody_else(pair: Pair) -> None:
    """Another thread may take one, and get its turn only when the supervisor that was there by then has gone."""
    async with pair.link() as link:
        tasks, ends = Path(f"/proc/{link.pid}/task"), {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        await until(lambda: len(list(tasks.iterdir())) >= 2, "the thread that writes the log")
        threads = {int(task.name): blocked(task) for task in tasks.iterdir()}
        assert ends & threads.pop(pid_of(link)) == set()
        assert all(held >= ends for held in threads.values()), threads
        await link.close()


# The relay process dies, hangs, or is not to be found.


async def test_a_killed_relay_process_is_replaced_and_nobody_is_refused(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        pid = pid_of(link)
        client = await pair.client(view)
        assert await client.ask() == b"p"
        await until(lambda: accepted(link) == (1, 0, 0), "the count")
        changes: list[Role | None] = []
        link.changed = lambda: changes.append(link.views["line"].view().active)
        os.kill(pid, signal.SIGKILL)
        others = [await pair.client(view) for _ in range(5)]
        await client.ended()
        assert [await other.ask() for other in others] == [b"p"] * 5
        assert link.pid != pid
        assert pair.owned == {link.pid}
        await until(lambda: counts(link) == (5, 0, 0), "the numbers")
        assert accepted(link) == (6, 0, 0), "it counts on"
        assert changes == [None, P]
        await link.close()


async def test_one_that_dies_while_the_supervisor_has_no_descriptors_is_replaced_when_it_has_some(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        with descriptors_left(0), structlog.testing.capture_logs() as logged:
            os.kill(pid_of(link), signal.SIGKILL)
            await until(lambda: link._delay > replacement.FIRST_DELAY, "two tries")
        reason = "cannot start the relay process: too many open files"
        assert [line["reason"] for line in logged if line["event"] == "relay_not_started"] == [reason] * 2
        assert await (await pair.client(view)).ask() == b"p"
        await link.close()


async def test_its_successor_does_not_fail_back_before_its_time(pair: Pair) -> None:
    async with pair.link(pair.plan(failback=NEVER), begin=False) as link:
        view = await pair.listening(link)
        link.set_eligible(P, True)
        link.begin()
        assert await (await pair.client(view)).ask() == b"p"
        link.set_eligible(P, False)
        link.set_eligible(B, True)
        await until(lambda: link.views["line"].view().active is B, "the backup")
        link.set_eligible(P, True)
        os.kill(pid_of(link), signal.SIGKILL)
        assert await (await pair.client(view)).ask() == b"b"
        await link.close()


async def test_a_drain_is_over_when_the_relay_process_dies(pair: Pair) -> None:
    async with pair.link() as link:
        client = await pair.client(await pair.listening(link))
        assert await client.ask() == b"p"
        drained: list[str] = []
        link.set_eligible(P, False)
        link.begin_drain(P, lambda: drained.append("over"))
        os.kill(pid_of(link), signal.SIGKILL)
        await until(lambda: drained == ["over"], "the end of the drain")
        await until(lambda: link.pid is not None, "the next process")
        link.end_drain(P)
        link.begin_drain(P, lambda: drained.append("again"))
        await until(lambda: drained == ["over", "again"], "the end of the next drain")
        await link.close()


async def test_one_that_does_not_answer_is_killed_and_replaced(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_EVERY", 0.05)
    async with pair.link() as link:
        view = await pair.listening(link)
        pid = pid_of(link)
        with structlog.testing.capture_logs() as logged:
            os.kill(pid, signal.SIGSTOP)
            client = await pair.client(view)
            assert await client.ask() == b"p"
        assert link.pid != pid
        assert {line["event"] for line in logged} >= {"relay_killed", "relay_lost", "relay_replaced"}
        await link.close()


async def test_one_after_the_other_dies_and_the_delay_grows(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        if seconds != module.PING_EVERY:
            delays.append(seconds)
            seconds = 0.0
        await sleep(seconds)

    async with pair.link() as link:
        monkeypatch.setattr(asyncio, "sleep", note)
        for _ in range(4):
            pid = pid_of(link)
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(30):
                while link.pid in (None, pid):
                    await sleep(0.01)
        monkeypatch.setattr(asyncio, "sleep", sleep)
        assert delays == [0.0, 0.1, 0.2, 0.4]
        assert await (await pair.client(await pair.listening(link))).ask() == b"p"
        await link.close()


async def test_a_removed_socket_is_made_again(pair: Pair) -> None:
    async with pair.link() as link:
        pid = pid_of(link)
        path = pair.dir / SOCKET
        assert path.stat().st_mode & 0o777 == 0o600
        path.unlink()
        await until(path.exists, "the socket")
        assert path.stat().st_mode & 0o777 == 0o600
        await leave_without_ceremony(link)
    async with pair.link(begin=False) as link:
        assert link.pid == pid
        await link.close()


async def test_one_that_does_not_answer_a_new_supervisor_is_ended_and_replaced(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = await a_plan_with_a_port(pair)
    async with pair.link(plan) as link:
        pid = pid_of(link)
        client = await pair.client(link)
        assert await client.ask() == b"p"
        os.kill(pid, signal.SIGSTOP)
        await leave_without_ceremony(link)
    monkeypatch.setattr("clojarsd.runtime.relay_launch.HELLO_TIMEOUT", 2.0)
    with structlog.testing.capture_logs() as logged:
        async with pair.link(plan) as link:
            assert link.pid != pid
            assert not link.is_adopted
            assert await (await pair.client(await pair.listening(link))).ask() == b"p"
            await client.ended()
            await link.close()
    assert not is_relay(pid)
    (line,) = [line for line in logged if line["event"] == "relay_ended"]
    assert re.search("does not answer within 2 s; its connections are cut", line["reason"])


async def test_one_of_another_version_is_ended_and_replaced(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = await a_plan_with_a_port(pair)
    async with pair.link(plan) as link:
        pid = pid_of(link)
        await leave_without_ceremony(link)
    monkeypatch.setattr("clojarsd.runtime.relay_launch.PROTOCOL", PROTOCOL + 1)
    with structlog.testing.capture_logs() as logged, pytest.raises(Failed, match="cannot start the relay process"):
        async with RelayLink.open([plan], pair.dir):
            pass  # our own relay process does not speak this version either
    assert not is_relay(pid)
    (line,) = [line for line in logged if line["event"] == "relay_ended"]
    assert re.search(f"speaks version {PROTOCOL} of the protocol.*its connections are cut", line["reason"])


async def test_a_supervisor_of_another_version_is_told_so_and_harms_nobody(pair: Pair) -> None:
    async with pair.link() as link:
        await until(lambda: link.views["line"].view().active is P, "the primary")
        await leave_without_ceremony(link)
    end = connect(pair.dir / SOCKET)
    assert end is not None
    heard: list[object] = []
    lost: list[str] = []

    def hear(message: dict[str, object], descriptors: Descriptors) -> None:
        heard.append(from_relay(message))

    stranger = Channel(end, hear, lost.append)
    stranger.send(to_relay(Hello(PROTOCOL + 1, "x")))
    await until(lambda: lost, "the end")
    assert heard == [Refusal(PROTOCOL, f"it speaks version {PROTOCOL} of the protocol")]
    async with pair.link(begin=False) as link:
        assert link.is_adopted
        await link.close()


async def test_what_is_left_of_a_dead_one_is_in_nobodys_way(pair: Pair) -> None:
    make_room((pair.dir / SOCKET).parent, None)
    listening = RelaySocket(pair.dir / SOCKET)
    listening.socket.close()
    async with pair.link() as link:
        assert await (await pair.client(await pair.listening(link))).ask() == b"p"
        await link.close()


async def test_one_that_loses_the_channel_and_lives_is_found_again(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        pid = pid_of(link)
        client = await pair.client(view)
        assert await client.ask() == b"p"
        drained: list[str] = []
        link.set_eligible(P, False)
        link.begin_drain(P, lambda: drained.append("over"))
        assert link._peer is not None
        link._peer.channel._end.send(b".no message")
        link.set_eligible(B, False)
        await until(lambda: link.pid is not None and link._peer is not None and link._peer.channel.is_open, "the link")
        assert link.pid == pid
        await until(lambda: link.views["line"].view().active is None, "nobody")
        assert await client.ask() == b"p"
        assert drained == []
        client.close()
        await until(lambda: drained == ["over"], "the end of the drain")
        await link.close()


async def test_a_relay_process_out_of_descriptors_keeps_its_clients_and_gets_the_frontend_later(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        pid = pid_of(link)
        client = await pair.client(view)
        assert await client.ask() == b"p"
        numbers = set(map(int, os.listdir(f"/proc/{pid}/fd")))
        first_free = min(set(range(len(numbers) + 1)) - numbers)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limit(pid, "nofile", first_free, hard, pair.account)
        await link.configure([pair.plan(), pair.plan("two")])
        assert link._peer is None or not link._peer.channel.is_open
        limit(pid, "nofile", hard, hard, pair.account)
        await until(lambda: link.pid is not None, "the link")
        assert link.pid == pid
        assert await client.ask() == b"p"
        assert await (await pair.client(await pair.listening(link, "two"))).ask() == b"p"
        await link.close()


# Frontends change.


async def a_plan_with_a_port(pair: Pair, name: str = "line") -> FrontendPlan:
    """A plan with a port of its own that nobody has."""
    with socket.create_server((LOOPBACK, 0)) as free:
        return pair.plan(name, listen=(Address(LOOPBACK, free.getsockname()[1]),))


async def test_frontends_come_change_and_go(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        client = await pair.client(view)
        assert await client.ask() == b"p"
        await link.configure([pair.plan(), pair.plan("two")])
        two = await pair.listening(link, "two")
        at_two = await pair.client(two)
        assert await at_two.ask() == b"p"
        swapped = {P: pair.instances[B].address, B: pair.instances[P].address}
        await link.configure([pair.plan(backends=swapped, hold=1.0), pair.plan("two")])
        assert await client.ask() == b"p", "an open connection stays where it is"
        assert await (await pair.client(view)).ask() == b"b"
        await link.configure([pair.plan("two")])
        assert set(link.views) == {"two"}
        with socket.socket() as late:
            assert late.connect_ex((LOOPBACK, int(view.listen[0].rpartition(":")[2]))) != 0
        assert await client.ask() == b"p", "it drains"
        assert await at_two.ask() == b"p"
        await link.close()


async def test_connections_of_a_removed_frontend_are_cut_after_its_drain(pair: Pair) -> None:
    async with pair.link(pair.plan(drain=0.2), pair.plan("two")) as link:
        client = await pair.client(await pair.listening(link))
        assert await client.ask() == b"p"
        await link.configure([pair.plan("two")])
        assert await client.is_cut()
        await link.close()


async def test_a_drain_waits_for_connections_of_removed_frontends(pair: Pair) -> None:
    async with pair.link(pair.plan(), pair.plan("two")) as link:
        client = await pair.client(await pair.listening(link))
        assert await client.ask() == b"p"
        await link.configure([pair.plan("two")])
        drained: list[str] = []
        link.begin_drain(P, lambda: drained.append("over"))
        assert await client.ask() == b"p"
        await link.configure([pair.plan("two", hold=1.0)])
        assert drained == []
        client.close()
        await until(lambda: drained == ["over"], "the end of the drain")
        await link.close()


async def test_an_address_goes_from_one_frontend_to_another_without_a_refusal(pair: Pair) -> None:
    plan = await a_plan_with_a_port(pair)
    async with pair.link(plan) as link:
        view = link.views["line"].view()
        client = await pair.client(view)
        assert await client.ask() == b"p"
        renamed = pair.plan("renamed", listen=plan.listen)
        await link.configure([renamed])
        assert await client.ask() == b"p"
        other = await pair.client(view)
        assert await other.ask() == b"p"
        await until(lambda: accepted(link, "renamed") == (1, 0, 0), "the count")
        await link.close()


async def test_what_cannot_be_listened_on_changes_nothing(pair: Pair) -> None:
    plan = await a_plan_with_a_port(pair)
    async with pair.link(plan) as link:
        view = link.views["line"].view()
        with socket.create_server((LOOPBACK, 0)) as taken:
            address = Address(*taken.getsockname())
            before = open_descriptors()
            with pytest.raises(Failed, match=f"cannot listen on {address} for frontend two: address already in use"):
                await link.configure([pair.plan("new"), pair.plan("two", listen=(address,))])
            assert open_descriptors() == before
        assert set(link.views) == {"line"}
        assert await (await pair.client(view)).ask() == b"p"
        await link.close()


async def test_what_was_configured_without_a_relay_process_is_told_to_the_next(pair: Pair) -> None:
    async with pair.link(run=False) as link:
        await pair.listening(link)
        pid = pid_of(link)
        os.kill(pid, signal.SIGKILL)
        await until(link._lost.is_set, "its end")
        with structlog.testing.capture_logs() as logged:
            await link.configure([pair.plan("two")])
        assert logged == [], "nobody is waited for who will not answer"
        async with asyncio.TaskGroup() as group:
            running = group.create_task(link.run())
            await until(lambda: link.pid not in (None, pid), "the next process")
            two = await pair.listening(link, "two")
            assert await (await pair.client(two)).ask() == b"p"
            await link.close()
            running.cancel()


async def test_many_frontends_have_more_sockets_than_a_packet_holds(pair: Pair) -> None:
    plans = [pair.plan(f"f{number}", listen=(Address(LOOPBACK, 0),) * 3) for number in range(90)]
    async with pair.link(*plans) as link:
        last = await pair.listening(link, "f89")
        assert len(set(last.listen)) == 3
        assert await (await pair.client(last)).ask() == b"p"
        await leave_without_ceremony(link)
    async with pair.link(*plans, begin=False) as link:
        assert link.is_adopted
        assert link.views["f89"].view().listen == last.listen
        assert await (await pair.client(last)).ask() == b"p"
        await link.close()


# One relay process takes over from another.


async def test_another_process_takes_everything_over(pair: Pair) -> None:
    async with pair.link(pair.plan(), pair.plan("two")) as link:
        view = await pair.listening(link)
        old = pid_of(link)
        clients = [await pair.client(view) for _ in range(20)]
        assert [await client.ask() for client in clients] == [b"p"] * 20
        drained: list[str] = []
        link.set_eligible(P, False)
        link.begin_drain(P, lambda: drained.append("over"))
        at_backup = await pair.client(view)
        assert await at_backup.ask() == b"b"
        await link.replace()
        assert link.pid != old
        assert not is_relay(old)
        assert pair.owned == {link.pid}
        assert counts(link) == (20, 1, 0)
        assert accepted(link) == (20, 1, 0)
        assert [await client.ask() for client in clients] == [b"p"] * 20
        assert await at_backup.ask() == b"b"
        assert await (await pair.client(view)).ask() == b"b"
        assert drained == []
        for client in clients:
            client.close()
        await until(lambda: drained == ["over"], "the end of the drain")
        new = pid_of(link)
        await leave_without_ceremony(link)
    async with pair.link(pair.plan(), pair.plan("two"), begin=False) as link:
        assert link.pid == new
        assert await at_backup.ask() == b"b"
        await link.close()
    assert list(pair.dir.iterdir()) == []


class Successor:
    """A process that takes over, as far as another one sees it; this one has no socket for supervisors yet."""

    def __init__(self) -> None:
        self._resources = RelayResources(reset_flush=NEVER, move_flush=NEVER, max_pipes=0)
        self._resources.poller.attach(asyncio.get_running_loop())
        self.frontends: list[Frontend] = []

    def frontend(self, plan: FrontendPlan) -> Frontend:
        self.frontends.append(Frontend(plan, self._resources, Budget(100)))
        return self.frontends[-1]

    def inherit(self, extra: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        assert extra["accepting"]

    def drained(self, name: str, role: Role) -> None:
        raise AssertionError

    def close(self) -> None:
        for frontend in self.frontends:
            frontend.close()
        self._resources.close()


async def test_one_that_has_handed_over_leaves_the_path_to_its_successor(pair: Pair) -> None:
    """Which comes to listen there in the same moment: what was taken away could be its socket."""
    async with pair.link(run=False) as link:
        client = await pair.client(await pair.listening(link))
        assert await client.ask() == b"p"
        old, (ours, theirs) = pid_of(link), channel_pair()
        with contextlib.closing(Successor()) as successor:
            link._tell(HandOver(), [theirs.fileno()])
            theirs.close()
            async with asyncio.timeout(PATIENCE):
                await take_over(ours, successor)
            assert await client.ask() == b"p"
            await until(lambda: not is_relay(old), "its end")
            assert (pair.dir / SOCKET).is_socket()
            assert connect(pair.dir / SOCKET) is None, "nobody listens there"


async def test_orders_that_are_given_meanwhile_are_carried_out_afterwards(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        client = await pair.client(view)
        assert await client.ask() == b"p"
        async with asyncio.TaskGroup() as group:
            replacing = group.create_task(link.replace())
            await until(lambda: link._held_back is not None, "the beginning")
            link.set_eligible(P, False)
            link.cut(P)
            configuring = group.create_task(link.configure([pair.plan(), pair.plan("two")]))
        assert replacing.done()
        assert configuring.done()
        assert await client.is_cut()
        assert await (await pair.client(view)).ask() == b"b"
        assert await (await pair.client(await pair.listening(link, "two"))).ask() == b"b"
        await link.close()


async def test_a_process_that_cannot_take_over_leaves_the_old_one_in_charge(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        old = pid_of(link)
        client = await pair.client(view)
        assert await client.ask() == b"p"
        monkeypatch.setattr("clojarsd.runtime.relay_launch.MODULE", "clojarsd.no_such_module")
        with pytest.raises(Failed, match=r"cannot replace the relay process: .*; the old one stays in charge"):
            await link.replace()
        assert link.pid == old
        assert pair.owned == {old}
        assert await client.ask() == b"p"
        link.set_eligible(P, False)
        await until(lambda: link.views["line"].view().active is B, "the backup")
        assert await (await pair.client(view)).ask() == b"b"
        monkeypatch.undo()
        await link.replace()
        assert link.pid != old
        assert await client.ask() == b"p"
        await link.close()


async def test_without_descriptors_the_old_one_stays_in_charge(pair: Pair) -> None:
    async with pair.link() as link:
        old = pid_of(link)
        client = await pair.client(await pair.listening(link))
        with descriptors_left(0), pytest.raises(Failed, match="cannot replace the relay process: too many open files"):
            await link.replace()
        with descriptors_left(2), pytest.raises(Failed, match="cannot start the relay process: too many open files"):
            await link.replace()
        assert link.pid == old
        assert await client.ask() == b"p"
        await link.close()


async def test_open_connections_of_removed_frontends_are_not_given_up_for_a_new_process(pair: Pair) -> None:
    async with pair.link(pair.plan(), pair.plan("two")) as link:
        old = pid_of(link)
        client = await pair.client(await pair.listening(link))
        assert await client.ask() == b"p"
        await link.configure([pair.plan("two")])
        with pytest.raises(Failed, match="removed are still open"):
            await link.replace()
        assert link.pid == old
        assert await client.ask() == b"p"
        await link.close()


# Clients out of an accept queue.


async def answered(client: socket.socket, count: int) -> bytes:
    client.setblocking(False)
    loop, got = asyncio.get_running_loop(), b""
    async with asyncio.timeout(PATIENCE):
        while len(got) < count:
            got += await loop.sock_recv(client, count - len(got))
    return got


@asynccontextmanager
async def out_of_a_queue(pair: Pair) -> AsyncIterator[tuple[RelayLink, socket.socket, socket.socket]]:
    """The link, a client that has asked, and the other end of its connection, which waited at the primary."""
    async with pair.link() as link:
        client, waiting = tcp_pair()
        with client:
            client.sendall(b"xyz")
            link.set_eligible(P, False)
            yield link, client, waiting
        await link.close()


async def test_clients_that_waited_at_an_instance_are_served_by_the_other(pair: Pair) -> None:
    async with out_of_a_queue(pair) as (link, client, waiting):
        link.adopt("line", P, [waiting])
        assert waiting.fileno() == -1
        assert await answered(client, 3) == b"bbb"
        await until(lambda: counts(link) == (0, 1, 0), "the numbers")


async def test_they_wait_while_there_is_no_relay_process(pair: Pair) -> None:
    async with out_of_a_queue(pair) as (link, client, waiting):
        link._delay = 0.3  # as after one that has ended soon
        os.kill(pid_of(link), signal.SIGKILL)
        await until(lambda: link.pid is None, "the loss")
        link.adopt("line", P, [waiting])
        assert waiting.fileno() >= 0
        assert await answered(client, 3) == b"bbb"
        assert waiting.fileno() == -1


async def test_they_wait_also_when_it_is_not_known_yet_that_there_is_none(pair: Pair) -> None:
    async with out_of_a_queue(pair) as (link, client, waiting):
        os.kill(pid_of(link), signal.SIGKILL)
        os.waitid(os.P_PID, pid_of(link), os.WEXITED | os.WNOWAIT)
        link.adopt("line", P, [waiting])
        assert await answered(client, 3) == b"bbb"


async def test_those_for_whom_none_comes_are_reset_at_the_end(pair: Pair) -> None:
    client, waiting = tcp_pair()
    async with pair.link() as link:
        link._delay = PATIENCE
        os.kill(pid_of(link), signal.SIGKILL)
        await until(lambda: link.pid is None, "the loss")
        link.adopt("line", P, [waiting])
        await link.close()
    with client, pytest.raises(ConnectionResetError):
        await answered(client, 1)
