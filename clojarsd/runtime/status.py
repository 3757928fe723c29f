"""The current picture of the pair; wakes whoever waits for a change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from clojarsd.core.names import Role
from clojarsd.core.view import DaemonView, FrontendView, InstanceView, PairView


class Viewed(Protocol):
    """A frontend, as far as the picture needs it."""

    def view(self) -> FrontendView:
        """The frontend now: counters that change with every connection are read when somebody looks."""


@dataclass
class Board:
    """Holds what the parts of the daemon publish about themselves. Lives as long as the daemon; nothing to close."""

    service: str
    daemon: DaemonView
    current_release: Callable[[], str | None]
    frontends: Mapping[str, Viewed] = field(default_factory=dict)
    _instances: dict[Role, InstanceView] = field(default_factory=dict)
    _changed: set[asyncio.Future[None]] = field(default_factory=set)

    def publish(self, view: InstanceView) -> None:
        """Replace what is seen of one instance."""
        self._instances[view.role] = view
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again; for facts that are read and not published."""
        waiting, self._changed = self._changed, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def instance(self, role: Role) -> InstanceView:
        """One instance, as last published."""
        return self._instances[role]

    def view(self) -> PairView:
        """Everything at this moment."""
        frontends = {name: frontend.view() for name, frontend in self.frontends.items()}
        return PairView(self.service, self.daemon, dict(self._instances), frontends, self.current_release())

    async def until(self, predicate: Callable[[PairView], bool]) -> PairView:
        """The first picture for which the predicate holds, beginning with the present one; waits without end."""
        while not predicate(view := self.view()):
            await self.change()
        return view

    async def change(self) -> None:
        """Return after the next change."""
        future = asyncio.get_running_loop().create_future()
        self._changed.add(future)
        try:
            await future
        finally:
            self._changed.discard(future)
