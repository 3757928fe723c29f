"""Requests on the control socket that are about the JVM of an instance."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from aiohttp import web

from clojarsd.core.api import roles_named
from clojarsd.core.errors import Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import Role
from clojarsd.runtime.control_request import CALLER, Work, check_query, understood, watch_work
from clojarsd.runtime.control_stream import Streams, Write
from clojarsd.runtime.history import History
from clojarsd.runtime.status import Board


class Archives(Protocol):
    """Makes class-data archives."""

    def order(self, role: Role, group: asyncio.TaskGroup) -> Work:
        """Make one of what the instance runs, in the group; raises Refused when nothing was done."""


class JvmDesk:
    """Answers what is asked about JVMs. Made by the control server; nothing runs inside."""

    def __init__(self, history: History, board: Board, streams: Streams, archives: Archives | None) -> None:
        self._history = history
        self._board = board
        self._streams = streams
        self._archives = archives
        self._group: asyncio.TaskGroup

    def add_routes(self, router: web.UrlDispatcher, group: asyncio.TaskGroup) -> None:
        """Make known the paths of what there is; what is begun goes on in the group when its caller has gone."""
        self._group = group
        if self._archives is not None:
            router.add_post("/v1/jvm/{role}/cds", self._make_archive)

    async def _make_archive(self, request: web.Request) -> web.StreamResponse:
        assert self._archives is not None
        understood(lambda: check_query(request))
        names = {role: self._board.instance(role).name for role in Role}
        text = request.match_info["role"]
        (role,) = understood(lambda: roles_named(text, names, all_allowed=False))
        if (await request.read()).strip() not in (b"", b"{}"):
            raise web.HTTPBadRequest(text=f"{request.path} takes no options")
        caller, wish = CALLER.get(), f"make a class-data archive of {role.value}"
        self._history.record(EventName.ORDER, f"{caller.user} orders: {wish}", role, caller.user, pid=caller.pid)
        try:
            work = self._archives.order(role, self._group)
        except Refused as refused:
            why, by = str(refused), caller.user
            text = f"refused to {wish}: {why}"
            self._history.record(EventName.ORDER, text, role, by, pid=caller.pid, refused=why)
            raise

        async def body(write: Write) -> dict[str, Any]:
            return await watch_work(work, write)

        return await self._streams.answer(request, body)
