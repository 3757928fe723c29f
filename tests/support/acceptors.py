"""Real processes that listen, and accept as the test wants: not at all, one by one, slowly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from clojarsd.core.names import Address
from clojarsd.system.instance_sockets import Listening, find_listening
from tests.support.sockets import DEADLINE_S

PROGRAM = """
import os, socket, sys, time
backlog, pause = int(sys.argv[1]), float(sys.argv[2])
def listen(port):
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    made.listen(backlog)
    return made
listener = listen(0)
port = listener.getsockname()[1]
print(port, flush=True)
kept = []
for line in sys.stdin:
    word = line.strip()
    if word == "one":
        kept.append(listener.accept()[0])
    elif word == "reopen":
        listener.close()
        listener = listen(port)
    elif word == "close":
        listener.close()
    elif word == "serve":  # for ever: an answer for each connection, with a pause between two accepts
        print(word, flush=True)
        while True:
            taken = listener.accept()[0]
            with taken:
                try:
                    taken.sendall(b"served")
                except OSError:
                    pass
            time.sleep(pause)
    print(word, flush=True)
"""


class Acceptor:
    """A process that listens; it accepts what it is told to.

    Attributes:
        process: in a session of its own.
        port: where it listens.
    """

    def __init__(self, backlog: int, pause: float) -> None:
        command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(backlog), str(pause)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self._clients: list[socket.socket] = []

    @classmethod
    @contextmanager
    def running(cls, backlog: int = 50, pause: float = 0.0) -> Iterator[Self]:
        """One; afterwards it is gone, with its clients.

        Args:
            pause: seconds between two accepts while it serves.
        """
        made = cls(backlog, pause)
        try:
            yield made
        finally:
            made.end()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def listening(self) -> Listening:
        """Its listening socket as others find it."""
        (found,) = find_listening([self.pid], self.port)
        return found

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    def do(self, word: str) -> None:
        """Let it accept `one`, `reopen` or `close` its listener, or `serve` from now on; returns when it has begun."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == word

    def client(self, said: bytes = b"") -> socket.socket:
        """A client that is in its accept queue, with what it has said; closed at the end."""
        client = socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)
        self._clients.append(client)
        client.sendall(said)
        return client

    def dialling(self) -> socket.socket:
        """A client that may have no room in its accept queue; closed at the end."""
        client = socket.socket()
        self._clients.append(client)
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", self.port))
        return client

    def stop(self) -> None:
        """Have it stand still; one that is about to may still accept who comes, so it has stopped when this returns."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        for client in self._clients:
            client.close()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
