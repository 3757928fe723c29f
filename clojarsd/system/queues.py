"""Looking into the kernel's queues of a connection without taking anything out."""

from __future__ import annotations

import fcntl
import re
import select
import socket
import struct
import termios

LOOK_SIZE = 1 << 14
"""Bytes looked at to find the start of a request; a longer request line is not recognised."""
REQUEST_LINE = re.compile(rb"[A-Z]{3,20} [^ \r\n]+ HTTP/1\.[01]\r\n")


def unread(end: socket.SocketType) -> int:
    """Bytes that were received and not yet read, 0 when the socket is gone."""
    return _queued(end, termios.FIONREAD)


def unacknowledged(end: socket.SocketType) -> int:
    """Bytes that were sent and not yet acknowledged by the other side's kernel, 0 when the socket is gone."""
    return _queued(end, termios.TIOCOUTQ)


def request_waits(end: socket.SocketType, buffer: memoryview) -> bool:
    """Whether what waits to be read begins with a complete HTTP/1.x request line.

    Args:
        buffer: where to look at it; its start is overwritten.
    """
    if not unread(end):
        return False  # looking at an empty queue would take the news of a reset, and leave an end to be read
    count = end.recv_into(buffer, LOOK_SIZE, socket.MSG_PEEK)
    return REQUEST_LINE.match(buffer[:count]) is not None


def has_news(end: socket.SocketType) -> bool:
    """Whether bytes, an end or a reset wait to be read."""
    poll = select.poll()
    poll.register(end.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _queued(end: socket.SocketType, which: int) -> int:
    try:
        answer = fcntl.ioctl(end.fileno(), which, b"\0\0\0\0")
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])
