"""Listening sockets, and who holds a port."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from contextlib import ExitStack, suppress
from pathlib import Path

from clojarsd.core.errors import Failed
from clojarsd.core.names import Address
from clojarsd.system.port_group import share

BACKLOG = 4096
"""More than most kernels allow (net.core.somaxconn); they take the smaller."""
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What the kernel says when this process or the machine has no descriptors or memory left; nobody else is to blame."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def listen(address: Address, *, ipv6_only: bool, what: str, beside: socket.socket | None = None) -> socket.socket:
    """A non-blocking listening socket.

    Args:
        address: of a host that has a name and several addresses one is listened on, an IPv4 one where there is one.
        ipv6_only: for an IPv6 address: leave the port's IPv4 side alone.
        what: who listens, for the message.
        beside: a listening socket of ours with which it shares its address and port, and the clients; None: it has the
            port alone, and nobody else may listen there, not even one who would share it.

    Raises:
        Failed: the address is taken, not of this machine, or may not be used; says who has it where that can be seen.
    """
    try:
        host = _one_address(address.host)
        is_ipv6 = ":" in host
        listener = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Failed(f"cannot listen on {address} for {what}: {_reason(error)}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted ones inherit it
        if is_ipv6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, ipv6_only)
        if beside is not None:
            share(beside)
            share(listener)
        listener.bind((host, address.port) if beside is None else beside.getsockname()[:2])
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        holder = holder_of(address.port, host) if error.errno == errno.EADDRINUSE else None
        by = f" by {holder}" if holder is not None else ""
        raise Failed(f"cannot listen on {address} for {what}: {_reason(error)}{by}") from error
    listener.setblocking(False)
    return listener


def holder_of(port: int, host: str | None = None) -> str | None:
    """Who listens on a TCP port, as `process 4242 (java)`; None when that cannot be seen.

    With a numeric host only a listener that is in the way of this address counts: another one may have the same port.
    Looks through the descriptors of every process that we may see: milliseconds, so not for the loop's happy path.
    """
    import psutil  # not above: the relay process needs the rest of this module, and not the memory of these

    from clojarsd.core.addresses import overlap

    try:
        found = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return None
    for connection in found:
        where = connection.laddr
        if connection.status != psutil.CONN_LISTEN or not where or where.port != port or not connection.pid:
            continue
        if host is None or overlap(Address(host, port), Address(where.ip, port)):
            try:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
            except psutil.Error:
                return f"process {connection.pid}"
    return None


given_away: set[int] = set()
"""Ports that `free_ports` gives only when there are no others: who got them may not listen there yet."""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has, each another one; none that was given before as long as there are others.

    Not of the range from which outgoing connections get theirs: one of those could be in the way at the next start.
    """
    outgoing_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = list(range(10_000, outgoing_from)) or [0] * count
    random.shuffle(candidates)
    candidates.sort(key=given_away.__contains__)
    found: list[int] = []
    with ExitStack() as taken:
        for port in candidates:
            trial = taken.enter_context(socket.socket())
            with suppress(OSError):
                trial.bind(("127.0.0.1", port))
                found.append(int(trial.getsockname()[1]))
            if len(found) == count:
                given_away.update(found)
                return found
    raise Failed(f"cannot find {count} free ports on 127.0.0.1")


def waited_in_backlog(client: socket.SocketType) -> float:
    """Seconds since the last news from a client that was just accepted; at least as long it has waited for that.

    Source: tcpi_last_ack_recv of struct tcp_info in linux/tcp.h, which is set by the end of the handshake.
    """
    information = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
    return int(struct.unpack_from("I", information, 56)[0]) / 1000


def since_data(end: socket.SocketType) -> float | None:
    """Seconds since bytes came or went, or since the connection began if none ever did; None when it is no TCP.

    Source: tcpi_last_data_sent and tcpi_last_data_recv of struct tcp_info in linux/tcp.h.
    """
    try:
        information = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
    except OSError:
        return None
    sent, received = struct.unpack_from("I4xI", information, 44)
    return int(min(sent, received)) / 1000


def is_same_socket(one: socket.socket, other: socket.socket) -> bool:
    """Whether two descriptors lead to one socket."""
    return os.fstat(one.fileno()).st_ino == os.fstat(other.fileno()).st_ino


def refuse_from_now_on(listener: socket.socket) -> None:
    """Refuse clients, also where other processes have the listening socket open; who waits in its backlog is reset.

    Closing would do so only with the last descriptor.
    """
    with suppress(OSError):  # it does so already
        listener.shutdown(socket.SHUT_RDWR)


def close_with_reset(client: socket.SocketType) -> None:
    """Close a connection so that the other side sees a reset: it was not served, and must not look finished."""
    reset_when_closed(client)
    close(client)


def reset_when_closed(end: socket.SocketType) -> None:
    """Have the other side see a reset when the socket is closed."""
    with suppress(OSError):  # it is reset already
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def send_at_once(end: socket.SocketType) -> bool:
    """Send what is there, and what is written from now on, without waiting for more. False: it was reset."""
    try:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        return False
    return True


def close(end: socket.SocketType) -> bool:
    """Close it. Whether the kernel did so without complaint, as of a connection that was reset; it is closed anyway."""
    try:
        end.close()
    except OSError:
        return False
    return True


def _one_address(host: str) -> str:
    """A numeric address of the host. Raises OSError or UnicodeError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda one: one[0] == socket.AF_INET6)[4][0])


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "not a host name"
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
