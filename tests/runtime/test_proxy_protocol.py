"""An instance is told who its client is, once for each connection to it and before anything else."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from clojarsd.core.names import Address
from clojarsd.core.proxy_protocol import OF_UNKNOWN_CLIENT
from clojarsd.system.announce import announce, header_of
from clojarsd.system.relay import EndReason, Session
from clojarsd.system.relay_thaw import thaw
from tests.runtime.test_drain import REQUEST, answer, drain
from tests.support.fronts import LOOPBACK, Front
from tests.support.proxy_headers import Header, receive_header
from tests.support.sockets import Rig, fill, receive_exactly, receive_to_the_end, reset, tcp_pair


def told_of(client: socket.socket, family: str = "TCP4") -> Header:
    """What the instance is to be told of a client."""
    return Header("PROXY", family, client.getsockname()[:2], client.getpeername()[:2])


def test_the_header_comes_before_what_the_client_says(rig: Rig) -> None:
    with Front(rig, proxy_protocol=True) as front:
        client = front.client(b"hello")
        with front.primary.accept() as end:
            assert receive_header(end) == told_of(client)
            assert receive_exactly(end, 5) == b"hello"
            end.sendall(b"answer")
            assert receive_exactly(client, 6) == b"answer"
            (session,) = rig.call(lambda: list(front.frontend._every_session()))
            assert rig.call(lambda: (session.bytes_up, session.bytes_down)) == (5, 6)


def test_an_instance_that_speaks_first_has_the_header_before_the_client_says_a_word(rig: Rig) -> None:
    with Front(rig, proxy_protocol=True) as front:
        client = front.client()
        with front.primary.accept() as end:
            assert receive_header(end) == told_of(client)
            (session,) = rig.call(lambda: list(front.frontend._every_session()))
            # nor does what the client says then wait until the header is acknowledged
            assert session.instance.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize(
    ("host", "family", "seen"), [("::1", "TCP6", "::1"), (LOOPBACK, "TCP4", LOOPBACK)], ids=["IPv6", "mapped"]
)
def test_clients_of_a_listener_for_both_kinds(rig: Rig, host: str, family: str, seen: str) -> None:
    with Front(rig, proxy_protocol=True, listen=(Address("::", 0),)) as front:
        with socket.create_connection((host, front.address.port)) as client, front.primary.accept() as end:
            assert receive_header(end) == Header(
                "PROXY", family, (seen, client.getsockname()[1]), (seen, front.address.port)
            )
        front.until()


def test_who_moves_to_the_other_instance_is_announced_there_too(rig: Rig) -> None:
    with Front(rig, movable=True, proxy_protocol=True) as front:
        client = front.client(REQUEST)
        with front.primary.accept() as end:
            assert receive_header(end) == told_of(client)
            answer(client, end)
            calls = drain(front)
            client.sendall(REQUEST)
            assert receive_to_the_end(end) == (b"", False)
        with front.backup.accept() as end:
            assert receive_header(end) == told_of(client)
            answer(client, end)
        calls.until_one()
        assert receive_to_the_end(client) == (b"", False)


def test_a_held_client_is_announced_when_it_is_served(rig: Rig) -> None:
    with Front(rig, primary=False, backup=False, proxy_protocol=True) as front:
        client = front.client(b"early")
        front.until(held=1)
        front.eligible(primary=False, backup=True)
        with front.backup.accept() as end:
            assert receive_header(end) == told_of(client)
            assert receive_exactly(end, 5) == b"early"


def test_a_client_that_was_refused_by_one_instance_is_announced_to_the_other(rig: Rig) -> None:
    with Front(rig, proxy_protocol=True) as front:
        front.primary.refuse()
        client = front.client(b"hello")
        with front.backup.accept() as end:
            assert receive_header(end) == told_of(client)
            assert receive_exactly(end, 5) == b"hello"


def test_nobody_is_announced_unless_it_is_asked_for(rig: Rig) -> None:
    with Front(rig) as front:
        front.client(b"hello")
        with front.primary.accept() as end:
            assert receive_exactly(end, 5) == b"hello"


def full_session(rig: Rig, ends: list[EndReason]) -> tuple[Session, socket.socket, socket.socket, int]:
    """A session that was announced when its instance took nothing; client, instance, and how much came before."""
    client, near_client = tcp_pair()
    near_instance, instance = tcp_pair()
    before = fill(near_instance, most=1 << 30)
    near_instance.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # less than waits: only the last segment has room
    for near in (near_client, near_instance):
        near.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            before += near_instance.send(b"x")

    def begin() -> Session:
        session = Session(
            rig.loop,
            near_client,
            near_instance,
            rig.resources,
            quickack=False,
            on_end=lambda _, reason: ends.append(reason),
        )
        announce(session)
        session.start()
        return session

    return rig.call(begin), client, instance, before


def test_what_the_instance_does_not_take_at_once_comes_before_what_the_client_says(rig: Rig) -> None:
    ends: list[EndReason] = []
    session, client, instance, before = full_session(rig, ends)
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    receive_exactly(instance, before)
    assert receive_header(instance) == told_of(client)
    assert receive_to_the_end(instance) == (b"hello", False)
    assert rig.call(lambda: session.bytes_up) == 5
    instance.close()
    client.close()
    rig.until(lambda: bool(ends), lambda: ends)


def test_a_header_that_was_not_taken_yet_goes_to_another_process(rig: Rig) -> None:
    ends: list[EndReason] = []
    session, client, instance, before = full_session(rig, ends)
    client.sendall(b"hello")

    def hand_on() -> Session:
        frozen, descriptors = session.freeze()
        assert frozen.up.pending == header_of(session.client)
        there = thaw(
            rig.loop,
            frozen,
            [os.dup(number) for number in descriptors],
            rig.resources,
            on_end=lambda _, reason: ends.append(reason),
        )
        session.let_go()
        there.unfreeze()
        return there

    there = rig.call(hand_on)
    receive_exactly(instance, before)
    assert receive_header(instance) == told_of(client)
    assert receive_exactly(instance, 5) == b"hello"
    assert rig.call(lambda: there.bytes_up) == 5
    instance.close()
    client.close()
    rig.until(lambda: bool(ends), lambda: ends)


def test_an_instance_that_has_gone_already_is_noticed(rig: Rig) -> None:
    ends: list[EndReason] = []
    client, near_client = tcp_pair()
    near_instance, instance = tcp_pair()
    reset(instance)
    near_client.setblocking(False)
    near_instance.setblocking(False)

    def begin() -> None:
        session = Session(
            rig.loop,
            near_client,
            near_instance,
            rig.resources,
            quickack=False,
            on_end=lambda _, reason: ends.append(reason),
        )
        announce(session)
        session.start()

    rig.call(begin)
    assert receive_to_the_end(client) == (b"", True)
    rig.until(lambda: ends == [EndReason.INSTANCE_RESET], lambda: ends)
    client.close()


def test_clients_without_an_address() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert header_of(one) == OF_UNKNOWN_CLIENT
    with socket.socket() as unconnected:
        assert header_of(unconnected) == OF_UNKNOWN_CLIENT
