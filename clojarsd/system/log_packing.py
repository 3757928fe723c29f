"""Packs rotated files with gzip, one at a time, while the log goes on being rotated."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from clojarsd.core.errors import Failed, reason_of
from clojarsd.system.log_file import PACKED, LogFile
from clojarsd.system.log_names import give_like, inode_of, remove_name, rename_in
from clojarsd.system.program import Program
from clojarsd.system.threads import Threads

PACKER = Path(__file__).with_name("log_packer.py")
DONE = b"done"


@dataclass(frozen=True, slots=True)
class Packing:
    """A rotated file that is being packed; `end` closes it.

    Attributes:
        directory: where it is, open.
        source: open for reading.
        target: open for writing, empty.
    """

    directory: int
    source: int
    target: int

    def close(self) -> None:
        """Let go of all three."""
        for descriptor in (self.directory, self.source, self.target):
            os.close(descriptor)


async def pack_one(log: LogFile, threads: Threads) -> bool:
    """Pack the oldest rotated file but the latest that is not packed yet; whether there was one.

    Cancelled, it leaves that file as it was.

    Args:
        threads: those that rotate the log too, one at a time.

    Raises:
        Failed: it could not be packed, and is as it was.
    """
    try:
        packing = await threads.run(begin, log)
        if packing is None:
            return False
        said = b""
        try:
            command = [sys.executable, "-I", "-S", str(PACKER)]
            async with Program(command, packing.source, packing.target) as packer:
                while some := await packer.read():
                    said += some
        except BaseException:
            packing.close()
            raise
        await threads.run(end, log, packing, said == DONE)
        if said != DONE:
            reason = said.decode(errors="replace").strip() or "its packer was killed"
            raise Failed(f"cannot pack a rotated file of {log.path}: {reason}")
    except OSError as error:
        reason = reason_of(error)
        raise Failed(f"cannot pack a rotated file of {log.path}: {reason}") from error
    return True


def begin(log: LogFile) -> Packing | None:
    """The file that is to be packed next, opened, with where it goes; None when there is none. Blocks.

    Raises:
        OSError: it cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory = os.open(log.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        stack.callback(os.close, directory)
        with log.changing:
            remove_name(_temporary(log), directory)
            names = log.rotated(directory)
            plain = [name for number, name in names.items() if number > 1 and not name.endswith(PACKED)]
            if not plain:
                return None
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            source = os.open(plain[-1], flags, dir_fd=directory)
        stack.callback(os.close, source)
        seen = os.fstat(source)
        if not stat.S_ISREG(seen.st_mode):
            raise OSError(errno.EINVAL, f"{plain[-1]} is not a regular file")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        target = os.open(_temporary(log), flags, 0o600, dir_fd=directory)
        stack.callback(os.close, target)
        give_like(target, seen)
        stack.pop_all()
    return Packing(directory, source, target)


def end(log: LogFile, packing: Packing, complete: bool) -> None:
    """Put what is packed and flushed in the place of its source, wherever that is by now; or forget it. Blocks.

    Raises:
        OSError: it cannot be put there.
    """
    with contextlib.closing(packing), log.changing:
        seen = os.fstat(packing.source)
        os.utime(packing.target, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        for name in log.rotated(packing.directory).values() if complete else ():
            if inode_of(os.lstat(name, dir_fd=packing.directory)) == inode_of(seen):
                rename_in(packing.directory, _temporary(log), name + PACKED)
                os.fsync(packing.directory)  # when the next line fails both are there, and the packed one is complete
                remove_name(name, packing.directory)
                return
        remove_name(_temporary(log), packing.directory)


def _temporary(log: LogFile) -> str:
    return f"{log.path.name}.packing"
