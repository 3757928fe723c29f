"""The relay process's side: does what the supervisor says, and goes on by itself when there is none.

One supervisor is served at a time. What is news while there is none is kept for the next one: events as they are, up to
`MOST_EVENTS`; everything else is in the `Welcome`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog

from clojarsd.core.errors import Failed
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.history import EventName, stamp
from clojarsd.core.names import Role
from clojarsd.core.relay_messages import (
    PROTOCOL,
    Adopt,
    Begin,
    BeginDrain,
    Close,
    Configure,
    Configured,
    Connections,
    Cut,
    Doubt,
    Drained,
    EndDrain,
    HandedOver,
    HandOver,
    Happened,
    Hello,
    Kept,
    ListConnections,
    Ping,
    Pong,
    Refusal,
    SetEligible,
    Snapshot,
    Standing,
    StopAccepting,
    ToRelay,
    ToSupervisor,
    Wanted,
    Welcome,
    protocol_of,
    to_supervisor,
)
from clojarsd.core.relay_orders import CapFrontend, CountFrom, CountOn, PauseFrontend, ResumeFrontend, ShareFrontend
from clojarsd.runtime.budget import Budget
from clojarsd.runtime.connection_list import Listing
from clojarsd.runtime.frontend import Frontend
from clojarsd.runtime.handover import hand_over, take_over
from clojarsd.runtime.relay_caller import Caller
from clojarsd.runtime.rescued import adopt
from clojarsd.runtime.traffic import Traffic
from clojarsd.system.channel import Descriptors
from clojarsd.system.relay import RelayResources

log = structlog.get_logger()

SNAPSHOT_PAUSE = 0.05
"""Seconds between two snapshots while nothing but numbers changes."""
DOUBT_PAUSE = 0.05
"""Seconds in which an instance that cannot be connected to is mentioned once."""
MOST_EVENTS = 1000


class RelayServer:
    """Serves clients and the supervisor. relay_process.py makes it and closes it; no task runs inside.

    Args:
        code: the digest of the source that this process runs.
        ended: called when this process shall end; all is closed by then.
        start: runs a coroutine in a task that somebody owns.

    Attributes:
        traffic: the frontends.
        has_successor: whether another process has taken over everything.
    """

    def __init__(
        self,
        resources: RelayResources,
        budget: Budget,
        code: str,
        ended: Callable[[], None],
        start: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self.traffic = Traffic()
        self.has_successor = False
        self._resources = resources
        self._budget = budget
        self._code = code
        self._ended = ended
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._callers: set[Caller] = set()
        self._supervisor: Caller | None = None
        self._accepting = False
        self._has_begun = False
        self._is_closed = False
        self._drains: dict[Role, _DrainNumber] = {}
        self._deferred: list[tuple[ToRelay, Descriptors]] | None = None
        """What the supervisor has said since we began to hand over."""
        self._inherited: Mapping[str, Any] = {}
        self._events: deque[Happened] = deque(maxlen=MOST_EVENTS)
        self._snapshot_at: asyncio.TimerHandle | None = None
        self._doubted_at = dict.fromkeys(Role, -DOUBT_PAUSE)

    @property
    def has_supervisor(self) -> bool:
        """Whether somebody is there who decides."""
        return self._supervisor is not None and not self._supervisor.channel.is_left()

    def connect(self, end: socket.socket, pid: int) -> None:
        """Take a connection of a process that may be a supervisor, with its number; it is judged by its first word."""
        self._callers.add(Caller(self, end, pid))

    def close(self) -> None:
        """Reset what is open and let go of everything."""
        self._is_closed = True
        for _, descriptors in self._deferred or ():
            descriptors.close()
        for caller in list(self._callers):
            self.forget(caller)
        self.traffic.close()
        if self._snapshot_at is not None:
            self._snapshot_at.cancel()

    # The supervisor.

    def forget(self, caller: Caller) -> None:
        """It has gone, or is not wanted."""
        caller.close()
        self._callers.discard(caller)
        if self._supervisor is caller:
            self._supervisor = None
            log.warning("supervisor_gone", pid=caller.pid)
            if not (
                self._has_begun or self._is_closed
            ):  # nobody was served yet, and nobody waits for anything that only we have
                self.close()
                self._ended()

    def greet(self, caller: Caller, said: dict[str, Any]) -> None:
        """Serve the caller if it speaks our version and no other one is served."""
        present = self._supervisor
        if present is not None and not present.channel.is_left():
            pid = present.pid
            caller.refuse(Refusal(PROTOCOL, f"it is connected to the supervisor with process number {pid}", pid))
            return
        if protocol_of(said) != PROTOCOL:
            log.warning("supervisor_refused", pid=caller.pid, protocol=protocol_of(said), mine=PROTOCOL)
            caller.refuse(Refusal(PROTOCOL, f"it speaks version {PROTOCOL} of the protocol"))
            return
        if present is not None:
            self.forget(present)
        self._supervisor = caller
        log.info("supervisor_came", pid=caller.pid)
        frontends = self.traffic.frontends.values()
        listeners = [frontend.listeners for frontend in frontends]
        welcome = Welcome(
            protocol=PROTOCOL,
            code=self._code,
            accepting=self._accepting,
            frontends=tuple(Standing(one.plan, len(one.listeners), one.view()) for one in frontends),
            eligible={role: self.traffic.eligible_since[role] is not None for role in Role},
            draining=tuple(self._drains),
            paused=self.traffic.paused(),
        )
        caller.channel.send(to_supervisor(welcome), [one.fileno() for some in listeners for one in some])
        while self._events:
            self._tell(self._events.popleft())

    def _tell(self, message: ToSupervisor) -> None:
        if self._supervisor is not None:
            self._supervisor.channel.send(to_supervisor(message))

    def hear(self, caller: Caller, message: ToRelay, descriptors: Descriptors) -> None:
        """Do what the supervisor says; what it says while we hand over, if that comes to nothing."""
        if self._deferred is not None:
            self._deferred.append((message, Descriptors(descriptors.take())))
            return
        match message:
            case Configure(number, frontends):
                self._configure(frontends, descriptors)
                self._tell(Configured(number))
                self._show()
            case Begin():
                self._accepting = self._has_begun = True
                for frontend in self.traffic.frontends.values():
                    frontend.begin()
            case SetEligible(role, eligible, seconds, is_ordered, is_down):
                self.traffic.set_eligible(role, eligible, seconds, is_ordered=is_ordered, is_down=is_down)
            case BeginDrain():
                self._begin_drain(message)
            case EndDrain(role):
                self._drains.pop(role, None)
                self.traffic.end_drain(role)
                self._show()
            case Cut(role):
                self.traffic.cut(role)
            case Adopt(name, role):
                adopt(self.traffic, name, role, [socket.socket(fileno=number) for number in descriptors.take()])
            case StopAccepting():
                self._accepting = False
                self.traffic.stop_accepting()
                self._show()
            case PauseFrontend() | ResumeFrontend() | CapFrontend() | ShareFrontend() | CountFrom() | CountOn():
                self.traffic.obey(message)
            case Ping(number):
                self._tell(Pong(number))
            case ListConnections(number, name):
                wanted = [one for one in self.traffic.all_frontends if name in (None, one.plan.name)]
                self._list(number, Listing(wanted))
            case HandOver():
                self._deferred = []
                self._start(self._hand_over(caller, *(socket.socket(fileno=number) for number in descriptors.take(1))))
            case Close():
                self.close()
                self._ended()
            case Hello():
                log.warning("hello_ignored", pid=caller.pid)

    # Frontends.

    def _configure(self, frontends: Sequence[Wanted], descriptors: Descriptors) -> None:
        listeners = {}
        for wanted in frontends:
            if wanted.listeners is not None:
                taken = [socket.socket(fileno=number) for number in descriptors.take(wanted.listeners)]
                listeners[wanted.plan.name] = taken
        for frontend in self.traffic.frontends.values():
            frontend.let_go([one for taken in listeners.values() for one in taken])
        for name in set(self.traffic.frontends) - {wanted.plan.name for wanted in frontends}:
            self.traffic.retire(name)
        self._resources.move_flush = max((wanted.plan.drain_idle for wanted in frontends), default=0.0)
        for wanted in frontends:
            name = wanted.plan.name
            if name not in self.traffic.frontends:
                self._add(wanted)
            elif self.traffic.frontends[name].plan != wanted.plan:
                self.traffic.frontends[name].change_plan(wanted.plan)
            if name in listeners:
                self.traffic.frontends[name].listen(listeners[name])
                if self._accepting:
                    self.traffic.frontends[name].begin()
        self._keep_descriptors_free()

    def _keep_descriptors_free(self) -> None:
        """For the listening sockets, once more for while they are changed."""
        self._budget.keep_free(2 * sum(len(one.listeners) for one in self.traffic.frontends.values()))

    def _add(self, wanted: Wanted) -> None:
        frontend = self.frontend(wanted.plan)
        if wanted.before is not None:
            frontend.resume(wanted.before)
        self.traffic.add(frontend)

    # From one process to another.

    async def _hand_over(self, caller: Caller, end: socket.socket) -> None:
        """Give everything away and end, or go on; the supervisor hears which."""
        try:
            await self._give(end)
        except Failed as failed:
            self._tell(Kept(str(failed)))
            deferred, self._deferred = self._deferred or [], None
            for message, descriptors in deferred:
                with contextlib.closing(descriptors):
                    self.hear(caller, message, descriptors)
            return
        self.has_successor = True
        self._tell(HandedOver())
        self.close()
        self._ended()

    async def _give(self, end: socket.socket) -> None:
        if self.traffic.is_retiring:
            end.close()
            raise Failed("connections of frontends that were removed are still open")
        extra = {
            "accepting": self._accepting,
            "eligible_since": {role.value: since for role, since in self.traffic.eligible_since.items()},
            "down": [role.value for role in self.traffic.down],
            "drains": {role.value: [drain.number, drain.is_over] for role, drain in self._drains.items()},
        }
        await hand_over(end, tuple(self.traffic.frontends.values()), extra=extra)

    async def take_over(self, end: socket.socket) -> None:
        """Go on with everything that another process gives.

        Raises:
            Failed: that process goes on with it; nothing was touched.
        """
        frontends = await take_over(end, self)
        since = {role: self._inherited["eligible_since"].get(role.value) for role in Role}
        self.traffic.inherit(frontends, since, [Role(name) for name in self._inherited.get("down", ())])
        self._keep_descriptors_free()
        self._accepting = self._has_begun = bool(self._inherited["accepting"])
        for name, (number, is_over) in self._inherited["drains"].items():
            role = Role(name)
            drain = self._drains[role] = _DrainNumber(number, is_over=is_over)
            if not is_over:
                self.traffic.go_on_draining(role, partial(self._drained, role, drain))

    def frontend(self, plan: FrontendPlan) -> Frontend:
        """A new frontend of that plan that tells us its news."""
        self._resources.move_flush = max(self._resources.move_flush, plan.drain_idle)
        frontend = Frontend(plan, self._resources, self._budget)
        frontend.attach(self)
        frontend.doubt = self._doubt
        frontend.changed = self._show
        frontend.counted = self._show_soon
        return frontend

    def inherit(self, extra: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Remember what the other process knows besides its frontends; no descriptors come along."""
        self._inherited = extra

    def drained(self, name: str, role: Role) -> None:
        """A drain that was under way is over in the frontend of that name."""
        self.traffic.drained(name, role)

    # Drains.

    def _begin_drain(self, message: BeginDrain) -> None:
        number, role = message.number, message.role
        drain = self._drains.get(role)
        is_sooner = message.within is not None and drain is not None and not drain.is_over
        if not message.go_on or drain is None or is_sooner:
            drain = self._drains[role] = _DrainNumber(number)
            self.traffic.begin_drain(role, partial(self._drained, role, drain), message.within)
            self._show()
            return
        drain.number = number
        if drain.is_over:
            self._tell(Drained(number, role, self.traffic.tally(role)))

    def _drained(self, role: Role, drain: _DrainNumber) -> None:
        drain.is_over = True
        self._tell(Drained(drain.number, role, self.traffic.tally(role)))
        self._show()

    # News.

    def record(
        self, event: EventName, message: str, role: Role | None = None, by: str | None = None, **detail: Any
    ) -> None:
        """Tell the supervisor, or keep it for the next one."""
        if not self.has_supervisor:
            self._events.append(Happened(event, message, role, detail, stamp(datetime.now(UTC))))
        else:
            self._tell(Happened(event, message, role, detail))

    def _doubt(self, role: Role) -> None:
        now = self._loop.time()
        if now - self._doubted_at[role] >= DOUBT_PAUSE:
            self._doubted_at[role] = now
            self._tell(Doubt(role))

    def _list(self, number: int, listing: Listing) -> None:
        """Tell some of the connections, and in the loop's next turn more of them."""
        seen = () if self._is_closed else listing.take(self._loop.time())
        self._tell(Connections(number, seen, listing.left_out, is_last=not seen))
        if seen:
            self._loop.call_soon(self._list, number, listing)

    def _show(self) -> None:
        """Show all frontends to the supervisor at once; if it reads slowly, soon."""
        if self._snapshot_at is not None:
            self._snapshot_at.cancel()
            self._snapshot_at = None
        if self._supervisor is None:
            return
        if self._supervisor.channel.is_clear:
            self._tell(Snapshot({name: frontend.view() for name, frontend in self.traffic.frontends.items()}))
        else:
            self._show_soon()

    def _show_soon(self) -> None:
        if self._snapshot_at is None and self._supervisor is not None:
            self._snapshot_at = self._loop.call_later(SNAPSHOT_PAUSE, self._show)


class _DrainNumber:
    """By which number the supervisor knows the drain of an instance."""

    def __init__(self, number: int, *, is_over: bool = False) -> None:
        self.number = number
        self.is_over = is_over
