"""Listening sockets as the kernel takes them for steering: whether it does, for which clients, and which is which."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from clojarsd.core.steering import IPV4, IPV6
from clojarsd.system import bpf

_SO_COOKIE: Final = 57
_SO_NETNS_COOKIE: Final = 71
"""Options that Python has no names for, see asm-generic/socket.h of Linux."""


def why_unusable(one: socket.socket) -> str | None:
    """Why no connections can be given to it, or None."""
    if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
        return "it is no TCP socket"
    if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "it does not listen"
    with contextlib.suppress(OSError):  # Linux 5.14
        theirs = one.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        with socket.socket() as ours:
            if ours.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8) != theirs:
                return "it is in another network namespace"
    return None


def families_of(one: socket.socket) -> tuple[int, ...]:
    """The families of clients that a listening TCP socket takes."""
    if one.family == socket.AF_INET:
        return (IPV4,)
    return (IPV6,) if one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) else (IPV6, IPV4)


def cookie_of(one: socket.socket) -> int:
    """Its number in the kernel."""
    return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), bpf.BYTE_ORDER)
