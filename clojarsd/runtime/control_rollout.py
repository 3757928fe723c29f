"""Requests on the control socket that are about releases: deploys, rollbacks, and what waits for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, Protocol

from aiohttp import web

from clojarsd.core.api import done_line, parse_flag
from clojarsd.core.api_rollout import (
    DeployOrder,
    RollbackOrder,
    left_line,
    parse_deploy,
    parse_rollback,
    rollout_failed_line,
    waiting_line,
)
from clojarsd.core.errors import Refused
from clojarsd.core.history import EventName
from clojarsd.core.rollout_facts import Outcome
from clojarsd.core.rollout_view import RolloutView
from clojarsd.runtime.control_request import CALLER, check_empty, check_query, see_through, understood
from clojarsd.runtime.control_stream import Streams, Write
from clojarsd.runtime.history import History
from clojarsd.runtime.rollout_work import RolloutWork


class Rollouts(Protocol):
    """Deploys and rollbacks; each order raises Refused when nothing was done."""

    async def deploy(self, order: DeployOrder, by: str) -> RolloutWork:
        """Begin a deploy."""

    async def rollback(self, order: RollbackOrder, by: str) -> RolloutWork:
        """Begin a rollback."""

    async def promote(self, by: str) -> RolloutWork:
        """Let the one that waits go on."""

    def abort(self, by: str) -> RolloutWork:
        """Let the one that is under way go back."""

    async def releases(self) -> dict[str, Any]:
        """All releases, as JSON."""

    @property
    def view(self) -> RolloutView | None:
        """The one that is under way, or was the latest."""

    @property
    def work(self) -> RolloutWork:
        """What is told of it."""


class RolloutDesk:
    """Answers what is asked about releases. Made by the control server; nothing runs inside."""

    def __init__(self, history: History, streams: Streams, rollouts: Rollouts | None) -> None:
        self._history = history
        self._streams = streams
        self._rollouts = rollouts
        self._group: asyncio.TaskGroup

    def add_routes(self, router: web.UrlDispatcher, group: asyncio.TaskGroup) -> None:
        """Make known the paths of what there is; what is begun goes on in the group when its caller has gone."""
        self._group = group
        if self._rollouts is None:
            return
        router.add_get("/v1/releases", self._show_releases)
        router.add_get("/v1/rollout", self._show_rollout)
        router.add_post("/v1/deploys", self._deploy)
        router.add_post("/v1/rollback", self._rollback)
        router.add_post("/v1/rollout/promote", self._promote)
        router.add_post("/v1/rollout/abort", self._abort)

    @property
    def _all(self) -> Rollouts:
        assert self._rollouts is not None
        return self._rollouts

    async def _show_releases(self, request: web.Request) -> web.Response:
        understood(lambda: check_query(request))
        return web.json_response(await self._all.releases())

    async def _show_rollout(self, request: web.Request) -> web.StreamResponse:
        understood(lambda: check_query(request, "follow"))
        following = understood(lambda: parse_flag("follow", request.query.get("follow")))
        view = self._all.view
        if not following:
            under_way = view.as_json() if view is not None and view.is_under_way else None
            ended = view.as_past() if view is not None and not view.is_under_way else None
            return web.json_response({"rollout": under_way, "last_rollout": ended})
        if view is None or not view.is_under_way:
            raise Refused("no deploy or rollback is under way")
        return await self._watch(request, self._all.work)

    async def _deploy(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        understood(lambda: check_query(request))
        order = understood(lambda: parse_deploy(raw))
        what = order.tag if order.tag is not None else order.artifact
        by = CALLER.get().user
        work = await self._begin(f"deploy {what}", self._all.deploy(order, by))
        return await self._watch(request, work, to_the_question=not order.promote)

    async def _rollback(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        understood(lambda: check_query(request))
        order = understood(lambda: parse_rollback(raw))
        by = CALLER.get().user
        text = "roll back" + (f" to {order.release}" if order.release is not None else "")
        work = await self._begin(text, self._all.rollback(order, by))
        return await self._watch(request, work, to_the_question=not order.promote)

    async def _promote(self, request: web.Request) -> web.StreamResponse:
        await check_empty(request)
        since = self._all.work.told
        work = await self._begin("promote", self._all.promote(CALLER.get().user))
        return await self._watch(request, work, since=since)

    async def _abort(self, request: web.Request) -> web.StreamResponse:
        await check_empty(request)
        since = self._all.work.told

        async def abort() -> RolloutWork:
            return self._all.abort(CALLER.get().user)

        work = await self._begin("abort", abort())
        return await self._watch(request, work, since=since, wanted=(Outcome.ABORTED, Outcome.FAILED))

    async def _watch(
        self,
        request: web.Request,
        work: RolloutWork,
        *,
        to_the_question: bool = False,
        since: int = 0,
        wanted: Collection[Outcome] = (Outcome.DONE,),
    ) -> web.StreamResponse:
        """Tell of the rollout until its end, or until it asks.

        Args:
            since: how many of its first lines the caller does not want.
            wanted: the outcomes that the caller wants.
        """

        async def body(write: Write) -> dict[str, Any]:
            async for line in work.lines(since):
                await write([line])
                if to_the_question and line.get("question") is not None:
                    until = line["question"]["until"]
                    return waiting_line(f"it waits for `clojarsctl promote` or `clojarsctl abort` until {until}")
            if work.outcome in wanted:
                return done_line(work.message)
            return rollout_failed_line(work.message, work.output)

        return await self._streams.answer(request, body, cut_short=left_line)

    async def _begin(self, text: str, act: Coroutine[Any, Any, RolloutWork]) -> RolloutWork:
        """Give the order, and put into the history who did, and whether it was refused."""
        caller = CALLER.get()
        by = caller.user
        self._history.record(EventName.ORDER, f"{by} orders: {text}", None, by, pid=caller.pid)
        try:
            return await see_through(self._group, act)
        except Refused as refused:
            why = str(refused)
            self._history.record(EventName.ORDER, f"refused to {text}: {why}", None, by, pid=caller.pid, refused=why)
            raise
