"""Makes class-data archives: one release at a time, of the classes that an instance has loaded, in nobody's way."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import structlog

from clojarsd.core.class_data import ArchiveRecord, Jvm, Made, describe_made, dump_command, trial_command
from clojarsd.core.errors import ClojarsdError, Failed, Refused, reason_of
from clojarsd.core.history import stamp
from clojarsd.core.names import Role, UnitState
from clojarsd.core.settings_deploy import DeploySettings
from clojarsd.core.view import InstanceView
from clojarsd.runtime.plans import Plans
from clojarsd.runtime.status import Board
from clojarsd.runtime.work import Work
from clojarsd.system import class_data as disk
from clojarsd.system.acting_as import Actor, actor_of

log = structlog.get_logger()

ASK_TIMEOUT: Final = 30.0
"""Seconds in which a JVM must have answered; one in the middle of a long collection answers after it."""
TRIAL_TIMEOUT: Final = 60.0
_RUNS = (UnitState.READY, UnitState.DRAINING)


class Outcome(Protocol):
    """What became of a command: why it has failed, or None; and its last lines."""

    @property
    def failure(self) -> str | None:
        """Why it has failed, as a sentence."""

    @property
    def last_lines(self) -> tuple[str, ...]:
        """Of its output."""


class Runner(Protocol):
    """Runs commands as the service user; see `system.build_command.Builder.run`."""

    def __call__(self, step: str, command: Sequence[str], directory: Path, *, timeout: float) -> Awaitable[Outcome]:
        """Run one to its end."""


class ClassData:
    """Makes archives for as long as the daemon lives; nothing runs inside but what is asked for.

    Args:
        plans: what the settings make of the pair now.
        runner: gives what runs the commands of one archive.
    """

    def __init__(self, board: Board, plans: Callable[[], Plans], runner: Callable[[DeploySettings], Runner]) -> None:
        self._board = board
        self._plans = plans
        self._runner = runner
        self._busy: Role | None = None

    def order(self, role: Role, group: asyncio.TaskGroup) -> Work:
        """Make an archive in the group, and tell how it goes and what it is good for.

        Raises:
            Refused: none can be made now; nothing was done.
        """
        self._check(role)
        work = Work()
        group.create_task(self._carry_out(role, work))
        return work

    async def told(self, role: Role, note: Callable[[str], None] = lambda text: None) -> str:
        """Make it, and say what it is good for; see `make`."""
        seen = self._board.instance(role)
        made = await self.make(role, note)
        deploy = self._plans().settings.deploy
        is_used = deploy is not None and deploy.cds
        return describe_made(role.value, made, seen.start_seconds, had_one=seen.cds is True, is_used=is_used)

    async def _carry_out(self, role: Role, work: Work) -> None:
        try:
            sentence = await self.told(role, lambda text: work.note(role, text))
        except asyncio.CancelledError:
            work.fail(Failed(f"{_cannot(role)}: clojarsd is ending"))
            raise
        except ClojarsdError as error:
            work.fail(Failed(str(error)))  # what is refused only now has been tried
        else:
            work.finish(sentence)

    async def make(self, role: Role, note: Callable[[str], None] = lambda text: None) -> Made:
        """Make the archive of the release that the instance runs; it serves on meanwhile.

        When this is cancelled, what runs for it is ended; the archive there was before stays.

        Args:
            note: told what is done.

        Raises:
            Refused: none can be made for this instance.
            Failed: it was tried.
        """
        seen, deploy, pid = self._check(role)
        self._busy = role
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            made = await self._make(seen, deploy, pid, note, lambda: loop.time() - began)
        except Refused as refused:
            raise Refused(f"{_cannot(role)}: {refused}; nothing was changed") from refused
        except (Failed, OSError) as error:
            where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
            why = f"{where}{reason_of(error)}"
            raise Failed(f"{_cannot(role)}: {why}; {role.value} starts without it, as before") from error
        finally:
            self._busy = None
        log.info("class_data_made", role=role.value, path=made.path, bytes=made.bytes, took_s=round(made.seconds, 3))
        return made

    async def remove(self, release: str) -> None:
        """Remove the archive of a release that is removed.

        Raises:
            Failed: it cannot be removed.
        """
        settings = self._plans().settings
        if settings.deploy is not None:
            actor = self._actor()
            await asyncio.to_thread(disk.remove_archive, settings.deploy.releases, release, actor)

    def _actor(self) -> Actor | None:
        """Whom the directory of releases belongs to; None: who we are."""
        plans = self._plans()
        service = plans.settings.service
        return actor_of(service.user, service.group) if plans.world.becomes_user else None

    def _check(self, role: Role) -> tuple[InstanceView, DeploySettings, int]:
        """The instance, the settings and its process. Raises Refused."""
        seen, settings = self._board.instance(role), self._plans().settings
        why = None
        if self._busy is not None:
            why = f"one is being made, of {self._busy.value}"
        elif settings.deploy is None:
            why = "the configuration has no [deploy]"
        elif settings.instances[role].chroot is not None:
            why = "it runs in a root directory of its own (chroot)"
        elif seen.pid is None or seen.unit.state not in _RUNS:
            why = f"it is {seen.unit.state.value}, and only one that has started has its classes loaded"
        elif seen.release is None:
            why = "it was launched with no release: its command has no {release}"
        if why is not None or settings.deploy is None or seen.pid is None:
            raise Refused(f"{_cannot(role)}: {why}; nothing was done")
        return seen, settings.deploy, seen.pid

    async def _make(
        self,
        seen: InstanceView,
        deploy: DeploySettings,
        pid: int,
        note: Callable[[str], None],
        elapsed: Callable[[], float],
    ) -> Made:
        assert seen.release is not None
        actor = self._actor()
        release, jvm, classes = await asyncio.to_thread(_look, pid, deploy.releases / seen.release)
        note(f"has {len(classes)} classes loaded, of {jvm.java}")
        place = disk.Place.of(deploy.releases, seen.release)
        paths = await asyncio.to_thread(disk.stamps_of, jvm.entries)
        files = await asyncio.to_thread(disk.stamps_of, disk.jvm_files(jvm.java))
        try:
            await asyncio.to_thread(disk.prepare, place, classes, actor)
            note("goes on; a JVM beside it makes the archive")
            run = self._runner(deploy)
            dump = dump_command(jvm, str(place.classes), str(place.fresh))
            await _run(run, "class data", dump, jvm.directory, deploy.step_timeout)
            trial = trial_command(jvm, str(place.fresh))
            await _run(run, "class data: trial", trial, jvm.directory, min(TRIAL_TIMEOUT, deploy.step_timeout))
            at, took = stamp(datetime.now(UTC)), elapsed()
            record = ArchiveRecord(release, paths, jvm.java, files, 0, took, at)
            await asyncio.to_thread(disk.install, place, record, actor)
        finally:
            with contextlib.suppress(Failed):
                await asyncio.to_thread(disk.clear, place, actor)
        for gone in await asyncio.to_thread(_sweep, deploy.releases, actor):
            log.info("class_data_removed", release=gone)
        size = await asyncio.to_thread(lambda: place.archive.stat().st_size)
        return Made(str(place.archive), size, elapsed())


def _look(pid: int, path: Path) -> tuple[str, Jvm, tuple[str, ...]]:
    """The release with no link in its path, the JVM that runs it, and its classes. Blocks. Raises Refused or Failed."""
    release = os.path.realpath(path)
    found = disk.find_jvm(pid)
    if found is None:
        raise Refused(f"there is no JVM in process {pid}, nor in what it has started")
    jvm = disk.look_at_jvm(found, ASK_TIMEOUT)
    disk.check_class_path(jvm, release)
    return release, jvm, disk.classes_of(found, ASK_TIMEOUT)


async def _run(run: Runner, step: str, command: Sequence[str], directory: str, timeout: float) -> None:
    outcome = await run(step, command, Path(directory), timeout=timeout)
    if outcome.failure is not None:
        words = " | ".join(line.strip() for line in outcome.last_lines[-3:] if line.strip())
        raise Failed(f"{outcome.failure}: {words}" if words else outcome.failure)


def _sweep(releases: Path, actor: Actor | None) -> tuple[str, ...]:
    try:
        return disk.sweep(releases, actor)
    except Failed as failed:
        log.warning("class_data_not_swept", reason=str(failed))
        return ()


def _cannot(role: Role) -> str:
    return f"cannot make a class-data archive of {role.value}"
