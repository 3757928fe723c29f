"""Clients that wait while nobody can serve them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable


class Hold:
    """Accepted connections in the order of their arrival, each with a deadline and watched for leaving.

    Nothing is read from them: what a client has sent stays in the kernel's queue for the instance that will serve it.

    Args:
        seconds: how long a connection may wait.
        on_give_up: called with a socket that is the callee's from there on, and the seconds it has waited, or None when
            the client has left.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        on_give_up: Callable[[socket.socket, float | None], None],
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._on_give_up = on_give_up
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def keep(self, client: socket.socket) -> None:
        """Let the client wait; the socket belongs to the hold until it is taken or given up."""
        self._waiting[client] = self._loop.call_later(self._seconds, self._expire, client)
        self._loop.add_reader(client.fileno(), self._look, client)

    def take_all(self) -> list[socket.socket]:
        """Every waiting client, first come first; they are the caller's from here on."""
        clients = list(self._waiting)
        for client in clients:
            self._release(client)
        return clients

    def _look(self, client: socket.socket) -> None:
        """The client has sent something, which may wait, or nothing but its end: then it waits no more."""
        try:
            left = not client.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            left = True
        if left:
            self._release(client)
            self._on_give_up(client, None)
        else:
            self._loop.remove_reader(client.fileno())  # readable from now on: looking again would only spin

    def _expire(self, client: socket.socket) -> None:
        self._release(client)
        self._on_give_up(client, self._seconds)

    def _release(self, client: socket.socket) -> None:
        self._waiting.pop(client).cancel()
        self._loop.remove_reader(client.fileno())
