"""Keeps the state file up to date: never in the way of who saves, and never behind without saying so."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol, Self

import structlog

from clojarsd.core.errors import Failed
from clojarsd.core.saved import SavedPair, as_json, essence
from clojarsd.system.threads import Threads

log = structlog.get_logger()

FIRST_RETRY = 0.5
LONGEST_RETRY = 10.0
SLOW = 5.0
"""Seconds after which a disk that is still writing is worth a warning."""
CLOSE_TIMEOUT = 5.0


class Store(Protocol):
    """Where the state outlives the daemon."""

    def write(self, document: Mapping[str, Any], /) -> None:
        """Replace the state. Blocks, is called from one thread, raises Failed."""


class StateKeeper:
    """The newest state on its way to the disk, as long as the daemon lives.

    Made by daemon.py as an async context, which at the end writes what is still unwritten; `run` is its one task. All
    disk work is done by one thread, and of what is saved meanwhile only the newest is written. A disk that takes
    nothing costs one warning for the whole episode.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._newest: SavedPair | None = None
        self._essence: SavedPair | None = None
        self._version = 0
        self._written = 0
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._flushing: dict[asyncio.Future[None], int] = {}
        self._failing = False
        self._disk = Threads("state")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Write what is left, once and within a few seconds."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._write()
        except TimeoutError:
            log.warning("state_not_written", reason="the disk is too slow")
        except Failed as failed:
            log.warning("state_not_written", reason=str(failed))
        finally:
            self._disk.close()

    def save(self, pair: SavedPair) -> None:
        """Have this written soon, unless a newer one comes first. Never waits, and never raises.

        What differs from the one before only in what checks saw last is written with the next that differs more, at
        the end, or when somebody waits for it.
        """
        if pair == self._newest:
            return
        self._newest = pair
        self._version += 1
        seen = essence(pair)
        if seen != self._essence:
            self._essence = seen
            self._wake.set()

    async def flushed(self) -> None:
        """Return when all that was saved before the call is safe on the disk. The caller sets a deadline.

        Raises:
            Failed: it could not be written; it is tried again later all the same.
        """
        if self._written >= self._version:
            return
        future = asyncio.get_running_loop().create_future()
        self._flushing[future] = self._version
        self._wake.set()
        self._hurry.set()
        try:
            await future
        finally:
            del self._flushing[future]

    async def run(self) -> NoReturn:
        """Write what is saved, until cancelled."""
        retry = FIRST_RETRY
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._write()
            except Failed as failed:
                self._warn(str(failed))
                self._answer(failed)
                self._wake.set()
                self._hurry.clear()  # who was in a hurry has the answer
                await self._pause(retry)
                retry = min(2 * retry, LONGEST_RETRY)
                continue
            retry = FIRST_RETRY
            self._answer(None)

    async def _write(self) -> None:
        """Write the newest, if it is not written yet."""
        version, pair = self._version, self._newest
        if pair is None or self._written >= version:
            return
        slow = asyncio.get_running_loop().call_later(SLOW, self._warn, f"the disk has taken nothing for {SLOW:g} s")
        try:
            await self._disk.run(lambda: self._store.write(as_json(pair)))
        finally:
            slow.cancel()
        self._written = version
        if self._failing:
            self._failing = False
            log.info("state_written_again")

    def _answer(self, failed: Failed | None) -> None:
        """Tell those who wait for what is written now; after a failure, all of them."""
        for future, version in self._flushing.items():
            if future.done():
                continue
            if failed is not None:
                future.set_exception(failed)
            elif version <= self._written:
                future.set_result(None)
            else:
                self._wake.set()

    def _warn(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            log.warning("state_not_written", reason=reason, kept="in memory")

    async def _pause(self, seconds: float) -> None:
        """Return after so long, or when somebody begins to wait for the disk."""
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            pass
