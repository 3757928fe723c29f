"""One frontend that the kernel steers: where its new connections go, and whose sockets the kernel has."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from clojarsd.core.errors import CannotSteer, Failed, reason_of
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Address, Backend, Role
from clojarsd.core.spreading import as_part
from clojarsd.core.steering import Steered, client_families
from clojarsd.core.steering_choice import order_of, why_some_relayed
from clojarsd.core.view import FrontendView
from clojarsd.runtime.gate import wall_clock
from clojarsd.runtime.router import Router
from clojarsd.runtime.steered_switchover import Resetting, SteeredSwitchover

log = structlog.get_logger()


class Kernel(Protocol):
    """What steers; see `system.steering.KernelSteering`. What it cannot do raises CannotSteer or OSError."""

    def configure(self, frontends: Sequence[Steered]) -> None:
        """Steer these frontends and no others."""

    def put(self, frontend: str, role: Role, sockets: Sequence[socket.socket]) -> Collection[int]:
        """Have these listening sockets serve the role; the families of clients that reach them."""

    def has(self, frontend: str, role: Role) -> Mapping[int, int]:
        """Which sockets serve the role now, by the family of clients that reach them."""

    def set_order(self, frontend: str, order: Sequence[Role], part: int = 0) -> None:
        """Try the roles in this order, and for so many of `WHOLE` connections in the reverse one."""

    def order(self, frontend: str) -> tuple[Role, ...]:
        """The order in which they are tried."""

    def part(self, frontend: str) -> int:
        """For how many connections that is the reverse one."""

    def counters(self, frontend: str) -> Mapping[Role | None, int]:
        """How many connections each role has got."""

    def lacks(self) -> str | None:
        """What somebody has taken away under us, or None."""

    def mend(self) -> None:
        """Make it again. Raises CannotSteer."""

    def is_as_found(self) -> bool:
        """Whether connections are steered as an earlier daemon has left it."""

    def is_attached(self) -> bool:
        """Whether connections are steered."""

    def detach(self) -> None:
        """Let go of it; the kernel goes on."""

    def remove(self) -> None:
        """Take all of it out of the kernel."""


class Reach(Protocol):
    """How instances' sockets are come by; see `system.instance_reach.InstanceReach`."""

    def why_elsewhere(self, address: Backend) -> str | None:
        """Why the kernel of this host cannot give connections to that address, or None."""

    def listening(self, role: Role, address: Backend) -> Sequence[socket.socket]:
        """Duplicates of the sockets that listen at the address in the role's processes; the caller closes them.

        Raises:
            Failed: there are none to be had; says why.
        """


class _Nowhere:
    """The reach of whoever has no kernel."""

    def why_elsewhere(self, address: Backend) -> str | None:
        return None

    def listening(self, role: Role, address: Backend) -> Sequence[socket.socket]:
        return ()


NOWHERE: Reach = _Nowhere()


class SteeredFrontend:
    """One of the frontends that are steered; `Steering` makes and closes it.

    Args:
        route_changed: called with the name, who is active now, and who was before if it was another one.
        failed: called when the kernel cannot be told or asked; closes this, so that it is not told anything else.
        before: what the relay process, which has the same route, has shown last; None: nothing yet.
        connections: what resets connections when new ones go elsewhere; None: nothing does.

    Attributes:
        is_paused: whether all new connections are to come to the relay process.
        has_begun: whether it is known who may serve, so that what an earlier daemon has told the kernel can be changed.
    """

    def __init__(
        self,
        plan: FrontendPlan,
        kernel: Kernel,
        reach: Reach,
        route_changed: Callable[[str, Role | None, Role | None], None],
        failed: Callable[[Exception], None],
        before: FrontendView | None = None,
        connections: Resetting | None = None,
    ) -> None:
        self.plan = plan
        self.is_paused = False
        self.has_begun = False
        self._kernel = kernel
        self._reach = reach
        self._route_changed = route_changed
        self._failed = failed
        self._is_closed = False
        self._down: frozenset[Role] = frozenset()
        self._switchover = SteeredSwitchover(connections)
        self._log = log.bind(frontend=plan.name)
        self._loop = asyncio.get_running_loop()
        self.router = Router(self._loop, self._log, plan.when_home, self._changed)
        self._trouble: dict[Role, str] = {}
        """Why the kernel cannot serve a role that may get connections."""
        self._families = client_families(Steered(plan.name, plan.listen))
        self._takes: dict[Role, frozenset[int]] = {}
        """The families of clients that reach the sockets of a role, as they were put in."""
        self._fetched: set[Role] = set()
        """Whose sockets this daemon has given to the kernel, now or for an earlier incarnation."""
        self._counted: Mapping[Role | None, int] = {}
        self._order = kernel.order(plan.name)
        self._part = kernel.part(plan.name)
        if self._order:  # an earlier daemon has left it so
            first, counted = self._order[0], kernel.counters(plan.name)
            self._resume(first, counted, before.failures if before is not None else 0)
        elif before is not None:  # it was relayed until now
            self._resume(before.active, before.accepted_total, before.failures)
        self.router.share = before.share if before is not None else 0.0

    def _resume(self, active: Role | None, counted: Mapping[Role | None, int], failures: int) -> None:
        has_served = active is Role.PRIMARY or counted[Role.PRIMARY] > 0 or failures > 0
        self.router.resume(active, primary_has_served=has_served, failures=failures)

    @property
    def order(self) -> tuple[Role, ...]:
        """The roles that the kernel tries now, the first first."""
        return self._order

    def close(self) -> None:
        """Decide no more; the kernel is left as it is."""
        self._is_closed = True
        self.router.close()
        self._switchover.close()

    def replan(self, plan: FrontendPlan) -> None:
        """Go by another plan of the same name."""
        before, self.plan = self.plan, plan
        self._families = client_families(Steered(plan.name, plan.listen))
        self.router.failback = plan.when_home
        if before.backends != plan.backends:
            for role in Role:
                if before.backends[role] != plan.backends[role] and self._may_serve(role):
                    self._fetch(role)
        if not self._is_closed:
            self.router.look()
            self.apply()

    def set_eligible(
        self, eligible_since: Mapping[Role, float | None], *, is_ordered: bool = False, down: Collection[Role] = ()
    ) -> None:
        """Act at once on who may get connections, whether by order, and who may not because it is down."""
        self._down = frozenset(down)
        before = self.router.eligible_since
        for role in Role:
            if eligible_since[role] is None:
                self._trouble.pop(role, None)
            elif before[role] != eligible_since[role]:
                self._fetch(role)
        if not self._is_closed:
            self.router.set_eligible(eligible_since, is_ordered=is_ordered)
            self.apply()

    def set_share(self, share: float) -> None:
        """Have the kernel give that part of new connections to the backup while both may get some."""
        self.router.share = share
        self.apply()

    def look_for_sockets(self, roles: Iterable[Role] = Role) -> None:
        """Get the sockets of those who may serve and whose are not there, or not any more; and set the order right."""
        for role in roles:
            if self._may_serve(role) and (role in self._trouble or not self._has(role)):
                self._fetch(role)
        if self._is_closed:
            return
        try:
            self._order, self._part = self._kernel.order(self.plan.name), self._kernel.part(self.plan.name)
        except (CannotSteer, OSError) as error:
            self._fail(error)
        self.apply()

    def is_backend(self, role: Role, port: int) -> bool:
        """Whether that port of the role's instance gets the frontend's connections."""
        backend = self.plan.backends[role]
        return isinstance(backend, Address) and backend.port == port

    def _may_serve(self, role: Role) -> bool:
        return self.router.eligible_since[role] is not None

    def _fetch(self, role: Role) -> None:
        """Give the kernel the listening sockets of the role's instance, and keep nothing of them."""
        if self._is_closed:
            return
        try:
            with contextlib.ExitStack() as taken:
                found = self._reach.listening(role, self.plan.backends[role])
                sockets = [taken.enter_context(one) for one in found]
                takes = self._kernel.put(self.plan.name, role, sockets)
        except (Failed, OSError) as error:
            if role not in self._fetched and (found_families := self._has(role)):
                self._takes[role] = found_families
                return  # they are there since an earlier daemon, and may not be had again
            if role not in self._trouble:
                self._log.warning("not_steered", role=role.value, reason=reason_of(error))
            self._trouble[role] = f"{role.value} is relayed: {reason_of(error)}"
        else:
            self._trouble.pop(role, None)
            self._takes[role] = frozenset(takes)
            self._fetched.add(role)

    def _has(self, role: Role) -> frozenset[int]:
        """The families for which the kernel has a socket of the role."""
        if self._is_closed:
            return frozenset()
        try:
            return frozenset(self._kernel.has(self.plan.name, role))
        except (CannotSteer, OSError) as error:
            self._fail(error)
            return frozenset()

    def _fail(self, error: Exception) -> None:
        """The kernel cannot be told or asked; what it says after we were closed means nothing."""
        if not self._is_closed:
            self._failed(error)

    def apply(self) -> None:
        """Tell the kernel the order, if it is another one."""
        if self._is_closed or not self.has_begun:
            return
        eligible = [role for role in Role if self._may_serve(role)]
        reachable = {role: self._taken(role) for role in eligible if role not in self._trouble}
        order = order_of(self.router.active, eligible, reachable)
        if self.is_paused:
            order = ()
        part = as_part(self.router.share) if order == (Role.PRIMARY, Role.BACKUP) else 0
        if (order, part) != (self._order, self._part):
            try:
                self._kernel.set_order(self.plan.name, order, part)
            except (CannotSteer, OSError) as error:
                self._fail(error)
                return
            self._order, self._part = order, part
        since, paused = self.router.eligible_since, self.is_paused
        self._switchover.look(self.plan, since, self._down, is_paused=paused)  # not before the kernel knows

    def _changed(self, moved_from: Role | None) -> None:
        self.apply()
        if not self._is_closed:
            self._switchover.route_changed(self.plan, self.router.active)
        self._route_changed(self.plan.name, self.router.active, moved_from)

    def counted(self) -> Mapping[Role | None, int]:
        """How many connections each role has got from the kernel; as last known when it cannot be asked."""
        with contextlib.suppress(CannotSteer, OSError):  # the next look heeds what is wrong with the kernel
            self._counted = self._kernel.counters(self.plan.name)
        return self._counted

    def _how(self, active: Role) -> tuple[bool, str | None]:
        """Whether new connections go to the active instance by the kernel, some at least; and why not, or not all."""
        if active in self._trouble:
            return False, self._trouble[active]
        if active not in self._takes:
            return True, None  # it is not known yet who may serve
        taken = self._taken(active)
        return bool(taken), why_some_relayed(self._families, active, taken)

    def _taken(self, role: Role) -> frozenset[int]:
        """Which of the families of the frontend's clients the kernel can give to the role."""
        return self._takes.get(role, frozenset()) & self._families

    def show(self, seen: FrontendView, opened: Mapping[Role, int], waited_until: Mapping[Role, float]) -> FrontendView:
        """The view of the relay process with what the kernel does.

        Args:
            opened: steered connections by role.
            waited_until: the roles whose steered connections are let end, with the loop time until when.
        """
        active = self.router.active
        is_steered, reason = (True, None) if active is None else self._how(active)
        draining = dict(seen.draining)
        for role, at in waited_until.items():
            draining[role] = max(draining.get(role, ""), wall_clock(self._loop, at))
        return replace(
            seen,
            mode="steer" if is_steered else "relay",
            mode_reason=reason,
            active=active,
            connections=with_counts(seen.connections, opened),
            accepted_total=with_counts(seen.accepted_total, self.counted()),
            next=self.router.next(),
            draining=draining,
            failures=self.router.failures,
        )


def with_counts(
    seen: Mapping[Role | None, int], counted: Mapping[Role, int] | Mapping[Role | None, int]
) -> dict[Role | None, int]:
    """The counts of each role together; who fell through is counted by the relay process."""
    return {role: count + (counted.get(role, 0) if role is not None else 0) for role, count in seen.items()}
