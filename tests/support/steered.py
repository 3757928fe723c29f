"""Listening sockets whose connections tell where they arrived, clients that never stop, and a steered pair."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from clojarsd.core.names import Address, Role
from clojarsd.core.steering import Steered
from clojarsd.system import bpf
from clojarsd.system.steering import KernelSteering
from tests.support.namespaces import BPF_FS
from tests.support.waiting import PATIENCE

BACKLOG = 1024
P, B = Role.PRIMARY, Role.BACKUP
HTTP = Steered("http", (Address("127.0.0.1", 8080), Address("::1", 8080)))
LINE = Steered("line", (Address("127.0.0.1", 8700),))
PINS = BPF_FS / "clojarsd" / "test"


def listening(host: str = "127.0.0.1", port: int = 0, *, v6_only: bool = False) -> socket.socket:
    """A listening socket. An IPv6 one takes IPv4 too, as those of a JVM do, unless told otherwise."""
    if ":" not in host:
        return socket.create_server((host, port), backlog=BACKLOG)
    return socket.create_server((host, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=not v6_only)


def reached(host: str, port: int, among: Mapping[str, socket.socket]) -> str:
    """The name of the listening socket at which a new connection to that address arrives; `refused` if it does not."""
    try:
        client = socket.create_connection((host, port), PATIENCE)
    except ConnectionRefusedError:
        return "refused"
    with client:
        client.sendall(b"x")  # a readable listener is not enough: it might be somebody else's connection
        readable, _, _ = select.select(among.values(), [], [], PATIENCE)
        (arrived,) = readable
        arrived.accept()[0].close()
        return next(name for name, one in among.items() if one is arrived)


class Clients:
    """What a client in a loop has seen. Attributes: answers: how many by whom; failed: each error, as text."""

    def __init__(self) -> None:
        self.answers: dict[str, int] = {}
        self.failed: list[str] = []
        self._changed = threading.Condition()
        self._ended = threading.Event()

    def ask(self, host: str, port: int) -> None:
        """Connect again and again, until `end`."""
        while not self._ended.is_set():
            try:
                with socket.create_connection((host, port), PATIENCE) as line:
                    name = line.recv(64).decode()
                with self._changed:
                    self.answers[name] = self.answers.get(name, 0) + 1
                    self._changed.notify_all()
            except OSError as error:
                self.failed.append(str(error))
                return

    def more(self, count: int = 20) -> None:
        """Return when they have got that many answers more."""
        with self._changed:
            wanted = sum(self.answers.values()) + count
            assert self._changed.wait_for(lambda: self.failed or sum(self.answers.values()) >= wanted, PATIENCE)
        assert self.failed == []

    def end(self) -> None:
        self._ended.set()


@contextlib.contextmanager
def clients(host: str, port: int, among: Mapping[str, socket.socket]) -> Iterator[Clients]:
    """Two clients in a loop, and servers at the sockets that say their name. No connection has failed at the end."""
    seen = Clients()
    threads = [threading.Thread(target=seen.ask, args=(host, port)) for _ in range(2)]
    servers = [threading.Thread(target=_serve, args=(name, one)) for name, one in among.items()]
    for thread in (*servers, *threads):
        thread.start()
    try:
        yield seen
    finally:
        seen.end()
        for thread in threads:
            thread.join(PATIENCE)
        for one in among.values():
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RD)  # wakes who accepts
        for thread in servers:
            thread.join(PATIENCE)
    assert seen.failed == []


def _serve(name: str, one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            with one.accept()[0] as line:
                line.sendall(name.encode())


class Rig:
    """Steering of `http` with a primary, a backup and the daemon's own listener. Attributes: among: these, by name."""

    def __init__(self, closing: ExitStack, host: str = "127.0.0.1") -> None:
        self._closing = closing
        own = {"own": listening(port=8080), "own6": listening("::1", 8080, v6_only=True)}
        self.among = {"primary": listening(host), "backup": listening(host), **own}
        for one in self.among.values():
            closing.enter_context(one)
        self.steering = self.opened()
        self.steering.configure([HTTP])
        self.put(P)
        self.put(B)

    def opened(self) -> KernelSteering:
        steering = KernelSteering.open("test")
        self._closing.callback(steering.detach)
        return steering

    def put(self, role: Role) -> None:
        self.steering.put("http", role, [self.among[role.value]])

    def reached(self, host: str = "127.0.0.1", port: int = 8080) -> str:
        return reached(host, port, {name: one for name, one in self.among.items() if one.fileno() >= 0})


@contextlib.contextmanager
def rig(host: str = "127.0.0.1") -> Iterator[Rig]:
    with ExitStack() as closing:
        yield Rig(closing, host)


def cookie(one: socket.socket) -> int:
    return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, 57, 8), bpf.BYTE_ORDER)
