"""What is known of releases as long as the daemon lives: the log on the disk, the book of it, the directory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import structlog

from clojarsd.core.codec import Unfit
from clojarsd.core.errors import Failed, Refused
from clojarsd.core.releases import ReleaseBook, ReleaseRecord, record_as_json, record_from_json
from clojarsd.core.settings_deploy import DeploySettings
from clojarsd.system.acting_as import Actor
from clojarsd.system.record_log import Record, RecordLog
from clojarsd.system.releases import ReleaseStore
from clojarsd.system.threads import Threads

log = structlog.get_logger()

T = TypeVar("T")

RESERVED: Final = 32 * 1024
"""Bytes that the log has ready before a rollout begins, which writes some hundreds, its way back included."""
CLOSE_TIMEOUT: Final = 2.0
"""Seconds that the end of the daemon waits for a record that is being written."""


class Releases:
    """The releases of the pair. Made by daemon.py, which closes it; nothing runs inside.

    One thread writes the log, so that records are on the disk in the order in which they were given; one that was begun
    is written, and counts, also when whoever waits for it is cancelled. The same one changes the directory. A log that
    cannot be read costs a line in the daemon's own, and no supervision: nothing is known of releases then, and each
    `reserve` or `record` tries again.

    Args:
        path: of the release log; made when it is first needed.
        deploy: gives the table [deploy] in use, None without one.
        actor: whom the directory of releases belongs to; None: who we are.

    Attributes:
        book: what all records add up to.
        problem: what is wrong with the log, in a sentence; None when nothing is.
    """

    def __init__(
        self, path: Path, deploy: Callable[[], DeploySettings | None], actor: Callable[[], Actor | None]
    ) -> None:
        self._path = path
        self._deploy = deploy
        self._actor = actor
        self._log: RecordLog | None = None
        self._disk = Threads("releases")
        self._using = threading.Lock()
        self.book = ReleaseBook()
        self.problem: str | None = None

    def load(self) -> None:
        """Read the log, if there is one. Blocks. What cannot be read is told, and nothing is known then."""
        try:
            if os.path.lexists(self._path):
                self._take(RecordLog.open(self._path, create=False))
        except Failed as failed:
            self._complain(str(failed))

    def close(self) -> None:
        """Let go of the log."""
        self._disk.close()
        if self._log is not None and self._using.acquire(timeout=CLOSE_TIMEOUT):
            self._log.close()
            self._log = None
            self._using.release()

    @property
    def store(self) -> ReleaseStore:
        """The directory, by the settings in use. Raises Refused without a table [deploy]."""
        deploy = self._deploy()
        if deploy is None:
            raise Refused("the configuration has no table [deploy]")
        return ReleaseStore(deploy.releases, deploy.current, self.actor)

    @property
    def actor(self) -> Actor | None:
        """Whom the directory of releases belongs to; None: who we are."""
        return self._actor()

    def link(self) -> str | None:
        """The name of what the link names, whether or not that is there; None without a link. Does not wait."""
        deploy = self._deploy()
        if deploy is None:
            return None
        try:
            return os.path.basename(os.readlink(deploy.link))
        except OSError:
            return None

    def checksum_of(self, name: str) -> str | None:
        """What the release was when it was installed; None for one that the log does not know."""
        return self.book.checksum_of(name)

    def previous_of(self, current: str | None) -> str | None:
        """The name of the last good release before the current one, or None."""
        found = self.book.previous_good(current)
        return found.name if found is not None else None

    async def reserve(self) -> None:
        """See to it that the records of a rollout have room, also when the disk is full later.

        Raises:
            Failed: there is no room, or the log cannot be had; nothing has changed.
        """
        await self._disk.run(self._reserve)

    async def record(self, record: ReleaseRecord) -> None:
        """Add to the log, and know it; on return it is safe on the disk. Raises Failed, and then it is not known."""
        await self._disk.run(self._record, record)

    async def change(self, act: Callable[[], T], record: Callable[[T], ReleaseRecord] | None = None) -> T:
        """Change the directory, and write down what has come of it; what that is. Once begun it goes on to its end.

        Args:
            act: blocks.
            record: makes the record of it.

        Raises:
            Failed, Refused: as the act does; or it was done and cannot be written down.
        """

        def carry_out() -> T:
            found = act()
            if record is not None:
                self._record(record(found))
            return found

        return await self._disk.run(carry_out)

    # In the thread.

    def _reserve(self) -> None:
        with self._using:
            opened = self._opened()
            opened.reserve(RESERVED)
            if not opened.reserve_is_sure:
                reason = "its file system cannot hold space ready: on a full disk a rollout may not find its way back"
                log.warning("release_log_not_reserved", path=str(self._path), reason=reason)

    def _record(self, record: ReleaseRecord) -> None:
        with self._using:
            self._opened().append(record_as_json(record))
            self.book = self.book.after(record)

    def _opened(self) -> RecordLog:
        if self._log is None:
            self._take(RecordLog.open(self._path, create=True))
        assert self._log is not None
        return self._log

    def _take(self, opened: RecordLog) -> None:
        """Live by what the log holds."""
        known = [record for document in opened.records() if (record := _known(document)) is not None]
        told = [opened.problem] if opened.problem is not None else []
        if unknown := len(opened.records()) - len(known):
            told.append(
                f"this version does not know {unknown} of the records of the log {self._path}: they do not count"
            )
        self._log, self.book, self.problem = opened, ReleaseBook.of(known), None
        if told:
            self._complain("; ".join(told))

    def _complain(self, problem: str) -> None:
        self.problem = problem
        log.error("release_log_not_whole", path=str(self._path), reason=problem)


def _known(document: Record) -> ReleaseRecord | None:
    """The record, unless a later version has written it."""
    try:
        return record_from_json(document)
    except Unfit:
        return None
