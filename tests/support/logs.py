"""Logs that are rotated, and what is in them."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

from clojarsd.system.fallocate import first_byte
from clojarsd.system.log_file import LogFile
from clojarsd.system.log_tail import LogReader


def numbered(path: Path) -> dict[int, Path]:
    """The rotated files by number, the oldest first."""
    found = {}
    for entry in path.parent.iterdir():
        if match := re.fullmatch(rf"{re.escape(path.name)}\.(\d+)(\.gz)?", entry.name):
            found[int(match[1])] = entry
    return dict(sorted(found.items(), reverse=True))


def written(path: Path) -> bytes:
    """All that can be read, the oldest first."""
    parts = [
        gzip.decompress(one.read_bytes()) if one.suffix == ".gz" else one.read_bytes()
        for one in numbered(path).values()
    ]
    with path.open("rb") as file:
        file.seek(first_byte(file.fileno()))
        return b"".join(parts) + file.read()


def append(path: Path, text: bytes) -> None:
    """Write more to a log."""
    with path.open("ab") as file:
        file.write(text)


def lines(first: int, count: int) -> bytes:
    """Lines that differ."""
    return b"".join(b"line %07d of this log\n" % number for number in range(first, first + count))


def rotate(log: LogFile) -> int:
    """How many rotations it took until the log is short."""
    count = 0
    while list(log.rotate()):
        count += 1
    return count


class Reading:
    """Somebody who follows a log."""

    def __init__(self, log: LogFile, count: int) -> None:
        self.reader = LogReader(log)
        self.reader.open_at_end(count)

    def rest(self) -> bytes:
        """All that can be read now."""
        found = []
        while some := self.reader.read():
            found += some
        return b"".join(f"{line}\n".encode() for line in found)
