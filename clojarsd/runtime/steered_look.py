"""One look at the connections that the kernel has steered to the instances: whose each is, and what it waits for.

All of this asks the kernel and reads /proc, so it runs in a thread, always the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clojarsd.core.connections import ConnectionPhase, ConnectionView
from clojarsd.core.errors import reason_of
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Address, Role
from clojarsd.system.sock_diag import CLOSE_WAIT, CLOSING, LAST_ACK, Connection, SockDiag
from clojarsd.system.socket_owners import sockets_of

UNCLEAR_TIMES = 4
"""So many times as long must one be silent of which the order of request and answer cannot be told."""
_HAS_ENDED = (CLOSE_WAIT, LAST_ACK, CLOSING)
_WILDCARD_IPV4 = "0.0.0.0"
_WILDCARD_IPV6 = "::"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look has found.

    Attributes:
        open: the connections that an instance has accepted and not closed, by frontend and role.
        waiting: by frontend, those in somebody's accept queue or on their way there; whose cannot be told.
        queued: by frontend and role, how many wait in the accept queue of the instance.
    """

    open: Mapping[tuple[str, Role], Sequence[Connection]]
    waiting: Mapping[str, Sequence[Connection]]
    queued: Mapping[tuple[str, Role], int]


class Destroyed(NamedTuple):
    """What became of connections that were to be reset; those that had ended already are in neither list.

    Attributes:
        done: they were reset.
        left: they could not be.
        trouble: why; None: all were.
    """

    done: Sequence[Connection]
    left: Sequence[Connection]
    trouble: str | None


class Looker:
    """Looks, and remembers whose a connection was, since that never changes. Made by who closes the `SockDiag`.

    Args:
        pids: the processes of an instance; called in the thread.
    """

    def __init__(self, diag: SockDiag, pids: Callable[[Role], Collection[int]]) -> None:
        self._diag = diag
        self._pids = pids
        self._owners: dict[int, Role] = {}
        self._nobodys: dict[int, int] = {}
        """How often nobody's descriptor was found for a connection: once may be in the middle of an accept."""

    def look(self, plans: Sequence[FrontendPlan], *, with_queues: bool = False, info: bool = True) -> Seen:
        """The connections of these frontends.

        Args:
            with_queues: look at the accept queues of the instances, too, where somebody waits.

        Raises:
            OSError: the kernel did not answer, or a process of an instance is not ours to see.
        """
        accepted: list[tuple[str, Connection]] = []
        waiting: dict[str, list[Connection]] = {plan.name: [] for plan in plans}
        for port in {address.port for plan in plans for address in plan.listen}:
            for connection in self._diag.connections(port, info=info):
                name = _frontend_of(connection.local, plans)
                if name is None or connection.is_let_go:
                    continue
                if connection.is_waiting:
                    waiting[name].append(connection)
                else:
                    accepted.append((name, connection))
        inodes = self._know_owners([connection for _, connection in accepted])
        found: dict[tuple[str, Role], list[Connection]] = {(plan.name, role): [] for plan in plans for role in Role}
        for name, connection in accepted:
            role = self._owners.get(connection.cookie)
            if role is not None:
                found[name, role].append(connection)
        some_wait = [plan for plan in plans if with_queues and waiting[plan.name]]
        return Seen(found, waiting, self._queues(some_wait, inodes))

    def destroy(self, connections: Sequence[Connection]) -> Destroyed:
        """Reset these, until one cannot be."""
        done = []
        for place, connection in enumerate(connections):
            try:
                if self._diag.destroy(connection):
                    done.append(connection)
            except OSError as error:
                return Destroyed(done, connections[place:], reason_of(error))
        return Destroyed(done, (), None)

    def _know_owners(self, connections: Sequence[Connection]) -> dict[Role, set[int]]:
        """Remember whose these are, and no others; the inodes that were looked up for it, or nothing."""
        cookies = {connection.cookie for connection in connections}
        self._owners = {cookie: role for cookie, role in self._owners.items() if cookie in cookies}
        self._nobodys = {cookie: count for cookie, count in self._nobodys.items() if cookie in cookies}
        new = [one for one in connections if one.cookie not in self._owners and self._nobodys.get(one.cookie, 0) < 2]
        if not new:
            return {}
        inodes = {role: sockets_of(self._pids(role)) for role in Role}
        for connection in new:
            role = next((role for role in Role if connection.inode in inodes[role]), None)
            if role is not None:
                self._owners[connection.cookie] = role
            else:
                self._nobodys[connection.cookie] = self._nobodys.get(connection.cookie, 0) + 1
        return inodes

    def _queues(
        self, plans: Sequence[FrontendPlan], inodes: Mapping[Role, Collection[int]]
    ) -> dict[tuple[str, Role], int]:
        found = {}
        for plan in plans:
            for role, backend in plan.backends.items():
                assert isinstance(backend, Address), "what has no port is not steered"
                queues = [queue for queue in self._diag.queues(backend.port) if queue.waiting]
                if queues and not inodes:
                    inodes = {role: sockets_of(self._pids(role)) for role in Role}
                found[plan.name, role] = sum(queue.waiting for queue in queues if queue.inode in inodes[role])
        return found


def silence(connection: Connection) -> float | None:
    """Seconds since bytes came or went; None where they are not known."""
    if connection.since_sent is None or connection.since_received is None:
        return None
    return min(connection.since_sent, connection.since_received)


def owes_answer(connection: Connection) -> bool | None:
    """Whether the client waits for an answer: the last bytes were its own. None: that cannot be told.

    The kernel's clock goes by steps of 1 to 10 ms. Where request and answer fall into one, an acknowledgement that came
    later shows that the client had nothing more to ask; without one, its next request may have come with it.
    """
    sent, received, heard = connection.since_sent, connection.since_received, connection.since_heard
    if connection.receive_queue > (connection.state in _HAS_ENDED):
        return True
    if connection.bytes_received <= (connection.state in _HAS_ENDED):
        return False  # the client never said anything; its end counts as a byte
    if sent is None or received is None or heard is None or not connection.bytes_acknowledged + connection.send_queue:
        return True
    if sent != received:
        return received < sent
    return None if heard >= received else False


def is_silent(connection: Connection, idle: float) -> bool:
    """Whether a drain need not wait for it: for `idle` seconds nothing was carried, nothing is under way or owed."""
    silent, owed = silence(connection), owes_answer(connection)
    if silent is None or owed or connection.send_queue or connection.receive_queue > (connection.state in _HAS_ENDED):
        return False
    return silent >= (idle if owed is False else idle * UNCLEAR_TIMES)


def may_end(connection: Connection, idle: float) -> bool:
    """Whether it can be reset without taking an answer away: none is owed, and none is on its way."""
    if connection.send_queue or connection.unsent:
        return False
    return owes_answer(connection) is False or is_silent(connection, idle)


def view_of(frontend: str, role: Role | None, connection: Connection) -> ConnectionView:
    """The connection as operators see it."""
    return ConnectionView(
        frontend=frontend,
        mode="steer",
        role=role,
        client=connection.remote,
        phase=ConnectionPhase.QUEUED if connection.is_waiting else ConnectionPhase.OPEN,
        open_seconds=None,
        silent_seconds=silence(connection),
        bytes_up=connection.bytes_received,
        bytes_down=connection.bytes_acknowledged,
        owed=owes_answer(connection) is not False,
    )


def _frontend_of(local: Address, plans: Sequence[FrontendPlan]) -> str | None:
    """Whose address this is: that of a frontend with exactly this one, else of one that listens everywhere."""
    wildcards = (_WILDCARD_IPV6,) if ":" in local.host else (_WILDCARD_IPV4, _WILDCARD_IPV6)
    for host in (local.host, *wildcards):
        wanted = Address(host, local.port)
        for plan in plans:
            if wanted in plan.listen:
                return plan.name
    return None
