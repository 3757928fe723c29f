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

import aiohttp
from yarl import URL

from clojarsd.core.errors import Failed
from clojarsd.core.health import Result
from clojarsd.core.names import Address
from clojarsd.system.own_connections import OwnConnections, OwnSocket

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
        own: told of the connections that nobody but the instance itself may answer. Those of `tcp` are reset at once,
            and wait for no answer.
    """

    def __init__(self, own: OwnConnections | None = None) -> None:
        self._own = own if own is not None else OwnConnections()

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(force_close=True, limit=0, socket_factory=self._make_socket)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": "clojarsd"},
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def _make_socket(self, where: tuple[Any, ...]) -> socket.socket:
        made = OwnSocket(self._own, where[0])
        _made.get().append(made)
        return made

    async def http(self, check: Check, address: Address) -> Result:
        """Pass when a GET of the path is answered with one of the statuses in time. Redirects are not followed."""

        sockets: list[OwnSocket] = []
        _made.set(sockets)

        async def ask() -> Result:
            began = time.monotonic()
            url = URL(f"http://{address}{check.path}", encoded=True)  # as it stands in the settings
            async with self._session.get(url, allow_redirects=False) as answer:
                took = time.monotonic() - began
                for made in sockets:
                    made.is_over()
                if answer.status in check.status:
                    return Result(True, f"{answer.status} in {took * 1000:.0f} ms", took)
                expected = " or ".join(str(status) for status in sorted(check.status))
                return Result(False, f"{address} answered {answer.status} (expected {expected})", took)

        return await _within(check.timeout, address, ask)

    async def tcp(self, check: Check, address: Address) -> Result:
        """Pass when a connection is accepted in time."""

        async def ask() -> Result:
            began = time.monotonic()
            _, writer = await asyncio.open_connection(address.host, address.port)
            took = time.monotonic() - began
            is_itself = writer.get_extra_info("sockname") == writer.get_extra_info("peername")
            writer.transport.abort()  # a reset leaves the instance nothing to wait for
            if is_itself:  # the kernel gave it the very port that it asks for, and TCP lets both ends be one
                return Result(False, f"{address} refused", took)
            return Result(True, f"connected in {took * 1000:.0f} ms", took)

        return await _within(check.timeout, address, ask)


async def _within(seconds: float, address: Address, ask: Callable[[], Awaitable[Result]]) -> Result:
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


_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Trouble of this process, which says nothing about the instance."""


def _reason(address: Address, error: OSError) -> str:
    """Why a connection came to nothing: `127.0.0.1:8001 refused`.

    Raises:
        Failed: because of this process, not of the instance.
    """
    if error.errno in _OURS:
        raise Failed(f"cannot check {address}: {os.strerror(error.errno).lower()}") from error
    if error.errno == errno.ECONNREFUSED:
        return f"{address} refused"
    if error.errno == errno.ECONNRESET:
        return f"{address} reset the connection"
    return f"{address}: {os.strerror(error.errno).lower() if error.errno else error}"
