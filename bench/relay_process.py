"""The smallest daemon around `Session`: accepts, dials, relays. Run as `python -m bench.relay_process BACKEND_PORT`.

Prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import os
import socket
import sys

import uvloop

from clojarsd.system.relay import EndReason, RelayResources, Session

ACCEPTS = 64
"""Connections accepted in one turn of the loop."""


class Acceptor:
    """Gives each client of the listener a session with the backend."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: socket.socket, backend: tuple[str, int]) -> None:
        self._loop = loop
        self._listener = listener
        self._backend = backend
        self._resources = RelayResources(reset_flush=10.0, move_flush=5.0, max_pipes=16)
        self._sessions: set[Session] = set()
        loop.add_reader(listener.fileno(), self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(ACCEPTS):
                client, _ = self._listener.accept()
                client.setblocking(False)
                self._dial(client)

    def _dial(self, client: socket.socket) -> None:
        """Connect. On loopback the handshake is over when connect returns, which the second call tells."""
        instance = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if instance.connect_ex(self._backend) == errno.EINPROGRESS and instance.connect_ex(self._backend) in (
            errno.EALREADY,
            errno.EINPROGRESS,
        ):
            self._loop.add_writer(instance.fileno(), self._dialled, client, instance)
        else:
            self._relay(client, instance)

    def _dialled(self, client: socket.socket, instance: socket.socket) -> None:
        self._loop.remove_writer(instance.fileno())
        self._relay(client, instance)

    def _relay(self, client: socket.socket, instance: socket.socket) -> None:
        session = Session(self._loop, client, instance, self._resources, quickack=False, on_end=self._forget)
        self._sessions.add(session)
        session.start()

    def _forget(self, session: Session, _reason: EndReason) -> None:
        self._sessions.discard(session)

    def close(self) -> None:
        self._loop.remove_reader(self._listener.fileno())
        for session in list(self._sessions):
            session.cut()
        self._resources.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend_port", type=int)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    arguments = parser.parse_args()
    new_loop = uvloop.new_event_loop if arguments.loop == "uvloop" else asyncio.new_event_loop
    with (
        contextlib.closing(new_loop()) as loop,
        socket.create_server(("127.0.0.1", 0), backlog=4096) as listener,
    ):
        listener.setblocking(False)
        acceptor = Acceptor(loop, listener, ("127.0.0.1", arguments.backend_port))
        loop.add_reader(sys.stdin.fileno(), lambda: os.read(sys.stdin.fileno(), 1) or loop.stop())
        gc.collect()
        gc.freeze()
        print(listener.getsockname()[1], flush=True)
        loop.run_forever()
        acceptor.close()


if __name__ == "__main__":
    main()
