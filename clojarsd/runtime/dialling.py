"""How a frontend connects its clients to instances, and what becomes of those it cannot. A part of `Frontend`."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

from clojarsd.core.names import Role
from clojarsd.runtime import places
from clojarsd.runtime.dial import Client, Dial, connect
from clojarsd.runtime.wide_dial import WideDial, make_dial
from clojarsd.system.sockets import EXHAUSTED

if TYPE_CHECKING:
    from clojarsd.runtime.frontend import Frontend


def dial(frontend: Frontend, client: Client, role: Role) -> None:
    """Connect the client to the instance; on this machine that is mostly over when this returns."""
    if (address := frontend._direct.get(role)) is None:
        under_way(frontend, client, role).start()
        return
    try:
        instance, is_connected = connect(address)
    except OSError as error:
        _not_connected(frontend, client, role, error)
        return
    if is_connected:
        frontend.relay(client, role, instance)
    else:
        waiting = Dial(frontend._loop, client, role, address, frontend.plan.connect_timeout, partial(_ended, frontend))
        frontend._dials.add(waiting)
        waiting.wait(instance)


def under_way(frontend: Frontend, client: Client, role: Role) -> Dial | WideDial:
    """A connect that the frontend counts, and that is to be started."""
    made = make_dial(frontend._loop, client, role, frontend.plan, partial(_ended, frontend))
    frontend._dials.add(made)
    return made


def redirect(frontend: Frontend, role: Role) -> None:
    """Connect those elsewhere who are being connected to the role: nothing of theirs was sent yet."""
    for dialled in [dialled for dialled in frontend._dials if dialled.role is role]:
        frontend._dials.discard(dialled)
        frontend.admit(dialled.abandon())


def _ended(frontend: Frontend, dialled: Dial | WideDial, instance: socket.SocketType | OSError) -> None:
    """A connect has come to its end; the client has been left alone meanwhile."""
    frontend._dials.discard(dialled)
    if isinstance(instance, OSError):
        _not_connected(frontend, dialled.client, dialled.role, instance)
    else:
        frontend.relay(dialled.client, dialled.role, instance)


def _not_connected(frontend: Frontend, client: Client, role: Role, error: OSError) -> None:
    """Let the client try the other instance, or wait."""
    frontend._log.debug("connect_failed", role=role.value, reason=str(error))
    if error.errno in EXHAUSTED:
        frontend.waiting.keep(client)  # before the pause: who waits here is tried before others are accepted
        frontend._acceptor.pause(error)
        return
    frontend.doubt(role)
    client.tried += (role,)
    suspicion = frontend._suspicion
    if (
        suspicion.failed(role, error)
        and places.may_serve(frontend, role.other)
        and not suspicion.is_suspect(role.other)
    ):
        redirect(frontend, role)  # who waits for the same would wait in vain
    frontend.admit(client)
