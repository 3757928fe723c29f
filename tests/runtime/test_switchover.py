"""Open connections when new ones go elsewhere: cut or left at an instance that is down, left at the backup or not."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

from clojarsd.core.frontend_plan import FrontendPlan, Pause
from clojarsd.system.relay_phases import Phase
from tests.runtime.test_connection_log import Lines, ended, quiet
from tests.runtime.test_drain import ANSWER, REQUEST, answer, ask
from tests.runtime.test_handover import REQUEST as FIRST
from tests.runtime.test_handover import Line, converse, line
from tests.support.fronts import NEVER, B, Front, P, pending_timers
from tests.support.sockets import Rig, receive_exactly, receive_to_the_end, reset, stays_silent

__all__ = ["line", "quiet"]

SOON = 0.1
MUCH = 1 << 20
"""Bytes that the kernel takes at once for a client that does not read them."""


def talk(front: Front, end_of: str = "primary") -> tuple[socket.socket, socket.socket]:
    """A client that has said something and waits for an answer, and what its instance has of it."""
    client = front.client(b"?")
    end = getattr(front, end_of).accept()
    assert receive_exactly(end, 1) == b"?"
    return client, end


def answers(client: socket.socket, end: socket.socket) -> bool:
    """Whether the two are still connected."""
    end.sendall(b"!")
    return receive_exactly(client, 1) == b"!"


# Down.


def test_connections_of_an_instance_that_is_down_are_left_unless_the_settings_say_otherwise(rig: Rig) -> None:
    with Front(rig) as front:
        client, end = talk(front)
        with end:
            front.eligible(primary=False, backup=True, down=[P])
            assert answers(client, end)


def test_they_are_reset_at_once_and_the_log_says_why(rig: Rig, quiet: Lines) -> None:
    with Front(rig, cuts_on_down=True, access_log=True) as front:
        client, end = talk(front)
        with end:
            front.eligible(primary=False, backup=True, down=[P])
            assert front.connections() == (0, 0, 0)
            assert receive_to_the_end(client) == (b"", True)
            assert receive_to_the_end(end) == (b"", True)
            assert ended(front, quiet)[0]["reason"] == "cut, as its instance was down"
        again, other = talk(front, "backup")
        with other:
            assert answers(again, other)
    (told,) = [line for line in quiet if line["event"] == "down_cut"]
    assert (told["role"], told["connections"]) == ("primary", 1)


def test_the_backups_are_cut_as_well_when_that_one_is_down(rig: Rig) -> None:
    with Front(rig, cuts_on_down=True, primary=False) as front:
        client, end = talk(front, "backup")
        with end:
            front.eligible(primary=True, backup=True)
            assert answers(client, end)
            front.eligible(primary=True, backup=False, down=[B])
            assert receive_to_the_end(client) == (b"", True)


def test_an_order_to_leave_cuts_nothing(rig: Rig) -> None:
    with Front(rig, cuts_on_down=True) as front:
        client, end = talk(front)
        with end:
            front.eligible(primary=False, backup=True, is_ordered=True)
            front.rig.call(lambda: front.frontend.begin_drain(P, lambda: None))
            assert answers(client, end)
            front.eligible(primary=False, backup=True, down=[P])  # checks fail while it is drained: that goes on
            assert answers(client, end)


def test_nothing_is_cut_while_the_other_one_cannot_serve_and_then_it_is(rig: Rig) -> None:
    with Front(rig, cuts_on_down=True, backup=False) as front:
        client, end = talk(front)
        with end:
            front.eligible(primary=False, backup=False, down=[P])
            assert answers(client, end)
            front.eligible(primary=False, backup=True, down=[P])
            assert receive_to_the_end(client) == (b"", True)


def test_one_that_is_up_again_before_the_other_can_serve_keeps_its_own(rig: Rig) -> None:
    with Front(rig, cuts_on_down=True, backup=False) as front:
        client, end = talk(front)
        with end:
            front.eligible(primary=False, backup=False, down=[P])
            front.eligible(primary=True, backup=True)
            front.eligible(primary=True, backup=False)
            assert answers(client, end)


def test_the_settings_take_effect_at_once(rig: Rig) -> None:
    with Front(rig) as front:
        client, end = talk(front)
        with end:
            front.eligible(primary=False, backup=True, down=[P])
            assert answers(client, end)
            rig.call(lambda: front.frontend.change_plan(replaced(front, cuts_on_down=True)))
            assert receive_to_the_end(client) == (b"", True)


def replaced(front: Front, **changes: Any) -> FrontendPlan:
    return replace(front.plan, listen=front.frontend.addresses(), **changes)


def test_while_new_connections_wait_by_order_nothing_is_cut(rig: Rig) -> None:
    with Front(rig, cuts_on_down=True) as front:
        client, end = talk(front)
        with end:
            rig.call(lambda: front.frontend.gate.pause(Pause(rig.loop.time() + NEVER, "me")))
            front.eligible(primary=False, backup=True, down=[P])
            assert answers(client, end)
            rig.call(front.frontend.gate.resume)
            assert receive_to_the_end(client) == (b"", True)


def test_an_answer_that_is_complete_and_on_its_way_is_not_cut_off(rig: Rig) -> None:
    """The instance has reset the connection after its answer; only the client has not read it yet."""
    with Front(rig, cuts_on_down=True) as front:
        client, end = talk(front)
        end.sendall(bytes(MUCH))
        front.rig.until(lambda: delivered(front) == [MUCH], lambda: delivered(front))
        reset(end)
        front.rig.until(lambda: phases(front) == [Phase.LOST], lambda: phases(front))
        front.eligible(primary=False, backup=True, down=[P])
        said, was_reset = receive_to_the_end(client)
        assert (len(said), was_reset) == (MUCH, True)
        front.until()


def delivered(front: Front) -> list[int]:
    return [session.bytes_down for session in front.frontend.open_sessions(P)]


def phases(front: Front) -> list[Phase]:
    return [session.phase for session in front.frontend.open_sessions(P)]


# Up.


def failed_over(rig: Rig, **plan: Any) -> Front:
    """A frontend whose new connections go to the backup for now."""
    front = Front(rig, **plan)
    front.eligible(primary=False, backup=True)
    return front


def test_the_backups_connections_stay_there_unless_the_settings_say_otherwise(rig: Rig) -> None:
    with failed_over(rig, drain_idle=0.0, movable=True) as front:
        client = front.client()
        with front.backup.accept() as end:
            ask(client, end)
            front.eligible(primary=True, backup=True)
            ask(client, end)
            assert front.connections() == (0, 1, 0)
            assert rig.call(pending_timers) == 0


def test_http_goes_home_between_two_requests_and_no_connection_is_closed(rig: Rig) -> None:
    with failed_over(rig, moves_on_up=True, movable=True, drain_idle=SOON) as front:
        client = front.client()
        end = front.backup.accept()
        client.sendall(REQUEST)
        assert receive_exactly(end, len(REQUEST)) == REQUEST
        front.eligible(primary=True, backup=True)
        assert stays_silent(client)
        end.sendall(ANSWER)  # to a request that was on its way at that moment
        assert receive_exactly(client, len(ANSWER)) == ANSWER
        assert stays_silent(client)  # nor is it closed for being silent
        client.sendall(REQUEST)
        assert receive_to_the_end(end) == (b"", False)
        end.close()
        with front.primary.accept() as home:
            answer(client, home)
            assert front.connections() == (1, 0, 0)
            ask(client, home)


def test_others_are_ended_when_they_are_silent_and_owed_nothing(rig: Rig, quiet: Lines) -> None:
    with failed_over(rig, moves_on_up=True, drain_idle=SOON, access_log=True) as front:
        silent, owed = front.client(), front.client(b"?")
        with front.backup.accept() as end, front.backup.accept() as other:
            assert receive_exactly(other, 1) == b"?"
            assert stays_silent(silent)
            front.eligible(primary=True, backup=True)
            assert receive_to_the_end(silent) == (b"", False)
            assert receive_to_the_end(end) == (b"", False)
            (told,) = ended(front, quiet)
            assert told["reason"] == "closed when it was silent, as new connections go to the primary again"
            assert stays_silent(owed)
            other.sendall(b"!")
            assert receive_to_the_end(owed) == (b"!", False)
        rig.until(lambda: front.frontend.switchover.until is None, lambda: front.frontend.switchover.until)
        assert rig.call(pending_timers) == 0


def test_after_the_time_of_a_drain_they_are_left_alone(rig: Rig) -> None:
    with failed_over(rig, moves_on_up=True, drain=2 * SOON, drain_idle=SOON) as front:
        client, end = talk(front, "backup")
        with end:
            front.eligible(primary=True, backup=True)
            rig.until(lambda: front.frontend.switchover.until is None, lambda: front.frontend.switchover.until)
            assert answers(client, end)
            assert stays_silent(client)
            assert front.connections() == (0, 1, 0)


def test_when_the_primary_fails_again_they_stay(rig: Rig) -> None:
    with failed_over(rig, moves_on_up=True, drain_idle=SOON) as front:
        client, end = talk(front, "backup")
        with end:
            front.eligible(primary=True, backup=True)
            front.eligible(primary=False, backup=True)
            assert answers(client, end)
            rig.until(lambda: front.frontend.switchover.until is None, lambda: front.frontend.switchover.until)
            assert stays_silent(client)


def test_settings_that_say_so_no_longer_end_it(rig: Rig) -> None:
    with failed_over(rig, moves_on_up=True, drain_idle=SOON) as front:
        client, end = talk(front, "backup")
        with end:
            front.eligible(primary=True, backup=True)
            rig.call(lambda: front.frontend.change_plan(replaced(front, moves_on_up=False)))
            assert answers(client, end)
            assert stays_silent(client)
            assert rig.call(pending_timers) == 0


def test_the_next_process_goes_on_with_it(line: Line) -> None:
    line.open(("backup",), moves_on_up=True, drain_idle=0.5)
    client = line.client(FIRST)
    end = line.accept(B)
    line.now.until(open=[0, 1, 0])
    line.now.ask("eligible", roles=["primary", "backup"])
    line.hand_on()
    converse(client, end, FIRST, begun=True)
    assert receive_to_the_end(client) == (b"", False)
