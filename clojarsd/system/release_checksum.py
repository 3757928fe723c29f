"""The checksum of a release: what it is made of, whatever its times and owner are.

Of a file it is that of its contents, so that sha256sum(1) shows the same. Of a directory it is that of these bytes:
`release directory 1`, NUL, then for each entry below it, directories before what is in them and the names of one
directory in the order of their bytes:

======================= ===========================================================================
directory               `d`, path
file                    `f`, or `x` if its owner may execute it; checksum of the contents; path
symbolic link           `l`; checksum of the text of its target; path
======================= ===========================================================================

each ended by NUL. The path is relative to the directory; checksums are 64 hexadecimal digits.

Nothing but the standard library is imported, and that only when something is computed: the launcher takes this module
by itself, right before it executes a release. A launch takes 2 ms longer by that, and 30 ms for a jar of 60 MB that the
kernel has in memory (sha256 at 1.9 GB/s), three times that on a busy machine. With hashlib imported, a launcher that
waits would take 2.3 MB more.
"""

from __future__ import annotations

import contextlib
import os
import stat

TYPE_CHECKING = False  # as type checkers know it
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

ALGORITHM = "sha256"
_SHOWN = 15
"""Characters of a checksum that messages show."""
EXECUTABLE = 0o100
BLOCK = 1024 * 1024
"""Bytes that are read at a time."""
READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would make us wait


class TreeSum:
    """The checksum of a directory, fed with its entries in their order."""

    def __init__(self) -> None:
        self._sum = new_sum(b"release directory 1\0")

    def directory(self, path: str) -> None:
        """Add a directory; what is in it follows."""
        self._sum.update(b"d" + os.fsencode(path) + b"\0")

    def file(self, path: str, hexadecimal: str, mode: int) -> None:
        """Add a file with the checksum of its contents."""
        kind = b"x" if mode & EXECUTABLE else b"f"
        self._sum.update(kind + hexadecimal.encode() + os.fsencode(path) + b"\0")

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        hexadecimal: str = new_sum(os.fsencode(target)).hexdigest()
        self._sum.update(b"l" + hexadecimal.encode() + os.fsencode(path) + b"\0")

    def text(self) -> str:
        """The checksum of all that was added."""
        return as_text(self._sum.hexdigest())


def new_sum(begin: bytes = b"") -> Any:
    """A checksum that begins with these bytes."""
    import hashlib  # 2 ms and 2 MB that a launcher without a release to look at need not have

    return hashlib.sha256(begin)


def as_text(hexadecimal: str) -> str:
    """The checksum as the release log has it."""
    return f"{ALGORITHM}:{hexadecimal}"


def checksum_of(path: str) -> str:
    """`sha256:…` of a file or of a directory. Raises OSError for anything else, too."""
    file = os.open(path, READING)
    try:
        mode = os.fstat(file).st_mode
        if stat.S_ISREG(mode):
            return as_text(read_through(file))
        if not stat.S_ISDIR(mode):
            raise OSError(f"{path}: is neither a file nor a directory")
        tree = TreeSum()
        _add(tree, file, "")
        return tree.text()
    finally:
        os.close(file)


def difference(path: str, checksum: str) -> str | None:
    """In words, what has become of a release that had that checksum; None when it has it still. Raises OSError."""
    found = checksum_of(path)
    if found == checksum:
        return None
    return (
        f"{path} is not what was installed: its checksum is {found[:_SHOWN]}… instead of {checksum[:_SHOWN]}…;"
        " deploy it again, or go back with `clojarsctl rollback`"
    )


def changed(releases: Iterable[tuple[str, str]], account: tuple[int, str, int] | None) -> str | None:
    """What has become of the first of these paths that has not its checksum any more; None when all have.

    For a process with one thread that is about to become the account, and may be root until then: it is root that would
    be led astray by links, or shut out by a file server.

    Args:
        account: number, name and group of whom to read as; None: who we are.

    Raises:
        OSError: one of them cannot be read.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        if account is not None:
            with contextlib.suppress(PermissionError):  # to become the account will fail, too, and say what is missing
                os.setegid(account[2])
                os.seteuid(account[0])
        return next((told for path, checksum in releases if (told := difference(path, checksum))), None)
    finally:
        os.seteuid(user)
        os.setegid(group)


def _add(tree: TreeSum, directory: int, prefix: str) -> None:
    """Add what is in the open directory."""
    for name in sorted(os.listdir(directory), key=os.fsencode):
        path = prefix + name
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            tree.link(path, os.readlink(name, dir_fd=directory))
            continue
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(f"{path}: is neither a file, a directory nor a symbolic link")
        file = os.open(name, READING, dir_fd=directory)
        try:
            if stat.S_ISREG(mode):
                tree.file(path, read_through(file), mode)
            else:
                tree.directory(path)
                _add(tree, file, path + "/")
        finally:
            os.close(file)


def read_through(file: int, also: Callable[[memoryview], object] | None = None) -> str:
    """The checksum, in hexadecimal, of what is left of an open file; each block is given to `also`. Raises OSError."""
    found, buffer = new_sum(), memoryview(bytearray(BLOCK))
    while count := os.readv(file, [buffer]):
        found.update(buffer[:count])
        if also is not None:
            also(buffer[:count])
    text: str = found.hexdigest()
    return text
