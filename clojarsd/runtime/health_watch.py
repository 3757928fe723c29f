"""Checks one instance at its intervals and reports to its runner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, Protocol

import structlog

from clojarsd.core.errors import Failed
from clojarsd.core.health import CheckRecord, Result, count
from clojarsd.core.names import Health, Incarnation, Role

log = structlog.get_logger()

STARTING_SPEED = 5
"""How many times as often as its interval says a check is made until it passes for the first time in an incarnation,
and at the most when somebody has reason to doubt the instance."""


@dataclass(frozen=True, slots=True)
class PlannedCheck:
    """One check of one instance: what to do, and how to count."""

    kind: str
    ask: Callable[[], Awaitable[Result]]
    interval: float
    rise: int
    fall: int


class CheckedUnit(Protocol):
    """Who hears the results."""

    def checked(self, incarnation: Incarnation, records: tuple[CheckRecord, ...], which: int) -> None:
        """The records of all checks, after a result of the one at index `which`."""


class HealthWatch:
    """The checks of one role, for as long as the daemon lives; `run` belongs to the daemon's task group."""

    def __init__(self, role: Role, checks: Sequence[PlannedCheck], unit: CheckedUnit) -> None:
        self._checks = tuple(checks)
        self._unit = unit
        self._target: Incarnation | None = None
        self._retargeted = asyncio.Event()
        self._hurried = asyncio.Event()
        self._records: list[CheckRecord] = []
        self._round = 0
        """How often it was said what to check: what was asked before may be answered after, and is old news then."""
        self._known: tuple[CheckRecord, ...] = ()
        self._unmade: set[PlannedCheck] = set()
        """Those that could not be made when that was tried last: said once for each episode."""
        self._log = log.bind(role=role.value)

    def begin(self, incarnation: Incarnation, known: Sequence[CheckRecord] = ()) -> None:
        """Check this incarnation, and no other, from now on.

        Args:
            known: what is known already of each check; empty: nothing.
        """
        self._target = incarnation
        self._known = tuple(known)
        self._round += 1
        self._retargeted.set()

    def replan(self, checks: Sequence[PlannedCheck]) -> None:
        """Make these checks from the next `begin` on."""
        self._checks = tuple(checks)
        self._unmade.clear()

    def end(self) -> None:
        """Check nothing."""
        self._target = None
        self._round += 1
        self._retargeted.set()

    def hurry(self) -> None:
        """Make the next checks now: somebody has reason to doubt the instance."""
        self._hurried.set()
        self._hurried = asyncio.Event()

    async def run(self) -> NoReturn:
        """Check until cancelled."""
        while True:
            self._retargeted.clear()
            async with asyncio.TaskGroup() as group:
                tasks = []
                if (target := self._target) is not None:
                    checks, number = self._checks, self._round
                    self._records = list(self._known) or [CheckRecord() for _ in checks]
                    tasks = [group.create_task(self._repeat(target, number, *one)) for one in enumerate(checks)]
                await self._retargeted.wait()
                for task in tasks:
                    task.cancel()

    async def _repeat(self, incarnation: Incarnation, number: int, which: int, check: PlannedCheck) -> NoReturn:
        has_passed = self._records[which].health is Health.UP
        loop, next_hurry_at = asyncio.get_running_loop(), 0.0
        while True:
            hurried = self._hurried
            result = await self._ask(check)
            if result is not None:
                record = count(self._records[which], result, check.rise, check.fall)
                self._note_change(check, self._records[which], record)
                has_passed = has_passed or result.passed
                self._records[which] = record
                if self._round == number:
                    self._unit.checked(incarnation, tuple(self._records), which)
            pause = check.interval if has_passed else check.interval / STARTING_SPEED
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await hurried.wait()
                    await asyncio.sleep(next_hurry_at - loop.time())  # a storm of doubts makes no storm of checks
            next_hurry_at = loop.time() + check.interval / STARTING_SPEED

    async def _ask(self, check: PlannedCheck) -> Result | None:
        """The check's result, None when it could not be made, which says nothing about the instance.

        A check that breaks may fail alone: it has not passed, and the next one is made.
        """
        try:
            result = await check.ask()
        except Failed as failed:
            if check not in self._unmade:
                self._unmade.add(check)
                self._log.warning("check_not_made", kind=check.kind, reason=str(failed))
            return None
        except Exception as error:
            self._log.exception("check_broke", kind=check.kind)
            return Result(False, f"the check itself broke ({type(error).__name__}: {error})", 0.0)
        if check in self._unmade:
            self._unmade.discard(check)
            self._log.info("check_made_again", kind=check.kind)
        return result

    def _note_change(self, check: PlannedCheck, before: CheckRecord, after: CheckRecord) -> None:
        if after.health is not before.health:
            assert after.last is not None
            self._log.info("check_turned", kind=check.kind, health=after.health.value, seen=after.last.text)
