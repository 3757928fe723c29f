"""How many connections wait to be accepted by another process, and our own connection to see whether it accepts.

Source: `struct tcp_info` in linux/tcp.h; of a listening socket `tcpi_unacked` is the length of its accept queue
(tcp_get_info in net/ipv4/tcp.c).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from contextlib import suppress

from clojarsd.core.names import Address
from clojarsd.core.stall import Probe
from clojarsd.system.instance_sockets import Listening, duplicate_descriptor
from clojarsd.system.own_connections import OwnConnections, OwnSocket
from clojarsd.system.sock_diag import SYN_RECEIVED, SockDiag

_LIBC = ctypes.CDLL(None, use_errno=True)
_TCP_INFO_SIZE = 32
_UNACKED = 24
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_NOT_ALLOWED = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class AcceptQueues:
    """Reads the accept queues of other processes' listeners. Whoever makes it calls `forget` at the end.

    A look takes a duplicate of the listening socket and closes it at once: some 10 us. Where this process may not have
    one, the kernel is asked by netlink instead, which takes longer.

    Args:
        diag: asked then.
    """

    def __init__(self, diag: SockDiag) -> None:
        self._diag = diag
        self._pidfds: dict[int, int] = {}
        self._is_allowed = True
        self._buffer = ctypes.create_string_buffer(_TCP_INFO_SIZE)
        self._size = ctypes.c_uint32(_TCP_INFO_SIZE)

    def waiting(self, found: Listening) -> int:
        """How many connections wait in its accept queue.

        Raises:
            OSError, Failed: it is not there any more; or cannot be seen now, with one of `sockets.EXHAUSTED`.
        """
        if self._is_allowed:
            try:
                return self._by_duplicate(found)
            except OSError as error:
                if error.errno not in _NOT_ALLOWED:
                    raise
                self._is_allowed = False
        return self._by_diag(found)

    def forget(self) -> None:
        """Let go of the processes: others are looked at from now on."""
        pidfds, self._pidfds = self._pidfds, {}
        for pidfd in pidfds.values():
            os.close(pidfd)

    def _by_duplicate(self, found: Listening) -> int:
        pidfd = self._pidfds.get(found.pid)
        if pidfd is None:
            pidfd = self._pidfds[found.pid] = os.pidfd_open(found.pid)
        number = duplicate_descriptor(pidfd, found)
        try:
            self._size.value = _TCP_INFO_SIZE
            failed = _LIBC.getsockopt(
                number, socket.IPPROTO_TCP, socket.TCP_INFO, self._buffer, ctypes.byref(self._size)
            )
        finally:
            os.close(number)
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return int(struct.unpack_from("I", self._buffer, _UNACKED)[0])

    def _by_diag(self, found: Listening) -> int:
        for queue in self._diag.queues(found.address.port):
            if queue.inode == found.inode:
                return queue.waiting
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class ProbeConnection:
    """Our own connection to a listener, which says nothing. Whoever makes it closes it.

    Args:
        own: told that it is one of ours, before anybody can have looked at it.

    Raises:
        OSError: there is no descriptor left.
    """

    def __init__(self, found: Listening, diag: SockDiag, own: OwnConnections) -> None:
        host = _LOOPBACK.get(found.address.host, found.address.host)
        if host == "::1" and found.takes_ipv4:
            host = "127.0.0.1"  # which every machine has
        self._diag = diag
        self._remote = Address(host, found.address.port)
        self._refused = False
        self._socket = OwnSocket(own, socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setblocking(False)
        try:
            self._socket.connect((host, found.address.port))
        except BlockingIOError:
            pass
        except OSError:
            self._refused = True

    def look(self) -> Probe:
        """What has become of it."""
        local = self._socket.local
        if self._refused or local is None:
            return Probe.LOST
        try:
            self._socket.getpeername()
        except OSError:
            is_on_its_way = not self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return Probe.UNANSWERED if is_on_its_way else Probe.LOST
        try:
            seen = self._diag.find(self._remote, local)
        except OSError:
            seen = None
        if seen is None:
            return self._ended()
        if seen.state == SYN_RECEIVED:
            return Probe.UNANSWERED  # the listener has no room for it, though this end takes itself for connected
        return Probe.WAITING if seen.is_waiting else Probe.ACCEPTED

    def close(self) -> None:
        """Reset it: that leaves whoever accepts it nothing to wait for."""
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._socket.close()
        self._socket.is_over()

    def _ended(self) -> Probe:
        """What this end has heard of it when the other one is not to be seen."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return Probe.WAITING
        except OSError:
            return Probe.LOST
        return Probe.ACCEPTED  # only who has accepted it can have ended it, or spoken
