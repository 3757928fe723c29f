"""What each request on the control socket does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aiohttp import web

from clojarsd.core.api import (
    MOST_EVENTS,
    MOST_LINES,
    WATCH_HINT,
    OrderOptions,
    Step,
    Verb,
    accepted_line,
    describe_order,
    done_line,
    failed_line,
    judge,
    parse_count,
    parse_flag,
    parse_options,
    parse_verb,
    roles_named,
    step_line,
)
from clojarsd.core.errors import Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import Role
from clojarsd.runtime.control_stream import Streams, Write
from clojarsd.runtime.history import History, Overrun
from clojarsd.runtime.status import Board
from clojarsd.system.log_tail import follow, last_lines

DEFAULT_EVENTS = 50
DEFAULT_LINES = 100

T = TypeVar("T")


class Work(Protocol):
    """One order on its way, which goes on whether or not anybody watches."""

    def steps(self) -> AsyncIterator[Step]:
        """The steps so far, then the coming ones; ends with the work."""

    async def result(self) -> str:
        """A sentence when it has come to its end; raises Failed, saying what still holds, when it could not."""


class Orders(Protocol):
    """Carries orders out."""

    def submit(
        self, verb: Verb, roles: tuple[Role, ...], by: str, *, force: bool = False, timeout: float | None = None
    ) -> Work:
        """Begin an order; raises Refused when nothing was done."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request."""

    user: str
    pid: int


CALLER: ContextVar[Caller] = ContextVar("caller")
"""Who makes the request that the current task answers."""


class Desk:
    """Answers the requests of callers that may make them. Made by the control server; nothing runs inside."""

    def __init__(
        self, orders: Orders, board: Board, history: History, logs: Mapping[Role, Path], streams: Streams
    ) -> None:
        self._orders = orders
        self._board = board
        self._history = history
        self._logs = logs
        self._streams = streams

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Make the paths of the API known."""
        router.add_get("/v1/status", self._show_status)
        router.add_get("/v1/check", self._check)
        router.add_get("/v1/events", self._show_events)
        router.add_get("/v1/logs/{role}", self._show_log)
        router.add_post("/v1/instances/{role}/{verb}", self._order)

    async def _show_status(self, request: web.Request) -> web.Response:
        _understood(lambda: _check_query(request))
        return web.json_response(self._board.view().as_json())

    async def _check(self, request: web.Request) -> web.Response:
        _understood(lambda: _check_query(request))
        verdict = judge(self._board.view())
        return web.json_response({"code": verdict.code, "message": verdict.message})

    async def _show_events(self, request: web.Request) -> web.StreamResponse:
        count, following = _understood(lambda: _what_to_show(request, DEFAULT_EVENTS, MOST_EVENTS))

        async def body(write: Write) -> dict[str, Any]:
            seen = self._history.last_id
            await write(event.as_json() for event in self._history.recent(count))
            try:
                while following:
                    events = await self._history.after(seen)
                    await write(event.as_json() for event in events)
                    seen = events[-1].id
            except Overrun as overrun:
                return failed_line(
                    f"cannot follow the events: this reader was too slow and missed {overrun.missed};"
                    " `clojarsctl events` shows them"
                )
            return done_line()

        return await self._streams.answer(request, body)

    async def _show_log(self, request: web.Request) -> web.StreamResponse:
        count, following = _understood(lambda: _what_to_show(request, DEFAULT_LINES, MOST_LINES))
        roles = _understood(lambda: self._roles(request, all_allowed=True))
        if not following:
            there = await asyncio.to_thread(lambda: tuple(role for role in roles if self._logs[role].exists()))
            if not there:
                raise Refused(" and ".join(f"there is no log at {self._logs[role]} yet" for role in roles))
            roles = there

        async def show(role: Role, write: Write) -> None:
            lines = follow(self._logs[role], count) if following else last_lines(self._logs[role], count)
            async with aclosing(lines):
                async for some in lines:
                    await write({"role": role.value, "line": line} for line in some)

        async def body(write: Write) -> dict[str, Any]:
            if not following:
                for role in roles:
                    await show(role, write)
                return done_line()
            await _concurrently([show(role, write) for role in roles])
            return done_line()

        return await self._streams.answer(request, body)

    async def _order(self, request: web.Request) -> web.StreamResponse:
        verb = _understood(lambda: parse_verb(request.match_info["verb"]))
        roles = _understood(lambda: self._roles(request, all_allowed=verb not in (Verb.DRAIN, Verb.UNDRAIN)))
        raw = await request.read()
        options = _understood(lambda: parse_options(raw))
        _understood(lambda: _check_query(request))
        work = self._submit(verb, roles, options, CALLER.get())

        async def body(write: Write) -> dict[str, Any]:
            if not options.wait:
                return accepted_line(f"the order to {describe_order(verb, roles)} was accepted; {WATCH_HINT}")
            async for step in work.steps():
                await write([step_line(step)])
            return done_line(await work.result())

        return await self._streams.answer(request, body)

    def _submit(self, verb: Verb, roles: tuple[Role, ...], options: OrderOptions, caller: Caller) -> Work:
        """Give the order, and put into the history who did and whether it was refused."""
        role = roles[0] if len(roles) == 1 else None
        text = describe_order(verb, roles)
        detail = {"verb": verb.value, "roles": [role.value for role in roles], "force": options.force}
        by = caller.user
        self._history.record(EventName.ORDER, f"{by} orders: {text}", role, by, pid=caller.pid, **detail)
        try:
            return self._orders.submit(verb, roles, by, force=options.force, timeout=options.timeout)
        except Refused as refused:
            self._history.record(
                EventName.ORDER,
                f"refused to {text}: {refused}",
                role,
                by,
                pid=caller.pid,
                **detail,
                refused=str(refused),
            )
            raise

    def _roles(self, request: web.Request, *, all_allowed: bool) -> tuple[Role, ...]:
        names = {role: self._board.instance(role).name for role in Role}
        return roles_named(request.match_info["role"], names, all_allowed=all_allowed)


async def _concurrently(acts: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; the first failure cancels the others and is the one that is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for act in acts:
                group.create_task(act)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _what_to_show(request: web.Request, default: int, most: int) -> tuple[int, bool]:
    """How many of the past, and whether to follow."""
    _check_query(request, "n", "follow")
    return parse_count(request.query.get("n"), default, most), parse_flag("follow", request.query.get("follow"))


def _check_query(request: web.Request, *known: str) -> None:
    for name in request.query:
        if name not in known:
            raise ValueError(f"{request.path} has no parameter {name}" + (f" ({', '.join(known)})" if known else ""))


def _understood(parse: Callable[[], T]) -> T:
    """What the parser makes of the request; what it cannot read is answered as such."""
    try:
        return parse()
    except ValueError as error:
        raise web.HTTPBadRequest(text=str(error)) from None
