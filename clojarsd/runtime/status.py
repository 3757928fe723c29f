"""The current picture of the pair; wakes whoever waits for a change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from clojarsd.core.names import Role
from clojarsd.core.releases import other_release
from clojarsd.core.rollout_view import RolloutView
from clojarsd.core.view import DaemonView, FrontendView, InstanceView, PairView


class Viewed(Protocol):
    """A frontend, as far as the picture needs it."""

    def view(self) -> FrontendView:
        """The frontend now: counters that change with every connection are read when somebody looks."""


class Used(Protocol):
    """What an instance uses."""

    @property
    def pss_bytes(self) -> int | None:
        """Its share of memory; None when that was not measured."""

    @property
    def rss_bytes(self) -> int:
        """Its memory with all that it shares."""

    @property
    def cpu_seconds(self) -> float:
        """Of processor time so far."""


@dataclass
class Board:
    """Holds what the parts of the daemon publish about themselves. Lives as long as the daemon; nothing to close.

    Attributes:
        relay_pid, relay_pids, usage, rollout: read when somebody looks, as the frontends are.
        previous_release: gives the release that a rollback goes to from this current one; read as the current one is.
        runs: gives what the process of an instance really runs, from what it was launched with.
        look: to be awaited before a picture that people are shown: brings up to date what must be asked for.
    """

    service: str
    daemon: DaemonView
    current_release: Callable[[], str | None]
    frontends: Mapping[str, Viewed] = field(default_factory=dict)
    relay_pid: Callable[[], int | None] = lambda: None
    relay_pids: Callable[[], tuple[int, ...]] = tuple
    usage: Callable[[Role], Used | None] = lambda role: None
    rollout: Callable[[], RolloutView | None] = lambda: None
    previous_release: Callable[[str | None], str | None] = lambda current: None
    runs: Callable[[Role, str | None], str | None] = lambda role, launched_with: launched_with
    look: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)
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
        daemon = replace(self.daemon, relay_pid=self.relay_pid(), relay_pids=self.relay_pids())
        current, rollout = self.current_release(), self.rollout()
        is_told = rollout is not None and rollout.is_under_way  # that they differ for a while
        instances = {role: self._with_usage(instance) for role, instance in self._instances.items()}
        if not is_told:
            instances = {role: self._with_release(instance, current) for role, instance in instances.items()}
        previous = self.previous_release(current)
        return PairView(self.service, daemon, instances, frontends, current, rollout, previous)

    def _with_release(self, instance: InstanceView, current: str | None) -> InstanceView:
        runs = self.runs(instance.role, instance.release) if instance.unit.has_process else None
        return replace(instance, other_release=other_release(instance.role, runs, current))

    def _with_usage(self, instance: InstanceView) -> InstanceView:
        used = self.usage(instance.role)
        if used is None:
            return instance
        memory = used.rss_bytes if used.pss_bytes is None else used.pss_bytes
        return replace(instance, memory_bytes=memory, cpu_seconds=used.cpu_seconds)

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
