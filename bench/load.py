"""The clients that are in Python: what they take does not matter. The measuring ones are in `native/load.c`."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

SMALL = b"GET /small HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
TIMEOUT_S = 60.0


def dial(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


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
