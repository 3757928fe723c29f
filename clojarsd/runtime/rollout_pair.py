"""What a rollout does to the pair: the link, restarts without an outage, and the look at what came of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from clojarsd.core.api import Verb
from clojarsd.core.errors import CommandFailed, InstanceFailed, OrderFailed
from clojarsd.core.names import Role, UnitState
from clojarsd.core.progress import as_sentence
from clojarsd.core.rollout import Relaunch
from clojarsd.core.rollout_facts import StepName
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.rollout_watch import how_it_is, soak, until_answered
from clojarsd.runtime.rollout_work import RolloutWork
from clojarsd.runtime.status import Board
from clojarsd.system.log_since import LastLines

LAST_LINES = 20


class Listen(Protocol):
    """Listens to what an instance writes."""

    def __call__(self, role: Role) -> AbstractAsyncContextManager[LastLines]:
        """Within the block the last lines of what it has written since can be had; none where they cannot be read."""


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
    listen: Listen

    async def relaunch(self, move: Relaunch, work: RolloutWork) -> None:
        """Restart the instance; return when it runs what it is to run, and serves, or rests where there is nothing.

        Raises:
            CommandFailed: it has not come to that, with the last lines that it has written since.
        """
        role = move.role
        async with self._listening(role):
            if not move.is_there:
                await self._restart(role, move, work)
            if move.into is None:
                return
            seen = self.board.instance(role)
            if seen.release != move.into:
                raise InstanceFailed(f"{role.value} runs {seen.release} instead of {move.into}", role)
            if move.step is StepName.BACKUP:
                work.note(f"{role.value} is watched for {self.soak:g} s", role)
                await soak(self.board, (role,), self.soak, self.patience(role))

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
            why = as_sentence(role, how_it_is(seen)) if is_tried_again else failed.reason
            raise InstanceFailed(why, role) from failed

    async def watch_both(self) -> None:
        """Return when both have served for the time of a soak without a break; raises CommandFailed."""
        async with self._listening(*Role):
            await soak(self.board, tuple(Role), self.soak, max(self.patience(role) for role in Role))

    async def until_answered(self, is_answered: Callable[[], bool]) -> None:
        """Wait for an answer; raises CommandFailed when the backup falls over meanwhile."""
        async with self._listening(Role.BACKUP):
            await until_answered(self.board, Role.BACKUP, is_answered)

    @asynccontextmanager
    async def _listening(self, *roles: Role) -> AsyncIterator[None]:
        """When an instance fails within the block, what it has written since is told with that."""
        async with AsyncExitStack() as stack:
            heard = {role: await stack.enter_async_context(self.listen(role)) for role in roles}
            try:
                yield
            except InstanceFailed as failed:
                raise CommandFailed(str(failed), await heard[failed.role](LAST_LINES)) from failed
