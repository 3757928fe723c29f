"""The frontends that the kernel steers: decides where to, tells the kernel, and shows what it does.

The relay process has the same frontends and serves what falls through: while nobody can serve, or cannot be steered to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn, Self

import structlog

from clojarsd.core.connections import ConnectionList
from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.errors import CannotSteer, reason_of
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.history import EventName
from clojarsd.core.names import Address, Role
from clojarsd.core.steering import Steered, as_kernel_says
from clojarsd.core.steering_choice import decide, wants_steering
from clojarsd.core.view import FrontendView
from clojarsd.runtime.frontend_history import History
from clojarsd.runtime.retry import Retry
from clojarsd.runtime.steered_connections import SteeredConnections
from clojarsd.runtime.steered_frontend import NOWHERE, Kernel, Reach, SteeredFrontend, with_counts

log = structlog.get_logger()

LOOK_EVERY = 1.0
"""Seconds between two looks whether the kernel still has what it was given."""
FIRST_RETRY = 1.0
LONGEST_RETRY = 60.0
"""Seconds until what steers is asked for again when it was not to be had: at first, and at most."""


class Steering:
    """Made by the daemon's parts; the relay link uses it, and `run` belongs to the daemon's task group.

    Args:
        open_kernel: gives what steers; raises CannotSteer. Called when a frontend is to be steered.
        is_left: whether an earlier daemon has left something in the kernel.
        take_away: takes that out, where what steers is not to be had; raises CannotSteer.
        count: gives what knows of steered connections; called when something is steered for the first time.

    Attributes:
        changed: called when a route has changed; set by the owner.
        configure_again: has the frontends planned and configured once more; set by the owner.
        shown: what a relay process has shown last of a frontend, also to an earlier daemon; set by the owner.
    """

    def __init__(
        self,
        open_kernel: Callable[[], Kernel],
        is_left: Callable[[], bool],
        reach: Reach,
        count: Callable[[], SteeredConnections],
        take_away: Callable[[], object] = lambda: None,
    ) -> None:
        self._open_kernel = open_kernel
        self._is_left = is_left
        self._take_away = take_away
        self._reach = reach
        self._loop = asyncio.get_running_loop()
        self._count = count
        self._kernel: Kernel | None = None
        self._connections: SteeredConnections | None = None
        self._open: Mapping[str, Mapping[Role, int]] = {}
        """How many connections each instance had at the last look, by frontend."""
        self._history: History | None = None
        self._frontends: dict[str, SteeredFrontend] = {}
        self._counted: dict[str, Mapping[Role | None, int]] = {}
        """What the kernel had counted by frontend, and has forgotten because it was not to steer it any more."""
        self._eligible_since: Mapping[Role, float | None] = dict.fromkeys(Role)
        self._down: frozenset[Role] = frozenset()
        self._paused: frozenset[str] = frozenset()
        self._has_begun = False
        self._is_over = False
        self._without: str | None = None
        """Why there is nothing that steers although something is to be steered."""
        self._lacking: str | None = None
        """What was taken away under us and cannot be made again, while connections are steered all the same."""
        self._retry = Retry(FIRST_RETRY, LONGEST_RETRY)
        self._given_up = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None
        self.configure_again: Callable[[], Awaitable[None]] = _nothing_to_configure
        self.shown: Callable[[str], FrontendView | None] = lambda name: None

    @classmethod
    def absent(cls) -> Self:
        """One that steers nothing, for whoever has no kernel to ask."""

        def refuse() -> Kernel:
            raise CannotSteer("nothing here steers")

        return cls(refuse, lambda: False, NOWHERE, lambda: SteeredConnections(lambda role: ()))

    def attach(self, history: History) -> None:
        """Take the history in which failovers are recorded."""
        self._history = history

    # Frontends.

    def plan(self, plans: Iterable[FrontendPlan]) -> dict[str, FrontendPlan]:
        """The plans, each with whether it is steered, and why not; the kernel is asked for it if any is to be."""
        plans = list(plans)
        is_wanted = any(wants_steering(plan) for plan in plans)
        if self._kernel is None and (is_wanted or self._is_left()):
            self._have_kernel()
        no_kernel = self._without if is_wanted and self._kernel is None else None
        decided = {}
        for plan in plans:
            elsewhere = {role: why for role in Role if (why := self._why_elsewhere(plan, role)) is not None}
            decided[plan.name] = decide(plan, no_kernel, elsewhere)
        if not is_wanted:
            self._without = None
        return decided

    def _have_kernel(self) -> None:
        """Ask for what steers, unless it has failed just now; `_without` is why it is not to be had."""
        if self._without is not None and not self._retry.is_due(self._loop.time()):
            return
        try:
            self._kernel = self._open_kernel()
            self._without = None
        except (CannotSteer, OSError) as refusal:
            self._do_without(refusal)

    def _do_without(self, why: Exception) -> None:
        """What an earlier daemon, or this one, has told the kernel is not to hold where nobody can change it."""
        self._retry.put_off(self._loop.time())
        self._without = reason_of(why)
        try:
            self._take_away()
        except (CannotSteer, OSError) as left:
            log.error("steering_left", reason=reason_of(left))
            self._without += f"; and {reason_of(left)}, so that connections go where the last daemon has sent them"

    def _why_elsewhere(self, plan: FrontendPlan, role: Role) -> str | None:
        why = self._reach.why_elsewhere(plan.backends[role])
        return None if why is None else f"{role.value} {why}"

    def configure(
        self, plans: Mapping[str, FrontendPlan], listen: Callable[[str], Sequence[Address]]
    ) -> dict[str, FrontendPlan]:
        """Steer those of the plans that are to be, and no others, all at one moment; the plans as they are then.

        Args:
            plans: as `plan` gives them.
            listen: where the frontend of that name listens, with the ports that the kernel has chosen.
        """
        steered = {name: plan for name, plan in plans.items() if plan.is_steered}
        wanted = {
            name: replace(plan, listen=tuple(map(as_kernel_says, listen(name)))) for name, plan in steered.items()
        }
        if self._kernel is None or not wanted:
            self.remove()
            return dict(plans)
        leaving = {name: frontend.counted() for name, frontend in self._frontends.items() if name not in wanted}
        try:
            self._have_connections()
            self._kernel.configure([Steered(name, plan.listen) for name, plan in wanted.items()])
            self._keep_counts(leaving)  # which the kernel has forgotten now
            self._have_frontends(wanted)
        except (CannotSteer, OSError) as reason:
            log.error("not_steered", reason=reason_of(reason))
            self.remove()
            self._do_without(reason)
        self._counted = {name: counted for name, counted in self._counted.items() if name in plans}
        if self._connections is not None and self._frontends:
            self._connections.configure(wanted.values())
            if self._has_begun:
                self._look()
        if not self._frontends:  # given up, here or in the middle of telling them
            return {name: plan.relayed(self._without or "") for name, plan in plans.items()}
        return dict(plans)

    def _have_frontends(self, wanted: Mapping[str, FrontendPlan]) -> None:
        for name in self._frontends.keys() - wanted.keys():
            self._frontends.pop(name).close()
        for name, plan in wanted.items():
            if self._kernel is None:
                return  # given up when an earlier one was told
            if name not in self._frontends:
                self._frontends[name] = self._make(plan)
            else:
                self._frontends[name].replan(plan)

    def _keep_counts(self, leaving: Mapping[str, Mapping[Role | None, int]]) -> None:
        for name, counted in leaving.items():
            if any(counted.get(role) for role in Role):
                self._counted[name] = with_counts(counted, self._counted.get(name, {}))

    def _have_connections(self) -> None:
        if self._connections is None:
            try:
                self._connections = self._count()
            except (OSError, RuntimeError) as error:
                raise CannotSteer(f"cannot see the connections that the kernel steers: {reason_of(error)}") from error

    def _make(self, plan: FrontendPlan) -> SteeredFrontend:
        assert self._kernel is not None
        told, before = (self._route_changed, self._give_up), self.shown(plan.name)
        made = SteeredFrontend(plan, self._kernel, self._reach, *told, before, self._connections)
        made.has_begun = self._has_begun
        made.is_paused = plan.name in self._paused
        return made

    def begin(self) -> None:
        """Who may serve is known from here on: what an earlier daemon had told the kernel holds no longer."""
        self._has_begun = True
        for frontend in self._frontends.values():
            frontend.has_begun = True
        self._look()

    def ports_to(self, role: Role, port: int) -> list[int]:
        """Those from which the kernel steers connections to that port of the role's instance, each once."""
        plans = [one.plan for one in self._frontends.values() if one.is_backend(role, port)]
        return list(dict.fromkeys(address.port for plan in plans for address in plan.listen))

    def listeners_changed(self, role: Role) -> None:
        """The instance has opened other listening sockets: have the kernel get them at once where it lacks them."""
        for frontend in list(self._frontends.values()):
            frontend.look_for_sockets([role])

    def detach(self) -> None:
        """Let go, and leave the kernel as it is: connections go on to those who could serve last, if there are any."""
        is_as_found = self._kernel is not None and self._kernel.is_as_found()
        if not (self._has_begun or is_as_found or any(frontend.order for frontend in self._frontends.values())):
            self.remove()  # nothing was steered yet, and we do not begin
        self._is_over = True
        self._forget()
        if self._kernel is not None:
            self._kernel.detach()
            self._kernel = None
        if self._connections is not None:
            self._connections.close()
            self._connections = None

    def remove(self) -> None:
        """Steer no more: every new connection comes to the relay process. Those that are open can still be drained."""
        self._keep_counts({name: frontend.counted() for name, frontend in self._frontends.items()})
        self._forget()
        if self._connections is not None:
            self._connections.configure(())
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            try:
                kernel.remove()
            except (CannotSteer, OSError) as left:
                log.error("steering_left", reason=reason_of(left))

    def end(self) -> None:
        """Remove it for good."""
        self._is_over = True
        self.remove()

    def _give_up(self, error: Exception) -> None:
        """The kernel cannot be told where connections are to go: let it send them nowhere. Tried again later."""
        reason = f"the kernel could not be told: {reason_of(error)}"
        log.error("steering_given_up", reason=reason)
        self.remove()
        self._do_without(CannotSteer(reason))
        self._given_up.set()

    def _forget(self) -> None:
        self._lacking = None
        for frontend in self._frontends.values():
            frontend.close()
        self._frontends.clear()

    # Routing.

    def set_eligible(
        self, since: Mapping[Role, float | None], *, is_ordered: bool = False, down: Collection[Role] = ()
    ) -> None:
        """Take who may get connections, since when, whether by order, and who is down; the kernel knows at the end."""
        self._eligible_since, self._down = dict(since), frozenset(down)
        if self._has_begun:
            self._look(is_ordered=is_ordered)

    def set_paused(self, names: Collection[str]) -> None:
        """Have new connections of these frontends come to the relay process, which holds them, and of no others."""
        self._paused = frozenset(names)
        for name, frontend in list(self._frontends.items()):
            frontend.is_paused = name in names
            frontend.apply()

    def set_share(self, share: float) -> None:
        """Have the kernel give that part of new connections to the backup while both may get some."""
        for frontend in list(self._frontends.values()):
            frontend.set_share(share)

    def _look(self, *, is_ordered: bool = False) -> None:
        for frontend in list(self._frontends.values()):
            frontend.set_eligible(self._eligible_since, is_ordered=is_ordered, down=self._down)

    def _route_changed(self, name: str, active: Role | None, moved_from: Role | None) -> None:
        if active is not None and moved_from is not None and self._history is not None:
            event = EventName.FAILOVER if active is Role.BACKUP else EventName.FAILBACK
            text = f"new connections of frontend {name} go to {active.value}"
            self._history.record(event, text, active, frontend=name, before=moved_from.value)
        self.changed()

    # Connections.

    def begin_drain(self, role: Role, when_drained: Callable[[], None], within: float | None = None) -> None:
        """Let the instance's steered connections end, each within its frontend's time; call back when none is left.

        Args:
            within: seconds, where that is less than the frontend's time.
        """
        if self._connections is None:
            self._loop.call_soon(when_drained)
        else:
            self._connections.begin(role, when_drained, within)

    def end_drain(self, role: Role) -> None:
        """Leave the connections alone again."""
        if self._connections is not None:
            self._connections.end(role)

    def tally(self, role: Role) -> DrainTally:
        """What has become of the instance's steered connections in its latest drain."""
        return DrainTally() if self._connections is None else self._connections.tally(role)

    def cut(self, role: Role) -> None:
        """Reset the instance's steered connections."""
        if self._connections is not None:
            self._connections.cut(role)

    async def connections(self, frontend: str | None = None) -> ConnectionList:
        """The steered connections one by one; raises Failed when they cannot be seen."""
        return ConnectionList(()) if self._connections is None else await self._connections.connections(frontend)

    async def look(self) -> None:
        """Count the open connections anew, so that what `show` shows is half a second old at most."""
        if self._connections is not None:
            try:
                self._open = await self._connections.count()
            except OSError as error:
                log.warning("steered_connections_unseen", reason=reason_of(error))

    async def run(self) -> NoReturn:
        """See to it that the kernel has what it is to have, and try again what was given up, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._given_up.wait()
            must_tell = self._given_up.is_set()
            self._given_up.clear()
            self._see_to_kernel()
            is_due = self._without is not None and self._retry.is_due(self._loop.time())
            if (must_tell or is_due) and not self._is_over:
                await self.configure_again()

    def _see_to_kernel(self) -> None:
        """Make again what somebody has taken away, and give the kernel what it lacks."""
        if self._kernel is None:
            return
        try:
            self._mend(self._kernel)
        except (CannotSteer, OSError) as error:
            self._give_up(error)
        for frontend in list(self._frontends.values()):
            frontend.look_for_sockets()

    def _mend(self, kernel: Kernel) -> None:
        lost = kernel.lacks()
        lacking = None
        if lost is not None:
            try:
                kernel.mend()
                log.warning("steering_mended", reason=lost)
            except CannotSteer as failed:
                if not kernel.is_attached():
                    raise
                lacking = f"{lost}, and steering ends with this daemon: {failed}"
        if lacking is not None and lacking != self._lacking:
            log.error("steering_not_mended", reason=lacking)
        self._lacking = lacking

    # What others see.

    def show(self, name: str, seen: FrontendView) -> FrontendView:
        """The frontend, with what the kernel does for it besides what the relay process shows."""
        frontend = self._frontends.get(name)
        if (before := self._counted.get(name)) is not None:
            seen = replace(seen, accepted_total=with_counts(seen.accepted_total, before))
        if frontend is None:
            return seen
        until = self._connections.waited_until(name) if self._connections is not None else {}
        shown = frontend.show(seen, self._open.get(name, {}), until)
        return replace(shown, mode_reason=shown.mode_reason or self._lacking)


async def _nothing_to_configure() -> None:
    pass
