"""What is known of releases as long as the daemon lives: the log on the disk, the book of it, the directory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from clojarsd.core.errors import Failed, Refused
from clojarsd.core.releases import ReleaseBook, ReleaseRecord, record_as_json, record_from_json
from clojarsd.core.settings import DeploySettings
from clojarsd.system.acting_as import Actor
from clojarsd.system.record_log import RecordLog
from clojarsd.system.releases import ReleaseStore

log = structlog.get_logger()

RESERVED = 32 * 1024
"""Bytes that the log has ready on the disk before a rollout begins."""


class Releases:
    """The releases of the pair. Made by daemon.py, which closes it; nothing runs inside.

    Args:
        path: of the release log.
        deploy: gives the table [deploy] in use, None without one.
        actor: whom the directory of releases belongs to; None: who we are.
    """

    def __init__(
        self, path: Path, deploy: Callable[[], DeploySettings | None], actor: Callable[[], Actor | None]
    ) -> None:
        self._path = path
        self._deploy = deploy
        self._actor = actor
        self._log: RecordLog | None = None
        self._writing = asyncio.Lock()
        self.book = ReleaseBook()

    def load(self) -> None:
        """Read the log, if there is one. Blocks. What cannot be read is told, and nothing is known then."""
        if not self._path.exists():
            return
        try:
            self._log = RecordLog.open(self._path, create=False)
            if self._log.problem is not None:
                logged = log.error if self._log.lacks_records else log.warning
                logged("release_log_damaged", path=str(self._path), reason=self._log.problem)
            self.book = ReleaseBook.of(record_from_json(_plain(record)) for record in self._log.records())
        except Failed as failed:
            log.error("release_log_not_usable", path=str(self._path), reason=str(failed))

    def close(self) -> None:
        """Let go of the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

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

    async def reserve(self) -> None:
        """See to it that the records of a rollout have room. Raises Failed."""
        async with self._writing:
            await asyncio.to_thread(self._reserve)

    async def record(self, record: ReleaseRecord) -> None:
        """Add to the log, and know it; on return it is safe on the disk. Raises Failed, and then it is not known."""
        async with self._writing:
            await asyncio.to_thread(self._append, record_as_json(record))
            self.book = self.book.after(record)

    def _reserve(self) -> None:
        self._opened().reserve(RESERVED)

    def _append(self, record: dict[str, Any]) -> None:
        self._opened().append(record)

    def _opened(self) -> RecordLog:
        if self._log is None:
            self._log = RecordLog.open(self._path, create=True)
        return self._log


def _plain(record: Any) -> dict[str, Any]:
    return dict(record)
