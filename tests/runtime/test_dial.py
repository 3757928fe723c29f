"""A connect that is refused, never ends or fails otherwise costs no client anything but time."""

from __future__ import annotations

import contextlib
import errno
import socket

import pytest

from clojarsd.core.names import Address
from clojarsd.runtime.dial import Client, Dial
from tests.support.fronts import LOOPBACK, NEVER, B, Front, Instance, P, pending_timers
from tests.support.sockets import Rig, open_descriptors, receive_exactly, receive_to_the_end, reset


def test_who_cannot_be_connected_in_time_goes_to_the_other(rig: Rig) -> None:
    with Front(rig, connect_timeout=0.2) as front:
        front.primary.fill()
        client = front.client(b"hello")
        with front.backup.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
            end.sendall(b"answer")
            assert receive_exactly(client, 6) == b"answer"
        assert front.doubts == [P]
        assert front.accepted() == (0, 1, 0)
        assert front.happened == []


def test_a_connect_under_way_is_counted_and_left_when_its_instance_is_not_eligible_any_more(rig: Rig) -> None:
    with Front(rig) as front:
        front.primary.fill()
        front.client(b"hello")
        front.until(primary=1)
        front.eligible(primary=False, backup=True)
        with front.backup.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
            assert front.connections() == (0, 1, 0)
            assert front.doubts == []
        assert rig.call(pending_timers) == 0


def test_a_connect_may_end_late(rig: Rig) -> None:
    """The kernel repeats its SYN after a second."""
    with Front(rig) as front:
        front.primary.fill()
        front.client(b"hello")
        front.until(primary=1)
        front.primary.drop_fillers()
        while True:
            with front.primary.accept() as end:
                if end.recv(5) == b"hello":
                    break
        assert front.accepted() == (1, 0, 0)
        assert rig.call(pending_timers) == 0


def test_a_client_that_resets_while_it_is_dialled_for_leaves_nothing(rig: Rig) -> None:
    with Front(rig, backup=False) as front:
        front.primary.fill()
        reset(front.client(b"hello"))
        front.until(primary=1)
        front.eligible(primary=False, backup=True)
        with front.backup.accept() as end:
            said, was_reset = receive_to_the_end(end)
        assert said in (b"", b"hello")
        assert was_reset
        front.until()


def test_an_instance_hears_of_a_silent_client_at_once(rig: Rig) -> None:
    """The last packet of the handshake waits for the first bytes, but not if there are none."""
    with Front(rig) as front:
        front.client()
        front.until(primary=1)
        front.primary.accept_at_once().close()


def attempt(rig: Rig, address: Address, *, timeout: float = NEVER) -> socket.SocketType | OSError:
    """What a dial to the address comes to; its client is closed."""
    near, far = socket.socketpair()
    outcomes: list[tuple[Dial, socket.SocketType | OSError]] = []
    dial = Dial(rig.loop, Client(near), P, address, timeout, lambda dial, outcome: outcomes.append((dial, outcome)))
    rig.call(dial.start)
    rig.until(lambda: bool(outcomes), lambda: outcomes)
    assert len(outcomes) == 1
    assert outcomes[0][0] is dial
    near.close()
    far.close()
    return outcomes[0][1]


def test_a_dial_gives_the_connected_socket(rig: Rig) -> None:
    instance = Instance()
    outcome = attempt(rig, instance.address)
    assert isinstance(outcome, socket.SocketType)
    with contextlib.closing(outcome), instance.accept() as end:
        assert outcome.getsockname() == end.getpeername()
        assert not outcome.getblocking()
    instance.close()


def test_a_dial_says_why_there_is_no_connection(rig: Rig) -> None:
    before = open_descriptors()
    instance = Instance()
    instance.refuse()
    refused = attempt(rig, instance.address)
    assert isinstance(refused, OSError)
    assert refused.errno == errno.ECONNREFUSED
    instance.fill()
    late = attempt(rig, instance.address, timeout=0.05)
    assert isinstance(late, OSError)
    assert (late.errno, late.strerror) == (errno.ETIMEDOUT, "no connection within 0.05 s")
    instance.close()
    assert rig.call(pending_timers) == 0
    assert open_descriptors() == before


@pytest.mark.parametrize("host", ["no such host", "x" * 64 + ".example"], ids=["unknown", "label too long"])
def test_a_host_name_that_names_nothing_is_a_failure_like_others(rig: Rig, host: str) -> None:
    before = open_descriptors()
    outcome = attempt(rig, Address(host, 1))
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.EHOSTUNREACH
    assert open_descriptors() == before


def test_an_abandoned_dial_gives_the_client_back_and_is_silent(rig: Rig) -> None:
    instance = Instance()
    instance.fill()
    near, far = socket.socketpair()
    client = Client(near)
    outcomes: list[object] = []
    dial = Dial(rig.loop, client, P, instance.address, NEVER, lambda _, outcome: outcomes.append(outcome))
    before = open_descriptors()
    rig.call(dial.start)
    assert open_descriptors() == before + 1
    assert rig.call(dial.abandon) is client
    assert open_descriptors() == before
    assert rig.call(pending_timers) == 0
    assert not outcomes
    for end in (near, far):
        end.close()
    instance.close()


@pytest.mark.slow
def test_a_connection_to_itself_counts_as_refused(rig: Rig) -> None:
    """The kernel goes through its local ports one by one, so that sooner or later it takes the dialled one."""
    with socket.socket() as unused:
        unused.bind((LOOPBACK, 0))
        port = unused.getsockname()[1] + 1  # bind gives odd ones, and connect begins with the even ones
    near, far = socket.socketpair()
    outcomes: list[int | None] = []

    def dial() -> None:
        Dial(rig.loop, Client(near), B, Address(LOOPBACK, port), NEVER, note).start()

    def note(_: Dial, outcome: socket.SocketType | OSError) -> None:
        outcomes.append(outcome.errno if isinstance(outcome, OSError) else None)
        if isinstance(outcome, socket.SocketType):
            outcome.close()
        if len(outcomes) < 15_000:
            rig.loop.call_soon(dial)

    rig.call(dial)
    rig.until(lambda: len(outcomes) == 15_000, lambda: len(outcomes))
    near.close()
    far.close()
    assert set(outcomes) == {errno.ECONNREFUSED}
