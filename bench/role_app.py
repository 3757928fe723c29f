"""An instance that says who it is: each answer carries the role and the path that was asked for.

Run by its path, with `--port N --role WORD`; serves until a signal ends it. `GET /health` is answered at once, anything
else after `--delay` seconds; every answer closes its connection. A request may come in any number of pieces. With
`--count FILE` that file holds how many connections were accepted and how many have ended in this life, as two numbers
of 8 bytes: it outlives a kill. It listens after `--start` seconds: a JVM takes its time, and how long the primary is
away decides what others do meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

COUNTS = struct.Struct("=QQ")
ACCEPTS = 64
LONGEST = 65536
"""Bytes of a request; what is longer is dropped."""


class App:
    """One listener and its connections, in one thread."""

    def __init__(self, listener: socket.socket, role: str, delay: float, tell: Callable[[int, int], None]) -> None:
        self._listener = listener
        self._role = role
        self._delay = delay
        self._tell = tell
        self._epoll = select.epoll()
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._open: dict[int, tuple[socket.socket, bytearray]] = {}
        self._due: deque[tuple[float, socket.socket, str]] = deque()
        self._accepted = self._ended = 0

    def serve(self) -> None:
        """Answer for ever."""
        while True:
            timeout = max(self._due[0][0] - time.monotonic(), 0.0) if self._due else None
            for fd, _ in self._epoll.poll(timeout):
                if fd == self._listener.fileno():
                    self._accept()
                else:
                    self._read(fd)
            while self._due and self._due[0][0] <= time.monotonic():
                _, connection, path = self._due.popleft()
                self._end(connection, answer(self._role, path))

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(ACCEPTS):
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._open[connection.fileno()] = (connection, bytearray())
                self._accepted += 1
                self._tell(self._accepted, self._ended)
                self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _read(self, fd: int) -> None:
        connection, request = self._open[fd]
        try:
            came = connection.recv(4096)
        except OSError:
            came = b""
        request += came
        if came and b"\r\n\r\n" not in request and len(request) < LONGEST:
            return
        self._epoll.unregister(fd)
        del self._open[fd]
        words = request.split(b" ", 2)
        if not came or len(words) < 3:
            self._end(connection, b"")
        elif words[1] == b"/health":
            self._end(connection, answer(self._role, "health"))
        else:
            self._due.append((time.monotonic() + self._delay, connection, words[1][1:].decode()))

    def _end(self, connection: socket.socket, said: bytes) -> None:
        with connection, contextlib.suppress(OSError):
            connection.send(said)
        self._ended += 1
        self._tell(self._accepted, self._ended)


def answer(role: str, path: str) -> bytes:
    """The whole answer of that role to a request for that path, which begins after its slash."""
    body = f"{role} {path}\n".encode()
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def counts(path: Path) -> tuple[int, int]:
    """How many connections that instance accepted in its last life, and how many of them have ended."""
    accepted, ended = COUNTS.unpack(path.read_bytes())
    return accepted, ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--role", required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--start", type=float, default=0.0)
    parser.add_argument("--count", type=Path)
    arguments = parser.parse_args()
    time.sleep(arguments.start)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", arguments.port), backlog=1024))
        listener.setblocking(False)
        tell: Callable[[int, int], None] = lambda *_: None  # noqa: E731 - it has nothing to say
        if arguments.count is not None:
            arguments.count.write_bytes(COUNTS.pack(0, 0))
            file = stack.enter_context(arguments.count.open("r+b"))
            count = stack.enter_context(mmap.mmap(file.fileno(), COUNTS.size))
            tell = lambda *both: COUNTS.pack_into(count, 0, *both)  # noqa: E731 - one line is all
        App(listener, arguments.role, arguments.delay, tell).serve()


if __name__ == "__main__":
    main()
