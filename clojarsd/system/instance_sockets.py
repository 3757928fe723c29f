"""The listening sockets of an instance, found among its processes' descriptors, and a duplicate of one for a moment.

A duplicate keeps the socket alive beyond its owner's death, with clients that connect to nobody: whoever has made one
closes it at once. Its flags are the owner's too, so that nothing of them may be changed.

Source: sock_diag(7), pidfd_getfd(2), `struct inet_diag_msg` in linux/inet_diag.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from clojarsd.core.errors import Failed
from clojarsd.core.names import Address

_PIDFD_GETFD = 438
_LIBC = ctypes.CDLL(None, use_errno=True)

_NETLINK_SOCK_DIAG = 4
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI")
_ID = struct.Struct(">HH16s16s12x")
_MESSAGE = struct.Struct("=BBBB48sIIIII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_BY_FAMILY, _DUMP = 20, 0x301
_END_OF_DUMP, _ERROR_MESSAGE = 3, 2
_LISTEN = 1 << 10
_ONLY_IPV6 = 11
"""INET_DIAG_SKV6ONLY."""
_MAPPED = bytes(10) + b"\xff\xff"
_LARGEST_ANSWER = 1 << 15


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
        raise Failed(f"cannot ask the kernel who listens on port {port}: {_reason(error)}") from error
    found: list[Listening] = []
    unseen: list[str] = []
    for pid in pids:
        if wanted or not found:
            try:
                found.extend(_open_in(pid, wanted))
            except OSError as error:
                unseen.append(f"cannot look at the descriptors of process {pid}: {_reason(error)}")
            else:
                if is_in_other_network(pid):
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
        return duplicate_by(pidfd, found)
    finally:
        os.close(pidfd)


def duplicate_by(pidfd: int, found: Listening) -> socket.socket:
    """As `duplicate`, for who has a pidfd of the process already."""
    number = _LIBC.syscall(_PIDFD_GETFD, pidfd, found.descriptor, 0)
    if number < 0:
        reason = ctypes.get_errno()
        raise OSError(reason, os.strerror(reason))
    if os.fstat(number).st_ino != found.inode:
        os.close(number)
        raise Failed(f"descriptor {found.descriptor} of process {found.pid} is not socket {found.inode} any more")
    return socket.socket(fileno=number)


def is_in_other_network(pid: int) -> bool:
    """Whether the process is in another network namespace than this one; False where that cannot be seen."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/thread-self/ns/net").st_ino
    except OSError:
        return False


def _open_in(pid: int, wanted: dict[int, Listening]) -> Iterator[Listening]:
    """Those of the wanted sockets that the process has open; they are wanted no more. Nothing of one that is gone."""
    directory = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(directory)
    except (FileNotFoundError, ProcessLookupError):
        return
    for number in numbers:
        if not wanted:
            return
        try:
            target = os.readlink(f"{directory}/{number}")
        except OSError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            listener = wanted.pop(int(target[8:-1]), None)
            if listener is not None:
                yield replace(listener, pid=pid, descriptor=int(number))


def _listeners(port: int) -> Iterator[Listening]:
    """Everybody in this network namespace who listens on the port; process and descriptor are not known."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as asker:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _LISTEN)
            request += _ID.pack(port, 0, bytes(16), bytes(16))
            asker.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP, family, 0) + request)
            yield from _answers(asker)


def _answers(asker: socket.socket) -> Iterator[Listening]:
    while True:
        answer = memoryview(asker.recv(_LARGEST_ANSWER))
        while answer:
            length, kind, *_ = _HEADER.unpack_from(answer)
            body = answer[_HEADER.size : length]
            if kind == _END_OF_DUMP:
                return
            if kind == _ERROR_MESSAGE:
                reason = -_ERROR.unpack_from(body)[0]
                raise OSError(reason, os.strerror(reason))
            yield _listener(body)
            answer = answer[length + -length % 4 :]


def _listener(body: memoryview) -> Listening:
    family, _, _, _, identity, *_, inode = _MESSAGE.unpack_from(body)
    port, _, source, _ = _ID.unpack(identity)
    if family == socket.AF_INET:
        return Listening(0, -1, inode, Address(socket.inet_ntop(family, source[:4]), port), True, False)
    if source.startswith(_MAPPED):
        return Listening(0, -1, inode, Address(socket.inet_ntop(socket.AF_INET, source[12:]), port), True, False)
    takes_ipv4 = not any(source) and not _is_only_ipv6(body[_MESSAGE.size :])
    return Listening(0, -1, inode, Address(socket.inet_ntop(family, source), port), takes_ipv4, True)


def _is_only_ipv6(attributes: memoryview) -> bool:
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _ONLY_IPV6:
            return bool(attributes[_ATTRIBUTE.size])
        attributes = attributes[length + -length % 4 :]
    return False


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
