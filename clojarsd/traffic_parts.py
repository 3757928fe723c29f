"""Makes what brings clients to instances: the kernel's steering, and the links to the relay processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial

import structlog

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Role
from clojarsd.core.settings import ServiceSettings
from clojarsd.runtime.history import History
from clojarsd.runtime.relay_fleet import RelayFleet
from clojarsd.runtime.relay_owner import Owner
from clojarsd.runtime.steered_connections import SteeredConnections
from clojarsd.runtime.steering import Steering
from clojarsd.system.cgroup import Groups
from clojarsd.system.family import descendants_of
from clojarsd.system.instance_reach import InstanceReach
from clojarsd.system.process import Processes
from clojarsd.system.steering import KernelSteering, take_away
from clojarsd.system.steering_directory import ROOT, is_left
from clojarsd.system.world import account_of

log = structlog.get_logger()


class TrafficParts:
    """Made and opened by `Parts`, whose stack closes what is in it.

    Args:
        pid_of: the number of a role's main process, or None.

    Attributes:
        changed: called when what somebody may wait for has changed; set by the owner.
    """

    relay: RelayFleet

    def __init__(
        self,
        service: ServiceSettings,
        processes: Processes,
        groups: Groups | None,
        pid_of: Callable[[Role], int | None],
    ) -> None:
        self._service = service
        self._processes = processes
        self._groups = groups
        self._pid_of = pid_of
        self._grouped: tuple[int, ...] = ()
        self.changed: Callable[[], None] = lambda: None
        reach = InstanceReach(self.processes_of)
        is_there = partial(is_left, service.name, ROOT)
        connections = partial(SteeredConnections, self.processes_of)
        left = partial(take_away, service.name)
        self.steering = Steering(partial(KernelSteering.open, service.name), is_there, reach, connections, left)

    async def open(self, stack: AsyncExitStack, frontends: Iterable[FrontendPlan], history: History) -> None:
        """Take up, or begin, everything; nobody is accepted yet.

        Raises:
            Failed: an address cannot be listened on, or there is no relay process to be had.
        """
        service = self._service
        owner = Owner(self._processes.claim, self._processes.release, account_of(service.user, service.group))
        self.relay = await stack.enter_async_context(
            RelayFleet.open(frontends, service.runtime_dir, owner, self.steering, service.relay_workers)
        )
        self.relay.attach(history)
        self._group_relay()
        self.relay.changed = self.steering.changed = self._relay_changed
        self.steering.configure_again = self._configure_again

    async def _configure_again(self) -> None:
        """Steer, or relay, what can be now, and let the relay process know."""
        try:
            await self.relay.configure(self.relay.plans.values())
        except Failed as failed:  # the addresses are those that we have
            log.error("not_configured_again", reason=str(failed))
        self.changed()

    def processes_of(self, role: Role) -> list[int]:
        """The numbers of the role's processes, the main one first."""
        pid = self._pid_of(role)
        return [] if pid is None else [pid, *(number for number, _ in descendants_of(pid))]

    def _relay_changed(self) -> None:
        self._group_relay()
        self.changed()

    def _group_relay(self) -> None:
        """See to it that relay processes, also those that took another's place, are in the group that is their own."""
        pids = self.relay.pids
        if self._groups is None or pids == self._grouped:
            return
        for pid in set(pids) - set(self._grouped):
            try:
                self._groups.join(self._groups.leaf("relay"), pid)
            except OSError as error:
                log.warning("relay_not_grouped", reason=reason_of(error))
        self._grouped = pids
