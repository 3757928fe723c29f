"""A relayed connection behaves as one TCP connection does, seen from its two ends."""

from __future__ import annotations

import gc
import hashlib
import socket
import threading
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clojarsd.system.relay import EndReason
from tests.support.sockets import (
    DEADLINE_S,
    NewLoop,
    Rig,
    both_sides,
    ends_of,
    fill,
    in_background,
    noise,
    open_descriptors,
    pause,
    receive_exactly,
    receive_to_the_end,
    reset,
    stays_silent,
)

MIB = 1 << 20


def test_bytes_go_both_ways_and_are_counted(rig: Rig) -> None:
    relayed = rig.connect()
    relayed.client.sendall(b"question")
    assert receive_exactly(relayed.instance, 8) == b"question"
    relayed.instance.sendall(b"the answer")
    assert receive_exactly(relayed.client, 10) == b"the answer"
    assert rig.call(lambda: (relayed.session.bytes_up, relayed.session.bytes_down)) == (8, 10)


@both_sides
def test_an_end_is_passed_on_and_the_other_way_goes_on(rig: Rig, side: str) -> None:
    relayed = rig.connect()
    near, far, _ = ends_of(relayed, side)
    near.sendall(b"last words")
    near.shutdown(socket.SHUT_WR)
    assert receive_to_the_end(far) == (b"last words", False)
    for _ in range(3):
        far.sendall(b"still here")
        assert receive_exactly(near, 10) == b"still here"
    assert relayed.is_open
    far.close()
    assert receive_to_the_end(near) == (b"", False)
    assert relayed.reason() is EndReason.FINISHED


@both_sides
def test_an_end_comes_after_all_that_a_slow_reader_was_sent(rig: Rig, side: str) -> None:
    relayed = rig.connect(receive_buffer=8192)
    near, far, _ = ends_of(relayed, side)
    sent = noise(3 * MIB)

    def send() -> None:
        near.sendall(sent)
        near.shutdown(socket.SHUT_WR)

    with in_background(send):
        assert stays_silent(near)
        assert receive_to_the_end(far, at_a_time=50_000) == (sent, False)
    assert relayed.is_open


@pytest.mark.slow
@pytest.mark.parametrize("max_pipes", [0, 1, 4])
def test_much_both_ways_at_once_through_readers_that_pause(new_loop: NewLoop, max_pipes: int) -> None:
    """Both windows fill up again and again while both sides send: nothing locks up and nothing is lost."""
    sent = noise(64 * MIB)
    digests: list[bytes] = []

    def read(end: socket.socket) -> None:
        digest = hashlib.sha256()
        pauses_at = [count * len(sent) // 5 for count in range(5)]
        received = 0
        while part := end.recv(300_000):
            digest.update(part)
            received += len(part)
            if pauses_at and received > pauses_at[0]:
                pauses_at.pop(0)
                pause()
        digests.append(digest.digest())

    def send(end: socket.socket) -> None:
        end.sendall(sent)
        end.shutdown(socket.SHUT_WR)

    with Rig(new_loop, max_pipes=max_pipes) as rig:
        relayed = rig.connect()
        with in_background(
            lambda: send(relayed.client),
            lambda: send(relayed.instance),
            lambda: read(relayed.client),
            lambda: read(relayed.instance),
        ):
            assert relayed.reason() is EndReason.FINISHED
        assert relayed.delivered == (len(sent), len(sent))
    assert digests == [hashlib.sha256(sent).digest()] * 2


@both_sides
@pytest.mark.parametrize("max_pipes", [0, 1])
def test_what_was_kept_may_leave_in_small_pieces(new_loop: NewLoop, max_pipes: int, side: str) -> None:
    with Rig(new_loop, max_pipes=max_pipes) as rig:
        relayed = rig.connect(receive_buffer=4096, send_buffer=4096)
        near, far, _ = ends_of(relayed, side)
        sent = noise(MIB)
        with in_background(lambda: near.sendall(sent)):
            assert receive_exactly(far, len(sent)) == sent


@pytest.mark.slow
@both_sides
def test_a_reader_that_stops_makes_the_sender_stop(rig: Rig, side: str) -> None:
    """What is on the way stays bounded, others are served meanwhile, and all of it arrives in the end."""
    relayed = rig.connect(receive_buffer=65536)
    near, far, _ = ends_of(relayed, side)
    other = rig.connect()
    tracemalloc.start()
    try:
        taken = fill(near, most=256 * MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 128 * MIB, "the kernel's buffers took more than they can"
    assert peak < MIB, "the relay holds what it should leave with the kernel"
    other.client.sendall(b"me?")
    assert receive_exactly(other.instance, 3) == b"me?"
    far.sendall(b"the other way is free")
    assert receive_exactly(near, 21) == b"the other way is free"
    near.shutdown(socket.SHUT_WR)
    received, was_reset = receive_to_the_end(far)
    assert (len(received), was_reset) == (taken, False)


@pytest.mark.slow
def test_a_thousand_idle_connections_cost_little_and_all_answer(new_loop: NewLoop) -> None:
    count = 1000
    with Rig(new_loop) as rig:
        rig.connect().client.sendall(b"warm")
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            relayed = [rig.connect() for _ in range(count)]
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (after - before) / count < 4096, "with the four sockets that the test itself holds"
        for number, each in enumerate(relayed):
            each.client.sendall(b"%d" % number)
        for number, each in enumerate(relayed):
            assert receive_exactly(each.instance, len(str(number))) == b"%d" % number
            each.instance.sendall(b"yes")
        for each in relayed:
            assert receive_exactly(each.client, 3) == b"yes"


@both_sides
def test_bulk_goes_through_a_pipe_and_small_talk_does_not(rig: Rig, side: str) -> None:
    relayed = rig.connect()
    near, far, _ = ends_of(relayed, side)
    pipes = rig.resources.pipes
    bulk = noise(3 * MIB)
    for _ in range(3):
        near.sendall(b"small")
        assert receive_exactly(far, 5) == b"small"
        with in_background(lambda: near.sendall(bulk)):
            assert receive_exactly(far, len(bulk)) == bulk
    rig.until(lambda: pipes.lent == 0, lambda: pipes.lent)
    assert rig.call(lambda: pipes.free) == 1
    near.sendall(b"small")
    assert receive_exactly(far, 5) == b"small"
    assert rig.call(lambda: pipes.lent) == 0


@pytest.mark.slow
def test_a_cut_in_the_middle_of_bulk_leaves_nothing_for_the_next(rig: Rig) -> None:
    cut_off = [rig.connect(receive_buffer=size) for size in (4096, 16384, 65536, 262144)]
    for relayed in cut_off:
        fill(relayed.instance, most=64 * MIB)
        relayed.cut()
    assert rig.call(lambda: rig.resources.pipes.lent) == 0
    bulk = noise(3 * MIB)
    relayed = rig.connect()
    with in_background(lambda: relayed.instance.sendall(bulk)):
        assert receive_exactly(relayed.client, len(bulk)) == bulk


def test_everything_is_given_back(new_loop: NewLoop) -> None:
    with Rig(new_loop):
        pass  # what is opened once in a process is open now
    before = open_descriptors()
    with Rig(new_loop) as rig:
        for end in (EndReason.FINISHED, EndReason.CLIENT_RESET, EndReason.INSTANCE_RESET, EndReason.CUT):
            relayed = rig.connect()
            with in_background(lambda relayed=relayed: relayed.client.sendall(noise(MIB))):  # type: ignore[misc]
                receive_exactly(relayed.instance, MIB)
            if end is EndReason.CLIENT_RESET:
                reset(relayed.client)
            elif end is EndReason.INSTANCE_RESET:
                reset(relayed.instance)
            elif end is EndReason.CUT:
                relayed.cut()
            else:
                relayed.client.close()
                relayed.instance.close()
            assert relayed.reason() is end
            assert (relayed.session.client.fileno(), relayed.session.instance.fileno()) == (-1, -1)
            relayed.cut()  # too late, and harmless
    assert open_descriptors() == before


@pytest.mark.slow
def test_it_is_quiet_when_no_answer_is_owed(rig: Rig) -> None:
    relayed = rig.connect()

    def is_quiet() -> bool:
        return rig.call(relayed.session.is_quiet)

    assert is_quiet()
    relayed.client.sendall(b"?")
    receive_exactly(relayed.instance, 1)
    assert not is_quiet()
    relayed.instance.sendall(b"!")
    receive_exactly(relayed.client, 1)
    assert is_quiet()
    fill(relayed.instance, most=64 * MIB)
    assert not is_quiet()


@pytest.mark.slow
def test_quick_acknowledgements_free_a_peer_that_writes_twice(rig: Rig) -> None:
    """A peer with Nagle's algorithm writes twice, and its kernel keeps the second until the first is acknowledged."""

    def exchange(*, quickack: bool) -> float:
        relayed = rig.connect(quickack=quickack)
        began = time.monotonic()
        for _ in range(12):
            relayed.client.sendall(b"head")
            relayed.client.sendall(b"body")
            receive_exactly(relayed.instance, 8)
            relayed.instance.sendall(b"head")
            relayed.instance.sendall(b"body")
            receive_exactly(relayed.client, 8)
        return time.monotonic() - began

    assert exchange(quickack=True) < exchange(quickack=False) / 3


chunks = st.lists(st.integers(1, 200_000), max_size=6)


@pytest.mark.slow
@pytest.mark.parametrize("max_pipes", [0, 2])
def test_any_chunks_and_any_order_of_ends_give_the_same_bytes(new_loop: NewLoop, max_pipes: int) -> None:
    with Rig(new_loop, max_pipes=max_pipes) as rig:

        @settings(max_examples=60, deadline=None)
        @given(up=chunks, down=chunks, piece=st.sampled_from([777, 65536, MIB]), client_ends_first=st.booleans())
        def holds(up: list[int], down: list[int], piece: int, client_ends_first: bool) -> None:
            relayed = rig.connect(receive_buffer=16384)
            received: dict[str, tuple[bytes, bool]] = {}
            ended = threading.Event()

            def send(end: socket.socket, sizes: list[int], *, first: bool) -> None:
                sent = memoryview(noise(sum(sizes)))
                for size in sizes:
                    end.sendall(sent[:size])
                    sent = sent[size:]
                if not first:
                    assert ended.wait(DEADLINE_S)
                end.shutdown(socket.SHUT_WR)

            def read(name: str, end: socket.socket, *, first: bool) -> None:
                received[name] = receive_to_the_end(end, at_a_time=piece)
                if first:
                    ended.set()

            with in_background(
                lambda: send(relayed.client, up, first=client_ends_first),
                lambda: send(relayed.instance, down, first=not client_ends_first),
                lambda: read("up", relayed.instance, first=client_ends_first),
                lambda: read("down", relayed.client, first=not client_ends_first),
            ):
                assert relayed.reason() is EndReason.FINISHED
            assert received == {"up": (noise(sum(up)), False), "down": (noise(sum(down)), False)}
            relayed.close()

        holds()


def test_small_writes_are_never_held_back(rig: Rig) -> None:
    """Nagle's algorithm off on both sides: a chunk behind another one does not wait for an acknowledgement."""
    relayed = rig.connect()
    for _ in range(2):  # the first bytes have nothing before them that they could wait for
        relayed.client.sendall(b"x")
        assert receive_exactly(relayed.instance, 1) == b"x"
        relayed.instance.sendall(b"y")
        assert receive_exactly(relayed.client, 1) == b"y"
    for end in (relayed.session.client, relayed.session.instance):
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_an_ended_session_is_no_cycle(rig: Rig) -> None:
    """So that no collector is needed to free it: a day of connections must not pile up until one comes."""
    relayed = rig.connect()
    session = relayed.session
    up, down = session._up, session._down
    assert session in gc.get_referents(up)
    relayed.client.close()
    relayed.instance.close()
    relayed.reason()
    for flow, twin in ((up, down), (down, up)):
        assert not any(held in (session, twin) for held in gc.get_referents(flow))
