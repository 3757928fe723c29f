"""The configuration that the daemon acts by, and how another one reaches every part of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import structlog

from clojarsd.core.addresses import is_number
from clojarsd.core.errors import BadSettings, Failed, Refused
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.history import EventName
from clojarsd.core.launch import World
from clojarsd.core.names import Role
from clojarsd.core.reload import compare, taken_until_a_start
from clojarsd.core.saved import InForce
from clojarsd.core.settings import Settings
from clojarsd.core.settings_json import settings_json, settings_toml
from clojarsd.runtime.health_watch import PlannedCheck
from clojarsd.runtime.plans import Plans
from clojarsd.runtime.unit_parts import History, Plan
from clojarsd.system.threads import Threads

log = structlog.get_logger()

T = TypeVar("T")

LOOKUP_TIMEOUT = 30.0
"""Seconds that a name service may take; then what was found last holds, and it is asked again later."""
READ_TIMEOUT = 5.0
"""Seconds that the file, or a look at accounts, may take: a disk that hangs must not hold up every order."""


class Unit(Protocol):
    """A unit whose plan can change; see `runtime.unit_runner.UnitRunner`."""

    @property
    def in_force(self) -> InForce:
        """What of the settings its process is bound to."""

    @property
    def pid(self) -> int | None:
        """The number of its process, or None without one."""

    def replan(self, plan: Plan) -> None:
        """Live by another plan from now on."""


class Watch(Protocol):
    """The checks of a unit; see `runtime.health_watch.HealthWatch`."""

    def replan(self, checks: Sequence[PlannedCheck]) -> None:
        """Make these checks from the next beginning on."""


class Frontends(Protocol):
    """All frontends; see `runtime.relay_fleet.RelayFleet`."""

    async def configure(self, plans: Iterable[FrontendPlan], workers: int | None = None) -> None:
        """Have these frontends and no others, in so many relay processes (None: as many as there are).

        Raises Failed when one cannot listen, and changes nothing then.
        """


class Configuration:
    """The settings in use, as long as the daemon lives, which closes it; `run` belongs to its task group.

    Args:
        path: the file, which is read again for every reload.
        read: gives its settings, and blocks; raises BadSettings.
        look: gives the world of launches as that user; raises Failed.
        foreign: what settings name and this machine has not, a sentence each.
    """

    def __init__(
        self,
        path: Path,
        plans: Plans,
        history: History,
        read: Callable[[Path], Settings],
        look: Callable[[str], World],
        foreign: Callable[[Settings], Sequence[str]] = lambda settings: (),
    ) -> None:
        self._path = path
        self._plans = plans
        self._history = history
        self._read = read
        self._look = look
        self._foreign = foreign
        self._units: Mapping[Role, Unit]
        self._watches: Mapping[Role, Watch]
        self._frontends: Frontends
        self._applied: Callable[[Settings], None]
        self._changing = asyncio.Lock()
        self._reading = Threads("config")
        self._looking_up = Threads("names")
        self._moved = asyncio.Event()
        self.why_not: Callable[[Settings, Settings], str | None] = lambda old, new: None
        """Says what stands against taking the second for the first just now; set by the owner."""

    def attach(
        self,
        units: Mapping[Role, Unit],
        watches: Mapping[Role, Watch],
        frontends: Frontends,
        applied: Callable[[Settings], None],
    ) -> None:
        """Take the parts that live by the configuration; `applied` is called with each new one for all others."""
        self._units, self._watches, self._frontends, self._applied = units, watches, frontends, applied

    @property
    def plans(self) -> Plans:
        """The plans by the settings in use."""
        return self._plans

    async def run(self) -> NoReturn:
        """Let the frontends follow instances to other ports, and hosts to other addresses, until cancelled."""
        while True:
            if not await self._has_moved():
                continue
            async with self._changing:
                try:
                    await self._frontends.configure(await self._frontend_plans(self._plans))
                except Failed as failed:
                    log.error("frontends_not_moved", reason=str(failed))

    async def _has_moved(self) -> bool:
        """Wait until an instance was launched, or names were looked up again. Whether that may change frontends."""
        hosts, pause = self._plans.named_hosts({role: self._in_force(self._plans, role) for role in Role})
        try:
            async with asyncio.timeout(pause):
                await self._moved.wait()
        except TimeoutError:
            return await self._look_up(hosts)
        self._moved.clear()
        return True

    async def _look_up(self, hosts: Iterable[str]) -> bool:
        """Look the names up, outside of all else that may be waited for. Whether one has moved."""
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT):
                return await self._looking_up.run(self._plans.names.refresh, hosts)
        except TimeoutError:
            log.warning("hosts_not_found_in_time", hosts=sorted(hosts), waited_s=LOOKUP_TIMEOUT)
            return False

    def close(self) -> None:
        """Read no more; what hangs is left behind."""
        self._reading.close()
        self._looking_up.close()

    def launched(self, role: Role) -> None:
        """A process was launched or adopted: what it is bound to is where it is checked and connected to."""
        self._watches[role].replan(self._plans.checks(role, self._units[role].in_force))
        self._moved.set()

    async def reload(self, by: str) -> Sequence[str]:
        """Act by the file as it is now; a sentence for each change.

        Raises:
            Refused: the file cannot be used, or not by a running daemon; nothing was changed.
        """
        async with self._changing:
            return await self._reload(by)

    async def refresh(self, by: str) -> None:
        """The same, for an order that is to be carried out by the configuration as it is now."""
        sentences = await self.reload(by)
        log.debug("configuration_refreshed", changes=list(sentences))

    def show(self) -> dict[str, Any]:
        """All of it with its defaults, as JSON; secrets are masked."""
        return settings_json(self._plans.settings)

    def show_toml(self) -> str:
        """The same, as the text of such a file."""
        return settings_toml(self._plans.settings)

    async def _reload(self, by: str) -> Sequence[str]:
        old = self._plans.settings
        try:
            new = await self._apart(self._read, self._path)
        except BadSettings as bad:
            raise Refused(f"cannot reload: {'; '.join(bad.problems)}; nothing was changed") from bad
        changes = compare(old, new)
        if not changes.every:
            return changes.sentences()
        if why := changes.refusal or taken_until_a_start(new, self._running()) or self.why_not(old, new):
            raise Refused(why)
        plans = await self._prepare(new)
        self._plans = plans
        for role in Role:
            self._watches[role].replan(plans.checks(role, self._in_force(plans, role)))
            self._units[role].replan(plans.unit(role, partial(self._bound, role)))
        self._applied(new)
        if any(table.resolve is not None and not is_number(table.host) for table in new.instances.values()):
            self._moved.set()  # how long to wait for the next look may be another
        known = self._foreign(old)
        foreign = [one for one in self._foreign(new) if one not in known]
        sentences = (*changes.sentences(tuple(self._running())), *foreign)
        self._history.record(
            EventName.CONFIG_RELOADED, "the configuration has changed", None, by, changes=list(sentences)
        )
        log.info("configuration_reloaded", by=by, changes=list(sentences))
        return sentences

    async def _prepare(self, new: Settings) -> Plans:
        """Do what can fail: after this everything else is only told."""
        try:
            world = self._plans.world
            if new.service.user != self._plans.settings.service.user:
                seen = await self._apart(self._look, new.service.user)
                world = replace(seen, soft_nofile=world.soft_nofile)
            plans = replace(self._plans, settings=new, world=world)
            await self._frontends.configure(await self._frontend_plans(plans), new.service.relay_workers)
        except Failed as failed:
            raise Refused(f"cannot reload: {failed}; nothing was changed") from failed
        return plans

    async def _apart(self, act: Callable[..., T], *arguments: object) -> T:
        """What the act gives, which may hang; then it is not waited for, not at the daemon's end either."""
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return await self._reading.run(act, *arguments)
        except TimeoutError:
            raise Refused(
                f"cannot reload: {self._path}: it could not be read within {READ_TIMEOUT:g} s; nothing was changed"
            ) from None

    async def _frontend_plans(self, plans: Plans) -> Iterable[FrontendPlan]:
        """The frontends before what runs now; in a thread if a host is a name, which is looked up."""
        in_force = {role: self._in_force(plans, role) for role in Role}
        if all(is_number(kept.host) for kept in in_force.values()):
            return plans.frontends(in_force).values()
        return (await asyncio.to_thread(plans.frontends, in_force)).values()

    def _running(self) -> dict[Role, InForce]:
        """What each process is bound to; another one may have come or gone after every wait."""
        return {role: unit.in_force for role, unit in self._units.items() if unit.pid is not None}

    def _bound(self, role: Role) -> InForce:
        return self._units[role].in_force

    def _in_force(self, plans: Plans, role: Role) -> InForce:
        """What its process is bound to, or what the next one will be by these plans."""
        return self._running().get(role) or plans.in_force(role)
