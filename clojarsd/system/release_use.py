"""Which releases processes have in use: open, mapped, executed, or as where they are.

What counts is the file itself, by device and inode, so that a release that was renamed is found. Where the kernel
gives a mapping another device than the file has, and for what has lost its name, the path that it tells counts.

Source: proc(5) on fd, maps, cwd, exe and root.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

_DELETED: Final = " (deleted)"
_PLACES: Final = ("cwd", "root", "exe")

Index = Mapping[tuple[int, int], str]
"""The name of the release that a file or directory, by device and inode, is of."""


def index_of(directory: Path, names: Iterable[str]) -> Index:
    """Everything that these releases in the directory consist of. Raises OSError."""
    found: dict[tuple[int, int], str] = {}
    for name in names:
        path = directory / name
        inside = [path]
        for below, directories, files in os.walk(path):
            inside += [Path(below, one) for one in (*directories, *files)]
        for one in inside:
            with contextlib.suppress(FileNotFoundError):
                seen = one.lstat()
                found[seen.st_dev, seen.st_ino] = name
    return found


def users_of(directory: Path, index: Index, processes: Iterable[int] | None = None) -> dict[str, tuple[int, ...]]:
    """The numbers of the processes that use each release; one that nobody uses is not among the keys.

    Processes that may not be looked into, and this one itself, do not count.

    Args:
        directory: that of the releases.
        processes: their numbers; None: all that there are.
    """
    prefix = f"{os.path.realpath(directory)}/"
    found: dict[str, list[int]] = {}
    for pid in _all_but_us() if processes is None else processes:
        used: set[str] = set()
        for device, inode, path in _opened(pid):
            name = index.get((device, inode))
            if name is None and path.startswith(prefix):
                name = path.removeprefix(prefix).partition("/")[0].removesuffix(_DELETED)
            if name is not None and not name.startswith("."):
                used.add(name)
        for name in used:
            found.setdefault(name, []).append(pid)
    return {name: tuple(sorted(pids)) for name, pids in found.items()}


def _all_but_us() -> list[int]:
    me = str(os.getpid())
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and name != me]


def _opened(pid: int) -> Iterator[tuple[int, int, str]]:
    """Device, inode and path of all that the process has open or mapped, as far as that can be seen."""
    links = [f"/proc/{pid}/{place}" for place in _PLACES]
    with contextlib.suppress(OSError):
        links += [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    for link in links:
        with contextlib.suppress(OSError):
            path = os.readlink(link)
            if path.startswith("/"):  # neither a socket nor a pipe
                seen = os.stat(link)
                yield seen.st_dev, seen.st_ino, path
    yield from _mapped(pid)


def _mapped(pid: int) -> set[tuple[int, int, str]]:
    found = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as lines:
        for line in lines:
            fields = line.rstrip(b"\n").split(maxsplit=5)
            if len(fields) == 6 and fields[4] != b"0":
                major, minor = (int(part, 16) for part in fields[3].split(b":"))
                found.add((os.makedev(major, minor), int(fields[4]), os.fsdecode(fields[5])))
    return found
