"""One port that clients use: accepts, dials the active instance, holds while there is none, drains."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import structlog

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.history import EventName, stamp
from clojarsd.core.names import Address, Role
from clojarsd.core.view import FrontendView, Next
from clojarsd.runtime.acceptor import ACCEPTS_A_TURN, EXHAUSTED, Acceptor
from clojarsd.runtime.budget import Budget
from clojarsd.runtime.dial import Client, Dial
from clojarsd.runtime.drain import Drain
from clojarsd.runtime.hold import Hold
from clojarsd.runtime.router import Router
from clojarsd.system.relay import EndReason, RelayResources, Session
from clojarsd.system.sockets import close_with_reset, is_same_socket, refuse_from_now_on

log = structlog.get_logger()

RELEASES_A_TURN = 32
RELEASE_PAUSE = 0.01
"""Held clients that are sent on their way at once, and the seconds until the next ones are: an instance that has just
started has a short accept queue."""
RETRY_PAUSE = 0.1
"""Seconds until a held client is tried again with an instance that is eligible and could not be connected to."""


class History(Protocol):
    """Keeps what happened."""

    def record(
        self, event: EventName, message: str, role: Role | None = None, by: str | None = None, **detail: Any
    ) -> None:
        """Add an event."""


class Frontend:
    """One frontend, from its listening sockets on, which are given to it; the relay process makes and closes it.

    Nothing here has a task of its own: the loop calls back when sockets are ready and when times have come.

    Attributes:
        doubt: called with a role that could not be connected to; set by the owner.
        changed: called when the route has changed, or clients begin or cease to wait; set by the owner.
        counted: called when a number in the view has changed; set by the owner.
    """

    def __init__(self, plan: FrontendPlan, resources: RelayResources, budget: Budget) -> None:
        self.plan = plan
        self._budget = budget
        self.doubt: Callable[[Role], None] = lambda role: None
        self.changed: Callable[[], None] = lambda: None
        self.counted: Callable[[], None] = lambda: None
        self._resources = resources
        self._history: History
        self._loop = asyncio.get_running_loop()
        self._log = log.bind(frontend=plan.name)
        self._listeners: list[socket.socket] = []
        self._acceptor = Acceptor(self._loop, self._take_in, self._has_room, self._log)
        budget.when_room(self._acceptor.look)
        self._router = Router(self._loop, self._log, plan.failback, self._route_changed)
        self._dials: set[Dial] = set()
        self._sessions: dict[Role, set[Session]] = {role: set() for role in Role}
        self._drains: dict[Role, Drain] = {}
        self._accepted = dict.fromkeys((Role.PRIMARY, Role.BACKUP, None), 0)
        self._hold = Hold(self._loop, resources.poller, plan.hold, self._give_up)
        self._held_since: float | None = None
        self._release: asyncio.TimerHandle | None = None

    def attach(self, history: History) -> None:
        """Take the history in which failovers and holds are recorded."""
        self._history = history

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
        waiting = self._hold.take()
        self.plan = plan
        self._hold = Hold(self._loop, self._resources.poller, plan.hold, self._give_up)
        for client in waiting:
            self._hold.keep(client)
        self._router.failback = plan.failback
        self._router.look()
        self._acceptor.look()

    def resume(self, before: FrontendView) -> None:
        """Count on from what another relay process had counted, and route as it did until told who is eligible."""
        self._accepted.update(before.accepted_total)
        has_served = before.active is Role.PRIMARY or before.accepted_total[Role.PRIMARY] > 0
        self._router.resume(before.active, primary_has_served=has_served)

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
        if self._release is not None:
            self._release.cancel()
        for drain in self._drains.values():
            drain.close()
        dials, self._dials = self._dials, set()
        for client in [*(dial.abandon() for dial in dials), *self._hold.take()]:
            close_with_reset(client.socket)
            self._budget.give_back()
        for role in Role:
            self.cut(role)

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
        dialling = [dial.role for dial in self._dials]
        counts: dict[Role | None, int] = {role: len(self._sessions[role]) + dialling.count(role) for role in Role}
        return FrontendView(
            listen=tuple(map(str, self.addresses() or self.plan.listen)),
            mode="relay",
            mode_reason=self.plan.mode_reason,
            active=self._router.active,
            connections={**counts, None: len(self._hold)},
            accepted_total=dict(self._accepted),
            next=self._failback(),
        )

    def _failback(self) -> Next | None:
        """When new connections go home again, if they do by themselves."""
        if self._router.changes_at is None:
            return None
        at = datetime.now(UTC) + timedelta(seconds=self._router.changes_at - self._loop.time())
        return Next("primary gets its new connections", stamp(at))

    # Routing.

    def set_eligible(self, eligible_since: Mapping[Role, float | None]) -> None:
        """Take who may get connections, and since when, and act on it at once."""
        before = self._router.changes_at
        self._router.set_eligible(eligible_since)
        for role in Role:
            if eligible_since[role] is None:
                self._redirect(role)
        if self._router.changes_at != before:
            self.changed()

    def _route_changed(self, moved_from: Role | None) -> None:
        active = self._router.active
        if active is not None:
            if moved_from is not None:
                event = EventName.FAILOVER if active is Role.BACKUP else EventName.FAILBACK
                text = f"new connections of frontend {self.plan.name} go to {active.value}"
                self._history.record(event, text, active, frontend=self.plan.name, before=moved_from.value)
            self._release_held()
        self.changed()

    # Connecting.

    def _has_room(self) -> bool:
        """Whether one more client may be without an instance; while nobody has to wait, a turn's worth always may."""
        if not self._budget.has_room():
            return False
        held, dialled = len(self._hold), len(self._dials)
        if held + dialled < self.plan.hold_connections:
            return True
        return self._router.active is not None and not held and dialled < ACCEPTS_A_TURN

    def _take_in(self, accepted: socket.socket) -> None:
        self._budget.take()
        self._admit(Client(accepted))

    def _admit(self, client: Client) -> None:
        """Connect the client to who is active and was not tried yet, or hold it."""
        role = self._next_role(client)
        if role is None:
            self._keep(client)
            return
        dial = Dial(self._loop, client, role, self.plan.backends[role], self.plan.connect_timeout, self._dialled)
        self._dials.add(dial)
        dial.start()

    def _next_role(self, client: Client) -> Role | None:
        active = self._router.active
        if active is None:
            return None
        for role in (active, active.other):
            if self._router.eligible_since[role] is not None and role not in self._drains and role not in client.tried:
                return role
        return None

    def _dialled(self, dial: Dial, instance: socket.socket | OSError) -> None:
        """A connect has come to its end; the client has been left alone meanwhile."""
        self._dials.discard(dial)
        if not isinstance(instance, OSError):
            self._relay(dial.client, dial.role, instance)
            return
        self._log.debug("connect_failed", role=dial.role.value, reason=str(instance))
        if instance.errno in EXHAUSTED:
            self._keep(dial.client)  # before the pause, so that who waits here is tried before others are accepted
            self._acceptor.pause(instance)
        else:
            self.doubt(dial.role)
            dial.client.tried += (dial.role,)
            self._admit(dial.client)

    def _redirect(self, role: Role) -> None:
        """Connect those elsewhere who are being connected to the role: nothing of theirs was sent yet."""
        for dial in [dial for dial in self._dials if dial.role is role]:
            self._dials.discard(dial)
            self._admit(dial.abandon())

    def _relay(self, client: Client, role: Role, instance: socket.socket) -> None:
        if client.is_new:
            self._accepted[role] += 1
        session = Session(
            self._loop,
            client.socket,
            instance,
            self._resources,
            quickack=self.plan.quickack,
            on_end=self._ended,
        )
        self._sessions[role].add(session)
        session.start()
        self.counted()
        if client.give_up_at is not None:
            self._look_whether_hold_is_over()
        self._acceptor.look()

    def _ended(self, session: Session, reason: EndReason) -> None:
        role = Role.PRIMARY if session in self._sessions[Role.PRIMARY] else Role.BACKUP
        self._sessions[role].discard(session)
        self._log.debug(
            "connection_ended",
            role=role.value,
            reason=reason.value,
            up_bytes=session.bytes_up,
            down_bytes=session.bytes_down,
        )
        if reason is EndReason.MOVED:
            self._admit(Client(session.client, is_new=False))
        else:
            self._budget.give_back()
        self.counted()
        if role in self._drains:
            self._drains[role].look()

    # Holding.

    def _keep(self, client: Client) -> None:
        active = self._router.active
        if self._held_since is None and self.plan.hold > 0:  # else nobody waits, and each client is turned away
            self._held_since = self._loop.time()
            why = "no instance is eligible" if active is None else "no instance can be connected to"
            text = f"connections of frontend {self.plan.name} wait: {why}"
            self._history.record(EventName.HOLD_STARTED, text, frontend=self.plan.name)
            self.changed()
        if client.give_up_at is None:
            self._accepted[None] += 1
        client.tried = ()
        self._hold.keep(client)
        self.counted()
        if active is not None and self._release is None:
            self._release = self._loop.call_later(RETRY_PAUSE, self._release_held)

    def _release_held(self) -> None:
        """Send those on their way who have waited longest, and soon the next."""
        if self._release is not None:
            self._release.cancel()
            self._release = None
        if self._router.active is None:
            return
        for client in self._hold.take(RELEASES_A_TURN):
            self._admit(client)
        if len(self._hold) and self._release is None:  # else somebody could not be connected, and all wait for a retry
            self._release = self._loop.call_later(RELEASE_PAUSE, self._release_held)
        self._acceptor.look()

    def _give_up(self, client: Client, waited: float | None) -> None:
        """A held client has left (`waited` is None), or has waited as long as it may."""
        close_with_reset(client.socket)
        self._budget.give_back()
        if waited is not None:
            self._log.debug("held_connection_closed", waited_s=round(waited, 3))
        self.counted()
        self._look_whether_hold_is_over()
        self._acceptor.look()

    def _look_whether_hold_is_over(self) -> None:
        """Record it when nobody waits any more, nor is being connected after having waited."""
        connecting = (dial.client.give_up_at is not None for dial in self._dials)
        if self._held_since is not None and not len(self._hold) and not any(connecting):
            lasted, self._held_since = self._loop.time() - self._held_since, None
            text = f"no connection of frontend {self.plan.name} waits any more, after {lasted:.3g} s"
            self._history.record(EventName.HOLD_ENDED, text, frontend=self.plan.name, seconds=round(lasted, 3))
            self.changed()

    # Draining.

    def begin_drain(self, role: Role, when_drained: Callable[[], None]) -> None:
        """Let the open connections of the role end, within `drain` seconds, and call back when none is left."""
        if role in self._drains:
            self._drains[role].close()
        self._drains[role] = Drain(self, role, when_drained)
        self._redirect(role)
        self._drains[role].look()

    def end_drain(self, role: Role) -> None:
        """Give up a drain: no deadline any more. Who was told to change sides at the next request still does."""
        if role in self._drains:
            self._drains.pop(role).close()
            self._release_held()

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
        return [*((dial.client, dial.role) for dial in self._dials), *((one, None) for one in self._hold.clients)]

    def is_empty(self, role: Role) -> bool:
        """Whether no connection of the role is open or being opened."""
        return not self._sessions[role] and all(dial.role is not role for dial in self._dials)

    def cut(self, role: Role) -> None:
        """Close the open connections of the role with a reset."""
        for session in list(self._sessions[role]):
            session.cut()
