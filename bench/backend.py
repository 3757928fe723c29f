"""The server behind every target: small answers from one epoll loop, bulk from a thread for each connection.

Run as `python -m bench.backend`; prints its port, serves until its standard input ends, or with `--port N` until a
signal comes.

========================== ==========================================================
``GET /small``             a short answer, and the connection stays
``GET /last``              the same answer, and the connection is closed
``GET /bytes/N``           N bytes, nothing before them, and the connection is closed
``PUT /bytes/N``           then N bytes from the client: a short answer, and it is closed
========================== ==========================================================
"""

from __future__ import annotations

import argparse
import contextlib
import select
import socket
import sys
import threading

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 120\r\n\r\n" + b"." * 120
BLOCK = bytes(1 << 18)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="serve this one until a signal comes")
    port = parser.parse_args().port
    with socket.create_server(("127.0.0.1", port or 0), backlog=4096) as listener:
        listener.setblocking(False)
        print(listener.getsockname()[1], flush=True)
        serve(listener, until_stdin_ends=port is None)


def serve(listener: socket.socket, *, until_stdin_ends: bool) -> None:
    """Answer for ever, or until standard input ends."""
    connections: dict[int, socket.socket] = {}
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    if until_stdin_ends:
        epoll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
    while True:
        for fd, _ in epoll.poll():
            connection = connections.get(fd)
            if connection is not None:
                if not answer(connection, epoll):
                    del connections[fd]
            elif fd == listener.fileno():
                accept(listener, epoll, connections)
            else:
                return


def accept(listener: socket.socket, epoll: select.epoll, connections: dict[int, socket.socket]) -> None:
    with contextlib.suppress(BlockingIOError):
        for _ in range(64):
            connection, _ = listener.accept()
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections[connection.fileno()] = connection
            epoll.register(connection.fileno(), select.EPOLLIN)


def answer(connection: socket.socket, epoll: select.epoll) -> bool:
    """Answer what came. False when the loop has no more to do with the connection."""
    try:
        request = connection.recv(4096, socket.MSG_PEEK)
        if request.startswith(b"GET /small"):
            connection.recv(len(request))
            connection.send(ANSWER)
            return True
        if request.startswith(b"GET /last"):
            connection.recv(len(request))
            connection.send(ANSWER)
            request = b""
    except ConnectionError:
        request = b""
    epoll.unregister(connection.fileno())
    if not request:
        connection.close()
        return False
    connection.setblocking(True)
    threading.Thread(target=bulk, args=(connection, request), daemon=True).start()
    return False


def bulk(connection: socket.socket, request: bytes) -> None:
    """Carry out a `/bytes/N` request and close."""
    head = request[: request.index(b"\r\n\r\n") + 4]
    size = int(head.split(b" ", 2)[1].removeprefix(b"/bytes/"))
    with connection, contextlib.suppress(ConnectionError):
        connection.recv(len(head))
        if head.startswith(b"GET"):
            while size > 0:
                size -= connection.send(BLOCK[: min(size, len(BLOCK))] if size < len(BLOCK) else BLOCK)
            return
        buffer = bytearray(1 << 20)
        while size > 0:
            count = connection.recv_into(buffer)
            if not count:
                return
            size -= count
        connection.sendall(ANSWER)


if __name__ == "__main__":
    main()
