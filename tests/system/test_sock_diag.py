"""What the kernel says of connections and listening sockets, and how one is ended from outside."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from clojarsd.core.names import Address
from clojarsd.system import sock_diag
from clojarsd.system.sock_diag import CLOSE_WAIT, ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, SockDiag
from tests.support.sockets import DEADLINE_S, receive_exactly, receive_to_the_end, reset, wait_for

LOOPBACK = "127.0.0.1"
KINDS = [
    pytest.param((socket.AF_INET, LOOPBACK, LOOPBACK), id="ipv4"),
    pytest.param((socket.AF_INET6, "::1", "::1"), id="ipv6"),
    pytest.param((socket.AF_INET6, "::", LOOPBACK), id="mapped"),
]


@pytest.fixture
def diag() -> Iterator[SockDiag]:
    with SockDiag() as diag:
        yield diag


class Peers:
    """A listening socket and those that dial it; all are closed at the end."""

    def __init__(self, stack: ExitStack, family: int, host: str, dialled: str) -> None:
        self._stack = stack
        self.listener = stack.enter_context(socket.socket(family))
        self.listener.bind((host, 0))
        self.listener.listen(16)
        self.address = Address(dialled, self.listener.getsockname()[1])

    def dial(self) -> socket.socket:
        return self._stack.enter_context(socket.create_connection((self.address.host, self.address.port), DEADLINE_S))

    def accept(self) -> socket.socket:
        accepted = self._stack.enter_context(self.listener.accept()[0])
        accepted.settimeout(DEADLINE_S)
        return accepted


@pytest.fixture(params=KINDS)
def peers(request: pytest.FixtureRequest) -> Iterator[Peers]:
    with ExitStack() as stack:
        yield Peers(stack, *request.param)


@pytest.fixture
def ipv4() -> Iterator[Peers]:
    with ExitStack() as stack:
        yield Peers(stack, socket.AF_INET, LOOPBACK, LOOPBACK)


def address_of(end: socket.socket) -> Address:
    return Address(*end.getsockname()[:2])


def test_a_connection_has_the_addresses_of_its_ends_and_the_inode_of_its_socket(diag: SockDiag, peers: Peers) -> None:
    client, accepted = peers.dial(), peers.accept()
    [found] = diag.connections(peers.address.port)
    assert (found.local, found.remote) == (peers.address, address_of(client))
    assert (found.state, found.inode) == (ESTABLISHED, os.fstat(accepted.fileno()).st_ino)
    assert not found.is_waiting


def test_one_that_was_not_accepted_has_no_inode_and_counts_in_the_queue(diag: SockDiag, peers: Peers) -> None:
    peers.dial()
    [found] = diag.connections(peers.address.port)
    [queue] = diag.queues(peers.address.port)
    assert (found.inode, found.is_waiting) == (0, True)
    assert (queue.inode, queue.waiting, queue.limit) == (os.fstat(peers.listener.fileno()).st_ino, 1, 16)
    assert queue.address == Address(peers.listener.getsockname()[0], peers.address.port)
    peers.accept()
    assert [queue.waiting for queue in diag.queues(peers.address.port)] == [0]


def test_other_ports_and_the_clients_ends_are_not_seen(diag: SockDiag, peers: Peers, ipv4: Peers) -> None:
    client, other = peers.dial(), ipv4.dial()
    assert [one.remote for one in diag.connections(peers.address.port)] == [address_of(client)]
    assert [one.remote for one in diag.connections(ipv4.address.port)] == [address_of(other)]


def test_it_is_known_how_long_each_side_has_been_silent(diag: SockDiag, ipv4: Peers) -> None:
    client, accepted = ipv4.dial(), ipv4.accept()
    client.sendall(b"x" * 1000)
    receive_exactly(accepted, 1000)

    def received_before() -> float:
        [found] = diag.connections(ipv4.address.port)
        assert found.since_received is not None
        return found.since_received

    wait_for(lambda: received_before() >= 0.05)
    accepted.sendall(b"y" * 10)
    receive_exactly(client, 10)
    [found] = diag.connections(ipv4.address.port)
    assert found.since_sent is not None
    assert found.since_received is not None
    assert found.since_sent < found.since_received
    assert found.bytes_received == 1000
    wait_for(lambda: [one.bytes_acknowledged for one in diag.connections(ipv4.address.port)] == [10])


def test_unread_and_unsent_bytes_are_counted(diag: SockDiag, ipv4: Peers) -> None:
    client, accepted = ipv4.dial(), ipv4.accept()
    client.sendall(b"x" * 1000)
    wait_for(lambda: [one.receive_queue for one in diag.connections(ipv4.address.port)] == [1000])
    accepted.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            accepted.send(bytes(1 << 16))
    wait_for(lambda: [one for one in diag.connections(ipv4.address.port) if one.unsent and one.send_queue])


def test_times_can_be_left_out(diag: SockDiag, ipv4: Peers) -> None:
    ipv4.dial()
    [found] = diag.connections(ipv4.address.port, info=False)
    assert (found.since_sent, found.since_received) == (None, None)


def test_one_that_its_process_has_closed_is_let_go(diag: SockDiag, ipv4: Peers) -> None:
    ipv4.dial()
    ipv4.accept().close()
    [found] = diag.connections(ipv4.address.port)
    assert found.state in (FIN_WAIT_1, FIN_WAIT_2)
    assert (found.inode, found.is_let_go, found.is_waiting) == (0, True, False)


def test_one_whose_client_has_ended_before_it_was_accepted_still_waits(diag: SockDiag, ipv4: Peers) -> None:
    ipv4.dial().shutdown(socket.SHUT_WR)
    wait_for(lambda: [one.state for one in diag.connections(ipv4.address.port)] == [CLOSE_WAIT])
    assert [one.is_waiting for one in diag.connections(ipv4.address.port)] == [True]


def test_one_connection_is_found_by_its_addresses(diag: SockDiag, peers: Peers) -> None:
    client, accepted = peers.dial(), peers.accept()
    peers.dial()
    found = diag.find(peers.address, address_of(client))
    assert found is not None
    assert found.inode == os.fstat(accepted.fileno()).st_ino
    assert found.remote == address_of(client)


def test_a_listening_socket_is_no_connection(diag: SockDiag, peers: Peers) -> None:
    """The kernel answers with it when it is asked for a connection that is not there."""
    assert diag.find(peers.address, Address(peers.address.host, 1)) is None


def test_a_connection_that_has_ended_is_not_found(diag: SockDiag, ipv4: Peers) -> None:
    client, accepted = ipv4.dial(), ipv4.accept()
    remote = address_of(client)
    accepted.close()
    client.close()  # our side goes to TIME_WAIT, which is not open
    wait_for(lambda: diag.find(ipv4.address, remote) is None)
    assert diag.connections(ipv4.address.port) == []


def test_destroyed_means_a_reset_for_the_client_and_an_error_for_its_process(diag: SockDiag, peers: Peers) -> None:
    client, accepted = peers.dial(), peers.accept()
    [found] = diag.connections(peers.address.port)
    assert diag.destroy(found)
    assert receive_to_the_end(client) == (b"", True)
    with pytest.raises(ConnectionAbortedError):
        accepted.recv(1)
    assert diag.connections(peers.address.port) == []


def test_one_that_waits_to_be_accepted_can_be_destroyed(diag: SockDiag, peers: Peers) -> None:
    client = peers.dial()
    [found] = diag.connections(peers.address.port)
    assert diag.destroy(found)
    assert receive_to_the_end(client) == (b"", True)
    peers.accept().close()  # its process is given what is left of it


def test_what_has_ended_meanwhile_is_not_destroyed(diag: SockDiag, ipv4: Peers) -> None:
    client, accepted = ipv4.dial(), ipv4.accept()
    [found] = diag.connections(ipv4.address.port)
    reset(client)
    with pytest.raises(ConnectionResetError):
        accepted.recv(1)
    assert not diag.destroy(found)


def test_another_connection_with_the_same_addresses_is_not_destroyed(diag: SockDiag, ipv4: Peers) -> None:
    client, accepted = ipv4.dial(), ipv4.accept()
    [found] = diag.connections(ipv4.address.port)
    assert not diag.destroy(found._replace(cookie=found.cookie + 1_000_000))
    client.sendall(b"x")
    assert receive_exactly(accepted, 1) == b"x"


def test_destroying_without_the_capability_is_an_error(ipv4: Peers) -> None:
    ipv4.dial()
    child = os.fork()
    if not child:
        outcome = 1
        try:
            os.setresuid(65534, 65534, 65534)
            with SockDiag() as diag:
                [found] = diag.connections(ipv4.address.port)
                diag.destroy(found)
        except PermissionError:
            outcome = 0
        finally:
            os._exit(outcome)
    assert os.waitpid(child, 0)[1] == 0


def test_hundreds_are_told_once_each(diag: SockDiag, ipv4: Peers) -> None:
    """The answer comes in many pieces."""
    clients = []
    for _ in range(300):
        clients.append(ipv4.dial())
        ipv4.accept()
    found = diag.connections(ipv4.address.port)
    assert sorted(one.remote.port for one in found) == sorted(client.getsockname()[1] for client in clients)


def test_a_question_that_the_kernel_refuses_is_an_error_and_the_next_one_is_answered(
    diag: SockDiag, ipv4: Peers
) -> None:
    ipv4.dial()
    body = sock_diag._body(250, 0, 0, ipv4.address.port)  # there is no such family
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        diag._dump(body, sock_diag._connection)
    assert len(diag.connections(ipv4.address.port)) == 1


def test_after_an_answer_that_was_given_up_in_the_middle_the_next_one_is_whole(
    diag: SockDiag, ipv4: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(300):
        ipv4.dial()
        ipv4.accept()
    with monkeypatch.context() as patch:
        patch.setattr(diag, "_buffer", bytearray(512))  # too small for what the kernel sends at a time
        with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
            diag.connections(ipv4.address.port)
    assert diag.find(ipv4.address, Address(LOOPBACK, 1)) is None
    assert len(diag.connections(ipv4.address.port)) == 300


def test_an_answer_that_the_kernel_calls_torn_is_asked_for_again_and_given_up_after_three(diag: SockDiag) -> None:
    """The kernel's table does not change at our wish, so that the test speaks in its place."""
    torn, whole = 0x10 | 2, 2

    def done(sequence: int, flags: int) -> bytes:
        return sock_diag._HEADER.pack(20, 3, flags, sequence, 0) + bytes(4)

    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernels:
        diag.close()
        diag._socket = ours
        for sequence, flags in [(1, torn), (2, whole), (3, whole)]:
            kernels.send(done(sequence, flags))
        assert diag.connections(1) == []
        for sequence in (4, 5, 6):
            kernels.send(done(sequence, torn))
        with pytest.raises(InterruptedError):
            diag.connections(1)
