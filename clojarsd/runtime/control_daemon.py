"""Requests on the control socket that are about the daemon itself: its configuration, its upgrade, its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from aiohttp import web

from clojarsd.core.api import accepted_line, done_line
from clojarsd.core.errors import Refused
from clojarsd.core.history import EventName
from clojarsd.runtime.control_request import CALLER, Work, check_empty, check_query, see_through, understood, watch_work
from clojarsd.runtime.control_stream import Streams, Write
from clojarsd.runtime.history import History

CONFIG_PATH = "/v1/config"


class Config(Protocol):
    """The configuration that the daemon acts by."""

    async def reload(self, by: str) -> Sequence[str]:
        """Read it again and act by it: a sentence for each change; raises Refused when nothing was changed."""

    def show(self) -> dict[str, Any]:
        """All of it with its defaults, as JSON; secrets are masked."""

    def show_toml(self) -> str:
        """The same, as the text of such a file."""


class Life(Protocol):
    """How long this daemon lives, and what comes after it."""

    def upgrade(self, by: str) -> Work:
        """Rehearse and then execute the code that is installed now. The work ends well just before the execution.

        What is executed must wait until `ControlServer.serve` has ended, which sends the last line to the caller.
        Raises Refused when nothing was done; the work fails when the rehearsal does.
        """

    def stop(self, by: str) -> Work:
        """End the pair and then the daemon; the work ends when the pair has, before the control server does."""


class DaemonDesk:
    """Answers what is asked about the daemon itself. Made by the control server; nothing runs inside."""

    def __init__(self, history: History, streams: Streams, config: Config | None, life: Life | None) -> None:
        self._history = history
        self._streams = streams
        self._config = config
        self._life = life
        self._group: asyncio.TaskGroup

    def add_routes(self, router: web.UrlDispatcher, group: asyncio.TaskGroup) -> None:
        """Make known the paths of what there is; a reload goes on in the group when its caller has gone."""
        self._group = group
        if self._config is not None:
            router.add_get(CONFIG_PATH, self._show_config)
            router.add_post(f"{CONFIG_PATH}/reload", self._reload_config)
        if self._life is not None:
            router.add_post("/v1/daemon/upgrade", self._upgrade)
            router.add_post("/v1/daemon/stop", self._stop)

    async def _show_config(self, request: web.Request) -> web.Response:
        assert self._config is not None
        understood(lambda: check_query(request, "format"))
        if understood(lambda: _is_toml(request.query.get("format"))):
            return web.Response(text=self._config.show_toml(), content_type="application/toml")
        return web.json_response(self._config.show())

    async def _reload_config(self, request: web.Request) -> web.Response:
        assert self._config is not None
        await check_empty(request)
        with self._ordered("reload the configuration") as by:
            changes = list(await see_through(self._group, self._config.reload(by)))
        message = "; ".join(changes) or "the configuration is what it was"
        return web.json_response({**done_line(message), "changes": changes})

    async def _upgrade(self, request: web.Request) -> web.StreamResponse:
        assert self._life is not None
        return await self._see_out(request, "upgrade clojarsd", self._life.upgrade, accepted_line)

    async def _stop(self, request: web.Request) -> web.StreamResponse:
        assert self._life is not None
        return await self._see_out(request, "stop clojarsd", self._life.stop, done_line)

    async def _see_out(
        self, request: web.Request, text: str, begin: Callable[[str], Work], last: Callable[[str], dict[str, Any]]
    ) -> web.StreamResponse:
        """Begin what ends this daemon, and tell of it until then."""
        await check_empty(request)
        with self._ordered(text) as by:
            work = begin(by)

        async def body(write: Write) -> dict[str, Any]:
            return await watch_work(work, write, last)

        return await self._streams.answer(request, body, to_the_end=True)

    @contextmanager
    def _ordered(self, text: str) -> Iterator[str]:
        """Put into the history who orders it, and that it was refused if it is; gives who."""
        caller = CALLER.get()
        by = caller.user
        self._history.record(EventName.ORDER, f"{by} orders: {text}", None, by, pid=caller.pid)
        try:
            yield by
        except Refused as refused:
            why = str(refused)
            self._history.record(EventName.ORDER, f"refused to {text}: {why}", None, by, pid=caller.pid, refused=why)
            raise


def _is_toml(text: str | None) -> bool:
    if text not in (None, "json", "toml"):
        raise ValueError(f"format is {text}, not json or toml")
    return text == "toml"
