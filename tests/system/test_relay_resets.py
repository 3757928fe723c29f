"""A reset on one side of a relayed connection reaches the other as a reset, after all that was sent before it."""

from __future__ import annotations

import socket

import pytest

from clojarsd.system.relay import EndReason
from tests.support.sockets import (
    NewLoop,
    Rig,
    both_sides,
    ends_of,
    fill,
    in_background,
    noise,
    pause,
    receive_exactly,
    receive_to_the_end,
    reset,
    send_until_reset,
    unacknowledged,
)

MIB = 1 << 20


@both_sides
@pytest.mark.parametrize("size", [0, 1, 100_000, 2 * MIB])
def test_a_reset_is_passed_on_after_all_that_came_before_it(rig: Rig, side: str, size: int) -> None:
    """The reader begins when the sender is long gone, so everything is buffered on the way."""
    relayed = rig.connect()
    near, far, reason = ends_of(relayed, side)
    sent = noise(size)
    near.sendall(sent)
    rig.until(lambda: unacknowledged(near) == 0, lambda: unacknowledged(near))
    reset(near)
    assert receive_to_the_end(far, at_a_time=10_000) == (sent, True)
    assert relayed.reason() is reason


@both_sides
def test_a_reset_waits_for_a_slow_reader(rig: Rig, side: str) -> None:
    """More than the far kernel takes: the reset would throw the rest away if it came at once."""
    relayed = rig.connect(receive_buffer=8192)
    near, far, reason = ends_of(relayed, side)
    sent = noise(400_000)
    near.sendall(sent)
    rig.until(lambda: unacknowledged(near) == 0, lambda: unacknowledged(near))
    reset(near)
    assert relayed.stays_open()
    assert receive_to_the_end(far, at_a_time=1000) == (sent, True)
    assert relayed.reason() is reason


@both_sides
def test_a_reset_waits_for_a_reader_only_as_long_as_it_goes_on(new_loop: NewLoop, side: str) -> None:
    with Rig(new_loop, reset_flush=0.05) as rig:
        relayed = rig.connect(receive_buffer=8192)
        near, far, reason = ends_of(relayed, side)
        near.sendall(bytes(200_000))
        rig.until(lambda: unacknowledged(near) == 0, lambda: unacknowledged(near))
        reset(near)
        assert relayed.reason() is reason
        received, was_reset = receive_to_the_end(far)
        assert was_reset
        assert len(received) < 200_000


@pytest.mark.slow
def test_a_client_that_never_reads_does_not_keep_a_lost_instance(new_loop: NewLoop) -> None:
    """The loss shows when the client sends, while what the instance had said is still stuck on its way."""
    with Rig(new_loop, reset_flush=0.05) as rig:
        relayed = rig.connect(receive_buffer=8192)
        fill(relayed.instance, most=64 * MIB)
        reset(relayed.instance)
        relayed.client.sendall(b"anybody there?")
        assert relayed.reason() is EndReason.INSTANCE_RESET


@pytest.mark.slow
@both_sides
def test_a_reader_that_goes_on_slowly_gets_all_before_the_reset(new_loop: NewLoop, side: str) -> None:
    """It takes longer than `reset_flush` altogether, but never makes no progress for so long."""
    with Rig(new_loop, reset_flush=0.6) as rig:
        relayed = rig.connect(receive_buffer=8192)
        near, far, reason = ends_of(relayed, side)
        sent = noise(600_000)
        near.sendall(sent)
        rig.until(lambda: unacknowledged(near) == 0, lambda: unacknowledged(near))
        reset(near)
        received = bytearray()
        while len(received) < len(sent):
            received += receive_exactly(far, 10_000)
            pause()
        assert received == sent
        assert receive_to_the_end(far) == (b"", True)
        assert relayed.reason() is reason


@pytest.mark.slow
@both_sides
def test_a_reset_in_the_middle_of_bulk_is_passed_on_as_one(rig: Rig, side: str) -> None:
    """What the sender's own kernel still had is lost with it, as on a direct connection; the rest arrives."""
    relayed = rig.connect(receive_buffer=65536)
    near, far, reason = ends_of(relayed, side)
    taken = fill(near, most=64 * MIB)
    certain = taken - unacknowledged(near)
    reset(near)
    received, was_reset = receive_to_the_end(far)
    assert certain <= len(received) <= taken
    assert was_reset
    assert relayed.reason() is reason


@both_sides
def test_a_side_that_takes_no_more_for_whatever_reason_is_lost(rig: Rig, side: str) -> None:
    """Here the kernel refuses to send though the connection lives; what had come from there is still delivered."""
    relayed = rig.connect()
    lost, other, reason = ends_of(relayed, side)
    near = relayed.session.client if side == "client" else relayed.session.instance
    rig.call(lambda: near.shutdown(socket.SHUT_WR))
    assert receive_to_the_end(lost) == (b"", False)
    other.sendall(b"to nobody")
    assert relayed.reason() is reason
    assert receive_to_the_end(other) == (b"", True)


@both_sides
def test_a_reset_after_the_end_is_noticed_though_nobody_sends(rig: Rig, side: str) -> None:
    relayed = rig.connect()
    near, far, reason = ends_of(relayed, side)
    near.sendall(b"all I had")
    near.shutdown(socket.SHUT_WR)
    assert receive_to_the_end(far) == (b"all I had", False)
    reset(near)
    assert relayed.reason() is reason
    send_until_reset(far)


def test_an_early_response_is_delivered_before_the_reset(rig: Rig) -> None:
    """An instance refuses an upload and closes with the rest unread, which resets: the client still learns why."""
    relayed = rig.connect()
    refusal = b"HTTP/1.1 413 Content Too Large\r\n\r\n" + noise(40_000)
    with in_background(lambda: send_until_reset(relayed.client)):
        receive_exactly(relayed.instance, 1000)
        relayed.instance.sendall(refusal)
        rig.until(lambda: unacknowledged(relayed.instance) == 0, lambda: unacknowledged(relayed.instance))
        relayed.instance.close()
        assert relayed.reason() is EndReason.INSTANCE_RESET
    received, _ = receive_to_the_end(relayed.client)
    assert received == refusal


@pytest.mark.slow
@both_sides
def test_a_side_that_speaks_before_it_reads_is_not_stuck_when_the_other_is_lost(rig: Rig, side: str) -> None:
    """What it says goes nowhere, but it comes to read all that was sent to it before the reset."""
    relayed = rig.connect(receive_buffer=8192)
    near, far, reason = ends_of(relayed, side)
    sent = noise(400_000)
    near.sendall(sent)
    rig.until(lambda: unacknowledged(near) == 0, lambda: unacknowledged(near))
    reset(near)
    far.sendall(bytes(64 * MIB))
    assert receive_to_the_end(far) == (sent, True)
    assert relayed.reason() is reason


def test_a_client_that_goes_in_the_middle_of_a_download_ends_the_instance_side(rig: Rig) -> None:
    relayed = rig.connect()
    with in_background(lambda: send_until_reset(relayed.instance)):
        receive_exactly(relayed.client, 5 * MIB)
        reset(relayed.client)
        assert relayed.reason() is EndReason.CLIENT_RESET


def test_a_cut_resets_both_sides(rig: Rig) -> None:
    relayed = rig.connect()
    relayed.client.sendall(b"in the middle")
    assert receive_exactly(relayed.instance, 13) == b"in the middle"
    relayed.cut()
    assert relayed.reason() is EndReason.CUT
    assert receive_to_the_end(relayed.client) == (b"", True)
    assert receive_to_the_end(relayed.instance) == (b"", True)


def test_both_sides_may_be_reset_at_once(rig: Rig) -> None:
    relayed = rig.connect()

    def reset_both() -> None:
        reset(relayed.client)
        reset(relayed.instance)

    rig.call(reset_both)
    assert relayed.reason() in {EndReason.CLIENT_RESET, EndReason.INSTANCE_RESET}
