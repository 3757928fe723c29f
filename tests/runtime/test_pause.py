"""An operator's pause: new connections wait, open ones go on, and it ends by itself."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from clojarsd.core.codec import decode, encode
from clojarsd.core.frontend_plan import CountedFrom, Pause
from clojarsd.core.frozen import FrozenFrontend
from clojarsd.core.history import EventName
from clojarsd.core.pacing import FIRST
from clojarsd.runtime import waiting
from clojarsd.runtime.budget import Budget
from clojarsd.runtime.frontend import Frontend
from clojarsd.runtime.standstill import Standstill
from tests.support.fronts import NEVER, B, Front, P, pending_timers
from tests.support.sockets import Rig, receive_exactly, receive_to_the_end, stays_silent

STARTED, ENDED = EventName.HOLD_STARTED, EventName.HOLD_ENDED


def pause(front: Front, seconds: float = NEVER, by: str = "ada") -> None:
    front.rig.call(lambda: front.frontend.gate.pause(Pause(front.rig.loop.time() + seconds, by)))


def resume(front: Front) -> None:
    front.rig.call(front.frontend.gate.resume)


def echo(client: socket.socket, end: socket.socket) -> None:
    """A word each way."""
    client.sendall(b"more")
    assert receive_exactly(end, 4) == b"more"
    end.sendall(b"back")
    assert receive_exactly(client, 4) == b"back"


def test_new_connections_wait_and_open_ones_go_on(rig: Rig) -> None:
    with Front(rig) as front:
        before = front.client(b"hello")
        with front.primary.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
            pause(front)
            late = front.client(b"late")
            front.until(primary=1, held=1)
            assert stays_silent(late)
            echo(before, end)
            seen = rig.call(front.frontend.view)
            assert seen.paused is not None
            assert (seen.active, seen.paused.by) == (P, "ada")
            resume(front)
            with front.primary.accept() as other:
                assert receive_exactly(other, 4) == b"late"
                assert rig.call(front.frontend.view).paused is None
                front.until_happened(STARTED, ENDED)


def test_it_ends_by_itself(rig: Rig) -> None:
    with Front(rig) as front:
        began = rig.call(rig.loop.time)
        pause(front, 0.2)
        client = front.client(b"hello")
        with front.primary.accept() as end:
            assert rig.call(rig.loop.time) - began >= 0.19
            assert receive_exactly(end, 5) == b"hello"
            end.sendall(b"answer")
            assert receive_exactly(client, 6) == b"answer"
        assert rig.call(pending_timers) == 0


def test_a_pause_longer_than_hold_gives_nobody_up(rig: Rig) -> None:
    """Also who has waited longest by then is served."""
    with Front(rig, hold=0.05) as front:
        pause(front, 0.3)
        clients = [front.client(b"x") for _ in range(30)]
        front.until(held=30)
        ends = [front.primary.accept() for _ in clients]
        for end in ends:
            assert receive_exactly(end, 1) == b"x"
            end.close()


def test_a_frontend_where_nobody_waits_can_be_paused_all_the_same(rig: Rig) -> None:
    with Front(rig, hold=0.0) as front:
        pause(front)
        front.client(b"hello")
        front.until(held=1)
        assert front.happened == [STARTED]
        resume(front)
        with front.primary.accept() as end:
            assert receive_exactly(end, 5) == b"hello"


def test_when_it_ends_and_nobody_can_serve_those_are_given_up_whose_hold_is_over(rig: Rig) -> None:
    with Front(rig, hold=0.05) as front:
        pause(front, 0.2)
        client = front.client(b"hello")
        front.until(held=1)
        front.eligible(primary=False, backup=False)
        assert receive_to_the_end(client) == (b"", True)


def test_those_who_do_not_get_away_after_a_pause_are_given_up_in_the_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "RELEASE_TIME", 0.1)
    with Front(rig, hold=0.05) as front:
        front.primary.refuse()
        front.backup.refuse()
        pause(front, 0.1)
        client = front.client(b"hello")
        assert receive_to_the_end(client) == (b"", True)


def test_the_number_of_those_who_wait_is_bounded_and_the_others_are_served_too(rig: Rig) -> None:
    with Front(rig, hold_connections=3) as front:
        pause(front)
        clients = [front.client(b"x") for _ in range(10)]
        front.until(held=3)
        resume(front)
        for _ in clients:
            with front.primary.accept() as end:
                assert receive_exactly(end, 1) == b"x"


def waiting_after_a_pause(front: Front) -> None:
    """More wait than are sent on their way at once, and for longer than `hold`."""
    pause(front, 0.2)
    for _ in range(30):
        front.client(b"x")
    front.until(held=30)
    front.until(primary=FIRST, held=30 - FIRST)


def test_after_a_pause_other_settings_give_nobody_up_who_is_to_be_sent_on_his_way(rig: Rig) -> None:
    with Front(rig, hold=0.05) as front:
        waiting_after_a_pause(front)
        rig.call(lambda: front.frontend.change_plan(replace(front.plan, hold=0.06)))
        for _ in range(30):
            with front.primary.accept() as end:
                assert receive_exactly(end, 1) == b"x"


def test_after_a_pause_a_process_that_goes_on_gives_nobody_up_either(rig: Rig) -> None:
    with Front(rig, hold=0.05) as front:
        waiting_after_a_pause(front)

        def become() -> tuple[float, float]:
            standing = Standstill.freeze(front.frontend)
            frozen = decode(FrozenFrontend, encode(standing.head()[0]))
            standing.connections()
            heir = Frontend(front.plan, rig.resources, Budget(100))
            Standstill.thaw(heir, frozen, [], lambda role: None)
            standing.unfreeze()
            heir.close()
            return frozen.patient_until, heir.waiting.hold.not_before

        until, patient_until = rig.call(become)
        assert until == patient_until > rig.call(rig.loop.time) + 1.0
        front.until(primary=30)


def test_another_pause_counts_from_now_on(rig: Rig) -> None:
    with Front(rig) as front:
        pause(front, NEVER)
        client = front.client(b"hello")
        front.until(held=1)
        pause(front, 0.1, "bob")
        with front.primary.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
        client.close()


def test_a_pause_goes_on_under_another_plan_and_over_a_failover(rig: Rig) -> None:
    with Front(rig, hold=0.05) as front:
        pause(front, NEVER)
        front.client(b"hello")
        front.until(held=1)
        plan = front.frontend.plan
        rig.call(lambda: front.frontend.change_plan(plan))
        front.eligible(primary=False, backup=True)
        assert rig.call(front.frontend.view).active is B
        assert front.connections() == (0, 0, 1)
        resume(front)
        with front.backup.accept() as end:
            assert receive_exactly(end, 5) == b"hello"


def test_an_open_connection_may_change_sides_meanwhile(rig: Rig) -> None:
    """It is no new one."""
    with Front(rig, movable=True, drain_idle=0.01) as front:
        client = front.client(b"GET / HTTP/1.1\r\n\r\n")
        with front.primary.accept() as end:
            receive_exactly(end, 18)
            end.sendall(b"ok")
            assert receive_exactly(client, 2) == b"ok"
            pause(front)
            front.eligible(primary=False, backup=True)
            rig.call(lambda: front.frontend.begin_drain(P, lambda: None))
            assert receive_to_the_end(end) == (b"", False)
        with front.backup.accept() as end:
            echo(client, end)


def test_counting_anew_leaves_what_is_measured_alone(rig: Rig) -> None:
    with Front(rig) as front:
        front.client(b"x")
        front.primary.accept().close()
        accepted = rig.call(lambda: front.frontend.view().accepted_total)
        since = CountedFrom(dict(accepted), "2026-11-23T12:00:00.000Z", "ada")
        rig.call(lambda: front.frontend.gate.count_from(since))
        front.client(b"x")
        front.primary.accept().close()
        seen = rig.call(front.frontend.view)
        assert (seen.accepted_total[P], seen.accepted[P]) == (2, 1)
        assert seen.counted_from == since
