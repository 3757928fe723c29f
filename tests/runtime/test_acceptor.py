"""Running out of descriptors and connections that fail in accept cost no other client its service."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import time
from collections.abc import Iterator

import pytest
import structlog

from clojarsd.runtime.acceptor import ACCEPTS_A_TURN, Acceptor
from tests.support.fronts import LOOPBACK, Front, P, descriptors_left, pending_timers
from tests.support.sockets import Rig, receive_exactly, stays_silent


def lines(logged: list[structlog.typing.EventDict], event: str) -> int:
    return sum(line["event"] == event for line in logged)


def test_out_of_descriptors_clients_wait_unserved_unclosed_and_nothing_spins(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logged, Front(rig, begin=False) as front:
        clients = [front.client(b"x") for _ in range(3)]
        with descriptors_left(0) as restore:
            before = rig.call(time.thread_time)
            rig.call(front.frontend.begin)
            assert stays_silent(clients[0])
            assert stays_silent(clients[0])
            assert rig.call(time.thread_time) - before < 0.05
            assert front.connections() == (0, 0, 0)
            restore()
        for _ in clients:
            with front.primary.accept() as end:
                end.sendall(receive_exactly(end, 1))
        assert [receive_exactly(client, 1) for client in clients] == [b"x"] * 3
        assert front.accepted() == (3, 0, 0)
    assert lines(logged, "accept_paused") == 1


def test_out_of_descriptors_for_the_instance_a_client_is_held_and_tried_again(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logged, Front(rig, begin=False) as front:
        clients = [front.client(b"x") for _ in range(3)]
        with descriptors_left(1) as restore:
            rig.call(front.frontend.begin)
            rig.until(lambda: lines(logged, "connect_failed") >= 3, lambda: logged)
            assert front.connections() == (0, 0, 1)
            assert front.doubts == [], "the instance is not to blame"
            restore()
        for _ in clients:
            with front.primary.accept() as end:
                end.sendall(receive_exactly(end, 1))
        assert [receive_exactly(client, 1) for client in clients] == [b"x"] * 3
        assert front.accepted() == (3, 0, 1)
        for client in clients:
            client.close()
        front.until()
        assert rig.call(pending_timers) == 0
    assert lines(logged, "accept_paused") == 1


@pytest.mark.parametrize("end", ["close", "stop_accepting"])
def test_a_pause_ends_with_the_frontend(rig: Rig, end: str) -> None:
    with Front(rig, begin=False) as front:
        front.client(b"x")
        with descriptors_left(0):
            rig.call(front.frontend.begin)
            rig.until(lambda: pending_timers() == 1, pending_timers)
            rig.call(getattr(front.frontend, end))
            assert rig.call(pending_timers) == 0


def test_clients_that_come_and_go_in_the_hold_do_not_end_a_pause(rig: Rig) -> None:
    with Front(rig, primary=False, backup=False, begin=False) as front:
        clients = [front.client() for _ in range(3)]
        with descriptors_left(1):
            rig.call(front.frontend.begin)
            front.until(held=1)
            rig.until(lambda: pending_timers() == 2, pending_timers)  # the pause, and the one client's deadline
            clients[0].close()
        front.until(held=2)


class Listener(socket.socket):
    """A listening socket whose accept fails as told before it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.bind((LOOPBACK, 0))
        self.listen(1000)
        self.setblocking(False)
        self.failures: list[int] = []
        self.calls = 0

    def _accept(self) -> tuple[int, object]:
        self.calls += 1
        if self.failures:
            number = self.failures.pop()
            raise OSError(number, os.strerror(number))
        return super()._accept()  # type: ignore[misc,no-any-return]


class Accepting:
    """An acceptor on one listener, and whom it has taken."""

    def __init__(self, rig: Rig) -> None:
        self.listener = Listener()
        self.taken: list[socket.SocketType] = []
        self.most = 1000
        self._peers: list[socket.socket] = []
        self.rig = rig
        self.acceptor = Acceptor(
            rig.loop, self.taken.append, lambda: len(self.taken) < self.most, structlog.get_logger()
        )

    def connect(self, count: int) -> None:
        self._peers += [socket.create_connection(self.listener.getsockname()) for _ in range(count)]

    def begin(self) -> None:
        self.rig.call(lambda: self.acceptor.begin([self.listener]))

    def until(self, taken: int) -> None:
        self.rig.until(lambda: len(self.taken) == taken, lambda: len(self.taken))

    def close(self) -> None:
        self.rig.call(self.acceptor.end)
        assert self.rig.call(pending_timers) == 0
        for one in (self.listener, *self.taken, *self._peers):
            one.close()


@pytest.fixture
def accepting(rig: Rig) -> Iterator[Accepting]:
    accepting = Accepting(rig)
    yield accepting
    accepting.close()


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN])
def test_a_connection_that_is_lost_or_forbidden_delays_nobody(accepting: Accepting, number: int) -> None:
    accepting.listener.failures = [number] * 5
    accepting.connect(3)
    with structlog.testing.capture_logs() as logged:
        accepting.begin()
        accepting.until(taken=3)
    assert not logged


def test_a_listening_socket_that_fails_does_not_spin(accepting: Accepting) -> None:
    """It has been shut down: it is readable for ever, and accept says EINVAL."""
    accepting.connect(1)
    with structlog.testing.capture_logs() as logged:
        accepting.begin()
        accepting.until(taken=1)
        accepting.listener.shutdown(socket.SHUT_RDWR)
        accepting.rig.until(lambda: bool(logged), lambda: logged)
        before = accepting.listener.calls
        accepting.rig.until(lambda: accepting.listener.calls >= before + 3, lambda: accepting.listener.calls)
    assert lines(logged, "accept_paused") == 1
    assert accepting.listener.calls < 20


def test_one_turn_takes_so_many_and_leaves_the_loop_to_others(accepting: Accepting) -> None:
    accepting.connect(3 * ACCEPTS_A_TURN)
    seen: list[int] = []

    def look() -> None:
        seen.append(len(accepting.taken))
        if seen[-1] < 3 * ACCEPTS_A_TURN:
            accepting.rig.loop.call_soon(look)

    accepting.begin()
    accepting.rig.call(look)
    accepting.until(taken=3 * ACCEPTS_A_TURN)
    accepting.rig.call(lambda: None)
    assert all(later - earlier <= ACCEPTS_A_TURN for earlier, later in itertools.pairwise(seen))


def test_without_room_it_waits_to_be_told(accepting: Accepting) -> None:
    accepting.most = 2
    accepting.connect(4)
    accepting.begin()
    accepting.until(taken=2)
    accepting.rig.call(accepting.acceptor.look)
    assert len(accepting.taken) == 2
    accepting.most = 1000
    accepting.rig.call(accepting.acceptor.look)
    accepting.until(taken=4)


def test_a_frontend_takes_in_no_more_than_a_turn_while_it_connects(rig: Rig) -> None:
    with Front(rig, backup=False, hold_connections=0) as front:
        front.primary.fill()
        clients = [front.client(b"x") for _ in range(ACCEPTS_A_TURN + 5)]
        front.until(primary=ACCEPTS_A_TURN)
        front.eligible(primary=False, backup=True)
        front.until(backup=len(clients))
        assert front.doubts == []
        assert P in front.instances
