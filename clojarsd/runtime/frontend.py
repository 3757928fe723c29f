"""One port that clients use: accepts, dials the active instance, holds while there is none, drains."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence

import structlog

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.history import EventName
from clojarsd.core.names import Address, Role
from clojarsd.core.routing import pick, room
from clojarsd.core.view import FrontendView
from clojarsd.runtime.acceptor import ACCEPTS_A_TURN, EXHAUSTED, Acceptor
from clojarsd.runtime.budget import Budget
from clojarsd.runtime.dial import Client, Dial
from clojarsd.runtime.drain import Drain
from clojarsd.runtime.gate import Gate, wall_clock
from clojarsd.runtime.router import Router
from clojarsd.runtime.waiting import History, Waiting
from clojarsd.system.relay import EndReason, RelayResources, Session
from clojarsd.system.sockets import close_with_reset, is_same_socket, refuse_from_now_on

log = structlog.get_logger()

_NOT_COUNTED = dict.fromkeys(Role, 0)


class Frontend:
    """One frontend, from its listening sockets on, which are given to it; the relay process makes and closes it.

    Nothing here has a task of its own: the loop calls back when sockets are ready and when times have come.

    Attributes:
        doubt: called with a role that could not be connected to; set by the owner.
        changed: called when the route has changed, or clients begin or cease to wait; set by the owner.
        counted: called when a number in the view has changed; set by the owner.
        gate: what operators have ordered about it.
        waiting: the clients that have to wait.
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
        self._acceptor = Acceptor(self._loop, self._take_in, self._has_room, self._log)
        budget.when_room(self._acceptor.look)
        self._router = Router(self._loop, self._log, plan.when_home, self._route_changed)
        self._dials: set[Dial] = set()
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
        self.plan = plan
        self.waiting.change_time(plan.hold)
        self._router.failback = plan.when_home
        self._router.look()
        self.waiting.let_go()

    def resume(self, before: FrontendView) -> None:
        """Count on from what another relay process had counted, and route as it did until told who is eligible."""
        self._accepted.update({role: before.accepted_total[role] for role in Role})
        self.waiting.accepted = before.accepted_total[None]
        has_served = before.active is Role.PRIMARY or before.accepted_total[Role.PRIMARY] > 0
        self._router.resume(before.active, primary_has_served=has_served, failures=before.failures)
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
        return FrontendView(
            listen=tuple(map(str, self.addresses() or self.plan.listen)),
            mode="relay",
            mode_reason=self.plan.mode_reason,
            active=self._router.active,
            connections=_with_held(self._open_now(), len(self.waiting)),
            accepted_total=self.accepted_total(),
            next=self._router.next(),
            paused=self.gate.view(),
            caps=self.gate.caps,
            counted_from=self.gate.counted_from,
            draining={role: wall_clock(self._loop, at) for role, drain in self._drains.items() if (at := drain.until)},
            failures=self._router.failures,
        )

    def accepted_total(self) -> dict[Role | None, int]:
        """How many each role has got so far, and under None how many had to wait."""
        return _with_held(self._accepted, self.waiting.accepted)

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
            if moved_from is not None and not self.plan.is_steered:
                event = EventName.FAILOVER if active is Role.BACKUP else EventName.FAILBACK
                text = f"new connections of frontend {self.plan.name} go to {active.value}"
                self.waiting.history.record(event, text, active, frontend=self.plan.name, before=moved_from.value)
            self.waiting.pacer.begin()
            self.waiting.let_go()
        self.changed()

    def _gate_changed(self) -> None:
        """Operators have ordered something, or a pause has ended."""
        self.waiting.heed(self.gate.paused)
        self.changed()

    # Connecting.

    def _has_room(self) -> bool:
        """Whether one more client may be without an instance; while nobody has to wait, a turn's worth always may."""
        if not self._budget.has_room():
            return False
        held, dialled, caps = len(self.waiting), len(self._dials), self.gate.caps
        if caps.total and held + sum(self._open_now().values()) >= caps.total:
            return False
        if held + dialled < self.plan.hold_connections:
            return self.plan.hold > 0 or self._router.active is None or not caps.are_set or self.room() != 0
        return not held and dialled < ACCEPTS_A_TURN and self.room() != 0

    def _take_in(self, accepted: socket.SocketType) -> None:
        self._budget.take()
        if len(self.waiting):  # nobody overtakes those who wait
            self.waiting.keep(Client(accepted))
        else:
            self.admit(Client(accepted))

    def _open_now(self) -> dict[Role, int]:
        """How many connections each instance has, those that are being opened included."""
        dialling = [dial.role for dial in self._dials]
        return {role: len(self._sessions[role]) + dialling.count(role) for role in Role}

    def _able(self) -> list[Role]:
        """The instances that may get connections."""
        eligible_since = self._router.eligible_since
        return [role for role in Role if eligible_since[role] is not None and role not in self._drains]

    def room(self) -> int | None:
        """How many new connections may go to an instance now; None: any number."""
        if self._router.active is None or self.gate.paused is not None:
            return 0
        caps = self.gate.caps
        return room(self._able(), self._open_now(), caps) if caps.are_set else None

    def admit(self, client: Client) -> None:
        """Connect the client to who is active and was not tried yet, or hold it."""
        role = self._next_role(client)
        if role is None:
            self.waiting.keep(client)
            return
        dial = Dial(self._loop, client, role, self.plan.backends[role], self.plan.connect_timeout, self._dialled)
        self._dials.add(dial)
        dial.start()

    def _next_role(self, client: Client) -> Role | None:
        active, caps = self._router.active, self.gate.caps
        if active is None or (self.gate.paused is not None and client.is_new):
            return None
        able = [role for role in self._able() if role not in client.tried]
        return pick(active, able, self._open_now() if caps.are_set else _NOT_COUNTED, caps)

    def _dialled(self, dial: Dial, instance: socket.SocketType | OSError) -> None:
        """A connect has come to its end; the client has been left alone meanwhile."""
        self._dials.discard(dial)
        if not isinstance(instance, OSError):
            self._relay(dial.client, dial.role, instance)
            return
        self._log.debug("connect_failed", role=dial.role.value, reason=str(instance))
        if instance.errno in EXHAUSTED:
            self.waiting.keep(dial.client)  # before the pause: who waits here is tried before others are accepted
            self._acceptor.pause(instance)
        else:
            self.doubt(dial.role)
            dial.client.tried += (dial.role,)
            self.admit(dial.client)

    def _redirect(self, role: Role) -> None:
        """Connect those elsewhere who are being connected to the role: nothing of theirs was sent yet."""
        for dial in [dial for dial in self._dials if dial.role is role]:
            self._dials.discard(dial)
            self.admit(dial.abandon())

    def _relay(self, client: Client, role: Role, instance: socket.SocketType) -> None:
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
        session.start()
        self.counted()
        self.waiting.connected(client, session)
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
            self.admit(Client(session.client, is_new=False, is_duplicated=session.is_duplicated))
        else:
            self._budget.give_back()
        self.counted()
        if role in self._drains:
            self._drains[role].look()
        if self.gate.caps.are_set:
            self.waiting.let_go()

    # What those who wait need to know.

    @property
    def name(self) -> str:
        """Its name."""
        return self.plan.name

    def why_wait(self) -> str:
        """Why a client has to wait, in words."""
        if (pause := self.gate.paused) is not None:
            return f"paused by {pause.by}"
        if self._router.active is None:
            return "no instance is eligible"
        if self.room() == 0:
            return "there are as many connections as there may be"
        return "no instance can be connected to"

    def is_connecting_waited(self) -> bool:
        """Whether a client that had to wait is being connected."""
        return any(dial.client.give_up_at is not None for dial in self._dials)

    def has_left(self) -> None:
        """A client that waited has gone."""
        self._budget.give_back()

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
        before = self._drains.get(role)
        if before is not None and before.until is not None:
            before.go_on(when_drained, within)
        else:
            self._drains[role] = Drain(self, role, when_drained, within)
            self._redirect(role)
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
        return [
            *((dial.client, dial.role) for dial in self._dials),
            *((one, None) for one in self.waiting.hold.clients),
        ]

    def is_empty(self, role: Role) -> bool:
        """Whether no connection of the role is open or being opened."""
        return not self._sessions[role] and all(dial.role is not role for dial in self._dials)

    def cut(self, role: Role) -> None:
        """Close the open connections of the role with a reset."""
        for session in list(self._sessions[role]):
            session.cut()


def _with_held(counts: Mapping[Role, int], held: int) -> dict[Role | None, int]:
    return {Role.PRIMARY: counts[Role.PRIMARY], Role.BACKUP: counts[Role.BACKUP], None: held}
