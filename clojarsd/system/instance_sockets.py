"""The listening sockets of an instance, found among its processes' descriptors, and a duplicate of one for a moment.

A duplicate keeps the socket alive beyond its owner's death, with clients that connect to nobody: whoever has made one
closes it at once. Its flags are the owner's too, so that nothing of them may be changed.

Source: pidfd_getfd(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.names import Address
from clojarsd.system.sock_diag import SockDiag
from clojarsd.system.socket_owners import open_sockets

_PIDFD_GETFD = 438
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Listening:
    """A listening TCP socket that a process has open.

    Attributes:
        descriptor: its number in that process.
        inode: which socket it is; a number is given again when the socket is gone.
        address: what it is bound to; an IPv4 address that an IPv6 socket is bound to stands as the IPv4 address.
        takes_ipv4, takes_ipv6: whose clients reach it. Both: bound to `::` and not to IPv6 alone.
    """

    pid: int
    descriptor: int
    inode: int
    address: Address
    takes_ipv4: bool
    takes_ipv6: bool


def find_listening(pids: Iterable[int], port: int) -> list[Listening]:
    """The listening sockets of that port in this network namespace that one of the processes has open.

    Each socket stands once, with the first of the processes that has it. It looks through all their descriptors until
    every listener of the port is found: some microseconds for each, so for thousands of them not in the loop.

    Raises:
        Failed: none was found, and not everything could be seen; says why: a process is in another network namespace,
            its descriptors may not be looked at, the kernel does not tell who listens.
    """
    try:
        wanted = {one.inode: one for one in _listeners(port)}
    except OSError as error:
        raise Failed(f"cannot ask the kernel who listens on port {port}: {reason_of(error)}") from error
    found: list[Listening] = []
    unseen: list[str] = []
    for pid in pids:
        if wanted or not found:
            try:
                found.extend(_open_in(pid, wanted))
            except OSError as error:
                unseen.append(f"cannot look at the descriptors of process {pid}: {reason_of(error)}")
            else:
                if _is_in_other_network(pid):
                    unseen.append(f"process {pid} is in another network namespace")
    if unseen and not found:
        raise Failed(unseen[0])
    return found


def duplicate(found: Listening) -> socket.socket:
    """The same socket for this process, to be closed at once.

    It is left as it is: in blocking mode or not, as its owner has it, whatever the result's `getblocking` says.

    Raises:
        OSError: the process is gone, or this one may not (EPERM: see ptrace(2), PTRACE_MODE_ATTACH_REALCREDS).
        Failed: that descriptor is another file by now.
    """
    pidfd = os.pidfd_open(found.pid)
    try:
        return socket.socket(fileno=duplicate_descriptor(pidfd, found))
    finally:
        os.close(pidfd)


def duplicate_descriptor(pidfd: int, found: Listening) -> int:
    """As `duplicate`, as a bare descriptor, for who has a pidfd of the process already."""
    number = int(_LIBC.syscall(_PIDFD_GETFD, pidfd, found.descriptor, 0))
    if number < 0:
        reason = ctypes.get_errno()
        raise OSError(reason, os.strerror(reason))
    if os.fstat(number).st_ino != found.inode:
        os.close(number)
        raise Failed(f"descriptor {found.descriptor} of process {found.pid} is not socket {found.inode} any more")
    return number


def _is_in_other_network(pid: int) -> bool:
    """Whether the process is in another network namespace than this one; False where that cannot be seen."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/thread-self/ns/net").st_ino
    except OSError:
        return False


def _open_in(pid: int, wanted: dict[int, Listening]) -> Iterator[Listening]:
    """Those of the wanted sockets that the process has open; they are wanted no more. Nothing of one that is gone."""
    with contextlib.closing(open_sockets(pid)) as sockets:
        for descriptor, inode in sockets:
            listener = wanted.pop(inode, None)
            if listener is not None:
                yield replace(listener, pid=pid, descriptor=descriptor)
            if not wanted:
                return


def _listeners(port: int) -> Iterator[Listening]:
    """Everybody in this network namespace who listens on the port; process and descriptor are not known."""
    with SockDiag() as diag:
        for one in diag.queues(port):
            is_ipv6 = ":" in one.address.host
            takes_ipv4 = not is_ipv6 or (one.address.host == "::" and not one.is_ipv6_only)
            yield Listening(0, -1, one.inode, one.address, takes_ipv4, is_ipv6)
