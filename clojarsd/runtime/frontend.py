"""One port that clients use: accepts, dials the active instance, holds while there is none, drains."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import structlog

from clojarsd.core.history import EventName
from clojarsd.core.names import Address, Role
from clojarsd.core.routing import Route, choose
from clojarsd.core.view import FrontendView
from clojarsd.runtime.dial import Dial
from clojarsd.runtime.drain import Drain
from clojarsd.runtime.hold import Hold
from clojarsd.runtime.unit_runner import History
from clojarsd.system.relay import EndReason, RelayResources, Session
from clojarsd.system.sockets import close_with_reset, listen

log = structlog.get_logger()

ACCEPTS_A_TURN = 64
ACCEPT_PAUSE = 0.1
"""Seconds without accepting when descriptors or memory have run out: clients wait in the backlog, nothing spins."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class FrontendPlan:
    """What a frontend is made of.

    Attributes:
        backends: where each instance answers.
        movable: whether the protocol is HTTP, so that an open connection can change sides between two requests.
        mode_reason: why it relays, or None when the settings ask for it.
        connect_timeout, hold, drain, drain_idle, failback: seconds, as the settings say.
    """

    name: str
    listen: tuple[Address, ...]
    backends: Mapping[Role, Address]
    movable: bool
    mode_reason: str | None
    quickack: bool
    connect_timeout: float
    hold: float
    hold_connections: int
    drain: float
    drain_idle: float
    failback: float


class Frontend:
    """One frontend, from its listening sockets on; the daemon opens and closes it.

    Nothing here has a task of its own: the loop calls back when sockets are ready and when times have come.

    Attributes:
        doubt: called with a role that could not be connected to; set by the owner.
        changed: called when counts or the route have changed that somebody may wait for; set by the owner.
    """

    def __init__(self, plan: FrontendPlan, resources: RelayResources) -> None:
        self.plan = plan
        self.doubt: Callable[[Role], None] = lambda role: None
        self.changed: Callable[[], None] = lambda: None
        self._resources = resources
        self._history: History
        self._loop = asyncio.get_running_loop()
        self._log = log.bind(frontend=plan.name)
        self._listeners: list[socket.socket] = []
        self._accepting = False
        self._exhausted = False
        self._route = Route()
        self._eligible_since: Mapping[Role, float | None] = dict.fromkeys(Role)
        self._recheck: asyncio.TimerHandle | None = None
        self._dials: set[Dial] = set()
        self._sessions: dict[Role, set[Session]] = {role: set() for role in Role}
        self._drains: dict[Role, Drain] = {}
        self._accepted = dict.fromkeys((Role.PRIMARY, Role.BACKUP, None), 0)
        self._hold = Hold(self._loop, plan.hold, self._give_up)
        self._retry: asyncio.TimerHandle | None = None

    def attach(self, history: History) -> None:
        """Take the history in which failovers and holds are recorded."""
        self._history = history

    def open(self) -> None:
        """Listen on every address, or on none.

        Raises:
            Failed: an address cannot be listened on; says why.
        """
        with ExitStack() as undo:
            for address in self.plan.listen:
                beside_ipv4 = any(":" not in other.host for other in self.plan.listen if other.port == address.port)
                listener = undo.enter_context(listen(address, ipv6_only=beside_ipv4, what=f"frontend {self.plan.name}"))
                self._listeners.append(listener)
            undo.pop_all()

    def begin(self) -> None:
        """Accept clients from now on."""
        self._accept_more()

    def stop_accepting(self) -> None:
        """Close the listening sockets; what is open goes on."""
        self._accept_no_more()
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def close(self) -> None:
        """Close everything at once."""
        self.stop_accepting()
        for handle in (self._recheck, self._retry):
            if handle is not None:
                handle.cancel()
        for drain in self._drains.values():
            drain.close()
        for dial in list(self._dials):
            close_with_reset(dial.abandon())
        self._dials.clear()
        for client in self._hold.take_all():
            close_with_reset(client)
        for role in Role:
            self.cut(role)

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
            active=self._route.active,
            connections={**counts, None: len(self._hold)},
            accepted_total=dict(self._accepted),
        )

    # Routing.

    def set_eligible(self, eligible_since: Mapping[Role, float | None]) -> None:
        """Take who may get connections, and since when, and act on it at once."""
        self._eligible_since = dict(eligible_since)
        self._choose()

    def _choose(self) -> None:
        if self._recheck is not None:
            self._recheck.cancel()
            self._recheck = None
        before = self._route.active
        self._route = choose(self._route, self._eligible_since, self.plan.failback, self._loop.time())
        if self._route.recheck_at is not None:
            self._recheck = self._loop.call_at(self._route.recheck_at, self._choose)
        active = self._route.active
        if active is before:
            return
        self._log.info("route_changed", before=before and before.value, now=active and active.value)
        if before is not None and active is not None:
            event = EventName.FAILOVER if active is Role.BACKUP else EventName.FAILBACK
            text = f"new connections of frontend {self.plan.name} go to {active.value}"
            self._history.record(event, text, active, frontend=self.plan.name, before=before.value)
        if active is not None:
            self._release_held()
        self.changed()

    # Accepting.

    def _accept_more(self) -> None:
        if not self._accepting:
            self._accepting = True
            for listener in self._listeners:
                self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _accept_no_more(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if self._route.active is None and len(self._hold) >= self.plan.hold_connections:
                self._accept_no_more()  # the others wait in the backlog until there is room or somebody serves
                return
            try:
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._pause(error)
                return
            self._exhausted = False
            client.setblocking(False)
            self._admit(client, (), accepted=True)

    def _pause(self, error: OSError) -> None:
        """Leave clients in the backlog for a moment; said once per episode."""
        if not self._exhausted:
            self._exhausted = True
            self._log.warning("accept_paused", reason=error.strerror, pause_s=ACCEPT_PAUSE)
        self._accept_no_more()
        self._loop.call_later(ACCEPT_PAUSE, self._resume)

    def _resume(self) -> None:
        if self._listeners and not self._is_full():
            self._accept_more()

    def _is_full(self) -> bool:
        return self._route.active is None and len(self._hold) >= self.plan.hold_connections

    # Connecting.

    def _admit(self, client: socket.socket, tried: tuple[Role, ...], *, accepted: bool = False) -> None:
        """Connect the client to who is active and was not tried yet, or hold it."""
        role = self._next_role(tried)
        if role is None:
            self._keep(client, accepted)
            return
        dial = Dial(self._loop, client, role, self.plan.backends[role], self.plan.connect_timeout, self._dialled)
        dial.tried, dial.accepted = tried, accepted
        self._dials.add(dial)
        dial.start()

    def _next_role(self, tried: tuple[Role, ...]) -> Role | None:
        active = self._route.active
        if active is None or active not in tried:
            return active
        other = active.other
        return other if other not in tried and self._eligible_since[other] is not None else None

    def _dialled(self, dial: Dial, instance: socket.socket | OSError) -> None:
        """A connect has come to its end; the client has been left alone meanwhile."""
        self._dials.discard(dial)
        role = dial.role
        if isinstance(instance, OSError):
            self._log.debug("connect_failed", role=role.value, reason=str(instance))
            if instance.errno in _EXHAUSTED:
                self._pause(instance)
                self._keep(dial.client, dial.accepted)
            else:
                self.doubt(role)
                self._admit(dial.client, (*dial.tried, role), accepted=dial.accepted)
        elif role in self._drains:
            instance.close()  # nothing was sent: the client can still go to the other
            self._admit(dial.client, dial.tried, accepted=dial.accepted)
        else:
            if dial.accepted:
                self._accepted[role] += 1
            session = Session(
                self._loop,
                dial.client,
                instance,
                self._resources,
                quickack=self.plan.quickack,
                on_end=self._ended,
            )
            self._sessions[role].add(session)
            session.start()
        if role in self._drains:
            self._drains[role].look()

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
            self._admit(session.client, ())
        if role in self._drains:
            self._drains[role].look()

    # Holding.

    def _keep(self, client: socket.socket, accepted: bool) -> None:
        if not len(self._hold):
            self._history.record(
                EventName.HOLD_STARTED,
                f"connections of frontend {self.plan.name} wait: no instance is eligible",
                frontend=self.plan.name,
            )
        if accepted:
            self._accepted[None] += 1
        self._hold.keep(client)
        if self._route.active is not None and self._retry is None:  # it was tried, and cannot be connected to
            self._retry = self._loop.call_later(self.plan.connect_timeout, self._try_held)

    def _try_held(self) -> None:
        self._retry = None
        if self._route.active is not None:
            self._release_held()

    def _release_held(self) -> None:
        clients = self._hold.take_all()
        if clients:
            self._note_hold_ended(f"{len(clients)} waiting connections of frontend {self.plan.name} go on")
        self._resume()
        for client in clients:
            self._admit(client, ())

    def _give_up(self, client: socket.socket, waited: float | None) -> None:
        """A held client has left (`waited` is None), or has waited as long as it may."""
        close_with_reset(client)
        if waited is not None:
            self._log.warning("held_connection_closed", waited_s=waited)
        if not len(self._hold):
            self._note_hold_ended(f"no connection of frontend {self.plan.name} waits any more")
        self._resume()

    def _note_hold_ended(self, text: str) -> None:
        self._history.record(EventName.HOLD_ENDED, text, frontend=self.plan.name)

    # Draining.

    def begin_drain(self, role: Role, when_drained: Callable[[], None]) -> None:
        """Let the open connections of the role end, within `drain` seconds, and call back when none is left."""
        if role in self._drains:
            self._drains[role].close()
        self._drains[role] = Drain(self, role, when_drained)
        self._drains[role].look()

    def end_drain(self, role: Role) -> None:
        """Leave the open connections of the role alone."""
        if role in self._drains:
            self._drains.pop(role).close()

    def open_sessions(self, role: Role) -> set[Session]:
        """The relayed connections of the role."""
        return self._sessions[role]

    def is_empty(self, role: Role) -> bool:
        """Whether no connection of the role is open or being opened."""
        return not self._sessions[role] and all(dial.role is not role for dial in self._dials)

    def cut(self, role: Role) -> None:
        """Close the open connections of the role with a reset."""
        for session in list(self._sessions[role]):
            session.cut()
