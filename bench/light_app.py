"""The lightest instance that can be checked: one thread, one answer, and a count that outlives it.

Run by its path, with `--port N --count FILE`; serves until a signal ends it. FILE holds the number of requests for
`/health` that were ever answered, as 8 bytes; it is there before the first launch.
"""

from __future__ import annotations

import argparse
import mmap
import socket
import struct
from pathlib import Path

ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nok\n"
COUNT = struct.Struct("=Q")
SILENCE_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=Path, required=True)
    arguments = parser.parse_args()
    with (
        arguments.count.open("r+b") as file,
        mmap.mmap(file.fileno(), COUNT.size) as count,
        socket.create_server(("127.0.0.1", arguments.port), backlog=128) as listener,
    ):
        while True:
            client, _ = listener.accept()
            with client:
                serve(client, count)


def serve(client: socket.socket, count: mmap.mmap) -> None:
    """Answer the one request of this client."""
    client.settimeout(SILENCE_S)
    try:
        request = client.recv(4096)
        if request.startswith(b"GET /health "):
            COUNT.pack_into(count, 0, COUNT.unpack_from(count)[0] + 1)
        if request:
            client.sendall(ANSWER)
    except OSError:
        return  # a client that went away, or said nothing


def counted(path: Path) -> int:
    """What the count in that file has come to."""
    (number,) = COUNT.unpack(path.read_bytes())
    return int(number)


if __name__ == "__main__":
    main()
