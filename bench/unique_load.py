"""Clients who all ask something else, so many a second, whatever becomes of the others; and what each has got.

Run as `python -m bench.unique_load PORT RATE PATIENCE`. Every request has a connection and a number of its own, which
the answer must carry. New ones are begun until standard input ends; then those under way come to their end, and one
line of JSON says of each: number, begun, ended (seconds on the machine's monotonic clock), who answered (a role, or
null), and what went wrong (or null).
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ROLES = ("primary", "backup")
GOOD = re.compile(rb"HTTP/1.1 200 ")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. began, ended: monotonic seconds; role: who answered rightly, None when nobody did; error: why."""

    number: int
    began: float
    ended: float
    role: str | None
    error: str | None


@dataclass(slots=True)
class _Open:
    number: int
    began: float
    connection: socket.socket
    received: bytes = b""


class UniqueClients:
    """All requests of one run, in one thread."""

    def __init__(self, port: int, rate: float, patience: float) -> None:
        self.over: list[Asked] = []
        self._port = port
        self._pause = 1 / rate
        self._patience = patience
        self._epoll = select.epoll()
        self._open: dict[int, _Open] = {}

    def run(self, ends_with: int) -> None:
        """Ask until that descriptor is readable, then wait for what is under way."""
        self._epoll.register(ends_with, select.EPOLLIN | select.EPOLLHUP)
        next_at, number = time.monotonic(), 0
        asking = True
        while asking or self._open:
            now = time.monotonic()
            while asking and next_at <= now:
                self._begin(number)
                number, next_at = number + 1, next_at + self._pause
            timeout = max(next_at - time.monotonic(), 0.0) if asking else self._patience
            for fd, events in self._epoll.poll(timeout):
                if fd == ends_with:
                    asking = False
                    self._epoll.unregister(ends_with)
                else:
                    self._look(self._open[fd], events)
            self._give_up()

    def _begin(self, number: int) -> None:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        one = _Open(number, time.monotonic(), connection)
        self._open[connection.fileno()] = one
        code = connection.connect_ex(("127.0.0.1", self._port))
        if code not in (0, errno.EINPROGRESS):
            self._end(one, None, os.strerror(code))
        else:
            self._epoll.register(connection.fileno(), select.EPOLLOUT)

    def _look(self, one: _Open, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                one.connection.send(b"GET /%d HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n" % one.number)
                self._epoll.modify(one.connection.fileno(), select.EPOLLIN)
                return
            came = one.connection.recv(4096)
        except OSError as error:
            self._end(one, None, error.strerror or repr(error))
            return
        one.received += came
        if not came:
            role = who(one.received, one.number)
            self._end(one, role, None if role else f"ended after {len(one.received)} bytes")

    def _give_up(self) -> None:
        """End those who have waited too long; the oldest come first."""
        now = time.monotonic()
        while self._open and now - (oldest := next(iter(self._open.values()))).began > self._patience:
            self._end(oldest, None, f"no answer within {self._patience:g} s")

    def _end(self, one: _Open, role: str | None, error: str | None) -> None:
        del self._open[one.connection.fileno()]
        one.connection.close()
        self.over.append(Asked(one.number, one.began, time.monotonic(), role, error))


def who(received: bytes, number: int) -> str | None:
    """The role that a whole answer to that number comes from; None when it is not one."""
    head, _, body = received.partition(b"\r\n\r\n")
    return next((role for role in ROLES if GOOD.match(head) and body == f"{role} {number}\n".encode()), None)


class UniqueLoad:
    """The load as a process of its own, seen from outside. Its block ends with the process gone."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def finish(self) -> list[Asked]:
        """What every request has got."""
        shown, _ = self._process.communicate()
        return [Asked(*one) for one in json.loads(shown)]


@contextmanager
def loading(port: int, rate: float, patience: float) -> Iterator[UniqueLoad]:
    """So many requests a second on the port, from now on."""
    command = [sys.executable, "-m", "bench.unique_load", str(port), str(rate), str(patience)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield UniqueLoad(process)
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float)
    parser.add_argument("patience", type=float)
    arguments = parser.parse_args()
    clients = UniqueClients(arguments.port, arguments.rate, arguments.patience)
    gc.disable()
    clients.run(sys.stdin.fileno())
    print(json.dumps([[one.number, one.began, one.ended, one.role, one.error] for one in clients.over]))


if __name__ == "__main__":
    main()
