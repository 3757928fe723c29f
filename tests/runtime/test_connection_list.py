"""Which relayed connections there are, one by one: in a frontend, and from the relay process to the supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clojarsd.core.connections import ConnectionList, ConnectionPhase, ConnectionView
from clojarsd.core.errors import Failed
from clojarsd.core.names import Address
from clojarsd.runtime import connection_list, relay_traffic
from clojarsd.runtime.connection_list import Listing
from tests.support.fronts import B, Front, P
from tests.support.relays import Pair, a_pair, is_relay
from tests.support.sockets import Rig, receive_exactly, wait_for
from tests.support.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with a_pair(tmp_path) as pair:
        yield pair


def listed(front: Front) -> tuple[list[ConnectionView], int]:
    """What the frontend's listing says, and how many are left out."""

    def look() -> tuple[list[ConnectionView], int]:
        listing, seen = Listing([front.frontend]), list[ConnectionView]()
        while part := listing.take(front.rig.loop.time()):
            seen.extend(part)
        return seen, listing.left_out

    return front.rig.call(look)


# In a frontend.


def test_a_connection_is_told_with_its_client_its_bytes_and_whether_an_answer_is_owed(rig: Rig) -> None:
    with Front(rig) as front:
        client = front.client(b"ask")
        instance = front.primary.accept()
        assert receive_exactly(instance, 3) == b"ask"
        front.until(primary=1)
        [[one], _] = listed(front)
        assert (one.frontend, one.mode, one.role, one.phase) == ("line", "relay", P, ConnectionPhase.OPEN)
        assert one.client == Address(*client.getsockname())
        assert (one.bytes_up, one.bytes_down, one.owed) == (3, 0, True)
        instance.sendall(b"answer")
        receive_exactly(client, 6)
        [[one], _] = listed(front)
        assert (one.bytes_up, one.bytes_down, one.owed) == (3, 6, False)
        assert one.open_seconds is not None
        assert one.silent_seconds is not None
        assert 0 <= one.silent_seconds <= one.open_seconds + 0.02  # the kernel's clock goes by steps
        instance.close()


def test_silence_grows_from_the_last_byte(rig: Rig) -> None:
    with Front(rig) as front:
        client = front.client()
        front.until(primary=1)

        def silent() -> float:
            return listed(front)[0][0].silent_seconds or 0.0

        wait_for(lambda: silent() > 0.1)
        client.sendall(b"x")
        instance = front.primary.accept()
        receive_exactly(instance, 1)
        assert silent() < 0.1
        instance.close()


def test_those_who_wait_are_told_too(rig: Rig) -> None:
    with Front(rig, primary=False, backup=False) as front:
        client = front.client()
        front.until(held=1)
        [[one], _] = listed(front)
        assert (one.role, one.phase, one.client) == (None, ConnectionPhase.HELD, Address(*client.getsockname()))
        assert one.open_seconds is not None
        client.close()
        front.until()


def test_those_that_are_being_connected_are_told_with_the_instance(rig: Rig) -> None:
    with Front(rig, backup=False) as front:
        front.primary.fill()
        front.client()
        rig.until(lambda: len(front.frontend.without_instance()) == 1, lambda: "nobody is being connected")
        [[one], _] = listed(front)
        assert (one.role, one.phase) == (P, ConnectionPhase.CONNECTING)
        front.primary.drop_fillers()
        front.eligible(primary=False, backup=True)
        front.until(backup=1)


def test_owed_ones_come_first_and_the_others_are_counted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_list, "MOST_LISTED", 3)
    monkeypatch.setattr(connection_list, "AT_A_TIME", 2)
    with Front(rig) as front:
        for _ in range(4):
            front.client()
        front.until(primary=4)
        asking = front.client(b"?")
        wait_for(lambda: any(one.owed for one in listed(front)[0]))
        seen, left_out = listed(front)
        assert (len(seen), left_out) == (3, 2)
        assert seen[0].client == Address(*asking.getsockname())


def test_one_that_ends_between_two_looks_is_left_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_list, "AT_A_TIME", 1)
    with Front(rig) as front:
        for _ in range(3):
            front.client()
        front.until(primary=3)

        def look() -> int:
            listing = Listing([front.frontend])
            count = len(listing.take(0.0))
            front.frontend.cut(P)
            return count + len(listing.take(0.0))

        assert rig.call(look) == 1


# From the relay process to the supervisor.


async def test_the_supervisor_is_told_of_all_frontends_or_of_one(pair: Pair) -> None:
    async with pair.link(pair.plan(), pair.plan("two")) as link:
        one = await pair.client(await pair.listening(link))
        two = await pair.client(await pair.listening(link, "two"), "two")
        assert [await one.ask(), await two.ask(b"??")] == [b"p", b"pp"]
        found = await link.connections()
        assert {(seen.frontend, seen.bytes_up, seen.bytes_down) for seen in found.connections} == {
            ("line", 1, 1),
            ("two", 2, 2),
        }
        assert [seen.frontend for seen in (await link.connections("two")).connections] == ["two"]
        assert (await link.connections("three")).connections == ()
        await link.close()


async def test_hundreds_come_in_parts_and_are_all_there(pair: Pair) -> None:
    async with pair.link() as link:
        view = await pair.listening(link)
        clients = [await pair.client(view) for _ in range(250)]
        assert [await client.ask() for client in clients] == [b"p"] * 250
        found = await link.connections()
        assert {seen.client and seen.client.port for seen in found.connections} == {
            client.writer.get_extra_info("sockname")[1] for client in clients
        }
        assert found.left_out == 0
        await link.close()


async def test_connections_of_a_removed_frontend_are_told_while_they_last(pair: Pair) -> None:
    async with pair.link() as link:
        client = await pair.client(await pair.listening(link))
        assert await client.ask() == b"p"
        await link.configure([])
        assert [seen.frontend for seen in (await link.connections()).connections] == ["line"]
        await link.close()


async def test_another_process_knows_since_when_a_connection_is_open(pair: Pair) -> None:
    async with pair.link() as link:
        client = await pair.client(await pair.listening(link))
        assert await client.ask() == b"p"
        [before] = (await link.connections()).connections
        await link.replace()
        [after] = (await link.connections()).connections
        assert after.client == before.client
        assert before.open_seconds is not None
        assert after.open_seconds is not None
        assert after.open_seconds > before.open_seconds
        await link.close()


async def test_one_that_does_not_answer_is_said_and_one_that_dies_has_no_connections(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair.link() as link:
        client = await pair.client(await pair.listening(link))
        assert await client.ask() == b"p"
        pid = link.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(relay_traffic, "LIST_TIMEOUT", 0.05)
            with pytest.raises(Failed, match=r"^cannot list the connections: the relay process has not answered"):
                await link.connections()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(link.connections())
            await asyncio.sleep(0)  # it has asked
            os.kill(pid, signal.SIGKILL)
        assert waiting.result() == ConnectionList(())
        await until(lambda: not is_relay(pid), "its end")
        await until(lambda: link.pid not in (None, pid), "another one")
        assert (await link.connections()).connections == ()
        link.set_eligible(B, True)
        await link.close()
