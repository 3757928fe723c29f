"""What is known of the rollout that is under way, kept in step with its journal and told to those who watch."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from clojarsd.core import rollout_journal as journal
from clojarsd.core.errors import Failed
from clojarsd.core.history import EventName, stamp
from clojarsd.core.names import Role
from clojarsd.core.rollout_facts import DOING, GoingBack, Kind, Outcome, Rollout, StepName, Wish
from clojarsd.core.step_times import step_text
from clojarsd.runtime.rollout_journals import Journals, short
from clojarsd.runtime.rollout_work import RolloutWork
from clojarsd.runtime.status import Board

log = structlog.get_logger()

_ENDS: Mapping[Outcome, EventName] = {
    Outcome.DONE: EventName.DEPLOY_FINISHED,
    Outcome.FAILED: EventName.DEPLOY_FAILED,
    Outcome.ABORTED: EventName.DEPLOY_ABORTED,
    Outcome.STUCK: EventName.DEPLOY_FAILED,
}


class History(Protocol):
    """Where things that happened are recorded."""

    def record(
        self, event: EventName, message: str, role: Role | None = None, by: str | None = None, **detail: Any
    ) -> None:
        """Add an event that happens now."""


class RolloutRecord:
    """The latest rollout. Made by the deployer's maker; whoever has it closes the journals.

    Attributes:
        latest: it, ended or not; None before the first one.
        work: what is told of it.
    """

    def __init__(self, journals: Journals, board: Board, history: History) -> None:
        self._journals = journals
        self._board = board
        self._history = history
        self._times: Mapping[str, float] = {}
        self.latest: Rollout | None = None
        self.work = RolloutWork()

    def load(self) -> None:
        """Take up what the journals tell. Blocks."""
        self.latest = self._journals.load()

    @property
    def under_way(self) -> Rollout | None:
        """The rollout that has not ended; None without one."""
        return self.latest if self.latest is not None and self.latest.outcome is None else None

    @property
    def rollout(self) -> Rollout:
        """The rollout that has not ended, where there is one."""
        assert self.under_way is not None
        return self.under_way

    async def begin(self, wish: Wish, approved_by: str | None) -> None:
        """Make the journal of a new rollout; raises Failed, and nothing has begun then.

        Args:
            approved_by: who has approved it already, so that nobody is asked.
        """
        records = [journal.asked(wish), *([journal.approved(approved_by, now())] if approved_by is not None else [])]
        await self._journals.begin(wish.id, records)
        self.latest, self.work = journal.told(records), RolloutWork()
        log.info("rollout_begun", id=wish.id, wish=wish.text, by=wish.by)
        self.event(EventName.DEPLOY_STARTED, f"{wish.by} began a {wish.text}", wish.by)

    async def look_back(self) -> None:
        """Learn how long steps took before."""
        self._times = await self._journals.times()

    async def write(self, record: journal.Record) -> None:
        """Write a record before what it announces is done; raises Failed, and then it is not known either."""
        await self._journals.write(record)
        self._know(record)

    async def note(self, record: journal.Record) -> None:
        """Write down what is so already; a disk that does not take it changes nothing about that."""
        await self._try_to_write(record)
        self._know(record)

    async def _try_to_write(self, record: journal.Record) -> None:
        try:
            await self._journals.write(record)
        except Failed as failed:
            log.error("journal_not_written", id=self.rollout.wish.id, record=record["what"], reason=str(failed))

    def _know(self, record: journal.Record) -> None:
        self.latest = journal.after(self.rollout, record)
        self._board.wake()

    async def approve(self, by: str) -> None:
        """The primary may follow; raises Failed when that cannot be written, and then it may not."""
        await self.write(journal.approved(by, now()))

    async def begin_step(self, step: StepName, until: str | None = None) -> None:
        """A step is to be carried out; raises Failed when that cannot be written, unless nothing can stop it any more.

        Args:
            until: when the answer is due (UTC) that it waits for.
        """
        record = journal.begun(step, now(), until)
        if self.rollout.back is not None or self.rollout.is_good:
            await self.note(record)
        else:
            await self.write(record)

    async def finish_step(self, step: StepName, seconds: float, facts: Mapping[str, str | None]) -> None:
        """A step has come to its good end."""
        await self.note(journal.done(step, now(), seconds, **facts))
        before = None if step is StepName.APPROVE else self._times.get(step.value)  # how long people take says nothing
        wish, text = self.rollout.wish, step_text(step.value, seconds, before)
        self.work.note(text)
        log.info("rollout_step_done", id=wish.id, step=step.value, took_s=round(seconds, 3))
        self.event(EventName.DEPLOY_STEP, f"{wish.text}: {text}", wish.by, step=step.value, seconds=round(seconds, 3))

    async def fail_step(self, step: StepName, why: str) -> None:
        """A step has failed that turns nothing back: one on the way back, or one after the release was good."""
        await self.note(journal.failed(step, now(), why))
        self.work.note(f"cannot go back: {DOING[step]}: {why}" if self.rollout.back else f"{DOING[step]}: {why}")
        log.error("rollout_step_failed", id=self.rollout.wish.id, step=step.value, reason=why)

    async def turn(self, back: GoingBack) -> None:
        """It does not go on, but back."""
        back = GoingBack(back.why, back.step, back.is_abort, back.by, tuple(short(back.output)))
        await self.note(journal.turned(back, now()))
        self.work.ask(None)
        then = "it goes back" if self.rollout.has_changed else "it ends"
        self.work.note(f"{back.why}; {then}" if back.is_abort else f"{DOING[back.step]}: {back.why}; {then}")
        log.warning("rollout_turned_back", step=back.step.value, reason=back.why, by=back.by)

    async def end(self, outcome: Outcome, message: str) -> None:
        """Nothing is left to be done."""
        rollout, record = self.rollout, journal.ended(outcome, message, now())
        await self._try_to_write(record)
        await self._journals.end()
        self._know(record)  # from here on another one may begin, so nothing below waits
        wish = rollout.wish
        log.info("rollout_ended", id=wish.id, outcome=outcome.value, release=rollout.release)
        is_rollback = outcome is Outcome.DONE and wish.kind is Kind.ROLLBACK
        event = EventName.ROLLBACK_FINISHED if is_rollback else _ENDS[outcome]
        self.event(event, message, wish.by, outcome=outcome.value)
        self.work.end(outcome, message, rollout.back.output if rollout.back is not None else ())

    def event(self, event: EventName, message: str, by: str | None, role: Role | None = None, **detail: Any) -> None:
        """Put something about the rollout into the history."""
        assert self.latest is not None
        wish = self.latest.wish
        known = {"rollout": wish.id, "kind": wish.kind.value, "tag": wish.tag, "previous": wish.previous}
        self._history.record(event, message, role, by, **known, release=self.latest.release, **detail)


def now() -> str:
    """The wall clock, as journals have it."""
    return stamp(datetime.now(UTC))
