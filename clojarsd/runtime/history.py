"""Keeps what happened: at once in memory, soon on disk, and never in the way of who records it."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, Protocol, Self, TypeVar

import structlog

from clojarsd.core.api import MOST_EVENTS
from clojarsd.core.errors import Failed
from clojarsd.core.history import EventName, PastEvent, stamp
from clojarsd.core.names import Role
from clojarsd.system.threads import Threads

log = structlog.get_logger()

KEPT_FOR = timedelta(days=90)
PRUNED_EVERY = 24 * 3600.0
FIRST_RETRY = 1.0
LONGEST_RETRY = 60.0
CLOSE_TIMEOUT = 5.0
MOST_UNWRITTEN = 20_000
"""Events that wait for a disk that takes none; after that the oldest are given up, and counted."""

T = TypeVar("T")


class Store(Protocol):
    """Where events outlive the daemon. Each method blocks, may be called from any one thread, and raises Failed."""

    def last_id(self) -> int:
        """The id of the latest event; 0 when there is none."""

    def last(self, count: int) -> Sequence[PastEvent]:
        """The latest events, the oldest of them first."""

    def write(self, events: Sequence[PastEvent]) -> None:
        """Add all of them or none; one whose id is there already is left as it is."""

    def prune(self, before: str) -> None:
        """Forget what happened before that time."""

    def close(self) -> None:
        """Let go of the file."""


class Overrun(Exception):
    """A reader fell behind: events that it has not seen are no longer in memory.

    Attributes:
        missed: how many.
    """

    def __init__(self, missed: int) -> None:
        super().__init__(f"{missed} events were missed")
        self.missed = missed


class History:
    """What happened, as long as the daemon lives and before.

    Made by daemon.py as an async context, which reads the past and, at the end, writes what is still unwritten; `run`
    is its one task. All disk work is done by one thread. A disk that takes nothing costs one warning for the whole
    episode: events then go on in memory, and are written when it recovers.
    """

    def __init__(self, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._now = now
        self._recent: deque[PastEvent] = deque(maxlen=MOST_EVENTS)
        self._last_id = 0
        self._unwritten: deque[PastEvent] = deque()
        self._given_up = 0
        self._failing = False
        self._recorded: set[asyncio.Future[None]] = set()
        self._disk = Threads("history")

    async def __aenter__(self) -> Self:
        try:
            self._last_id = await self._disk.run(self._store.last_id)
            self._recent.extend(await self._disk.run(self._store.last, MOST_EVENTS))
        except Failed as failed:
            self._warn(failed)
            # with the last id unknown: the seconds since 1970 are beyond all that were given at less than one a second
            self._last_id = int(self._now().timestamp())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Write what is left, once and within a few seconds."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._write()
                await self._disk.run(self._store.close)
        except TimeoutError:
            log.warning("history_not_written", reason="the disk is too slow", unwritten=len(self._unwritten))
        except Failed as failed:
            log.warning("history_not_written", reason=str(failed), unwritten=len(self._unwritten))
        finally:
            self._disk.close()

    def record(
        self, event: EventName, message: str, role: Role | None = None, by: str | None = None, **detail: Any
    ) -> None:
        """Add an event that happens now. Never waits, and never raises."""
        self._last_id += 1
        at = stamp(self._now())
        writable_by = _writable(by) if by is not None else None
        past = PastEvent(self._last_id, at, event, role, writable_by, _writable(message), _plain(detail))
        self._recent.append(past)
        self._unwritten.append(past)
        if len(self._unwritten) > MOST_UNWRITTEN:
            self._unwritten.popleft()
            self._given_up += 1
        waiting, self._recorded = self._recorded, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    @property
    def last_id(self) -> int:
        """The id of the latest event; 0 when there was none."""
        return self._last_id

    def recent(self, count: int) -> tuple[PastEvent, ...]:
        """The latest events, at most `MOST_EVENTS`, the oldest of them first."""
        return tuple(self._recent)[-count:] if count > 0 else ()

    async def after(self, last_seen: int) -> tuple[PastEvent, ...]:
        """All events later than that id; waits until there is one.

        Raises:
            Overrun: the reader was too slow for what is kept in memory.
        """
        while self._last_id <= last_seen:
            await self._next()
        events = tuple(event for event in self._recent if event.id > last_seen)
        missed = events[0].id - last_seen - 1
        if missed:
            raise Overrun(missed)
        return events

    async def run(self) -> NoReturn:
        """Write events as they come, and forget old ones once a day, until cancelled."""
        loop = asyncio.get_running_loop()
        retry = FIRST_RETRY
        prune_at = loop.time()
        while True:
            try:
                if loop.time() >= prune_at:
                    oldest = self._now() - KEPT_FOR
                    await self._disk.run(self._store.prune, stamp(oldest))
                    prune_at = loop.time() + PRUNED_EVERY
                await self._write()
            except Failed as failed:
                self._warn(failed)
                await asyncio.sleep(retry)
                retry = min(2 * retry, LONGEST_RETRY)
                continue
            retry = FIRST_RETRY
            await self._next_before(prune_at)

    async def _write(self) -> None:
        """Write all that is unwritten; what could not be written stays so."""
        while batch := tuple(self._unwritten):
            await self._disk.run(self._store.write, batch)
            self._given_up -= len(batch)  # what was given up meanwhile was not lost after all
            while self._unwritten and self._unwritten[0].id <= batch[-1].id:
                self._unwritten.popleft()
                self._given_up += 1
        if self._failing:
            self._failing = False
            log.info("history_written_again", lost=self._given_up)
            self._given_up = 0

    def _warn(self, failed: Failed) -> None:
        if not self._failing:
            self._failing = True
            log.warning("history_not_written", reason=str(failed), kept="in memory")

    async def _next(self) -> None:
        """Return after the next event is recorded."""
        future = asyncio.get_running_loop().create_future()
        self._recorded.add(future)
        try:
            await future
        finally:
            self._recorded.discard(future)

    async def _next_before(self, deadline: float) -> None:
        """Return after the next event is recorded, or at the deadline."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._next()
        except TimeoutError:
            pass


def _writable(text: str) -> str:
    """The text without the lone surrogates that undecodable names bring, which no UTF-8 file takes."""
    return text.encode(errors="backslashreplace").decode()


def _plain(detail: dict[str, Any]) -> dict[str, Any]:
    """The detail as JSON has it, and as it is now: later changes to a value do not reach the history."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(detail, default=str))
    except (TypeError, ValueError, RecursionError) as error:
        return {"unreadable": f"{type(error).__name__}: {error}"}
    return plain
