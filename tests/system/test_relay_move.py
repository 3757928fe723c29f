"""A quiet HTTP connection leaves its instance at a request boundary, and no byte of the next request is lost."""

from __future__ import annotations

import socket

import pytest

from clojarsd.system.relay import EndReason
from tests.support.sockets import (
    NewLoop,
    Relayed,
    Rig,
    in_background,
    noise,
    pause,
    receive_exactly,
    receive_to_the_end,
    reset,
    stays_silent,
    unacknowledged,
)

REQUEST = b"GET /first HTTP/1.1\r\nHost: example.org\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: example.org\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def converse(rig: Rig) -> Relayed:
    """A connection with one request asked and answered."""
    relayed = rig.connect()
    relayed.client.sendall(REQUEST)
    assert receive_exactly(relayed.instance, len(REQUEST)) == REQUEST
    relayed.instance.sendall(ANSWER)
    assert receive_exactly(relayed.client, len(ANSWER)) == ANSWER
    return relayed


def take_over(relayed: Relayed) -> socket.socket:
    """The near end of the client after a move, as a blocking socket: what the other instance would be connected to."""
    assert relayed.reason() is EndReason.MOVED
    assert relayed.session.instance.fileno() == -1
    near = relayed.session.client
    assert isinstance(near, socket.socket)
    near.settimeout(relayed.client.gettimeout())
    return near


def test_the_next_request_stays_in_the_queue_for_the_other_instance(rig: Rig) -> None:
    relayed = converse(rig)
    rig.call(relayed.session.move_at_next_request)
    assert stays_silent(relayed.instance)
    relayed.client.sendall(NEXT)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    assert relayed.is_open
    relayed.instance.close()
    with take_over(relayed) as near:
        assert receive_exactly(near, len(NEXT)) == NEXT
        near.sendall(ANSWER)
        assert receive_exactly(relayed.client, len(ANSWER)) == ANSWER


def test_an_answer_still_owed_to_a_pipelined_request_comes_first(rig: Rig) -> None:
    """The client asked twice at once, got one answer, and asks again: the second answer is the old instance's."""
    relayed = rig.connect()
    relayed.client.sendall(REQUEST + REQUEST)
    receive_exactly(relayed.instance, 2 * len(REQUEST))
    relayed.instance.sendall(ANSWER)
    receive_exactly(relayed.client, len(ANSWER))
    rig.call(relayed.session.move_at_next_request)
    relayed.client.sendall(NEXT + NEXT)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    second = ANSWER + noise(300_000)
    with in_background(lambda: relayed.instance.sendall(second)):
        assert receive_exactly(relayed.client, len(second)) == second
    assert relayed.is_open
    relayed.instance.close()
    with take_over(relayed) as near:
        assert receive_exactly(near, 2 * len(NEXT)) == NEXT + NEXT


def test_requests_go_on_as_usual_while_an_answer_is_owed(rig: Rig) -> None:
    relayed = rig.connect()
    relayed.client.sendall(REQUEST)
    receive_exactly(relayed.instance, len(REQUEST))
    rig.call(relayed.session.move_at_next_request)
    relayed.client.sendall(NEXT)
    assert receive_exactly(relayed.instance, len(NEXT)) == NEXT
    relayed.instance.sendall(ANSWER + ANSWER)
    receive_exactly(relayed.client, 2 * len(ANSWER))
    relayed.client.sendall(NEXT)
    assert receive_to_the_end(relayed.instance) == (b"", False)


@pytest.mark.parametrize(
    "said",
    [
        b"GET /first HTTP",
        b"\x16\x03\x01 GET / HTTP/1.1\r\n",
        b"get / HTTP/1.1\r\n",
        b"GET / HTTP/2.0\r\n",
        b"rest of a body",
    ],
    ids=["partial request line", "TLS", "lower case", "HTTP/2", "no HTTP"],
)
def test_bytes_that_do_not_begin_a_request_are_relayed_as_usual(rig: Rig, said: bytes) -> None:
    relayed = converse(rig)
    rig.call(relayed.session.move_at_next_request)
    relayed.client.sendall(said)
    assert receive_exactly(relayed.instance, len(said)) == said
    relayed.instance.sendall(ANSWER)
    assert receive_exactly(relayed.client, len(ANSWER)) == ANSWER
    relayed.client.sendall(NEXT)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    relayed.instance.close()
    with take_over(relayed) as near:
        assert receive_exactly(near, len(NEXT)) == NEXT


def test_an_idle_connection_moves_at_once(rig: Rig) -> None:
    relayed = converse(rig)
    rig.call(relayed.session.move_now)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    relayed.client.sendall(NEXT)
    relayed.instance.close()
    with take_over(relayed) as near:
        assert receive_exactly(near, len(NEXT)) == NEXT


def test_a_connection_that_never_said_anything_moves_at_once(rig: Rig) -> None:
    relayed = rig.connect()
    rig.call(relayed.session.move_now)
    relayed.instance.close()
    take_over(relayed).close()
    assert receive_to_the_end(relayed.client) == (b"", False)


def test_move_now_waits_for_the_answer_that_is_owed(rig: Rig) -> None:
    relayed = rig.connect()
    relayed.client.sendall(REQUEST)
    receive_exactly(relayed.instance, len(REQUEST))
    rig.call(relayed.session.move_now)
    assert stays_silent(relayed.instance)
    relayed.instance.sendall(ANSWER)
    receive_exactly(relayed.client, len(ANSWER))
    relayed.client.sendall(NEXT)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    relayed.instance.close()
    take_over(relayed).close()


@pytest.mark.parametrize("last_request", [b"", NEXT])
def test_a_client_that_closes_while_it_moves(rig: Rig, last_request: bytes) -> None:
    """Nothing is left to move, unless it asked before it ended."""
    relayed = converse(rig)
    rig.call(relayed.session.move_now)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    relayed.client.sendall(last_request)
    relayed.client.shutdown(socket.SHUT_WR)
    rig.until(lambda: unacknowledged(relayed.client) == 0, lambda: unacknowledged(relayed.client))
    relayed.instance.close()
    if last_request:
        with take_over(relayed) as near:
            assert receive_to_the_end(near) == (NEXT, False)
    else:
        assert relayed.reason() is EndReason.FINISHED
        assert relayed.session.client.fileno() == -1


def test_a_client_that_resets_while_it_moves(rig: Rig) -> None:
    relayed = converse(rig)
    rig.call(relayed.session.move_now)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    reset(relayed.client)
    relayed.instance.close()
    assert relayed.reason() is EndReason.CLIENT_RESET
    assert relayed.session.client.fileno() == -1


def test_a_client_that_resets_while_the_last_answer_comes(rig: Rig) -> None:
    relayed = converse(rig)
    rig.call(relayed.session.move_now)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    reset(relayed.client)
    with in_background(lambda: send_all_of_it(relayed.instance)):
        assert relayed.reason() is EndReason.CLIENT_RESET


def send_all_of_it(end: socket.socket) -> None:
    """Send until it fails."""
    with pytest.raises(ConnectionError):
        end.sendall(bytes(1 << 28))


def test_a_client_that_has_ended_is_not_moved(new_loop: NewLoop) -> None:
    """It may still be waiting for more, and could not ask anybody else for it."""
    with Rig(new_loop, move_flush=0.05) as rig:
        relayed = converse(rig)
        relayed.client.shutdown(socket.SHUT_WR)
        assert receive_to_the_end(relayed.instance) == (b"", False)
        rig.call(relayed.session.move_now)
        assert relayed.stays_open()
        relayed.instance.sendall(ANSWER)
        relayed.instance.close()
        assert receive_to_the_end(relayed.client) == (ANSWER, False)
        assert relayed.reason() is EndReason.FINISHED


def test_an_instance_that_ends_by_itself_is_no_move(rig: Rig) -> None:
    relayed = converse(rig)
    rig.call(relayed.session.move_at_next_request)
    relayed.instance.shutdown(socket.SHUT_WR)
    assert receive_to_the_end(relayed.client) == (b"", False)
    relayed.client.sendall(NEXT)
    assert receive_exactly(relayed.instance, len(NEXT)) == NEXT
    relayed.client.close()
    assert relayed.reason() is EndReason.FINISHED


def test_a_reset_by_an_instance_that_had_no_more_to_say_is_as_good_as_an_end(rig: Rig) -> None:
    relayed = converse(rig)
    rig.call(relayed.session.move_now)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    reset(relayed.instance)
    take_over(relayed).close()


def test_a_reset_in_the_middle_of_the_last_answer_reaches_the_client(rig: Rig) -> None:
    """To go on with another instance's answer behind half an answer would mix the two."""
    relayed = converse(rig)
    rig.call(relayed.session.move_now)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    relayed.instance.sendall(b"half an ans")
    assert receive_exactly(relayed.client, 11) == b"half an ans"
    reset(relayed.instance)
    assert relayed.reason() is EndReason.INSTANCE_RESET
    assert receive_to_the_end(relayed.client) == (b"", True)


def test_an_instance_that_does_not_close_is_left_for_a_new_request(new_loop: NewLoop) -> None:
    with Rig(new_loop, move_flush=0.05) as rig:
        relayed = converse(rig)
        rig.call(relayed.session.move_at_next_request)
        relayed.client.sendall(NEXT)
        with take_over(relayed) as near:
            assert receive_exactly(near, len(NEXT)) == NEXT


def test_a_silent_connection_whose_instance_does_not_close_is_cut(new_loop: NewLoop) -> None:
    """It may pause in the middle of an answer: a client that waits for the rest must not wait for ever."""
    with Rig(new_loop, move_flush=0.05) as rig:
        relayed = converse(rig)
        rig.call(relayed.session.move_now)
        assert receive_to_the_end(relayed.client) == (b"", True)
        assert relayed.reason() is EndReason.CUT


def test_a_finished_connection_ends_without_a_reset(rig: Rig) -> None:
    relayed = converse(rig)
    rig.call(relayed.session.finish)
    assert receive_to_the_end(relayed.client) == (b"", False)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    assert relayed.reason() is EndReason.CUT


def test_a_connection_is_not_finished_over_bytes_that_have_just_come(rig: Rig) -> None:
    relayed = converse(rig)

    def finish() -> None:
        relayed.client.sendall(NEXT)
        relayed.session.finish()

    rig.call(finish)
    assert receive_exactly(relayed.instance, len(NEXT)) == NEXT


def test_an_instance_that_falls_silent_in_the_last_answer_counts_as_lost(new_loop: NewLoop) -> None:
    with Rig(new_loop, move_flush=0.05) as rig:
        relayed = converse(rig)

        def move() -> None:
            relayed.session.move_now()
            relayed.instance.sendall(b"half an ans")
            for _ in range(5):
                pause()  # the loop is late: the timer is due before the bytes have been looked at

        rig.call(move)
        assert relayed.reason() is EndReason.INSTANCE_RESET
        assert receive_to_the_end(relayed.client) == (b"half an ans", True)


@pytest.mark.parametrize("side", ["client", "instance"])
def test_a_reset_while_it_waits_for_the_next_request_is_passed_on_as_one(rig: Rig, side: str) -> None:
    """Looking for the request must not take the news of the reset."""
    relayed = converse(rig)
    rig.call(relayed.session.move_at_next_request)
    near, far = (relayed.client, relayed.instance) if side == "client" else (relayed.instance, relayed.client)
    reset(near)
    assert receive_to_the_end(far) == (b"", True)
    assert relayed.reason() is (EndReason.CLIENT_RESET if side == "client" else EndReason.INSTANCE_RESET)


def test_a_slow_client_gets_the_whole_last_answer_before_it_moves(new_loop: NewLoop) -> None:
    """The timer counts the silence of the instance, not the slowness of the client."""
    last = ANSWER + noise(6 << 20)
    with Rig(new_loop, move_flush=0.05) as rig:
        relayed = rig.connect(receive_buffer=16384)
        rig.call(relayed.session.move_now)

        def answer() -> None:
            relayed.instance.sendall(last)
            relayed.instance.close()

        with in_background(answer):
            assert relayed.stays_open()
            assert receive_exactly(relayed.client, len(last)) == last
        take_over(relayed).close()


def test_a_cut_ends_a_move(rig: Rig) -> None:
    relayed = converse(rig)
    rig.call(relayed.session.move_now)
    relayed.cut()
    assert relayed.reason() is EndReason.CUT
    assert receive_to_the_end(relayed.client) == (b"", True)


def test_a_large_upload_does_not_make_a_connection_forget_that_it_is_to_move(rig: Rig) -> None:
    """The upload is spliced, which reads another way for a while; the request behind it goes to the other instance."""
    relayed = converse(rig)
    body = noise(32 << 20)  # more than all queues on the way take
    up, received = relayed.session._up, b""
    with in_background(lambda: relayed.client.sendall(REQUEST + body)):
        rig.until(lambda: not up.is_flushed, lambda: "all was taken")
        while rig.call(lambda: up._pipe is None):  # a queue that is full at both ends is read by whole buffers
            received += relayed.instance.recv(1 << 20)
        rig.call(relayed.session.move_at_next_request)
        received += receive_exactly(relayed.instance, len(REQUEST + body) - len(received))
        assert received == REQUEST + body
    relayed.instance.sendall(ANSWER)
    assert receive_exactly(relayed.client, len(ANSWER)) == ANSWER
    relayed.client.sendall(NEXT)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    relayed.instance.close()
    with take_over(relayed) as near:
        assert receive_exactly(near, len(NEXT)) == NEXT


def test_a_quiet_connection_whose_instance_has_ended_is_finished(rig: Rig) -> None:
    relayed = converse(rig)
    relayed.instance.shutdown(socket.SHUT_WR)
    assert receive_to_the_end(relayed.client) == (b"", False)
    rig.call(relayed.session.move_now)
    assert relayed.reason() is EndReason.CUT
