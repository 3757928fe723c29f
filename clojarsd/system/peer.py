"""Who is at the other end of a Unix socket, as the kernel saw it when they connected.

Source: SO_PEERCRED in unix(7), and SO_PEERGROUPS.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

SO_PEERGROUPS = 59
_CREDENTIALS = struct.Struct("iII")
_NUMBER = struct.Struct("I")
_FIRST_ROOM = 256

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that has connected. `gids` are all its groups."""

    pid: int
    uid: int
    gids: frozenset[int]


def peer_of(connection: int) -> Peer:
    """Who has connected to the socket with this descriptor.

    Raises:
        OSError: it is not a connected Unix socket.
    """
    pid, uid, gid = _CREDENTIALS.unpack(_option(connection, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        groups = _option(connection, SO_PEERGROUPS, _FIRST_ROOM)
    except OSError:  # the kernel (before 4.13) does not tell
        groups = b""
    return Peer(pid, uid, frozenset({gid, *(group for (group,) in _NUMBER.iter_unpack(groups))}))


def user_name(uid: int) -> str:
    """The user's name; the number where it has none. May block: the name may come from the network."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_names(gids: Iterable[int]) -> frozenset[str]:
    """The names of those of the groups that have one. May block as `user_name`."""
    names = set()
    for gid in gids:
        try:
            names.add(grp.getgrgid(gid).gr_name)
        except KeyError:
            continue
    return frozenset(names)


def _option(connection: int, name: int, room: int) -> bytes:
    """The value of a socket option, of any length.

    Asked in C because `socket.getsockopt` has room for 256 groups only, and people in a directory may be in more.
    """
    length = ctypes.c_uint(room)
    for _ in range(2):
        value = ctypes.create_string_buffer(length.value)
        if _libc.getsockopt(connection, socket.SOL_SOCKET, name, value, ctypes.byref(length)) == 0:
            return value.raw[: length.value]
        if ctypes.get_errno() != errno.ERANGE:
            break  # else the kernel has set the length that it needs, and the groups of a connection never change
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
