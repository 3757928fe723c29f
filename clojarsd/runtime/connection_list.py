"""The relayed connections one by one, for whoever wants to know what a drain waits for."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator

from clojarsd.core.connections import MOST_LISTED, ConnectionPhase, ConnectionView
from clojarsd.core.names import Address, Role
from clojarsd.runtime.dial import Client
from clojarsd.runtime.frontend import Frontend
from clojarsd.system.relay import Session
from clojarsd.system.relay_phases import Phase
from clojarsd.system.sockets import since_data

AT_A_TIME = 20
"""Connections that are looked at and told in one turn of the loop, which takes some 2 ms."""
_PHASES = {
    Phase.RELAYING: ConnectionPhase.OPEN,
    Phase.LOOKING: ConnectionPhase.OPEN,
    Phase.MOVING: ConnectionPhase.MOVING,
    Phase.LOST: ConnectionPhase.ENDING,
    Phase.ENDED: ConnectionPhase.ENDING,
}


class Listing:
    """The connections of some frontends, chosen when it is made: those that owe an answer first, at most `MOST_LISTED`.

    Attributes:
        left_out: how many more there are.
    """

    def __init__(self, frontends: Iterable[Frontend]) -> None:
        chosen: list[tuple[Frontend, Role | None, Session | Client]] = []
        for frontend in frontends:
            for role in Role:
                chosen.extend((frontend, role, session) for session in frontend.open_sessions(role))
            chosen.extend((frontend, role, client) for client, role in frontend.without_instance())
        chosen.sort(key=lambda one: isinstance(one[2], Session) and not one[2].owed)
        self.left_out = max(len(chosen) - MOST_LISTED, 0)
        self._chosen = iter(chosen[:MOST_LISTED])

    def take(self, now: float) -> tuple[ConnectionView, ...]:
        """The next ones as they are at that loop time, but for those that have ended meanwhile; empty: there are none.

        Called until it returns nothing, with other work between the calls.
        """
        for chosen in _in_parts(self._chosen):
            seen = tuple(_view(frontend, role, one, now) for frontend, role, one in chosen if not _is_over(one))
            if seen:
                return seen
        return ()


def _in_parts(
    chosen: Iterator[tuple[Frontend, Role | None, Session | Client]],
) -> Iterator[list[tuple[Frontend, Role | None, Session | Client]]]:
    while part := [one for _, one in zip(range(AT_A_TIME), chosen, strict=False)]:
        yield part


def _is_over(one: Session | Client) -> bool:
    end = one.client if isinstance(one, Session) else one.socket
    return end.fileno() < 0 or (isinstance(one, Session) and one.phase is Phase.ENDED)


def _view(frontend: Frontend, role: Role | None, one: Session | Client, now: float) -> ConnectionView:
    name = frontend.plan.name
    if isinstance(one, Session):
        return ConnectionView(
            frontend=name,
            mode="relay",
            role=role,
            client=_peer(one.client),
            phase=_PHASES[one.phase],
            open_seconds=now - one.began_at,
            silent_seconds=since_data(one.client),
            bytes_up=one.bytes_up,
            bytes_down=one.bytes_down,
            owed=one.owed,
        )
    waited = now - one.give_up_at + frontend.plan.hold if one.give_up_at is not None else None
    return ConnectionView(
        frontend=name,
        mode="relay",
        role=role,
        client=_peer(one.socket),
        phase=ConnectionPhase.HELD if role is None else ConnectionPhase.CONNECTING,
        open_seconds=waited,
        silent_seconds=since_data(one.socket),
        bytes_up=0,
        bytes_down=0,
        owed=True,
    )


def _peer(client: socket.SocketType) -> Address | None:
    """The client's address; None when it has gone, or is of this machine and has none."""
    try:
        peer = client.getpeername()
    except OSError:
        return None
    return Address.of_socket(peer) if isinstance(peer, tuple) else None
