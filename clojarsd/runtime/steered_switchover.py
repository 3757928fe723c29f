"""What becomes of steered connections of a frontend when new ones go elsewhere, where its settings say something.

The relay's part is in switchover.py. A part of `SteeredFrontend`, set apart; it has its owner look at connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Role
from clojarsd.runtime.drain import LOOKS_PER_IDLE_TIME

SECOND_LOOK = 1.0
"""Seconds after which it is looked once more for connections of an instance that is down: it may have accepted some
that were on their way to it."""
SHORTEST_PAUSE = 0.05
"""Seconds between two looks at those that are to go home."""


class Resetting(Protocol):
    """What can reset steered connections; see `runtime.steered_connections.SteeredConnections`."""

    def reset(
        self, frontend: str, role: Role, why: str, *, silent_for: float | None = None, then: Callable[[int], None]
    ) -> None:
        """Reset an instance's connections of a frontend, or those that are silent; `then` is told how many are left."""


class SteeredSwitchover:
    """Made and closed by a `SteeredFrontend`, which calls it when something has changed.

    Args:
        connections: None: there are none.
    """

    def __init__(self, connections: Resetting | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections = connections
        self._seen_to: dict[Role, asyncio.TimerHandle] = {}
        """The instances whose connections were reset because they are down, and the second look at each."""
        self._until: float | None = None
        """Loop time until when the backup's silent connections are reset, or None."""
        self._number = 0
        """Which time it is that they go home: what an earlier one has looked for means nothing."""
        self._next: asyncio.TimerHandle | None = None

    def look(
        self,
        plan: FrontendPlan,
        since: Mapping[Role, float | None],
        down: Collection[Role],
        *,
        is_paused: bool,
    ) -> None:
        """Reset what is open at an instance that is down, once, as soon as the other one can serve.

        Args:
            since: who may get connections, and since when.
            is_paused: whether new connections wait by order.
        """
        if not plan.moves_on_up:
            self._stay()
        can_come_back = plan.cuts_on_down and not is_paused
        for role in Role:
            is_due = can_come_back and role in down and since[role] is None and since[role.other] is not None
            if is_due and role not in self._seen_to:
                self._cut(plan.name, role)
                self._seen_to[role] = self._loop.call_later(SECOND_LOOK, self._cut, plan.name, role)
            elif not is_due and role in self._seen_to:
                self._seen_to.pop(role).cancel()

    def _cut(self, name: str, role: Role) -> None:
        if self._connections is not None:
            self._connections.reset(name, role, "it is down", then=lambda left: None)

    # Home.

    def route_changed(self, plan: FrontendPlan, active: Role | None) -> None:
        """When new connections go to the primary, those of the backup are to follow, where the settings want that.

        For `drain` seconds those are reset that have been silent for `drain_idle` and are owed nothing, so that their
        clients connect anew; after that they are left alone.
        """
        self._stay()
        if active is Role.PRIMARY and plan.moves_on_up and self._connections is not None:
            self._until = self._loop.time() + plan.drain
            self._number += 1
            self._sweep(plan, self._number)

    def _sweep(self, plan: FrontendPlan, number: int) -> None:
        def then(left: int) -> None:
            if self._until is None or number != self._number:
                return
            pause = max(plan.drain_idle / LOOKS_PER_IDLE_TIME, SHORTEST_PAUSE)
            if not left or self._loop.time() + pause >= self._until:
                self._stay()
            else:
                self._next = self._loop.call_later(pause, self._sweep, plan, number)

        self._next = None
        assert self._connections is not None
        why = "new connections go to the primary again"
        self._connections.reset(plan.name, Role.BACKUP, why, silent_for=plan.drain_idle, then=then)

    def _stay(self) -> None:
        self._until = None
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def close(self) -> None:
        """Leave all connections as they are."""
        self._stay()
        for second in self._seen_to.values():
            second.cancel()
        self._seen_to.clear()
