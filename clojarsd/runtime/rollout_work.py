"""What those see who watch a rollout: its steps, the output of its commands, the question, and the end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from clojarsd.core.api import Step, step_line
from clojarsd.core.history import stamp
from clojarsd.core.names import Role
from clojarsd.core.rollout_facts import Outcome
from clojarsd.core.rollout_view import Question

MOST_LINES = 5_000
"""Lines that are kept for who comes later, or reads slowly; the log has all."""


class RolloutWork:
    """One rollout on its way; made by the deployer. Goes on whether or not anybody watches."""

    def __init__(self) -> None:
        self._lines: deque[dict[str, Any]] = deque(maxlen=MOST_LINES)
        self._count = 0
        self._news = asyncio.Event()
        self.outcome: Outcome | None = None
        self.message = ""
        self.output: tuple[str, ...] = ()
        self.question: Question | None = None

    def note(self, message: str, role: Role | None = None) -> None:
        """Add a step."""
        self._add(step_line(Step(stamp(datetime.now(UTC)), role, message)))

    def show_output(self, lines: Sequence[str]) -> None:
        """Add what a command has written."""
        for line in lines:
            self._add({"output": line})

    def ask(self, question: Question | None) -> None:
        """Ask what has to be answered by `promote` or `abort`; None: nothing is asked any more."""
        if question is None and self.question is None:
            return
        self.question = question
        self._add({"question": question and question.as_json()})

    def end(self, outcome: Outcome, message: str, output: Sequence[str] = ()) -> None:
        """End it. output: the last lines of the command that has failed."""
        self.outcome, self.message, self.output = outcome, message, tuple(output)
        self._tell()

    @property
    def told(self) -> int:
        """How many lines there have been."""
        return self._count

    async def lines(self, since: int = 0) -> AsyncIterator[dict[str, Any]]:
        """The lines so far, then the coming ones; ends with the rollout. Who reads too slowly misses the oldest.

        A question that is not asked any more is left out: nobody is to answer it.

        Args:
            since: how many of the first lines are left out; see `told`.
        """
        told = since
        while True:
            news = self._news
            while told < self._count:
                oldest = self._count - len(self._lines)
                told = max(told, oldest)
                line = self._lines[told - oldest]
                told += 1
                if line.get("question") is None or line["question"] == (self.question and self.question.as_json()):
                    yield line
            if self.outcome is not None:
                return
            if news is self._news:
                await news.wait()

    def _add(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        self._count += 1
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
