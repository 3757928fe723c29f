"""Makes what deploys and rolls back, out of parts that are there already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import structlog

from clojarsd.core.errors import ClojarsdError, reason_of
from clojarsd.core.launch import World
from clojarsd.core.names import Role
from clojarsd.core.settings import Settings
from clojarsd.runtime.class_data import ClassData
from clojarsd.runtime.deployer import Deployer
from clojarsd.runtime.history import History
from clojarsd.runtime.log_keeper import InstanceLog
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.release_look import ReleaseLook
from clojarsd.runtime.releases import Releases
from clojarsd.runtime.rollout_journals import Journals
from clojarsd.runtime.rollout_record import RolloutRecord
from clojarsd.runtime.rollouts import Rollouts
from clojarsd.runtime.status import Board
from clojarsd.runtime.workshop import LOGS, Workshop
from clojarsd.system.cgroup import Groups, find_delegated
from clojarsd.system.last_words import READ_TIMEOUT
from clojarsd.system.log_since import LastLines
from clojarsd.system.process import Processes
from clojarsd.system.rollout_family import end_leftovers

log = structlog.get_logger()
T = TypeVar("T")


class RolloutParts:
    """Made by `Parts`; `deployer.run()` belongs to the daemon's task group.

    Args:
        settings, world: give those in use.
        logs: of the instances, by role.
        pid_of: the number of an instance's process, or None.
        share: gives the backup that part of the new connections; None: nothing beyond what the route says.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        world: Callable[[], World],
        processes: Processes,
        groups: Groups | None,
        orders: Orders,
        board: Board,
        history: History,
        logs: Mapping[Role, InstanceLog],
        archives: ClassData,
        pid_of: Callable[[Role], int | None],
        share: Callable[[float | None], None],
    ) -> None:
        self._settings = settings
        self._share = share
        self._world = world
        self._logs = logs
        self._base = find_delegated() if groups is not None else None
        state_dir = settings().service.state_dir
        self._journals = journals = Journals(state_dir / "rollouts", settings().service.log_dir / LOGS)
        self.releases = releases = Releases(
            state_dir / "releases.jsonl", lambda: settings().deploy, lambda: self.workshop.actor()
        )
        self.look = ReleaseLook(lambda: releases.store, pid_of)
        self.workshop = Workshop(
            settings,
            world,
            processes.launch,
            groups,
            orders,
            board,
            releases,
            self._listen,
            share,
            archives,
        )
        self.deployer = Deployer(
            RolloutRecord(journals, board, history),
            board,
            self.workshop.steps,
            releases.link,
            lambda id: str(self.workshop.log_of(id)),
            self._end_leftovers,
        )
        self.rollouts = Rollouts(self.deployer, releases, board, self.workshop, journals.free_id)

        self._show(board)

    def _show(self, board: Board) -> None:
        """Let the picture tell of releases and of the rollout."""
        board.rollout = lambda: self.deployer.view
        board.previous_release, board.runs = self.releases.previous_of, self.look.runs
        before = board.look

        async def look() -> None:
            await before()
            await self.look.look()

        board.look = look

    def load(self) -> None:
        """Take up what an earlier daemon has left on the disk, before any instance is launched. Blocks."""
        self.releases.load()
        self.deployer.load()

    def close(self) -> None:
        """Let go of the files; a rollout that is under way is taken up by the next daemon."""
        self._journals.close()
        self.releases.close()

    @asynccontextmanager
    async def _listen(self, role: Role) -> AsyncIterator[LastLines]:
        """What the instance writes from now on; nothing where that cannot be read: it is only told beside a failure."""
        async with AsyncExitStack() as stack:
            opening = stack.enter_async_context(self._logs[role].since_now())
            last_lines = await self._in_time(role, opening)

            async def heard(count: int) -> Sequence[str]:
                return (await self._in_time(role, last_lines(count)) or ()) if last_lines is not None else ()

            yield heard

    async def _in_time(self, role: Role, reading: Awaitable[T]) -> T | None:
        """What is read of the log; None for what cannot be read soon."""
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return await reading
        except (ClojarsdError, TimeoutError) as error:
            log.debug("last_lines_not_read", role=role.value, reason=reason_of(error))
            return None

    async def _end_leftovers(self, id: str) -> None:
        """End what a rollout of a former daemon has left: commands that run, and the backup's share of connections."""
        deploy = self._settings().deploy
        if deploy is not None and deploy.share:
            self._share(None)
        uid = self._world().uid
        users = () if uid is None else (uid,)
        if left := await asyncio.to_thread(end_leftovers, str(self._settings().service.state_dir), users, self._base):
            log.error("rollout_leftovers_not_ended", id=id, left=", ".join(left))
