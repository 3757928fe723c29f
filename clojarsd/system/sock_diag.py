"""What the kernel knows of TCP connections and listening sockets, asked by netlink; and how to end a connection.

The kernel filters by port, so that only what was asked for crosses over. A steered connection has the frontend's port
as its own and belongs to the instance: it is seen here and nowhere else.

Source: sock_diag(7), linux/inet_diag.h, linux/tcp.h (struct tcp_info), netlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple, Self, TypeVar

from clojarsd.core.names import Address

T = TypeVar("T")

ESTABLISHED = 1
SYN_RECEIVED = 3
FIN_WAIT_1 = 4
FIN_WAIT_2 = 5
CLOSE_WAIT = 8
LAST_ACK = 9
CLOSING = 11
_LISTEN = 10
STATE_NAMES = {
    ESTABLISHED: "ESTABLISHED",
    2: "SYN_SENT",
    SYN_RECEIVED: "SYN_RECV",
    FIN_WAIT_1: "FIN_WAIT1",
    FIN_WAIT_2: "FIN_WAIT2",
    CLOSE_WAIT: "CLOSE_WAIT",
    LAST_ACK: "LAST_ACK",
    CLOSING: "CLOSING",
}
"""The states of connections, as ss(8) and tcp(7) call them."""

_BY_FAMILY = 20
_DESTROY = 21
_ERROR = 2
_DONE = 3
_REQUEST = 1
_ACKNOWLEDGE = 4
_DUMP = 0x300
_INTERRUPTED = 0x10
_PROTOCOL = 4
_INFO = 2
_ONLY_IPV6 = 11
"""INET_DIAG_SKV6ONLY, which is told of listening sockets."""
_OPEN_STATES = sum(1 << state for state in STATE_NAMES)
_ANY_COOKIE = 0xFFFFFFFFFFFFFFFF
_TRIES = 3
"""A dump that was interrupted or has overrun our buffer is asked for again so often."""

_HEADER = struct.Struct("=IHHII")
_REQUEST_BODY = struct.Struct("=BBBxI2s2s16s16sIQ")
_MESSAGE = struct.Struct("=IHHIIBBxx2s2s16s16sIQIIIII")
_ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")
_TCP_INFO = struct.Struct("=44xI4xII60xQQ8xI")
"""Of struct tcp_info: last_data_sent, last_data_recv, last_ack_recv, bytes_acked, bytes_received, notsent."""
_BUFFER = 1 << 16
"""Bytes: the kernel fills at most 32 KiB at a time."""
_MAPPED = bytes(10) + b"\xff\xff"


class Connection(NamedTuple):
    """One connection, as the side sees it that has the socket. A tuple: thousands are made at a time.

    Attributes:
        local, remote: IPv4 clients of an IPv6 socket have IPv4 addresses here.
        state: one of the keys of `STATE_NAMES`.
        inode: of the socket among its process's descriptors; 0: nobody has it, see `is_waiting`.
        receive_queue: bytes that were received and not yet read.
        send_queue: bytes that were written and not yet acknowledged.
        cookie: the kernel's own number of this socket, never given twice; SO_COOKIE.
        since_sent, since_received: seconds since data went out or came in (since it began, if none ever did), in steps
            of the kernel's clock; None: not asked for, or not known of one that is not established yet.
        since_heard: seconds since an acknowledgement came in, be it with data or without; as above.
        bytes_received, bytes_acknowledged: an end (FIN) counts as one.
        unsent: bytes that were written and not yet sent.
        is_ipv6: whether the socket is an IPv6 one; with an IPv4 address, too.
        interface: the number of the one it is bound to, or 0.
    """

    local: Address
    remote: Address
    state: int
    inode: int
    receive_queue: int
    send_queue: int
    cookie: int
    since_sent: float | None
    since_received: float | None
    since_heard: float | None
    bytes_received: int
    bytes_acknowledged: int
    unsent: int
    is_ipv6: bool
    interface: int

    @property
    def is_waiting(self) -> bool:
        """Whether it waits in an accept queue, or is on its way there. One whose process has closed it does not."""
        return self.inode == 0 and self.state in (ESTABLISHED, SYN_RECEIVED, CLOSE_WAIT)

    @property
    def is_let_go(self) -> bool:
        """Whether its process has closed it, and the kernel sees to the rest."""
        return self.inode == 0 and self.state in (FIN_WAIT_1, FIN_WAIT_2, LAST_ACK, CLOSING)


class Queue(NamedTuple):
    """A listening socket.

    Attributes:
        waiting: connections that wait to be accepted.
        limit: how many may.
        is_ipv6_only: whether an IPv6 one leaves IPv4 clients alone.
    """

    address: Address
    inode: int
    waiting: int
    limit: int
    cookie: int
    is_ipv6: bool
    is_ipv6_only: bool


class SockDiag:
    """Asks the kernel of the network namespace in which it was made. Threads may share one; each waits for the other.

    The questions are answered by the kernel in the calling thread, and wait for nobody else. `find` and `queues` take
    some 50 us; `connections` 4 us for each that matches and 0.5 us for each other one that the machine has.

    Raises:
        OSError: the kernel has no such thing, or there is no descriptor left.
    """

    def __init__(self) -> None:
        self._socket = _netlink()
        self._is_answering = False
        """Whether an answer was given up in the middle: the kernel refuses to begin another one on that socket."""
        self._lock = threading.Lock()
        self._buffer = bytearray(_BUFFER)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the descriptor."""
        self._socket.close()

    def connections(self, port: int, *, info: bool = True) -> list[Connection]:
        """Those with this port on our side, IPv4 and IPv6, in whatever state but LISTEN, TIME_WAIT and CLOSE.

        Connections that begin or end meanwhile may be there or not; none is there twice.

        Args:
            info: with the times and counts that only TCP_INFO has, a quarter more work.

        Raises:
            OSError: the kernel did not answer as it should, three times.
        """
        found: dict[int, Connection] = {}
        ext = 1 << (_INFO - 1) if info else 0
        for family in (socket.AF_INET, socket.AF_INET6):
            for one in self._dump(_body(family, ext, _OPEN_STATES, local=port), _connection):
                found[one.cookie] = one
        return list(found.values())

    def find(self, local: Address, remote: Address) -> Connection | None:
        """The open connection between these, seen from `local`; None when there is none, or it has ended.

        Args:
            local, remote: with numeric hosts, of one family.

        Raises:
            OSError: the kernel did not answer as it should.
        """
        family = socket.AF_INET6 if ":" in local.host else socket.AF_INET
        body = _body(family, 1 << (_INFO - 1), 0xFFFFFFFF, local=local, remote=remote)
        try:
            answers = self._ask(_BY_FAMILY, _REQUEST, body, _connection)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return None
            raise
        # the kernel answers with the listening socket where no connection is
        return next((one for one in answers if one.state in STATE_NAMES and one.remote == remote), None)

    def queues(self, port: int) -> list[Queue]:
        """The listening sockets of this port, IPv4 and IPv6, with what waits in their accept queues.

        Raises:
            OSError: the kernel did not answer as it should, three times.
        """
        found = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for one in self._dump(_body(family, 0, 1 << _LISTEN, local=port), _queue):
                found[one.cookie] = one
        return list(found.values())

    def destroy(self, connection: Connection) -> bool:
        """Reset it: the client sees a reset, the process that has the socket ECONNABORTED; queued bytes are lost.

        Returns:
            False: it was gone already.

        Raises:
            OSError: EPERM without CAP_NET_ADMIN; EOPNOTSUPP where the kernel was built without this.
        """
        family = socket.AF_INET6 if connection.is_ipv6 else socket.AF_INET
        body = _body(
            family, 0, 0xFFFFFFFF, connection.local, connection.remote, connection.cookie, connection.interface
        )
        try:
            self._ask(_DESTROY, _REQUEST | _ACKNOWLEDGE, body, _connection)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False  # gone, or another one has its addresses
            raise
        return True

    def _dump(self, body: bytes, parse: Callable[[bytearray, int], T]) -> list[T]:
        """All that match; asked for again when the kernel says that the answer is not whole."""
        for left in reversed(range(_TRIES)):
            try:
                return self._ask(_BY_FAMILY, _REQUEST | _DUMP, body, parse)
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EINTR) or not left:
                    raise
        raise AssertionError

    def _ask(self, kind: int, flags: int, body: bytes, parse: Callable[[bytearray, int], T]) -> list[T]:
        with self._lock:
            if self._is_answering:
                before, self._socket = self._socket, _netlink()
                before.close()
            self._is_answering = True
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
            return self._read(parse, is_single=not flags & (_DUMP | _ACKNOWLEDGE))

    def _read(self, parse: Callable[[bytearray, int], T], *, is_single: bool) -> list[T]:
        """The answer to the latest question."""
        found: list[T] = []
        is_interrupted = False
        while True:
            size, _, flags, _ = self._socket.recvmsg_into([self._buffer])
            if flags & socket.MSG_TRUNC:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            for kind, start, is_torn in self._messages(size):
                is_interrupted |= is_torn
                if kind in (_ERROR, _DONE):
                    self._is_answering = False
                    (code,) = _CODE.unpack_from(self._buffer, start + _HEADER.size)
                    if code < 0:
                        raise OSError(-code, os.strerror(-code))
                    if is_interrupted:
                        raise InterruptedError(errno.EINTR, "the kernel's table has changed meanwhile")
                    return found
                found.append(parse(self._buffer, start))
                if is_single:
                    self._is_answering = False
                    return found

    def _messages(self, size: int) -> Iterator[tuple[int, int, bool]]:
        """Kind and start of each message of the present answer, and whether it says that the answer is torn."""
        start = 0
        while start + _HEADER.size <= size:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(self._buffer, start)
            if length < _HEADER.size:
                raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
            if sequence == self._sequence:
                yield kind, start, bool(flags & _INTERRUPTED)
            start += (length + 3) & ~3


def _netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _PROTOCOL)


def _body(
    family: int,
    ext: int,
    states: int,
    local: Address | int,
    remote: Address | None = None,
    cookie: int = _ANY_COOKIE,
    interface: int = 0,
) -> bytes:
    """A struct inet_diag_req_v2. `local`: an address, or the port alone, by which the kernel then filters."""
    source = local if isinstance(local, Address) else Address("", local)
    target = remote if remote is not None else Address("", 0)
    return _REQUEST_BODY.pack(
        family,
        socket.IPPROTO_TCP,
        ext,
        states,
        source.port.to_bytes(2, "big"),
        target.port.to_bytes(2, "big"),
        _packed(source.host, family),
        _packed(target.host, family),
        interface,
        cookie,
    )


def _packed(host: str, family: int) -> bytes:
    if not host:
        return bytes(16)
    if family == socket.AF_INET6:
        return socket.inet_pton(family, host) if ":" in host else _MAPPED + socket.inet_pton(socket.AF_INET, host)
    return socket.inet_pton(family, host)


@lru_cache(maxsize=1 << 14)
def _host(family: int, packed: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(family, packed[:4])
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return sys.intern(socket.inet_ntop(family, packed))


@lru_cache(maxsize=64)
def _local(family: int, packed: bytes, port: bytes) -> Address:
    return Address(_host(family, packed), int.from_bytes(port, "big"))


def _queue(buffer: bytearray, start: int) -> Queue:
    """The listening socket of the message that begins there."""
    (
        length, _, _, _, _, family, _, source_port, _, source, _, _, cookie, _, waiting, limit, _, inode,
    ) = _MESSAGE.unpack_from(buffer, start)  # fmt: skip
    at, end, only = start + _MESSAGE.size, start + length, False
    while at < end:
        size, kind = _ATTRIBUTE.unpack_from(buffer, at)
        only |= kind == _ONLY_IPV6 and bool(buffer[at + _ATTRIBUTE.size])
        at += (max(size, _ATTRIBUTE.size) + 3) & ~3
    address = _local(family, source, source_port)
    return Queue(address, inode, waiting, limit, cookie, family == socket.AF_INET6, only)


def _connection(buffer: bytearray, start: int) -> Connection:
    """The connection of the message that begins there: struct inet_diag_msg and its attributes."""
    (
        length, _, _, _, _, family, state, source_port, target_port, source, target,
        interface, cookie, _, receive_queue, send_queue, _, inode,
    ) = _MESSAGE.unpack_from(buffer, start)  # fmt: skip
    at, end = start + _MESSAGE.size, start + length
    acknowledged = received = unsent = 0
    since_sent = since_received = since_heard = None
    while at < end:
        size, kind = _ATTRIBUTE.unpack_from(buffer, at)
        if kind == _INFO and size >= 4 + _TCP_INFO.size:
            (sent_ms, received_ms, heard_ms, acknowledged, received, unsent) = _TCP_INFO.unpack_from(buffer, at + 4)
            since_sent, since_received, since_heard = sent_ms / 1000, received_ms / 1000, heard_ms / 1000
            break
        if size < 4:
            break
        at += (size + 3) & ~3
    return Connection(
        _local(family, source, source_port),
        Address(_host(family, target), int.from_bytes(target_port, "big")),
        state,
        inode,
        receive_queue,
        send_queue,
        cookie,
        since_sent,
        since_received,
        since_heard,
        received,
        acknowledged,
        unsent,
        family == socket.AF_INET6,
        interface,
    )
