"""Open connections leave an instance politely and within a time, and whoever waits for that hears of it once."""

from __future__ import annotations

import socket

import pytest
import structlog

from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.history import EventName
from clojarsd.core.names import Role
from clojarsd.runtime.frontend_view import tally_of
from clojarsd.system.sockets import since_data
from tests.support.fronts import NEVER, Front, P, pending_timers
from tests.support.sockets import Rig, receive_exactly, receive_to_the_end, stays_silent, wait_for

REQUEST = b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def ask(client: socket.socket, end: socket.socket) -> None:
    """One request, and its answer."""
    client.sendall(REQUEST)
    answer(client, end)


def answer(client: socket.socket, end: socket.socket) -> None:
    """The answer to a request that is on its way."""
    assert receive_exactly(end, len(REQUEST)) == REQUEST
    end.sendall(ANSWER)
    assert receive_exactly(client, len(ANSWER)) == ANSWER


class Calls:
    """Counts the calls that say that a drain is over."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self.count = 0

    def __call__(self) -> None:
        self.count += 1

    def until_one(self) -> None:
        self._front.rig.until(lambda: self.count == 1, lambda: self.count)


def drain(front: Front, *, backup: bool = True) -> Calls:
    """Take the primary out of rotation and drain it."""
    front.eligible(primary=False, backup=backup)
    calls = Calls(front)
    front.rig.call(lambda: front.frontend.begin_drain(P, calls))
    return calls


def test_with_nothing_open_it_is_over_at_once(rig: Rig) -> None:
    with Front(rig) as front:
        assert drain(front).count == 1
        assert rig.call(pending_timers) == 0


def test_it_is_over_when_the_last_connection_has_ended_and_is_told_once(rig: Rig) -> None:
    with Front(rig) as front:
        clients = [front.client(b"x") for _ in range(2)]
        ends = [front.primary.accept() for _ in clients]
        calls = drain(front)
        for client, end in zip(clients, ends, strict=True):
            assert calls.count == 0
            client.close()
            end.close()
            front.until(primary=1 if client is clients[0] else 0)
        calls.until_one()
        rig.call(lambda: front.frontend.cut(P))
        assert calls.count == 1
        assert rig.call(pending_timers) == 0


def test_a_silent_connection_is_ended_and_one_that_awaits_an_answer_is_not(rig: Rig) -> None:
    with Front(rig, drain_idle=0.1) as front:
        silent = front.client()
        silent_end = front.primary.accept()
        waits = front.client(b"question")
        end = front.primary.accept()
        assert receive_exactly(end, 8) == b"question"
        calls = drain(front)
        assert receive_to_the_end(silent) == (b"", False)
        assert receive_to_the_end(silent_end) == (b"", False)
        assert stays_silent(waits)
        assert calls.count == 0
        end.sendall(b"answer")
        assert receive_to_the_end(waits) == (b"answer", False)
        calls.until_one()
        for socket_ in (silent_end, end):
            socket_.close()


def test_what_is_left_at_the_deadline_is_reset(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logged, Front(rig, drain=0.2, drain_idle=0.1) as front:
        client = front.client(b"question")
        with front.primary.accept() as end:
            assert receive_exactly(end, 8) == b"question"
            calls = drain(front)
            assert receive_to_the_end(client) == (b"", True)
            assert receive_to_the_end(end) == (b"", True)
        calls.until_one()
        assert rig.call(pending_timers) == 0
    cuts = [line for line in logged if line["event"] == "drain_cut"]
    assert [(line["role"], line["connections"]) for line in cuts] == [("primary", 1)]


def test_an_http_connection_changes_sides_with_its_next_request(rig: Rig) -> None:
    with Front(rig, movable=True) as front:
        client = front.client()
        with front.primary.accept() as first:
            ask(client, first)
            calls = drain(front)
            assert stays_silent(client)
            client.sendall(REQUEST)
            assert receive_to_the_end(first) == (b"", False)
        with front.backup.accept() as second:
            answer(client, second)
            calls.until_one()
            assert front.connections() == (0, 1, 0)
            assert front.accepted() == (1, 0, 0), "it was accepted once"
            ask(client, second)


def test_an_http_connection_that_is_silent_changes_sides_by_itself(rig: Rig) -> None:
    with Front(rig, movable=True, drain_idle=0.1) as front:
        client = front.client()
        with front.primary.accept() as first:
            ask(client, first)
            calls = drain(front)
            assert receive_to_the_end(first) == (b"", False)
        calls.until_one()
        with front.backup.accept() as second:
            ask(client, second)


def test_what_changes_sides_while_nobody_serves_is_held_and_served_later(rig: Rig) -> None:
    with Front(rig, movable=True) as front:
        client = front.client()
        with front.primary.accept() as first:
            ask(client, first)
            calls = drain(front, backup=False)
            client.sendall(REQUEST)
            assert receive_to_the_end(first) == (b"", False)
        calls.until_one()
        front.until(held=1)
        assert front.accepted() == (1, 0, 1)
        rig.call(lambda: front.frontend.end_drain(P))
        front.eligible(primary=True, backup=False)
        with front.primary.accept() as second:
            answer(client, second)
            assert front.accepted() == (1, 0, 1)
            front.until_happened(EventName.HOLD_STARTED, EventName.HOLD_ENDED)


@pytest.mark.slow
def test_what_changes_sides_after_a_long_silence_may_wait_as_long_as_anybody(rig: Rig) -> None:
    with Front(rig, movable=True, drain_idle=0.1, hold=1.0) as front:
        client = front.client()
        with front.primary.accept() as first:
            ask(client, first)
            wait_for(lambda: (since_data(client) or 0.0) > 1.1)
            drain(front, backup=False)
            assert receive_to_the_end(first) == (b"", False)
        front.until(held=1)
        rig.call(lambda: front.frontend.end_drain(P))
        front.eligible(primary=True, backup=False)
        with front.primary.accept() as second:
            ask(client, second)


def test_when_no_instance_is_to_come_a_connection_is_served_to_its_end_where_it_is(rig: Rig) -> None:
    """Accepting has stopped: the last instance answers what it is asked, until the client is silent."""
    with Front(rig, movable=True, drain_idle=0.2) as front:
        client = front.client()
        with front.primary.accept() as end:
            rig.call(front.frontend.stop_accepting)
            calls = drain(front, backup=False)
            ask(client, end)
            ask(client, end)
            assert receive_to_the_end(client) == (b"", False)
        calls.until_one()


def test_who_is_being_connected_when_the_drain_begins_goes_to_the_other(rig: Rig) -> None:
    with Front(rig) as front:
        front.primary.fill()
        front.client(b"hello")
        front.until(primary=1)
        calls = Calls(front)
        rig.call(lambda: front.frontend.begin_drain(P, calls))  # even before it is known as not eligible
        assert calls.count == 1
        with front.backup.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
        assert front.doubts == []


def test_nobody_is_connected_to_an_instance_that_is_drained(rig: Rig) -> None:
    with Front(rig, backup=False) as front:
        calls = Calls(front)
        rig.call(lambda: front.frontend.begin_drain(P, calls))
        client = front.client(b"hello")
        front.until(held=1)
        assert stays_silent(client)
        assert front.doubts == []
        rig.call(lambda: front.frontend.end_drain(P))
        with front.primary.accept() as end:
            assert receive_exactly(end, 5) == b"hello"


def test_a_drain_that_is_given_up_leaves_connections_alone_and_is_silent(rig: Rig) -> None:
    with Front(rig, drain=0.3, drain_idle=0.2) as front:
        client = front.client()
        with front.primary.accept() as end:
            calls = drain(front)
            rig.call(lambda: front.frontend.end_drain(P))
            assert rig.call(pending_timers) == 0
            client.sendall(b"question")
            assert receive_exactly(end, 8) == b"question"
        client.close()
        front.until()
        assert calls.count == 0


def test_a_drain_begun_again_tells_the_later_one_alone(rig: Rig) -> None:
    with Front(rig) as front:
        client = front.client(b"x")
        with front.primary.accept():
            first, second = drain(front), drain(front)
            client.close()
            front.rig.call(lambda: front.frontend.cut(P))
        second.until_one()
        assert first.count == 0
        assert rig.call(pending_timers) == 0


def test_the_owner_may_end_the_drain_when_it_hears_that_it_is_over(rig: Rig) -> None:
    with Front(rig, drain_idle=0.05) as front:
        for _ in range(3):
            front.client()
        ends = [front.primary.accept() for _ in range(3)]
        over: list[bool] = []

        def ended() -> None:
            over.append(True)
            front.frontend.end_drain(P)

        rig.call(lambda: front.frontend.begin_drain(P, ended))
        assert [receive_to_the_end(end) for end in ends] == [(b"", False)] * 3
        rig.until(lambda: bool(over), lambda: over)
        assert over == [True]
        for end in ends:
            end.close()
        assert rig.call(pending_timers) == 0


def test_it_lasts_no_longer_than_is_wished(rig: Rig) -> None:
    with Front(rig) as front:
        client = front.client(b"x")
        with front.primary.accept():
            front.eligible(primary=False, backup=True)
            calls = Calls(front)
            rig.call(lambda: front.frontend.begin_drain(P, calls, 0.1))
            assert receive_to_the_end(client) == (b"", True)
            calls.until_one()


def test_it_counts_what_ended_by_itself_and_what_was_cut(rig: Rig) -> None:
    with Front(rig) as front:
        done, owed = front.client(b"x"), front.client(b"x")
        ends = [front.primary.accept() for _ in range(2)]
        front.eligible(primary=False, backup=True)
        calls = Calls(front)
        rig.call(lambda: front.frontend.begin_drain(P, calls, 1.0))
        done.close()
        ends[0].close()
        front.until(primary=1)
        assert receive_to_the_end(owed) == (b"", True)
        calls.until_one()
        ends[1].close()
        expected = DrainTally(ended=1, cut=1, after=1.0, is_sooner=True)
        assert rig.call(lambda: tally_of(front.frontend, P)) == expected
        assert rig.call(lambda: tally_of(front.frontend, Role.BACKUP)) == DrainTally()


def test_it_counts_what_was_silent(rig: Rig) -> None:
    with Front(rig, drain_idle=0.05) as front:
        front.client()
        with front.primary.accept():
            drain(front).until_one()
            assert rig.call(lambda: tally_of(front.frontend, P)) == DrainTally(silent=1)


def test_a_second_one_makes_it_shorter_and_never_longer(rig: Rig) -> None:
    with Front(rig) as front:
        client = front.client(b"x")
        with front.primary.accept():
            first = drain(front)
            second, third = Calls(front), Calls(front)
            until = rig.call(lambda: front.frontend.view().draining)[P]
            rig.call(lambda: front.frontend.begin_drain(P, second, NEVER * 2))
            assert rig.call(lambda: front.frontend.view().draining)[P][:19] == until[:19]
            rig.call(lambda: front.frontend.begin_drain(P, third, 0.1))
            assert receive_to_the_end(client) == (b"", True)
            third.until_one()
        assert (first.count, second.count) == (0, 0), "who asks last is told"
        assert rig.call(front.frontend.view).draining == {}
        assert rig.call(pending_timers) == 0
