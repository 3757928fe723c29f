"""The journals of rollouts on the disk: one file each, written before each act, and kept for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from clojarsd.core.errors import Failed
from clojarsd.core.rollout_facts import Rollout
from clojarsd.core.rollout_journal import Record, told
from clojarsd.core.step_times import last_times
from clojarsd.system.record_log import RecordLog

log = structlog.get_logger()

RESERVED = 128 * 1024
"""Bytes that a rollout has on the disk before it begins, so that a full one cannot keep it from going back."""
KEPT = 50
"""Journals that are kept."""
SUFFIX = ".jsonl"


class Journals:
    """The directory of the journals, as long as the daemon lives; `close` lets go of the open one.

    One rollout is written at a time. Methods that wait do so for the disk.

    Args:
        logs: the directory of the output of rollouts' commands, which goes when the journal goes.
    """

    def __init__(self, directory: Path, logs: Path) -> None:
        self._directory = directory
        self._logs = logs
        self._open: RecordLog | None = None

    def load(self) -> Rollout | None:
        """The latest rollout, open for more if it has not ended; None when there was none, or none that can be read.

        Blocks. What cannot be read is told in the log, and left where it is: nothing is undone by a guess.
        """
        paths = self._paths()
        if not paths:
            return None
        try:
            journal = RecordLog.open(paths[-1], create=False)
            if journal.problem is not None:
                log.warning("journal_damaged", path=str(paths[-1]), reason=journal.problem)
            try:
                rollout = told(journal.records())
            except Failed:
                journal.close()
                raise
        except Failed as failed:
            log.error("journal_not_usable", path=str(paths[-1]), reason=str(failed))
            return None
        if rollout.outcome is None:
            self._open = journal
        else:
            journal.close()
        return rollout

    async def begin(self, id: str, record: Record) -> None:
        """Make the journal of a new rollout, with its first record and the space for all others.

        Raises:
            Failed: there is no room, or no way to write there; nothing is left.
        """
        await asyncio.to_thread(self._begin, self._directory / f"{id}{SUFFIX}", record)

    async def write(self, record: Record) -> None:
        """Add a record to the open journal; on return it is safe on the disk. Raises Failed."""
        assert self._open is not None
        await asyncio.to_thread(self._open.append, record)

    async def end(self) -> None:
        """Close the journal of a rollout that has ended, and forget the oldest ones."""
        self.close()
        await asyncio.to_thread(self._forget)

    def close(self) -> None:
        """Let go of the file."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def free_id(self, wanted: str) -> str:
        """That name, or with a number behind it where a rollout of that second is known."""
        known = {path.stem for path in self._paths()}
        number, name = 1, wanted
        while name in known:
            number += 1
            name = f"{wanted}-{number}"
        return name

    async def times(self) -> Mapping[str, float]:
        """The seconds that each step took when it was last done, by its word, over the journals that are kept."""
        return await asyncio.to_thread(lambda: last_times(map(_records, self._paths())))

    def _begin(self, path: Path, record: Record) -> None:
        try:
            self._directory.mkdir(mode=0o750, exist_ok=True)
        except OSError as error:
            raise Failed(f"cannot make {self._directory}: {error.strerror}") from error
        journal = RecordLog.open(path, create=True)
        try:
            journal.reserve(RESERVED)
            journal.append(record)
        except Failed:
            journal.close()
            path.unlink(missing_ok=True)
            raise
        self._open = journal

    def _forget(self) -> None:
        paths = self._paths()
        for path in paths[:-KEPT]:
            path.unlink(missing_ok=True)
        kept = {path.stem for path in paths[-KEPT:]}
        for path in self._logs.glob("*.log"):
            if path.stem not in kept:
                path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """The journals, the oldest first; their names are times."""
        return sorted(self._directory.glob(f"*{SUFFIX}"), key=_order)


def _records(path: Path) -> Sequence[Record]:
    """The records of a journal; of one that cannot be read none, which was told when it was the latest."""
    try:
        with RecordLog.open(path, create=False) as journal:
            return journal.records()
    except Failed:
        return ()


def _order(path: Path) -> tuple[str, int]:
    """`20261128-120000` before `20261128-120000-2` before `20261128-120000-10`."""
    day, time, *number = [*path.stem.split("-"), ""][:3]
    return f"{day}-{time}", int(number[0]) if number and number[0].isdigit() else 1


def short(lines: tuple[str, ...], most: int = 500) -> list[Any]:
    """The lines as a journal takes them: none so long that the reserve would be used up."""
    return [line[:most] for line in lines]
