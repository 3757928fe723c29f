"""One port that clients use: accepts, dials the active instance, holds while there is none, drains."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import structlog

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.history import EventName
from clojarsd.core.names import Address, Role
from clojarsd.core.view import FrontendView
from clojarsd.runtime import dialling, places
from clojarsd.runtime.acceptor import Acceptor
from clojarsd.runtime.budget import Budget
from clojarsd.runtime.connection_log import ConnectionLog
from clojarsd.runtime.dial import Client, Dial
from clojarsd.runtime.drain import Drain
from clojarsd.runtime.frontend_history import History as History
from clojarsd.runtime.frontend_view import view_of
from clojarsd.runtime.gate import Gate
from clojarsd.runtime.idle import IdleSweep
from clojarsd.runtime.router import Router
from clojarsd.runtime.suspicion import Suspicion
from clojarsd.runtime.switchover import Switchover
from clojarsd.runtime.waiting import Waiting
from clojarsd.runtime.wide_dial import WideDial, direct_addresses
from clojarsd.system.announce import announce
from clojarsd.system.relay import EndReason, RelayResources, Session
from clojarsd.system.sockets import close_with_reset, is_same_socket, refuse_from_now_on

log = structlog.get_logger()
_PRIMARY, _BACKUP = Role  # by name, as in relay_phases.py
_MOVED = EndReason.MOVED


class Frontend:
    """One frontend, from its listening sockets on, which are given to it; the relay process makes and closes it.

    Nothing here has a task of its own: the loop calls back when sockets are ready and when times have come.

    Attributes:
        doubt: called with a role that could not be connected to; set by the owner.
        changed: called when the route has changed, or clients begin or cease to wait; set by the owner.
        counted: called when a number in the view has changed; set by the owner.
        gate: what operators have ordered about it.
        waiting: the clients that have to wait.
        switchover: what becomes of open connections when new ones go elsewhere.
    """

    def __init__(self, plan: FrontendPlan, resources: RelayResources, budget: Budget) -> None:
        self.plan = plan
        self._budget = budget
        self.doubt: Callable[[Role], None] = lambda role: None
        self.changed: Callable[[], None] = lambda: None
        self.counted: Callable[[], None] = lambda: None
        self._resources = resources
        self._loop = asyncio.get_running_loop()
        self._log = log.bind(frontend=plan.name)
        self._listeners: list[socket.socket] = []
        self._acceptor = Acceptor(self._loop, self._take_in, partial(places.room_to_wait, self), self._log)
        budget.when_room(self._acceptor.look)
        self._router = Router(self._loop, self._log, plan.when_home, self._route_changed, plan.slow_start)
        self._direct = direct_addresses(plan)
        self._dials: set[Dial | WideDial] = set()
        self._suspicion = Suspicion(self._loop)
        self._told = ConnectionLog(self._loop, self._log)
        self._told.configure(plan.access_log)
        self.switchover = Switchover(self, self._loop)
        self._idle = IdleSweep(self._loop, self._every_session)
        self.look_for_silence()
        self._sessions: dict[Role, set[Session]] = {role: set() for role in Role}
        self._drains: dict[Role, Drain] = {}
        self._accepted = dict.fromkeys(Role, 0)
        self.gate = Gate(self._loop, self._log, plan.caps, self._gate_changed)
        self.waiting = Waiting(self, self._loop, self._log, resources.poller, plan.hold)

    def attach(self, history: History) -> None:
        """Take the history in which failovers and holds are recorded."""
        self.waiting.history = history

    def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Take the non-blocking listening sockets, which are closed here, in place of those it has.

        Those accept who waits in their backlog, and refuse clients from here on. Accepting begins with `begin`.
        """
        self.stop_accepting()
        self._listeners = list(listeners)

    def let_go(self, listeners: Sequence[socket.socket]) -> None:
        """Close those of its own listening sockets that are the same as one of these, which go on elsewhere."""
        kept = [own for own in self._listeners if not any(is_same_socket(own, other) for other in listeners)]
        if len(kept) < len(self._listeners):
            gone = set(self._listeners) - set(kept)
            was_on = self._acceptor.is_on
            self._acceptor.end()
            for own in gone:
                own.close()
            self._listeners = kept
            if was_on:
                self._acceptor.begin(kept)

    def change_plan(self, plan: FrontendPlan) -> None:
        """Go by another plan of the same name; who waits already may do so as long as it was told."""
        if plan.caps != self.plan.caps:
            self.gate.caps = plan.caps
        self.plan, self._direct = plan, direct_addresses(plan)
        self.waiting.change_time(plan.hold)
        self.look_for_silence()
        others = (client for client, _ in self.without_instance())
        self._told.configure(plan.access_log, [*self._every_session(), *others])
        self._router.failback, self._router.slow_start = plan.when_home, plan.slow_start
        self._router.look()
        self.switchover.look()
        self.waiting.let_go()

    def resume(self, before: FrontendView) -> None:
        """Count on from what another relay process had counted, and route as it did until told who is eligible."""
        self._accepted.update({role: before.accepted_total[role] for role in Role})
        self.waiting.accepted = before.accepted_total[None]
        has_served = before.active is Role.PRIMARY or before.accepted_total[Role.PRIMARY] > 0 or before.failures > 0
        self._router.resume(before.active, primary_has_served=has_served, failures=before.failures, share=before.share)
        self.gate.thaw(None, before.caps, before.counted_from)

    def begin(self) -> None:
        """Accept clients from now on."""
        self._acceptor.begin(self._listeners)

    def stop_accepting(self) -> None:
        """Take in who waits in the backlog and can be served, and close the listening sockets; what is open goes on."""
        if self._router.active is not None:
            self._acceptor.accept_waiting()
        for listener in self._listeners:
            refuse_from_now_on(listener)
        self._close_listeners()

    def close(self) -> None:
        """Close everything at once, for good."""
        self._close_listeners()
        self._budget.forget(self._acceptor.look)
        self._router.close()
        self.gate.close()
        self.waiting.stand_still()
        for drain in self._drains.values():
            drain.close()
        dials, self._dials = self._dials, set()
        for client in [*(dial.abandon() for dial in dials), *self.waiting.hold.take()]:
            close_with_reset(client.socket)
            self._told.ended(client, None, EndReason.CUT)
            self._budget.give_back()
        for role in Role:
            self.cut(role)
        self._idle.close()
        self.switchover.close()

    def _close_listeners(self) -> None:
        self._acceptor.end()
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    @property
    def listeners(self) -> Sequence[socket.socket]:
        """Its listening sockets; none once it has stopped accepting."""
        return self._listeners

    def addresses(self) -> tuple[Address, ...]:
        """Where it listens, with the ports the kernel chose for port 0."""
        return tuple(Address(*listener.getsockname()[:2]) for listener in self._listeners)

    def view(self) -> FrontendView:
        """The frontend now."""
        return view_of(self)

    def accepted_total(self) -> dict[Role | None, int]:
        """How many each role has got so far, and under None how many had to wait."""
        return {one: self.waiting.accepted if one is None else self._accepted[one] for one in (*Role, None)}

    # Routing.

    def set_eligible(
        self, since: Mapping[Role, float | None], *, is_ordered: bool = False, down: Collection[Role] = ()
    ) -> None:
        """Take who may get connections, since when, whether by order, and who may not as it is down; act at once."""
        before = self._router.changes_at
        self._router.set_eligible(since, is_ordered=is_ordered)
        for role in Role:
            if since[role] is None:
                dialling.redirect(self, role)
                self._suspicion.answered(role)  # whatever is eligible there next is another instance
        self.switchover.look(down)
        if self._router.changes_at != before:
            self.changed()
        if not self.gate.is_open:
            self.waiting.let_go()  # the route may be as before, and yet the other instance have room

    def _route_changed(self, moved_from: Role | None) -> None:
        active = self._router.active
        if active is not None:
            if moved_from is not None and not self.plan.is_steered:
                event = EventName.FAILOVER if active is Role.BACKUP else EventName.FAILBACK
                text = f"new connections of frontend {self.plan.name} go to {active.value}"
                self.waiting.history.record(event, text, active, frontend=self.plan.name, before=moved_from.value)
            self.waiting.pacer.begin()
            self.waiting.let_go()
        self.switchover.route_changed()
        self.changed()

    def _gate_changed(self) -> None:
        """Operators have ordered something, or a pause has ended."""
        self.waiting.heed(self.gate.paused)
        self.switchover.look()
        self.changed()

    def share(self, share: float) -> None:
        """Let that part of new connections go to the backup while both may get some and the primary is active."""
        self._router.share = share
        self.changed()

    # Connecting.

    def _take_in(self, accepted: socket.SocketType) -> None:
        self._budget.take()
        client = Client(accepted)
        if self._told.is_on:
            self._told.came(client)
        if len(self.waiting):  # nobody overtakes those who wait
            self.waiting.keep(client)
        else:
            self.admit(client)

    def open_now(self) -> dict[Role, int]:
        """How many connections each instance has, those that are being opened included."""
        dialling = [dial.role for dial in self._dials]
        return {role: len(self._sessions[role]) + dialling.count(role) for role in Role}

    def room(self) -> int | None:
        """How many new connections may go to an instance now; None: any number."""
        return places.room(self)

    def admit(self, client: Client) -> None:
        """Connect the client to who is active and was not tried yet, or hold it."""
        role = self._router.active
        if not self.gate.is_open or client.tried or self._drains or self._suspicion.until or self._router.is_dealing:
            role = places.next_role(self, client)
        if role is None:
            self.waiting.keep(client)
            return
        if self._told.is_on:
            self._told.dialling(client)
        dialling.dial(self, client, role)

    def relay(self, client: Client, role: Role, instance: socket.SocketType) -> None:
        """Carry the client's bytes to the instance, to which that socket is connected."""
        if client.is_new:
            self._accepted[role] += 1
        session = Session(
            self._loop,
            client.socket,
            instance,
            self._resources,
            quickack=self.plan.quickack,
            is_duplicated=client.is_duplicated,
            on_end=self._ended,
        )
        self._sessions[role].add(session)
        if self._suspicion.until:
            self._suspicion.answered(role)
        if self._told.is_on:
            self._told.connected(client, session)
        if self.plan.proxy_protocol and not client.is_announced:
            announce(session)
        session.start()
        self.counted()
        self.waiting.connected(client, session)
        self._acceptor.look()

    def _ended(self, session: Session, reason: EndReason) -> None:
        role = _PRIMARY if session in self._sessions[_PRIMARY] else _BACKUP
        self._sessions[role].discard(session)
        if reason is _MOVED:
            client = Client(session.client, is_new=False, is_duplicated=session.is_duplicated)
            self._told.moved(session, client)
            self.admit(client)
        else:
            if self._told.is_on:
                self._told.ended(session, role, reason)
            self._budget.give_back()
        self.counted()
        if role in self._drains:
            self._drains[role].ended(reason)
        if not self.gate.is_open:
            self.waiting.let_go()

    # What those who wait need to know.

    @property
    def name(self) -> str:
        """Its name."""
        return self.plan.name

    def why_wait(self) -> tuple[str, str | None]:
        """Why a client has to wait, in words; and how the latest connect came to nothing, if that is why."""
        return places.why_wait(self)

    def is_connecting_waited(self) -> bool:
        """Whether a client that had to wait is being connected."""
        return any(dial.client.give_up_at is not None for dial in self._dials)

    def has_left(self, client: Client, reason: EndReason) -> None:
        """A client that waited has gone, and why."""
        self._budget.give_back()
        self._told.ended(client, None, reason)

    def waits(self, client: Client) -> None:
        """A client has to wait."""
        self._told.waits(client)

    def look_for_more(self) -> None:
        """Accept more clients, if there is room again."""
        self._acceptor.look()

    def tell(self, *, is_news: bool) -> None:
        """Have the view looked at, at once if it is news."""
        (self.changed if is_news else self.counted)()

    # Draining.

    def begin_drain(self, role: Role, when_drained: Callable[[], None], within: float | None = None) -> None:
        """Let the open connections of the role end, within `drain` seconds, and call back when none is left.

        Args:
            within: seconds, where they are fewer; a drain that is under way is never made longer by another.
        """
        if (before := self._drains.get(role)) is not None and before.until is not None:
            before.go_on(when_drained, within)
        else:
            self._drains[role] = Drain(self, role, when_drained, within)
            dialling.redirect(self, role)
        self._drains[role].look()

    def end_drain(self, role: Role) -> None:
        """Give up a drain: no deadline any more. Who was told to change sides at the next request still does."""
        if role in self._drains:
            self._drains.pop(role).close()
            self.waiting.let_go()

    @property
    def can_move(self) -> bool:
        """Whether an open connection can leave its instance between two requests, and be served on.

        Only HTTP can; and once the listening sockets are closed no other instance is to come.
        """
        return self.plan.movable and bool(self._listeners)

    def open_sessions(self, role: Role) -> set[Session]:
        """The relayed connections of the role."""
        return self._sessions[role]

    def without_instance(self) -> list[tuple[Client, Role | None]]:
        """The clients that are being connected to a role, and those that are held, with None."""
        held = [(client, None) for client in self.waiting.hold.clients]
        return [*((dial.client, dial.role) for dial in self._dials), *held]

    def is_empty(self, role: Role) -> bool:
        """Whether no connection of the role is open or being opened."""
        return not self._sessions[role] and all(dial.role is not role for dial in self._dials)

    def cut(self, role: Role, reason: EndReason = EndReason.CUT) -> None:
        """Close the open connections of the role with a reset."""
        for session in list(self._sessions[role]):
            session.cut(reason)

    # Silence.

    def look_for_silence(self) -> None:
        """End connections that are silent for as long as the plan says, counted from now on."""
        self._idle.configure(self.plan.idle_timeout, self.plan.half_closed_timeout)

    def _every_session(self) -> list[Session]:
        return [session for sessions in self._sessions.values() for session in sessions]
