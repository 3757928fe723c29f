"""Requests on the control socket that are about frontends: pauses, limits, counters, single connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from aiohttp import web

from clojarsd.core.api import done_line
from clojarsd.core.api_frontends import (
    ALL,
    describe_cap,
    describe_pause,
    describe_share,
    no_such_frontend,
    parse_cap,
    parse_nothing,
    parse_pause,
    parse_share,
)
from clojarsd.core.connections import ConnectionList
from clojarsd.core.errors import Failed, Refused
from clojarsd.core.frontend_plan import CountedFrom, FrontendPlan, Pause
from clojarsd.core.history import EventName, stamp
from clojarsd.core.routing import Caps
from clojarsd.core.view import FrontendView
from clojarsd.runtime.control_request import CALLER, check_query, understood
from clojarsd.runtime.gate import wall_clock
from clojarsd.runtime.history import History
from clojarsd.runtime.status import Board

PATIENCE = 5.0
"""Seconds for the relay process to show that it has done what was ordered."""
HOW_TO_CAP = "`max_connections` or `max_per_instance` in the configuration makes it relay"
LEAST_PAUSE = 30.0
"""Seconds of a pause for which neither the order nor the settings say how long."""


class Viewed(Protocol):
    """One frontend."""

    def view(self) -> FrontendView:
        """It as it is."""


class Frontends(Protocol):
    """All frontends, and what may be ordered about each."""

    @property
    def views(self) -> Mapping[str, Viewed]:
        """What they show, by name."""

    @property
    def plans(self) -> Mapping[str, FrontendPlan]:
        """What they are made of, by name."""

    @property
    def paused(self) -> Mapping[str, Pause]:
        """Those whose new connections wait by order."""

    def pause(self, name: str, until: float, by: str) -> None:
        """Have new connections wait until that instant of the loop."""

    def resume(self, name: str) -> None:
        """Let them wait no more."""

    def cap(self, name: str, caps: Caps) -> None:
        """Have no more connections than that."""

    def set_share(self, share: float | None) -> None:
        """Have that part of new connections of all frontends go to the backup."""

    def count_from(self, name: str, counted_from: CountedFrom) -> None:
        """Show what is counted from there on."""

    async def connections(self, frontend: str | None = None) -> ConnectionList:
        """The connections one by one; raises Failed."""


class FrontendDesk:
    """Answers what is asked about frontends. Made by the control server; nothing runs inside."""

    def __init__(self, history: History, board: Board, frontends: Frontends | None) -> None:
        self._history = history
        self._board = board
        self._given = frontends

    @property
    def _frontends(self) -> Frontends:
        assert self._given is not None
        return self._given

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Make the paths known, if there is anybody who could carry such orders out."""
        if self._given is None:
            return
        router.add_get("/v1/connections", self._list)
        router.add_post("/v1/share", self._share)
        router.add_post("/v1/frontends/{name}/pause", self._pause)
        router.add_post("/v1/frontends/{name}/resume", self._resume)
        router.add_post("/v1/frontends/{name}/cap", self._cap)
        router.add_post("/v1/frontends/{name}/reset", self._reset)

    async def _list(self, request: web.Request) -> web.Response:
        understood(lambda: check_query(request, "frontend"))
        name = request.query.get("frontend")
        if name is not None:
            understood(lambda: self._check(name))
        return web.json_response((await self._frontends.connections(name)).as_json())

    async def _pause(self, request: web.Request) -> web.Response:
        name, seconds = await self._asked(request, parse_pause)
        if seconds is None:
            seconds = self._frontends.plans[name].hold or LEAST_PAUSE
        loop = asyncio.get_running_loop()
        by = self._record(f"pause {name} for {seconds:g} s", name, seconds=seconds)
        before, until = self._frontends.paused.get(name), loop.time() + seconds
        self._frontends.pause(name, until, by)
        message = describe_pause(name, wall_clock(loop, until), by)
        if before is not None:
            message += f"; before, {before.by} had paused them until {wall_clock(loop, before.until)[11:19]}Z"
        await self._seen(name, lambda view: view.paused is not None and view.paused.by == by)
        return web.json_response(done_line(message))

    async def _resume(self, request: web.Request) -> web.Response:
        name, _ = await self._asked(request, parse_nothing)
        if name not in self._frontends.paused:
            return web.json_response(done_line(f"{name} is not paused"))
        self._record(f"resume {name}", name)
        self._frontends.resume(name)
        await self._seen(name, lambda view: view.paused is None)
        return web.json_response(done_line(f"new connections of {name} wait no more"))

    async def _cap(self, request: web.Request) -> web.Response:
        name, order = await self._asked(request, parse_cap)
        view = self._frontends.views[name].view()
        if view.mode == "steer":
            raise Refused(f"cannot cap {name}: the kernel steers it, and only the relay can count; {HOW_TO_CAP}")
        before = view.caps
        caps = order.applied_to(before)
        text = describe_cap(name, order)
        if caps == before:
            return web.json_response(done_line(f"as before: {text}"))
        self._record(f"cap {name} {order.target} {order.most}", name, target=order.target, most=order.most)
        self._frontends.cap(name, caps)
        await self._seen(name, lambda view: view.caps == caps)
        return web.json_response(done_line(text))

    async def _share(self, request: web.Request) -> web.Response:
        body = await request.read()
        understood(lambda: check_query(request))
        share = understood(lambda: parse_share(body))
        text, views = describe_share(share), self._frontends.views
        if all(shown.view().share == share for shown in views.values()):
            return web.json_response(done_line(f"as before: {text}"))
        self._record(f"share {share * 100:g} %", None, percent=round(share * 100, 4))
        self._frontends.set_share(share)
        for name in list(views):
            await self._seen(name, lambda view: view.share == share)
        return web.json_response(done_line(text))

    async def _reset(self, request: web.Request) -> web.Response:
        name, _ = await self._asked(request, parse_nothing, all_allowed=True)
        by = self._record(f"reset {name}", None if name == ALL else name)
        at = stamp(datetime.now(UTC))
        names = list(self._frontends.views) if name == ALL else [name]
        for one in names:
            accepted = self._frontends.views[one].view().accepted_total
            self._frontends.count_from(one, CountedFrom(dict(accepted), at, by))
        for one in names:
            await self._seen(one, lambda view: view.counted_from is not None and view.counted_from.at == at)
        return web.json_response(done_line(f"connections of {' and '.join(names) or 'nothing'} are counted anew"))

    async def _seen(self, name: str, holds: Callable[[FrontendView], bool]) -> None:
        """Return when the frontend shows it, or is gone.

        Raises:
            Failed: it has not in time.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                await self._board.until(lambda pair: name not in pair.frontends or holds(pair.frontends[name]))
        except TimeoutError:
            raise Failed(
                f"cannot say that {name} obeys: the relay process has not confirmed it within {PATIENCE:g} s"
            ) from None

    async def _asked(
        self, request: web.Request, parse: Callable[[bytes], Any], *, all_allowed: bool = False
    ) -> tuple[str, Any]:
        """The name of the frontend, and what the body asks for."""
        name, body = request.match_info["name"], await request.read()
        if not (all_allowed and name == ALL):
            understood(lambda: self._check(name, all_allowed=all_allowed))
        understood(lambda: check_query(request))
        return name, understood(lambda: parse(body))

    def _check(self, name: str, *, all_allowed: bool = False) -> None:
        known = self._frontends.views.keys()
        if name not in known:
            raise ValueError(no_such_frontend(name, known, all_allowed=all_allowed))

    def _record(self, text: str, frontend: str | None, **detail: Any) -> str:
        """Put into the history who orders it; the user."""
        caller = CALLER.get()
        by = caller.user
        if frontend is not None:
            detail["frontend"] = frontend
        self._history.record(EventName.ORDER, f"{by} orders: {text}", None, by, pid=caller.pid, **detail)
        return by
