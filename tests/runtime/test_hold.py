"""Clients that nobody can serve wait, are served whole, and wait no longer than they want or may."""

from __future__ import annotations

import socket

import pytest
import structlog

from clojarsd.core.history import EventName
from clojarsd.runtime.acceptor import ACCEPTS_A_TURN
from tests.support.fronts import B, Front, P, pending_timers
from tests.support.sockets import Rig, receive_exactly, receive_to_the_end, reset, stays_silent

WAITS = {"primary": False, "backup": False}
STARTED, ENDED = EventName.HOLD_STARTED, EventName.HOLD_ENDED


def test_a_held_client_is_served_when_an_instance_is_eligible(rig: Rig) -> None:
    with Front(rig, **WAITS) as front:
        client = front.client(b"hello")
        front.until(held=1)
        assert stays_silent(client)
        front.eligible(primary=False, backup=True)
        with front.backup.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
            end.sendall(b"answer")
            assert receive_exactly(client, 6) == b"answer"
            assert front.connections() == (0, 1, 0)
            assert front.accepted() == (0, 1, 1)
            assert front.happened == [STARTED, ENDED]
            assert not front.frontend.waiting.pacer._unanswered, "what has ended is not kept until others wait"
        assert rig.call(pending_timers) == 0


def test_why_nobody_can_be_connected_to_is_told(rig: Rig) -> None:
    """192.0.2.0/24 is nobody's: RFC 5737."""
    with Front(rig, source="192.0.2.7") as front:
        front.client(b"hello")
        front.until(held=1)
        [(sentence, detail)] = front.told
    address = front.backup.address
    failure = f"backup: cannot connect to {address} from 192.0.2.7: cannot assign requested address"
    assert sentence.endswith(f" wait: no instance can be connected to ({failure})")
    assert detail["connect_failed"] == failure


def test_a_held_client_that_said_all_and_half_closed_is_served_whole(rig: Rig) -> None:
    with Front(rig, **WAITS) as front:
        client = front.client(b"all I have to say")
        client.shutdown(socket.SHUT_WR)
        front.until(held=1)
        assert stays_silent(client)
        front.eligible(primary=True, backup=False)
        with front.primary.accept() as end:
            assert receive_to_the_end(end) == (b"all I have to say", False)
            end.sendall(b"answer")
        assert receive_to_the_end(client) == (b"answer", False)


@pytest.mark.parametrize("said", [b"", b"request"], ids=["silent", "after a request"])
def test_a_held_client_that_resets_is_dropped_at_once(rig: Rig, said: bytes) -> None:
    with Front(rig, **WAITS, hold_connections=1) as front:
        client = front.client(said)
        front.until(held=1)
        assert stays_silent(client)
        reset(client)
        front.until_happened(STARTED, ENDED)
        assert rig.call(pending_timers) == 0
        front.client(b"next")
        front.until(held=1)
        assert front.accepted() == (0, 0, 2)


def test_a_held_client_that_leaves_without_a_word_makes_room(rig: Rig) -> None:
    with Front(rig, **WAITS, hold_connections=1) as front:
        first = front.client()
        front.until(held=1)
        second = front.client(b"second")
        first.close()
        front.until_happened(STARTED, ENDED, STARTED)
        front.until(held=1)
        front.eligible(primary=True, backup=False)
        with front.primary.accept() as end:
            assert receive_exactly(end, 6) == b"second"
        second.close()


def test_who_has_waited_as_long_as_it_may_is_reset(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logged, Front(rig, **WAITS, hold=0.1) as front:
        client = front.client(b"hello")
        assert receive_to_the_end(client) == (b"", True)
        front.until_happened(STARTED, ENDED)
    (closed,) = [line for line in logged if line["event"] == "connection_ended"]
    assert (closed["role"], closed["reason"]) == (None, "turned away: nobody could serve it in time")
    assert 0.09 <= closed["held_s"] < 30


def test_more_than_may_be_held_wait_unrefused_and_are_served_later(rig: Rig) -> None:
    with Front(rig, **WAITS, hold_connections=2) as front:
        clients = [front.client(b"x") for _ in range(100)]
        front.until(held=2)
        assert stays_silent(clients[-1])
        assert front.connections() == (0, 0, 2)
        front.eligible(primary=True, backup=False)
        front.until(primary=100)
        for _ in clients:
            with front.primary.accept() as end:
                end.sendall(receive_exactly(end, 1))
        assert [receive_exactly(client, 1) for client in clients] == [b"x"] * 100
        assert front.accepted() == (100, 0, 2)
        assert front.happened == [STARTED, ENDED]


def test_each_that_gives_up_lets_one_from_the_backlog_in(rig: Rig) -> None:
    with Front(rig, **WAITS, hold_connections=2, hold=0.1) as front:
        clients = [front.client(b"x") for _ in range(6)]
        assert [receive_to_the_end(client) for client in clients] == [(b"", True)] * 6
        rig.until(lambda: front.frontend.view().accepted_total[None] == 6, front.frontend.view)


def test_without_holding_clients_wait_in_the_backlog(rig: Rig) -> None:
    with Front(rig, **WAITS, hold_connections=0) as front:
        client = front.client(b"x")
        assert stays_silent(client)
        assert front.happened == []
        front.eligible(primary=True, backup=False)
        with front.primary.accept() as end:
            assert receive_exactly(end, 1) == b"x"


def test_when_both_refuse_the_client_is_tried_again_and_served(rig: Rig) -> None:
    """It is one hold for the history and one held client for the counters, however often it is tried."""
    with Front(rig) as front:
        front.primary.refuse()
        front.backup.refuse()
        client = front.client(b"hello")
        rig.until(lambda: len(front.doubts) >= 6, lambda: front.doubts)
        assert front.doubts[:4] == [P, B, P, B]
        assert front.happened == [STARTED]
        assert front.accepted() == (0, 0, 1)
        front.backup.listen()
        with front.backup.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
            front.until_happened(STARTED, ENDED)
            assert front.accepted() == (0, 1, 1)
        client.close()
    assert rig.call(pending_timers) == 0


def test_being_tried_again_gives_no_client_more_time(rig: Rig) -> None:
    with Front(rig, backup=False, hold=0.5) as front:
        front.primary.refuse()
        client = front.client(b"hello")
        assert receive_to_the_end(client) == (b"", True)
        assert len(front.doubts) >= 2
        front.until_happened(STARTED, ENDED)


def test_the_bound_holds_while_an_eligible_instance_refuses(rig: Rig) -> None:
    """A turn's worth of clients may be under way before the first of them is refused."""
    with Front(rig, backup=False, begin=False, hold_connections=3) as front:
        front.primary.refuse()
        clients = [front.client(b"x") for _ in range(2 * ACCEPTS_A_TURN)]
        rig.call(front.frontend.begin)
        rig.until(lambda: len(front.doubts) > ACCEPTS_A_TURN, lambda: front.doubts)
        assert sum(front.connections()) <= ACCEPTS_A_TURN
        assert front.accepted()[2] <= ACCEPTS_A_TURN
        front.primary.listen()
        for _ in clients:
            with front.primary.accept() as end:
                end.sendall(receive_exactly(end, 1))
        assert [receive_exactly(client, 1) for client in clients] == [b"x"] * len(clients)
        assert front.accepted()[0] == len(clients)


def test_held_clients_are_left_alone_when_accepting_stops(rig: Rig) -> None:
    with Front(rig, **WAITS, hold_connections=1) as front:
        client = front.client(b"hello")
        front.until(held=1)
        waiting = front.client(b"in the backlog")
        rig.call(front.frontend.stop_accepting)
        assert receive_to_the_end(waiting) == (b"", True)
        assert front.connections() == (0, 0, 1)
        front.eligible(primary=True, backup=False)
        with front.primary.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
        client.close()
