"""Clients and instances do not notice that the process between them is replaced."""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core.errors import Failed
from clojarsd.core.names import Role
from clojarsd.runtime.handover import _Line
from tests.support.fronts import LOOPBACK, B, Instance, P, make_plan
from tests.support.handover import Process, begin_handover, hand_on
from tests.support.sockets import (
    DEADLINE_S,
    in_background,
    noise,
    open_descriptors,
    pause,
    receive_exactly,
    receive_to_the_end,
    reset,
    stays_silent,
)

MIB = 1 << 20
REQUEST = b"GET /first HTTP/1.1\r\nHost: example.org\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: example.org\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Line:
    """Two instances, clients, and the processes that relay between them; the last one has the frontend.

    Attributes:
        processes: as many as were asked for, ready to take over one after the other.
        now: the one that relays.
    """

    def __init__(self, stack: contextlib.ExitStack, loop: str) -> None:
        self._stack = stack
        self._loop = loop
        self.instances = {role: Instance() for role in Role}
        for instance in self.instances.values():
            stack.callback(instance.close)
        self.now = self.process()
        self.empty = self.now.look()["descriptors"]
        self.port = 0

    def process(self) -> Process:
        """One more."""
        return self._stack.enter_context(Process(self._loop))

    def open(self, eligible: tuple[str, ...] = ("primary",), **plan: Any) -> None:
        """Begin to listen."""
        backends = {role: instance.address for role, instance in self.instances.items()}
        self.port = self.now.open(make_plan(backends, **plan), eligible)

    def hand_on(self) -> Process:
        """Let a new process take over; the old one, which has nothing any more."""
        old, new = self.now, self.process()
        assert new.look()["descriptors"] == self.empty
        hand_on(old, new)
        seen = old.look()
        assert (seen["descriptors"], seen["watched"], seen["lent"]) == (self.empty, 0, 0)
        self.now = new
        return old

    def client(self, said: bytes = b"", *, receive_buffer: int | None = None) -> socket.socket:
        """A client that has connected and said something."""
        client = self._stack.enter_context(socket.socket())
        client.settimeout(DEADLINE_S)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect((LOOPBACK, self.port))
        client.sendall(said)
        return client

    def accept(self, role: Role = P) -> socket.socket:
        """The next connection of an instance."""
        return self._stack.enter_context(self.instances[role].accept())

    def connect(self, *, receive_buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
        """A client and what the primary has of it, with one request asked and answered."""
        client = self.client(REQUEST, receive_buffer=receive_buffer)
        instance = self.accept()
        converse(client, instance, REQUEST, begun=True)
        return client, instance


def converse(client: socket.socket, instance: socket.socket, asked: bytes = NEXT, *, begun: bool = False) -> None:
    """Ask and answer once."""
    if not begun:
        client.sendall(asked)
    assert receive_exactly(instance, len(asked)) == asked
    instance.sendall(ANSWER)
    assert receive_exactly(client, len(ANSWER)) == ANSWER


@pytest.fixture(params=["asyncio", "uvloop"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    before = open_descriptors()
    with contextlib.ExitStack() as stack:
        yield Line(stack, request.param)
    assert open_descriptors() == before


@pytest.mark.slow
def test_a_hundred_connections_go_on_with_what_they_do(line: Line) -> None:
    """They ask and answer all the time, new ones come, and three processes follow each other meanwhile."""
    line.open()
    pairs = [line.connect() for _ in range(100)]
    over = threading.Event()
    rounds = [0] * 4

    def talk(number: int) -> None:
        chance = random.Random(number)
        mine = pairs[number::4]
        while not over.is_set() or rounds[number] < 3:
            for client, instance in mine:
                asked, answered = (
                    chance.randbytes(chance.randrange(1, 9000)),
                    chance.randbytes(chance.randrange(1, 9000)),
                )
                client.sendall(asked)
                assert receive_exactly(instance, len(asked)) == asked
                instance.sendall(answered)
                assert receive_exactly(client, len(answered)) == answered
            rounds[number] += 1

    with in_background(*(lambda number=number: talk(number) for number in range(4))):
        try:
            for _ in range(3):
                line.hand_on()
        finally:
            over.set()
    client, instance = line.connect()
    seen = line.now.look()
    assert seen["open"] == [101, 0, 0]
    assert seen["accepted"] == [101, 0, 0]
    for one in (*(end for pair in pairs for end in pair), client, instance):
        one.close()
    line.now.until(open=[0, 0, 0], descriptors=line.empty + 1)


@pytest.mark.slow
def test_much_both_ways_arrives_whole_while_ten_processes_follow_each_other(line: Line) -> None:
    line.open()
    pair = line.connect()
    block = noise(4 * MIB)
    count = 64
    handed_on = threading.Semaphore(0)
    over = threading.Event()
    digests: list[bytes] = []

    def send(end: socket.socket) -> None:
        for number in range(count):
            if number == count - 4:
                over.wait(DEADLINE_S)  # something is left to be carried after the last process has begun
            end.sendall(number.to_bytes(4, "big") + block[4:])
        end.shutdown(socket.SHUT_WR)

    def receive(end: socket.socket) -> None:
        digest, received, asked = hashlib.sha256(), 0, 0
        while part := end.recv(1 << 18):
            digest.update(part)
            received += len(part)
            if received > (asked + 1) * 20 * MIB:
                asked += 1
                handed_on.release()
        digests.append(digest.digest())

    acts = [(act, end) for end in pair for act in (send, receive)]
    spare = [line.process() for _ in range(10)]
    with in_background(*(lambda act=act, end=end: act(end) for act, end in acts)):
        for new in spare:
            assert handed_on.acquire(timeout=DEADLINE_S)
            hand_on(line.now, new)
            line.now = new
        over.set()
    whole = hashlib.sha256()
    for number in range(count):
        whole.update(number.to_bytes(4, "big") + block[4:])
    assert digests == [whole.digest()] * 2
    line.now.until(open=[0, 0, 0], descriptors=line.empty + 1, lent=0)


def test_a_half_closed_connection_goes_on_the_other_way(line: Line) -> None:
    line.open()
    client, instance = line.connect()
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    assert receive_to_the_end(instance) == (b"last words", False)
    line.hand_on()
    instance.sendall(b"still here")
    assert receive_exactly(client, 10) == b"still here"
    line.hand_on()
    instance.close()
    assert receive_to_the_end(client) == (b"", False)


def test_a_reset_that_is_being_delivered_comes_after_the_rest(line: Line) -> None:
    line.open()
    client, instance = line.connect(receive_buffer=8192)
    sent = noise(MIB)
    instance.sendall(sent)
    line.now.until(piped=[0])
    reset(instance)
    line.now.until(phases=["LOST"])
    line.hand_on()
    received = receive_exactly(client, 300_000)
    line.hand_on()
    rest, was_reset = receive_to_the_end(client)
    assert (received + rest == sent, was_reset) == (True, True)
    line.now.until(open=[0, 0, 0])


def test_a_full_pipe_goes_over_with_what_is_in_it(line: Line) -> None:
    line.open()
    client, instance = line.connect(receive_buffer=65536)
    sent = noise(24 * MIB)
    with in_background(lambda: instance.sendall(sent)):
        received = b""
        while not line.now.look()["piped"][0]:
            received += receive_exactly(client, 50_000)
        for _ in range(3):
            line.hand_on()
            received += receive_exactly(client, 2 * MIB)
        received += receive_exactly(client, len(sent) - len(received))
    assert received == sent
    converse(client, instance)
    line.now.until(lent=0)


def test_a_drain_goes_on_and_its_connections_move(line: Line) -> None:
    """One is told to move with its next request, one is in the middle of it, and the drain ends with both gone."""
    line.open(("primary", "backup"), movable=True)
    waiting, moving = line.connect(), line.connect()
    line.now.ask("drain", role="primary")
    moving[0].sendall(NEXT)
    assert receive_to_the_end(moving[1]) == (b"", False)
    line.now.until(phases=["LOOKING", "MOVING"])
    line.hand_on()
    assert line.now.look()["drained"] == []
    moving[1].close()
    converse(moving[0], line.accept(B), NEXT, begun=True)
    waiting[0].sendall(NEXT)
    assert receive_to_the_end(waiting[1]) == (b"", False)
    waiting[1].close()
    converse(waiting[0], line.accept(B), NEXT, begun=True)
    line.now.until(drained=["primary"], open=[0, 2, 0])
    line.hand_on()
    assert line.now.look()["drained"] == []  # that was told already
    client = line.client(REQUEST)
    converse(client, line.accept(B), REQUEST, begun=True)  # and the primary still gets nobody


def test_a_drain_ends_in_its_time(line: Line) -> None:
    line.open(drain=4.0)
    client, instance = line.connect()
    client.sendall(NEXT)
    receive_exactly(instance, len(NEXT))  # an answer is owed
    line.now.ask("drain", role="primary")
    line.hand_on()
    assert receive_to_the_end(client) == (b"", True)
    line.now.until(drained=["primary"])


def test_held_clients_wait_on_and_are_served_in_their_order(line: Line) -> None:
    line.open(())
    clients = [line.client(f"client {number}".encode()) for number in range(5)]
    line.now.until(open=[0, 0, 5])
    line.hand_on()
    reset(clients.pop(2))
    line.now.until(open=[0, 0, 4])
    line.hand_on()
    late = line.client(b"client 5")
    line.now.until(open=[0, 0, 5])
    line.now.ask("eligible", roles=["primary"])
    for client, number in zip([*clients, late], (0, 1, 3, 4, 5), strict=True):
        instance = line.accept()
        assert receive_exactly(instance, 8) == f"client {number}".encode()
        instance.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
    line.now.until(open=[5, 0, 0], accepted=[5, 0, 6], happened=["HOLD_ENDED"])


def test_a_held_client_is_turned_away_in_its_time(line: Line) -> None:
    line.open((), hold=4.0)
    client = line.client()
    line.now.until(open=[0, 0, 1])
    line.hand_on()
    assert receive_to_the_end(client) == (b"", True)


def test_who_was_being_connected_is_connected_anew(line: Line) -> None:
    line.open()
    line.instances[P].fill()
    client = line.client(REQUEST)
    line.now.until(open=[1, 0, 0])
    line.hand_on()
    assert line.now.look()["open"] == [1, 0, 0]
    line.now.ask("eligible", roles=["backup"])
    converse(client, line.accept(B), REQUEST, begun=True)
    line.instances[P].drop_fillers()


def test_the_route_and_the_rest_are_as_they_were(line: Line) -> None:
    line.open(("primary",))
    line.now.ask("eligible", roles=["backup"])
    line.hand_on()
    seen = line.now.look()
    assert (seen["active"], seen["inherited"]) == ("backup", {"number": 7})
    line.now.ask("eligible", roles=["primary"])
    assert line.now.look()["happened"] == ["FAILBACK"]


def test_who_connects_meanwhile_waits_in_the_backlog(line: Line) -> None:
    """The new process is stopped in the middle: nobody is refused, and all are served by the old one in the end."""
    line.open()
    client, instance = line.connect()
    new = line.process()
    begin_handover(line.now, new, timeout=1.0, fatal=signal.SIGSTOP, at="receive", packet=2)
    until_stopped(new)
    client.sendall(NEXT)
    late = line.client(REQUEST)
    assert stays_silent(instance)
    assert "not over in time" in line.now.answer()["failed"]
    converse(client, instance, NEXT, begun=True)
    converse(late, line.accept(), REQUEST, begun=True)
    new.process.send_signal(signal.SIGCONT)
    assert "failed" in new.answer()


def test_a_handover_that_is_cancelled_leaves_all_where_it_was(line: Line) -> None:
    line.open()
    client, instance = line.connect()
    new = line.process()
    begin_handover(line.now, new, fatal=signal.SIGSTOP, at="send", packet=4)
    until_stopped(new)
    line.now.order("cancel")
    assert line.now.answer() == {"failed": "cancelled"}
    converse(client, instance)
    new.process.send_signal(signal.SIGCONT)
    assert "has given up waiting" in new.answer()["failed"]
    converse(client, instance)


def test_who_is_given_nothing_says_so(line: Line) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        line.now.order("take", theirs.fileno(), timeout=DEADLINE_S)
    ours.close()
    failed = line.now.answer()["failed"]
    assert failed == "cannot take connections over: the other process: it has gone; nothing was touched"
    assert line.now.look()["descriptors"] == line.empty


def until_stopped(process: Process) -> None:
    """Wait until a signal has stopped it."""
    deadline = time.monotonic() + DEADLINE_S
    while (state := Path(f"/proc/{process.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]) != "T":
        assert time.monotonic() < deadline, state
        pause()


STEPS = [(at, packet) for at in ("send", "receive") for packet in (1, 2, 3, 4)]
"""The new process sends hello, got, ready and begun, and gets frontends, clients, all and yours."""


@pytest.mark.slow
@pytest.mark.parametrize("fatal", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
@pytest.mark.parametrize(("at", "packet"), STEPS, ids=[f"{at} {packet}" for at, packet in STEPS])
def test_the_old_process_goes_on_when_the_new_one_fails(
    line: Line, at: str, packet: int, fatal: signal.Signals
) -> None:
    """Whatever it is doing then: before it sends `begun`, nothing is its own."""
    with unharmed(line) as check:
        new = line.process()
        begin_handover(line.now, new, timeout=0.7, fatal=fatal, at=at, packet=packet)
        assert line.now.answer()["failed"].endswith("; this process goes on")
        check()
        if fatal is signal.SIGSTOP:
            new.process.send_signal(signal.SIGCONT)
            answered = new.answer()
            assert "failed" in answered, answered
            seen = new.look()
            assert (seen["descriptors"], seen["watched"], seen["lent"]) == (line.empty, 0, 0)
        check()


@contextlib.contextmanager
def unharmed(line: Line) -> Iterator[Callable[[], None]]:
    """Connections in every state; the block may call what makes some use of them. At the end all of it arrives."""
    line.open(("primary",), hold_connections=10)
    quiet = line.connect()
    half = line.connect()
    half[0].shutdown(socket.SHUT_WR)
    assert receive_to_the_end(half[1]) == (b"", False)
    bulk = line.connect(receive_buffer=65536)
    sent = noise(24 * MIB)
    received = b""

    def check() -> None:
        nonlocal received
        converse(*quiet)
        half[1].sendall(b"still here")
        assert receive_exactly(half[0], 10) == b"still here"
        received += receive_exactly(bulk[0], 3 * MIB)
        converse(*line.connect())

    with in_background(lambda: bulk[1].sendall(sent)):
        while not any(line.now.look()["piped"]):
            received += receive_exactly(bulk[0], 50_000)
        before = line.now.look()
        yield check
        received += receive_exactly(bulk[0], len(sent) - len(received))
    assert received == sent
    converse(*bulk)
    line.now.until(lent=0)
    after = line.now.look()
    assert after["open"][0] >= before["open"][0]
    line.hand_on()
    converse(*quiet)
    half[1].close()
    assert receive_to_the_end(half[0]) == (b"", False)


def test_a_new_process_that_never_answers_is_not_waited_for(line: Line) -> None:
    line.open()
    client, instance = line.connect()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        with ours:
            line.now.order("give", ours.fileno(), timeout=0.3)
        converse(client, instance)  # nothing stands still before it has said hello
        failed = line.now.answer()["failed"]
    assert failed == "cannot hand the connections over: not over in time; this process goes on"
    converse(client, instance)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b'.{"kind":"hello","version":0}', "the other process speaks version 0, and this one 1"),
        (b'.{"kind":"got"}', "the other process says 'got' instead of hello"),
        (b".[]", "the other process: what it says is no message"),
        (b"", "the other process: it has gone"),
    ],
)
def test_who_speaks_otherwise_gets_nothing(line: Line, said: bytes, why: str) -> None:
    line.open()
    client, instance = line.connect()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        line.now.order("give", ours.fileno(), timeout=DEADLINE_S)
        theirs.send(said) if said else theirs.close()
        assert line.now.answer()["failed"] == f"cannot hand the connections over: {why}; this process goes on"
    theirs.close()
    converse(client, instance)


def test_frontends_without_clients_go_over_too(line: Line) -> None:
    line.open()
    line.hand_on()
    line.connect()


async def test_what_is_revoked_cannot_be_committed_and_what_is_committed_cannot_be_revoked() -> None:
    """So that exactly one process goes on, at whatever moment the patience of the old one ends."""
    for commits_first in (True, False):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.closing(_Line(ours)) as old, contextlib.closing(_Line(theirs)) as new:
            if commits_first:
                new.commit()
                assert old.revoke()
            else:
                assert not old.revoke()
                with pytest.raises(Failed, match="given up waiting"):
                    new.commit()
