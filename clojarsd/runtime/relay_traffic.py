"""What the runners say and hear of clients' connections, by way of a relay process."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from clojarsd.core.connections import ConnectionList, ConnectionView, joined
from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.errors import Failed
from clojarsd.core.frontend_plan import CountedFrom, FrontendPlan, Pause
from clojarsd.core.names import Role
from clojarsd.core.relay_messages import (
    Adopt,
    BeginDrain,
    Connections,
    Cut,
    Doubt,
    Drained,
    EndDrain,
    Happened,
    ListConnections,
    SetEligible,
    Snapshot,
    ToRelay,
    ToSupervisor,
    Welcome,
)
from clojarsd.core.relay_orders import CapFrontend, CountFrom, CountOn, PauseFrontend, ResumeFrontend, ShareFrontend
from clojarsd.core.routing import Caps
from clojarsd.core.shares import unserved
from clojarsd.core.view import FrontendView
from clojarsd.runtime.frontend_history import History
from clojarsd.runtime.pauses import Pauses
from clojarsd.runtime.relay_views import Shown
from clojarsd.runtime.steering import Steering
from clojarsd.system.sockets import close_with_reset

LIST_TIMEOUT = 5.0
"""Seconds for the relay process to say which connections it has."""


class RelayTraffic(ABC):
    """Who may get connections, drains, and what the frontends show. The relay link is one that has a process to tell.

    What is wanted is kept here, and said again to whichever relay process comes next.

    Attributes:
        views: what each frontend shows, by name; filled and emptied in place.
        steering: what the kernel does; it hears of everything before the relay process does.
        doubt: called with a role that could not be connected to; set by the owner.
        changed: called when what somebody may wait for has changed in a view; set by the owner.
    """

    def __init__(self, steering: Steering) -> None:
        self.views: dict[str, Shown] = {}
        self.steering = steering
        steering.shown = self._last_shown
        self.doubt: Callable[[Role], None] = lambda role: None
        self.changed: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._pauses = Pauses(self._loop, steering.set_paused)
        self._plans: dict[str, FrontendPlan] = {}
        self._eligible_since: dict[Role, float | None] = dict.fromkeys(Role)
        self._down: frozenset[Role] = frozenset()
        self._drains: dict[Role, _Drain] = {}
        self._inherited: set[Role] = set()
        """Instances whose drain an earlier supervisor has begun and this one has not asked about."""
        self._number = 0
        self._lists: dict[int, _List] = {}
        self._history: History | None = None
        self._early: list[Happened] = []
        self._is_mourning = True
        """Whether there is no process, and so no connection."""
        self._homeless: list[tuple[str, Role, Sequence[socket.socket]]] = []
        """Clients that wait for a relay process."""

    @abstractmethod
    def _tell(self, message: ToRelay, descriptors: Sequence[int] = ()) -> None:
        """Say it to the relay process, if there is one."""

    @property
    @abstractmethod
    def _is_heard(self) -> bool:
        """Whether there is a relay process that hears it, or will."""

    @property
    def eligible(self) -> frozenset[Role]:
        """The instances that get connections, as far as the relay process was told by anybody."""
        return frozenset(role for role, since in self._eligible_since.items() if since is not None)

    def attach(self, history: History) -> None:
        """Take the history in which the frontends' events are recorded."""
        self._history = history
        self.steering.attach(history)
        early, self._early = self._early, []
        for happened in early:
            self._record(happened)

    @property
    def plans(self) -> Mapping[str, FrontendPlan]:
        """The frontends as they are wanted, by name."""
        return self._plans

    @property
    def draining(self) -> frozenset[Role]:
        """The instances whose drain an earlier supervisor has begun; `begin_drain` goes on with it."""
        return frozenset(self._inherited)

    def set_eligible(self, role: Role, eligible: bool, *, is_ordered: bool = False, is_down: bool = False) -> None:
        """Whether the instance may get new connections, and why not; the relay process hears it at once."""
        is_other = eligible != (self._eligible_since[role] is not None)
        if is_other:
            self._eligible_since[role] = self._loop.time() if eligible else None
        if is_other or is_down != (role in self._down):
            self._down = self._down - {role} | ({role} if is_down else frozenset())
            self.steering.set_eligible(self._eligible_since, is_ordered=is_ordered, down=self._down)
            self._tell(SetEligible(role, eligible, is_ordered=is_ordered, is_down=is_down))

    # What operators order about one frontend.

    @property
    def paused(self) -> Mapping[str, Pause]:
        """The frontends whose new connections wait by order."""
        return self._pauses.paused

    def pause(self, name: str, until: float, by: str) -> None:
        """Have new connections of a frontend wait until that instant of the loop, whatever was wished before.

        The pause ends by itself, in the relay process as well, so also when there is no supervisor any more.
        """
        self._pauses.begin(name, Pause(until, by))
        self._tell(PauseFrontend(name, max(until - self._loop.time(), 0.0), by))

    def resume(self, name: str) -> None:
        """Let new connections wait no more, if they do by order."""
        if name in self.paused:
            self._tell(ResumeFrontend(name))
            self._pauses.end(name)

    def cap(self, name: str, caps: Caps) -> None:
        """Have no more connections than that, until the settings of the frontend say something else about it."""
        self._tell(CapFrontend(name, caps))

    def share(self, name: str, share: float) -> None:
        """Have that part of new connections go to the backup while both may get some."""
        self._tell(ShareFrontend(name, share))

    def count_from(self, name: str, counted_from: CountedFrom) -> None:
        """Show what is counted from there on."""
        self._tell(CountFrom(name, counted_from))

    def count_on(self, name: str, accepted: Mapping[Role | None, int]) -> None:
        """Count these too, which another relay process had accepted before it ended."""
        self._tell(CountOn(name, accepted))

    def follow(self, other: RelayTraffic, plans: Mapping[str, FrontendPlan]) -> None:
        """Have a new process with these plans begin as the other stands: who is eligible and active, what is paused."""
        self._eligible_since = dict(other._eligible_since)
        for name, plan in plans.items():
            self.views[name] = Shown(plan, partial(self.steering.show, name))
            if name in other.views and (seen := other.views[name].last) is not None:
                self.views[name].last = unserved(seen, plan.caps)
        for name, pause in other.paused.items():
            self._pauses.begin(name, pause)

    def _inherit(self, welcome: Welcome) -> None:
        """Know what an earlier supervisor has told the relay process, and what it shows."""
        now = self._loop.time()
        for standing in welcome.frontends:
            self._have_view(standing.plan)
        self._show({standing.plan.name: standing.view for standing in welcome.frontends})
        self._inherited = set(welcome.draining)
        self._eligible_since |= {role: now if can else None for role, can in welcome.eligible.items()}
        self.steering.set_eligible(self._eligible_since)
        self._pauses.forget_all()
        for name, (seconds, by) in welcome.paused.items():
            self._pauses.begin(name, Pause(now + seconds, by))

    def _tell_differences(self, welcome: Welcome) -> None:
        """Tell a relay process that goes on what is to be otherwise."""
        for role in set(welcome.draining) - set(self._drains) - self._inherited:
            self._tell(EndDrain(role))
        self._tell_drains()
        self._tell_pauses(welcome.paused)
        self._tell_eligible()

    def _tell_pauses(self, known: Collection[str]) -> None:
        """Tell a relay process that knows of those."""
        paused = self.paused
        for name in set(known) - set(paused):
            self._tell(ResumeFrontend(name))
        for name in set(paused) - set(known):
            pause = paused[name]
            self._tell(PauseFrontend(name, max(pause.until - self._loop.time(), 0.0), pause.by))

    # Drains.

    def begin_drain(self, role: Role, when_drained: Callable[[], None], within: float | None = None) -> None:
        """Let open connections end, each within its frontend's time; call back when none is left in any.

        Args:
            within: seconds for all of them, where that is sooner; a drain under way is never made longer by another.
        """
        self._number += 1
        drain = self._drains[role] = _Drain(self._number, when_drained)
        self.steering.begin_drain(role, partial(self._drained, self._number, role, in_kernel=True), within)
        if self._is_mourning:
            self._loop.call_soon(self._drained, drain.number, role)
        else:
            self._tell(BeginDrain(drain.number, role, go_on=role in self._inherited, within=within))
        self._inherited.discard(role)

    def end_drain(self, role: Role) -> None:
        """Leave open connections alone again."""
        self._inherited.discard(role)
        self._drains.pop(role, None)
        self.steering.end_drain(role)
        self._tell(EndDrain(role))

    def tally(self, role: Role) -> DrainTally | None:
        """What has become of the connections of a drain that is over, as far as it is known; None: it is not over."""
        drain = self._drains.get(role)
        if drain is None or drain.is_in_relay or drain.is_in_kernel:
            return None
        return (drain.tally or DrainTally()) + self.steering.tally(role)

    def cut(self, role: Role) -> None:
        """Close the open connections with a reset."""
        self.steering.cut(role)
        self._tell(Cut(role))

    def adopt(self, frontend: str, role: Role, clients: Sequence[socket.socket]) -> None:
        """Have clients served elsewhere that the instance had in its accept queue; the sockets are closed here.

        While there is no relay process they wait for the next one.

        Args:
            frontend: whose clients they are, as far as the relay process does not know better.
        """
        if not self._is_heard:
            self._homeless.append((frontend, role, clients))
            return
        self._tell(Adopt(frontend, role), [client.fileno() for client in clients])
        for client in clients:
            client.close()

    def _adopt_homeless(self) -> None:
        homeless, self._homeless = self._homeless, []
        for one in homeless:
            self.adopt(*one)

    def _reset_homeless(self) -> None:
        for _, _, clients in self._homeless:
            for client in clients:
                close_with_reset(client)
        self._homeless = []

    async def connections(self, frontend: str | None = None) -> ConnectionList:
        """The connections one by one, of all frontends or of that one, those first that keep a drain.

        Raises:
            Failed: the relay process has not answered in time, or the kernel does not tell.
        """
        return joined([await self._relayed_connections(frontend), await self.steering.connections(frontend)])

    async def _relayed_connections(self, frontend: str | None) -> ConnectionList:
        if self._is_mourning:
            return ConnectionList(())
        self._number += 1
        number, waited_for = self._number, _List(self._loop.create_future())
        self._lists[number] = waited_for
        try:
            self._tell(ListConnections(number, frontend))
            async with asyncio.timeout(LIST_TIMEOUT):
                await waited_for.told
        except TimeoutError:
            raise Failed(
                f"cannot list the connections: the relay process has not answered within {LIST_TIMEOUT:g} s "
                "(one of an earlier version never does)"
            ) from None
        finally:
            del self._lists[number]
        return joined([ConnectionList(tuple(waited_for.seen), waited_for.left_out)])

    def _tell_eligible(self) -> None:
        now = self._loop.time()
        for role, since in self._eligible_since.items():
            seconds = 0.0 if since is None else now - since
            self._tell(SetEligible(role, since is not None, seconds, is_down=role in self._down))

    def _tell_drains(self) -> None:
        """Have those go on that were under way."""
        for role, drain in self._drains.items():
            if drain.is_in_relay:
                self._tell(BeginDrain(drain.number, role, go_on=True))

    def _mourn(self) -> None:
        """The process has gone, and with it all connections."""
        self._is_mourning = True
        for shown in self.views.values():
            shown.mourn()
        self.changed()
        for role, drain in list(self._drains.items()):
            self._drained(drain.number, role)
        for number in list(self._lists):
            self._listed(Connections(number, (), 0, is_last=True))

    # What the relay process says.

    def _hear_of_traffic(self, message: ToSupervisor) -> None:
        match message:
            case Snapshot(frontends):
                self._show(frontends)
            case Drained(number, role, tally):
                self._drained(number, role, tally)
            case Connections():
                self._listed(message)
            case Doubt(role):
                self.doubt(role)
            case Happened():
                self._record(message)
            case _:
                pass

    def _drained(self, number: int, role: Role, tally: DrainTally | None = None, *, in_kernel: bool = False) -> None:
        """No relayed, or no steered connection of the role is left; late news of an earlier drain means nothing."""
        drain = self._drains.get(role)
        if drain is None or drain.number != number:
            return
        was_over = not (drain.is_in_kernel or drain.is_in_relay)
        if in_kernel:
            drain.is_in_kernel = False
        else:
            drain.is_in_relay, drain.tally = False, tally
        if not (was_over or drain.is_in_kernel or drain.is_in_relay):
            drain.when_drained()

    def _listed(self, told: Connections) -> None:
        """Some of the connections that somebody waits for, or the end of them."""
        waited_for = self._lists.get(told.number)
        if waited_for is not None:
            waited_for.seen.extend(told.connections)
            waited_for.left_out = told.left_out
            if told.is_last and not waited_for.told.done():
                waited_for.told.set_result(None)

    def _record(self, happened: Happened) -> None:
        if self._history is None:
            self._early.append(happened)
            return
        detail = dict(happened.detail) | ({"happened_at": happened.at} if happened.at is not None else {})
        self._history.record(happened.event, happened.message, happened.role, None, **detail)

    def _show(self, frontends: Mapping[str, FrontendView]) -> None:
        seen = [self.views[name].show(view) for name, view in frontends.items() if name in self.views]
        if any(seen):
            self.changed()

    def _match_views(self) -> None:
        """Have a view for each plan and no others."""
        for name in set(self.views) - set(self._plans):
            del self.views[name]
        for name in set(self.paused) - set(self._plans):
            self._pauses.end(name)
        for plan in self._plans.values():
            self._have_view(plan)

    def _have_view(self, plan: FrontendPlan) -> None:
        if plan.name not in self.views:
            self.views[plan.name] = Shown(plan, partial(self.steering.show, plan.name))

    def _last_shown(self, name: str) -> FrontendView | None:
        return self.views[name].last if name in self.views else None


@dataclass(slots=True)
class _Drain:
    """A drain that was asked for and not ended; whether relayed or steered connections are still waited for."""

    number: int
    when_drained: Callable[[], None]
    is_in_relay: bool = True
    is_in_kernel: bool = True
    tally: DrainTally | None = None


@dataclass(slots=True)
class _List:
    """Connections that somebody waits for; `told` is done when all have been told."""

    told: asyncio.Future[None]
    seen: list[ConnectionView] = field(default_factory=list)
    left_out: int = 0
