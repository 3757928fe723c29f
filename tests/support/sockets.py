"""Real TCP peers on loopback, and a relay between them that runs on a loop of its own, in a thread of its own.

The peers are blocking sockets with one generous timeout, so that a test reads as a conversation: nobody in it shares
the loop that is under test.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import queue
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from clojarsd.system.relay import EndReason, RelayResources, Session
from clojarsd.system.relay_loop import RelayLoop

T = TypeVar("T")

DEADLINE_S = 30.0 * float(os.environ.get("CLOJARSD_TEST_TIME", "1"))
"""How long anything may take that is sure to come."""
MOMENT_S = 0.2
"""How long we watch for a thing that must not come."""


def tcp_pair(*, receive_buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection: the one that dialled and the accepted one. Both block, with a timeout.

    Args:
        receive_buffer: SO_RCVBUF of the one that dialled, set before the handshake, as the window needs it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.socket()
        if receive_buffer is not None:
            dialled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        dialled.connect(listener.getsockname())
        accepted, _ = listener.accept()
    dialled.settimeout(DEADLINE_S)
    accepted.settimeout(DEADLINE_S)
    return dialled, accepted


def reset(end: socket.socket) -> None:
    """Close with a reset. What the other side's kernel has not acknowledged by now never arrives."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def wait_for(fact: Callable[[], object]) -> None:
    """Look again and again until it is so: the kernel sends no news."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not fact():
        assert time.monotonic() < give_up_at
        time.sleep(0.002)


def unacknowledged(end: socket.socket) -> int:
    """Bytes in the send queue that the other side's kernel has not acknowledged."""
    return int(struct.unpack("i", fcntl.ioctl(end.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])


def receive_exactly(end: socket.SocketType, count: int) -> bytes:
    """The next `count` bytes."""
    parts = bytearray()
    while len(parts) < count:
        part = end.recv(count - len(parts))
        assert part, f"ended after {len(parts)} of {count} bytes"
        parts += part
    return bytes(parts)


def receive_to_the_end(end: socket.socket, *, at_a_time: int = 1 << 20) -> tuple[bytes, bool]:
    """All bytes that come, and whether a reset, rather than an end, came after them."""
    parts = bytearray()
    while True:
        try:
            part = end.recv(at_a_time)
        except ConnectionResetError:
            return bytes(parts), True
        if not part:
            return bytes(parts), False
        parts += part


def stays_silent(end: socket.socket) -> bool:
    """Whether neither bytes nor an end come for a moment."""
    return not select.select([end], [], [], MOMENT_S)[0]


def fill(end: socket.socket, *, most: int) -> int:
    """Send until nothing is taken for a moment, at most `most` bytes. The number of bytes taken."""
    block = bytes(1 << 16)
    sent = 0
    while sent < most and select.select([], [end], [], MOMENT_S)[1]:
        with contextlib.suppress(BlockingIOError):
            sent += end.send(block, socket.MSG_DONTWAIT)
    return sent


def send_until_reset(end: socket.socket) -> None:
    """Send until the other side has reset the connection."""
    try:
        while True:
            end.sendall(bytes(1 << 20))
    except (ConnectionResetError, BrokenPipeError):
        return


def pause() -> None:
    """What a slow peer does between two reads. Never used to wait for a fact."""
    threading.Event().wait(MOMENT_S / 10)


def noise(size: int) -> bytes:
    """Bytes of which no part looks like another, so that a lost or doubled one shows."""
    return hashlib.shake_128(size.to_bytes(8, "big")).digest(size)


def open_descriptors() -> int:
    """How many descriptors this process has open, the one used for looking not counted."""
    return len(list(Path("/proc/self/fd").iterdir())) - 1


NewLoop = Callable[[], asyncio.AbstractEventLoop]


class Relayed:
    """One relayed connection with its two peers.

    Attributes:
        client, instance: the far ends, which the test plays.
        session: what is under test; touch it by `Rig.call` only.
    """

    def __init__(
        self,
        rig: Rig,
        *,
        quickack: bool = False,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
    ) -> None:
        self.client, near_client = tcp_pair(receive_buffer=receive_buffer)
        self.instance, near_instance = tcp_pair(receive_buffer=receive_buffer)
        for near in (near_client, near_instance):
            near.setblocking(False)
            if send_buffer is not None:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self._rig = rig
        self._ends: queue.SimpleQueue[EndReason] = queue.SimpleQueue()
        self.session = Session(
            rig.loop, near_client, near_instance, rig.resources, quickack=quickack, on_end=self._on_end
        )
        rig.call(self.session.start)

    def _on_end(self, session: Session, reason: EndReason) -> None:
        assert session is self.session
        self._ends.put(reason)

    def reason(self) -> EndReason:
        """Why it ended, once it has; on_end must have been called once."""
        reason = self._ends.get(timeout=DEADLINE_S)
        self._rig.call(lambda: None)  # whatever the loop had begun is over
        assert self._ends.empty()
        return reason

    @property
    def is_open(self) -> bool:
        """Whether on_end has not been called."""
        return self._ends.empty()

    def stays_open(self) -> bool:
        """Whether on_end is not called for a moment."""
        try:
            self._ends.put(self._ends.get(timeout=MOMENT_S))
        except queue.Empty:
            return True
        return False

    @property
    def delivered(self) -> tuple[int, int]:
        """The session's two counters, up and down."""
        return self._rig.call(lambda: (self.session.bytes_up, self.session.bytes_down))

    def cut(self) -> None:
        """Cut it from our side."""
        self._rig.call(self.session.cut)

    def close(self) -> None:
        """Cut the session if it has not ended, and close the peers, also the end that a move has handed back."""
        self.cut()
        self.session.client.close()
        self.client.close()
        self.instance.close()


Ends = tuple[socket.socket, socket.socket, EndReason]


def ends_of(relayed: Relayed, side: str) -> Ends:
    """The peer that `side` names, the other one, and what a reset by the first is called."""
    if side == "client":
        return relayed.client, relayed.instance, EndReason.CLIENT_RESET
    return relayed.instance, relayed.client, EndReason.INSTANCE_RESET


both_sides = pytest.mark.parametrize("side", ["client", "instance"])


class Rig:
    """A loop with relayed connections on it. `with Rig(new_loop) as rig` closes everything it made."""

    def __init__(
        self,
        new_loop: NewLoop,
        *,
        reset_flush: float = DEADLINE_S,
        move_flush: float = DEADLINE_S,
        max_pipes: int = 4,
    ) -> None:
        self.loop = new_loop()
        self.resources = RelayResources(
            reset_flush=reset_flush,
            move_flush=move_flush,
            max_pipes=max_pipes,
            poller=self.loop.poller if isinstance(self.loop, RelayLoop) else None,
        )
        self._complaints: list[dict[str, object]] = []
        self.loop.set_exception_handler(lambda _, context: self._complaints.append(context))
        self._relayed: list[Relayed] = []
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        for relayed in self._relayed:
            relayed.close()
        watched = self.call(lambda: len(self.resources.poller))
        lent = self.call(lambda: self.resources.pipes.lent)
        self.call(self.resources.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE_S)
        self.loop.close()
        assert not self._complaints, self._complaints
        assert (watched, lent) == (0, 0), "sessions that have ended still hold something"

    def connect(
        self, *, quickack: bool = False, receive_buffer: int | None = None, send_buffer: int | None = None
    ) -> Relayed:
        """A new client and a new instance with a relay between them.

        Args:
            receive_buffer: SO_RCVBUF of the two peers.
            send_buffer: SO_SNDBUF of the relay's two sockets.
        """
        relayed = Relayed(self, quickack=quickack, receive_buffer=receive_buffer, send_buffer=send_buffer)
        self._relayed.append(relayed)
        return relayed

    def call(self, act: Callable[[], T]) -> T:
        """What `act` returns on the loop's thread."""
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                answer.set_result(act())
            except BaseException as error:
                answer.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return answer.result(DEADLINE_S)

    def until(self, holds: Callable[[], bool], picture: Callable[[], object]) -> None:
        """Wait until `holds` does, looked at on the loop; fails with the picture seen last."""
        deadline = time.monotonic() + DEADLINE_S
        while not self.call(holds):
            if time.monotonic() > deadline:
                raise AssertionError(f"not so within {DEADLINE_S:.0f}s: {self.call(picture)!r}")
            time.sleep(0.001)  # here and not on the loop, where a timer of ours would be one of those looked at


@contextlib.contextmanager
def in_background(*acts: Callable[[], object]) -> Iterator[None]:
    """Run the acts in threads of their own; leaving the block waits for them and raises what they raised."""
    with concurrent.futures.ThreadPoolExecutor(len(acts)) as pool:
        futures = [pool.submit(act) for act in acts]
        yield
        for future in futures:
            future.result(DEADLINE_S)
