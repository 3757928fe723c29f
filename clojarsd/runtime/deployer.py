"""Carries rollouts out, one at a time: what the planner says, written down before it is done.

The journal on the disk is the lock: a rollout is under way as long as its journal has no end, whoever dies meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

import structlog

from clojarsd.core.errors import ClojarsdError, CommandFailed, Failed, Refused, reason_of
from clojarsd.core.history import EventName
from clojarsd.core.names import Role
from clojarsd.core.rollout import (
    Do,
    End,
    Relaunch,
    Switch,
    TurnBack,
    broken_rule,
    held_back,
    next_move,
    why_not_abort,
    why_not_resumed,
)
from clojarsd.core.rollout_facts import DOING, GoingBack, HeldBack, Outcome, Rollout, StepName, Wish
from clojarsd.core.rollout_texts import how_it_ended
from clojarsd.core.rollout_view import Question, RolloutView, place, under_way
from clojarsd.runtime.rollout_answer import Answer
from clojarsd.runtime.rollout_record import RolloutRecord
from clojarsd.runtime.rollout_watch import look, settled
from clojarsd.runtime.rollout_work import RolloutWork
from clojarsd.runtime.status import Board

log = structlog.get_logger()

Facts = Mapping[str, str | None]


class Steps(Protocol):
    """Carries the steps of one rollout out; each returns at its good end, and raises Failed."""

    async def do(self, step: StepName, rollout: Rollout, work: RolloutWork) -> Facts:
        """A step without an effect on the pair; what it has found out. Cancelled, it leaves nothing running."""

    async def switch(self, release: str | None) -> None:
        """Let the link name the release, which must be what was installed; None: take it away."""

    async def relaunch(self, move: Relaunch, work: RolloutWork) -> None:
        """Restart the instance, and return when it serves, or rests."""

    async def question(self, rollout: Rollout) -> Question:
        """What is to be asked; due when the rollout says, if it was asked before."""

    def sharing(self) -> AbstractContextManager[None]:
        """While it is entered, the backup gets its share of the new connections."""

    async def until_answered(self, is_answered: Callable[[], bool]) -> None:
        """Wait for the answer; raises Failed when the backup shows meanwhile that it is not to be trusted."""

    async def ended(self, rollout: Rollout) -> None:
        """Clean up after a rollout that ends."""


class Deployer:
    """One rollout at a time, as long as the daemon lives; `run` belongs to its task group and alone writes the journal.

    Args:
        steps: makes those who carry the steps of a rollout out, by the settings as they are then; raises Failed.
        current: what the link names, None without one; asks the disk, so that it is called in a thread.
        log_of: where the output of a rollout's commands goes, by its id.
        clean: ends what the commands of a rollout that a former daemon has left still run.
    """

    def __init__(
        self,
        record: RolloutRecord,
        board: Board,
        steps: Callable[[Wish], Steps],
        current: Callable[[], str | None],
        log_of: Callable[[str], str],
        clean: Callable[[str], Awaitable[None]],
    ) -> None:
        self._record = record
        self._board = board
        self._make_steps = steps
        self._current = current
        self._log_of = log_of
        self._clean = clean
        self._acting: asyncio.Task[Any] | None = None
        self._stop: GoingBack | None = None
        self._answer = Answer()
        self._begun = asyncio.Event()
        self._is_left = False
        self.after_move: Callable[[], None] = lambda: None
        """Called after each move and at the end, when what an instance may run may have changed; set by the owner."""

    def load(self) -> None:
        """Take up what the journals tell, before any instance is started. Blocks."""
        self._record.load()
        if self._record.under_way is not None:
            self._is_left = True
            self._begun.set()

    # What others see.

    @property
    def work(self) -> RolloutWork:
        """What is told of the rollout that is under way, or of the latest of this daemon."""
        return self._record.work

    @property
    def view(self) -> RolloutView | None:
        """The rollout that is under way, or was the latest."""
        latest = self._record.latest
        if latest is None:
            return None
        return RolloutView(latest, self._log_of(latest.wish.id), self.work.question)

    @property
    def under_way(self) -> str | None:
        """Which rollout is under way that cannot be taken up by other code just now, in words."""
        rollout = self._record.under_way
        if rollout is None or rollout.at_step is StepName.APPROVE:
            return None
        return f"{rollout.wish.text} is at {place(rollout)}"

    def why_busy(self) -> str | None:
        """Who does what since when, where a rollout is under way."""
        rollout = self._record.under_way
        return under_way(rollout) if rollout is not None else None

    def held_back(self, role: Role) -> HeldBack | None:
        """What an instance that must be launched now gets instead of what the link names; None: that."""
        latest = self._record.latest
        return held_back(latest, role) if latest is not None else None

    # Orders.

    async def begin(self, wish: Wish, approved_by: str | None) -> RolloutWork:
        """Begin a rollout, of which nobody is to be asked when it is approved; on return it will not be forgotten.

        Who calls sees to it that only one is about to begin.

        Raises:
            Refused: another one is under way; nothing was done.
            Failed: the journal cannot be written; nothing was done.
        """
        if (why := self.why_busy()) is not None:
            raise Refused(f"cannot begin a {wish.kind.value}: {why}; nothing was done")
        self._stop = None
        await self._record.begin(wish, approved_by)
        self._begun.set()
        return self.work

    async def promote(self, by: str) -> RolloutWork:
        """Let the rollout that waits for it go on to the primary; on return the answer will not be forgotten.

        It has come in time, or too late, or never at all: the rollout itself takes it, and nobody else.

        Raises:
            Refused: none waits, or the answer cannot be written down.
        """
        rollout = self._wanted("promote")
        if rollout.at_step is not StepName.APPROVE or self._stop is not None:
            raise Refused(f"cannot promote: {under_way(rollout)}, and waits for nobody; nothing was done")
        if rollout.approved_by is None:
            counted = self._answer.give(by)
            self._board.wake()
            await counted
        return self.work

    def abort(self, by: str) -> RolloutWork:
        """Let the rollout go back from where it is.

        Raises:
            Refused: there is none, or it is too late.
        """
        rollout = self._wanted("abort")
        if (late := why_not_abort(rollout)) is not None:
            raise Refused(f"cannot abort: {late}; nothing was done")
        if self._stop is None:
            step = rollout.at_step if rollout.at_step is not None else rollout.next_step
            self._stop = GoingBack(f"aborted by {by}", step, is_abort=True, by=by)
            self.work.note(f"{by} has aborted it")
            if self._acting is not None:
                self._acting.cancel()
        return self.work

    def _wanted(self, verb: str) -> Rollout:
        rollout = self._record.under_way
        if rollout is None:
            raise Refused(f"cannot {verb}: no deploy or rollback is under way; nothing was done")
        return rollout

    # Carrying out.

    async def run(self) -> NoReturn:
        """Carry rollouts out until cancelled; one that a former daemon has left comes first."""
        try:
            while True:
                await self._begun.wait()
                self._begun.clear()
                await self._record.look_back()
                if self._is_left:
                    self._is_left = False
                    await self._take_up(self._record.rollout)
                await self._carry_through()
                self._answer.refuse("the rollout has ended")
                self.after_move()
        finally:
            self._answer.refuse("clojarsd is ending")

    async def _carry_through(self) -> None:
        """Carry out the rollout that is under way, to its end."""
        try:
            steps = self._make_steps(self._record.rollout.wish)
        except ClojarsdError as error:
            await self._give_up(self._record.rollout, error)
            return
        while (rollout := self._record.under_way) is not None:
            await self._move(rollout, steps)
            self.after_move()

    async def _take_up(self, rollout: Rollout) -> None:
        """Go on with what a former daemon has left: end its commands, and wait until it is known how the pair is."""
        back, wish = why_not_resumed(rollout), rollout.wish
        what = "it goes back" if back is not None or rollout.back is not None else "it goes on"
        text = f"clojarsd was started again while a {wish.text} was at {place(rollout)}; {what}"
        log.warning("rollout_taken_up", id=wish.id, wish=wish.text, step=place(rollout), goes=what)
        self.work.note(text)
        self._record.event(EventName.DEPLOY_STEP, text, wish.by)
        try:
            await self._clean(wish.id)
        except (ClojarsdError, OSError) as error:  # what is left is found again by the next command of a rollout
            log.error("rollout_leftovers_not_ended", id=wish.id, reason=reason_of(error))
        if back is not None:
            await self._record.turn(back)
        await settled(self._board)

    async def _give_up(self, rollout: Rollout, why: ClojarsdError) -> None:
        """End a rollout that cannot go anywhere; one whose release is good has all that counts behind it."""
        outcome = Outcome.DONE
        if not rollout.is_good:
            step = rollout.at_step if rollout.at_step is not None else rollout.next_step
            await self._record.turn(GoingBack(str(why), step))
            outcome = Outcome.STUCK if rollout.has_changed else Outcome.FAILED
        await self._record.end(outcome, self._told_end(outcome))

    def _told_end(self, outcome: Outcome) -> str:
        rollout = self._record.rollout
        return how_it_ended(rollout, outcome, self._board.view(), self._log_of(rollout.wish.id))

    async def _move(self, rollout: Rollout, steps: Steps) -> None:
        """Make the next move, and write down what came of it."""
        if self._stop is not None and rollout.back is None and not rollout.is_good:
            await self._record.turn(self._stop)
            return
        if rollout.at_step is not StepName.APPROVE:
            self._answer.refuse(f"{under_way(rollout)}, and waits for nobody any more")
        link = await asyncio.to_thread(self._current)
        seen = look(self._board, link)
        move = next_move(rollout, seen)
        if (rule := broken_rule(rollout, seen, move)) is not None:
            log.critical("rollout_rule_broken", rule=rule, move=repr(move))
            bug = GoingBack(f"this is a bug in clojarsd: {rule}", rollout.next_step)
            move = TurnBack(bug) if rollout.back is None else End(Outcome.STUCK)
        match move:
            case TurnBack(back):
                await self._record.turn(back)
            case End(outcome):
                message = self._told_end(outcome)
                await self._clean_up(rollout, steps)
                await self._record.end(outcome, message)
            case Do() | Switch() | Relaunch():
                await self._carry_out(move, steps)

    async def _carry_out(self, move: Do | Switch | Relaunch, steps: Steps) -> None:
        step, loop = move.step, asyncio.get_running_loop()
        if step is not StepName.APPROVE:  # which is written with its deadline
            try:
                await self._record.begin_step(step)
            except Failed as failed:
                await self._record.turn(GoingBack(str(failed), step))
                return
            if self._stop is not None and self._record.rollout.back is None and not self._record.rollout.is_good:
                return  # aborted while the journal was written: nothing of the step is done
        self.work.note(DOING[step])
        began = loop.time()
        result = await self._attempt(move, steps)
        if not isinstance(result, GoingBack):
            await self._record.finish_step(step, loop.time() - began, result)
        elif self._record.rollout.back is None and not self._record.rollout.is_good:
            await self._record.turn(result)
        else:
            await self._record.fail_step(step, result.why)

    async def _attempt(self, move: Do | Switch | Relaunch, steps: Steps) -> Facts | GoingBack:
        """What the step has found out, or why it has failed or was stopped."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._act(move, steps))
            # what others go by is over at once, and must not go on when it counts as stopped
            can_stop = not isinstance(move, Switch) and move.step is not StepName.GOOD
            if can_stop and self._record.rollout.back is None and not self._record.rollout.is_good:
                self._acting = task
        self._acting = None
        if not task.cancelled():
            return task.result()
        assert self._stop is not None, "only an abort cancels a step alone"
        return self._stop

    async def _act(self, move: Do | Switch | Relaunch, steps: Steps) -> Facts | GoingBack:
        try:
            match move:
                case Do(StepName.APPROVE):
                    return await self._await_answer(steps)
                case Do(step):
                    return await steps.do(step, self._record.rollout, self.work)
                case Switch(_, release):
                    await steps.switch(release)
                case Relaunch():
                    await steps.relaunch(move, self.work)
        except CommandFailed as failed:
            return GoingBack(str(failed), move.step, output=failed.last_lines)
        except ClojarsdError as error:
            return GoingBack(str(error), move.step)
        except OSError as error:
            log.exception("rollout_step_broke", step=move.step.value)
            where = f"{error.filename}: " if error.filename is not None else ""
            return GoingBack(f"{where}{reason_of(error)}", move.step)
        except Exception as error:  # a rollout may fail alone: the pair serves on
            log.exception("rollout_step_broke", step=move.step.value)
            return GoingBack(f"this is a bug in clojarsd ({type(error).__name__}: {error})", move.step)
        return {}

    async def _await_answer(self, steps: Steps) -> Facts | GoingBack:
        """Ask, and wait for the answer; a daemon that takes the question up keeps to the first deadline.

        One that finds the answer in the journal goes on: the former daemon has died right after it.
        """
        if self._record.rollout.approved_by is not None:
            return {}
        question = await steps.question(self._record.rollout)
        await self._record.begin_step(StepName.APPROVE, question.until)
        self.work.ask(question)
        wish = self._record.rollout.wish
        text = f"{wish.text} waits for `clojarsctl promote` or `clojarsctl abort` until {question.until}"
        self._record.event(EventName.DEPLOY_WAITING, text, wish.by, Role.BACKUP)
        left = (datetime.fromisoformat(question.until) - datetime.now(UTC)).total_seconds()
        try:
            with steps.sharing():
                return await self._wait(steps, asyncio.get_running_loop().time() + max(left, 0.0), question.until)
        finally:
            self.work.ask(None)

    async def _wait(self, steps: Steps, deadline: float, until: str) -> Facts | GoingBack:
        """Wait for the answer, and write it down; an answer in time counts also when the disk is late.

        Args:
            until: the deadline, for people.
        """
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await steps.until_answered(lambda: self._answer.by is not None)
            except TimeoutError:
                if self._answer.by is None:
                    return GoingBack(f"nobody answered until {until}", StepName.APPROVE, is_abort=True)
            by = self._answer.by
            assert by is not None
            try:
                await self._record.approve(by)
            except Failed as failed:
                self._answer.refuse(f"{failed}; it waits on")
                continue
            self._answer.count()
            self.work.note(f"{by} has approved it")
            return {}

    async def _clean_up(self, rollout: Rollout, steps: Steps) -> None:
        """What cannot be cleaned up is no reason not to end."""
        if StepName.CHECKOUT in rollout.begun:  # which takes seconds on a busy disk
            self.work.note("removing its checkout")
        try:
            await steps.ended(rollout)
        except (ClojarsdError, OSError) as error:
            log.warning("rollout_not_cleaned_up", id=rollout.wish.id, reason=reason_of(error))
        except Exception:  # as in a step
            log.exception("rollout_not_cleaned_up", id=rollout.wish.id)
