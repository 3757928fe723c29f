"""Looking into the accept queue of another process, and our own connection in it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from clojarsd.core.errors import Failed
from clojarsd.core.names import Address
from clojarsd.core.stall import Probe
from clojarsd.system.accept_queue import AcceptQueues, ProbeConnection
from clojarsd.system.instance_sockets import find_listening
from clojarsd.system.own_connections import OwnConnections
from clojarsd.system.sock_diag import SockDiag
from tests.support.acceptors import Acceptor
from tests.support.real import unavailable
from tests.support.sockets import DEADLINE_S, open_descriptors, pause, reset


@pytest.fixture
def diag() -> Iterator[SockDiag]:
    with SockDiag() as made:
        yield made


@pytest.fixture
def queues(diag: SockDiag) -> Iterator[AcceptQueues]:
    made = AcceptQueues(diag)
    yield made
    made.forget()


def until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not fact():
        assert time.monotonic() < deadline, what
        pause()


def test_the_length_is_that_of_the_queue(queues: AcceptQueues) -> None:
    with Acceptor.running() as acceptor:
        found = acceptor.listening
        assert queues.waiting(found) == 0
        for count in range(1, 4):
            acceptor.client()
            before = open_descriptors()
            assert queues.waiting(found) == count
            assert open_descriptors() == before
        acceptor.do("one")
        assert queues.waiting(found) == 2
        acceptor.stop()
        acceptor.client()
        assert queues.waiting(found) == 3
        acceptor.go_on()


def test_a_look_is_cheap(queues: AcceptQueues) -> None:
    with Acceptor.running() as acceptor:
        found = acceptor.listening
        began = time.process_time()
        for _ in range(1000):
            queues.waiting(found)
        assert time.process_time() - began < 0.5, "it takes some 10 us"


def test_a_listener_that_was_closed_or_opened_again_is_not_there_any_more(queues: AcceptQueues) -> None:
    with Acceptor.running() as acceptor:
        before = acceptor.listening
        queues.waiting(before)
        acceptor.do("reopen")
        with pytest.raises((Failed, OSError)):
            queues.waiting(before)
        assert queues.waiting(acceptor.listening) == 0
        again = acceptor.listening
        acceptor.do("close")
        with pytest.raises(OSError, match="Bad file descriptor"):
            queues.waiting(again)


def test_a_process_that_has_ended_is_told_by_an_error_also_through_a_descriptor_that_was_kept(
    queues: AcceptQueues,
) -> None:
    with Acceptor.running() as acceptor:
        found = acceptor.listening
        queues.waiting(found)
    with pytest.raises(ProcessLookupError):
        queues.waiting(found)


def test_who_may_have_no_duplicate_asks_the_kernel_otherwise() -> None:
    """A plain user under Yama, or with an instance of another user: here the kernel refuses a user without rights."""
    if os.geteuid() != 0:
        unavailable("needs root, to become a user who may not")
    looks = """
import os, sys
from clojarsd.core.names import Address
from clojarsd.system.accept_queue import AcceptQueues
from clojarsd.system.instance_sockets import Listening
from clojarsd.system.sock_diag import SockDiag
pid, descriptor, inode, port = map(int, sys.argv[1:])
found = Listening(pid, descriptor, inode, Address("127.0.0.1", port), True, False)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
queues = AcceptQueues(SockDiag())
print(queues.waiting(found), queues.waiting(found))
sys.stdin.readline()
try: queues.waiting(found)
except OSError as error: print(error.strerror)
"""
    with Acceptor.running() as acceptor:
        acceptor.client()
        acceptor.client()
        one = acceptor.listening
        words = [str(number) for number in (one.pid, one.descriptor, one.inode, acceptor.port)]
        with subprocess.Popen(
            [sys.executable, "-c", looks, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as looker:
            assert looker.stdout is not None
            assert looker.stdout.readline() == "2 2\n"
            acceptor.do("close")
            assert looker.communicate("\n")[0] == "Bad file descriptor\n"


def test_a_probe_waits_until_it_is_accepted(diag: SockDiag) -> None:
    own = OwnConnections()
    with Acceptor.running() as acceptor:
        found = acceptor.listening
        acceptor.client()
        probe = ProbeConnection(found, diag, own)
        assert probe.look() is Probe.WAITING
        acceptor.do("one")
        assert probe.look() is Probe.WAITING, "the one before it was accepted"
        acceptor.do("one")
        assert probe.look() is Probe.ACCEPTED
        probe.close()


def test_a_probe_that_was_accepted_and_closed_was_accepted(diag: SockDiag) -> None:
    with Acceptor.running() as acceptor:
        probe = ProbeConnection(acceptor.listening, diag, OwnConnections())
        acceptor.do("serve")
        until(lambda: probe.look() is Probe.ACCEPTED, "it is served")
        acceptor.end()
        assert probe.look() in (Probe.ACCEPTED, Probe.LOST)
        probe.close()


def test_a_probe_of_a_full_queue_is_not_answered_and_one_that_gets_room_is(diag: SockDiag) -> None:
    with Acceptor.running(backlog=0) as acceptor:
        found = acceptor.listening
        acceptor.client()
        acceptor.dialling()
        probe = ProbeConnection(found, diag, OwnConnections())
        assert probe.look() is Probe.UNANSWERED
        acceptor.do("one")
        probe.close()
        again = ProbeConnection(found, diag, OwnConnections())
        until(lambda: again.look() in (Probe.WAITING, Probe.UNANSWERED), "it is taken or not")
        again.close()


def test_a_probe_is_lost_with_the_listener(diag: SockDiag) -> None:
    with Acceptor.running() as acceptor:
        found = acceptor.listening
        probe = ProbeConnection(found, diag, OwnConnections())
        acceptor.do("close")
        assert probe.look() is Probe.LOST
        probe.close()
        refused = ProbeConnection(found, diag, OwnConnections())
        assert refused.look() is Probe.LOST
        refused.close()


@pytest.mark.parametrize("host", ["::", "0.0.0.0", "::1", "127.0.0.1"])
def test_a_probe_reaches_a_listener_of_every_kind(diag: SockDiag, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = host == "::"
    with socket.create_server((host, 0), family=family, dualstack_ipv6=dual) as mine:
        (found,) = find_listening([os.getpid()], mine.getsockname()[1])
        probe = ProbeConnection(found, diag, OwnConnections())
        assert probe.look() is Probe.WAITING
        end, _ = mine.accept()
        with end:
            assert probe.look() is Probe.ACCEPTED
        probe.close()


def test_a_probe_is_known_as_our_own_until_it_is_closed(diag: SockDiag) -> None:
    own = OwnConnections()
    with socket.create_server(("127.0.0.1", 0)) as mine:
        (found,) = find_listening([os.getpid()], mine.getsockname()[1])
        probe = ProbeConnection(found, diag, own)
        end, where = mine.accept()
        with end:
            assert not own.claim(Address(*where), found.address.port + 1), "a client of another port, from the same one"
            assert own.claim(Address(*where), found.address.port)
            assert not own.claim(Address(*where), found.address.port), "it has come out once"
            again = ProbeConnection(found, diag, own)
            other, there = mine.accept()
            again.close()
            assert not own.claim(Address(*there), found.address.port), "somebody else may have its port by now"
            with other, pytest.raises(ConnectionResetError):
                other.recv(1)
        probe.close()


def test_the_oldest_of_our_own_are_forgotten_first() -> None:
    own = OwnConnections()
    for port in range(1, 300):
        own.remember(Address("127.0.0.1", port), 80)
    assert not own.claim(Address("127.0.0.1", 1), 80)
    assert own.claim(Address("127.0.0.1", 299), 80)


def test_what_was_given_up_is_our_own_until_its_queue_is_empty() -> None:
    own, kept, left = OwnConnections(), Address("127.0.0.1", 1), Address("127.0.0.1", 2)
    own.remember(kept, 80)
    for to in (80, 81):
        own.remember(left, to)
        own.leave(left, to)
    own.nothing_waits(80)
    assert own.claim(kept, 80), "it is on its way"
    assert not own.claim(left, 80)
    assert own.claim(left, 81)


def test_a_client_that_is_reset_in_the_queue_is_counted_by_it_and_seen_by_nobody(
    queues: AcceptQueues, diag: SockDiag
) -> None:
    """What `has_moved` relies on: only an accept makes the queue shorter."""
    with Acceptor.running() as acceptor:
        found = acceptor.listening
        reset(acceptor.client())
        acceptor.client()
        assert queues.waiting(found) == 2
        assert len([one for one in diag.connections(acceptor.port) if one.is_waiting]) == 1
        acceptor.do("one")
        acceptor.do("one")
        assert queues.waiting(found) == 0


def test_a_stopped_process_can_be_looked_at_as_well(queues: AcceptQueues) -> None:
    with Acceptor.running() as acceptor:
        os.kill(acceptor.pid, signal.SIGSTOP)
        acceptor.client()
        assert queues.waiting(acceptor.listening) == 1
