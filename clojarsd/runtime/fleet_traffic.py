"""What the rest of the supervisor says to all relay processes, and knows of them as if they were one."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import add

from clojarsd.core.connections import ConnectionList, joined
from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.frontend_plan import CountedFrom, FrontendPlan, Pause
from clojarsd.core.names import Role
from clojarsd.core.routing import Caps
from clojarsd.core.shares import in_force, share_of_caps, summed, undivided
from clojarsd.core.view import FrontendView
from clojarsd.runtime.fleet_history import FleetHistory
from clojarsd.runtime.fleet_leave import Leave
from clojarsd.runtime.fleet_views import FleetViews, Summed
from clojarsd.runtime.frontend_history import History
from clojarsd.runtime.relay_link import RelayLink
from clojarsd.runtime.steering import Steering
from clojarsd.system.far_ends import far_ends_of


class FleetTraffic:
    """Tells each relay process what one would be told, and sums up what they show. The fleet is one that has processes.

    Attributes:
        views: what each frontend shows, by name, over all processes.
        steering: what the kernel does; it hears of everything before the relay processes do.
        doubt: called with a role that could not be connected to; set by the owner.
        changed: called when what somebody may wait for has changed in a view; set by the owner.
    """

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self.views: Mapping[str, Summed] = FleetViews(self.view, lambda: self._workers[0].views)
        self.doubt: Callable[[Role], None] = lambda role: None
        self.changed: Callable[[], None] = lambda: None
        self._workers: list[RelayLink] = []
        """The first one first; each has the number of its place, from 1 on."""
        self._leaving: dict[RelayLink, Leave] = {}
        """Those that only let their connections end."""
        self._wanted: dict[str, FrontendPlan] = {}
        self._ordered: dict[str, Caps] = {}
        """What operators have ordered instead of the limits that the settings say."""
        self._share = 0.0
        """Which part of new connections operators want to go to the backup, in every frontend."""
        self._drains: dict[Role, Drain] = {}
        self._history: FleetHistory | None = None
        self._has_begun = False
        self._is_ending = False

    # What the rest of the supervisor knows of them.

    @property
    def _links(self) -> tuple[RelayLink, ...]:
        return (*self._workers, *self._leaving)

    @property
    def pid(self) -> int | None:
        """The number of the first relay process; None while there is none."""
        return self._workers[0].pid

    @property
    def pids(self) -> tuple[int, ...]:
        """The numbers of all relay processes, also of those that only let their connections end."""
        return tuple(link.pid for link in self._links if link.pid is not None)

    @property
    def is_adopted(self) -> bool:
        """Whether the first relay process was there before this supervisor."""
        return self._workers[0].is_adopted

    @property
    def is_outdated(self) -> bool:
        """Whether one of them runs other source than a new one would."""
        return any(link.is_outdated for link in self._workers)

    @property
    def plans(self) -> Mapping[str, FrontendPlan]:
        """The frontends as they are wanted, by name."""
        first = self._workers[0].plans
        if len(self._workers) == 1:
            return first
        return {name: undivided(plan, self._wanted.get(name, plan)) for name, plan in first.items()}

    @property
    def eligible(self) -> frozenset[Role]:
        """The instances that get connections, as far as relay processes were told by anybody."""
        return frozenset[Role]().union(*(link.eligible for link in self._workers))

    @property
    def draining(self) -> frozenset[Role]:
        """The instances whose drain an earlier supervisor has begun; `begin_drain` goes on with it."""
        return frozenset[Role]().union(*(link.draining for link in self._workers))

    @property
    def paused(self) -> Mapping[str, Pause]:
        """The frontends whose new connections wait by order."""
        return {name: pause for link in reversed(self._workers) for name, pause in link.paused.items()}

    def view(self, name: str) -> FrontendView:
        """The frontend of that name over all processes. Raises KeyError."""
        views = [link.views[name].view() for link in self._workers if link is self._workers[0] or name in link.views]
        seen = summed(views, [link.views[name].view() for link in self._leaving if name in link.views])
        if len(self._links) == 1:
            return seen
        wished = self._ordered.get(name, self._wanted[name].caps) if name in self._wanted else seen.caps
        return replace(seen, caps=wished) if seen.caps == in_force(wished, len(self._workers)) else seen

    async def connections(self, frontend: str | None = None) -> ConnectionList:
        """The connections one by one; see `RelayTraffic.connections`."""
        return joined([await link.connections(frontend) for link in self._links])

    def attach(self, history: History) -> None:
        """Take the history in which the frontends' events are recorded."""
        self._history = FleetHistory(history, self._first_there)
        for link in self._links:
            for name, shown in link.views.items():
                if link.is_adopted and shown.last is not None and shown.last.connections[None]:
                    self._history.holds(link.number, name)
            link.attach(self._history.of(link.number))
        self.steering.attach(history)  # what the kernel does is told once anyway

    def _first_there(self) -> tuple[int | None, bool]:
        there = [link.number for link in self._links if link.pid is not None]
        return next(iter(there), None), len(self._links) == 1

    def _news_of(self, link: RelayLink) -> None:
        if link.pid is None and self._history is not None:
            self._history.lost(link.number)
        if (leave := self._leaving.get(link)) is not None:
            leave.news.set()
        self.changed()

    # What they are told.

    def begin(self) -> None:
        """Accept clients from now on."""
        self._has_begun = True
        for link in self._workers:
            link.begin()

    def stop_accepting(self) -> None:
        """Take in who waits in the backlog and can be served, and refuse others from now on; what is open goes on."""
        self._is_ending = True
        for link in self._links:
            link.stop_accepting()

    def set_eligible(self, role: Role, eligible: bool, *, is_ordered: bool = False, is_down: bool = False) -> None:
        """Whether the instance may get new connections, whether that is by order, and whether it is down."""
        for link in self._links:
            link.set_eligible(role, eligible, is_ordered=is_ordered, is_down=is_down)

    def pause(self, name: str, until: float, by: str) -> None:
        """Have new connections of a frontend wait until that instant of the loop; see `RelayTraffic.pause`."""
        for link in self._workers:
            link.pause(name, until, by)

    def resume(self, name: str) -> None:
        """Let new connections wait no more, if they do by order."""
        for link in self._workers:
            link.resume(name)

    def cap(self, name: str, caps: Caps) -> None:
        """Have no more connections than that, each process its share, until the settings say something else."""
        self._ordered[name] = caps
        self._cap(name, caps)

    def _cap(self, name: str, caps: Caps) -> None:
        for link in self._workers:
            link.cap(name, share_of_caps(caps, link.number, len(self._workers)))

    def set_share(self, share: float | None) -> None:
        """Have that part of new connections of each frontend, from 0 to 0.5, go to the backup; None: none of them.

        While both may get connections and the primary is active. Holds until it is ended, or clojarsd is stopped.
        """
        self._share = share or 0.0
        self._tell_share()

    def _tell_share(self) -> None:
        self.steering.set_share(self._share)
        for link in self._workers:
            for name in link.plans:
                link.share(name, self._share)

    def count_from(self, name: str, counted_from: CountedFrom) -> None:
        """Show what is counted from now on: each process from what it has counted itself."""
        if len(self._links) == 1:
            self._workers[0].count_from(name, counted_from)
            return
        for link in self._links:
            if name in link.views:
                accepted = dict(link.views[name].view().accepted_total)
                link.count_from(name, replace(counted_from, accepted=accepted))

    def begin_drain(self, role: Role, when_drained: Callable[[], None], within: float | None = None) -> None:
        """Let open connections end; call back when none is left in any process. See `RelayTraffic.begin_drain`."""
        drain = self._drains[role] = Drain(set(self._links), when_drained)
        for link in self._links:
            link.begin_drain(role, partial(self._drained, link, role, drain), within)

    def _drained(self, link: RelayLink, role: Role, drain: Drain) -> None:
        drain.over(link)
        if (leave := self._leaving.get(link)) is not None:
            leave.drained(role)

    def end_drain(self, role: Role) -> None:
        """Leave open connections alone again, but for those of processes that are to end."""
        self._drains.pop(role, None)
        for link in self._workers:
            link.end_drain(role)

    def tally(self, role: Role) -> DrainTally | None:
        """What has become of the connections of a drain that is over, in all relay processes; None: it is not over."""
        told = [tally for link in self._links if (tally := link.tally(role)) is not None]
        return reduce(add, told) if told else None

    def cut(self, role: Role) -> None:
        """Close the open connections with a reset."""
        for link in self._links:
            link.cut(role)

    def adopt(self, frontend: str, role: Role, clients: Sequence[socket.socket]) -> None:
        """Have clients served elsewhere that the instance had in its accept queue; the sockets are closed here.

        Those that a relay process has itself connected are that process's.
        """
        if len(self._links) == 1:
            self._workers[0].adopt(frontend, role, clients)
            return
        links = {link.pid: link for link in self._links if link.pid is not None}
        whose = far_ends_of(clients, links)
        for link in {*links.values(), self._workers[0]}:
            some = [client for client in clients if links.get(whose.get(client, 0), self._workers[0]) is link]
            if some:
                link.adopt(frontend, role, some)


class Drain:
    """The drain of one instance over all processes; `left` are those in which it is not over."""

    def __init__(self, left: set[RelayLink], when_drained: Callable[[], None]) -> None:
        self._left = left
        self._when_drained = when_drained

    def over(self, link: RelayLink) -> None:
        """It is over in this one; call back when it was the last."""
        if link in self._left:
            self._left.discard(link)
            if not self._left:
                self._when_drained()
