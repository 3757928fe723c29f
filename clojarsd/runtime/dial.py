"""One connect to an instance on behalf of a client, with a deadline."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clojarsd.core.frozen import FrozenClient
from clojarsd.core.names import Address, Role

_IPV4, _IPV6 = int(socket.AF_INET), int(socket.AF_INET6)
_STREAM = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


@dataclass(slots=True, eq=False)
class Client:
    """A connected client without an instance. What it has sent and no instance has got is in its socket.

    Attributes:
        socket: non-blocking.
        is_new: whether it never had an instance.
        tried: the roles that could not be connected to since it was accepted, handed back or last held.
        give_up_at: loop time until when it may wait, set when it first has to.
        is_duplicated: whether another process has, or may have had, a descriptor of the same socket.
        is_announced: whether what it says begins with who the client is already (PROXY protocol).
    """

    socket: socket.SocketType
    is_new: bool = True
    tried: tuple[Role, ...] = ()
    give_up_at: float | None = None
    is_duplicated: bool = False
    is_announced: bool = False

    def freeze(self) -> FrozenClient:
        """All of it but the socket, which goes along."""
        self.is_duplicated = True
        return FrozenClient(self.is_new, self.tried, self.give_up_at, self.is_announced)

    @classmethod
    def thaw(cls, frozen: FrozenClient, descriptor: int) -> Client:
        """The same client in this process."""
        end = socket.socket(fileno=descriptor)
        end.setblocking(False)
        return cls(end, frozen.is_new, frozen.tried, frozen.give_up_at, True, frozen.is_announced)


def connect(address: Address) -> tuple[socket.SocketType, bool]:
    """A non-blocking socket to that address, and whether it is connected already, which it mostly is on this machine.

    Raises:
        OSError: it cannot be connected.
    """
    host, port = address.host, address.port
    instance = socket.SocketType(_IPV6 if ":" in host else _IPV4, _STREAM)
    # What ends the handshake goes with the first bytes, a packet less; the session sees to it when there are none.
    instance.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    try:
        number = instance.connect_ex((host, port))
    except (OSError, UnicodeError) as error:  # a host name that names nothing; errno is not the system's then
        instance.close()
        raise OSError(errno.EHOSTUNREACH, str(error)) from error
    if number == errno.EINPROGRESS:
        # on loopback the handshake is over before connect returns: no turn of the loop is spent on it
        if not _is_connected(instance):
            return instance, False
        number = 0
    if not number and _is_connected_to_itself(instance, port):
        number = errno.ECONNREFUSED
    if number:
        instance.close()
        raise OSError(number, os.strerror(number))
    return instance, True


class Dial:
    """A connect under way. The client's socket is not touched; who made the dial gets both back in `on_end`.

    Attributes:
        client: on whose behalf.
        role: which instance.
    """

    __slots__ = ("_address", "_instance", "_loop", "_on_end", "_timeout", "_timer", "client", "role")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: Client,
        role: Role,
        address: Address,
        timeout: float,
        on_end: Callable[[Dial, socket.SocketType | OSError], None],
    ) -> None:
        self.client = client
        self.role = role
        self._loop = loop
        self._address = address
        self._timeout = timeout
        self._on_end = on_end
        self._instance: socket.SocketType | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Connect; `on_end` is called once, with the connected socket or the error, perhaps before this returns."""
        try:
            instance, is_connected = connect(self._address)
        except OSError as error:
            self._on_end(self, error)
            return
        if is_connected:
            self._on_end(self, instance)
        else:
            self.wait(instance)

    def wait(self, instance: socket.SocketType) -> None:
        """Wait for the end of a connect that is under way; `on_end` is called once, later."""
        self._instance = instance
        self._loop.add_writer(instance.fileno(), self._writable, instance)
        self._timer = self._loop.call_later(self._timeout, self._expire, instance)

    def abandon(self) -> Client:
        """Stop connecting; the client, whose socket the caller owns from here on. `on_end` is not called."""
        if self._instance is not None:
            self._unwatch(self._instance)
            self._instance.close()
            self._instance = None
        return self.client

    def _writable(self, instance: socket.SocketType) -> None:
        number = instance.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not number and not _is_connected(instance):
            number = errno.ENOTCONN  # it has failed, and somebody else was told why
        self._unwatch(instance)
        self._finish(instance, OSError(number, os.strerror(number)) if number else None)

    def _expire(self, instance: socket.SocketType) -> None:
        self._unwatch(instance)
        self._finish(instance, OSError(errno.ETIMEDOUT, f"no connection within {self._timeout:g} s"))

    def _finish(self, instance: socket.SocketType, error: OSError | None) -> None:
        self._instance = None
        if error is None:
            if not _is_connected_to_itself(instance, self._address.port):
                self._on_end(self, instance)
                return
            error = OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        instance.close()
        self._on_end(self, error)

    def _unwatch(self, instance: socket.SocketType) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._loop.remove_writer(instance.fileno())


def _is_connected(instance: socket.SocketType) -> bool:
    try:
        instance.getpeername()
    except OSError:
        return False
    return True


@functools.cache
def _chosen_ports() -> range:
    """The ports that the kernel gives to who connects; all if that cannot be read. Not expected to change."""
    try:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
        return range(int(first), int(last) + 1)
    except (OSError, ValueError):
        return range(1 << 16)


def _is_connected_to_itself(instance: socket.SocketType, port: int) -> bool:
    """Whether the kernel chose the port that is dialled as the local one, too, and nobody listens there.

    TCP allows it (RFC 9293, simultaneous open). It happens once in some thousand connects to a port of the ephemeral
    range on this host, answers every client with its own words, and keeps the instance from its port.
    """
    if port not in _chosen_ports():
        return False
    try:
        local = instance.getsockname()
        return local[1] == port and bool(local == instance.getpeername())
    except OSError:
        return False  # it is reset already; reading says so
