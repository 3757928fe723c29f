"""A client of nailgun in this process, and the sending side of scp that speaks through it.

Thousands of uploads, each of which would cost two programs and a login with `scp` and `ng`. Source of the chunks: the
protocol as nailgun 0.9.3 speaks it, seen with its own client.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Self

from tests.support.waiting import PATIENCE

HEAD = struct.Struct(">ic")
BLOCK = 64 * 1024
HEARTBEAT_S = 1.0
"""The server takes a client that has been silent for ten seconds to be gone."""


class NailgunEnded(Exception):
    """The session was over before its answer was whole; the text says how."""


class Nail:
    """One program that runs in the JVM, from the connect to its exit status.

    Attributes:
        status: the exit status, once it has come.
        errors: what it has written to its standard error.
    """

    def __init__(self, port: int, command: str, words: Sequence[str] = (), environment: Sequence[str] = ()) -> None:
        self.status: int | None = None
        self.errors = b""
        self._output = bytearray()
        self._may_send = False
        self._received = bytearray()
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(HEARTBEAT_S)
        chunks = [(b"A", word) for word in words] + [(b"E", one) for one in environment]
        chunks += [(b"D", os.getcwd()), (b"C", command)]
        self._send(b"".join(HEAD.pack(len(text.encode()), kind) + text.encode() for kind, text in chunks))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def write(self, content: bytes) -> None:
        """Give it standard input, in chunks, each when the server asks for one."""
        for start in range(0, len(content), BLOCK):
            block = content[start : start + BLOCK]
            self._until_may_send()
            self._send(HEAD.pack(len(block), b"0") + block)

    def end(self) -> int:
        """End its standard input, and return its exit status."""
        if self.status is None:
            self._send(HEAD.pack(0, b"."))
        while self.status is None:
            self._take()
        return self.status

    def read(self, count: int) -> bytes:
        """So many bytes of its standard output."""
        while len(self._output) < count:
            if self.status is not None:
                raise NailgunEnded(f"it ended with {self.status}; said {bytes(self._output)!r}, {self.errors!r}")
            self._take()
        taken = bytes(self._output[:count])
        del self._output[:count]
        return taken

    def read_line(self) -> bytes:
        """Its standard output up to the next end of a line."""
        line = b""
        while not line.endswith(b"\n"):
            line += self.read(1)
        return line

    def _until_may_send(self) -> None:
        while not self._may_send:
            if self.status is not None:
                raise NailgunEnded(f"it ended with {self.status} and took no more; said {self.errors!r}")
            self._take()
        self._may_send = False

    def _take(self) -> None:
        """Take in one chunk."""
        length, kind = HEAD.unpack(self._exactly(HEAD.size))
        payload = self._exactly(length)
        match kind:
            case b"1":
                self._output += payload
            case b"2":
                self.errors += payload
            case b"S":
                self._may_send = True
            case b"X":
                self.status = int(payload)

    def _exactly(self, count: int) -> bytes:
        waits = int(PATIENCE / HEARTBEAT_S)
        while len(self._received) < count:
            try:
                block = self._socket.recv(BLOCK)
            except TimeoutError:
                waits -= 1
                if not waits:
                    raise
                self._send(HEAD.pack(0, b"H"))
                continue
            if not block:
                raise NailgunEnded("the connection was ended")
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self._received += block
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _send(self, content: bytes) -> None:
        self._socket.sendall(content)


def acknowledged(nail: Nail) -> None:
    """Return when the receiver has acknowledged; raise with its words when it refuses."""
    if (answer := nail.read(1)) != b"\0":
        raise NailgunEnded(f"refused: {nail.read_line()!r}" if answer == b"\1" else f"not of scp: {answer!r}")


def upload(
    port: int, name: str, content: bytes, *, directory: str = ".", acknowledge: Callable[[], None] = lambda: None
) -> None:
    """Send one file; raises OSError or NailgunEnded when anything was not as it should be.

    acknowledge: called when the receiver says that the file is stored. The session may still fail after that.
    """
    with Nail(port, "clojars.scp", ["-t", directory]) as nail:
        acknowledged(nail)
        nail.write(f"C0644 {len(content)} {name}\n".encode())
        acknowledged(nail)
        nail.write(content + b"\0")
        acknowledged(nail)
        acknowledge()
        if status := nail.end():
            raise NailgunEnded(f"acknowledged, and then ended with {status}")
