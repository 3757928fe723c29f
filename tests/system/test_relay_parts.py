"""The relay's pipes and its poller, each alone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator

import pytest
import uvloop

from clojarsd.system.pipes import SIZES, PipePool
from clojarsd.system.poller import ERRORS, FORGET, READ, WRITE, Poller
from clojarsd.system.relay_loop import RelayLoop
from tests.support.sockets import open_descriptors, reset, tcp_pair

NewLoop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
def pool() -> Iterator[PipePool]:
    before = open_descriptors()
    pool = PipePool(2)
    yield pool
    pool.close()
    assert open_descriptors() == before


def test_a_pipe_is_large_and_comes_back_empty_to_be_lent_again(pool: PipePool) -> None:
    pipe = pool.lend()
    assert pipe is not None
    assert fcntl.fcntl(pipe.read_fd, fcntl.F_GETPIPE_SZ) == SIZES[0]
    assert (pool.lent, pool.free) == (1, 0)
    pool.take_back(pipe, left=0)
    assert (pool.lent, pool.free) == (0, 1)
    assert pool.lend() is pipe
    pool.take_back(pipe, left=0)


def test_a_pipe_with_bytes_in_it_is_closed(pool: PipePool) -> None:
    pipe = pool.lend()
    assert pipe is not None
    os.write(pipe.write_fd, b"somebody's")
    pool.take_back(pipe, left=10)
    assert (pool.lent, pool.free) == (0, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(pipe.read_fd, 1)


def test_no_more_pipes_than_the_limit(pool: PipePool) -> None:
    lent = [pool.lend(), pool.lend()]
    assert pool.lend() is None
    for pipe in lent:
        assert pipe is not None
        pool.take_back(pipe, left=0)


def test_a_closed_pool_closes_what_comes_back(pool: PipePool) -> None:
    pipe = pool.lend()
    assert pipe is not None
    pool.close()
    assert pool.lend() is None
    pool.take_back(pipe, left=0)
    assert pool.free == 0


def test_the_kernel_may_refuse_the_largest_sizes(pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does to a plain user whose pipes are many."""
    real = fcntl.fcntl

    def refusing(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ and argument > SIZES[2]:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refusing)
    pipe = pool.lend()
    assert pipe is not None
    assert real(pipe.read_fd, fcntl.F_GETPIPE_SZ) == SIZES[2]
    pool.take_back(pipe, left=0)


def test_a_pipe_too_small_to_be_worth_it_is_not_lent(pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(_fd: int, command: int, _argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return 8192

    monkeypatch.setattr(fcntl, "fcntl", refusing)
    assert pool.lend() is None
    assert pool.lent == 0


def test_without_descriptors_there_is_no_pipe(pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe2", full)
    assert pool.lend() is None
    assert pool.lent == 0


class Subject:
    """Notes what it is called for until that is not a byte, and reads one byte at a time."""

    def __init__(self, end: socket.socket, loop: asyncio.AbstractEventLoop, poller: Poller) -> None:
        self.fd = end.fileno()
        self.watched = FORGET
        self.seen: list[object] = []
        self.loop = loop
        self._end = end
        self._poller = poller

    def readable(self) -> None:
        try:
            self.seen.append(self._end.recv(1))
        except OSError as error:
            self._finish(type(error))

    def ending(self) -> None:
        self.readable()

    def writable(self) -> None:
        self._finish("writable")

    def broken(self) -> None:
        self._finish("broken")

    def _finish(self, seen: object) -> None:
        self.seen.append(seen)
        self._poller.watch(self, FORGET)
        self.loop.stop()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop, RelayLoop], ids=["asyncio", "uvloop", "relay"])
def subject(request: pytest.FixtureRequest) -> Iterator[tuple[Subject, socket.socket, Poller]]:
    """A subject on a loop of its own that is not running, the far end of its socket, and its poller."""
    loop = request.param()
    far, near = tcp_pair()
    near.setblocking(False)
    poller = loop.poller if isinstance(loop, RelayLoop) else Poller()
    poller.attach(loop)
    subject = Subject(near, loop, poller)
    yield subject, far, poller
    poller.watch(subject, FORGET)
    poller.close()
    near.close()
    far.close()
    loop.close()


def run(subject: Subject) -> list[object]:
    """What the subject saw until it stopped its loop."""
    subject.loop.run_forever()
    return subject.seen


def test_a_reset_is_seen_after_each_byte_before_it(subject: tuple[Subject, socket.socket, Poller]) -> None:
    """The loops' own readers miss this on uvloop: one call, and then none."""
    near, far, poller = subject
    far.sendall(b"abc")
    reset(far)
    poller.watch(near, READ)
    assert run(near) == [b"a", b"b", b"c", ConnectionResetError]


def test_a_reset_is_seen_by_one_who_waits_for_that_alone(subject: tuple[Subject, socket.socket, Poller]) -> None:
    near, far, poller = subject
    far.sendall(b"abc")
    poller.watch(near, ERRORS)
    reset(far)
    assert run(near) == ["broken"]


def test_room_is_seen_by_one_who_waits_for_it(subject: tuple[Subject, socket.socket, Poller]) -> None:
    near, far, poller = subject
    far.sendall(b"abc")
    poller.watch(near, WRITE)
    assert run(near) == ["writable"]


def test_one_who_always_has_something_to_read_gets_to_write(subject: tuple[Subject, socket.socket, Poller]) -> None:
    near, far, poller = subject
    far.sendall(b"abc")
    poller.watch(near, READ | WRITE)
    assert run(near) == [b"a", "writable"]


def test_the_forgotten_are_not_called(subject: tuple[Subject, socket.socket, Poller]) -> None:
    near, far, poller = subject
    poller.watch(near, READ)
    assert len(poller) == 1
    poller.watch(near, FORGET)
    assert len(poller) == 0
    far.sendall(b"abc")
    near.loop.call_later(0.05, near.loop.stop)
    assert run(near) == []


class Noted:
    """A subject of the poller that notes what is called."""

    def __init__(self, fd: int, on_readable: Callable[[], None] = lambda: None) -> None:
        self.fd = fd
        self.watched = FORGET
        self.calls: list[str] = []
        self._on_readable = on_readable

    def readable(self) -> None:
        self.calls.append("readable")
        self._on_readable()

    def ending(self) -> None:
        self.readable()

    def writable(self) -> None:
        self.calls.append("writable")

    def broken(self) -> None:
        self.calls.append("broken")


@pytest.mark.parametrize("wanted", [READ, ERRORS])
def test_news_of_a_closed_socket_does_not_reach_who_gets_its_number(wanted: int) -> None:
    """Both were ready in one turn; the first call closes the second's socket, and a new one takes its descriptor."""
    loop, poller = asyncio.new_event_loop(), Poller()
    poller.attach(loop)
    with contextlib.ExitStack() as stack:
        (far, near), (other_far, other_near), (_, third_near) = (
            tuple(stack.enter_context(end) for end in tcp_pair()) for _ in range(3)
        )
        successors: list[Noted] = []

        def take_over() -> None:
            near.recv(100)
            if not successors:
                poller.watch(second, FORGET)
                number = other_near.fileno()
                other_near.close()
                successors.append(Noted(os.dup2(third_near.fileno(), number)))
                poller.watch(successors[0], wanted)

        first, second = Noted(near.fileno(), take_over), Noted(other_near.fileno())
        poller.watch(first, READ)
        poller.watch(second, ERRORS)
        far.sendall(b"x")
        reset(other_far)
        loop.call_later(0.1, loop.stop)
        loop.run_forever()
        assert first.calls == ["readable"]
        if not second.calls:  # the kernel told of the first one first
            assert successors[0].calls == []
        poller.watch(first, FORGET)
        poller.watch(successors[0], FORGET)
        os.close(successors[0].fd)
    poller.close()
    loop.close()
