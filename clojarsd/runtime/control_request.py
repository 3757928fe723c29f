"""What every request on the control socket has: somebody who makes it, and parameters that must be understood."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from aiohttp import web

from clojarsd.core.api import Step, done_line, step_line
from clojarsd.core.errors import Refused
from clojarsd.runtime.control_stream import Write

T = TypeVar("T")


class Work(Protocol):
    """One order on its way, which goes on whether or not anybody watches."""

    def steps(self) -> AsyncIterator[Step]:
        """The steps so far, then the coming ones; ends with the work."""

    async def result(self) -> str:
        """A sentence when it has come to its end; raises Failed, saying what still holds, when it could not."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request."""

    user: str
    pid: int


CALLER: ContextVar[Caller] = ContextVar("caller")
"""Who makes the request that the current task answers."""


async def watch_work(work: Work, write: Write, last: Callable[[str], dict[str, Any]] = done_line) -> dict[str, Any]:
    """Write the steps of the work until it ends; `last` makes the last line of its sentence."""
    async for step in work.steps():
        await write([step_line(step)])
    return last(await work.result())


async def see_through(group: asyncio.TaskGroup, act: Coroutine[Any, Any, T]) -> T:
    """What the act gives. It goes on to its end when the caller has gone, as long as the group does.

    Raises:
        Refused: the group has ended, so nothing was done.
    """
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    async def carry_out() -> None:
        try:
            outcome.set_result(await act)
        except asyncio.CancelledError:
            outcome.cancel()
            raise
        except Exception as error:  # a request may fail alone; whoever waits for the outcome tells
            outcome.set_exception(error)

    carrying_out = carry_out()
    try:
        group.create_task(carrying_out)
    except RuntimeError:  # the server ends while this request comes
        carrying_out.close()
        act.close()
        raise Refused("clojarsd is ending; nothing was done") from None
    outcome.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may be left to tell
    return await asyncio.shield(outcome)


def understood(parse: Callable[[], T]) -> T:
    """What the parser makes of the request; what it cannot read is answered as such."""
    try:
        return parse()
    except ValueError as error:
        raise web.HTTPBadRequest(text=str(error)) from None


def check_query(request: web.Request, *known: str) -> None:
    """Raise ValueError when the request has a parameter that is not known."""
    for name in request.query:
        if name not in known:
            raise ValueError(f"{request.path} has no parameter {name}" + (f" ({', '.join(known)})" if known else ""))


async def check_empty(request: web.Request) -> None:
    """Answer parameters and a body that nobody would look at."""
    understood(lambda: check_query(request))
    if (await request.read()).strip() not in (b"", b"{}"):
        raise web.HTTPBadRequest(text=f"{request.path} takes no options")
