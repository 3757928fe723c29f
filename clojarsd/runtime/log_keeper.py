"""Keeps the logs of the instances short, and says what happens to them."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, Self

import structlog

from clojarsd.core.errors import Failed, Refused, reason_of
from clojarsd.core.history import stamp
from clojarsd.core.names import Role
from clojarsd.core.settings_types import LogTo
from clojarsd.system.freezer import thaw
from clojarsd.system.inotify import EntryWatch
from clojarsd.system.journal import journal_lines, no_journal
from clojarsd.system.log_cut import Writer
from clojarsd.system.log_file import LogFile
from clojarsd.system.log_look import ROOM, LogLook, look, restore_directory
from clojarsd.system.log_packing import pack_one
from clojarsd.system.log_since import LastLines, file_since_now, journal_since_now
from clojarsd.system.log_tail import follow, last_lines
from clojarsd.system.threads import Threads

log = structlog.get_logger()

EVERY = 1.0
"""Seconds between two looks at logs that grow."""
QUIET_LOOK = 10.0
"""Seconds between two looks while nothing is written: a full disk makes no writes."""


@dataclass(frozen=True, slots=True)
class LogPlan:
    """How an instance's output is kept.

    Attributes:
        name: of the instance; the journal has its lines by it.
        path: the log file, where `to` is FILE.
        max_size: bytes; a longer log is rotated.
        keep: how many rotated files there may be.
    """

    name: str
    path: Path
    to: LogTo
    max_size: int
    keep: int


class InstanceLog:
    """What an instance has written, wherever that goes. Made by the keeper; readers may come and go."""

    def __init__(self, role: Role, plan: LogPlan) -> None:
        self._role = role
        self.plan = plan
        self.file = LogFile(plan.path, plan.max_size, plan.keep)

    @classmethod
    def at(cls, role: Role, path: Path) -> Self:
        """A log file that nobody rotates."""
        return cls(role, LogPlan(role.value, path, LogTo.FILE, sys.maxsize, sys.maxsize))

    def configure(self, plan: LogPlan) -> None:
        """Go by this plan from now on."""
        self.plan = plan
        if self.file.path != plan.path:
            self.file = LogFile(plan.path)
        self.file.most, self.file.keep = plan.max_size, plan.keep

    def missing(self) -> str | None:
        """Why there is nothing to show yet, or None. Blocks.

        Raises:
            Refused: there will not be anything to show either.
        """
        if self.plan.to is LogTo.INHERIT:
            raise Refused(
                f'{self._role.value} has log = "inherit": it writes where clojarsd itself does; under systemd'
                " `journalctl -u clojarsd` shows that"
            )
        if self.plan.to is LogTo.JOURNAL:
            if (reason := no_journal()) is not None:
                raise Refused(f"cannot show the log of {self._role.value}: {reason}")
            return None
        there = self.file.stray is not None or self.file.path.exists()
        return None if there else f"there is no log at {self.file.path} yet"

    def last_lines(self, count: int) -> AsyncGenerator[Sequence[str], None]:
        """The last lines there are now, some at a time; raises Refused and Failed as `log_tail.last_lines`."""
        if self.plan.to is LogTo.JOURNAL:
            return journal_lines(self.plan.name, count)
        return last_lines(self.file, count)

    def follow(self, count: int) -> AsyncGenerator[Sequence[str], None]:
        """The last lines, then those that come, some at a time; raises Failed as `log_tail.follow`."""
        if self.plan.to is LogTo.JOURNAL:
            return journal_lines(self.plan.name, count, follow=True)
        return follow(self.file, count)

    def since_now(self) -> AbstractAsyncContextManager[LastLines]:
        """Within the block what comes from now on can be had; raises Failed as `log_since`."""
        if self.plan.to is LogTo.JOURNAL:
            return journal_since_now(self.plan.name)
        return file_since_now(self.file)


@dataclass(slots=True)
class _Seen:
    """What was seen of one log last, and what was said about it."""

    look: LogLook | None = None
    inode: tuple[int, int] | None = None
    lost_path: str | None = None
    not_rotated: str | None = None
    group: Path | None = None


class LogKeeper:
    """Rotates and packs the logs of both instances while `run` runs, in the daemon's task group; nothing to close.

    Args:
        plans: one for each role.
        pid_of: the process of a role's instance, launched or adopted; None while there is none.
        group_of: the control group of that instance, in which nobody else is; None where it has none.
    """

    def __init__(
        self,
        plans: Mapping[Role, LogPlan],
        pid_of: Callable[[Role], int | None],
        group_of: Callable[[Role], Path | None] = lambda role: None,
    ) -> None:
        self.logs = {role: InstanceLog(role, plan) for role, plan in plans.items()}
        self._pid_of = pid_of
        self._group_of = group_of
        self._seen = {role: _Seen() for role in plans}
        self._directories: dict[Path, os.stat_result | None] = {}
        self._full_since: float | None = None
        self._had_room_at: datetime | None = None
        self._room = ROOM
        self._threads = Threads("log-keeper")
        self._pack_threads = Threads("log-packing")
        self._wake = asyncio.Event()
        self._unpacked = asyncio.Event()

    def configure(self, role: Role, plan: LogPlan) -> None:
        """Go by this plan from now on. Where the output goes changes with a launch: tell it then, sizes at any time."""
        self.logs[role].configure(plan)
        self._unpacked.set()
        self._wake.set()

    async def run(self) -> NoReturn:
        """Watch, rotate and pack until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pack())
                for role in self._in_files():
                    await self._know_writer(role)
                    await self._rotate(role, recover=True)
                self._unpacked.set()
                while True:
                    self._wake.clear()
                    if await self._look():
                        await self._pause(EVERY)
                    else:
                        await self._wait_for_change()
        finally:
            self._threads.close()
            self._pack_threads.close()
        raise AssertionError("a task group whose body never ends was left")

    def _in_files(self) -> list[Role]:
        return [role for role, one in self.logs.items() if one.plan.to is LogTo.FILE]

    async def _look(self) -> bool:
        """Look at every log, rotate what is too long, and say what is new; whether to look again soon."""
        busy, least, begun_at = False, None, datetime.now(UTC)
        for role in self._in_files():
            file, seen = self.logs[role].file, self._seen[role]
            directory = file.path.parent
            await self._know_writer(role)
            known = self._directories.get(directory)
            self._directories[directory] = await self._threads.run(restore_directory, directory, known)
            try:
                now, seen.inode = await self._threads.run(look, file, seen.inode, self._pid_of(role))
            except OSError as error:
                self._not_rotated(role, f"cannot look at the log {file.path}: {reason_of(error)}")
                continue
            busy = busy or seen.look is None or seen.look.size != now.size
            seen.look = now
            self._say_where(role, now.lost_path)
            hopeless = self._full_since is not None and file.keep > 0 and (now.free or 0) < self._room
            if now.size > file.most and now.lost_path is None and not hopeless:
                busy = await self._rotate(role) or busy
            if now.free is not None:
                least = now.free if least is None else min(least, now.free)
        self._say_whether_full(least)
        if least is not None and least >= ROOM and self._full_since is None:
            self._had_room_at = begun_at
        return busy or self._full_since is not None

    async def _rotate(self, role: Role, *, recover: bool = False) -> bool:
        """Rotate until the log is short enough; whether anything was done. What failed is tried at a later look."""
        file = self.logs[role].file
        count = 0
        try:
            steps = file.recover if recover else file.rotate
            while await self._threads.run(lambda: list(steps())):
                count += 1
                self._say_cut(role)
                self._unpacked.set()
                if recover:
                    break
        except Failed as failed:
            self._say_cut(role)
            look_before = self._seen[role].look
            short = look_before is None or look_before.free is None or look_before.free < file.most
            if short and isinstance(failed.__cause__, OSError) and failed.__cause__.errno == errno.ENOSPC:
                self._room = max(ROOM, file.most)
                self._say_full(str(failed))
            else:
                self._not_rotated(role, str(failed))
            return False
        if self._seen[role].not_rotated is not None:
            self._seen[role].not_rotated = None
            log.info("log_rotated_again", role=role.value, path=str(file.path))
        if count:
            log.debug("log_rotated", role=role.value, path=str(file.path), rotations=count)
        return count > 0

    async def _know_writer(self, role: Role) -> None:
        """Know who writes to the log; what a daemon that died has left standing still runs on."""
        group, seen = self._group_of(role), self._seen[role]
        if group is not None and group != seen.group and await self._threads.run(thaw, group):
            log.warning("instance_thawed", role=role.value, group=str(group))
        seen.group = group
        self.logs[role].file.writer = Writer(self._pid_of(role), group)

    def _say_cut(self, role: Role) -> None:
        """Say how much a rotation by truncation may have lost."""
        file = self.logs[role].file
        cut, file.cut = file.cut, None
        if cut is None:
            return
        tell = log.info if cut.lost == 0 else log.warning
        tell(
            "log_truncated",
            role=role.value,
            path=str(file.path),
            kept_bytes=cut.copied,
            at_most_lost_bytes=cut.lost if cut.lost is not None else "unknown",
            held_still_s=None if cut.still is None else round(cut.still, 4),
        )

    def _not_rotated(self, role: Role, reason: str) -> None:
        seen = self._seen[role]
        if seen.not_rotated != reason:
            seen.not_rotated = reason
            log.warning("log_not_rotated", role=role.value, reason=reason)

    def _say_where(self, role: Role, lost_path: str | None) -> None:
        """Say once that the writer's file is not the log's any more, and what follows from that."""
        seen, path = self._seen[role], str(self.logs[role].file.path)
        if lost_path == seen.lost_path:
            return
        seen.lost_path = lost_path
        if lost_path is None:
            log.info("log_in_its_place", role=role.value, path=path)
        elif lost_path == "":
            log.warning(
                "log_removed",
                role=role.value,
                path=path,
                reason=f"its file was removed; {role.value} writes to the removed file until its next start, and the"
                f" space is not free before that; `clojarsctl logs {role.value}` still shows it",
            )
        else:
            log.warning(
                "log_moved",
                role=role.value,
                path=path,
                to=lost_path,
                reason=f"somebody renamed it; {role.value} writes there until its next start, and it is not rotated;"
                " clojarsd rotates its logs itself: take them out of logrotate's configuration",
            )

    def _say_whether_full(self, free: int | None) -> None:
        if free == 0:
            self._say_full("no space is left for plain users")
        elif self._full_since is not None and free is not None and free >= self._room:
            lasted = asyncio.get_running_loop().time() - self._full_since
            self._full_since, self._room = None, ROOM
            self._unpacked.set()
            log.info("log_disk_has_room", seen_full_s=round(lasted, 1), may_be_missing=self._in_danger("was"))

    def _say_full(self, reason: str) -> None:
        if self._full_since is not None:
            return
        self._full_since = asyncio.get_running_loop().time()
        log.warning(
            "log_disk_full",
            reason=reason,
            consequence="what the instances write is lost, as far as it finds no room; they run on",
            may_be_missing=self._in_danger("is"),
        )

    def _in_danger(self, verb: str) -> str:
        """What may have found no room. Nobody counts the writes that fail, so no number is told."""
        if self._had_room_at is None:
            return f"what {verb} written, from before clojarsd began to look; how much is not known"
        return f"what {verb} written since {stamp(self._had_room_at)}, when room was last seen; how much is not known"

    async def _wait_for_change(self) -> None:
        """Return when something happens to a log, or after a while."""
        with ExitStack() as stack:
            roles = self._in_files()
            try:
                watches = [stack.enter_context(EntryWatch(self.logs[role].file.path)) for role in roles]
            except Failed:  # out of watches, or no directory: look more often instead
                await self._pause(EVERY)
                return
            for role in roles:  # what was written between the look and the watch
                seen = self._seen[role].look
                if seen is not None and await self._threads.run(_size_of, self.logs[role].file) not in (
                    None,
                    seen.size,
                ):
                    return
            async with asyncio.TaskGroup() as group:
                waiting = [group.create_task(self._wake_on(watch)) for watch in watches]
                await self._pause(QUIET_LOOK)
                for task in waiting:
                    task.cancel()

    async def _wake_on(self, watch: EntryWatch) -> None:
        await watch.change()
        self._wake.set()

    async def _pause(self, seconds: float) -> None:
        """Return after so long, or when there is reason to look at once."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _pack(self) -> NoReturn:
        """Pack what was rotated, while rotation goes on."""
        while True:
            await self._unpacked.wait()
            self._unpacked.clear()
            for role in self._in_files():
                try:
                    while await pack_one(self.logs[role].file, self._pack_threads):
                        pass
                except Failed as failed:  # it is tried again after the next rotation
                    if self._full_since is None:
                        self._not_rotated(role, str(failed))


def _size_of(file: LogFile) -> int | None:
    try:
        return file.size()
    except OSError:
        return None
