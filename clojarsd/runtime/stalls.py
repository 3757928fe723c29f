"""The stall watches of both instances and the rescue, as the daemon has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol, Self

import structlog

from clojarsd.core.errors import reason_of
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.identity import InstanceMark
from clojarsd.core.names import Health, Role, UnitState
from clojarsd.core.settings import StallSettings
from clojarsd.core.stall import StallPolicy
from clojarsd.core.unit import Unit
from clojarsd.core.view import InstanceView
from clojarsd.runtime.instance_listeners import Target
from clojarsd.runtime.relay_launch import Owner
from clojarsd.runtime.rescue import Adopter, Rescue
from clojarsd.runtime.stall_watch import StalledUnit, StallWatch
from clojarsd.runtime.unit_parts import History
from clojarsd.system.own_connections import OwnConnections
from clojarsd.system.sock_diag import SockDiag

log = structlog.get_logger()


class WatchedUnit(StalledUnit, Protocol):
    """An instance; see `runtime.unit_runner.UnitRunner`."""

    @property
    def pid(self) -> int | None:
        """The number of its process."""


class Pair(Protocol):
    """What everybody sees of the pair; see `runtime.status.Board`."""

    def instance(self, role: Role) -> InstanceView:
        """One instance."""


class Relay(Adopter, Protocol):
    """The relay processes; see `runtime.relay_fleet.RelayFleet`."""

    @property
    def plans(self) -> Mapping[str, FrontendPlan]:
        """The frontends as they are wanted, by name."""

    @property
    def is_outdated(self) -> bool:
        """Whether it runs other source than this, and may not know what it is told."""


class Stalls:
    """Both watches. Made by `open`; `run` belongs to the daemon's task group.

    Attributes:
        watches: by role; none where nothing can be watched.
    """

    def __init__(
        self,
        units: Mapping[Role, WatchedUnit],
        board: Pair,
        history: History,
        relay: Relay,
        ports: Callable[[Role], tuple[int, ...]],
        state_dir: str,
        own: OwnConnections,
        owner: Owner,
        diag: SockDiag | None,
    ) -> None:
        self._units = units
        self._board = board
        self._relay = relay
        self._ports = ports
        self._state_dir = state_dir
        self._rescue = Rescue(owner, own, lambda: relay.plans, relay)
        self.watches: Mapping[Role, StallWatch] = {}
        if diag is not None:
            self.watches = {role: StallWatch(role, units[role], history, diag, own, self._rescue) for role in Role}
        for role, watch in self.watches.items():
            watch.health = partial(self._health, role)
            watch.may_rescue = partial(self._may_rescue, role)
            watch.others_wait = self.watches[role.other].may_have_steered

    @classmethod
    @contextmanager
    def open(
        cls,
        units: Mapping[Role, WatchedUnit],
        board: Pair,
        history: History,
        relay: Relay,
        ports: Callable[[Role], tuple[int, ...]],
        state_dir: str,
        own: OwnConnections,
        owner: Owner,
    ) -> Iterator[Self]:
        """The watches; at the end of the block nothing of them is left.

        Args:
            ports: of the instance's process which clients use.
            own: our own connections to the instances.
            owner: told which processes are ours to reap.

        Where the kernel cannot be asked about connections nothing is watched, and the log says why.
        """
        with ExitStack() as stack:
            diag = None
            try:
                diag = stack.enter_context(SockDiag())
            except OSError as error:
                log.warning("stalls_not_watched", reason=reason_of(error))
            stalls = cls(units, board, history, relay, ports, state_dir, own, owner, diag)
            stack.callback(stalls._rescue.close)
            yield stalls

    def configure(self, settings: StallSettings) -> None:
        """Go by these settings from now on."""
        policy = StallPolicy(settings.sample, settings.after) if settings.enabled else None
        for watch in self.watches.values():
            watch.configure(policy)

    def proved(self, role: Role) -> None:
        """The instance is ready, or its frontends are others: watch the listeners that clients use."""
        unit = self._units[role]
        if unit.pid is None or role not in self.watches:
            return
        incarnation = unit.unit.incarnation
        mark = InstanceMark(self._state_dir, role, incarnation)
        self.watches[role].begin(Target(incarnation, unit.pid, mark, self._ports(role)))

    def gone(self, role: Role) -> None:
        """Its process has ended."""
        if role in self.watches:
            self.watches[role].end()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for watch in self.watches.values():
                group.create_task(watch.run())
            await asyncio.Event().wait()

    def _health(self, role: Role) -> Health:
        return self._board.instance(role).health

    def _may_rescue(self, role: Role) -> bool:
        """Whether the other instance may serve who waits for this one, which has a process and may not."""
        seen: Unit = self._units[role].unit
        is_alive = seen.state in (UnitState.READY, UnitState.DRAINING)
        other = self._board.instance(role.other).is_eligible
        return is_alive and other and not self._relay.is_outdated
