"""A connect to more than a single TCP address: several addresses in turn, a Unix socket, from a source of ours."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Address, Backend, Role, UnixAddress
from clojarsd.runtime.dial import Client, Dial
from clojarsd.system.sockets import EXHAUSTED

UNIX_PAUSE = 0.01
"""Seconds between two connects to a Unix socket whose backlog is full: the kernel says so instead of waiting."""
_IP_BIND_ADDRESS_NO_PORT = 24
"""Of linux/in.h: leave the choice of the local port to connect, which knows the other side: so ports last longer."""


class WideDial:
    """As `Dial`, and may be used in its place. Each of the addresses gets its share of the time.

    Attributes:
        client: on whose behalf.
        role: which instance.
    """

    __slots__ = (
        "_deadline",
        "_instance",
        "_left",
        "_loop",
        "_on_end",
        "_source",
        "_timeout",
        "_timer",
        "client",
        "role",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: Client,
        role: Role,
        addresses: Sequence[Backend],
        source: str | None,
        timeout: float,
        on_end: Callable[[WideDial, socket.SocketType | OSError], None],
    ) -> None:
        self.client = client
        self.role = role
        self._loop = loop
        self._left = list(addresses)
        self._source = source
        self._timeout = timeout
        self._deadline = loop.time() + timeout
        self._on_end = on_end
        self._instance: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Connect; `on_end` is called once, with the connected socket or the last error, perhaps at once."""
        address = self._left.pop(0)
        try:
            instance = _open(address, self._source)
        except OSError as error:
            self._failed(error)
            return
        self._instance = instance
        share = max(self._deadline - self._loop.time(), 0.0) / (len(self._left) + 1)
        where = address.path if isinstance(address, UnixAddress) else (address.host, address.port)
        self._connect(where, self._loop.time() + share)

    def abandon(self) -> Client:
        """Stop connecting; the client, whose socket the caller owns from here on. `on_end` is not called."""
        self._close()
        return self.client

    def _connect(self, where: str | tuple[str, int], until: float) -> None:
        assert self._instance is not None
        self._timer = None
        try:
            number = self._instance.connect_ex(where)
        except (OSError, UnicodeError) as error:  # a host that is no number names nothing here
            self._failed(OSError(errno.EHOSTUNREACH, str(error)))
            return
        if number == errno.EAGAIN and isinstance(where, str):
            if self._loop.time() < until:
                self._timer = self._loop.call_later(UNIX_PAUSE, self._connect, where, until)
            else:
                self._expire()
        elif number == errno.EINPROGRESS:
            self._loop.add_writer(self._instance.fileno(), self._writable)
            self._timer = self._loop.call_at(until, self._expire)
        else:
            self._settle(number)

    def _writable(self) -> None:
        assert self._instance is not None
        self._settle(self._instance.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _expire(self) -> None:
        self._failed(OSError(errno.ETIMEDOUT, f"no connection within {self._timeout:g} s"))

    def _settle(self, number: int) -> None:
        """A connect has come to its end."""
        assert self._instance is not None
        if not number:
            number = _what_is_wrong(self._instance)
        if number:
            self._failed(OSError(number, os.strerror(number)))
            return
        instance, self._instance = self._instance, None
        self._unwatch(instance)
        self._on_end(self, instance)

    def _failed(self, error: OSError) -> None:
        """Try the next address, unless it is we who cannot."""
        self._close()
        if self._left and error.errno not in EXHAUSTED:
            self.start()
        else:
            self._on_end(self, error)

    def _close(self) -> None:
        if self._instance is not None:
            instance, self._instance = self._instance, None
            self._unwatch(instance)
            instance.close()

    def _unwatch(self, instance: socket.socket) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_writer(instance.fileno())


def make_dial(
    loop: asyncio.AbstractEventLoop,
    client: Client,
    role: Role,
    plan: FrontendPlan,
    on_end: Callable[[Dial | WideDial, socket.SocketType | OSError], None],
) -> Dial | WideDial:
    """A connect to the instance as the plan wants it, which is to be started."""
    if (direct := direct_addresses(plan).get(role)) is not None:
        return Dial(loop, client, role, direct, plan.connect_timeout, on_end)
    addresses = (plan.backends[role], *plan.others.get(role, ()))
    return WideDial(loop, client, role, addresses, plan.source, plan.connect_timeout, on_end)


def direct_addresses(plan: FrontendPlan) -> dict[Role, Address]:
    """Of the instances that are reached by one connect to one TCP address."""
    return {
        role: address
        for role, address in plan.backends.items()
        if isinstance(address, Address) and not plan.others.get(role) and plan.source is None
    }


def _open(address: Backend, source: str | None) -> socket.socket:
    """A non-blocking socket that can connect there.

    Raises:
        OSError: there is none to be had, or it cannot come from the source.
    """
    if isinstance(address, UnixAddress):
        instance = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        instance.setblocking(False)
        return instance
    is_ipv6 = ":" in address.host
    if source is not None and is_ipv6 != (":" in source):
        raise OSError(errno.EAFNOSUPPORT, f"cannot connect to {address} from {source}: not of the same kind")
    instance = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        instance.setblocking(False)
        if source is not None:
            instance.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            instance.bind((source, 0))
    except OSError as error:
        instance.close()
        number = error.errno or errno.EINVAL
        raise OSError(number, f"cannot connect to {address} from {source}: {os.strerror(number).lower()}") from error
    return instance


def _what_is_wrong(instance: socket.socket) -> int:
    """The error of a connect that has succeeded and is none; 0: it is one."""
    try:
        there = instance.getpeername()
        own = instance.getsockname()
    except OSError:
        return errno.ENOTCONN  # it has failed, and somebody else was told why
    is_itself = instance.family != socket.AF_UNIX and own == there
    return errno.ECONNREFUSED if is_itself else 0  # see dial.py
