"""Requests to an instance that is to become warm: GET, one after the other, over one connection that is kept."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from clojarsd.core.health import Result
from clojarsd.core.names import Backend, UnixAddress
from clojarsd.system.own_connections import OwnConnections, OwnSocket
from clojarsd.system.probe import AnnouncingTcp, AnnouncingUnix, asked_within

PASSES = range(200, 400)
"""Statuses of real answers; redirects are such, and are not followed."""


class WarmRequests:
    """Made for one warm-up; its block closes the connection.

    Args:
        own: told of the connections, which nobody but the instance itself may answer.
        announced: whether a connection begins with the PROXY header of one that is no client's.
        host: what the requests are for, where that is not the address.
    """

    def __init__(
        self, address: Backend, own: OwnConnections, *, announced: bool = False, host: str | None = None
    ) -> None:
        self._address = address
        self._own = own
        self._announced = announced
        self._headers = {"User-Agent": "clojarsd", **({"Host": host} if host is not None else {})}
        self._sockets: list[OwnSocket] = []

    async def __aenter__(self) -> Self:
        connector: aiohttp.BaseConnector
        if isinstance(self._address, UnixAddress):
            connector = (AnnouncingUnix if self._announced else aiohttp.UnixConnector)(self._address.path, limit=1)
        else:
            kind = AnnouncingTcp if self._announced else aiohttp.TCPConnector
            connector = kind(limit=1, socket_factory=self._make_socket)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for made in self._sockets:
            made.is_left()
        await self._session.close()

    def _make_socket(self, where: tuple[Any, ...]) -> OwnSocket:
        self._sockets.append(OwnSocket(self._own, where[0]))
        return self._sockets[-1]

    async def get(self, path: str, within: float) -> Result:
        """The whole answer, body and all, as what was seen; a status from 200 to 399 passes.

        Args:
            within: seconds.

        Raises:
            Failed: this process has nothing left to ask with.
        """
        where = "localhost" if isinstance(self._address, UnixAddress) else self._address

        async def ask() -> Result:
            began = time.monotonic()
            url = URL(f"http://{where}{path}", encoded=True)  # as it stands in the settings
            async with self._session.get(url, allow_redirects=False) as answer:
                async for _ in answer.content.iter_any():
                    pass
            took = time.monotonic() - began
            for made in self._sockets:
                made.is_over()
            self._sockets.clear()
            return Result(answer.status in PASSES, f"{path} answered {answer.status}", took)

        result = await asked_within(within, self._address, ask)
        text = result.text if result.text.startswith(path) else f"{path}: {result.text}"
        return Result(result.passed, text, result.took)
