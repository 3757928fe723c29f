"""Answers that are one line of JSON at a time, and always end with one that has `result`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import structlog
from aiohttp import web

from clojarsd.core.api import failed_line
from clojarsd.core.errors import ClojarsdError

log = structlog.get_logger()

BUG = "cannot go on: this is a bug in clojarsd, and its log has the details"

Write: TypeAlias = Callable[[Iterable[dict[str, Any]]], Awaitable[None]]
"""Sends lines, and returns when the caller has room for more: nothing is kept for a slow one."""


class Streams:
    """The streams that are being answered. Made and closed by the control server; each runs in its request's task."""

    def __init__(self) -> None:
        self._open: set[asyncio.Timeout] = set()
        self._why_closed: str | None = None

    async def answer(
        self,
        request: web.Request,
        body: Callable[[Write], Awaitable[dict[str, Any]]],
        *,
        to_the_end: bool = False,
        cut_short: Callable[[str], dict[str, Any]] = failed_line,
    ) -> web.StreamResponse:
        """Send what `body` writes, and then the line that it returns; or one that says why there is no more.

        When the caller goes away, `body` is cancelled.

        Args:
            to_the_end: `close` leaves this one alone, because it tells how the daemon itself comes to its end.
            cut_short: the last line of one that `close` ends, out of the reason.
        """
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)

        async def write(lines: Iterable[dict[str, Any]]) -> None:
            await response.write(b"".join(map(_line, lines)))

        last = cut_short(self._why_closed or "")
        try:
            async with asyncio.timeout(None) as scope:
                if not to_the_end:
                    self._open.add(scope)
                if self._why_closed is None or to_the_end:
                    last = await body(write)
        except TimeoutError:
            last = failed_line(BUG) if self._why_closed is None else cut_short(self._why_closed)
            if self._why_closed is None:
                log.exception("control_request_failed", method=request.method, path=request.path)
        except ClojarsdError as error:
            last = failed_line(str(error))
        except ConnectionError:
            raise  # the caller has gone
        except Exception:
            log.exception("control_request_failed", method=request.method, path=request.path)
            last = failed_line(BUG)
        finally:
            self._open.discard(scope)
        await write([last])
        await response.write_eof()
        return response

    def close(self, why: str) -> None:
        """End every stream with a line that says why."""
        self._why_closed = why
        now = asyncio.get_running_loop().time()
        for scope in self._open:
            scope.reschedule(now)


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"
