"""One health check with a deadline."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, Self
from weakref import WeakSet

import aiohttp
from yarl import URL

from clojarsd.core.errors import Failed
from clojarsd.core.health import Result
from clojarsd.core.names import Address, Backend, UnixAddress
from clojarsd.core.proxy_protocol import LOCAL
from clojarsd.system.own_connections import OwnConnections, OwnSocket
from clojarsd.system.sockets import EXHAUSTED

UNIX_PAUSE = 0.01
"""Seconds between two connects to a Unix socket whose backlog is full."""
_made: ContextVar[list[OwnSocket]] = ContextVar("made")
"""The sockets that were made for the check of this context."""


class Check(Protocol):
    """What one check asks, apart from where."""

    @property
    def path(self) -> str:
        """The path of the request, for http."""

    @property
    def status(self) -> frozenset[int] | tuple[int, ...]:
        """The answers that pass, for http."""

    @property
    def timeout(self) -> float:
        """Seconds until the check has failed."""


class Prober:
    """Carries checks out, each over a connection of its own; closes what it opened when its block ends.

    Args:
        own: told of the connections that nobody but the instance itself may answer. Those of `tcp` wait for no answer,
            and are reset at once, unless they are announced.

    Attributes:
        own: those connections, for whoever makes others of the kind.
    """

    def __init__(self, own: OwnConnections | None = None) -> None:
        self.own = own if own is not None else OwnConnections()

    async def __aenter__(self) -> Self:
        self._sessions: dict[tuple[str | None, bool], aiohttp.ClientSession] = {}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in self._sessions.values():
            await session.close()

    def _make_socket(self, where: tuple[Any, ...]) -> socket.socket:
        made = OwnSocket(self.own, where[0])
        _made.get().append(made)
        return made

    async def http(self, check: Check, address: Backend, *, announced: bool = False, host: str | None = None) -> Result:
        """Pass when a GET of the path is answered with one of the statuses in time. Redirects are not followed.

        Args:
            announced: whether the PROXY header of a connection that is no client's goes before the request.
            host: what the request is for, where that is not the address.
        """
        headers = {"Host": host} if host is not None else None
        path = address.path if isinstance(address, UnixAddress) else None
        where = address if path is None else "localhost"

        sockets: list[OwnSocket] = []
        _made.set(sockets)

        async def ask() -> Result:
            began = time.monotonic()
            url = URL(f"http://{where}{check.path}", encoded=True)  # as it stands in the settings
            async with self._session(path, announced).get(url, headers=headers, allow_redirects=False) as answer:
                took = time.monotonic() - began
                for made in sockets:
                    made.is_over()
                if answer.status in check.status:
                    return Result(True, f"{answer.status} in {took * 1000:.0f} ms", took)
                expected = " or ".join(str(status) for status in sorted(check.status))
                return Result(False, f"{address} answered {answer.status} (expected {expected})", took)

        try:
            result = await asked_within(check.timeout, address, ask)
            if not result.passed and any(made.was_taken for made in sockets):
                return Result(False, f"{address} has not accepted the connection", result.took)
            return result
        finally:
            for made in sockets:
                made.is_left()

    async def tcp(self, check: Check, address: Backend, *, announced: bool = False) -> Result:
        """Pass when a connection is accepted in time.

        Args:
            announced: whether the PROXY header of a connection that is no client's is sent.
        """

        async def ask() -> Result:
            began = time.monotonic()
            if isinstance(address, UnixAddress):
                await _connect_to_unix(address.path, LOCAL if announced else b"")
                took = time.monotonic() - began
                return Result(True, f"connected in {took * 1000:.0f} ms", took)
            _, writer = await asyncio.open_connection(address.host, address.port)
            took = time.monotonic() - began
            name = writer.get_extra_info("sockname")
            is_itself = name == writer.get_extra_info("peername")
            if announced and not is_itself:
                self.own.give_up(Address.of_socket(name), address.port)
                writer.write(LOCAL)
                writer.close()  # without a reset, which might overtake the header
            else:
                writer.transport.abort()  # a reset leaves the instance nothing to wait for
            if is_itself:  # the kernel gave it the very port that it asks for, and TCP lets both ends be one
                return Result(False, f"{address} refused", took)
            return Result(True, f"connected in {took * 1000:.0f} ms", took)

        return await asked_within(check.timeout, address, ask)

    def _session(self, path: str | None, announced: bool) -> aiohttp.ClientSession:
        """What sends requests by TCP, or to the Unix socket at the path; made when it is first wanted."""
        session = self._sessions.get((path, announced))
        if session is None:
            connector: aiohttp.BaseConnector
            if path is not None:
                connector = (AnnouncingUnix if announced else aiohttp.UnixConnector)(path, force_close=True, limit=0)
            else:
                kind = AnnouncingTcp if announced else aiohttp.TCPConnector
                connector = kind(force_close=True, limit=0, socket_factory=self._make_socket)
            session = self._sessions[path, announced] = aiohttp.ClientSession(
                connector=connector,
                headers={"User-Agent": "clojarsd"},
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return session


class _Announcing(aiohttp.BaseConnector):
    """Sends on each connection that it is no client's, once, before the first request."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._told: WeakSet[asyncio.Protocol] = WeakSet()

    async def connect(self, *arguments: Any, **named: Any) -> aiohttp.connector.Connection:
        """A connection on which that was said."""
        connection = await super().connect(*arguments, **named)
        if connection.transport is not None and connection.protocol not in self._told:
            assert connection.protocol is not None
            self._told.add(connection.protocol)
            connection.transport.write(LOCAL)
        return connection


class AnnouncingTcp(_Announcing, aiohttp.TCPConnector):
    """Connects by TCP."""


class AnnouncingUnix(_Announcing, aiohttp.UnixConnector):
    """Connects to a Unix socket."""


async def _connect_to_unix(path: str, said: bytes) -> None:
    """Return when the socket there has accepted a connection and what is said on it. Raises OSError.

    By hand, because loops take it for a connection when the kernel says that the backlog is full.
    """
    with socket.socket(socket.AF_UNIX) as end:
        end.setblocking(False)
        while (number := end.connect_ex(path)) == errno.EAGAIN:  # noqa: ASYNC110  # nobody is told when there is room
            await asyncio.sleep(UNIX_PAUSE)
        if number:
            raise OSError(number, os.strerror(number))
        end.send(said)


async def asked_within(seconds: float, address: Backend, ask: Callable[[], Awaitable[Result]]) -> Result:
    """What `ask` says, or a failure that says why there was no answer."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            return await ask()
    except TimeoutError:
        text = f"{address} did not answer within {seconds:g} s"
    except aiohttp.ServerDisconnectedError:
        text = f"{address} closed the connection without an answer"
    except OSError as error:  # aiohttp's connector errors are such, too
        text = _reason(address, getattr(error, "os_error", error))
    except aiohttp.ClientError as error:
        text = f"{address} did not answer in HTTP ({type(error).__name__})"
    return Result(False, text, time.monotonic() - began)


def _reason(address: Backend, error: OSError) -> str:
    """Why a connection came to nothing: `127.0.0.1:8001 refused`.

    Raises:
        Failed: because of this process, not of the instance.
    """
    if error.errno in EXHAUSTED:
        raise Failed(f"cannot check {address}: {os.strerror(error.errno).lower()}") from error
    if error.errno == errno.ECONNREFUSED:
        return f"{address} refused"
    if error.errno == errno.ECONNRESET:
        return f"{address} reset the connection"
    return f"{address}: {os.strerror(error.errno).lower() if error.errno else error}"
