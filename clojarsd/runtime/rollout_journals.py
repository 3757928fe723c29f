"""The journals of rollouts on the disk: one file each, written before each act, and kept for a while."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.rollout_facts import Rollout
from clojarsd.core.rollout_journal import Record, told
from clojarsd.core.step_times import last_times
from clojarsd.system.record_log import RecordLog
from clojarsd.system.threads import Threads

log = structlog.get_logger()

RESERVED = 128 * 1024
"""Bytes that a rollout has on the disk before it begins, so that a full one cannot keep it from going back."""
KEPT = 50
"""Journals that are kept."""
SUFFIX = ".jsonl"
_NAME = re.compile(r"([0-9]{8}-[0-9]{6})(?:-([0-9]{1,9}))?")


class Journals:
    """The directory of the journals, as long as the daemon lives; `close` lets go of the open one.

    One rollout is written at a time. Methods that wait do so for the disk. What is written is written by one thread,
    in the order in which it was asked for: somebody who is cancelled while it writes is in nobody's way afterwards.

    Args:
        logs: the directory of the output of rollouts' commands, which goes when the journal goes.
    """

    def __init__(self, directory: Path, logs: Path) -> None:
        self._directory = directory
        self._logs = logs
        self._disk = Threads("rollouts")
        self._open: RecordLog | None = None

    def load(self) -> Rollout | None:
        """The latest rollout, open for more if it has not ended; None when there was none, or none that can be read.

        Blocks. What cannot be read is told in the log, and left where it is: nothing is undone by a guess. One that
        was cut while it was made has nothing in it, and stands for nothing.
        """
        try:
            paths = self._paths()
        except OSError as error:
            log.error("journals_not_usable", path=str(self._directory), reason=reason_of(error))
            return None
        for path in reversed(paths):
            try:
                journal = RecordLog.open(path, create=False)
            except Failed as failed:
                log.error("journal_not_usable", path=str(path), reason=str(failed))
                return None
            if journal.problem is not None:
                log.warning("journal_damaged", path=str(path), reason=journal.problem)
            if journal.records() or journal.lacks_records:
                return self._take(path, journal)
            log.warning("journal_of_nothing", path=str(path), reason="no rollout was begun with it")
            journal.close()
        return None

    def _take(self, path: Path, journal: RecordLog) -> Rollout | None:
        """The rollout of the journal, which stays open if that has not ended."""
        try:
            rollout = told(journal.records())
        except Failed as failed:
            log.error("journal_not_usable", path=str(path), reason=str(failed))
            journal.close()
            return None
        if rollout.outcome is None:
            self._open = journal
        else:
            journal.close()
        return rollout

    async def begin(self, id: str, records: Sequence[Record]) -> None:
        """Make the journal of a new rollout, with its first records and the space for all others.

        Raises:
            Failed: there is no room, or no way to write there; nothing is left.
        """
        await self._disk.run(self._begin, self._directory / f"{id}{SUFFIX}", records)

    async def write(self, record: Record) -> None:
        """Add a record to the open journal; on return it is safe on the disk.

        Raises:
            Failed: it could not be written, and is not there.
        """
        await self._disk.run(self._append, record)

    async def end(self) -> None:
        """Close the journal of a rollout that has ended, and forget the oldest ones; what cannot be is told."""
        await self._disk.run(self._end)

    def close(self) -> None:
        """Let go of the file; what is being written to it is written, and nothing is after that."""
        self._disk.close(self._let_go)

    async def free_id(self, wanted: str) -> str:
        """That name, or with a number behind it where a rollout of that second is known."""
        return await self._disk.run(self._free_id, wanted)

    async def times(self) -> Mapping[str, float]:
        """The seconds that each step took when it was last done, by its word, over the journals that are kept."""
        return await self._disk.run(self._times)

    # In the thread.

    def _begin(self, path: Path, records: Sequence[Record]) -> None:
        try:
            self._directory.mkdir(mode=0o750, exist_ok=True)
        except OSError as error:
            raise Failed(f"cannot make {self._directory}: {reason_of(error)}") from error
        journal = RecordLog.open(path, create=True)
        try:
            journal.reserve(RESERVED)
            for record in records:
                journal.append(record)
            if not journal.reserve_is_sure:
                reason = "its file system cannot hold space ready: on a full disk a rollout may not find its way back"
                log.warning("journal_not_reserved", path=str(path), reason=reason)
        except Failed:
            journal.close()
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        self._open = journal

    def _append(self, record: Record) -> None:
        assert self._open is not None
        self._open.append(record)

    def _end(self) -> None:
        self._let_go()
        try:
            self._forget()
        except OSError as error:
            log.warning("journals_not_forgotten", reason=reason_of(error))

    def _let_go(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _forget(self) -> None:
        paths = self._paths()
        for path in paths[:-KEPT]:
            path.unlink(missing_ok=True)
        kept = {path.stem for path in paths[-KEPT:]}
        for path in self._logs.glob("*.log"):
            if path.stem not in kept:
                path.unlink(missing_ok=True)

    def _free_id(self, wanted: str) -> str:
        try:
            known = {path.stem for path in self._paths()}
        except OSError as error:
            raise Failed(f"cannot look into {self._directory}: {reason_of(error)}") from error
        number, name = 1, wanted
        while name in known:
            number += 1
            name = f"{wanted}-{number}"
        return name

    def _times(self) -> Mapping[str, float]:
        try:
            return last_times(map(_records, self._paths()))
        except OSError as error:
            log.warning("step_times_not_known", reason=reason_of(error))
            return {}

    def _paths(self) -> list[Path]:
        """The journals, the oldest first; their names are times. Raises OSError."""
        found = [path for path in self._directory.glob(f"*{SUFFIX}") if _NAME.fullmatch(path.stem)]
        return sorted(found, key=_order)


def _records(path: Path) -> Sequence[Record]:
    """The records of a journal; of one that cannot be read none, which was told when it was the latest."""
    try:
        with RecordLog.open(path, create=False) as journal:
            return journal.records()
    except Failed:
        return ()


def _order(path: Path) -> tuple[str, int]:
    """`20261128-120000` before `20261128-120000-2` before `20261128-120000-10`."""
    found = _NAME.fullmatch(path.stem)
    assert found is not None
    return found[1], int(found[2] or 1)


def short(lines: tuple[str, ...], most: int = 500) -> list[str]:
    """The lines as a journal takes them: none so long that the reserve would be used up."""
    return [line[:most] for line in lines]
