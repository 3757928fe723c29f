"""Listening sockets of several processes that share an address and port (SO_REUSEPORT).

The kernel gives each new connection to one of them, by a hash of its addresses. Who waits in the backlog of one that is
closed is reset; so before one is closed the kernel is told to give it nobody any more.

Source: socket(7), and linux/filter.h and net/core/sock_reuseport.c of the kernel: the program gives the number of a
socket, which is the order in which they began to listen; where one was closed the last one has taken its number.
"""

from __future__ import annotations

import socket
import struct
from array import array
from contextlib import suppress

_ATTACH = 51
_DETACH = 68
"""SO_ATTACH_REUSEPORT_CBPF and SO_DETACH_REUSEPORT_BPF of asm-generic/socket.h."""
_RANDOM = 0x1_0000_0000 - 0x1000 + 56
"""SKF_AD_OFF + SKF_AD_RANDOM: where a program loads a random number from."""
_LOAD, _MODULO, _RETURN = 0x20, 0x94, 0x16
"""BPF_LD | BPF_W | BPF_ABS, BPF_ALU | BPF_MOD | BPF_K, BPF_RET | BPF_A."""


def share(listener: socket.socket) -> None:
    """Let others of our user have the same address and port; it works also while the socket listens."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def is_shared(listener: socket.socket) -> bool:
    """Whether others may have them."""
    return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def keep(listener: socket.socket) -> None:
    """Have the address and port alone again; there is no other socket any more."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def prefer(listener: socket.socket, first: int) -> None:
    """Have those of its group that began to listen first, so many, get all new connections, dealt out at random.

    Raises:
        OSError: it is in no group, or the kernel does not know how.
    """
    steps = ((_LOAD, _RANDOM), (_MODULO, first), (_RETURN, 0))
    program = array("B", b"".join(struct.pack("HBBI", code, 0, 0, value) for code, value in steps))
    where, _ = program.buffer_info()
    listener.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("HxxxxxxP", len(steps), where))


def deal_to_all(listener: socket.socket) -> None:
    """Have all of its group get new connections again."""
    with suppress(OSError):  # it has no program, or no group
        listener.setsockopt(socket.SOL_SOCKET, _DETACH, 0)
