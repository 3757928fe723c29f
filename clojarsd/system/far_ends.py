"""Which of our processes has the other end of a TCP connection on this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence

from clojarsd.core.names import Address
from clojarsd.system.sock_diag import SockDiag
from clojarsd.system.socket_owners import sockets_of


def far_ends_of(ends: Sequence[socket.socket], pids: Iterable[int]) -> Mapping[socket.socket, int]:
    """The number of the process that has the other end, for each connection of which that is one of these.

    Where it cannot be seen, nothing: another user's process, as relay processes are for a plain user's daemon.
    """
    found = {}
    try:
        owners = {inode: pid for pid in pids for inode in sockets_of([pid])}
        with SockDiag() as diag:
            for end in ends:
                far = _seen_from_there(diag, end)
                if far in owners:
                    found[end] = owners[far]
    except OSError:
        return {}
    return found


def _seen_from_there(diag: SockDiag, end: socket.socket) -> int | None:
    """The inode of the other end; None when it is on no machine of ours, or has gone."""
    try:
        far, near = Address.of_socket(end.getpeername()), Address.of_socket(end.getsockname())
    except OSError:
        return None
    other = diag.find(far, near)
    return None if other is None else other.inode
