"""What each request on the control socket does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from aiohttp import web

from clojarsd.core.api import (
    MOST_EVENTS,
    MOST_LINES,
    WATCH_HINT,
    Awaited,
    OrderOptions,
    Step,
    Verb,
    accepted_line,
    describe_order,
    done_line,
    failed_line,
    judge,
    parse_awaited,
    parse_count,
    parse_flag,
    parse_options,
    parse_patience,
    parse_verb,
    roles_named,
    step_line,
)
from clojarsd.core.errors import Refused
from clojarsd.core.history import EventName, stamp
from clojarsd.core.names import Role
from clojarsd.core.progress import as_sentence, describe_reached, narrate, why_still_waiting
from clojarsd.runtime.control_request import CALLER, Caller, Work, check_query, see_through, understood, watch_work
from clojarsd.runtime.control_stream import Streams, Write
from clojarsd.runtime.history import History, Overrun
from clojarsd.runtime.log_keeper import InstanceLog
from clojarsd.runtime.status import Board

DEFAULT_EVENTS = 50
DEFAULT_LINES = 100
NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


class Orders(Protocol):
    """Carries orders out."""

    async def begin(
        self,
        verb: Verb,
        roles: tuple[Role, ...],
        by: str,
        *,
        force: bool = False,
        timeout: float | None = None,
        environment: Mapping[str, str] = NO_ENVIRONMENT,
        within: float | None = None,
    ) -> Work:
        """Begin an order, and return when it will not be forgotten; raises Refused when nothing was done."""


class Desk:
    """Answers the requests of callers that may make them. Made by the control server; nothing runs inside."""

    def __init__(
        self, orders: Orders, board: Board, history: History, logs: Mapping[Role, Path | InstanceLog], streams: Streams
    ) -> None:
        self._orders = orders
        self._board = board
        self._history = history
        self._logs = {
            role: log if isinstance(log, InstanceLog) else InstanceLog.at(role, log) for role, log in logs.items()
        }
        self._streams = streams
        self._group: asyncio.TaskGroup

    def add_routes(self, router: web.UrlDispatcher, group: asyncio.TaskGroup) -> None:
        """Make the paths of the API known; what is begun goes on in the group when its caller has gone."""
        self._group = group
        router.add_get("/v1/status", self._show_status)
        router.add_get("/v1/check", self._check)
        router.add_get("/v1/events", self._show_events)
        router.add_get("/v1/logs/{role}", self._show_log)
        router.add_get("/v1/wait", self._wait)
        router.add_post("/v1/instances/{role}/{verb}", self._order)

    async def _show_status(self, request: web.Request) -> web.Response:
        understood(lambda: check_query(request))
        await self._board.look()
        return web.json_response(self._board.view().as_json())

    async def _check(self, request: web.Request) -> web.Response:
        understood(lambda: check_query(request))
        verdict = judge(self._board.view())
        return web.json_response({"code": verdict.code, "message": verdict.message})

    async def _show_events(self, request: web.Request) -> web.StreamResponse:
        count, following = understood(lambda: _what_to_show(request, DEFAULT_EVENTS, MOST_EVENTS))

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
        count, following = understood(lambda: _what_to_show(request, DEFAULT_LINES, MOST_LINES))
        roles = understood(lambda: self._roles(request.match_info["role"], all_allowed=True))
        missing = await asyncio.to_thread(lambda: {role: self._logs[role].missing() for role in roles})
        if not following:
            there = tuple(role for role in roles if missing[role] is None)
            if not there:
                raise Refused(" and ".join(filter(None, missing.values())))
            roles = there

        async def show(role: Role, write: Write) -> None:
            lines = self._logs[role].follow(count) if following else self._logs[role].last_lines(count)
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

    async def _wait(self, request: web.Request) -> web.StreamResponse:
        understood(lambda: check_query(request, "role", "for", "timeout"))
        roles = understood(lambda: self._roles(request.query.get("role", "all"), all_allowed=True))
        awaited = understood(lambda: parse_awaited(request.query.get("for")))
        patience = understood(lambda: parse_patience(request.query.get("timeout")))

        async def body(write: Write) -> dict[str, Any]:
            try:
                async with asyncio.timeout(patience):
                    return await self._until(awaited, roles, write)
            except TimeoutError:
                if patience is None:
                    raise
                return failed_line(why_still_waiting(awaited, roles, self._board.view(), patience))

        return await self._streams.answer(request, body)

    async def _until(self, awaited: Awaited, roles: Sequence[Role], write: Write) -> dict[str, Any]:
        """Tell what happens to the instances until they all are as awaited at once."""
        before = self._board.view()
        while True:
            seen = self._board.view()
            news = [(role, step) for role in roles for step in narrate(role, before, seen)]
            before = seen
            if news:
                at = stamp(datetime.now(UTC))
                await write(step_line(Step(at, role, as_sentence(role, step))) for role, step in news)
            if all(awaited.holds(seen.instances[role]) for role in roles):
                return done_line(describe_reached(awaited, roles))
            if not news:  # else the picture may have changed while that was written
                await self._board.change()

    async def _order(self, request: web.Request) -> web.StreamResponse:
        verb = understood(lambda: parse_verb(request.match_info["verb"]))
        is_for_both = verb not in (Verb.DRAIN, Verb.UNDRAIN)
        roles = understood(lambda: self._roles(request.match_info["role"], all_allowed=is_for_both))
        raw = await request.read()
        options = understood(lambda: parse_options(raw, verb))
        understood(lambda: check_query(request))
        work = await self._begin(verb, roles, options, CALLER.get())

        async def body(write: Write) -> dict[str, Any]:
            if not options.wait:
                return accepted_line(f"the order to {describe_order(verb, roles)} was accepted; {WATCH_HINT}")
            return await watch_work(work, write)

        return await self._streams.answer(request, body)

    async def _begin(self, verb: Verb, roles: tuple[Role, ...], options: OrderOptions, caller: Caller) -> Work:
        """Give the order, and put into the history who did and whether it was refused."""
        role = roles[0] if len(roles) == 1 else None
        text = describe_order(verb, roles)
        detail: dict[str, Any] = {"verb": verb.value, "roles": [role.value for role in roles], "force": options.force}
        if options.within is not None:
            text += f" within {options.within:g} s"
            detail["within"] = options.within
        if options.environment:
            detail["environment"] = sorted(options.environment)  # names only: values may be secrets
        by = caller.user
        self._history.record(EventName.ORDER, f"{by} orders: {text}", role, by, pid=caller.pid, **detail)
        try:
            beginning = self._orders.begin(
                verb,
                roles,
                by,
                force=options.force,
                timeout=options.timeout,
                environment=options.environment,
                within=options.within,
            )
            return await see_through(self._group, beginning)
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

    def _roles(self, text: str, *, all_allowed: bool) -> tuple[Role, ...]:
        names = {role: self._board.instance(role).name for role in Role}
        return roles_named(text, names, all_allowed=all_allowed)


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
    check_query(request, "n", "follow")
    return parse_count(request.query.get("n"), default, most), parse_flag("follow", request.query.get("follow"))
