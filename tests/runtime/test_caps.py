"""Limits of a frontend and of an instance in it: others take over, wait, and are served when there is room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clojarsd.core.history import EventName
from clojarsd.core.routing import Caps
from tests.support.fronts import NEVER, Front, P, pending_timers
from tests.support.sockets import Rig, receive_exactly, receive_to_the_end, stays_silent

STARTED, ENDED = EventName.HOLD_STARTED, EventName.HOLD_ENDED


def test_who_finds_the_primary_full_goes_to_the_backup_and_who_finds_both_full_waits(rig: Rig) -> None:
    with Front(rig, max_per_instance=2) as front:
        clients = [front.client(str(number).encode()) for number in range(5)]
        front.until(primary=2, backup=2, held=1)
        assert stays_silent(clients[4])
        assert rig.call(pending_timers) == 1, "the time after which it is given up: nothing is tried again and again"
        ends = [front.backup.accept() for _ in range(2)]
        ends[0].close()
        with front.backup.accept() as end:
            assert receive_exactly(end, 1) == b"4"
            front.until(primary=2, backup=2)
        front.until_happened(STARTED, ENDED)
        ends[1].close()


def test_the_primary_gets_the_next_one_when_it_has_room_again(rig: Rig) -> None:
    with Front(rig, max_per_instance=1) as front:
        front.client(b"a")
        first = front.primary.accept()
        front.client(b"b")
        front.until(primary=1, backup=1)
        first.close()
        front.until(backup=1)
        front.client(b"c")
        with front.primary.accept() as end:
            assert receive_exactly(end, 1) == b"c"


def test_who_waits_for_room_is_served_in_turn(rig: Rig) -> None:
    with Front(rig, max_per_instance=1, backup=False) as front:
        clients = [front.client(b"0")]
        front.until(primary=1)
        for number in range(1, 6):
            clients.append(front.client(str(number).encode()))
            front.until(primary=1, held=number)
        for number, client in enumerate(clients):
            with front.primary.accept() as end:
                assert receive_exactly(end, 1) == str(number).encode()
            client.close()


def test_a_limit_of_one_instance_alone_keeps_nobody_from_the_other_where_nobody_may_wait(rig: Rig) -> None:
    with Front(rig, hold=0.0) as front:
        rig.call(lambda: front.frontend.gate.cap(Caps(backup=1)))
        clients = [front.client(str(number).encode()) for number in range(3)]
        for number, client in enumerate(clients):
            with front.primary.accept() as end:
                assert receive_exactly(end, 1) == str(number).encode()
            client.close()


def test_more_than_the_frontend_may_have_wait_in_the_backlog_and_are_not_refused(rig: Rig) -> None:
    with Front(rig, max_connections=2) as front:
        clients = [front.client(str(number).encode()) for number in range(4)]
        front.until(primary=2)
        assert stays_silent(clients[2])
        assert front.connections() == (2, 0, 0)
        for number, client in enumerate(clients):
            with front.primary.accept() as end:
                assert receive_exactly(end, 1) == str(number).encode()
            client.close()
        assert front.happened == []


@pytest.mark.parametrize("hold", [NEVER, 0.0], ids=["in the hold", "in the backlog"])
def test_who_waits_for_room_gets_it_when_the_other_instance_may_serve_too(rig: Rig, hold: float) -> None:
    with Front(rig, max_per_instance=1, backup=False, hold=hold) as front:
        front.client(b"a")
        front.until(primary=1)
        second = front.client(b"b")
        assert stays_silent(second)
        front.eligible(primary=True, backup=True)
        with front.backup.accept() as end:
            assert receive_exactly(end, 1) == b"b"
            assert front.active() is P


def test_a_frontend_where_nobody_waits_leaves_them_in_the_backlog(rig: Rig) -> None:
    with Front(rig, max_per_instance=1, backup=False, hold=0.0) as front:
        front.client(b"a")
        front.until(primary=1)
        second = front.client(b"b")
        assert stays_silent(second)
        assert front.connections() == (1, 0, 0)
        front.primary.accept().close()
        with front.primary.accept() as end:
            assert receive_exactly(end, 1) == b"b"


def test_who_may_not_wait_in_the_hold_waits_in_the_backlog(rig: Rig) -> None:
    with Front(rig, max_per_instance=1, backup=False, hold_connections=0) as front:
        front.client(b"a")
        front.until(primary=1)
        front.client(b"b")
        assert front.connections() == (1, 0, 0)
        front.primary.accept().close()
        with front.primary.accept() as end:
            assert receive_exactly(end, 1) == b"b"


@pytest.mark.parametrize("limits", [{"max_per_instance": 2}, {"max_connections": 2}], ids=["instance", "frontend"])
def test_of_those_who_come_at_once_only_as_many_are_taken_in_as_there_is_room_for(
    rig: Rig, limits: dict[str, Any]
) -> None:
    """Nobody may wait in the hold here, so who is taken in beyond the limit would be turned away."""
    with Front(rig, backup=False, hold=0.0, **limits) as front:
        clients = rig.call(lambda: [front.client(str(number).encode()) for number in range(6)])
        front.until(primary=2)
        assert all(stays_silent(client) for client in clients)
        for number, client in enumerate(clients):
            with front.primary.accept() as end:
                assert receive_exactly(end, 1) == str(number).encode()
            client.close()


def test_who_waits_for_room_is_given_up_after_hold(rig: Rig) -> None:
    with Front(rig, max_per_instance=1, backup=False, hold=0.1) as front:
        front.client(b"a")
        front.until(primary=1)
        assert receive_to_the_end(front.client(b"b")) == (b"", True)
        front.until(primary=1)


def test_limits_are_changed_at_run_time(rig: Rig) -> None:
    with Front(rig) as front:
        for _ in range(3):
            front.client(b"x")
        front.until(primary=3)
        rig.call(lambda: front.frontend.gate.cap(Caps(0, 2, 1)))
        assert rig.call(front.frontend.view).caps == Caps(0, 2, 1)
        front.client(b"to the backup")
        front.client(b"nowhere")
        front.until(primary=3, backup=1, held=1)
        rig.call(lambda: front.frontend.gate.cap(Caps(0, 0, 1)))
        front.until(primary=4, backup=1)


def test_other_settings_win_over_what_was_ordered_and_only_they(rig: Rig) -> None:
    with Front(rig, max_connections=9) as front:
        rig.call(lambda: front.frontend.gate.cap(Caps(1)))
        rig.call(lambda: front.frontend.change_plan(replace(front.frontend.plan, hold=1.0)))
        assert rig.call(front.frontend.view).caps == Caps(1)
        rig.call(lambda: front.frontend.change_plan(replace(front.frontend.plan, max_connections=3)))
        assert rig.call(front.frontend.view).caps == Caps(3)


def test_a_refusing_instance_is_no_full_one(rig: Rig) -> None:
    with Front(rig, max_per_instance=5) as front:
        front.primary.refuse()
        front.client(b"x")
        with front.backup.accept() as end:
            assert receive_exactly(end, 1) == b"x"
        assert front.doubts
