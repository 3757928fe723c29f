"""Clients that a stuck instance had in its accept queue are served by the other one."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from clojarsd.core.names import Address, Role
from clojarsd.runtime.dial import Client
from clojarsd.runtime.frontend import Frontend
from clojarsd.runtime.traffic import Traffic
from clojarsd.system.relay import Session
from clojarsd.system.sockets import close_with_reset

Ends = tuple[Address, Address]
"""Our end of a connection, and the other one. Both: the kernel gives one port of ours to several that differ there."""


def adopt(traffic: Traffic, name: str, role: Role, clients: Sequence[socket.socket]) -> None:
    """Serve them elsewhere; the sockets are the callee's.

    One may be the far end of a connection that a session here has made to the instance. What the session's client
    has sent is in that socket, and more will come; it goes on between the two, and its session, which was counted
    with the instance and would hold up its drain, belongs to the other one from now on.

    Args:
        name: the frontend that gets the others, who reached the instance without a session.
        role: the instance.
    """
    dialled = _dialled(traffic, role)
    for client in clients:
        ends = _ends_of(client)
        if ends is None:
            client.close()
            continue
        frontend, session = dialled.get(ends[::-1], (None, None))
        if frontend is not None and session is not None:
            _count_elsewhere(frontend, session, role)
        if frontend not in traffic.frontends.values():
            frontend = traffic.frontends.get(name)
        if frontend is None:
            close_with_reset(client)
        else:
            _serve(frontend, client, is_announced=session is not None)


def _dialled(traffic: Traffic, role: Role) -> Mapping[Ends, tuple[Frontend, Session]]:
    """The sessions of the role that have got no answer yet, by the ends of their connection to it."""
    return {
        ends: (frontend, session)
        for frontend in traffic.all_frontends
        for session in frontend.open_sessions(role)
        if not session.bytes_down and (ends := _ends_of(session.instance)) is not None
    }


def _ends_of(end: socket.SocketType) -> Ends | None:
    """Both ends of a TCP connection; None when it has gone, or is none."""
    try:
        near, far = end.getsockname(), end.getpeername()
    except OSError:
        return None
    return (Address.of_socket(near), Address.of_socket(far)) if isinstance(near, tuple) else None


def _serve(frontend: Frontend, client: socket.socket, *, is_announced: bool) -> None:
    """Serve one by the other instance; reset it if there is no room. A part of the frontend, set apart.

    Args:
        is_announced: whether what it says begins with who it is already, where instances are told that.
    """
    if not frontend._budget.room():
        close_with_reset(client)  # what is kept free is for those who supervise: no descriptor, no orders
        return
    client.setblocking(False)
    frontend._budget.take()
    # whoever has sent it may not have closed its own descriptor yet
    served = Client(client, is_new=False, is_duplicated=True, is_announced=is_announced)
    if frontend._told.is_on and not is_announced:  # of one that came by a session that one's record tells
        frontend._told.came(served)
    frontend.admit(served)


def _count_elsewhere(frontend: Frontend, session: Session, role: Role) -> None:
    """Count an open session of the role with the other instance, which serves it by now."""
    frontend._sessions[role].discard(session)
    frontend._sessions[role.other].add(session)
    if role in frontend._drains:
        frontend._drains[role].look()
