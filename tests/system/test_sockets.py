"""Listening says exactly what is in its way, and closing with a reset looks like one."""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from clojarsd.core.errors import Failed
from clojarsd.core.names import Address
from clojarsd.system.sockets import close_with_reset, free_ports, holder_of, listen, since_data
from tests.support.sockets import open_descriptors, receive_to_the_end, reset, tcp_pair

LOOPBACK = "127.0.0.1"


def test_port_0_is_any_free_port_and_the_socket_does_not_block() -> None:
    with listen(Address(LOOPBACK, 0), ipv6_only=False, what="a test") as listener:
        assert listener.getsockname()[1] > 0
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_host_name_is_looked_up() -> None:
    with listen(Address("localhost", 0), ipv6_only=False, what="a test") as listener:
        assert listener.getsockname()[0] == LOOPBACK


@pytest.mark.parametrize("ipv6_only", [False, True])
def test_the_ipv4_side_of_an_ipv6_port_is_taken_or_left(ipv6_only: bool) -> None:
    with listen(Address("::", 0), ipv6_only=ipv6_only, what="a test") as listener:
        address = (LOOPBACK, listener.getsockname()[1])
        if ipv6_only:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
        else:
            socket.create_connection(address).close()


def test_a_port_can_be_listened_on_again_while_old_connections_linger() -> None:
    with listen(Address(LOOPBACK, 0), ipv6_only=False, what="a test") as listener:
        address = Address(*listener.getsockname())
        with socket.create_connection((address.host, address.port)) as client:
            listener.setblocking(True)
            accepted, _ = listener.accept()
            accepted.close()  # the side that ends first keeps the port in TIME-WAIT
            assert client.recv(1) == b""
    listen(address, ipv6_only=False, what="a test").close()


def test_an_address_in_use_names_its_holder() -> None:
    before = open_descriptors()
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Failed) as failed:
            listen(Address(LOOPBACK, port), ipv6_only=False, what="frontend http")
    holder = f"process {os.getpid()} ({psutil.Process().name()})"
    assert str(failed.value) == (
        f"cannot listen on {LOOPBACK}:{port} for frontend http: address already in use by {holder}"
    )
    assert open_descriptors() == before


def test_who_has_the_port_on_another_address_is_not_blamed() -> None:
    """A socket that is bound and does not listen is in the way; a listener on 127.0.0.2 is not."""
    with socket.socket() as bound:
        bound.bind((LOOPBACK, 0))
        port = bound.getsockname()[1]
        with socket.create_server(("127.0.0.2", port)):
            assert holder_of(port) is not None
            assert holder_of(port, LOOPBACK) is None
            with pytest.raises(Failed) as failed:
                listen(Address(LOOPBACK, port), ipv6_only=False, what="a test")
    assert str(failed.value) == f"cannot listen on {LOOPBACK}:{port} for a test: address already in use"


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::"])
def test_who_listens_everywhere_is_in_the_way_of_every_address(everywhere: str) -> None:
    with listen(Address(everywhere, 0), ipv6_only=False, what="a test") as taken:
        port = taken.getsockname()[1]
        assert holder_of(port, LOOPBACK) == f"process {os.getpid()} ({psutil.Process().name()})"


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "cannot assign requested address"),
        ("no such host", ""),
        ("x" * 64 + ".example", "not a host name"),
    ],
)
def test_an_address_that_is_not_ours_is_refused_with_a_reason(host: str, reason: str) -> None:
    before = open_descriptors()
    with pytest.raises(Failed) as failed:
        listen(Address(host, 1), ipv6_only=False, what="a test")
    start = f"cannot listen on {host}:1 for a test: "
    assert str(failed.value).startswith(start)
    assert str(failed.value) == start + reason if reason else len(str(failed.value)) > len(start)
    assert open_descriptors() == before


def test_closing_with_a_reset_looks_like_one() -> None:
    one, other = tcp_pair()
    close_with_reset(one)
    with other:
        assert receive_to_the_end(other) == (b"", True)


def test_a_connection_that_is_reset_already_is_only_closed() -> None:
    one, other = tcp_pair()
    reset(other)
    close_with_reset(one)
    assert one.fileno() == -1


def test_free_ports_are_free_and_no_outgoing_connection_takes_one() -> None:
    outgoing_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = free_ports(20)
    assert len(set(found)) == 20
    assert all(port < outgoing_from for port in found)
    with ExitStack() as stack:
        for port in found:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))


def test_free_ports_are_not_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who got them may not listen there yet, and chance gives the same again now and then."""
    monkeypatch.setattr(random, "shuffle", lambda candidates: None)
    assert set(free_ports(3)).isdisjoint(free_ports(3))


def test_silence_is_known_of_a_connection_and_not_of_other_sockets() -> None:
    one, other = tcp_pair()
    with one, other:
        silent = since_data(one)
        assert silent is not None
        assert 0 <= silent < 5
    unix, peer = socket.socketpair()
    with unix, peer:
        assert since_data(unix) is None


def test_a_peer_that_has_vanished_is_found_out_by_the_kernel() -> None:
    """Clients that are accepted are asked whether they are there, as the listening socket says."""
    with (
        listen(Address(LOOPBACK, 0), ipv6_only=False, what="a test") as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_a_host_that_is_not_there_is_told() -> None:
    with pytest.raises(Failed, match=r"^cannot listen on no-such-host\.invalid:0 for a test: "):
        listen(Address("no-such-host.invalid", 0), ipv6_only=False, what="a test")
