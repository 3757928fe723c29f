"""All relay processes together, as the rest of the supervisor sees them: told the same, and shown as one.

Each has listening sockets of its own for every frontend, and the kernel deals clients out (`system.port_group`). The
first one is what a single relay process is; the others have the numbers from 2 on. Each has a link of its own. What the
kernel steers is the first link's business alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import structlog

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Role
from clojarsd.core.shares import added, share_of_plan
from clojarsd.core.view import FrontendView
from clojarsd.runtime.fleet_leave import Leave
from clojarsd.runtime.fleet_traffic import Drain, FleetTraffic
from clojarsd.runtime.listeners import Key
from clojarsd.runtime.relay_link import RelayLink
from clojarsd.runtime.relay_owner import Owner, numbers_in
from clojarsd.runtime.steering import Steering
from clojarsd.system.port_group import deal_to_all, is_shared, keep, prefer

log = structlog.get_logger()

SETTLE = 1.0
"""Seconds between the last client that the kernel gives a process and its end of listening, and from there to the drain
of its connections: for handshakes and connects that are under way."""


class RelayFleet(FleetTraffic):
    """The frontends, as the supervisor has them. Made by `open`; `run` belongs to the daemon's task group."""

    def __init__(self, runtime_dir: Path, owner: Owner, steering: Steering) -> None:
        super().__init__(steering)
        self._runtime_dir = runtime_dir
        self._owner = owner
        self._changing = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None
        self._running: dict[RelayLink, asyncio.Task[None]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        plans: Iterable[FrontendPlan],
        runtime_dir: Path,
        owner: Owner | None = None,
        steering: Steering | None = None,
        workers: int = 1,
    ) -> AsyncIterator[Self]:
        """The links to so many relay processes, those that run and new ones; else as `RelayLink.open`.

        Those that run and are more than that let their connections end, and end.

        Raises:
            Failed: an address cannot be listened on, or there is no relay process to be had; nothing was changed.
        """
        fleet = cls(runtime_dir, owner or Owner(), steering or Steering.absent())
        try:
            await fleet._open({plan.name: plan for plan in plans}, workers)
            yield fleet
        finally:
            for link in fleet._links:
                await link.leave()

    async def _open(self, plans: dict[str, FrontendPlan], workers: int) -> None:
        first = self._make(1, self.steering)
        decided = self.steering.plan(plans.values())
        found = await self._find()  # before the first one listens: it may have to join them
        shares = {name: share_of_plan(plan, 1, workers) for name, plan in decided.items()}
        for other in found[:1]:
            first.follow(other, shares)
        await first.take_up(shares)
        self._wanted = plans
        for link in found:
            if link.number > workers:
                self._workers.remove(link)
                self._leaving[link] = Leave()
                link.is_leaving = True
        for number in range(2, workers + 1):
            if (known := next((link for link in found if link.number == number), None)) is not None:
                await known.configure(self._shares(number, workers))
            else:
                await self._begin_one(self._make(number, _Elsewhere.absent()), workers)
        self._workers.sort(key=lambda link: link.number)
        self._share = max((one.last.share for one in first.views.values() if one.last is not None), default=0.0)
        if all(link.is_adopted for link in self._workers):
            seen = {name: shown.view().caps for name, shown in self.views.items()}
            self._ordered = {name: caps for name, caps in seen.items() if caps != plans[name].caps}
        if len(self._links) > 1 or first.is_adopted:
            self._regroup()

    async def _find(self) -> list[RelayLink]:
        """The processes beside the first one that run, as they are."""
        for number in sorted(numbers_in(self._runtime_dir)):
            link = self._make(number, _Elsewhere.absent())
            await link.take_up(None)
            if link.pid is None:
                self._workers.remove(link)
                link.detach()
        return self._workers[1:]

    def _make(self, number: int, steering: Steering) -> RelayLink:
        link = RelayLink(self._runtime_dir, self._owner.of(number), steering, partial(self._beside, number))
        link.doubt = lambda role: self.doubt(role)
        link.changed = partial(self._news_of, link)
        if self._history is not None:
            link.attach(self._history.of(number))
        self._workers.append(link)
        return link

    def _beside(self, number: int, name: str, key: Key) -> socket.socket | None:
        """A socket of another process, for one that is to listen at the same place."""
        found = (link.listeners.find(name, key) for link in self._links if link.number != number)
        return next((listener for listener in found if listener is not None), None)

    def _shares(self, number: int, workers: int) -> list[FrontendPlan]:
        """What the first one serves, with the limits of that one."""
        return [share_of_plan(plan, number, workers) for plan in self.plans.values()]

    async def _begin_one(self, link: RelayLink, workers: int) -> None:
        """Make a process beside the first one, which begins as that stands."""
        shares = {plan.name: plan for plan in self._shares(link.number, workers)}
        link.follow(self._workers[0], shares)
        await link.take_up(shares)

    # How many there are.

    async def configure(self, plans: Iterable[FrontendPlan], workers: int | None = None) -> None:
        """Have these frontends and no others, in so many processes (None: as many as there are).

        Raises:
            Failed: an address cannot be listened on, a process cannot be had, or nobody is to come any more; all is as
                before.
        """
        async with self._changing:
            if self._is_ending:
                raise Failed("clojarsd is ending and takes no clients any more")
            before, count, ordered = self._wanted, len(self._workers), self._ordered
            wanted, workers = {plan.name: plan for plan in plans}, workers or count
            try:
                await self._be(wanted, workers)
            except Failed:
                if max(workers, count) > 1:
                    self._ordered = ordered
                    with contextlib.suppress(Failed):
                        await self._be(before, count)
                raise

    async def _be(self, wanted: dict[str, FrontendPlan], workers: int) -> None:
        is_resized = workers != len(self._workers)
        kept = {name for name in self._ordered if name in wanted and wanted[name].caps == self._wanted[name].caps}
        over = self._ordered.keys() & wanted.keys() - kept
        await self._workers[0].configure([share_of_plan(plan, 1, workers) for plan in wanted.values()])
        self._ordered = {name: self._ordered[name] for name in kept}
        self._wanted = wanted
        for link in self._workers[1:workers]:
            await link.configure(self._shares(link.number, workers))
        while len(self._workers) < workers:
            await self._join(len(self._workers) + 1, workers)
        for link in self._workers[workers:]:
            self._part_with(link)
        for name in over | (kept if is_resized else set()):
            self._cap(name, self._ordered.get(name, wanted[name].caps))
        if self._share:
            self._tell_share()  # to new frontends, too

    async def _join(self, number: int, workers: int) -> None:
        """Have one more process, or one stay that was to leave."""
        link = next((one for one in self._leaving if one.number == number), None)
        if link is not None and link.pid is None:
            await self._end(link)
            link = None
        if link is None:
            link = self._make(number, _Elsewhere.absent())
            try:
                await self._begin_one(link, workers)
            except BaseException:
                self._workers.remove(link)
                await link.close()
                raise
        else:
            self._leaving.pop(link).cancel()
            self._workers.append(link)
            await self._keep_one(link, workers)
        if self._has_begun:
            link.begin()
        self._regroup()
        self._look_after(link)

    async def _keep_one(self, link: RelayLink, workers: int) -> None:
        """Have one that was to leave do what it did before."""
        link.is_leaving = False
        for role in Role:
            link.end_drain(role)
        for name in list(link.paused):
            link.resume(name)  # what waited was sent on its way
        for role, drain in self._drains.items():
            link.begin_drain(role, partial(self._drained, link, role, drain))
        await link.configure(self._shares(link.number, workers))
        for name, pause in self._workers[0].paused.items():
            link.pause(name, pause.until, pause.by)

    # Leaving.

    def _part_with(self, link: RelayLink) -> None:
        """Let the process take in who waits for it, let its connections end, and end it."""
        self._workers.remove(link)
        link.is_leaving = True
        self._leaving[link] = Leave()
        self._regroup()
        if self._group is not None:
            self._leaving[link].task = self._group.create_task(self._see_out(link))

    async def _see_out(self, link: RelayLink) -> None:
        leave = self._leaving[link]
        log.info("relay_leaving", pid=link.pid, number=link.number)
        await asyncio.sleep(SETTLE)
        link.stop_accepting()
        await asyncio.sleep(SETTLE)
        leave.is_deaf = True
        self._regroup()
        while link.pid is not None:
            await leave.until(lambda: not any(view.connections[None] for view in _views_of(link)))
            leave.left.update(Role)
            for role in Role:
                drain = self._drains.get(role) or Drain(set(), _nobody_waits)
                link.begin_drain(role, partial(self._drained, link, role, drain))
            await leave.until(lambda: not leave.left)
            if not any(any(view.connections.values()) for view in _views_of(link)):
                break
            for role in Role:
                link.end_drain(role)
        async with self._changing:
            await self._end(link)
        log.info("relay_left", number=link.number)

    async def _end(self, link: RelayLink) -> None:
        """End a process that was to leave."""
        if (leave := self._leaving.pop(link)).task is not asyncio.current_task():
            leave.cancel()
        self._count_on(link)
        await link.close()
        if (running := self._running.pop(link, None)) is not None:
            running.cancel()

    def _count_on(self, link: RelayLink) -> None:
        """Let the first process count what one that ends has accepted."""
        first = self._workers[0]
        for name, shown in link.views.items():
            if shown.last is None or name not in first.views:
                continue
            first.count_on(name, dict(shown.last.accepted_total))
            before, other = first.views[name].view().counted_from, shown.last.counted_from
            if before is not None:
                accepted = [before.accepted, other.accepted if other is not None else {}]
                first.count_from(name, replace(before, accepted=added(accepted)))

    def _regroup(self) -> None:
        """Have the kernel deal clients out to those who are to get them."""
        first, count = self._workers[0], len(self._workers)
        is_one_left = not all(leave.is_deaf for leave in self._leaving.values())
        for listener in first.listeners.every:
            try:
                if not is_one_left:
                    deal_to_all(listener)
                    if count == 1:
                        keep(listener)
                elif is_shared(listener):
                    prefer(listener, count)
            except OSError as error:
                log.warning("clients_not_dealt_out", reason=reason_of(error))

    # Lifetimes.

    async def run(self) -> None:
        """See to it that the relay processes are there and answer, until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for link in self._links:
                self._look_after(link)
            for link, leave in self._leaving.items():
                leave.task = self._group.create_task(self._see_out(link))
            await asyncio.Event().wait()

    def _look_after(self, link: RelayLink) -> None:
        if self._group is not None and link not in self._running:
            self._running[link] = self._group.create_task(link.run())

    async def replace(self) -> None:
        """Have new processes take over from those whose source has changed, one after the other, or else from all.

        Raises:
            Failed: one could not; the old one stays in charge.
        """
        problems = []
        for link in [link for link in self._workers if link.is_outdated] or list(self._workers):
            try:
                await link.replace()
            except Failed as failed:
                problems.append(failed)
        if problems:
            raise problems[0]

    async def close(self) -> None:
        """End the relay processes: what is open is cut. Returns when they are gone."""
        async with self._changing:
            for link in reversed(self._links):
                await link.close()

    def detach(self) -> None:
        """Let go of the relay processes, which go on with what they were told last."""
        for link in self._links:
            link.detach()


class _Elsewhere(Steering):
    """For processes beside the first one: whether a frontend is steered is decided, and done, elsewhere."""

    def plan(self, plans: Iterable[FrontendPlan]) -> dict[str, FrontendPlan]:
        """The plans as they are."""
        return {plan.name: plan for plan in plans}


def _views_of(link: RelayLink) -> list[FrontendView]:
    return [shown.view() for shown in link.views.values()]


def _nobody_waits() -> None:
    pass
