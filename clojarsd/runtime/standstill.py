"""A frontend that stands still, so that it can go on in another process, or here as if nothing had been."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial

from clojarsd.core.frozen import FrozenClient, FrozenConnection, FrozenFrontend
from clojarsd.core.names import Role
from clojarsd.runtime.dial import Client
from clojarsd.runtime.dialling import under_way
from clojarsd.runtime.drain import Drain
from clojarsd.runtime.frontend import Frontend
from clojarsd.system.relay_thaw import thaw


class Standstill:
    """The time in which nothing of a frontend is watched, read, sent, accepted or timed. A part of it, set apart.

    Made by `freeze` in the process that has the clients, by `thaw` in the one that shall have them. It ends with
    `unfreeze` or `let_go`; until then nothing of the frontend may be called but `view` and `close`.

    Attributes:
        frontend: what stands still.
        accepts: whether it accepts clients otherwise.
    """

    def __init__(self, frontend: Frontend, *, accepts: bool) -> None:
        self.frontend = frontend
        self.accepts = accepts

    @classmethod
    def freeze(cls, frontend: Frontend) -> Standstill:
        """Stop accepting and connecting; `head` and `connections`, called once each, stop the rest."""
        stands = cls(frontend, accepts=frontend._acceptor.is_on)
        frontend._acceptor.end()
        frontend.waiting.stand_still()
        frontend.gate.close()
        for dial in frontend._dials:
            dial.abandon()
        frontend._idle.close()
        frontend.switchover.stand_still()
        return stands

    def head(self) -> tuple[FrozenFrontend, list[int]]:
        """The frontend without its clients, and its listening sockets, which stay its own."""
        frontend = self.frontend
        drains = {role: drain.freeze() for role, drain in frontend._drains.items()}
        route, last_active = frontend._router.freeze()
        frozen = FrozenFrontend(
            plan=frontend.plan,
            listeners=len(frontend._listeners),
            accepts=self.accepts,
            route=route,
            last_active=last_active,
            eligible_since=frontend._router.eligible_since,
            accepted=frontend.accepted_total(),
            held_since=frontend.waiting.since,
            drains=drains,
            pause=frontend.gate.paused,
            caps=frontend.gate.caps,
            counted_from=frontend.gate.counted_from,
            patient_until=frontend.waiting.hold.not_before,
            home_until=frontend.switchover.until,
        )
        return frozen, [listener.fileno() for listener in frontend._listeners]

    def connections(self) -> list[tuple[FrozenConnection, tuple[int, ...]]]:
        """Its clients, those that are held in their order, each with the descriptors that go with it and stay its own.

        One that was being connected to an instance is connected anew: nothing of what it said was sent yet.
        """
        frontend, told = self.frontend, self.frontend._told
        clients: list[tuple[Client, Role | None]] = [(client, None) for client in frontend.waiting.hold.freeze()]
        clients += [(dial.client, dial.role) for dial in frontend._dials]
        found: list[tuple[FrozenConnection, tuple[int, ...]]] = [
            (FrozenConnection(role, client.freeze(), None, told.freeze(client)), (client.socket.fileno(),))
            for client, role in clients
        ]
        for role, sessions in frontend._sessions.items():
            drain = frontend._drains.get(role)
            for session in sessions:
                state, descriptors = session.freeze()
                quiet_since = drain.quiet_since(session) if drain is not None else None
                found.append((FrozenConnection(role, state, quiet_since, told.freeze(session)), descriptors))
        return found

    @classmethod
    def thaw(
        cls,
        frontend: Frontend,
        frozen: FrozenFrontend,
        listeners: Sequence[socket.socket],
        when_drained: Callable[[Role], None],
    ) -> Standstill:
        """Make a new frontend what another process's was, but for its clients.

        Args:
            listeners: non-blocking; the frontend's from here on.
            when_drained: called, after `unfreeze`, with a role that is being drained when none of its clients is left.
        """
        frontend._idle.close()
        frontend._listeners = list(listeners)
        frontend._router.thaw(frozen.route, frozen.last_active, frozen.eligible_since)
        frontend._accepted.update({role: frozen.accepted[role] for role in Role})
        frontend.waiting.accepted, frontend.waiting.since = frozen.accepted[None], frozen.held_since
        frontend.waiting.hold.patient_until(frozen.patient_until)
        frontend.gate.thaw(frozen.pause, frozen.caps, frozen.counted_from)
        frontend.switchover.until = frozen.home_until
        for role, deadline in frozen.drains.items():
            frontend._drains[role] = Drain.thaw(frontend, role, partial(when_drained, role), deadline)
        return cls(frontend, accepts=frozen.accepts)

    def thaw_connection(self, frozen: FrozenConnection, descriptors: Sequence[int]) -> None:
        """Add a client of the other process. The descriptors are the frontend's from here on."""
        frontend, role, state = self.frontend, frozen.role, frozen.state
        if isinstance(state, FrozenClient):
            client = Client.thaw(state, descriptors[0])
            frontend._told.thaw(client, frozen.record)
            if role is None:
                frontend.waiting.hold.thaw(client)
            else:
                under_way(frontend, client, role)
        else:
            assert role is not None
            session = thaw(frontend._loop, state, descriptors, frontend._resources, on_end=frontend._ended)
            frontend._sessions[role].add(session)
            frontend._told.thaw(session, frozen.record)
            if frozen.quiet_since is not None and role in frontend._drains:
                frontend._drains[role].was_quiet_since(session, frozen.quiet_since)
        frontend._budget.take()

    def unfreeze(self) -> None:
        """Go on."""
        frontend = self.frontend
        frontend.look_for_silence()
        for sessions in frontend._sessions.values():
            for session in sessions:
                session.unfreeze()
        frontend.waiting.hold.unfreeze()
        frontend.gate.watch()
        dials, frontend._dials = frontend._dials, set()
        if self.accepts:
            frontend.begin()
        frontend._router.look()
        for dial in dials:
            frontend.admit(dial.client)
        frontend.waiting.heed(frontend.gate.paused)
        for drain in list(frontend._drains.values()):
            drain.unfreeze()
        frontend.switchover.go_on()

    def let_go(self) -> None:
        """Close the descriptors of this process, so that nobody hears of it: another one has duplicates of all."""
        frontend = self.frontend
        frontend._idle.close()
        frontend.switchover.close()
        frontend._told.close()
        for sessions in frontend._sessions.values():
            for session in sessions:
                session.let_go()
                frontend._budget.give_back()
            sessions.clear()
        for client in [*frontend.waiting.hold.take(), *(dial.client for dial in frontend._dials)]:
            client.socket.close()
            frontend._budget.give_back()
        frontend._dials.clear()
        frontend._drains.clear()
        frontend._close_listeners()
