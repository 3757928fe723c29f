"""The clients: each function puts one kind of load on a port and gives one kind of number."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.backend import ANSWER, BLOCK

SMALL = b"GET /small HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
TIMEOUT_S = 60.0


def dial(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def new_connections(port: int, at_once: int, seconds: float) -> float:
    """Requests a second when each has a connection of its own and `at_once` are under way."""
    epoll = select.epoll()
    open_now: dict[int, socket.socket] = {}
    done = 0
    began = time.monotonic()
    ends_at = began + seconds

    def begin() -> None:
        connection = dial(port)
        connection.sendall(LAST)
        connection.setblocking(False)
        open_now[connection.fileno()] = connection
        epoll.register(connection.fileno(), select.EPOLLIN)

    for _ in range(at_once):
        begin()
    while open_now:
        for fd, _ in epoll.poll(TIMEOUT_S):
            connection = open_now[fd]
            if connection.recv(4096):
                continue
            epoll.unregister(fd)
            del open_now[fd]
            connection.close()
            done += 1
            if time.monotonic() < ends_at:
                begin()
    epoll.close()
    return done / (time.monotonic() - began)


def keep_alive(port: int, at_once: int, seconds: float) -> float:
    """Requests a second over `at_once` connections that stay, each asking again as soon as it is answered."""
    epoll = select.epoll()
    connections = {connection.fileno(): connection for connection in (dial(port) for _ in range(at_once))}
    for fd, connection in connections.items():
        epoll.register(fd, select.EPOLLIN)
        connection.sendall(SMALL)
    done = 0
    began = time.monotonic()
    ends_at = began + seconds
    while time.monotonic() < ends_at:
        for fd, _ in epoll.poll(TIMEOUT_S):
            connection = connections[fd]
            connection.recv(4096)
            connection.send(SMALL)
            done += 1
    rate = done / (time.monotonic() - began)
    epoll.close()
    for connection in connections.values():
        connection.close()
    return rate


def latencies(port: int, seconds: float) -> list[float]:
    """Seconds from question to answer, one at a time over one connection, in ascending order."""
    taken: list[float] = []
    with dial(port) as connection:
        ends_at = time.monotonic() + seconds
        while (began := time.monotonic()) < ends_at:
            connection.sendall(SMALL)
            received = 0
            while received < len(ANSWER):
                received += len(connection.recv(4096))
            taken.append(time.monotonic() - began)
    return sorted(taken)


def download(port: int, size: int) -> float:
    """Bytes a second of one answer of `size` bytes."""
    buffer = bytearray(1 << 20)
    with dial(port) as connection:
        began = time.monotonic()
        connection.sendall(b"GET /bytes/%d HTTP/1.1\r\n\r\n" % size)
        received = 0
        while count := connection.recv_into(buffer):
            received += count
        if received != size:
            raise RuntimeError(f"download ended after {received} of {size} bytes")
        return size / (time.monotonic() - began)


def upload(port: int, size: int) -> float:
    """Bytes a second of one request of `size` bytes, until it is answered."""
    with dial(port) as connection:
        began = time.monotonic()
        connection.sendall(b"PUT /bytes/%d HTTP/1.1\r\n\r\n" % size)
        left = size
        while left > 0:
            left -= connection.send(BLOCK[:left] if left < len(BLOCK) else BLOCK)
        if connection.recv(4096) != ANSWER:
            raise RuntimeError("upload was not answered")
        return size / (time.monotonic() - began)


@contextlib.contextmanager
def downloading(port: int) -> Iterator[None]:
    """Another process downloads without end while the block runs."""
    command = [sys.executable, "-m", "bench.load", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield
        finally:
            process.kill()


def main() -> None:
    """Download without end, and say so when the first bytes have come."""
    buffer = bytearray(1 << 20)
    with dial(int(sys.argv[1])) as connection:
        connection.sendall(b"GET /bytes/%d HTTP/1.1\r\n\r\n" % (1 << 50))
        connection.recv_into(buffer)
        print("begun", flush=True)
        while connection.recv_into(buffer):
            pass


if __name__ == "__main__":
    main()
