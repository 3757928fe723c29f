"""Whether the kernel of this host can give connections to an instance, and the sockets that it needs for that."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.names import Backend, Role, UnixAddress
from clojarsd.system.instance_sockets import duplicate, find_listening

_EVERYWHERE = frozenset({"0.0.0.0", "::"})


class InstanceReach:
    """Looks at instances from outside.

    Args:
        processes: the numbers of a role's processes, the main one first; empty when it has none.
    """

    def __init__(self, processes: Callable[[Role], Collection[int]]) -> None:
        self._processes = processes

    def why_elsewhere(self, address: Backend) -> str | None:
        """Why the kernel of this host cannot give connections to that address, or None."""
        if isinstance(address, UnixAddress):
            return f"listens on a Unix socket, {address}"
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as trial:
                trial.bind((address.host, 0))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return f"is on another host ({address.host})"
            return f"is at {address.host}, which this host cannot use: {reason_of(error)}"
        return None

    def listening(self, role: Role, address: Backend) -> Sequence[socket.socket]:
        """Duplicates of the sockets that listen at the address in the role's processes; the caller closes them.

        Raises:
            Failed: there are none to be had; says why.
        """
        if isinstance(address, UnixAddress):
            raise Failed(f"it listens on a Unix socket, {address}")
        found = find_listening(self._processes(role), address.port)
        fitting = [one for one in found if one.address.host in _EVERYWHERE or one.address.host == address.host]
        if not fitting:
            raise Failed(f"none of its processes listens on {address}")
        with ExitStack() as undo:
            try:
                taken = [undo.enter_context(duplicate(one)) for one in fitting]
            except OSError as error:
                raise Failed(f"cannot take its listening socket: {reason_of(error)}") from error
            undo.pop_all()
        return taken
