"""The loop whose wait serves a poller: neither the loop's own work nor the poller's waits for the other's."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from clojarsd.system.poller import FORGET, READ
from clojarsd.system.relay_loop import RelayLoop
from tests.support.sockets import DEADLINE_S, tcp_pair

LONG = 10 * DEADLINE_S


class Served:
    """A subject that reads what comes, and then calls."""

    def __init__(self, end: socket.socket, on_bytes: Callable[[], None]) -> None:
        self.fd = end.fileno()
        self.watched = FORGET
        self._end = end
        self._on_bytes = on_bytes

    def readable(self) -> None:
        self._end.recv(100)
        self._on_bytes()

    def ending(self) -> None:
        self.readable()

    def writable(self) -> None:
        pass

    def broken(self) -> None:
        pass


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    far, near = tcp_pair()
    near.setblocking(False)
    yield far, near
    far.close()
    near.close()


@pytest.fixture
def loop(ends: tuple[socket.socket, socket.socket]) -> Iterator[RelayLoop]:
    """Closed before the ends, as what it watches must be open."""
    loop = RelayLoop()
    yield loop
    loop.poller.close()
    loop.close()


def test_what_a_subject_schedules_is_done_at_once(loop: RelayLoop, ends: tuple[socket.socket, socket.socket]) -> None:
    """Also while the loop waits for a time that is far away, or for nothing."""
    far, near = ends
    done: list[str] = []

    def heard() -> None:
        loop.call_soon(done.append, "soon")
        loop.call_later(0.001, done.append, "later")
        loop.call_later(0.002, loop.stop)

    loop.poller.watch(Served(near, heard), READ)
    far.sendall(b"x")
    loop.run_forever()
    distant = loop.call_later(LONG, done.append, "never")
    far.sendall(b"x")
    loop.run_forever()
    distant.cancel()
    assert done == ["soon", "later"] * 2


def test_a_subject_can_stop_the_loop(loop: RelayLoop, ends: tuple[socket.socket, socket.socket]) -> None:
    far, near = ends
    loop.poller.watch(Served(near, loop.stop), READ)
    far.sendall(b"x")
    loop.run_forever()


def test_timers_are_not_late_while_there_is_always_something_to_read(
    loop: RelayLoop, ends: tuple[socket.socket, socket.socket]
) -> None:
    far, near = ends
    loop.poller.watch(Served(near, lambda: far.sendall(b"x")), READ)
    far.sendall(b"x")
    loop.call_later(0.02, loop.stop)
    loop.run_forever()


def test_the_loops_own_readers_are_served_beside_the_poller(
    loop: RelayLoop, ends: tuple[socket.socket, socket.socket]
) -> None:
    far, near = ends
    read_end, write_end = os.pipe()
    loop.poller.watch(Served(near, lambda: far.sendall(b"x")), READ)
    far.sendall(b"x")
    loop.add_reader(read_end, loop.stop)
    loop.call_later(0.01, os.write, write_end, b"x")
    loop.run_forever()
    assert os.read(read_end, 10) == b"x"
    assert loop.remove_reader(read_end)
    os.close(read_end)
    os.close(write_end)


def test_a_subject_that_fails_is_reported_and_stops_nobody(
    loop: RelayLoop, ends: tuple[socket.socket, socket.socket]
) -> None:
    far, near = ends
    reported: list[object] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def fail() -> None:
        loop.call_soon(loop.stop)
        raise LookupError("here")

    loop.poller.watch(Served(near, fail), READ)
    far.sendall(b"x")
    loop.run_forever()
    assert [str(error) for error in reported] == ["here"]


def test_tasks_and_streams_run_on_it() -> None:
    """As on any loop: connections, time-outs, threads, children."""

    async def go() -> bytes:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(3))
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server, asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            writer.write(await asyncio.to_thread(lambda: b"abc"))
            said = await reader.read()
            writer.close()
            await writer.wait_closed()
        child = await asyncio.create_subprocess_exec("true")
        assert await child.wait() == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        return said

    with asyncio.Runner(loop_factory=RelayLoop) as runner:
        assert runner.run(go()) == b"abc"


def test_an_error_of_the_loop_itself_is_told_before_anything_is_undone(
    loop: RelayLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory has run out the next act may crash the interpreter, so who gives some back must come before it."""
    told: list[tuple[Exception, bool]] = []
    short = MemoryError()

    def turn(timeout: float) -> None:
        raise short

    loop.failed = lambda error: told.append((error, loop.is_running()))
    monkeypatch.setattr(loop._waiting, "select", turn)
    with pytest.raises(MemoryError):
        loop.run_forever()
    monkeypatch.undo()
    assert told == [(short, True)]
