"""Copies what becomes a release, and takes one away; file by file, without ever following a link.

A tree may have files, directories and symbolic links that stay in it. What a copy keeps of a file is whether it may be
executed; nobody may write to it afterwards.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clojarsd.core.errors import Refused
from clojarsd.core.releases import ReleaseKind
from clojarsd.system.release_checksum import EXECUTABLE, READING, TreeSum, as_text, read_through

READ_ONLY: Final = 0o444
WITH_EXECUTION: Final = 0o555
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """What is to be copied.

    Attributes:
        size: bytes of all contents.
        entries: how many files, directories and links there are.
    """

    kind: ReleaseKind
    size: int
    entries: int


def measure(source: Path) -> Measure:
    """What a copy of it takes.

    Raises:
        Refused: something in it cannot be part of a release; says what.
        OSError: it cannot be read.
    """
    mode = source.lstat().st_mode
    if stat.S_ISREG(mode):
        return Measure(ReleaseKind.FILE, source.lstat().st_size, 1)
    if not stat.S_ISDIR(mode):
        raise Refused(f"{source} is {_kind(mode)}; a release is a file or a directory")
    size, entries, root = 0, 1, os.path.realpath(source)
    for directory, directories, names in os.walk(source, onerror=_give_up):
        for name in (*directories, *names):
            entries += 1
            path = os.path.join(directory, name)
            seen = os.lstat(path)
            if stat.S_ISREG(seen.st_mode):
                size += seen.st_size
            elif stat.S_ISLNK(seen.st_mode):
                _stay_inside(path, root)
            elif not stat.S_ISDIR(seen.st_mode):
                raise Refused(f"{path} is {_kind(seen.st_mode)}, which cannot be part of a release")
    return Measure(ReleaseKind.DIRECTORY, size, entries)


def copy(source: Path, target: Path) -> str:
    """The checksum of the source, which is safe on the disk as `target` now, except for that name.

    Raises:
        FileExistsError: there is a target.
        OSError: it could not be copied; a part may be there.
    """
    file = os.open(source, READING)
    try:
        seen = os.fstat(file)
        if stat.S_ISREG(seen.st_mode):
            return as_text(_copy_file(file, seen.st_mode, str(target), None))
        target.mkdir(0o700)
        tree, copied = TreeSum(), os.open(target, READING | os.O_DIRECTORY)
        try:
            _copy_tree(tree, file, copied, "")
        finally:
            os.close(copied)
        return tree.text()
    finally:
        os.close(file)


def _copy_tree(tree: TreeSum, source: int, target: int, prefix: str) -> None:
    """Copy what is in one open directory into another, in the order of the checksum; the copy is made read-only."""
    for name in sorted(os.listdir(source), key=os.fsencode):
        path = prefix + name
        mode = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            leads_to = os.readlink(name, dir_fd=source)
            os.symlink(leads_to, name, dir_fd=target)
            tree.link(path, leads_to)
            continue
        opened = os.open(name, READING, dir_fd=source)
        try:
            if stat.S_ISREG(mode):
                tree.file(path, _copy_file(opened, mode, name, target), mode)
                continue
            tree.directory(path)
            os.mkdir(name, 0o700, dir_fd=target)
            made = os.open(name, READING | os.O_DIRECTORY, dir_fd=target)
            try:
                _copy_tree(tree, opened, made, path + "/")
            finally:
                os.close(made)
        finally:
            os.close(opened)
    os.fchmod(target, WITH_EXECUTION)
    os.fsync(target)


def _copy_file(source: int, mode: int, name: str, directory: int | None) -> str:
    """The checksum of an open file, in hexadecimal; the copy is safe on the disk. Raises OSError."""
    with open(os.open(name, _NEW, 0o600, dir_fd=directory), "wb", buffering=0) as copied:

        def write(block: memoryview) -> None:
            while block:
                block = block[copied.write(block) or 0 :]

        hexadecimal = read_through(source, write)
        os.fchmod(copied.fileno(), WITH_EXECUTION if mode & EXECUTABLE else READ_ONLY)
        os.fsync(copied.fileno())
    return hexadecimal


def take_away(path: Path) -> None:
    """Remove a file, a link, or a directory with all that is in it, also where it is read-only. Raises OSError."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    path.chmod(0o700)
    with os.scandir(path) as entries:
        for entry in entries:
            take_away(Path(entry.path))
    path.rmdir()


def _give_up(error: OSError) -> None:
    raise error


def _stay_inside(link: str, root: str) -> None:
    """Raises Refused when the link leads out of the tree."""
    target = os.readlink(link)
    real = os.path.realpath(os.path.join(os.path.dirname(link), target))
    if os.path.isabs(target) or os.path.commonpath([root, real]) != root:
        raise Refused(f"{link} is a symbolic link that leads out of the release, to {target}")


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "something else")
