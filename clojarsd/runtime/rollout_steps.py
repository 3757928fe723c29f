"""The steps of one rollout: what is checked out, built, installed, run as a gate, recorded and removed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from clojarsd.core.errors import ClojarsdError, CommandFailed
from clojarsd.core.history import stamp
from clojarsd.core.names import Role
from clojarsd.core.releases import (
    BecameCurrent,
    ProvedBad,
    ProvedGood,
    WasInstalled,
    WasRemoved,
    first_names,
    free_name,
)
from clojarsd.core.rollout import Relaunch
from clojarsd.core.rollout_facts import GATES, Rollout, StepName, Wish
from clojarsd.core.rollout_view import Question
from clojarsd.core.settings import DeploySettings
from clojarsd.runtime.releases import Releases
from clojarsd.runtime.rollout_pair import PairOfRollout
from clojarsd.runtime.rollout_work import RolloutWork
from clojarsd.system.acting_as import acting_as
from clojarsd.system.artifact import find_artifact
from clojarsd.system.build_command import Builder
from clojarsd.system.checkout import Checkouts, clean
from clojarsd.system.releases import Installed

log = structlog.get_logger()

Facts = Mapping[str, str | None]


class Surroundings(Protocol):
    """What the steps need of the daemon besides the pair."""

    def gate_command(self, words: Sequence[str], release: str | None) -> tuple[str, ...]:
        """The words with the placeholders of the backup, and that release; raises Failed."""

    def look(self) -> Sequence[str]:
        """Commands by which people can look at the backup itself."""

    def sharing(self, percent: int) -> AbstractContextManager[None]:
        """While it is entered, the backup gets so many percent of the new connections."""

    async def archive(self, role: Role) -> str:
        """Make the class-data archive of what the instance runs; a sentence about it. Raises Failed or Refused."""

    async def forget_archive(self, release: str) -> None:
        """Remove the class-data archive of a release that was removed; raises Failed."""

    async def in_use(self) -> frozenset[str]:
        """The releases that processes have open."""


class RolloutSteps:
    """Carries the steps of one rollout out, by the settings that it began with. Made by the deployer's maker."""

    def __init__(
        self,
        wish: Wish,
        deploy: DeploySettings,
        builder: Builder,
        checkouts: Checkouts | None,
        releases: Releases,
        pair: PairOfRollout,
        around: Surroundings,
    ) -> None:
        self._wish = wish
        self._deploy = deploy
        self._builder = builder
        self._checkouts = checkouts
        self._releases = releases
        self._pair = pair
        self._around = around

    async def do(self, step: StepName, rollout: Rollout, work: RolloutWork) -> Facts:
        """Carry out a step without an effect on the pair; what it has found out."""
        match step:
            case StepName.CHECKOUT:
                await self._check_out()
            case StepName.TEST | StepName.BUILD:
                command = self._deploy.test if step is StepName.TEST else self._deploy.build
                await self._run(step, command, rollout, work)
            case StepName.INSTALL:
                return {"release": await self._install()}
            case StepName.SMOKE:
                await self._run(step, self._deploy.smoke, rollout, work)
            case StepName.ARCHIVE:
                await self._archive(work)
            case StepName.SOAK:
                await self._pair.watch_both()
            case StepName.GOOD:
                assert rollout.release is not None
                await self._record(ProvedGood(rollout.release, _now(), self._wish.id))
            case StepName.PRUNE:
                await self._prune(work)
            case _:
                assert step in GATES
                for command in getattr(self._deploy, step.value):
                    await self._run(step, command, rollout, work)
        return {}

    async def switch(self, release: str | None) -> None:
        """Let the link name the release; raises Failed when it is not what was installed."""
        store = self._releases.store
        if release is None:
            await self._releases.change(store.unlink_current)
            return
        checksum = self._releases.book.checksum_of(release)

        def switch() -> None:
            if checksum is not None:
                store.verify(release, checksum)
            store.switch(release)

        current = BecameCurrent(release, _now(), self._wish.by, self._wish.id)
        await self._releases.change(switch, lambda _: current)

    async def relaunch(self, move: Relaunch, work: RolloutWork) -> None:
        """Restart an instance; raises Failed."""
        await self._pair.relaunch(move, work)

    async def question(self, rollout: Rollout) -> Question:
        """What is to be asked."""
        latest = stamp(datetime.now(UTC) + timedelta(seconds=self._deploy.approval_timeout))
        # asked before, by a daemon that has died: its deadline holds, unless the clock was set back since
        until = latest if rollout.until is None else min(rollout.until, latest)
        return Question(until, tuple(self._around.look()), await self._changes(rollout))

    def sharing(self) -> AbstractContextManager[None]:
        """While it is entered, the backup gets its share of the new connections."""
        return self._around.sharing(self._deploy.share)

    async def until_answered(self, is_answered: Callable[[], bool]) -> None:
        """Wait for the answer; raises Failed when the backup falls over."""
        await self._pair.until_answered(is_answered)

    async def ended(self, rollout: Rollout) -> None:
        """Record what a release has turned out to be, and remove what was needed to make it."""
        assert rollout.outcome is None
        back, release = rollout.back, rollout.release
        is_new = release != self._wish.previous and StepName.BACKUP in rollout.begun
        try:
            if release is not None and is_new and back is not None and not back.is_abort:
                await self._record(ProvedBad(release, back.why, _now(), self._wish.id))
        finally:
            if self._deploy.work_dir is not None and self._checkouts is not None:
                await clean(self._deploy.work_dir, (), self._checkouts.actor)

    # Steps.

    @property
    def _directory(self) -> Path:
        """Where commands run: in the checkout, or beside the releases where there is none."""
        if self._deploy.work_dir is not None and StepName.CHECKOUT in self._wish.steps:
            return self._deploy.work_dir / self._wish.id
        return self._deploy.releases

    async def _check_out(self) -> None:
        assert self._checkouts is not None
        assert self._wish.tag is not None
        assert self._wish.commit is not None
        await self._checkouts.checkout(self._wish.tag, self._wish.commit, self._directory)

    async def _run(self, step: StepName, command: Sequence[str], rollout: Rollout, work: RolloutWork) -> None:
        outcome = await self._builder.run(
            step.value,
            self._around.gate_command(command, rollout.release),
            self._directory,
            timeout=self._deploy.step_timeout,
            environment=self._environment(rollout),
            on_output=work.show_output,
        )
        if outcome.failure is not None:
            raise CommandFailed(outcome.failure, outcome.last_lines)

    def _environment(self, rollout: Rollout) -> Mapping[str, str]:
        """What commands are told of the rollout, where it is known."""
        releases = self._deploy.releases
        known = {
            "CLOJARSD_ROLLOUT_KIND": self._wish.kind.value,
            "CLOJARSD_TAG": self._wish.tag,
            "CLOJARSD_COMMIT": self._wish.commit,
            "CLOJARSD_RELEASE": rollout.release and str(releases / rollout.release),
            "CLOJARSD_PREVIOUS": self._wish.previous and str(releases / self._wish.previous),
        }
        return {name: value for name, value in known.items() if value is not None}

    async def _install(self) -> str:
        wish = self._wish
        if wish.artifact is not None:
            source = Path(wish.artifact)
        else:
            source = await asyncio.to_thread(self._find_artifact)
        store = self._releases.store
        checksum = await asyncio.to_thread(store.checksum_of, source)
        existing = await asyncio.to_thread(self._existing, source.name, checksum)
        name = free_name(source.name, wish.tag, checksum, existing, self._deploy.current)

        def installed(made: Installed) -> WasInstalled:
            return WasInstalled(
                name, wish.tag, wish.commit, made.checksum, made.kind, made.size, wish.by, _now(), wish.id
            )

        await self._releases.change(lambda: store.install(source, name), installed)
        return name

    def _existing(self, artifact: str, checksum: str) -> dict[str, str | None]:
        """The checksum of each name in the directory that the release could get; None for all others.

        The disk is asked, and not the log: something may have been changed, or not been recorded because clojarsd died.
        """
        store, wanted = self._releases.store, first_names(artifact, self._wish.tag, checksum)
        existing: dict[str, str | None] = dict.fromkeys(store.taken())
        for name in existing.keys() & set(wanted) - {self._deploy.current}:
            with suppress(ClojarsdError):  # what cannot be read is something else
                existing[name] = store.checksum(name)
        return existing

    def _find_artifact(self) -> Path:
        with acting_as(self._releases.actor):
            return find_artifact(self._directory, self._deploy.artifact)

    async def _archive(self, work: RolloutWork) -> None:
        """An archive makes starts faster, and is no reason to do without a release."""
        try:
            work.note(await self._around.archive(Role.BACKUP), Role.BACKUP)
        except ClojarsdError as error:
            work.note(f"no class-data archive: {error}", Role.BACKUP)
            log.warning("archive_not_made", reason=str(error))

    async def _changes(self, rollout: Rollout) -> tuple[str, ...]:
        """What lies between the former release and this one, as far as the repository tells."""
        book = self._releases.book
        former, new = book.release(self._wish.previous), book.release(rollout.release)
        if self._checkouts is None or former is None or new is None:
            return ()
        old, now = former.installed, new.installed
        if old.commit is None or now.commit is None:
            return ()
        changes = await self._checkouts.changes(old.commit, now.commit)
        return tuple(changes.text(old.tag or old.name, now.tag or now.name).splitlines()) if changes is not None else ()

    async def _prune(self, work: RolloutWork) -> None:
        """Remove what is not needed; what cannot be removed stays for the next time, and is told."""
        store = self._releases.store
        current = await asyncio.to_thread(store.current)
        protected = {*await self._around.in_use(), *([current.name] if current.name is not None else [])}
        for name in self._releases.book.to_prune(self._deploy.keep, protected):
            try:
                await self._releases.change(partial(store.remove, name), lambda _, name=name: WasRemoved(name, _now()))  # type: ignore[misc]
                await self._around.forget_archive(name)
            except ClojarsdError as error:
                log.warning("release_not_removed", release=name, reason=str(error))
                work.note(str(error))
            else:
                work.note(f"removed {name}")

    async def _record(self, record: ProvedGood | ProvedBad) -> None:
        """Put it into the release log."""
        await self._releases.record(record)


def _now() -> str:
    return stamp(datetime.now(UTC))
