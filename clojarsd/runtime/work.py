"""One order on its way, as those see it who watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from clojarsd.core.api import Step
from clojarsd.core.errors import ClojarsdError
from clojarsd.core.history import stamp
from clojarsd.core.names import Role


class Work:
    """One order on its way. Goes on whether or not anybody watches; made by `Orders.submit`."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._message: str | None = None
        self._warning: str | None = None
        self._error: ClojarsdError | None = None
        self._news = asyncio.Event()

    async def steps(self) -> AsyncIterator[Step]:
        """The steps so far, then the coming ones; ends with the work."""
        told = 0
        while True:
            news = self._news
            for step in self._steps[told:]:
                told += 1
                yield step
            if told == len(self._steps) and self._has_ended():
                return
            if news is self._news:
                await news.wait()

    async def result(self) -> str:
        """A sentence, when the work has come to its end.

        Raises:
            Failed: it has not come to what was asked; says what still holds.
        """
        while not self._has_ended():
            await self._news.wait()
        if self._error is not None:
            raise self._error
        assert self._message is not None
        return self._message if self._warning is None else f"{self._message}; {self._warning}"

    def note(self, role: Role | None, message: str) -> None:
        """Add a step."""
        at = stamp(datetime.now(UTC))
        self._steps.append(Step(at, role, message))
        self._tell()

    def warn(self, message: str) -> None:
        """Have the sentence stand at the end of the result, however it ends."""
        self._warning = message
        self.note(None, message)

    def finish(self, message: str) -> None:
        """End it well."""
        self._message = message
        self._tell()

    def fail(self, error: ClojarsdError) -> None:
        """End it badly."""
        self._error = error
        self._tell()

    def _has_ended(self) -> bool:
        return self._message is not None or self._error is not None

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
