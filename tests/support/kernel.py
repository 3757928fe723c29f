"""A stand-in for the kernel's side of steering. The real one is in tests/system/test_steering.py."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence

from clojarsd.core.errors import CannotSteer
from clojarsd.core.names import Backend, Role
from clojarsd.core.steering import Steered
from clojarsd.system.steerable_sockets import families_of


class RememberingKernel:
    """Remembers what it is told. It outlives those who use it, as the kernel does.

    Attributes:
        log: every order it was given, as `(frontend, roles)`.
        parts: for how many connections the order is the reverse one, by frontend.
        sockets: whose ports serve which role of which frontend, by family; a test may take some away.
        refuses: why frontends are not taken, or None.
        breaks: what each act raises, by its name, as when a descriptor or memory is short.
        lost: what was taken away, or None; `cannot_mend`: why it cannot be made again, or None.
        was_removed: whether somebody has taken all of it out.
    """

    def __init__(self) -> None:
        self.frontends: dict[str, Steered] = {}
        self.orders: dict[str, tuple[Role, ...]] = {}
        self.parts: dict[str, int] = {}
        self.sockets: dict[tuple[str, Role], dict[int, int]] = {}
        self.counts: dict[str, dict[Role | None, int]] = {}
        self.log: list[tuple[str, tuple[Role, ...]]] = []
        self.refuses: str | None = None
        self.breaks: dict[str, Exception] = {}
        self.lost: str | None = None
        self.cannot_mend: str | None = None
        self.attached = True
        self.is_open = False
        self.was_removed = False
        self._is_as_found = False

    def _may_break(self, act: str) -> None:
        if act in self.breaks:
            raise self.breaks[act]

    def open(self) -> RememberingKernel:
        self._may_break("open")
        self.is_open = True
        self._is_as_found = bool(self.frontends)
        return self

    def configure(self, frontends: Sequence[Steered]) -> None:
        if self.refuses is not None:
            raise CannotSteer(self.refuses)
        self._is_as_found = False
        self.frontends = {one.name: one for one in frontends}
        for known in (self.orders, self.parts, self.counts):
            for name in set(known) - set(self.frontends):
                del known[name]
        for name in self.frontends:
            self.orders.setdefault(name, ())
            self.counts.setdefault(name, {Role.PRIMARY: 0, Role.BACKUP: 0, None: 0})
        self.sockets = {key: some for key, some in self.sockets.items() if key[0] in self.frontends}

    def put(self, frontend: str, role: Role, sockets: Sequence[socket.socket]) -> Collection[int]:
        self._may_break("put")
        assert all(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for one in sockets)
        found = {family: one.getsockname()[1] for one in sockets for family in families_of(one)}
        self.sockets[frontend, role] = found
        return found.keys()

    def has(self, frontend: str, role: Role) -> Mapping[int, int]:
        self._may_break("has")
        return dict(self.sockets.get((frontend, role), {}))

    def set_order(self, frontend: str, order: Sequence[Role], part: int = 0) -> None:
        self._may_break("set_order")
        self.orders[frontend] = tuple(order)
        self.parts[frontend] = part
        self.log.append((frontend, tuple(order)))

    def order(self, frontend: str) -> tuple[Role, ...]:
        self._may_break("order")
        return self.orders[frontend]

    def part(self, frontend: str) -> int:
        return self.parts.get(frontend, 0)

    def counters(self, frontend: str) -> Mapping[Role | None, int]:
        self._may_break("counters")
        return self.counts[frontend]

    def lacks(self) -> str | None:
        self._may_break("lacks")
        return self.lost

    def mend(self) -> None:
        if self.cannot_mend is not None:
            raise CannotSteer(self.cannot_mend)
        self.lost = None

    def is_attached(self) -> bool:
        return self.attached

    def is_as_found(self) -> bool:
        return self._is_as_found

    def detach(self) -> None:
        self.is_open = False

    def remove(self) -> None:
        self.is_open = False
        self._may_break("remove")
        self.was_removed = True
        self.frontends, self.orders, self.parts, self.counts, self.sockets = {}, {}, {}, {}, {}


class OwnReach:
    """Instances that the test itself plays: their ports by role.

    Attributes:
        listeners: the listening sockets of each role.
        away: why an address is out of reach, by address.
        refuses: why a role's sockets cannot be had, by role.
        asked: the roles whose sockets were asked for.
    """

    def __init__(self, listeners: Mapping[Role, socket.socket]) -> None:
        self.listeners = dict(listeners)
        self.away: dict[Backend, str] = {}
        self.refuses: dict[Role, Exception] = {}
        self.asked: list[Role] = []

    def why_elsewhere(self, address: Backend) -> str | None:
        return self.away.get(address)

    def listening(self, role: Role, address: Backend) -> Sequence[socket.socket]:
        self.asked.append(role)
        if role in self.refuses:
            raise self.refuses[role]
        return [self.listeners[role].dup()]
