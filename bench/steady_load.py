"""A load that goes on for hours and notices everything: what fails, what is cut, and how long anybody waits.

Run as `python -m bench.steady_load PORT`: so many connections that stay, each asking a few times a second; one request
after the other with a connection of its own; one download without end. For each line on its standard input it prints,
as JSON, what was seen since the line before; it ends with its standard input.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

from bench.backend import ANSWER
from bench.load import LAST, SMALL, dial

ASK_EVERY_S = 0.25
"""Between two questions on one of the connections that stay."""
REST_S = 0.005
"""After each request with a connection of its own."""
SIP = 1 << 18
SIP_EVERY_S = 0.005
"""The download takes at most so many bytes at a time, so often: that shows pauses, and leaves the machine to others."""
TIMEOUT_S = 30.0


@dataclass
class Seen:
    """What has happened to one kind of load.

    Attributes:
        cut: connections that ended though nobody was to end them.
        longest_s: the longest that anything took to come.
    """

    answered: int = 0
    failed: int = 0
    cut: int = 0
    longest_s: float = 0.0
    last_error: str | None = None

    def take(self, began: float) -> None:
        self.answered += 1
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def fail(self, error: Exception, *, cut: bool) -> None:
        self.failed += 1
        self.cut += cut
        self.last_error = repr(error)


class KeptConnections:
    """Connections that stay; at most one question is open on each."""

    def __init__(self, port: int, count: int) -> None:
        self.seen = Seen()
        self._port = port
        self._count = count
        self._epoll = select.epoll()
        self._open: dict[int, socket.socket] = {}
        self._asked: dict[int, float] = {}
        self._missing: dict[int, int] = {}

    def waits_since(self) -> float | None:
        """The instant of the oldest question without an answer, or None."""
        return min(list(self._asked.values()), default=None)

    def run(self) -> None:
        while True:
            self._connect()
            for fd in list(self._open):
                if fd not in self._asked and fd in self._open:
                    self._ask(fd)
                self._hear(ASK_EVERY_S / self._count)
            self._give_up_on_the_silent()

    def _connect(self) -> None:
        """Open what is missing, until one cannot be opened."""
        while len(self._open) < self._count:
            try:
                connection = dial(self._port)
            except OSError as error:
                self.seen.fail(error, cut=False)
                self._hear(ASK_EVERY_S)
                return
            self._add(connection)

    def _add(self, connection: socket.socket) -> None:
        self._open[connection.fileno()] = connection
        self._missing[connection.fileno()] = 0
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _ask(self, fd: int) -> None:
        self._asked[fd], self._missing[fd] = time.monotonic(), len(ANSWER)
        try:
            self._open[fd].sendall(SMALL)
        except OSError as error:
            self._replace(fd, error)

    def _hear(self, seconds: float) -> None:
        """Take the answers of the next so many seconds."""
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            for fd, _ in self._epoll.poll(left):
                try:
                    self._receive(fd)
                except OSError as error:
                    self._replace(fd, error)

    def _receive(self, fd: int) -> None:
        came = len(self._open[fd].recv(4096))
        if not came:
            raise ConnectionError("closed by the other side")
        self._missing[fd] -= came
        if self._missing[fd] < 0:
            raise ConnectionError("more came than was asked for")
        if not self._missing[fd]:
            self.seen.take(self._asked.pop(fd))

    def _give_up_on_the_silent(self) -> None:
        for fd, asked in list(self._asked.items()):
            if time.monotonic() - asked > TIMEOUT_S:
                self._replace(fd, TimeoutError(f"no answer within {TIMEOUT_S:g} s"))

    def _replace(self, fd: int, error: Exception) -> None:
        self.seen.fail(error, cut=True)
        self._asked.pop(fd, None)
        self._epoll.unregister(fd)
        self._open.pop(fd).close()


class NewConnections:
    """One request after the other, each with a connection of its own."""

    def __init__(self, port: int) -> None:
        self.seen = Seen()
        self._port = port
        self._began: float | None = None

    def waits_since(self) -> float | None:
        return self._began

    def run(self) -> None:
        while True:
            self._began = began = time.monotonic()
            try:
                with dial(self._port) as connection:
                    connection.sendall(LAST)
                    answer = b"".join(iter(lambda connection=connection: connection.recv(4096), b""))  # type: ignore[misc]
                if answer != ANSWER:
                    raise ConnectionError(f"{len(answer)} of {len(ANSWER)} bytes came")
                self.seen.take(began)
            except OSError as error:
                self.seen.fail(error, cut=False)
            self._began = None
            time.sleep(REST_S)


class Download:
    """One transfer without end, begun again when it is cut."""

    def __init__(self, port: int) -> None:
        self.seen = Seen()
        self._port = port
        self._began: float | None = None

    def waits_since(self) -> float | None:
        return self._began

    def run(self) -> None:
        buffer = bytearray(SIP)
        while True:
            try:
                with dial(self._port) as connection:
                    connection.sendall(b"GET /bytes/%d HTTP/1.1\r\n\r\n" % (1 << 50))
                    while True:
                        self._began = began = time.monotonic()
                        if not connection.recv_into(buffer):
                            raise ConnectionError("closed by the other side")
                        self.seen.take(began)
                        self._began = None
                        time.sleep(SIP_EVERY_S)
            except OSError as error:
                self.seen.fail(error, cut=True)


Load: TypeAlias = KeptConnections | NewConnections | Download


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=100)
    arguments = parser.parse_args()
    loads: dict[str, Load] = {
        "kept": KeptConnections(arguments.port, arguments.connections),
        "new": NewConnections(arguments.port),
        "bulk": Download(arguments.port),
    }
    for name, load in loads.items():
        threading.Thread(target=load.run, name=name, daemon=True).start()
    await_all(lambda: all(load.seen.answered for load in loads.values()))
    for _ in sys.stdin:
        print(json.dumps({name: asdict(taken(load)) for name, load in loads.items()}), flush=True)


def taken(load: Load) -> Seen:
    """What the load has seen, what it waits for now included; it begins to count anew."""
    seen, load.seen = load.seen, Seen()
    since = load.waits_since()
    return seen if since is None else replace(seen, longest_s=max(seen.longest_s, time.monotonic() - since))


def await_all(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not fact():
        if time.monotonic() > deadline:
            raise SystemExit("not every kind of load was answered")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
