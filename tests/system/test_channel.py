"""Messages arrive whole, in order and with their descriptors; no descriptor is left over, whatever goes wrong."""

from __future__ import annotations

import array
import asyncio
import contextlib
import inspect
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from clojarsd.system import channel as module
from clojarsd.system.channel import MOST_IN_A_PART, Channel, Descriptors, pair
from tests.support.fronts import descriptors_left
from tests.support.sockets import open_descriptors
from tests.support.waiting import until

Conversation = Callable[..., Coroutine[Any, Any, None]]


def on_both_loops(conversation: Conversation) -> Callable[..., None]:
    """A test that runs the conversation on each kind of loop, and sees that no descriptor is left."""

    @pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def test(loop: Callable[[], asyncio.AbstractEventLoop], **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.get_loop()  # uvloop keeps some descriptors from its first one on
        before = open_descriptors()
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(conversation(**arguments))
        assert open_descriptors() == before

    own = inspect.signature(conversation).parameters.values()
    loop_too = inspect.signature(test).parameters["loop"]
    setattr(test, "__signature__", inspect.Signature([loop_too, *own]))  # noqa: B010  # mypy does not know it
    test.__name__, test.__doc__ = conversation.__name__, conversation.__doc__
    plain: Callable[..., None] = test
    return plain


class End:
    """A channel that remembers what it hears."""

    def __init__(self, end: socket.socket, *, take: bool = True) -> None:
        self.heard: list[dict[str, Any]] = []
        self.brought: list[list[int]] = []
        self.lost: list[str] = []
        self._take = take
        self.channel = Channel(end, self._hear, self.lost.append)

    def _hear(self, message: dict[str, Any], descriptors: Descriptors) -> None:
        self.heard.append(message)
        self.brought.append(descriptors.take() if self._take else [])

    def close(self) -> None:
        self.channel.close()
        for numbers in self.brought:
            for number in numbers:
                os.close(number)


@contextlib.contextmanager
def two_ends() -> Iterator[tuple[End, End]]:
    one, other = map(End, pair())
    yield one, other
    one.close()
    other.close()


@on_both_loops
async def test_messages_arrive_in_order_both_ways() -> None:
    with two_ends() as (one, other):
        for number in range(100):
            one.channel.send({"number": number})
            other.channel.send({"answer": number})
        await until(lambda: len(other.heard) == 100 and len(one.heard) == 100, "all messages")
        assert other.heard == [{"number": number} for number in range(100)]
        assert one.heard == [{"answer": number} for number in range(100)]


@on_both_loops
async def test_a_message_longer_than_a_packet_arrives_whole() -> None:
    with two_ends() as (one, other):
        text = "Ω" * 1_000_000
        one.channel.send({"text": text})
        one.channel.send({"after": True})
        await until(lambda: len(other.heard) == 2, "both messages")
        assert other.heard == [{"text": text}, {"after": True}]
        assert one.channel.is_clear


@on_both_loops
async def test_descriptors_arrive_open_closed_on_exec_and_leading_to_the_same() -> None:
    with two_ends() as (one, other):
        read_fd, write_fd = os.pipe()
        one.channel.send({"pipe": 1}, [read_fd])
        os.close(read_fd)  # ours to close at once
        await until(lambda: other.heard, "the message")
        (number,) = other.brought[0]
        assert not os.get_inheritable(number)
        os.write(write_fd, b"x")
        os.close(write_fd)
        assert os.read(number, 10) == b"x"


@on_both_loops
async def test_more_descriptors_than_the_kernel_takes_at_a_time_arrive_in_order() -> None:
    with two_ends() as (one, other):
        count = 2 * MOST_IN_A_PART + 1
        pipes = [os.pipe() for _ in range(3)]
        sent = [pipes[number % 3][0] for number in range(count)]
        one.channel.send({"many": count}, sent)
        await until(lambda: other.heard, "the message")
        assert [os.fstat(number).st_ino for number in other.brought[0]] == [os.fstat(number).st_ino for number in sent]
        for both in pipes:
            os.close(both[0])
            os.close(both[1])


@on_both_loops
async def test_descriptors_that_nobody_takes_are_closed() -> None:
    ours, theirs = pair()
    one, other = End(ours), End(theirs, take=False)
    read_fd, write_fd = os.pipe()
    one.channel.send({"pipe": 1}, [write_fd])
    os.close(write_fd)
    await until(lambda: other.heard, "the message")
    assert os.read(read_fd, 1) == b"", "the other end is closed everywhere"
    os.close(read_fd)
    one.close()
    other.close()


@on_both_loops
async def test_what_a_slow_peer_does_not_read_waits_with_its_descriptors() -> None:
    ours, theirs = pair()
    one = End(ours)
    count = 0
    while one.channel.is_clear:
        one.channel.send({"number": count, "filling": "x" * 1000})
        count += 1
    read_fd, write_fd = os.pipe()
    one.channel.send({"last": True}, [write_fd])
    os.close(write_fd)
    other = End(theirs)
    await until(lambda: len(other.heard) == count + 1, "all messages")
    assert [message.get("number") for message in other.heard[:-1]] == list(range(count))
    os.write(other.brought[-1][0], b"x")
    assert os.read(read_fd, 1) == b"x"
    os.close(read_fd)
    one.close()
    other.close()


@on_both_loops
async def test_a_peer_that_does_not_read_is_given_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_QUEUED", 10)
    before = open_descriptors()
    ours, theirs = pair()
    one = End(ours)
    read_fd, write_fd = os.pipe()
    while one.channel.is_open:
        one.channel.send({"filling": "x" * 1000}, [read_fd])
    one.channel.send({"more": True})
    await until(lambda: one.lost, "that it was lost")
    await asyncio.sleep(0)
    assert one.lost == ["it does not read what it is sent"]
    os.close(read_fd)
    os.close(write_fd)
    theirs.close()
    assert open_descriptors() == before


@on_both_loops
async def test_a_peer_that_goes_is_told_once_after_all_it_has_said() -> None:
    with two_ends() as (one, other):
        for number in range(200):
            other.channel.send({"number": number})
        other.channel.close()
        await until(lambda: one.lost, "that it was lost")
        assert len(one.heard) == 200
        assert one.lost == ["it has gone"]
        assert not one.channel.is_open


@on_both_loops
async def test_a_peer_that_goes_without_reading_does_not_take_back_what_it_has_said() -> None:
    """The kernel reports the reset before what had been sent."""
    ours, theirs = pair()
    theirs.send(b'.{"last": "words"}')
    one = End(ours)
    one.channel.send({"never": "read"})
    theirs.close()
    await until(lambda: one.lost, "that it was lost")
    assert one.heard == [{"last": "words"}]
    one.close()


@on_both_loops
async def test_that_a_peer_has_gone_can_be_asked_before_it_is_told() -> None:
    ours, theirs = pair()
    one = End(ours)
    assert not one.channel.is_left()
    theirs.send(b'.{"unread": true}')
    theirs.close()
    assert one.channel.is_left()
    assert one.lost == []
    one.close()


@pytest.mark.parametrize("packet", [b".no json", b".[1]", b".", b'."text"', b".\xff"])
@on_both_loops
async def test_what_is_no_message_ends_the_channel(packet: bytes) -> None:
    ours, theirs = pair()
    one = End(ours)
    theirs.send(packet)
    await until(lambda: one.lost, "that it was lost")
    assert one.lost == ["what it says is no message"]
    theirs.close()


@on_both_loops
async def test_descriptors_of_what_is_no_message_are_closed() -> None:
    ours, theirs = pair()
    one = End(ours)
    read_fd, write_fd = os.pipe()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write_fd]))]
    theirs.sendmsg([b"+half of "], rights)
    theirs.sendmsg([b".something"], rights)
    os.close(write_fd)
    await until(lambda: one.lost, "that it was lost")
    assert os.read(read_fd, 1) == b""
    os.close(read_fd)
    theirs.close()


@on_both_loops
async def test_descriptors_of_half_a_message_are_closed_with_the_channel() -> None:
    ours, theirs = pair()
    one = End(ours)
    read_fd, write_fd = os.pipe()
    theirs.sendmsg([b"+half"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write_fd]))])
    os.close(write_fd)
    theirs.send(b"+more")
    await asyncio.sleep(0)
    theirs.close()
    await until(lambda: one.lost, "that it was lost")
    assert os.read(read_fd, 1) == b""
    os.close(read_fd)


@on_both_loops
async def test_a_message_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 100)
    ours, theirs = pair()
    one = End(ours)
    for _ in range(4):
        theirs.send(b"+" + b"x" * 50)
    await until(lambda: one.lost, "that it was lost")
    assert one.lost == ["it sends more than a message holds"]
    theirs.close()


@on_both_loops
async def test_descriptors_lost_for_want_of_room_are_an_error_and_leave_none_behind() -> None:
    ours, theirs = pair()
    one, other = End(ours), End(theirs)
    read_fd, write_fd = os.pipe()
    one.channel.send({"pipes": 2}, [write_fd, write_fd])
    os.close(write_fd)
    with descriptors_left(1):
        await until(lambda: other.lost, "that it was lost")
    assert other.lost == ["descriptors of it were lost: this process may open no more"]
    assert other.heard == []
    assert os.read(read_fd, 1) == b""
    os.close(read_fd)
    one.close()


@on_both_loops
async def test_closing_says_nothing_and_may_be_done_twice() -> None:
    with two_ends() as (one, other):
        one.channel.close()
        one.channel.close()
        one.channel.send({"never": True})
        await until(lambda: other.lost, "that the other side saw it")
        assert one.lost == []
        assert one.channel.is_left()


@on_both_loops
async def test_a_channel_may_be_closed_while_it_tells() -> None:
    with two_ends() as (one, other):
        other.channel._on_message = lambda message, descriptors: other.channel.close()
        one.channel.send({"first": True})
        one.channel.send({"second": True})
        await until(lambda: one.lost, "that the other side saw it")
        assert other.lost == []
