"""The history on disk, in SQLite: one file, which any `sqlite3` can read while the daemon runs."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog

from clojarsd.core.errors import Failed
from clojarsd.core.history import EventName, PastEvent
from clojarsd.core.names import Role

log = structlog.get_logger()

FORMAT = 1
MODE = 0o640
"""Who ordered what is for the owner and the group; SQLite gives its -wal and -shm the mode of the file."""
BUSY_TIMEOUT = 5.0
"""Seconds that another program may hold the file locked."""
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_TABLE = """
    CREATE TABLE IF NOT EXISTS events (
        id INTEGER PRIMARY KEY, at TEXT NOT NULL, event TEXT NOT NULL, role TEXT, by TEXT, message TEXT NOT NULL,
        detail TEXT NOT NULL
    )
"""


class EventStore:
    """The file of events. Opened when first used and again after each failure; the owner closes it.

    Every method blocks and may be called from any thread, by one at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None

    def last_id(self) -> int:
        """The id of the latest event; 0 when there is none.

        Raises:
            Failed: see `last`.
        """
        with self._connected("read") as connection:
            (latest,) = connection.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
        return int(latest)

    def last(self, count: int) -> Sequence[PastEvent]:
        """The latest events, the oldest of them first.

        Raises:
            Failed: the file cannot be read; if it is broken it was set aside, and the next call makes a new one.
        """
        with self._connected("read") as connection:
            rows = connection.execute("SELECT * FROM events ORDER BY id DESC LIMIT ?", (count,)).fetchall()
        return tuple(event for row in reversed(rows) if (event := _read(row)) is not None)

    def write(self, events: Sequence[PastEvent]) -> None:
        """Add all of them or none; one whose id is there already is left as it is.

        Raises:
            Failed: nothing was written; see `last`.
        """
        with self._connected("write") as connection, connection:
            connection.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", map(_row, events))

    def prune(self, before: str) -> None:
        """Forget what happened before that time; the latest event stays, because ids grow on from its own.

        Raises:
            Failed: nothing was forgotten; see `last`.
        """
        with self._connected("write") as connection, connection:
            connection.execute("DELETE FROM events WHERE at < ? AND id < (SELECT max(id) FROM events)", (before,))

    def close(self) -> None:
        """Let go of the file; a later call opens it again."""
        if self._connection is not None:
            with contextlib.suppress(
                sqlite3.Error
            ):  # everything was committed; only the log's clean end may be missing
                self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _connected(self, what: str) -> Iterator[sqlite3.Connection]:
        """The open file for one act; any failure closes it and is told in a sentence."""
        try:
            if self._connection is not None and self._inode != _inode(self._path):
                self.close()  # the file was taken away: what went on being written to it nobody would find
            if self._connection is None:
                self._connection = self._open()
            yield self._connection
        except (sqlite3.Error, OSError) as error:
            self.close()
            reason = str(error)
            if isinstance(error, sqlite3.DatabaseError) and _code(error) in _BROKEN:
                reason = f"{reason}; {self._set_aside()}"
            raise Failed(f"cannot {what} the history {self._path}: {reason}") from error
        except Failed:
            self.close()
            raise

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _make(self._path)
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, check_same_thread=False)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, FORMAT):
                raise Failed(
                    f"cannot use the history {self._path}: it has format {version}, and this version knows {FORMAT}"
                )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(_TABLE)
            connection.execute("CREATE INDEX IF NOT EXISTS events_at ON events (at)")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            for suffix in (
                "",
                "-wal",
                "-shm",
            ):  # those that were there before; not opened: that would end SQLite's locks
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    os.chmod(f"{self._path}{suffix}", MODE)
        except BaseException:
            connection.close()
            raise
        self._inode = _inode(self._path)
        return connection

    def _set_aside(self) -> str:
        """Give the broken file another name, with what belongs to it, and say so."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        aside = self._path.with_name(f"{self._path.name}.broken-{stamp}")
        try:
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self._path}{suffix}", f"{aside}{suffix}")
        except OSError as error:
            return f"it cannot be set aside: {error.strerror}"
        log.warning("history_set_aside", path=str(self._path), aside=str(aside))
        return f"it was set aside as {aside.name}"


def _make(path: Path) -> None:
    """An empty file with the right mode from its first moment, unless there is one."""
    with contextlib.suppress(FileExistsError):
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        try:
            os.fchmod(made, MODE)  # whatever the umask
        finally:
            os.close(made)


def _code(error: sqlite3.DatabaseError) -> int:
    """SQLite's primary result code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _row(event: PastEvent) -> tuple[int, str, str, str | None, str | None, str, str]:
    role = event.role.value if event.role is not None else None
    return event.id, event.at, event.event.value, role, event.by, event.message, json.dumps(dict(event.detail))


def _read(row: tuple[int, str, str, str | None, str | None, str, str]) -> PastEvent | None:
    """The event in a row; None for one that only another version knows."""
    number, at, event, role, by, message, detail = row
    try:
        known, known_role = EventName(event), Role(role) if role is not None else None
        return PastEvent(number, at, known, known_role, by, message, json.loads(detail))
    except ValueError:
        return None
