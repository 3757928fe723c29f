"""The connections that instances have themselves: counted, waited for, and reset when their time is over.

The instances are processes that listen on the frontends' own ports: to the kernel that is what steering comes to.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import structlog

from clojarsd.core.connections import ConnectionPhase
from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.errors import Failed
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Address, Role
from clojarsd.runtime import steered_drain, steered_look
from clojarsd.runtime.steered_connections import SteeredConnections
from clojarsd.runtime.steered_look import UNCLEAR_TIMES, Looker
from clojarsd.system.sock_diag import Connection, SockDiag
from tests.support.fronts import LOOPBACK, NEVER, B, P, make_plan
from tests.support.sockets import DEADLINE_S, receive_exactly, receive_to_the_end, wait_for
from tests.support.talkers import Talker, talking
from tests.support.waiting import until

OTHER_LOOPBACK = "127.0.0.2"
SHORT = 0.1
"""Seconds of silence, and of time, in tests that wait for their end."""
COARSE = 6
"""CLOCK_MONOTONIC_COARSE of clock_gettime(2), which moves with the ticks of the kernel."""
pytestmark = pytest.mark.slow


class Steered:
    """Two instances on one port, each at an address of its own, and what the supervisor knows of them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.primary = stack.enter_context(talking(LOOPBACK))
        self.backup = stack.enter_context(talking(OTHER_LOOPBACK, self.primary.port))
        self.port = self.primary.port
        self.pids: dict[Role, list[int]] = {P: [self.primary.pid], B: [self.backup.pid]}
        self.known = stack.enter_context(SteeredConnections(self.pids_of))
        self.drained: list[str] = []
        self.configure()

    def pids_of(self, role: Role) -> Collection[int]:
        return self.pids[role]

    def plan(
        self, name: str = "http", hosts: Collection[str] = (LOOPBACK, OTHER_LOOPBACK), **changes: Any
    ) -> FrontendPlan:
        listen = tuple(Address(host, self.port) for host in hosts)
        backends = {P: Address(LOOPBACK, self.port), B: Address(OTHER_LOOPBACK, self.port)}
        return make_plan(backends, name=name, **{"listen": listen, "drain": NEVER, "drain_idle": NEVER, **changes})

    def configure(self, *, drain: float = NEVER, drain_idle: float = NEVER) -> None:
        self.known.configure([self.plan(drain=drain, drain_idle=drain_idle)])

    def client(self, talker: Talker, said: bytes = b"", answer: bytes = b"") -> socket.socket:
        """A client that has connected, said this, and got that."""
        client = self._stack.enter_context(socket.create_connection((talker.host, talker.port), DEADLINE_S))
        client.sendall(said)
        assert receive_exactly(client, len(answer)) == answer
        return client

    def begin(self, role: Role, name: str = "over", within: float | None = None) -> None:
        self.known.begin(role, lambda: self.drained.append(name), within)

    async def until_drained(self, *names: str) -> None:
        await until(lambda: self.drained == list(names), "the end of the drain")

    async def until_seen(self, count: int) -> None:
        """Return when the drain has seen so many connections, and waits."""
        seen = f"{count} connections in the drain"
        await until(lambda: self.known.tally(P).stay == count and self.known.waited_until("http"), seen)

    async def counts(self) -> dict[Role, int]:
        return dict((await self.known.count())["http"])


@pytest.fixture
async def steered() -> AsyncIterator[Steered]:
    with ExitStack() as stack:
        yield Steered(stack)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as logged:
        yield logged


async def looks(steered: Steered) -> int:
    """Let the thread go through one more look, and wait for it."""
    return len((await steered.known.connections()).connections)


# Counting.


async def test_connections_are_counted_by_instance(steered: Steered) -> None:
    for _ in range(3):
        steered.client(steered.primary, b"!", b"A")
    steered.client(steered.backup, b"!", b"A")
    assert await steered.counts() == {P: 3, B: 1}


async def test_a_count_is_good_for_a_while_and_shared(steered: Steered, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    look = Looker.look

    def counted(self: Looker, *arguments: Any, **named: Any) -> Any:
        taken.append(1)
        return look(self, *arguments, **named)

    monkeypatch.setattr(Looker, "look", counted)
    monkeypatch.setattr("clojarsd.runtime.steered_connections.COUNT_LASTS", NEVER)
    steered.configure()
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(steered.counts())
    await steered.counts()
    assert len(taken) == 1
    steered.configure()
    await steered.counts()
    assert len(taken) == 2


async def test_other_addresses_on_the_port_and_other_processes_connections_are_not_ours(steered: Steered) -> None:
    steered.known.configure([steered.plan(hosts=[LOOPBACK])])
    steered.client(steered.backup, b"!", b"A")
    with socket.create_server(("127.0.0.3", steered.port)) as strangers:
        steered.known.configure([steered.plan(hosts=[LOOPBACK, "127.0.0.3"])])
        client = socket.create_connection(("127.0.0.3", steered.port))
        accepted, _ = strangers.accept()
        with client, accepted:
            assert await steered.counts() == {P: 0, B: 0}


async def test_an_exact_address_goes_before_everywhere(steered: Steered) -> None:
    everywhere, exactly = steered.plan("all", ["0.0.0.0"]), steered.plan("one", [OTHER_LOOPBACK])
    steered.known.configure([everywhere, exactly])
    steered.client(steered.primary, b"!", b"A")
    steered.client(steered.backup, b"!", b"A")
    assert await steered.known.count() == {"all": {P: 1, B: 0}, "one": {P: 0, B: 1}}


async def test_they_are_listed_with_what_is_known(steered: Steered) -> None:
    asking = steered.client(steered.primary, b"??")
    steered.client(steered.backup, b"!", b"A")
    await until(lambda: steered_bytes(steered.port) == 3, "what was said")
    found = await steered.known.connections()
    one = next(one for one in found.connections if one.role is P)
    assert (one.frontend, one.mode, one.phase, one.owed) == ("http", "steer", ConnectionPhase.OPEN, True)
    assert one.client == Address(*asking.getsockname())
    assert (one.bytes_up, one.bytes_down) == (2, 0)
    assert one.silent_seconds is not None
    assert {one.role for one in found.connections} == {P, B}
    assert (await steered.known.connections("other")).connections == ()


async def test_those_in_an_accept_queue_are_listed_as_nobodys(steered: Steered) -> None:
    steered.primary.stop()
    steered.client(steered.primary)
    [one] = (await steered.known.connections()).connections
    assert (one.role, one.phase) == (None, ConnectionPhase.QUEUED)
    assert await steered.counts() == {P: 0, B: 0}


async def test_what_cannot_be_seen_is_said(steered: Steered, monkeypatch: pytest.MonkeyPatch) -> None:
    steered.client(steered.primary, b"!", b"A")
    monkeypatch.setattr(steered_look, "sockets_of", unseen)
    with pytest.raises(Failed, match=r"^cannot list the steered connections: permission denied$"):
        await steered.known.connections()


def unseen(pids: object) -> set[int]:
    raise PermissionError(13, os.strerror(13))


def steered_bytes(port: int) -> int:
    with SockDiag() as diag:
        return sum(one.bytes_received for one in diag.connections(port))


# The drain.


async def test_a_drain_is_over_at_once_when_nothing_is_open(steered: Steered) -> None:
    steered.begin(P)
    assert steered.drained == []
    await steered.until_drained("over")
    assert steered.known.waited_until("http") == {}


async def test_connections_of_the_other_instance_are_not_waited_for(steered: Steered) -> None:
    steered.client(steered.backup, b"?")
    steered.begin(P)
    await steered.until_drained("over")


async def test_a_connection_that_carries_is_waited_for_until_it_ends(steered: Steered) -> None:
    steered.configure(drain_idle=NEVER)
    steered.client(steered.primary, b"!", b"A")
    steered.begin(P)
    await steered.until_seen(1)
    await looks(steered)
    assert steered.drained == []


async def test_it_is_over_when_the_last_one_has_ended(steered: Steered) -> None:
    steered.configure(drain_idle=4 * SHORT)
    clients = [steered.client(steered.primary, b"?") for _ in range(3)]
    steered.begin(P)
    await steered.until_seen(3)
    clients.pop().close()
    await steered.until_seen(2)
    assert steered.drained == []
    for client in clients:
        client.close()
    await steered.until_drained("over")
    assert steered.known.tally(P) == DrainTally(ended=3)


async def test_a_silent_one_is_not_waited_for_and_stays_as_it_is(steered: Steered) -> None:
    steered.configure(drain_idle=SHORT)
    client = steered.client(steered.primary, b"!", b"A")
    steered.begin(P)
    await steered.until_drained("over")
    assert steered.known.tally(P) == DrainTally(stay=1)
    client.sendall(b"!")
    assert receive_exactly(client, 1) == b"A"


async def test_one_that_never_said_anything_is_silent(steered: Steered) -> None:
    steered.configure(drain_idle=SHORT)
    steered.client(steered.primary)
    steered.begin(P)
    await steered.until_drained("over")


async def test_an_owed_answer_is_waited_for_however_long_it_is_silent(steered: Steered) -> None:
    steered.configure(drain_idle=SHORT)
    client = steered.client(steered.primary, b"?")
    wait_for(lambda: steered_bytes(steered.port) == 1)
    steered.begin(P)
    await until(lambda: silent_seconds(steered.port) > 10 * SHORT, "a long silence")
    await looks(steered)
    assert steered.drained == []
    steered.primary.answer()
    assert receive_exactly(client, 1) == b"A"
    await steered.until_drained("over")


async def test_a_second_answer_that_is_owed_is_waited_for(steered: Steered) -> None:
    """Where its request came in the same tick as the answer to the first one no clock tells whose were the last bytes.

    So the drain may be over after a silence, and that must be a long one.
    """
    steered.configure(drain_idle=SHORT)
    client = steered.client(steered.primary, b"!", b"A")
    client.sendall(b"?")
    wait_for(lambda: steered_bytes(steered.port) == 2)
    silences: list[float] = []
    steered.known.begin(P, lambda: silences.append(silent_seconds(steered.port)))
    await until(lambda: silences or silent_seconds(steered.port) > 2 * UNCLEAR_TIMES * SHORT, "the end, or none")
    assert all(seconds >= UNCLEAR_TIMES * SHORT for seconds in silences)
    steered.primary.answer()
    assert receive_exactly(client, 1) == b"A"


def silent_seconds(port: int) -> float:
    with SockDiag() as diag:
        return min(steered_look.silence(one) or 0.0 for one in diag.connections(port))


async def test_one_whose_client_does_not_read_is_waited_for(steered: Steered) -> None:
    steered.configure(drain_idle=SHORT)
    client = steered.client(steered.primary)
    client.setblocking(False)
    sent = 0
    while unsent(steered.port) == 0:  # until its window is full
        with suppress(BlockingIOError):
            sent += client.send(b"!" * (1 << 16))
    steered.begin(P)
    await until(lambda: silent_seconds(steered.port) > 2 * SHORT, "a silence")
    await looks(steered)
    assert steered.drained == []
    client.settimeout(DEADLINE_S)
    receive_exactly(client, sent)
    await steered.until_drained("over")


def unsent(port: int) -> int:
    with SockDiag() as diag:
        return sum(one.unsent for one in diag.connections(port))


async def test_who_waits_in_the_accept_queue_is_waited_for(steered: Steered) -> None:
    steered.configure(drain_idle=SHORT)
    steered.primary.stop()
    client = steered.client(steered.primary, b"?")
    steered.begin(P)
    for _ in range(5):
        await looks(steered)
    assert steered.drained == []
    steered.primary.go_on()
    await steered.until_seen(1)
    client.close()
    await steered.until_drained("over")


async def test_who_waits_in_the_other_ones_queue_is_not_waited_for(steered: Steered) -> None:
    steered.backup.stop()
    steered.client(steered.backup, b"?")
    steered.begin(P)
    await steered.until_drained("over")


async def test_one_that_the_instance_has_closed_is_not_waited_for(steered: Steered) -> None:
    client = steered.client(steered.primary, b".")
    assert receive_to_the_end(client) == (b"", False)
    steered.begin(P)
    await steered.until_drained("over")


async def test_after_its_time_the_rest_is_reset_with_a_reason(steered: Steered, logged: list[Any]) -> None:
    steered.configure(drain=SHORT, drain_idle=SHORT)
    owed, other = steered.client(steered.primary, b"?"), steered.client(steered.backup, b"?")
    wait_for(lambda: steered_bytes(steered.port) == 2)
    steered.begin(P)
    await steered.until_drained("over")
    assert receive_to_the_end(owed) == (b"", True)
    [cut] = [entry for entry in logged if entry["event"] == "drain_cut"]
    assert (cut["frontend"], cut["role"], cut["connections"]) == ("http", "primary", 1)
    assert cut["reason"].endswith("s after the drain began; 1 of them waited for an answer")
    tally = steered.known.tally(P)
    assert (tally.cut, tally.total, tally.is_sooner) == (1, 1, False)
    assert tally.after == pytest.approx(SHORT, abs=0.1) or tally.after > SHORT
    steered.backup.answer()
    assert receive_exactly(other, 1) == b"A"


async def test_who_is_between_two_requests_near_the_end_is_let_go_before_it(
    steered: Steered, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a client asks again elsewhere; at the very end it might wait for an answer, which would be lost."""
    monkeypatch.setattr(steered_drain, "LAST_PART", 0.5)
    steered.configure(drain=1.0)
    busy = steered.client(steered.primary, b"?")
    wait_for(lambda: steered_bytes(steered.port) == 1)
    asked_at = time.clock_gettime(COARSE)
    wait_for(lambda: time.clock_gettime(COARSE) > asked_at + 0.01)  # a tick of the kernel's clock
    steered.primary.answer()
    assert receive_exactly(busy, 1) == b"A"
    owed = steered.client(steered.primary, b"?")
    wait_for(lambda: steered_bytes(steered.port) == 2)
    began = asyncio.get_running_loop().time()
    steered.begin(P)
    await until(lambda: [one["connections"] for one in logged if one["event"] == "drain_let_go"] == [1], "the one")
    assert asyncio.get_running_loop().time() - began >= 0.5
    assert receive_to_the_end(busy) == (b"", True)
    assert steered.drained == []
    steered.primary.answer()
    assert receive_exactly(owed, 1) == b"A"
    await steered.until_drained("over")
    assert [entry for entry in logged if entry["event"] == "drain_cut"] == []


async def test_those_that_ended_by_themselves_at_the_deadline_are_not_told_as_cut(
    steered: Steered, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the reset: the kernel does not find them any more."""
    destroy = SockDiag.destroy
    asked = []

    def half_gone(self: SockDiag, connection: Connection) -> bool:
        asked.append(connection)
        return len(asked) == 1 and destroy(self, connection)

    monkeypatch.setattr(SockDiag, "destroy", half_gone)
    steered.configure(drain=SHORT)
    for _ in range(2):
        steered.client(steered.primary, b"?")
    wait_for(lambda: steered_bytes(steered.port) == 2)
    steered.begin(P)
    await steered.until_drained("over")
    assert len(asked) == 2
    [cut] = [entry for entry in logged if entry["event"] == "drain_cut"]
    assert cut["connections"] == 1
    assert cut["reason"].endswith("; 1 of them waited for an answer")


async def test_what_may_not_be_reset_is_left_and_said(
    steered: Steered, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is without CAP_NET_ADMIN."""

    def forbidden(self: SockDiag, connection: object) -> bool:
        raise PermissionError(1, os.strerror(1))

    monkeypatch.setattr(SockDiag, "destroy", forbidden)
    steered.configure(drain=SHORT)
    client = steered.client(steered.primary, b"?")
    wait_for(lambda: steered_bytes(steered.port) == 1)
    steered.begin(P)
    await steered.until_drained("over")
    [left] = [entry for entry in logged if entry["event"] == "drain_left"]
    assert (left["connections"], left["reason"]) == (1, "cannot reset them: operation not permitted")
    assert steered.known.tally(P) == DrainTally(left=1, trouble="cannot reset them: operation not permitted")
    steered.primary.answer()
    assert receive_exactly(client, 1) == b"A"


async def test_what_still_waits_in_the_queue_after_its_time_is_left_and_said(
    steered: Steered, logged: list[Any]
) -> None:
    steered.configure(drain=SHORT)
    steered.primary.stop()
    client = steered.client(steered.primary, b"!")
    steered.begin(P)
    await steered.until_drained("over")
    [left] = [entry for entry in logged if entry["event"] == "drain_left"]
    assert (left["connections"], left["reason"]) == (1, "they wait in its accept queue")
    steered.primary.go_on()
    assert receive_exactly(client, 1) == b"A"


async def test_a_drain_that_cannot_see_lasts_its_whole_time_and_says_so(
    steered: Steered, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steered_look, "sockets_of", unseen)
    steered.configure(drain=SHORT, drain_idle=SHORT)
    steered.client(steered.primary, b"!", b"A")
    began = time.monotonic()
    steered.begin(P)
    await steered.until_drained("over")
    assert time.monotonic() - began >= SHORT
    said = [(entry["event"], entry["reason"]) for entry in logged if entry["log_level"] == "warning"]
    assert said == [
        ("steered_connections_unseen", "permission denied"),
        ("drain_left", "cannot see them: permission denied"),
    ]


async def test_each_frontend_has_a_time_of_its_own(steered: Steered) -> None:
    with talking() as more:
        steered.pids[P].append(more.pid)
        other = make_plan({P: Address(LOOPBACK, more.port)}, name="other", listen=(Address(LOOPBACK, more.port),))
        steered.known.configure([steered.plan(drain=SHORT), other])
        short, long = steered.client(steered.primary, b"?"), steered.client(more, b"?")
        wait_for(lambda: steered_bytes(steered.port) + steered_bytes(more.port) == 2)
        steered.begin(P)
        async with asyncio.timeout(DEADLINE_S):
            assert await asyncio.to_thread(receive_to_the_end, short) == (b"", True)
        await until(lambda: steered.known.waited_until("http") == {}, "the end of the one that has no time")
        assert steered.known.waited_until("other").keys() == {P}
        assert steered.drained == []
        more.answer()
        assert receive_exactly(long, 1) == b"A"


async def test_connections_of_a_frontend_that_is_gone_are_waited_for(steered: Steered) -> None:
    client = steered.client(steered.primary, b"?")
    steered.known.configure([])
    assert await steered.known.count() == {}
    steered.begin(P)
    await steered.until_seen(1)
    assert len((await steered.known.connections("http")).connections) == 1
    client.close()


async def test_one_that_is_called_off_says_nothing_and_leaves_all_open(steered: Steered) -> None:
    steered.configure(drain=SHORT, drain_idle=SHORT)
    client = steered.client(steered.primary, b"?")
    steered.begin(P, "first")
    steered.known.end(P)
    assert steered.known.waited_until("http") == {}
    steered.begin(B, "other")
    await steered.until_drained("other")
    steered.primary.answer()
    assert receive_exactly(client, 1) == b"A"


async def test_a_second_order_has_its_own_end_and_never_more_time(steered: Steered) -> None:
    client = steered.client(steered.primary, b"?")
    steered.begin(P, "first")
    await steered.until_seen(1)
    steered.begin(P, "second", within=SHORT)
    steered.begin(P, "third")
    await steered.until_drained("third")
    assert receive_to_the_end(client) == (b"", True)


async def test_until_when_it_waits_is_known_while_it_waits(steered: Steered) -> None:
    steered.configure(drain=NEVER, drain_idle=SHORT)  # it is looked four times in that
    assert steered.known.waited_until("http") == {}
    client = steered.client(steered.primary, b"no answer")
    loop = asyncio.get_running_loop()
    steered.begin(P)
    await steered.until_seen(1)
    first = steered.known.waited_until("http")
    assert first.keys() == {P}
    assert loop.time() + NEVER - DEADLINE_S < first[P] <= loop.time() + NEVER
    steered.begin(P, "shorter", within=DEADLINE_S)
    assert steered.known.waited_until("http")[P] <= loop.time() + DEADLINE_S
    assert steered.known.waited_until("other") == {}
    client.close()
    await steered.until_drained("shorter")
    assert steered.known.waited_until("http") == {}


async def test_a_drain_can_begin_again_after_its_end(steered: Steered) -> None:
    steered.begin(P, "first")
    await steered.until_drained("first")
    client = steered.client(steered.primary, b"?")
    steered.begin(P, "second")
    await steered.until_seen(1)
    client.close()


async def test_a_cut_resets_all_of_one_instance_silent_ones_too(steered: Steered, logged: list[Any]) -> None:
    cut = [steered.client(steered.primary, b"!", b"A"), steered.client(steered.primary, b"?")]
    other = steered.client(steered.backup, b"!", b"A")
    steered.begin(P)
    await steered.until_seen(2)
    steered.known.cut(P)
    assert [await asyncio.to_thread(receive_to_the_end, client) for client in cut] == [(b"", True)] * 2
    await until(lambda: [e["connections"] for e in logged if e["event"] == "steered_connections_cut"] == [2], "the log")
    other.sendall(b"!")
    assert receive_exactly(other, 1) == b"A"


async def test_a_cut_after_a_drain_spares_who_has_asked_meanwhile(steered: Steered) -> None:
    steered.configure(drain_idle=SHORT)
    silent, asking = (steered.client(steered.primary, b"!", b"A") for _ in range(2))
    steered.begin(P)
    await steered.until_drained("over")
    asking.sendall(b"?")
    wait_for(lambda: steered_bytes(steered.port) == 3)
    steered.known.cut(P)
    assert await asyncio.to_thread(receive_to_the_end, silent) == (b"", True)
    steered.primary.answer()
    assert receive_exactly(asking, 1) == b"A"


async def test_a_cut_right_before_the_end_still_happens() -> None:
    with ExitStack() as stack:
        steered = Steered(stack)
        client = steered.client(steered.primary, b"!", b"A")
        steered.known.cut(P)
        steered.known.close()
        assert receive_to_the_end(client) == (b"", True)
