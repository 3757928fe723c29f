"""The file of facts that outlive the daemon: replaced as a whole, so that it holds one version or the next."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.saved import SavedPair, from_json

log = structlog.get_logger()

MODE: Final = 0o640
"""Who ordered what is for the owner and the group."""
LARGEST: Final = 16 * 1024**2
"""Bytes. A pair takes some thousands; what is larger is something else."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found.

    Attributes:
        pair: None when there was no file, or none that can be used.
        problem: a sentence about a file that cannot be used, else None.
    """

    pair: SavedPair | None = None
    problem: str | None = None


class _Unusable(Failed):
    """The file is there and can be read, but holds no state that this version knows."""


class StateFile:
    """The file at a path, whose directory must be there. One process at a time writes it.

    Every method blocks and may be called from any thread, by one at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> SavedPair | None:
        """The state in the file; None when there is no file. Changes nothing.

        Raises:
            Failed: the file cannot be used; says why.
        """
        try:
            content = _content(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failed(f"cannot read the state {self._path}: {reason_of(error)}") from error
        try:
            return from_json(_parsed(content))
        except Failed as failed:
            raise _Unusable(f"cannot use the state {self._path}: {failed}") from failed

    def load(self) -> Loaded:
        """The state in the file, whatever became of it. Cleans up what a killed writer left.

        A file that cannot be used gets another name, in place of an earlier one; one that cannot be read is left.
        """
        self._remove_leftovers()
        try:
            return Loaded(self.read())
        except _Unusable as failed:
            return Loaded(problem=f"{failed}; {self._set_aside()}")
        except Failed as failed:
            return Loaded(problem=str(failed))

    def write(self, document: Mapping[str, Any]) -> None:
        """Replace what the file holds; on return it is safe on the disk.

        Raises:
            Failed: the file is whole, and holds the earlier version unless the disk failed in the very last step.
        """
        content = json.dumps(document, indent=1).encode() + b"\n"
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}.new")
        try:
            _write_new(beside, content)
            # from here on a death leaves the new version, or the old one and a leftover
            os.rename(beside, self._path)
            _flush_directory(self._path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise Failed(f"cannot write the state {self._path}: {reason_of(error)}") from error

    def _set_aside(self) -> str:
        aside = self._path.with_name(f"{self._path.name}.bad")
        try:
            os.rename(self._path, aside)
        except OSError as error:
            return f"it cannot be kept as {aside.name}: {reason_of(error)}"
        return f"it was kept as {aside.name}"

    def _remove_leftovers(self) -> None:
        """Remove what writers left that were killed; nobody else writes now."""
        try:
            for left in self._path.parent.glob(f".{self._path.name}.*.new"):
                left.unlink(missing_ok=True)
        except OSError as error:
            log.warning("state_leftover_not_removed", reason=str(error))


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Be the only daemon with this state directory within the block, whatever else is configured.

    Another one would take up the instances that ours has launched, and end them with itself. Where the directory cannot
    be locked, or is not there, nobody is kept out.

    Raises:
        Failed: another one has it.
    """
    try:
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(f"cannot start: another clojarsd has the state directory {directory}") from None
        except OSError as error:
            log.warning("state_directory_not_locked", reason=reason_of(error))
        yield
    finally:
        os.close(opened)


def _content(path: Path) -> bytes:
    """All bytes of a regular file. Raises OSError."""
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would make us wait
    with open(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read(LARGEST + 1)


def _parsed(content: bytes) -> object:
    """The JSON in the file. Raises Failed."""
    if not content.strip(b"\0 \n"):
        raise Failed("it is empty")
    if len(content) > LARGEST:
        raise Failed(f"it is larger than {LARGEST} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Failed(f"it holds no whole JSON: {error}") from error


def _write_new(path: Path, content: bytes) -> None:
    """A new file with that content, safe on the disk. Raises OSError."""
    path.unlink(missing_ok=True)  # from a process of the same number
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    with open(opened, "wb") as file:
        os.fchmod(file.fileno(), MODE)  # whatever the umask
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
