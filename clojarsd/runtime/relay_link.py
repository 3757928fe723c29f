"""The supervisor's side of the relay process: tells it what to do, knows what it shows, replaces it when it dies.

What is wanted (plans, who is eligible, drains) is kept here, and said again to whichever process comes next. The
listening sockets are open here as well: while there is no relay process, clients wait in their backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import structlog

from clojarsd.core.errors import Failed
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.relay_messages import (
    Begin,
    Close,
    Configure,
    Configured,
    Kept,
    Ping,
    Refusal,
    StopAccepting,
    ToRelay,
    ToSupervisor,
    Wanted,
    Welcome,
    to_relay,
)
from clojarsd.runtime.listeners import Beside, Listeners, none_beside
from clojarsd.runtime.relay_launch import END_TIMEOUT, MODULE, Owner, RelayPeer, find, find_again, launch, leave
from clojarsd.runtime.relay_replacement import make_another, replace_relay
from clojarsd.runtime.relay_traffic import RelayTraffic
from clojarsd.runtime.relay_views import Shown
from clojarsd.runtime.steering import Steering
from clojarsd.system.source_digest import digest_of

log = structlog.get_logger()

PING_EVERY = 1.0
MOST_UNANSWERED = 10
"""Pings after which a relay process that says nothing is killed. Counted, since our own time may have stood still."""
CONFIGURE_TIMEOUT = 10.0


class RelayLink(RelayTraffic):
    """The frontends, as the supervisor has them. Made by `open`; `run` belongs to the daemon's task group.

    Args:
        beside: finds the sockets of other relay processes with the same frontends.

    Attributes:
        number: which of the relay processes it is about; the first is 1.
        listeners: the listening sockets.
        is_leaving: whether nobody takes the process's place when it ends; set by the owner.
    """

    def __init__(self, runtime_dir: Path, owner: Owner, steering: Steering, beside: Beside = none_beside) -> None:
        super().__init__(steering)
        self._runtime_dir = runtime_dir
        self._owner = owner
        self.number = owner.number
        self._code = owner.code(digest_of(MODULE))
        self.listeners = Listeners(beside)
        self._awaited: dict[int, asyncio.Future[None]] = {}
        """The `Configure` messages that were not answered yet, by number."""
        self._peer: RelayPeer | None = None
        self.is_leaving = False
        self._is_adopted = False
        self._has_begun = False
        self._is_over = False
        self._lost = asyncio.Event()
        self._unanswered = 0
        self._made_at, self._delay = self._loop.time(), 0.0
        self._held_back: list[tuple[ToRelay, list[int]]] | None = None
        """What is to be said as soon as it is known which process is in charge; None: it is."""
        self._kept: str | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        plans: Iterable[FrontendPlan],
        runtime_dir: Path,
        owner: Owner | None = None,
        steering: Steering | None = None,
    ) -> AsyncIterator[Self]:
        """The link to the relay process that runs, or to a new one, with these frontends; clients come from `begin` on.

        One that runs already has gone on with what it was told last, and is told nothing new about who is eligible
        until `set_eligible`. At the end of the block it is left alone, unless it was made here and never begun.

        Raises:
            Failed: an address cannot be listened on, or there is no relay process to be had; nothing was changed.
        """
        link = cls(runtime_dir, owner or Owner(), steering or Steering.absent())
        try:
            await link.take_up(link.steering.plan(plans))
            yield link
        finally:
            await link.leave()

    async def leave(self) -> None:
        """Let go of the relay process; it ends if it was made here and never begun."""
        if self._is_adopted or self._has_begun:
            self.detach()
        else:
            await self.close()

    @property
    def pid(self) -> int | None:
        """The number of the relay process; None while there is none."""
        return self._peer.pid if self._peer is not None else None

    @property
    def is_adopted(self) -> bool:
        """Whether the relay process was there before this supervisor."""
        return self._is_adopted

    @property
    def is_outdated(self) -> bool:
        """Whether the relay process runs other source than a new one would."""
        return self._peer is not None and self._peer.welcome.code != self._code

    def begin(self) -> None:
        """Accept clients from now on."""
        self._has_begun = True
        self.steering.begin()
        self._tell(Begin())

    def stop_accepting(self) -> None:
        """Take in who waits in the backlog and can be served, and refuse others from now on; what is open goes on."""
        self.steering.end()
        self._tell(StopAccepting())
        self.listeners.close()

    async def configure(self, plans: Iterable[FrontendPlan]) -> None:
        """Have these frontends and no others: open connections live on, those of removed ones for their drain's time.

        Raises:
            Failed: an address cannot be listened on; nothing was changed.
        """
        wanted = self.steering.plan(plans)
        moved = self.listeners.change(wanted, self.pid)
        wanted = self.steering.configure(wanted, self.listeners.addresses)
        before, self._plans = self._plans, wanted
        if moved or before != wanted:
            await self._configure(moved)

    async def close(self) -> None:
        """End the relay process: what is open is cut. Returns when it is gone."""
        self._is_over = True
        self._held_back = None
        if self._peer is not None:
            self._tell(Close())
            await self._peer.wait(END_TIMEOUT)
            await self._peer.end()
            leave(self._runtime_dir, self._owner)
        self.detach()

    def detach(self) -> None:
        """Let go of the relay process, which goes on with what it was told last."""
        self._is_over = True
        self._pauses.forget_all()
        self.steering.detach()
        if self._peer is not None:
            self._peer.close()
            self._peer = None
        self._reset_homeless()
        self.listeners.close()

    # The relay process.

    async def run(self) -> None:
        """See to it that a relay process is there and answers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ping())
            group.create_task(self._keep())

    async def _ping(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(PING_EVERY)
            peer = self._peer
            if peer is None or self._is_over or self._held_back is not None:
                continue
            with contextlib.suppress(OSError):  # the relay process says what it lacks
                self._owner.keep_room(self._runtime_dir)
            if self._unanswered >= MOST_UNANSWERED:
                peer.give_up(self._unanswered, is_first=self._unanswered == MOST_UNANSWERED)
            number += 1
            self._unanswered += 1
            self._tell(Ping(number))

    async def _keep(self) -> None:
        while True:
            await self._lost.wait()
            self._lost.clear()
            peer, self._peer = self._peer, None
            if peer is None or self._is_over:
                continue
            again = await find_again(peer, self._runtime_dir, self._code, self._owner)
            if again is not None:
                log.warning("relay_found_again", pid=again.pid)
                await self._adopt(again)
            else:
                log.error("relay_lost", pid=peer.pid, reason=peer.reason)
                self._mourn()
                if not self.is_leaving:
                    await make_another(self)

    async def replace(self) -> None:
        """Have a new process take over listening sockets and connections, as when the source has changed.

        Raises:
            Failed: it could not; the old one stays in charge.
        """
        await replace_relay(self)

    def _say(self, held_back: list[tuple[ToRelay, list[int]]]) -> None:
        for message, descriptors in held_back:
            self._tell(message, descriptors)
            for number in descriptors:
                os.close(number)

    async def take_up(self, plans: dict[str, FrontendPlan] | None) -> None:
        """Have the relay process that runs, or else a new one, serve these plans.

        Args:
            plans: what `steering.plan` gives; None: whatever the one that runs has. If none does, there is none then.

        Raises:
            Failed: an address cannot be listened on, or there is no relay process to be had; nothing was changed.
        """
        found = await find(self._runtime_dir, self._code, self._owner)
        if found is not None and isinstance(found.answer, Refusal) and found.answer.supervisor is not None:
            found.peer.close()
            raise Failed(f"cannot use the relay process {found.peer.pid}: {found.answer.reason}")
        if found is not None and isinstance(found.answer, Welcome):
            await self._take_up(found.peer, plans)
            return
        if found is not None:
            reason = found.answer.reason if isinstance(found.answer, Refusal) else found.answer
            log.error("relay_ended", pid=found.peer.pid, reason=f"{reason}; its connections are cut")
            await found.peer.end()
        if plans is None:
            return
        if self._owner.number == 1:
            self._listen_for(plans)
            await self._take(await launch(self._runtime_dir, self._code, self._owner))
            return
        peer = await launch(self._runtime_dir, self._code, self._owner)
        try:
            self._listen_for(plans)  # not before: clients come there from now on
        except BaseException:
            await peer.end()
            raise
        await self._take(peer)

    async def _take_up(self, peer: RelayPeer, plans: dict[str, FrontendPlan] | None) -> None:
        try:
            for standing in peer.welcome.frontends:
                self.listeners.take_over(standing.plan, peer.listeners.pop(standing.plan.name))
            self._inherit(peer.welcome)
            if plans is None:
                self._plans = {standing.plan.name: standing.plan for standing in peer.welcome.frontends}
            else:
                self._listen_for(plans)
        except BaseException:
            peer.close()
            raise
        self._is_adopted = True
        log.info("relay_adopted", pid=peer.pid)
        await self._adopt(peer)

    def _listen_for(self, plans: dict[str, FrontendPlan]) -> None:
        self.listeners.change(plans)
        self._plans = self.steering.configure(plans, self.listeners.addresses)

    async def _take(self, peer: RelayPeer) -> None:
        """Tell a new process everything; first who is eligible, so that no route is chosen without that."""
        self._listen(peer)
        self._tell_eligible()
        await self._configure(set(self._plans), before=self.views)
        self._adopt_homeless()
        self._tell_pauses(())
        if self._has_begun:
            self._tell(Begin())

    async def _adopt(self, peer: RelayPeer) -> None:
        """Go on with a process that has frontends; tell it what is different."""
        welcome = peer.welcome
        standing = {one.plan.name: one for one in welcome.frontends}
        self._match_views()
        self._show({one.plan.name: one.view for one in welcome.frontends})
        self._listen(peer)
        moved = {
            name for name in self._plans
            if name not in standing or standing[name].listeners != len(self.listeners.of(name))
            or standing[name].plan.listen != self._plans[name].listen
        }  # fmt: skip
        if moved or {name: one.plan for name, one in standing.items()} != self._plans:
            await self._configure(moved)
        self._tell_differences(welcome)
        self._adopt_homeless()
        if self._has_begun:
            self._tell(Begin())

    def _listen(self, peer: RelayPeer) -> None:
        self._peer = peer
        self._is_mourning = False
        self._made_at = self._loop.time()
        self._unanswered = 0
        for listeners in peer.listeners.values():
            for listener in listeners:
                listener.close()
        peer.listeners.clear()
        peer.listen(self._hear, partial(self._lose, peer))

    async def _configure(self, moved: set[str], before: Mapping[str, Shown] | None = None) -> None:
        """Tell the frontends, with the listening sockets of those in `moved`, and wait until it is so."""
        self._match_views()
        if self._peer is None or (self._held_back is None and not self._peer.channel.is_open):
            return  # the next one is told everything
        self._number += 1
        wanted, descriptors = [], list[int]()
        for name, plan in self._plans.items():
            listeners = self.listeners.of(name) if name in moved else None
            descriptors += [listener.fileno() for listener in listeners or ()]
            count = None if listeners is None else len(listeners)
            wanted.append(Wanted(plan, count, before[name].last if before is not None and name in before else None))
        number = self._number
        self._awaited[number] = self._loop.create_future()
        self._tell(Configure(number, tuple(wanted)), descriptors)
        try:
            async with asyncio.timeout(CONFIGURE_TIMEOUT):
                await self._awaited[number]
        except TimeoutError:
            log.warning("relay_slow", reason=f"it has not changed its frontends within {CONFIGURE_TIMEOUT:g} s")
        finally:
            del self._awaited[number]

    def _tell(self, message: ToRelay, descriptors: Sequence[int] = ()) -> None:
        if self._held_back is not None:
            self._held_back.append((message, [os.dup(number) for number in descriptors]))
        elif self._peer is not None:
            self._peer.channel.send(to_relay(message), descriptors)

    @property
    def _is_heard(self) -> bool:
        return self._held_back is not None or (self._peer is not None and not self._peer.channel.is_left())

    # What it says.

    def _hear(self, message: ToSupervisor) -> None:
        self._unanswered = 0
        if isinstance(message, Configured):
            self._answered(message.number)
        elif isinstance(message, Kept):
            self._kept = message.reason
        else:
            self._hear_of_traffic(message)

    def _lose(self, peer: RelayPeer, reason: str) -> None:
        """The process has gone, or the channel to it."""
        if self._peer is peer and not self._is_over and self._held_back is None:
            for number in self._awaited:
                self._answered(number)
            self._lost.set()

    def _answered(self, number: int) -> None:
        future = self._awaited.get(number)
        if future is not None and not future.done():
            future.set_result(None)
