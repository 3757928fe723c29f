"""The connections that the kernel has steered to the instances: how many there are, and their drain.

The supervisor has one of these. Everything that asks the kernel runs in one thread; what comes back is acted on in the
loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Self, TypeVar

import structlog

from clojarsd.core.connections import ConnectionList, joined
from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Role
from clojarsd.runtime.steered_drain import SteeredDrain
from clojarsd.runtime.steered_look import Destroyed, Looker, is_silent, may_end, view_of
from clojarsd.system.sock_diag import SockDiag
from clojarsd.system.threads import executor

log = structlog.get_logger()
T = TypeVar("T")

COUNT_LASTS = 0.5
"""Seconds for which a count is good enough for whoever asks."""


class SteeredConnections:
    """Made by the supervisor where something is steered, and closed by it. No task runs inside.

    Args:
        pids: the numbers of an instance's processes; called in a thread, often, and empty when there is none.

    Raises:
        OSError: the kernel does not tell of connections, or no descriptor is left.
        RuntimeError: no thread is to be had.
    """

    def __init__(self, pids: Callable[[Role], Collection[int]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._diag = SockDiag()
        try:
            self._executor = executor("steered", 1)
        except BaseException:
            self._diag.close()
            raise
        self._looker = Looker(self._diag, pids)
        self._plans: tuple[FrontendPlan, ...] = ()
        self._former: tuple[FrontendPlan, ...] = ()
        """Frontends with addresses that are not steered any more, and may have connections from before."""
        self._drains: dict[Role, SteeredDrain] = {}
        self._counted_at = -COUNT_LASTS
        self._count: asyncio.Future[dict[str, dict[Role, int]]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave all connections as they are, and give everything back; nobody is called any more.

        Returns when what is under way in the thread has come to its end: 0.1 s where there are 10,000 connections.
        """
        for drain in self._drains.values():
            drain.close()
        self._executor.shutdown()
        self._diag.close()

    def configure(self, plans: Iterable[FrontendPlan]) -> None:
        """Steered are these frontends and no others; drains that have begun go on as they are."""
        wanted = tuple(plans)
        gone = [
            replace(before, listen=tuple(address for address in before.listen if address not in still))
            for before in (*self._plans, *self._former)
            for still in [{address for plan in wanted for address in plan.listen}]
        ]
        self._former = tuple(plan for plan in gone if plan.listen)
        self._plans = wanted
        self._counted_at = -COUNT_LASTS

    # Looking.

    async def count(self) -> Mapping[str, Mapping[Role, int]]:
        """How many connections of each steered frontend each instance has; half a second old at most.

        Raises:
            OSError: the kernel did not answer.
        """
        if self._count is None or (self._count.done() and self._loop.time() - self._counted_at > COUNT_LASTS):
            self._counted_at = self._loop.time()
            self._count = self._loop.run_in_executor(self._executor, partial(self._counted, self._plans))
        return await asyncio.shield(self._count)

    def _counted(self, plans: Sequence[FrontendPlan]) -> dict[str, dict[Role, int]]:
        seen = self._looker.look(plans, info=False)
        return {plan.name: {role: len(seen.open[plan.name, role]) for role in Role} for plan in plans}

    async def connections(self, frontend: str | None = None) -> ConnectionList:
        """The steered connections one by one, of all frontends or of that one, those first that keep a drain.

        Raises:
            Failed: they cannot be seen.
        """
        plans = [plan for plan in self._all_plans() if frontend in (None, plan.name)]
        try:
            return await self._loop.run_in_executor(self._executor, partial(self._listed, plans))
        except OSError as error:
            raise Failed(f"cannot list the steered connections: {reason_of(error)}") from error

    def _listed(self, plans: Sequence[FrontendPlan]) -> ConnectionList:
        seen = self._looker.look(plans)
        found = [view_of(name, role, one) for (name, role), some in seen.open.items() for one in some]
        found += [view_of(name, None, one) for name, some in seen.waiting.items() for one in some]
        return joined([ConnectionList(tuple(found))])

    # Draining.

    def begin(self, role: Role, when_drained: Callable[[], None], within: float | None = None) -> None:
        """Wait until the instance's connections have ended, each within its frontend's time, and call back.

        To be called after new connections go elsewhere. A drain that is under way goes on with the time it has left, or
        less, and calls back whoever was given last.

        Args:
            within: seconds, where that is less than the frontend's time.
        """
        drain = self._drains.get(role)
        if drain is not None and not drain.is_over:
            drain.shorten(within, when_drained)
            return
        self._drains[role] = SteeredDrain(role, self._all_plans(), within, self._looker, self._in_thread, when_drained)

    def end(self, role: Role) -> None:
        """Leave the instance's connections alone again, and do not call back."""
        drain = self._drains.pop(role, None)
        if drain is not None:
            drain.close()

    def tally(self, role: Role) -> DrainTally:
        """What has become of the connections of the instance's drain, so far."""
        drain = self._drains.get(role)
        return drain.tally() if drain is not None else DrainTally()

    def cut(self, role: Role) -> None:
        """Reset the connections that the instance has accepted, as it is about to be ended.

        All of them while its drain is under way, or where none was begun. After a drain that is over those are spared
        to which an answer is owed by now: the instance may still give it.
        """
        drain = self._drains.get(role)
        spares = drain is not None and drain.is_over
        self._in_thread(partial(self._destroyed, role, tuple(self._all_plans()), spares), partial(self._say_cut, role))

    def reset(
        self, frontend: str, role: Role, why: str, *, silent_for: float | None = None, then: Callable[[int], None]
    ) -> None:
        """Reset connections of one frontend that the instance has accepted, in the thread.

        Args:
            why: for the log, after what was done.
            silent_for: only those that have been silent for so many seconds and are owed nothing; None: all.
            then: told how many are left; 0 as well where they cannot be seen or reset, so that nobody tries again.
        """

        def done(result: tuple[int, int, str | None] | OSError) -> None:
            if isinstance(result, OSError):
                reason = reason_of(result)
                log.warning("steered_connections_unseen", frontend=frontend, role=role.value, reason=reason)
                then(0)
                return
            left, count, trouble = result
            if trouble is not None:
                log.warning("steered_connections_left", frontend=frontend, role=role.value, reason=trouble)
            if count:
                log.info("steered_connections_cut", frontend=frontend, role=role.value, connections=count, reason=why)
            then(0 if trouble is not None else left)

        self._in_thread(partial(self._reset, frontend, role, tuple(self._all_plans()), silent_for), done)

    def _reset(
        self, frontend: str, role: Role, plans: Sequence[FrontendPlan], silent_for: float | None
    ) -> tuple[int, int, str | None]:
        """How many are left, how many were reset, and why others could not be."""
        found = self._looker.look(plans).open.get((frontend, role), ())
        doomed = [one for one in found if silent_for is None or (is_silent(one, silent_for) and not one.unsent)]
        reset = self._looker.destroy(doomed)
        return len(found) - len(reset.done), len(reset.done), reset.trouble

    def waited_until(self, frontend: str) -> dict[Role, float]:
        """The instances whose drain waits for connections of the frontend, with the loop time until when."""
        found = {role: drain.waited_until(frontend) for role, drain in self._drains.items()}
        return {role: at for role, at in found.items() if at is not None}

    def _destroyed(self, role: Role, plans: Sequence[FrontendPlan], spares: bool) -> Destroyed:
        seen = self._looker.look(plans)
        idle = {plan.name: plan.drain_idle for plan in plans}
        found = [(name, one) for (name, whose), some in seen.open.items() if whose is role for one in some]
        return self._looker.destroy([one for name, one in found if not spares or may_end(one, idle[name])])

    def _say_cut(self, role: Role, result: Destroyed | OSError) -> None:
        if isinstance(result, OSError):
            log.warning("steered_connections_unseen", role=role.value, reason=reason_of(result))
            return
        if result.trouble is not None:
            left = len(result.left)
            log.warning("steered_connections_left", role=role.value, connections=left, reason=result.trouble)
        if result.done:
            log.info("steered_connections_cut", role=role.value, connections=len(result.done))

    def _all_plans(self) -> list[FrontendPlan]:
        return [*self._plans, *self._former]

    def _in_thread(self, act: Callable[[], T], then: Callable[[T | OSError], None]) -> Callable[[], None]:
        is_wanted = True

        def done(future: asyncio.Future[T]) -> None:
            error = future.exception()
            if not is_wanted:
                return
            if error is not None and not isinstance(error, OSError):
                raise error  # a bug, which the loop's handler of exceptions tells
            then(error if isinstance(error, OSError) else future.result())

        def call_off() -> None:
            nonlocal is_wanted
            is_wanted = False

        self._loop.run_in_executor(self._executor, act).add_done_callback(done)
        return call_off
