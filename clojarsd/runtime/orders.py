"""Operators' orders over the pair: guarded, carried out whether or not anybody watches, narrated to whoever does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import NoReturn

import structlog

from clojarsd.core.api import Verb
from clojarsd.core.errors import ClojarsdError, Failed, OrderFailed, Refused
from clojarsd.core.names import Incarnation, Role, Rotation
from clojarsd.core.progress import (
    Verdict,
    already,
    as_sentence,
    gets_traffic,
    judge,
    narrate,
    what_serves,
    why_not_launch,
    why_not_reload,
    why_not_restart,
    why_not_with_environment,
)
from clojarsd.core.unit_events import Drain, Order, Reload, Restart, Start, Stop, Undrain
from clojarsd.runtime.status import Board
from clojarsd.runtime.unit_parts import BY_DAEMON
from clojarsd.runtime.unit_runner import UnitRunner
from clojarsd.runtime.work import Work

log = structlog.get_logger()

_ORDERS: Mapping[Verb, Callable[[float | None], Order]] = {
    Verb.START: lambda within: Start(),
    Verb.STOP: Stop,
    Verb.RESTART: Restart,
    Verb.DRAIN: Drain,
    Verb.UNDRAIN: lambda within: Undrain(),
    Verb.RELOAD: lambda within: Reload(),
}
NO_ENVIRONMENT: Mapping[str, str] = {}
KEEP_TIMEOUT = 2.0
"""Seconds that an order waits for the disk to remember it; a disk that is slower keeps nobody from being obeyed."""


@dataclass(frozen=True, slots=True)
class _How:
    """How an order is carried out: what its process gets besides its own, and how long its drain may last."""

    environment: Mapping[str, str]
    within: float | None


class Orders:
    """Takes orders for as long as the daemon lives; `run` belongs to its task group and holds the work under way.

    Args:
        failback: the longest time in seconds after which a primary that has failed so often serves again.
        refresh: takes the configuration over as it is on the disk, for who is given; raises Refused.
        kept: returns when what operators want is safe on the disk; raises Failed.
    """

    def __init__(
        self,
        runners: Mapping[Role, UnitRunner],
        board: Board,
        failback: Callable[[int], float],
        refresh: Callable[[str], Awaitable[object]],
        kept: Callable[[], Awaitable[None]],
    ) -> None:
        self._runners = runners
        self._board = board
        self._failback = failback
        self._refresh = refresh
        self._kept = kept
        self._group: asyncio.TaskGroup
        self._refusal: str | None = None
        self._under_way: dict[Work, str] = {}

    def refuse(self, why: str) -> None:
        """Take no order from now on; work under way goes on."""
        self._refusal = why

    async def run(self) -> NoReturn:
        """Carry work out until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            while True:
                await asyncio.Event().wait()

    @property
    def under_way(self) -> str | None:
        """The orders that have not come to their end, in words; None when all have."""
        return " and ".join(self._under_way.values()) or None

    async def begin(
        self,
        verb: Verb,
        roles: tuple[Role, ...],
        by: str,
        *,
        force: bool = False,
        timeout: float | None = None,
        environment: Mapping[str, str] = NO_ENVIRONMENT,
        within: float | None = None,
    ) -> Work:
        """Begin an order by the configuration as it is now, and return when it will not be forgotten; see `submit`.

        Raises:
            Refused: it does not fit what is, or the configuration cannot be used; nothing was done. By force a start
                or restart goes on with the configuration that is in use.
        """
        if verb in (Verb.START, Verb.RESTART) and self._refusal is None:
            try:
                await self._refresh(by)
            except Refused as refused:
                if not force:
                    names = " and ".join(role.value for role in roles)
                    raise Refused(
                        f"cannot {verb.value} {names} by the configuration as it is now: {refused};"
                        f" --force {verb.value}s by the one in use"
                    ) from refused
                log.warning("configuration_not_refreshed", verb=verb.value, reason=str(refused))
        work = self.submit(verb, roles, by, force=force, timeout=timeout, environment=environment, within=within)
        try:
            async with asyncio.timeout(KEEP_TIMEOUT):
                await self._kept()
        except (Failed, TimeoutError) as error:
            reason = str(error) or f"the disk has not taken it within {KEEP_TIMEOUT:g} s"
            log.warning("order_not_kept", verb=verb.value, reason=reason)
            if verb in (Verb.START, Verb.STOP):
                work.warn(f"this cannot be remembered, so the next clojarsd may not know of it: {reason}")
        return work

    def submit(
        self,
        verb: Verb,
        roles: tuple[Role, ...],
        by: str,
        *,
        force: bool = False,
        timeout: float | None = None,
        environment: Mapping[str, str] = NO_ENVIRONMENT,
        within: float | None = None,
        rests: bool = False,
    ) -> Work:
        """Begin an order; its first step is done when this returns, so that another order sees it.

        Args:
            roles: in this order where it matters: a restart of both is one after the other.
            force: restart although the other instance could not take over.
            timeout: seconds after which the work counts as failed; what was begun goes on all the same.
            environment: what the processes that this starts get besides their own, this once.
            within: seconds that open connections may last, where that is sooner than by the settings and so far.
            rests: restart though there is no release any more: the instance ends, and rests until there is one.

        Raises:
            Refused: it does not fit what is; nothing was done.
        """
        if self._refusal is not None:
            raise Refused(f"cannot {verb.value} {' and '.join(role.value for role in roles)}: {self._refusal}")
        work = Work()
        view = self._board.view()
        for role in roles:
            if verb is Verb.RELOAD and (why := why_not_reload(role, view)):
                raise Refused(why)
            if verb in (Verb.START, Verb.RESTART) and not rests:
                lacking = self._runners[role].lacking
                if why := why_not_launch(verb, role, view, lacking):
                    raise Refused(why)
            if environment and (why := why_not_with_environment(verb, role, view)):
                raise Refused(why)
        how = _How(environment, within)
        sentences = [already(verb, self._board.instance(role)) for role in roles]
        if all(sentences):
            work.finish("; ".join(sentence for sentence in sentences if sentence))
            return work
        if verb is Verb.RESTART:
            if not force and (why := why_not_restart(roles[0], view)):
                raise Refused(f"{why}; nothing was done; {_FORCE}")
            if not force and len(roles) > 1 and self._runners[roles[0]].unit.rotation is Rotation.OUT:
                first = roles[0].value
                raise Refused(
                    f"cannot restart {roles[1].value} after {first}: {first} is out of rotation and could not take"
                    f" over; nothing was done; {_FORCE}"
                )
            before = self._place(verb, roles[0], by, how)
            acting = self._restart_in_turn(work, roles, before, by, force, timeout, how)
        else:
            acting = self._watch(work, verb, [(role, self._place(verb, role, by, how)) for role in roles], timeout)
        self._under_way[work] = f"{verb.value} {' and '.join(role.value for role in roles)} (by {by})"
        self._group.create_task(acting).add_done_callback(lambda _: self._under_way.pop(work))
        return work

    def _place(self, verb: Verb, role: Role, by: str, how: _How) -> Incarnation:
        """Give the order to the runner; the incarnation that there was before."""
        before = self._runners[role].unit.incarnation
        order = _ORDERS[verb](how.within)
        self._runners[role].order(order, by, environment=how.environment, remember=by != BY_DAEMON)
        log.info("order_taken", verb=verb.value, role=role.value, by=by)
        return before

    async def _watch(
        self, work: Work, verb: Verb, places: Sequence[tuple[Role, Incarnation]], timeout: float | None
    ) -> None:
        """Follow an order that was placed for each role, until it has come to its end for all of them."""
        messages = []
        with _ending(work):
            deadline = _deadline(timeout)
            for role, before in places:
                messages.append(await self._finish(work, verb, role, before, deadline, timeout))
            work.finish("; ".join(messages))

    async def _restart_in_turn(
        self,
        work: Work,
        roles: Sequence[Role],
        before: Incarnation,
        by: str,
        force: bool,
        timeout: float | None,
        how: _How,
    ) -> None:
        """Follow the restart that was placed for the first role, then place and follow the others."""
        messages: list[str] = []
        with _ending(work):
            deadline = _deadline(timeout)
            for number, role in enumerate(roles):
                if number > 0:
                    before = self._place_next(role, roles[:number], by, force, how)
                messages.append(await self._finish(work, Verb.RESTART, role, before, deadline, timeout))
                async with self._in_time(Verb.RESTART, role, deadline, timeout):
                    await self._await_traffic(work, role, deadline)
            work.finish("; ".join(messages))

    def _place_next(self, role: Role, restarted: Sequence[Role], by: str, force: bool, how: _How) -> Incarnation:
        """Place the restart of a further role; what has changed since the order came may stand against it."""
        done = " and ".join(one.value for one in restarted)
        if self._refusal is not None:
            raise Failed(f"cannot restart {role.value}: {self._refusal}; {done} was restarted")
        if not force and (why := why_not_restart(role, self._board.view())):
            raise Failed(f"{why}; {done} was restarted, {role.value} was left as it is; {_FORCE}")
        return self._place(Verb.RESTART, role, by, how)

    @asynccontextmanager
    async def _in_time(
        self, verb: Verb, role: Role, deadline: float | None, timeout: float | None
    ) -> AsyncIterator[None]:
        """Watch until the deadline, and then raise Failed with what there is."""
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError:
            assert timeout is not None
            raise Failed(self._too_late(verb, role, timeout)) from None

    async def _finish(
        self,
        work: Work,
        verb: Verb,
        role: Role,
        before: Incarnation,
        deadline: float | None,
        timeout: float | None,
    ) -> str:
        """Narrate until the order has come to its end for one role, or the deadline to its."""
        try:
            async with asyncio.timeout_at(deadline):
                verdict = await self._verdict(work, verb, role, before)
        except TimeoutError:
            assert timeout is not None
            late = judge(verb, role, self._board.view(), before)  # it may have come true in the same moment
            if late is None:
                raise Failed(self._too_late(verb, role, timeout)) from None
            verdict = late
        if not verdict.done:
            raise OrderFailed(f"cannot {verb.value} {role.value}", verdict.message, what_serves(self._board.view()))
        return verdict.message

    async def _verdict(self, work: Work, verb: Verb, role: Role, before: Incarnation) -> Verdict:
        """How the order has come to its end for one role; narrates until then."""
        seen = self._board.view()
        work.note(role, f"{role.value} {_BEGUN[verb]}")
        while (verdict := judge(verb, role, seen, before)) is None:
            await self._board.change()
            now = self._board.view()
            for step in narrate(role, seen, now):
                work.note(role, as_sentence(role, step))
            seen = now
        return verdict

    async def _await_traffic(self, work: Work, role: Role, deadline: float | None) -> None:
        """Wait until a restarted primary serves again, where the order's time allows."""
        if role is not Role.PRIMARY or gets_traffic(role, self._board.view()):
            return
        if self._board.instance(role).unit.rotation is Rotation.OUT:
            return
        failures = max((one.failures for one in self._board.view().frontends.values()), default=0)
        late = f"; longer, since it has failed {failures} times lately" if failures > 1 else ""
        seconds = self._failback(failures)
        work.note(role, f"{role.value} gets its traffic back after {seconds:g} s without a break (failback{late})")
        if deadline is not None and asyncio.get_running_loop().time() + seconds > deadline:
            return
        seen = await self._board.until(lambda view: gets_traffic(role, view) or not view.instances[role].is_eligible)
        if not seen.instances[role].is_eligible:
            reason = seen.instances[role].reason
            raise OrderFailed(f"cannot restart {role.value}", f"it was ready, but then: {reason}", what_serves(seen))
        work.note(role, f"{role.value} serves again")

    def _too_late(self, verb: Verb, role: Role, timeout: float | None) -> str:
        view = self._board.view()
        seen = view.instances[role]
        return (
            f"cannot {verb.value} {role.value} within {timeout:g} s: it is {seen.unit.state.value}"
            f" ({seen.reason or 'waiting for its traffic'}); this goes on: clojarsctl status; {what_serves(view)}"
        )


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else asyncio.get_running_loop().time() + timeout


@contextmanager
def _ending(work: Work) -> Iterator[None]:
    """End the work with the error that ends the block; a cancelled block belongs to a daemon that ends."""
    try:
        yield
    except ClojarsdError as error:
        work.fail(error)
    except asyncio.CancelledError:
        work.fail(Failed("cannot say how the order ends: clojarsd is ending"))
        raise


_FORCE = "--force restarts all the same"
_BEGUN: Mapping[Verb, str] = {
    Verb.START: "is to be up",
    Verb.STOP: "is to be stopped",
    Verb.RESTART: "is to be restarted",
    Verb.DRAIN: "is to be out of rotation",
    Verb.UNDRAIN: "is to be in rotation",
    Verb.RELOAD: "is to reload",
}
