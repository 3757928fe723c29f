"""What a rollout does to the pair: the link, restarts without an outage, and the look at what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from clojarsd.core.api import Verb
from clojarsd.core.errors import CommandFailed, Failed, OrderFailed
from clojarsd.core.names import Role, UnitState
from clojarsd.core.progress import as_sentence
from clojarsd.core.rollout import Relaunch
from clojarsd.core.rollout_facts import StepName
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.rollout_watch import how_it_is, soak
from clojarsd.runtime.rollout_work import RolloutWork
from clojarsd.runtime.status import Board

LAST_LINES = 20


class LastWords(Protocol):
    """What an instance has written last."""

    async def __call__(self, role: Role, count: int) -> Sequence[str]:
        """The last lines of its log; empty where there are none."""


@dataclass(frozen=True, slots=True)
class PairOfRollout:
    """Restarts instances for a rollout.

    Attributes:
        by: whose rollout it is.
        soak: seconds for which an instance must serve before it is trusted.
        patience: seconds that it may need besides, by role.
    """

    orders: Orders
    board: Board
    by: str
    soak: float
    patience: Callable[[Role], float]
    last_words: LastWords

    async def relaunch(self, move: Relaunch, work: RolloutWork) -> None:
        """Restart the instance; return when it runs what it is to run, and serves, or rests where there is nothing.

        Raises:
            Failed: it has not come to that, with the last lines of its log.
        """
        role = move.role
        try:
            if not move.is_there:
                await self._restart(role, move, work)
            if move.into is None:
                return
            seen = self.board.instance(role)
            if seen.release != move.into:
                raise Failed(f"{role.value} runs {seen.release} instead of {move.into}")
            if move.step is StepName.BACKUP:
                work.note(f"{role.value} is watched for {self.soak:g} s", role)
                await soak(self.board, (role,), self.soak, self.patience(role))
        except CommandFailed:
            raise
        except Failed as failed:
            raise CommandFailed(str(failed), await self.last_words(role, LAST_LINES)) from failed

    async def _restart(self, role: Role, move: Relaunch, work: RolloutWork) -> None:
        rests = move.into is None
        order = self.orders.submit(Verb.RESTART, (role,), self.by, force=move.alone, rests=rests)
        async for step in order.steps():
            work.note(step.message, step.role)
        try:
            await order.result()
        except OrderFailed as failed:
            seen = self.board.instance(role)
            if rests and seen.unit.state is UnitState.STOPPED:
                return
            is_tried_again = seen.unit.state is UnitState.BACKOFF  # which what comes next makes an idle word
            raise Failed(as_sentence(role, how_it_is(seen)) if is_tried_again else failed.reason) from failed

    async def watch_both(self) -> None:
        """Return when both have served for the time of a soak without a break; raises Failed."""
        await soak(self.board, tuple(Role), self.soak, max(self.patience(role) for role in Role))
