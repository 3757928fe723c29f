"""The helper that accepts in an instance's place: nobody is lost, whoever comes first, and nothing is changed."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system.rescuing import Helper
from tests.support.acceptors import Acceptor
from tests.support.fronts import descriptors_left
from tests.support.sockets import DEADLINE_S, open_descriptors, receive_exactly, receive_to_the_end, reset

LONG = 20.0


@contextmanager
def helper() -> Iterator[Helper]:
    """One, which is gone afterwards."""
    made = Helper()
    try:
        yield made
    finally:
        made.channel.close()
        assert readable(made.pidfd), "it does not end"
        os.waitpid(made.pid, 0)
        os.close(made.pidfd)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def readable(descriptor: int) -> bool:
    """Whether something comes there."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(DEADLINE_S * 1000))


def all_of(one: Helper) -> list[socket.socket]:
    """Everything that it accepts until its end."""
    found: list[socket.socket] = []
    while True:
        assert readable(one.channel.fileno())
        client = one.receive()
        if client is None:
            return found
        found.append(client)


def test_everybody_who_waits_is_handed_on_with_what_they_had_sent() -> None:
    with Acceptor.running() as acceptor, helper() as one:
        acceptor.stop()
        clients = [acceptor.client(b"client %d" % number) for number in range(5)]
        one.begin([acceptor.listening], LONG, 100)
        for number, (rescued, client) in enumerate(zip(all_of(one), clients, strict=True)):
            with rescued:
                assert not rescued.getblocking()
                assert not os.get_inheritable(rescued.fileno())
                rescued.settimeout(DEADLINE_S)
                assert receive_exactly(rescued, 8) == b"client %d" % number
                rescued.sendall(b"x")
                assert receive_exactly(client, 1) == b"x"
        acceptor.go_on()
        acceptor.do("serve")
        assert receive_exactly(acceptor.client(), 6) == b"served", "it goes on where it was"


def test_the_socket_is_left_as_it_was() -> None:
    with Acceptor.running() as acceptor, helper() as one:
        found = acceptor.listening
        information = Path(f"/proc/{acceptor.pid}/fdinfo/{found.descriptor}")
        before = information.read_text()
        acceptor.client()
        one.begin([found], LONG, 100)
        for rescued in all_of(one):
            rescued.close()
        assert information.read_text() == before


def test_nobody_who_waits_is_an_end_at_once() -> None:
    with Acceptor.running() as acceptor, helper() as one:
        one.begin([acceptor.listening], LONG, 100)
        assert all_of(one) == []


def test_no_more_than_was_asked_for_are_taken() -> None:
    with Acceptor.running() as acceptor, helper() as one:
        for _ in range(4):
            acceptor.client()
        one.begin([acceptor.listening], LONG, 3)
        taken = all_of(one)
        assert len(taken) == 3
        for rescued in taken:
            rescued.close()


def test_several_listeners_are_emptied() -> None:
    with Acceptor.running() as first, Acceptor.running() as second, helper() as one:
        first.client(b"1")
        second.client(b"2")
        one.begin([first.listening, second.listening], LONG, 100)
        for rescued in all_of(one):
            rescued.close()


def test_one_that_was_not_needed_ends() -> None:
    with helper():
        pass


def test_without_descriptors_there_is_none_and_that_is_said() -> None:
    said = "cannot start the helper that accepts: too many open files"
    for left in (0, 1, 2):  # for the channel, its other end, and what the child gets
        with descriptors_left(left), pytest.raises(Failed, match=said):
            Helper()


def test_one_that_has_gone_in_the_queue_is_handed_on_as_such() -> None:
    with Acceptor.running() as acceptor, helper() as one:
        reset(acceptor.client())
        one.begin([acceptor.listening], LONG, 100)
        (rescued,) = all_of(one)
        with rescued, pytest.raises(OSError, match="not connected"):
            rescued.getpeername()


def test_a_listener_that_is_gone_is_said() -> None:
    with Acceptor.running() as acceptor, helper() as one:
        found = acceptor.listening
        acceptor.do("close")
        with pytest.raises((Failed, OSError)):
            one.begin([found], LONG, 100)
    with helper() as one, pytest.raises(Failed, match="there is no listening socket"):
        one.begin([], LONG, 100)


def test_an_instance_that_wakes_up_meanwhile_takes_its_share_and_nobody_is_lost() -> None:
    """Both accept at the same time, over and over; the helper may block in an accept that the other has won."""
    with Acceptor.running(backlog=1000) as acceptor:
        acceptor.do("serve")
        by_us, answers, lock = 0, 0, threading.Lock()
        over = threading.Event()

        def ask() -> None:
            nonlocal answers
            while not over.is_set():
                with socket.create_connection(("127.0.0.1", acceptor.port), DEADLINE_S) as client:
                    assert receive_exactly(client, 6) == b"served"
                    with lock:
                        answers += 1

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + DEADLINE_S
        rounds = 0
        while rounds < 10 or by_us < 20:
            assert time.monotonic() < deadline, (rounds, by_us)
            rounds += 1
            acceptor.stop()
            with helper() as one:
                acceptor.go_on()
                one.begin([acceptor.listening], 0.05, 1000)
                for rescued in all_of(one):
                    by_us += 1
                    with rescued, suppress(OSError):
                        rescued.sendall(b"served")
        over.set()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert answers > by_us


def test_one_that_is_killed_has_handed_on_what_it_had_and_the_rest_waits_for_the_next() -> None:
    with Acceptor.running(backlog=4000) as acceptor:
        acceptor.stop()
        clients = [acceptor.client(b"?") for _ in range(1500)]
        rescued: list[socket.socket] = []
        with helper() as one:
            one.begin([acceptor.listening], LONG, 4000)
            while len(rescued) < 100:  # then it waits for room in the channel, or goes on
                assert readable(one.channel.fileno())
                client = one.receive()
                assert client is not None
                rescued.append(client)
            os.kill(one.pid, signal.SIGKILL)
            rescued += all_of(one)
        with helper() as another:
            another.begin([acceptor.listening], LONG, 4000)
            rescued += all_of(another)
        lost = len(clients) - len(rescued)
        assert lost <= 1, "the one that it had in hand"
        for one_of_them in rescued:
            with one_of_them:
                one_of_them.send(b"!")
        answered = sum(receive_to_the_end(client)[0] == b"!" for client in clients)
        assert answered == len(rescued)


def test_signals_that_end_others_do_not_end_it_with_somebody_in_hand() -> None:
    with Acceptor.running() as acceptor, helper() as one:
        acceptor.client()
        status = Path(f"/proc/{one.pid}/status")
        deadline = time.monotonic() + DEADLINE_S
        while not int(status.read_text().split("SigIgn:\t")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            assert time.monotonic() < deadline, "it has not begun"
        os.kill(one.pid, signal.SIGTERM)
        one.begin([acceptor.listening], LONG, 100)
        (rescued,) = all_of(one)
        rescued.close()
