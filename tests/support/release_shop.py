"""Rollouts over a real repository, real directories and a real release log; the pair itself is on paper."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from clojarsd.core.api_rollout import DeployOrder, RollbackOrder
from clojarsd.core.errors import Refused
from clojarsd.core.launch import World
from clojarsd.core.names import Role
from clojarsd.core.releases import BecameCurrent, ProvedGood, ReleaseKind, WasInstalled
from clojarsd.core.rollout_facts import Rollout
from clojarsd.core.settings import Settings, parse_settings
from clojarsd.runtime.class_data import ClassData
from clojarsd.runtime.deployer import Deployer
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.plans import Plans
from clojarsd.runtime.releases import Releases
from clojarsd.runtime.rollout_record import RolloutRecord
from clojarsd.runtime.rollouts import Rollouts
from clojarsd.runtime.workshop import Workshop
from clojarsd.system.own_connections import OwnConnections
from clojarsd.system.probe import Prober
from clojarsd.system.process import Processes
from clojarsd.system.sockets import free_ports
from tests.support.repositories import Repository
from tests.support.rollouts import AT, PaperPair, PaperSteps, SlowJournals, make_board, serving
from tests.support.units import FakeHistory
from tests.support.waiting import PATIENCE


class Shop:
    """Rollouts over directories of the test's own; what a rollout does to the pair is on paper."""

    def __init__(self, directory: Path, *, table: bool = True, **keys: Any) -> None:
        self.directory = directory
        self.ports = dict(zip(Role, free_ports(2), strict=True))
        for name in ("releases", "builds", "state", "log"):
            (directory / name).mkdir()
        self.repository = Repository(directory / "repository")
        self.commit = self.repository.commit("first", app="1")
        self.repository.tag("1.0.0")
        self.settings = self.parse(keys if table else None)
        self.world = World({"PATH": os.environ["PATH"]}, becomes_user=False, soft_nofile=1024)
        self.board = make_board(None)
        self.releases = Releases(directory / "state" / "releases.jsonl", lambda: self.settings.deploy, lambda: None)
        self.journals = SlowJournals(directory / "state" / "rollouts", directory / "log" / "rollouts")
        orders = Orders({}, self.board, lambda failures: 0.0, self._nothing, self._nothing)
        self.workshop = Workshop(
            lambda: self.settings,
            lambda: self.world,
            Processes().launch,
            None,
            orders,
            self.board,
            self.releases,
            lambda role: never(role),
            lambda part: None,
            ClassData(self.board, lambda: Plans(self.settings, self.world, Prober(OwnConnections())), never),
        )
        self.steps = PaperSteps(PaperPair(None, None, self.board))
        self.deployer = Deployer(
            RolloutRecord(self.journals, self.board, FakeHistory()),
            self.board,
            lambda wish: self.steps,
            lambda: self.steps.pair.link,
            str,
            self._nothing,
        )
        self.rollouts = Rollouts(self.deployer, self.releases, self.board, self.workshop, self.journals.free_id)

    def parse(self, keys: dict[str, Any] | None) -> Settings:
        text = f"""
[service]
user = "{os.geteuid()}"
runtime_dir = "{self.directory}/run"
state_dir = "{self.directory}/state"
log_dir = "{self.directory}/log"
[app]
command = ["true"]
[instances.primary]
ports = {{ http = {self.ports[Role.PRIMARY]} }}
[instances.backup]
ports = {{ http = {self.ports[Role.BACKUP]} }}
"""
        if keys is not None:
            table: dict[str, Any] = {
                "repository": str(self.repository.path),
                "work_dir": str(self.directory / "builds"),
                "releases": str(self.directory / "releases"),
                "current": "current.jar",
                "test": ["true"],
                "build": ["true"],
                "min_free": "1B",
                **keys,
            }
            text += "[deploy]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in table.items())
        return parse_settings(text, "x")

    async def runs(self, release: str) -> None:
        """Both instances serve with it, and the link names it."""
        (self.directory / "releases" / release).write_text(release)
        await asyncio.to_thread(self.releases.store.switch, release)
        for role in Role:
            self.board.publish(serving(role, release))

    async def installed(self, *releases: str, good: bool = True) -> None:
        """The release log knows them, as they came one after the other."""
        for name in releases:
            path = self.directory / "releases" / name
            if not path.exists():
                path.write_text(name)
            tag = name.removeprefix("app-").removesuffix(".jar")
            found = await asyncio.to_thread(self.releases.store.found, name)
            await self.releases.record(
                WasInstalled(name, tag, self.commit, found.checksum, ReleaseKind.FILE, 1, "ann", AT, tag)
            )
            await self.releases.record(BecameCurrent(name, AT, "ann", tag))
            if good:
                await self.releases.record(ProvedGood(name, AT, tag))

    async def begun(self, order: DeployOrder | RollbackOrder) -> Rollout:
        """What the order has begun, which goes no further."""
        by = "ann"
        act = self.rollouts.deploy(order, by) if isinstance(order, DeployOrder) else self.rollouts.rollback(order, by)
        async with asyncio.timeout(PATIENCE):
            work = await act
        assert work is self.rollouts.work
        view = self.rollouts.view
        assert view is not None
        return view.rollout

    async def refusal(self, order: DeployOrder | RollbackOrder) -> str:
        with pytest.raises(Refused) as caught:
            await self.begun(order)
        assert self.deployer.why_busy() is None
        assert self.rollouts.under_way is None
        return str(caught.value)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            task = group.create_task(self.deployer.run())
            yield
            task.cancel()

    def close(self) -> None:
        self.releases.close()
        self.journals.close()

    async def _nothing(self, *_: object) -> None:
        """Nothing of it matters here."""


def never(*_: object) -> NoReturn:
    raise AssertionError("nothing is launched here")


def toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


@asynccontextmanager
async def open_shop(path: Path, **how: Any) -> AsyncIterator[Shop]:
    """Such a shop in a directory that is made if need be; `how` are keys of the table, or `table=False` for none."""
    path.mkdir(exist_ok=True)
    shop = Shop(path, **how)
    try:
        yield shop
    finally:
        shop.close()
