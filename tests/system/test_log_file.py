"""Rotation: the rotated files and the log, one after the other, are what was written, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system.log_file import LogFile
from clojarsd.system.log_packing import pack_one
from clojarsd.system.threads import Threads
from tests.support.control import DEADLINE_S
from tests.support.logs import Reading, append, lines, numbered, rotate, written
from tests.support.waiting import until

MOST = 20_000
STEPS = ("made", "copied", "marked", "moved 3", "moved 2", "moved 1", "renamed", "removed")
"""What a rotation does where three rotated files are there and more may be kept."""


@pytest.fixture(params=["/var/tmp", "/dev/shm"], ids=["collapse", "punch"])
def log(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A log that does not exist yet, on a file system that can collapse files and on one that cannot."""
    with tempfile.TemporaryDirectory(dir=request.param) as directory:
        yield Path(directory) / "primary.log"


def test_a_short_log_is_left_alone(log: Path) -> None:
    append(log, b"x" * MOST)
    assert rotate(LogFile(log, MOST)) == 0
    assert [entry.name for entry in log.parent.iterdir()] == ["primary.log"]


def test_no_log_is_nothing_to_do(log: Path) -> None:
    assert list(LogFile(log, MOST).rotate()) == []
    assert list(LogFile(log, MOST).recover()) == []


def test_what_was_written_is_there_once_and_in_order(log: Path) -> None:
    append(log, lines(0, 5000))
    log.chmod(0o604)
    file = LogFile(log, MOST, keep=100)
    assert rotate(file) >= 6
    append(log, lines(5000, 2000))
    rotate(file)
    assert written(log) == lines(0, 7000)
    assert file.size() <= MOST
    assert all(one.stat().st_size <= MOST and one.stat().st_mode & 0o777 == 0o604 for one in numbered(log).values())


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_rotated_files_are_kept(log: Path, keep: int) -> None:
    append(log, lines(0, 5000))
    rotate(LogFile(log, MOST, keep))
    assert list(numbered(log)) == list(range(keep, 0, -1))
    assert lines(0, 5000).endswith(written(log))
    list(LogFile(log, MOST, keep - 1).recover())
    assert list(numbered(log)) == list(range(keep - 1, 0, -1))


def test_none_is_kept(log: Path) -> None:
    append(log, lines(0, 5000))
    file = LogFile(log, MOST, 0)
    assert rotate(file) >= 6
    assert [entry.name for entry in log.parent.iterdir()] == ["primary.log"]
    assert lines(0, 5000).endswith(written(log))
    assert file.size() <= MOST


def test_a_writer_at_full_speed_loses_nothing(log: Path) -> None:
    """The writer keeps its descriptor, as an instance does; rotation goes on beside it."""
    program = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
for number in range(100000):
    os.write(file, b"line %07d of this log\\n" % number)
"""
    log.touch()
    file = LogFile(log, 200_000, 1000)
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", program, str(log)]) as writer:
        while writer.poll() is None:
            rotate(file)
    rotate(file)
    assert writer.returncode == 0
    assert written(log) == lines(0, 100_000)
    assert len(numbered(log)) >= 10


KILLED = """
import os, pathlib, signal, sys
from clojarsd.system.log_file import LogFile
for step in LogFile(pathlib.Path(sys.argv[1]), int(sys.argv[2]), 10).rotate():
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
sys.exit("it was not killed")
"""


@pytest.mark.parametrize("same", [False, True], ids=["lines that differ", "lines that are all the same"])
@pytest.mark.parametrize("step", STEPS)
def test_a_rotation_that_is_killed_neither_loses_nor_doubles(log: Path, step: str, same: bool) -> None:
    """Whoever comes next finishes it from what the files say; no content is compared."""
    text = b"the same\n" * 10_000 if same else lines(0, 4000)
    more = b"the same\n" * 3000 if same else lines(4000, 1000)
    append(log, text[: 5 * MOST // 2])
    rotate(LogFile(log, MOST // 2, 10))  # three rotated files or so
    rotated = len(numbered(log))
    assert rotated >= 3
    for extra in range(rotated, 3, -1):
        text = text.removeprefix(numbered(log)[extra].read_bytes())
        numbered(log)[extra].unlink()
    append(log, text.removeprefix(written(log)))
    died = subprocess.run([sys.executable, "-c", KILLED, str(log), str(MOST), step], capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    append(log, more)  # its writer goes on
    file = LogFile(log, MOST, 100)
    list(file.recover())
    assert written(log) == text + more
    rotate(file)
    assert written(log) == text + more
    assert not list(log.parent.glob("*ing"))
    assert sorted(numbered(log)) == list(range(1, len(numbered(log)) + 1))


async def test_all_but_the_latest_are_packed(log: Path) -> None:
    append(log, lines(0, 5000))
    log.chmod(0o604)
    file, threads = LogFile(log, MOST, 100), Threads("test")
    rotate(file)
    while await pack_one(file, threads):
        pass
    threads.close()
    names = numbered(log)
    assert {number for number, one in names.items() if one.suffix != ".gz"} == {1}
    assert all(one.stat().st_mode & 0o777 == 0o604 for one in names.values())
    assert written(log) == lines(0, 5000)
    append(log, lines(5000, 2000))
    rotate(file)
    assert written(log) == lines(0, 7000)


async def test_a_packing_that_was_cut_leaves_nothing_half(log: Path) -> None:
    """Both a torn temporary file, and a complete one beside its source, are cleared away by the next packing."""
    append(log, lines(0, 5000))
    file, threads = LogFile(log, MOST, 100), Threads("test")
    rotate(file)
    oldest = next(iter(numbered(log).values()))
    log.with_name("primary.log.packing").write_bytes(gzip.compress(b"torn")[:10])
    log.with_name(f"{oldest.name}.gz").write_bytes(gzip.compress(oldest.read_bytes()))
    while await pack_one(file, threads):
        pass
    threads.close()
    append(log, lines(5000, 2000))
    rotate(file)
    assert not list(log.parent.glob("*ing"))
    assert written(log) == lines(0, 7000)


def children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found |= set((task / "children").read_text().split())
    return found


async def test_a_packing_that_is_cancelled_ends_its_program(log: Path) -> None:
    before = children()
    rotated = log.with_name("primary.log.2")
    rotated.write_bytes(os.urandom(1 << 20) * 60)
    log.with_name("primary.log.1").write_text("latest\n")
    threads = Threads("test")
    task = asyncio.ensure_future(pack_one(LogFile(log, MOST), threads))
    packing = log.with_name("primary.log.packing")
    await until(lambda: packing.exists() and packing.stat().st_size > 0, "some of the packed file")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    threads.close()
    assert children() == before
    assert rotated.stat().st_size == 60 << 20
    assert not rotated.with_name("primary.log.2.gz").exists()


async def test_a_file_that_is_rotated_on_while_it_is_packed(log: Path) -> None:
    append(log, lines(0, 5000))
    file, threads = LogFile(log, MOST, 100), Threads("test")
    rotate(file)
    packing = threads.run(lambda: None)
    await packing
    append(log, lines(5000, 2000))
    rotating = threading.Thread(target=rotate, args=(file,))
    rotating.start()
    while await pack_one(file, threads):
        pass
    rotating.join(DEADLINE_S)
    threads.close()
    assert written(log) == lines(0, 7000)


def test_nothing_but_the_log_itself_is_touched(log: Path) -> None:
    """The directory may belong to somebody with fewer rights than the daemon."""
    treasure = log.with_name("treasure")
    append(treasure, lines(0, 5000))
    log.symlink_to(treasure)
    with pytest.raises(Failed, match=r"cannot rotate the log .*: too many levels of symbolic links"):
        list(LogFile(log, MOST).rotate())
    log.unlink()
    log.hardlink_to(treasure)
    with pytest.raises(Failed, match="it is not a regular file with one name"):
        list(LogFile(log, MOST).rotate())
    assert treasure.read_bytes() == lines(0, 5000)


def test_only_one_process_rotates(log: Path) -> None:
    append(log, lines(0, 5000))
    file = LogFile(log, MOST)
    first = file.rotate()
    next(first)
    with pytest.raises(Failed, match="another process does"):
        list(LogFile(log, MOST).rotate())
    assert list(first)[-1] == "removed"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [0, 1, 700, 4000, 4999, 5000, 9000])
async def test_the_last_lines_reach_back_into_rotated_files(log: Path, count: int, packed: bool) -> None:
    append(log, lines(0, 5000))
    file, threads = LogFile(log, MOST, 100), Threads("test")
    rotate(file)
    while packed and await pack_one(file, threads):
        pass
    threads.close()
    reading = Reading(file, count)
    shown = min(count, 5000)
    assert reading.rest() == lines(5000 - shown, shown)
    append(log, lines(5000, 10))
    assert reading.rest() == lines(5000, 10)
    reading.reader.close()


def test_the_oldest_line_is_not_shown_when_its_beginning_is_gone(log: Path) -> None:
    append(log, lines(0, 5000))
    file = LogFile(log, MOST, 2)
    rotate(file)
    reading = Reading(file, 5000)
    shown = reading.rest()
    reading.reader.close()
    assert re.fullmatch(rb"(line \d{7} of this log\n)+", shown)
    assert lines(0, 5000).endswith(shown)
    assert len(written(log)) - len(shown) < 30


@pytest.mark.parametrize("same", [False, True])
def test_a_reader_follows_through_rotations(log: Path, same: bool) -> None:
    """One that is at the end, and one that is three rotated files behind; also where all lines are alike."""

    def some(first: int, count: int) -> bytes:
        return b"always the same line\n" * count if same else lines(first, count)

    append(log, some(0, 4000))
    file = LogFile(log, MOST, 100)
    behind, at_end = Reading(file, 3500), Reading(file, 0)
    first = behind.reader.read()
    rotate(file)
    append(log, some(4000, 100))
    assert at_end.rest() == some(4000, 100)
    append(log, some(4100, 3000))
    rotate(file)
    assert at_end.rest() == some(4100, 3000)
    seen = b"".join(f"{line}\n".encode() for line in first) + behind.rest()
    assert seen == some(500, 6600)
    behind.reader.close()
    at_end.reader.close()


def test_a_reader_that_is_too_slow_is_told(log: Path) -> None:
    append(log, lines(0, 4000))
    file = LogFile(log, MOST, 1)
    behind = Reading(file, 4000)
    rotate(file)
    with pytest.raises(Failed, match=r"this reader was too slow, and \d+ bytes that come next were rotated away"):
        behind.rest()
    behind.reader.close()
