"""Silent connections are ended in their time, and others are not."""

from __future__ import annotations

import socket

import pytest

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.runtime import idle
from clojarsd.runtime.budget import Budget
from clojarsd.runtime.frontend import Frontend
from clojarsd.runtime.standstill import Standstill
from tests.support.fronts import NEVER, Front, make_plan, pending_timers
from tests.support.sockets import MOMENT_S, Rig, receive_exactly, receive_to_the_end, stays_silent

SOON = MOMENT_S / 2
REASON = "silent for idle_timeout"


def speak(client: socket.socket, end: socket.socket) -> None:
    client.sendall(b"?")
    assert receive_exactly(end, 1) == b"?"
    end.sendall(b"!")
    assert receive_exactly(client, 1) == b"!"


def test_a_silent_connection_that_owes_nothing_ends_as_if_both_had_left(rig: Rig) -> None:
    with Front(rig, idle_timeout=SOON) as front:
        client = front.client()
        with front.primary.accept() as end:
            speak(client, end)
            assert receive_to_the_end(end) == (b"", False)
            assert receive_to_the_end(client) == (b"", False)
        front.until()


def test_one_that_nobody_has_said_anything_on_ends_too(rig: Rig) -> None:
    with Front(rig, idle_timeout=SOON) as front:
        client = front.client()
        with front.primary.accept() as end:
            assert receive_to_the_end(end) == (b"", False)
            assert receive_to_the_end(client) == (b"", False)


def test_a_client_whose_instance_accepts_and_never_answers_is_reset(rig: Rig) -> None:
    with Front(rig, idle_timeout=SOON) as front:
        client = front.client(b"question")
        with front.primary.accept() as end:
            assert receive_to_the_end(client) == (b"", True)
            assert receive_to_the_end(end) == (b"question", True)


def test_one_side_that_takes_nothing_is_reset_with_the_other(rig: Rig) -> None:
    with Front(rig, idle_timeout=SOON) as front:
        client = front.client()
        with front.primary.accept() as end:
            end.setblocking(False)
            sent = 0
            front.until(primary=1)
            while front.connections() == (1, 0, 0):
                try:
                    sent += end.send(bytes(1 << 16))
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    break
            said, was_reset = receive_to_the_end(client)
            assert was_reset
            assert len(said) <= sent
        front.until()


def test_who_speaks_now_and_then_goes_on(rig: Rig) -> None:
    with Front(rig, idle_timeout=4 * SOON) as front:
        client = front.client()
        with front.primary.accept() as end:
            for _ in range(6):
                speak(client, end)
                assert stays_silent(client)
            assert front.connections() == (1, 0, 0)


def test_half_closed_connections_have_a_limit_of_their_own(rig: Rig) -> None:
    with Front(rig, half_closed_timeout=SOON) as front:
        whole, half = front.client(), front.client(b"?")
        with front.primary.accept() as end, front.primary.accept() as other:
            half.shutdown(socket.SHUT_WR)
            assert receive_exactly(other, 1) == b"?"
            assert receive_to_the_end(half) == (b"", True)  # the answer is missing
            assert receive_to_the_end(other)[0] == b""
            assert stays_silent(whole)
            speak(whole, end)


def test_a_client_that_keeps_an_answered_connection_half_open_is_let_go_of(rig: Rig) -> None:
    with Front(rig, half_closed_timeout=SOON) as front:
        client = front.client(b"?")
        with front.primary.accept() as end:
            assert receive_exactly(end, 1) == b"?"
            end.sendall(b"answer")
            end.shutdown(socket.SHUT_WR)
            assert receive_to_the_end(client) == (b"answer", False)
            assert receive_to_the_end(end) == (b"", False)
        front.until()


def test_half_closed_and_busy_is_not_silent(rig: Rig) -> None:
    with Front(rig, half_closed_timeout=4 * SOON) as front:
        client = front.client(b"?")
        with front.primary.accept() as end:
            client.shutdown(socket.SHUT_WR)
            assert receive_to_the_end(end) == (b"?", False)
            for _ in range(6):
                end.sendall(b"!")
                assert receive_exactly(client, 1) == b"!"
                assert stays_silent(client)


def test_silence_before_the_half_close_does_not_count(rig: Rig) -> None:
    """Its end is news: who has been silent for long gets the whole time from there on."""
    with Front(rig, idle_timeout=NEVER, half_closed_timeout=4 * SOON) as front:
        client = front.client(b"?")
        with front.primary.accept() as end:
            assert receive_exactly(end, 1) == b"?"
            for _ in range(3):
                assert stays_silent(client)
            client.shutdown(socket.SHUT_WR)
            assert receive_to_the_end(end) == (b"", False)
            assert stays_silent(client)
            end.sendall(b"!")
            assert receive_exactly(client, 1) == b"!"


def test_without_limits_there_is_no_timer(rig: Rig) -> None:
    with Front(rig) as front:
        client = front.client()
        with front.primary.accept() as end:
            speak(client, end)
            assert rig.call(pending_timers) == 0


def test_a_reload_brings_and_takes_limits(rig: Rig) -> None:
    with Front(rig) as front:
        backends = {role: one.address for role, one in front.instances.items()}

        def plan(**changes: object) -> FrontendPlan:
            return make_plan(backends, **changes)

        first, second = front.client(), front.client()
        with front.primary.accept() as end, front.primary.accept() as other:
            speak(first, end)
            rig.call(lambda: front.frontend.change_plan(plan(idle_timeout=SOON)))
            assert receive_to_the_end(first) == (b"", False)
            assert receive_to_the_end(second) == (b"", False)
            assert receive_to_the_end(other) == (b"", False)
            rig.call(lambda: front.frontend.change_plan(plan()))
            third = front.client()
            with front.primary.accept() as end_of_third:
                assert stays_silent(third)
                speak(third, end_of_third)
            assert rig.call(pending_timers) == 0


def test_nothing_is_ended_while_a_frontend_stands_still(rig: Rig) -> None:
    """Neither where it is nor where it will be: the connections may be another process's by then."""
    with Front(rig, idle_timeout=SOON) as front:
        client = front.client()
        with front.primary.accept() as end:
            speak(client, end)
            stand = rig.call(lambda: Standstill.freeze(front.frontend))
            frozen, _ = rig.call(stand.head)
            rig.call(stand.connections)
            heir = rig.call(lambda: Frontend(front.plan, rig.resources, Budget(100)))
            there = rig.call(lambda: Standstill.thaw(heir, frozen, [], lambda role: None))
            assert rig.call(pending_timers) == 0
            assert stays_silent(client)
            rig.call(there.let_go)
            rig.call(stand.unfreeze)
            assert receive_to_the_end(client) == (b"", False)
            assert receive_to_the_end(end) == (b"", False)


def test_many_are_looked_at_in_turns(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "SESSIONS_A_TURN", 3)
    with Front(rig, idle_timeout=SOON) as front:
        clients = [front.client() for _ in range(10)]
        ends = [front.primary.accept() for _ in clients]
        for end in (*clients, *ends):
            assert receive_to_the_end(end) == (b"", False)
            end.close()
        front.until()
