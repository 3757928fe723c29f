"""Warms an instance up before clients come: asks it the requests of the settings until its latency settles."""

from __future__ import annotations

import asyncio
from typing import NoReturn, Protocol

import structlog

from clojarsd.core.names import Incarnation, Role, Rotation
from clojarsd.core.saved import InForce
from clojarsd.core.view import PairView
from clojarsd.core.warmup import SLOWEST, Warmup
from clojarsd.runtime.status import Board
from clojarsd.runtime.unit_parts import PlannedWarmup, WarmingRequests

log = structlog.get_logger()

PAUSE_AFTER_FAILURE = 0.25
"""Seconds between a round in which a request failed and the next, so that they are not used up in an instant."""


class WarmedUnit(Protocol):
    """Who hears how far it is."""

    def warming(self, incarnation: Incarnation, warmup: Warmup) -> None:
        """The warm-up of this incarnation, after each round and when it is over."""


class Warmer:
    """The warm-ups of one role, one at a time, for as long as the daemon lives; `run` belongs to its task group.

    While the other instance cannot serve, nobody is to wait for warmth: then a warm-up is cut short, unless the
    instance is out of rotation and would serve nobody anyway. Where both are warmed up at a time it is the primary's.
    """

    def __init__(self, role: Role, unit: WarmedUnit, board: Board) -> None:
        self._role = role
        self._unit = unit
        self._board = board
        self._target: tuple[Incarnation, PlannedWarmup, InForce] | None = None
        self._retargeted = asyncio.Event()
        self._log = log.bind(role=role.value)

    def begin(self, incarnation: Incarnation, planned: PlannedWarmup, bound: InForce) -> None:
        """Warm up this incarnation, which was launched so, and no other."""
        self._target = (incarnation, planned, bound)
        self._retargeted.set()

    def end(self) -> None:
        """Warm up nothing; nothing more is told."""
        self._target = None
        self._retargeted.set()

    async def run(self) -> NoReturn:
        """Warm up what is to be warmed up, until cancelled."""
        while True:
            self._retargeted.clear()
            async with asyncio.TaskGroup() as group:
                warming = None
                if self._target is not None:
                    warming = group.create_task(_Course(self, *self._target).run())
                    self._target = None
                await self._retargeted.wait()
                if warming is not None:
                    warming.cancel()

    def tell(self, incarnation: Incarnation, warmup: Warmup) -> None:
        """Say how far it is; not any more once another is to be warmed up, or none."""
        if not self._retargeted.is_set():
            self._unit.warming(incarnation, warmup)

    async def until_needed(self) -> None:
        """Return as soon as nobody else can serve."""
        await self._board.until(self._is_needed)

    def _is_needed(self, view: PairView) -> bool:
        own, other = view.instances[self._role], view.instances[self._role.other]
        if own.unit.rotation is Rotation.OUT or other.is_eligible:
            return False
        is_needed_itself = other.unit.warming_since is not None and other.unit.rotation is Rotation.IN
        return self._role is Role.PRIMARY or not is_needed_itself

    def note_bug(self, path: str) -> None:
        """A request has broken here; it may fail alone."""
        self._log.exception("warm_request_broke", path=path)


class _Course:
    """One warm-up."""

    def __init__(self, warmer: Warmer, incarnation: Incarnation, planned: PlannedWarmup, bound: InForce) -> None:
        self._warmer = warmer
        self._incarnation = incarnation
        self._planned = planned
        self._bound = bound
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._seen = Warmup(planned.rounds)

    async def run(self) -> None:
        """Warm up until it is over, and say so."""
        async with asyncio.TaskGroup() as group:
            rounds = group.create_task(self._in_time())
            needed = group.create_task(self._warmer.until_needed())
            rounds.add_done_callback(lambda _: needed.cancel())
            needed.add_done_callback(lambda _: rounds.cancel())
        if not self._seen.is_over:
            self._seen = self._seen.cut_short(self._loop.time() - self._began)
        self._warmer.tell(self._incarnation, self._seen)

    async def _in_time(self) -> None:
        timeout = self._planned.timeout
        try:
            async with asyncio.timeout_at(self._began + timeout), self._planned.requests(self._bound) as requests:
                while not self._seen.is_over:
                    await self._round(requests)
        except TimeoutError:
            self._seen = self._seen.timed_out(timeout)

    async def _round(self, requests: WarmingRequests) -> None:
        """Ask each request once, and say how far that is, unless it is the end."""
        took, has_failed = 0.0, False
        for path in self._planned.paths:
            seconds = await self._ask(requests, path)
            if seconds is None:
                has_failed = True
            else:
                took += seconds
        latency = None if has_failed else took / len(self._planned.paths)
        self._seen = self._seen.after_round(latency, self._loop.time() - self._began)
        if not self._seen.is_over:
            self._warmer.tell(self._incarnation, self._seen)
            if has_failed:
                await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def _ask(self, requests: WarmingRequests, path: str) -> float | None:
        """Seconds until the answer was there; None: it was none, which is noted."""
        try:
            result = await requests.get(path, self._planned.timeout * SLOWEST)
        except Exception as error:
            self._warmer.note_bug(path)
            self._seen = self._seen.failed(f"{path}: the request itself broke ({type(error).__name__}: {error})")
            return None
        if result.passed:
            return result.took
        self._seen = self._seen.failed(result.text)
        return None
