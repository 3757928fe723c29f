"""Clients that wait while nobody can serve them."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable

from clojarsd.core.end_reason import EndReason
from clojarsd.runtime.dial import Client
from clojarsd.system.poller import ERRORS, FORGET, READ, Poller
from clojarsd.system.sockets import waited_in_backlog


class Hold:
    """Accepted connections in the order of their arrival, each with a deadline and watched for leaving.

    Nothing is read from them: what a client has sent stays in the kernel's queue for the instance that will serve it.

    Args:
        poller: what they are watched with; attached to the loop here.
        on_give_up: called with a client whose socket is the callee's from there on, and whether it has left or waited
            as long as it may.

    Attributes:
        seconds: how long one that comes from here on may wait, counted from when it came, also into the backlog.
        not_before: instant of the loop before which nobody is given up.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        seconds: float,
        on_give_up: Callable[[Client, EndReason], None],
    ) -> None:
        self._loop = loop
        self._poller = poller
        self.seconds = seconds
        self._on_give_up = on_give_up
        self.not_before = 0.0
        self._places: dict[Client, _Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def clients(self) -> list[Client]:
        """Those who wait, in their order; they stay the hold's."""
        return list(self._places)

    def keep(self, client: Client) -> None:
        """Let the client wait; its socket belongs to the hold until it is taken or given up."""
        if client.give_up_at is None:
            waited = waited_in_backlog(client.socket) if client.is_new else 0.0  # who had an instance has not waited
            client.give_up_at = self._loop.time() + self.seconds - waited
        place = self._places[client] = _Place(self, client, self._timer(client))
        self._poller.attach(self._loop)
        self._poller.watch(place, READ)

    def patient_until(self, not_before: float) -> None:
        """Give nobody up before that instant of the loop, who comes later included."""
        self.not_before = not_before
        for client, place in self._places.items():
            place.timer.cancel()
            place.timer = self._timer(client)

    def take(self, most: int | None = None) -> list[Client]:
        """The clients that came first, at most that many; they are the caller's from here on."""
        clients = list(itertools.islice(self._places, most))
        for client in clients:
            self._release(client)
        return clients

    def look(self, place: _Place) -> None:
        """The client has sent something, which may wait, or nothing but its end or a reset: then it waits no more."""
        try:
            left = not place.client.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            left = True
        if left:
            self.left(place.client)
        else:
            self._poller.watch(place, ERRORS)  # readable from now on: looking again would only spin

    def left(self, client: Client) -> None:
        """The client has gone."""
        self._release(client)
        self._on_give_up(client, EndReason.LEFT)

    # From one process to another.

    def freeze(self) -> list[Client]:
        """Watch nobody and give nobody up until `unfreeze`; those who wait, in their order."""
        for place in self._places.values():
            place.timer.cancel()
            self._poller.watch(place, FORGET)
        return list(self._places)

    def thaw(self, client: Client) -> None:
        """Let one who waits in another process wait here, after those who are here, not yet watched."""
        timer = self._timer(client)
        timer.cancel()
        self._places[client] = _Place(self, client, timer)

    def unfreeze(self) -> None:
        """Go on after `freeze` or `thaw`."""
        self._poller.attach(self._loop)
        for client, place in self._places.items():
            place.timer = self._timer(client)
            self._poller.watch(place, READ)

    def _timer(self, client: Client) -> asyncio.TimerHandle:
        assert client.give_up_at is not None
        return self._loop.call_at(max(client.give_up_at, self.not_before), self._expire, client)

    def _expire(self, client: Client) -> None:
        self._release(client)
        self._on_give_up(client, EndReason.TURNED_AWAY)

    def _release(self, client: Client) -> None:
        place = self._places.pop(client)
        place.timer.cancel()
        self._poller.watch(place, FORGET)


class _Place:
    """One client's place in the hold, as the poller sees it."""

    __slots__ = ("_hold", "client", "fd", "timer", "watched")

    def __init__(self, hold: Hold, client: Client, timer: asyncio.TimerHandle) -> None:
        self.client = client
        self.fd = client.socket.fileno()
        self.timer = timer
        self.watched = FORGET
        self._hold = hold

    def readable(self) -> None:
        """Bytes have come, or the end of them, or a reset."""
        self._hold.look(self)

    def ending(self) -> None:
        """Bytes may have come, and the end or a reset behind them."""
        self._hold.look(self)

    def writable(self) -> None:
        """Never asked for."""

    def broken(self) -> None:
        """It was reset after it had sent something."""
        self._hold.left(self.client)
