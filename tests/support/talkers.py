"""Instances that a test talks to directly: real processes that answer some clients at once and others when told.

Run as a program it is such an instance: it listens where it is told, says so with a line, answers `!` with `A` at
once and `?` when a line comes in on its standard input, and closes a connection at `.` and at its end.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

BUFFER = 1 << 16


class Talker:
    """The test's side of one. Made by `talking`."""

    def __init__(self, host: str, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, host, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.host = host

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def answer(self) -> None:
        """Have it answer what it owes."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """Have it stand still: clients get no further than into its accept queue."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextlib.contextmanager
def talking(host: str = "127.0.0.1", port: int = 0) -> Iterator[Talker]:
    """One that listens there."""
    talker = Talker(host, port)
    try:
        yield talker
    finally:
        talker.close()


def main() -> None:
    """Be one, until killed."""
    listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64)
    print(listener.getsockname()[1], flush=True)
    owed: list[socket.socket] = []
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                elif key.fd == 0:
                    if not os.read(0, BUFFER):
                        return
                    for client in owed:
                        client.sendall(b"A")
                    owed.clear()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    if not hear(key.fileobj, owed):
                        selector.unregister(key.fileobj)
                        key.fileobj.close()


def hear(client: socket.socket, owed: list[socket.socket]) -> bool:
    """Do what the client wants; whether the connection goes on."""
    try:
        said = client.recv(BUFFER)
    except OSError:
        said = b""
    if not said or b"." in said:
        if client in owed:
            owed.remove(client)
        return False
    client.sendall(b"A" * said.count(b"!"))
    owed.extend([client] * said.count(b"?"))
    return True


if __name__ == "__main__":
    main()
