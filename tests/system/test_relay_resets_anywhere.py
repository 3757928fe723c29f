"""Wherever in a conversation one side resets: what was sent before arrives, and then the reset, in either direction."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.sockets import (
    NewLoop,
    Relayed,
    Rig,
    both_sides,
    ends_of,
    noise,
    receive_exactly,
    receive_to_the_end,
    reset,
    unacknowledged,
)

QUESTION = b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CONVERSATION = (("client", QUESTION), ("instance", ANSWER), ("client", QUESTION), ("instance", ANSWER))
SIZE = sum(len(said) for _, said in CONVERSATION)


@both_sides
def test_a_reset_behind_any_byte_of_a_conversation(rig: Rig, side: str) -> None:
    """The side resets when it has sent so many bytes of its part; the other has then got exactly those, and a reset."""
    own = sum(len(said) for name, said in CONVERSATION if name == side)
    for position in range(own + 1):
        relayed = rig.connect()
        near, far, reason = ends_of(relayed, side)
        left, heard = position, b""
        for name, said in CONVERSATION:
            if name == side:
                part = said[:left]
                left -= len(part)
                near.sendall(part)
                heard += part
                if len(part) < len(said):
                    break
                assert receive_exactly(far, len(heard)) == heard
                heard = b""
            else:
                far.sendall(said)
                assert receive_exactly(near, len(said)) == said
        reset_when_taken(rig, near)
        assert receive_to_the_end(far) == (heard, True), position
        assert relayed.reason() is reason
        relayed.close()


sizes = st.one_of(st.integers(1, 300), st.integers(1, 200_000), st.just(65_536), st.just(1 << 20))
turns = st.lists(st.tuples(st.sampled_from(["client", "instance"]), sizes), max_size=6)


@both_sides
@pytest.mark.parametrize("max_pipes", [0, 4])
def test_a_reset_after_any_exchange(new_loop: NewLoop, side: str, max_pipes: int) -> None:
    """Any sizes in any order: what was heard until then is what was said, and nothing is lost of what comes last."""
    with Rig(new_loop, max_pipes=max_pipes) as rig:

        @settings(max_examples=40, deadline=None)
        @given(turns=turns, last=st.one_of(st.just(0), sizes), splits=st.integers(1, 5))
        def holds(turns: list[tuple[str, int]], last: int, splits: int) -> None:
            relayed = rig.connect()
            near, far, reason = ends_of(relayed, side)
            for name, size in turns:
                speaker, listener = (near, far) if name == side else (far, near)
                say(relayed, speaker, listener, noise(size))
            said = noise(last)
            piece = last // splits + 1
            for start in range(0, last, piece):
                near.sendall(said[start : start + piece])
            reset_when_taken(rig, near)
            assert receive_to_the_end(far, at_a_time=50_000) == (said, True)
            assert relayed.reason() is reason
            relayed.close()

        holds()


def say(relayed: Relayed, speaker: socket.socket, listener: socket.socket, said: bytes) -> None:
    """Send it, with somebody reading meanwhile: more than the kernels on the way take may be said."""
    heard = bytearray()
    left = memoryview(said)
    while left or len(heard) < len(said):
        if left:
            sent = speaker.send(left[:100_000])
            left = left[sent:]
            heard += receive_exactly(listener, sent)
    assert heard == said
    assert relayed.is_open


def reset_when_taken(rig: Rig, near: socket.socket) -> None:
    """Reset it when the relay's kernel has everything that was sent; the rest a reset would throw away here."""
    rig.until(lambda: unacknowledged(near) == 0, lambda: unacknowledged(near))
    reset(near)
