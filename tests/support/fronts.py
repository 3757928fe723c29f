"""A frontend on a loop of its own, with two instances that the test plays; and running out of descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import uvloop

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.history import EventName
from clojarsd.core.names import Address, Backend, Role
from clojarsd.runtime.budget import Budget
from clojarsd.runtime.frontend import Frontend
from clojarsd.runtime.listeners import Listeners
from tests.support.sockets import DEADLINE_S, Rig

P, B = Role.PRIMARY, Role.BACKUP
LOOPBACK = "127.0.0.1"
NEVER = 10 * DEADLINE_S
"""Seconds that must not pass in a test."""
_STANDARD = 3
"""The first descriptor that is not one of the standard streams, which are always open."""


class Instance:
    """A port that refuses until `listen` is called, and then gets what the test sends.

    Args:
        dual: whether it listens for IPv6 and IPv4 with one socket, as a JVM does.
    """

    def __init__(self, *, dual: bool = False) -> None:
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._socket = socket.create_server(("" if dual else LOOPBACK, 0), family=family, dualstack_ipv6=dual)
        self.address = Address(LOOPBACK, self._socket.getsockname()[1])
        self._fillers: list[socket.socket] = []
        self.listen()

    def listen(self, backlog: int = 1024) -> None:
        """Let connects come."""
        self._socket.listen(backlog)
        self._socket.settimeout(DEADLINE_S)

    def refuse(self) -> None:
        """Refuse connects, and keep the port from others."""
        self._socket.close()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((self.address.host, self.address.port))

    def fill(self) -> None:
        """Fill the accept queue, so that no connect comes to its end."""
        self.listen(0)
        while not self._fillers or self._is_connected(self._fillers[-1]):
            self._fillers.append(filler := socket.socket())
            filler.setblocking(False)
            filler.connect_ex((self.address.host, self.address.port))

    def drop_fillers(self) -> None:
        """Take what `fill` has put into the queue out of it, and let connects come again."""
        for filler in self._fillers:
            filler.close()
        self.listen()

    @staticmethod
    def _is_connected(end: socket.socket) -> bool:
        try:
            end.getpeername()
        except OSError:
            return False
        return True

    def accept(self) -> socket.socket:
        """The next connection."""
        end, _ = self._socket.accept()
        end.settimeout(DEADLINE_S)
        return end

    def accept_at_once(self) -> socket.socket:
        """The next connection, which must be there by now."""
        self._socket.setblocking(False)
        return self.accept()

    def close(self) -> None:
        """Let go of the port."""
        for filler in self._fillers:
            filler.close()
        self._socket.close()


class Past:
    """A history that only remembers."""

    def __init__(self) -> None:
        self.events: list[EventName] = []
        self.told: list[tuple[str, dict[str, Any]]] = []

    def record(
        self, event: EventName, message: str, role: Role | None = None, by: str | None = None, **detail: Any
    ) -> None:
        self.events.append(event)
        self.told.append((message, detail))


class Front:
    """A frontend that listens and accepts, and its two instances.

    Attributes:
        frontend: what is under test; touch it by `rig.call` only.
        happened: the events in the history; told: their sentences and details.
        doubts: the roles that could not be connected to.
    """

    def __init__(
        self,
        rig: Rig,
        *,
        begin: bool = True,
        primary: bool = True,
        backup: bool = True,
        dual: bool = False,
        **plan: Any,
    ) -> None:
        self.rig = rig
        self.instances = {role: Instance(dual=dual) for role in Role}
        self.primary, self.backup = self.instances[P], self.instances[B]
        self.plan = make_plan({role: instance.address for role, instance in self.instances.items()}, **plan)
        self.doubts: list[Role] = []
        past = Past()
        self.happened, self.told = past.events, past.told
        self._clients: list[socket.socket] = []
        self.since: dict[Role, float | None] = {P: None, B: None}
        self.frontend = rig.call(lambda: Frontend(self.plan, rig.resources, Budget(20_000)))
        self.frontend.attach(past)
        self.frontend.doubt = self.doubts.append
        rig.call(lambda: self.frontend.listen(listeners_of(self.plan)))
        self.address = rig.call(self.frontend.addresses)[0]
        self.eligible(primary=primary, backup=backup)
        if begin:
            rig.call(self.frontend.begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.rig.call(self.frontend.close)
        for client in self._clients:
            client.close()
        for instance in self.instances.values():
            instance.close()
        if kind is None:
            counts = self.rig.call(lambda: self.frontend.view().connections)
            assert dict(counts) == {P: 0, B: 0, None: 0}

    def eligible(self, *, primary: bool, backup: bool, down: Collection[Role] = (), is_ordered: bool = False) -> None:
        """Say who may get connections, from now on where that is new, who is down, and whether by order."""

        def tell() -> None:
            for role, may in ((P, primary), (B, backup)):
                if may != (self.since[role] is not None):
                    self.since[role] = self.rig.loop.time() if may else None
            self.frontend.set_eligible(self.since, is_ordered=is_ordered, down=down)

        self.rig.call(tell)

    def client(self, said: bytes = b"") -> socket.socket:
        """A client that has connected and said something. It is closed at the end, unless the test does so."""
        client = socket.create_connection((self.address.host, self.address.port), DEADLINE_S)
        self._clients.append(client)
        client.sendall(said)
        return client

    def connections(self) -> tuple[int, int, int]:
        """How many are open to the primary, to the backup, and held."""
        counts = self.rig.call(lambda: self.frontend.view().connections)
        return counts[P], counts[B], counts[None]

    def accepted(self) -> tuple[int, int, int]:
        """How many the primary and the backup have got, and had to wait, so far."""
        counts = self.rig.call(lambda: self.frontend.view().accepted_total)
        return counts[P], counts[B], counts[None]

    def until(self, primary: int = 0, backup: int = 0, held: int = 0) -> None:
        """Wait until exactly so many are open."""

        def seen() -> tuple[int, int, int]:
            counts = self.frontend.view().connections
            return counts[P], counts[B], counts[None]

        self.rig.until(lambda: seen() == (primary, backup, held), seen)

    def until_happened(self, *events: EventName) -> None:
        """Wait until these events and no others have been recorded."""
        self.rig.until(lambda: self.happened == list(events), lambda: self.happened)

    def active(self) -> Role | None:
        """Who gets new connections."""
        return self.rig.call(lambda: self.frontend.view().active)


def listeners_of(plan: FrontendPlan) -> list[socket.socket]:
    """Listening sockets for the plan, the caller's."""
    listeners = Listeners()
    listeners.change({plan.name: plan})
    return listeners.of(plan.name)


def make_plan(backends: Mapping[Role, Backend], **changes: Any) -> FrontendPlan:
    """A plan in which nothing ends by itself, with the changes."""
    values: dict[str, Any] = {
        "name": "line",
        "listen": (Address(LOOPBACK, 0),),
        "backends": backends,
        "movable": False,
        "mode_reason": None,
        "quickack": False,
        "connect_timeout": NEVER,
        "hold": NEVER,
        "hold_connections": 512,
        "drain": NEVER,
        "drain_idle": NEVER,
        "failback": 0.0,
    }
    return FrontendPlan(**{**values, **changes})


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[Callable[[], None]]:
    """Let this process open so many descriptors more and no others, until the block ends or the result is called."""
    gc.collect()  # what earlier tests have left to the collector must not become free meanwhile
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit, left = _STANDARD, count  # no higher than it must be: what threads close above it helps nobody
    while left:
        left -= not is_open(limit)
        limit += 1

    def restore() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield restore
    finally:
        restore()


def is_open(descriptor: int) -> bool:
    """Whether this process has it open."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def pending_timers() -> int:
    """How many timers wait on the running loop. To be called from none of them: uvloop's would count itself."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, asyncio.BaseEventLoop):
        return sum(not timer.cancelled() for timer in loop._scheduled)  # type: ignore[attr-defined]
    kinds = uvloop.loop.TimerHandle, uvloop.loop.UVTimer  # type: ignore[attr-defined]
    waiting = 0
    for one in gc.get_objects():
        if isinstance(one, kinds[0]):
            has = gc.get_referents(one)
            waiting += loop in has and any(isinstance(part, kinds[1]) for part in has)  # one that is over has no timer
    return waiting
