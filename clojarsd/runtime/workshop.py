"""What a rollout works with: builder, checkouts, commands of gates, by the settings as they are then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clojarsd.core.api_rollout import DeployOrder
from clojarsd.core.errors import Failed, Refused
from clojarsd.core.identity import RolloutMark
from clojarsd.core.launch import World, placeholder_values
from clojarsd.core.names import Role
from clojarsd.core.placeholders import expand
from clojarsd.core.preflight import tools_of
from clojarsd.core.rollout_facts import GATES, Wish
from clojarsd.core.settings import DeploySettings, Settings
from clojarsd.core.settings_types import CheckKind
from clojarsd.runtime.class_data import ClassData
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.releases import Releases
from clojarsd.runtime.rollout_pair import Listen, PairOfRollout
from clojarsd.runtime.rollout_steps import RolloutSteps
from clojarsd.runtime.status import Board
from clojarsd.system.acting_as import Actor, actor_of
from clojarsd.system.build_command import Builder
from clojarsd.system.cgroup import Groups
from clojarsd.system.checkout import Checkouts
from clojarsd.system.family import still_taken
from clojarsd.system.git import Git
from clojarsd.system.hook_command import HookLauncher
from clojarsd.system.preflight import Preflight
from clojarsd.system.releases import Installed

RESOLVE_TIMEOUT = 60.0
"""Seconds in which the repository must say what a tag names."""
LOGS = "rollouts"
"""The directory in `log_dir` with the output of each rollout's commands."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """Makes what a rollout works with. Made by daemon.py; nothing to close.

    Attributes:
        settings: gives those in use.
        world: gives that of launches.
        archives: makes and removes class-data archives.
        share: gives the backup that part of the new connections, from 0 to 0.5, from now on; None: nothing beyond what
            the route says.
    """

    settings: Callable[[], Settings]
    world: Callable[[], World]
    launch: HookLauncher
    groups: Groups | None
    orders: Orders
    board: Board
    releases: Releases
    listen: Listen
    share: Callable[[float | None], None]
    archives: ClassData

    @property
    def deploy(self) -> DeploySettings | None:
        """The table [deploy] in use."""
        return self.settings().deploy

    def actor(self) -> Actor | None:
        """Whom the directories of releases and of builds belong to; None: who we are."""
        service = self.settings().service
        return actor_of(service.user, service.group) if self.world().becomes_user else None

    def log_of(self, id: str) -> Path:
        """The file with the output of the rollout's commands."""
        return self.settings().service.log_dir / LOGS / f"{id}.log"

    def steps(self, wish: Wish) -> RolloutSteps:
        """What carries the steps of the rollout out, by the settings as they are now.

        Raises:
            Failed: there is no table [deploy] any more.
        """
        settings = self.settings()
        deploy = settings.deploy
        if deploy is None:
            raise Failed("the configuration has no table [deploy] any more")
        builder = self._builder(wish.id, deploy)
        checkouts = self._checkouts(builder, deploy, deploy.step_timeout)
        instances = settings.instances
        pair = PairOfRollout(
            self.orders,
            self.board,
            wish.by,
            deploy.soak,
            lambda role: instances[role].start_timeout,
            self.listen,
        )
        return RolloutSteps(wish, deploy, builder, checkouts, self.releases, pair, self)

    async def preflight(self, cannot: str, deploy: DeploySettings, order: DeployOrder) -> None:
        """Return when nothing stands against a deploy.

        Raises:
            Refused: something does; every problem is told.
        """
        settings = self.settings()
        service, builds = settings.service, order.tag is not None
        needs = Preflight(
            service.user,
            self.actor(),
            deploy.work_dir if builds else None,
            deploy.link,
            service.log_dir,
            service.state_dir,
            deploy.min_free,
            tools_of(self._commands(settings, deploy, order)),
        )
        problems = [*await asyncio.to_thread(needs.problems), *await asyncio.to_thread(self._taken_ports)]
        if problems:
            raise Refused(f"{cannot}: {'; '.join(problems)}; nothing was done")
        try:
            if order.artifact is not None:
                await asyncio.to_thread(self.releases.store.checksum_of, Path(order.artifact))
            await self.releases.reserve()
        except (Failed, Refused) as error:
            raise Refused(f"{cannot}: {error}; nothing was done") from error

    def _taken_ports(self) -> list[str]:
        """Who has the ports of instances that do not run, a sentence for each instance. Blocks."""
        idle = {role: one for role, one in self.settings().instances.items() if self.board.instance(role).pid is None}
        taken = {role: still_taken({name: one.address(name) for name in one.ports}) for role, one in idle.items()}
        return [f"{role.value}: {text}" for role, text in taken.items() if text is not None]

    def _commands(
        self, settings: Settings, deploy: DeploySettings, order: DeployOrder
    ) -> Iterator[tuple[str, Sequence[str], str]]:
        """What a deploy runs: the step, the command, and the PATH that it gets."""
        world = self.world().environment
        path = deploy.environment.get("PATH", world.get("PATH", ""))
        if order.tag is not None:
            yield "checkout", ("git",), path
            yield "test", deploy.test if not order.skip_tests else (), path
            yield "build", deploy.build, path
        yield "smoke", deploy.smoke, path
        for gate in GATES:
            for command in getattr(deploy, gate.value):
                yield gate.value, command, path
        for role, instance in settings.instances.items():
            if instance.chroot is None:  # inside it the programs are others
                yield role.value, instance.command, instance.environment.get("PATH", world.get("PATH", ""))

    async def previous(self, cannot: str) -> str | None:
        """The release that the link names; None without a link, or with one that leads nowhere.

        Raises:
            Refused: it names something to which no rollout could come back.
        """
        try:
            current = await asyncio.to_thread(self.releases.store.current)
        except Failed as failed:
            raise Refused(f"{cannot}: {failed}; nothing was done") from failed
        if current.problem is None:
            return current.name
        deploy = self.deploy
        if deploy is not None and await asyncio.to_thread(deploy.link.exists):
            raise Refused(f"{cannot}: {current.problem}; nothing was done")
        return None

    async def found(self, release: str) -> Installed:
        """What there is under the name of a release; raises Failed or Refused."""
        return await asyncio.to_thread(self.releases.store.found, release)

    async def verify(self, release: str) -> None:
        """Return when the release is there, and what was installed; raises Failed."""
        checksum = self.releases.checksum_of(release)
        if checksum is not None:
            await asyncio.to_thread(self.releases.store.verify, release, checksum)

    async def resolve(self, id: str, deploy: DeploySettings, tag: str, known: str | None, *, force: bool) -> str:
        """The commit that the tag names in the repository.

        Args:
            known: what it named when it was deployed before; None: it never was.
            force: take another one for the same tag.

        Raises:
            Refused: there is no such tag, the repository cannot be read, or the tag has moved.
        """
        checkouts = self._checkouts(self._builder(id, deploy), deploy, RESOLVE_TIMEOUT)
        assert checkouts is not None
        try:
            found = await checkouts.resolve(tag, known)
        except Refused as refused:
            raise Refused(f"cannot deploy {tag}: {refused}; nothing was done") from refused
        if found.moved is not None and not force:
            raise Refused(f"cannot deploy {tag}: {found.moved}; nothing was done; --force deploys what it names now")
        return found.commit

    def gate_command(self, words: Sequence[str], release: str | None) -> tuple[str, ...]:
        """The words with the placeholders of the backup, and of that release."""
        settings = self.settings()
        deploy = settings.deploy
        assert deploy is not None
        releases = {"current": str(deploy.link)}
        if release is not None:
            releases["release"] = str(deploy.releases / release)
        values = placeholder_values(Role.BACKUP, settings.instances[Role.BACKUP], settings.service, releases)
        return tuple(expand(word, values) for word in words)

    def look(self) -> Sequence[str]:
        """Commands by which people can look at the backup itself."""
        settings = self.settings()
        backup = settings.instances[Role.BACKUP]
        checks = [one for one in settings.checks if one.kind is CheckKind.HTTP and one.port in backup.ports]
        paths = {one.port: one.path for one in reversed(checks) if one.port is not None}
        names = list(paths) or [name for name in backup.ports if name == "http"]
        commands = [f"curl -i http://{backup.address(name)}{paths.get(name, '/')}" for name in names]
        ports = ", ".join(f"{name} {backup.address(name)}" for name in backup.ports)
        return (*commands, f"backup listens at {ports}")

    @contextmanager
    def sharing(self, percent: int) -> Iterator[None]:
        """While it is entered, the backup gets so many percent of the new connections."""
        if percent == 0:
            yield  # and a share that an operator has ordered stays
            return
        self.share(percent / 100)
        try:
            yield
        finally:
            self.share(None)

    async def archive(self, role: Role) -> str:
        """Make the class-data archive of what the instance runs; a sentence about it."""
        return await self.archives.told(role)

    async def forget_archive(self, release: str) -> None:
        """Remove the class-data archive of a release that was removed; raises Failed."""
        await self.archives.remove(release)

    async def in_use(self) -> frozenset[str]:
        """The releases that processes have open."""
        return frozenset(await asyncio.to_thread(self.releases.store.in_use))

    def _builder(self, id: str, deploy: DeploySettings) -> Builder:
        settings, world = self.settings(), self.world()
        service = settings.service
        values = {"state_dir": str(service.state_dir), "log_dir": str(service.log_dir)}
        return Builder(
            self.launch,
            RolloutMark(str(service.state_dir), id),
            self.log_of(id),
            world,
            service.user,
            service.group,
            {name: expand(text, values) for name, text in deploy.environment.items()},
            self.groups,
            deploy.memory_max,
        )

    def _checkouts(self, builder: Builder, deploy: DeploySettings, timeout: float) -> Checkouts | None:
        if deploy.work_dir is None or not deploy.repository:
            return None
        return Checkouts(Git(builder, deploy.repository, "checkout", timeout), deploy.work_dir, self.actor())
