"""All frontends together: who may get connections, and the drain of an instance over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.frontend_plan import Pause
from clojarsd.core.names import Role
from clojarsd.core.relay_orders import (
    CapFrontend,
    CountFrom,
    CountOn,
    FrontendOrder,
    PauseFrontend,
    ResumeFrontend,
    ShareFrontend,
)
from clojarsd.runtime.frontend import Frontend
from clojarsd.runtime.frontend_view import count_on, tally_of


class Traffic:
    """The connections that clients have to the pair; for as long as the relay process lives."""

    def __init__(self) -> None:
        self._frontends: dict[str, Frontend] = {}
        self._retiring: dict[Frontend, set[Role]] = {}
        """Frontends that are no longer wanted, and at which instances they still have connections."""
        self._drains: dict[Role, _WholeDrain] = {}
        self._loop = asyncio.get_running_loop()
        self._eligible_since: dict[Role, float | None] = dict.fromkeys(Role)
        self.down: frozenset[Role] = frozenset()
        """The instances that may get no connections because something is wrong with them."""

    @property
    def frontends(self) -> Mapping[str, Frontend]:
        """Those that are wanted, by name."""
        return self._frontends

    @property
    def eligible_since(self) -> Mapping[Role, float | None]:
        """Loop time since when each instance may get connections, or None."""
        return self._eligible_since

    @property
    def all_frontends(self) -> tuple[Frontend, ...]:
        """Those that are wanted, and those that are not any more and still have connections."""
        return (*self._frontends.values(), *self._retiring)

    def add(self, frontend: Frontend) -> None:
        """Take one in; it is closed here."""
        self._frontends[frontend.plan.name] = frontend
        frontend.set_eligible(self._eligible_since, down=self.down)

    def inherit(
        self, frontends: Sequence[Frontend], eligible_since: Mapping[Role, float | None], down: Collection[Role] = ()
    ) -> None:
        """Take those in that go on here after another process; they know who is eligible."""
        self._eligible_since.update(eligible_since)
        self.down = frozenset(down)
        for frontend in frontends:
            frontend.switchover.down = self.down
        self._frontends.update({frontend.plan.name: frontend for frontend in frontends})

    def go_on_draining(self, role: Role, when_drained: Callable[[], None]) -> None:
        """Call back when nothing is left of the role in the frontends taken in, whose drains go on."""
        drain = self._drains[role] = _WholeDrain(role, when_drained)
        drain.left.update(frontend for frontend in self._frontends.values() if not frontend.is_empty(role))
        drain.look()

    def drained(self, name: str, role: Role) -> None:
        """A drain that goes on is over in the frontend of that name."""
        if role in self._drains and name in self._frontends:
            self._drains[role].over(self._frontends[name])

    def tally(self, role: Role) -> DrainTally | None:
        """What has become of the connections in the frontends where the role's drain is over; None without a drain."""
        return self._drains[role].tally if role in self._drains else None

    @property
    def is_retiring(self) -> bool:
        """Whether connections of a frontend that is no longer wanted are open."""
        return bool(self._retiring)

    def retire(self, name: str) -> None:
        """Stop accepting in one, let its connections end within its drain's time, then close it."""
        frontend = self._frontends.pop(name)
        self._retiring[frontend] = set(Role)
        frontend.gate.resume()
        frontend.stop_accepting()
        frontend.waiting.let_all_go()
        for role in Role:
            frontend.begin_drain(role, partial(self._retired, frontend, role))

    def close(self) -> None:
        """Close all at once."""
        for frontend in self.all_frontends:
            frontend.close()
        self._frontends.clear()
        self._retiring.clear()

    def set_eligible(
        self, role: Role, eligible: bool, seconds: float = 0.0, *, is_ordered: bool = False, is_down: bool = False
    ) -> None:
        """Whether the instance may get new connections; acted on before this returns.

        Args:
            seconds: for how long it has been eligible; told by who knew before.
            is_ordered: whether an operator wants it so.
            is_down: whether something is wrong with it.
        """
        is_other = eligible != (self._eligible_since[role] is not None)
        if not is_other and is_down == (role in self.down):
            return
        if is_other:
            self._eligible_since[role] = self._loop.time() - seconds if eligible else None
        self.down = self.down - {role} | ({role} if is_down else frozenset())
        for frontend in self._frontends.values():
            frontend.set_eligible(self._eligible_since, is_ordered=is_ordered, down=self.down)

    def stop_accepting(self) -> None:
        """Refuse clients from now on; who waits is served, if somebody can, also where operators have paused."""
        for frontend in self._frontends.values():
            frontend.gate.resume()
            frontend.stop_accepting()
            frontend.waiting.let_all_go()

    def obey(self, order: FrontendOrder) -> None:
        """Do what an operator has ordered about a frontend, if it is still there."""
        if (frontend := self._frontends.get(order.frontend)) is None:
            return
        match order:
            case PauseFrontend(_, seconds, by):
                frontend.gate.pause(Pause(self._loop.time() + seconds, by))
            case ResumeFrontend():
                frontend.gate.resume()
            case CapFrontend(_, caps):
                frontend.gate.cap(caps)
            case ShareFrontend(_, share):
                frontend.share(share)
            case CountFrom(_, counted_from):
                frontend.gate.count_from(counted_from)
            case CountOn(_, accepted):
                count_on(frontend, accepted)

    def paused(self) -> dict[str, tuple[float, str]]:
        """The frontends whose new connections wait by order, the seconds left, and by whose order."""
        now = self._loop.time()
        pauses = {name: frontend.gate.paused for name, frontend in self._frontends.items()}
        return {name: (max(pause.until - now, 0.0), pause.by) for name, pause in pauses.items() if pause is not None}

    def begin_drain(self, role: Role, when_drained: Callable[[], None], within: float | None = None) -> None:
        """Let open connections end, each within its frontend's time; call back when none is left in any.

        Args:
            within: seconds for all of them, where that is sooner.
        """
        before = self._drains.get(role)
        drain = self._drains[role] = _WholeDrain(role, when_drained)
        if before is not None and before.left:  # it goes on
            drain.tally = before.tally
        drain.left.update(self._frontends.values())
        drain.left.update(frontend for frontend, roles in self._retiring.items() if role in roles)
        for frontend in list(self._frontends.values()):
            frontend.begin_drain(role, partial(drain.over, frontend), within)
        drain.look()

    def end_drain(self, role: Role) -> None:
        """Leave open connections alone again."""
        self._drains.pop(role, None)
        for frontend in self._frontends.values():
            frontend.end_drain(role)

    def cut(self, role: Role) -> None:
        """Close the open connections with a reset."""
        for frontend in self.all_frontends:
            frontend.cut(role)

    def _retired(self, frontend: Frontend, role: Role) -> None:
        """No connection of the role is left in a frontend that is not wanted any more."""
        roles = self._retiring[frontend]
        roles.discard(role)
        if role in self._drains:
            self._drains[role].over(frontend)
        if not roles:
            del self._retiring[frontend]
            frontend.close()
            for drain in self._drains.values():
                drain.over(frontend)


class _WholeDrain:
    """The drain of one instance over all frontends; `left` are those in which it is not over."""

    def __init__(self, role: Role, when_drained: Callable[[], None]) -> None:
        self.tally = DrainTally()
        self._role = role
        self.left: set[Frontend] = set()
        self._when_drained: Callable[[], None] | None = when_drained

    def over(self, frontend: Frontend) -> None:
        """It is over in this one."""
        if frontend in self.left:
            self.tally += tally_of(frontend, self._role)
        self.left.discard(frontend)
        self.look()

    def look(self) -> None:
        """Call back, once, when it is over in all."""
        if not self.left and self._when_drained is not None:
            when_drained, self._when_drained = self._when_drained, None
            when_drained()
