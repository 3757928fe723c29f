"""A session that is frozen, at whatever moment, goes on where it was: in the same process, and in another's place."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from clojarsd.core.frozen import FrozenConnection, FrozenFlow, FrozenSession, from_document, to_document
from clojarsd.core.names import Role
from clojarsd.system.pipes import PipePool
from clojarsd.system.relay import EndReason
from clojarsd.system.relay_thaw import thaw
from tests.support.sockets import (
    DEADLINE_S,
    NewLoop,
    Relayed,
    Rig,
    both_sides,
    ends_of,
    in_background,
    noise,
    open_descriptors,
    receive_exactly,
    receive_to_the_end,
    reset,
    stays_silent,
    unacknowledged,
)

MIB = 1 << 20
REQUEST = b"GET /first HTTP/1.1\r\nHost: example.org\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: example.org\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Hands:
    """Two loops with resources of their own, and what takes a session from the one that has it to the other.

    `back` instead freezes it and lets it go on where it is.
    """

    def __init__(self, first: Rig, second: Rig, *, back: bool) -> None:
        self.first, self.second = first, second
        self._back = back

    def freeze(self, relayed: Relayed) -> FrozenSession:
        """Freeze it where it is. From here on only `go_on` may be called."""
        frozen, descriptors = relayed._rig.call(relayed.session.freeze)
        self._frozen, self._descriptors = frozen, [os.dup(number) for number in descriptors]
        return frozen

    def go_on(self, relayed: Relayed) -> None:
        """Let what was frozen go on, here or there."""
        if self._back:
            for number in self._descriptors:
                os.close(number)
            relayed._rig.call(relayed.session.unfreeze)
            return
        text = json.dumps(to_document(FrozenConnection(Role.PRIMARY, self._frozen)))
        state = from_document(json.loads(text)).state
        assert isinstance(state, FrozenSession)
        assert state == self._frozen
        here, there = relayed._rig, self.second if relayed._rig is self.first else self.first
        gone = relayed.session
        relayed.session = there.call(
            lambda: thaw(there.loop, state, self._descriptors, there.resources, on_end=relayed._on_end)
        )
        relayed._rig = there
        here.call(gone.let_go)
        assert gone.client.fileno() == gone.instance.fileno() == -1
        there.call(relayed.session.unfreeze)

    def move(self, relayed: Relayed) -> FrozenSession:
        """Freeze it and let it go on at once."""
        frozen = self.freeze(relayed)
        self.go_on(relayed)
        return frozen


@pytest.fixture(params=[True, False], ids=["taken back", "taken over"])
def hands(new_loop: NewLoop, request: pytest.FixtureRequest) -> Iterator[Hands]:
    with Rig(new_loop):
        pass  # uvloop keeps some descriptors from its first loop on
    before = open_descriptors()
    with Rig(new_loop, move_flush=0.2) as second, Rig(new_loop, move_flush=0.2) as first:
        yield Hands(first, second, back=request.param)
    assert open_descriptors() == before


def converse(rig: Rig) -> Relayed:
    """A connection with one request asked and answered."""
    relayed = rig.connect()
    relayed.client.sendall(REQUEST)
    assert receive_exactly(relayed.instance, len(REQUEST)) == REQUEST
    relayed.instance.sendall(ANSWER)
    assert receive_exactly(relayed.client, len(ANSWER)) == ANSWER
    return relayed


def test_a_quiet_connection_goes_on_and_its_counters_too(hands: Hands) -> None:
    relayed = converse(hands.first)
    for _ in range(3):
        hands.move(relayed)
        relayed.client.sendall(NEXT)
        assert receive_exactly(relayed.instance, len(NEXT)) == NEXT
        relayed.instance.sendall(ANSWER)
        assert receive_exactly(relayed.client, len(ANSWER)) == ANSWER
    assert relayed.delivered == (len(REQUEST) + 3 * len(NEXT), 4 * len(ANSWER))


def test_nothing_moves_while_it_is_frozen_and_nothing_is_lost(hands: Hands) -> None:
    relayed = converse(hands.first)
    hands.freeze(relayed)
    relayed.client.sendall(NEXT)
    relayed.instance.sendall(ANSWER)
    assert stays_silent(relayed.instance)
    assert stays_silent(relayed.client)
    hands.go_on(relayed)
    assert receive_exactly(relayed.instance, len(NEXT)) == NEXT
    assert receive_exactly(relayed.client, len(ANSWER)) == ANSWER


def test_an_answer_that_is_owed_stays_owed(hands: Hands) -> None:
    relayed = converse(hands.first)
    assert relayed._rig.call(relayed.session.is_quiet)
    relayed.client.sendall(NEXT)
    receive_exactly(relayed.instance, len(NEXT))
    assert hands.move(relayed).owed
    assert not relayed._rig.call(relayed.session.is_quiet)


@both_sides
@pytest.mark.parametrize("max_pipes", [0, 1], ids=["buffer", "pipe"])
@pytest.mark.parametrize("back", [True, False], ids=["taken back", "taken over"])
def test_what_a_reader_that_pauses_has_not_taken_comes_in_order(
    new_loop: NewLoop, side: str, max_pipes: int, back: bool
) -> None:
    """What was read and not sent goes over: kept bytes as they are, and a pipe with what is in it."""
    sent = noise(24 * MIB)
    with Rig(new_loop, max_pipes=max_pipes) as second, Rig(new_loop, max_pipes=max_pipes) as first:
        hands = Hands(first, second, back=back)
        relayed = first.connect(receive_buffer=65536)
        near, far, _ = ends_of(relayed, side)

        def send() -> None:
            near.sendall(sent)
            near.shutdown(socket.SHUT_WR)

        with in_background(send):
            received = b""
            kept = 0
            while not kept:  # until it is stopped where it keeps what it has read the way that is meant
                received += receive_exactly(far, 50_000)
                frozen = hands.move(relayed)
                way = frozen.up if side == "client" else frozen.down
                kept = way.piped if max_pipes else len(way.pending)
            received += receive_exactly(far, 3 * MIB)
            hands.move(relayed)
            rest, was_reset = receive_to_the_end(far)
        assert (received + rest == sent, was_reset) == (True, False)
        assert sum(relayed.delivered) == len(sent)


@both_sides
def test_a_half_closed_connection_goes_on_the_other_way(hands: Hands, side: str) -> None:
    relayed = hands.first.connect()
    near, far, _ = ends_of(relayed, side)
    near.sendall(b"last words")
    near.shutdown(socket.SHUT_WR)
    assert receive_to_the_end(far) == (b"last words", False)
    hands.move(relayed)
    far.sendall(b"still here")
    assert receive_exactly(near, 10) == b"still here"
    hands.move(relayed)
    far.close()
    assert receive_to_the_end(near) == (b"", False)
    assert relayed.reason() is EndReason.FINISHED


@both_sides
def test_an_end_that_comes_while_it_is_frozen_is_one(hands: Hands, side: str) -> None:
    relayed = hands.first.connect()
    near, far, _ = ends_of(relayed, side)
    hands.freeze(relayed)
    near.sendall(b"last words")
    near.shutdown(socket.SHUT_WR)
    hands.go_on(relayed)
    assert receive_to_the_end(far) == (b"last words", False)
    assert relayed.is_open


@both_sides
def test_a_reset_that_comes_while_it_is_frozen_is_one(hands: Hands, side: str) -> None:
    relayed = hands.first.connect()
    near, far, reason = ends_of(relayed, side)
    hands.freeze(relayed)
    near.sendall(noise(100_000))
    hands.first.until(lambda: not unacknowledged(near), lambda: unacknowledged(near))
    reset(near)
    hands.go_on(relayed)
    assert receive_to_the_end(far) == (noise(100_000), True)
    assert relayed.reason() is reason


@both_sides
def test_a_reset_that_is_being_delivered_comes_after_all_that_was_sent_before_it(hands: Hands, side: str) -> None:
    relayed = hands.first.connect(receive_buffer=8192)
    near, far, reason = ends_of(relayed, side)
    sent = noise(MIB)
    near.sendall(sent)
    hands.first.until(lambda: not unacknowledged(near), lambda: unacknowledged(near))
    reset(near)
    hands.first.until(lambda: relayed.session._lost is not None, lambda: relayed.session._phase)
    frozen = hands.move(relayed)
    assert frozen.phase == "LOST"
    assert frozen.timer_at is not None
    received = receive_exactly(far, 300_000)
    hands.move(relayed)
    rest, was_reset = receive_to_the_end(far)
    assert (received + rest == sent, was_reset) == (True, True)
    assert relayed.reason() is reason


@both_sides
def test_a_loss_that_was_noticed_by_a_failed_send_is_still_no_end(hands: Hands, side: str) -> None:
    relayed = hands.first.connect(receive_buffer=8192)
    lost, other, reason = ends_of(relayed, side)
    near = relayed.session.client if side == "client" else relayed.session.instance
    sent = noise(8 * MIB)

    def send() -> None:
        with contextlib.suppress(OSError):
            lost.sendall(sent)

    with in_background(send):
        received = receive_exactly(other, 100_000)
        hands.first.call(lambda: near.shutdown(socket.SHUT_WR))
        other.sendall(b"to nobody")
        hands.first.until(lambda: relayed.session._lost is not None, lambda: relayed.session._phase)
        assert hands.move(relayed).lost == ("up" if side == "client" else "down")
        rest, was_reset = receive_to_the_end(other)
        with contextlib.suppress(OSError):
            lost.shutdown(socket.SHUT_RDWR)
    assert (sent.startswith(received + rest), was_reset) == (True, True)
    assert relayed.reason() is reason


@both_sides
@pytest.mark.parametrize("back", [True, False], ids=["taken back", "taken over"])
def test_a_reader_that_takes_no_more_is_given_up_in_its_time(new_loop: NewLoop, side: str, back: bool) -> None:
    """The instant at which the delivery before a reset is given up holds across."""
    with Rig(new_loop, reset_flush=0.5) as second, Rig(new_loop, reset_flush=0.5) as first:
        relayed = first.connect(receive_buffer=8192)
        near, _far, reason = ends_of(relayed, side)
        near.sendall(noise(MIB))
        first.until(lambda: not unacknowledged(near), lambda: unacknowledged(near))
        reset(near)
        first.until(lambda: relayed.session._lost is not None, lambda: relayed.session._phase)
        hands = Hands(first, second, back=back)
        first_time = hands.move(relayed).give_up_at
        assert hands.move(relayed).give_up_at >= first_time > 0
        assert relayed.reason() is reason


@both_sides
def test_who_is_left_alone_is_still_read_from(hands: Hands, side: str) -> None:
    """The other side is lost while the first one sends: what it sends is dropped, so that it is not stuck."""
    relayed = hands.first.connect(receive_buffer=8192)
    lost, left, reason = ends_of(relayed, side)
    lost.sendall(noise(MIB))
    reset_at = hands.first
    reset_at.until(lambda: not unacknowledged(lost), lambda: unacknowledged(lost))
    reset(lost)
    reset_at.until(lambda: relayed.session._lost is not None, lambda: relayed.session._phase)
    frozen = hands.move(relayed)
    assert (frozen.down if side == "client" else frozen.up).stage == "DROPPING"
    left.sendall(noise(16 * MIB))
    assert receive_to_the_end(left)[1]
    assert relayed.reason() is reason


def test_a_connection_that_waits_for_its_next_request_moves_with_it(hands: Hands) -> None:
    relayed = converse(hands.first)
    hands.first.call(relayed.session.move_at_next_request)
    frozen = hands.move(relayed)
    assert (frozen.phase, frozen.up.looks) == ("LOOKING", True)
    relayed.client.sendall(b"no request")
    assert receive_exactly(relayed.instance, 10) == b"no request"
    relayed.instance.sendall(ANSWER)
    assert receive_exactly(relayed.client, len(ANSWER)) == ANSWER
    relayed.client.sendall(NEXT)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    relayed.instance.close()
    assert relayed.reason() is EndReason.MOVED
    relayed.session.client.settimeout(DEADLINE_S)
    assert receive_exactly(relayed.session.client, len(NEXT)) == NEXT


def test_a_move_that_has_begun_goes_on(hands: Hands) -> None:
    """The instance was told the end; its last answer still comes, and the request that waits is for the next one."""
    relayed = converse(hands.first)
    hands.first.call(relayed.session.move_at_next_request)
    relayed.client.sendall(NEXT)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    assert hands.move(relayed).phase == "MOVING"
    last = ANSWER + noise(300_000)
    with in_background(lambda: relayed.instance.sendall(last)):
        assert receive_exactly(relayed.client, len(last)) == last
    hands.move(relayed)
    relayed.instance.close()
    assert relayed.reason() is EndReason.MOVED
    relayed.session.client.settimeout(DEADLINE_S)
    assert receive_exactly(relayed.session.client, len(NEXT)) == NEXT


def test_an_instance_that_does_not_close_is_left_in_its_time(hands: Hands) -> None:
    relayed = converse(hands.first)
    hands.first.call(relayed.session.move_at_next_request)
    relayed.client.sendall(NEXT)
    assert receive_to_the_end(relayed.instance) == (b"", False)
    frozen = hands.move(relayed)
    assert frozen.timer_at is not None
    assert relayed.reason() is EndReason.MOVED


def test_quick_acknowledgements_are_kept(new_loop: NewLoop) -> None:
    with Rig(new_loop) as second, Rig(new_loop) as first:
        relayed = first.connect(quickack=True)
        hands = Hands(first, second, back=False)
        assert hands.move(relayed).quickack
        assert hands.move(relayed).quickack


def test_a_frozen_connection_can_be_cut(hands: Hands) -> None:
    relayed = converse(hands.first)
    hands.freeze(relayed)
    for number in hands._descriptors:
        os.close(number)
    relayed.cut()
    assert relayed.reason() is EndReason.CUT
    assert receive_to_the_end(relayed.client) == (b"", True)


def test_a_pipe_beyond_the_limit_is_closed_when_it_comes_back() -> None:
    before = open_descriptors()
    giver, taker = PipePool(1), PipePool(1)
    own, other = taker.lend(), giver.lend()
    assert own is not None
    assert other is not None
    taker.adopt(other)
    assert taker.lent == 2
    taker.take_back(other, left=0)
    taker.take_back(own, left=0)
    assert (taker.lent, taker.free) == (0, 1)
    taker.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("document", [[], [None], ["primary", None, 1], ["third", None, [True, [], None]], [1, 2, [3]]])
def test_a_document_of_another_kind_is_refused(document: list[object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_document(document)


def test_a_document_that_does_not_say_when_the_connection_began_is_read() -> None:
    """As an earlier version writes it."""
    flow = FrozenFlow("OPEN", 3, looks=False, pending=b"", piped=0)
    session = FrozenSession("RELAYING", False, False, flow, flow, None, 0, None, None, 0.0, began_at=12.5)
    document = to_document(FrozenConnection(Role.PRIMARY, session))
    assert from_document(document).state == session
    document.remove(12.5)
    assert from_document(document).state == replace(session, began_at=None)
