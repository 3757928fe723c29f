"""Messages with descriptors between two processes of ours, over a pair of SOCK_SEQPACKET Unix sockets.

A message is a JSON object. It travels in parts, each a packet: a byte that says whether more parts follow, a piece of
the JSON, and at most `MOST_IN_A_PART` descriptors, which is what the kernel takes at a time (SCM_MAX_FD in unix(7)).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import json
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

MOST_IN_A_PART = 253
PART_SIZE = 1 << 15
"""Bytes of JSON in a packet: well below what a socket's send buffer holds by default."""
MOST_IN_A_MESSAGE = 1 << 16
"""Descriptors that one message may bring. More is a mistake or malice."""
LONGEST = 1 << 24
"""Bytes of one message."""
MOST_QUEUED = 2000
"""Parts that wait for a peer that does not read; with one more it is given up."""
PARTS_A_TURN = 64
_LAST, _MORE = b".", b"+"
_ROOM = socket.CMSG_SPACE(MOST_IN_A_PART * array.array("i").itemsize)


class Descriptors:
    """The descriptors that came with a message. Those that nobody takes are closed when the message has been told."""

    def __init__(self, numbers: Sequence[int] = ()) -> None:
        self._numbers = list(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, count: int | None = None) -> list[int]:
        """The first so many that are left, or all; they are the caller's from here on, and close on exec."""
        count = len(self._numbers) if count is None else count
        taken, self._numbers = self._numbers[:count], self._numbers[count:]
        return taken

    def add(self, numbers: Sequence[int]) -> None:
        """Take charge of more of them."""
        self._numbers.extend(numbers)

    def close(self) -> None:
        """Close those that were not taken."""
        for number in self.take():
            os.close(number)


class Channel:
    """One end. Whoever makes it closes it; nothing of it blocks, and no task runs inside.

    Args:
        end: a connected SOCK_SEQPACKET socket; the channel's from here on.
        on_message: called with each message and its descriptors, in their order.
        on_lost: called once, with the reason in words, when the peer has gone, does not read what is sent, or says what
            cannot be understood. Not called after `close`. The channel is closed already.
    """

    def __init__(
        self,
        end: socket.socket,
        on_message: Callable[[dict[str, Any], Descriptors], None],
        on_lost: Callable[[str], None],
    ) -> None:
        end.setblocking(False)
        self._end = end
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._parts = bytearray()
        self._brought = Descriptors()
        self._is_open = True
        self._is_left_alone = False
        self._again: asyncio.Handle | None = None
        self._loop.add_reader(end.fileno(), self._read)

    @property
    def is_open(self) -> bool:
        """Whether messages can still be sent: neither closed nor lost."""
        return self._is_open

    @property
    def is_clear(self) -> bool:
        """Whether nothing waits to be taken by the peer."""
        return not self._queue

    def is_left(self) -> bool:
        """Whether the peer has closed its end, also when that has not been read yet."""
        if not self._is_open:
            return True
        poll = select.poll()
        poll.register(self._end.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a message, now or when the peer has read enough; nothing happens when the channel is not open.

        Args:
            descriptors: open ones; they remain the caller's, who may close them at once.
        """
        if not self._is_open:
            return
        text = json.dumps(message, separators=(",", ":")).encode()
        numbers = list(descriptors)
        count = max(-(-len(text) // PART_SIZE), -(-len(numbers) // MOST_IN_A_PART), 1)
        for part in range(count):
            mark = _LAST if part == count - 1 else _MORE
            piece = mark + text[part * PART_SIZE : (part + 1) * PART_SIZE]
            self._put(piece, numbers[part * MOST_IN_A_PART : (part + 1) * MOST_IN_A_PART])

    def close(self) -> None:
        """Close this end, once; what waited to be sent is lost, and what came in part, too."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        if self._again is not None:
            self._again.cancel()
        self._end.close()
        self._brought.close()
        for _, numbers in self._queue:
            _close_all(numbers)
        self._queue.clear()

    def _lose(self, reason: str) -> None:
        if self._is_open:
            self.close()
            self._loop.call_soon(self._on_lost, reason)  # not out of `send`: its caller is in the middle of something

    # Sending.

    def _put(self, piece: bytes, numbers: list[int]) -> None:
        if not self._is_open:
            return
        if not self._queue:
            sent = self._send(piece, numbers)
            if sent or not self._is_open:
                return
            self._loop.add_writer(self._end.fileno(), self._flush)
        if len(self._queue) >= MOST_QUEUED:
            self._lose("it does not read what it is sent")
            return
        kept: list[int] = []
        try:
            kept.extend(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 0) for number in numbers)
        except OSError as error:
            _close_all(kept)
            self._lose(f"cannot keep descriptors for it: {_reason(error)}")
            return
        self._queue.append((piece, kept))

    def _flush(self) -> None:
        while self._queue:
            piece, numbers = self._queue[0]
            if not self._send(piece, numbers):
                return
            self._queue.popleft()
            _close_all(numbers)
        if self._is_open:
            self._loop.remove_writer(self._end.fileno())

    def _send(self, piece: bytes, numbers: list[int]) -> bool:
        """Whether the part was sent, or nobody is left to get it; if not, it has to wait, or the channel is lost."""
        if self._is_left_alone:
            return True
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))] if numbers else []
        try:
            self._end.sendmsg([piece], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            self._is_left_alone = True  # its end will be read, after what it has said before
        except OSError as error:
            self._lose(_reason(error))
            return False
        return True

    # Receiving.

    def _read(self) -> None:
        """Take what has come, to the last packet: a loop may tell of a peer that has gone only once."""
        self._again = None
        for _ in range(PARTS_A_TURN):
            if not (self._is_open and self._receive()):
                return
        if self._is_open:
            self._again = self._loop.call_soon(self._read)

    def _receive(self) -> bool:
        """Take one packet. Whether there may be more."""
        try:
            piece, rights, flags, _ = self._end.recvmsg(PART_SIZE + 2, _ROOM, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True  # it left without reading all; what it had sent comes now, and then its end
        except OSError as error:
            self._lose(_reason(error))
            return False
        self._brought.add(_numbers_in(rights))
        if flags & socket.MSG_CTRUNC:
            self._lose("descriptors of it were lost: this process may open no more")
        elif not piece:
            self._lose("it has gone")
        elif flags & socket.MSG_TRUNC or len(self._parts) > LONGEST or len(self._brought) > MOST_IN_A_MESSAGE:
            self._lose("it sends more than a message holds")
        else:
            self._parts += piece[1:]
            if piece[:1] == _LAST:
                self._tell()
        return self._is_open

    def _tell(self) -> None:
        text, self._parts = bytes(self._parts), bytearray()
        brought, self._brought = self._brought, Descriptors()
        try:
            message = json.loads(text)
        except ValueError:
            message = None
        with contextlib.closing(brought):
            if isinstance(message, dict):
                self._on_message(message, brought)
            else:
                self._lose("what it says is no message")


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets for a channel each, closed on exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _numbers_in(rights: Sequence[tuple[int, int, bytes]]) -> list[int]:
    numbers = array.array("i")
    for level, kind, carried in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(carried[: len(carried) - len(carried) % numbers.itemsize])
    return list(numbers)


def _close_all(numbers: Sequence[int]) -> None:
    for number in numbers:
        os.close(number)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
