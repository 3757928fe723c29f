"""The last lines of a log, and those that come."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed, Refused
from clojarsd.system import log_tail as module
from clojarsd.system.log_file import LogFile
from clojarsd.system.log_tail import BLOCK, CUT, LONGEST_LINE, LogReader, follow, last_lines
from tests.support.control import DEADLINE_S


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "primary.log"


async def last(path: Path, count: int) -> list[str]:
    async with aclosing(last_lines(LogFile(path), count)) as batches:
        return [line async for batch in batches for line in batch]


class Followed:
    """The lines of a follower, one at a time."""

    def __init__(self, batches: AsyncIterator[Sequence[str]]) -> None:
        self._batches = batches
        self._lines: list[str] = []

    async def next(self, count: int = 1) -> list[str]:
        async with asyncio.timeout(DEADLINE_S):
            while len(self._lines) < count:
                self._lines += await anext(self._batches)
        given, self._lines = self._lines[:count], self._lines[count:]
        return given


@asynccontextmanager
async def following(path: Path, count: int) -> AsyncIterator[Followed]:
    async with aclosing(follow(LogFile(path), count)) as batches:
        yield Followed(batches)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("text", "count", "lines"),
    [
        ("", 5, []),
        ("a\n", 5, ["a"]),
        ("a\nb\nc\n", 2, ["b", "c"]),
        ("a\nb\nc\n", 3, ["a", "b", "c"]),
        ("a\nb\nc\n", 0, []),
        ("a\nb\nunfinished", 2, ["b", "unfinished"]),
        ("\n\n\n", 2, ["", ""]),
        ("\n", 1, [""]),
        ("only unfinished", 1, ["only unfinished"]),
        ("ü\r\n", 1, ["ü\r"]),
    ],
)
async def test_the_last_lines(log: Path, text: str, count: int, lines: list[str]) -> None:
    log.write_text(text, newline="")
    assert await last(log, count) == lines


@pytest.mark.parametrize("length", [1, 100, BLOCK - 1, BLOCK, BLOCK + 1])
async def test_lines_over_the_edges_of_blocks(log: Path, length: int) -> None:
    lines = [f"{number:06d}".ljust(length, "x")[:length] for number in range(3 * BLOCK // length + 3)]
    log.write_text("\n".join(lines) + "\n")
    for count in (1, 2, len(lines) - 1, len(lines), len(lines) + 1):
        assert [line.removesuffix(CUT) for line in await last(log, count)] == [
            line[:LONGEST_LINE] for line in lines[-count:]
        ]


async def test_the_end_of_a_big_file_takes_little_memory(log: Path) -> None:
    line = b"x" * 99 + b"\n"
    with log.open("wb") as file:
        for _ in range(20):
            file.write(line * 20_000)
    tracemalloc.start()
    try:
        assert len(await last(log, 50)) == 50
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


async def test_bytes_that_are_no_text_and_lines_without_measure(log: Path) -> None:
    log.write_bytes(b"\xff\xfe\n" + b"y" * (3 * LONGEST_LINE) + b"\nend\n")
    first, long, end = await last(log, 3)
    assert (first, end) == ("\ufffd\ufffd", "end")
    assert long == "y" * LONGEST_LINE + CUT


async def test_a_log_that_is_not_there(log: Path) -> None:
    with pytest.raises(Refused) as refused:
        await last(log, 5)
    assert str(refused.value) == f"there is no log at {log} yet"


async def test_only_a_regular_file_is_read(log: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    log.symlink_to(secret)
    with pytest.raises(Failed) as failed:
        await last(log, 5)
    assert str(failed.value) == f"cannot read the log {log}: it is a symbolic link"
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(Failed) as failed:
        await last(log, 5)
    assert str(failed.value) == f"cannot read the log {log}: it is not a regular file"


async def test_lines_that_come_are_followed(log: Path) -> None:
    log.write_text("a\nb\n")
    async with following(log, 1) as lines:
        assert await lines.next() == ["b"]
        append(log, "c\nd\n")
        assert await lines.next(2) == ["c", "d"]


async def test_an_unfinished_line_is_shown_when_it_is_complete(log: Path) -> None:
    log.write_text("a\nhal")
    async with following(log, 2) as lines:
        assert await lines.next() == ["a"]
        append(log, "f a l")
        append(log, "ine\nnext\n")
        assert await lines.next(2) == ["half a line", "next"]


async def test_a_log_that_comes_later_is_waited_for(log: Path) -> None:
    async with following(log, 5) as lines:
        coming = asyncio.ensure_future(lines.next())
        await asyncio.sleep(0)
        append(log, "first\n")
        assert await coming == ["first"]


async def test_a_replaced_file_is_read_to_its_end_and_then_the_new_one(log: Path) -> None:
    log.write_text("a\n")
    async with following(log, 1) as lines:
        assert await lines.next() == ["a"]
        append(log, "b\nunfinished")
        log.rename(log.with_suffix(".1"))
        append(log.with_suffix(".1"), " but ended")
        log.write_text("new\n")
        assert await lines.next(3) == ["b", "unfinished but ended", "new"]


async def test_a_file_that_has_lost_its_name_is_still_followed(log: Path) -> None:
    log.write_text("a\n")
    async with following(log, 1) as lines:
        assert await lines.next() == ["a"]
        moved = log.rename(log.with_suffix(".1"))
        append(moved, "b\n")
        log.write_text("new\n")
        assert await lines.next(2) == ["b", "new"]


async def test_a_truncated_file_is_read_from_its_beginning(log: Path) -> None:
    log.write_text("a\nb\n")
    async with following(log, 1) as lines:
        assert await lines.next() == ["b"]
        os.truncate(log, 0)
        append(log, "new\n")
        assert await lines.next() == ["new"]


async def test_a_truncated_file_that_has_grown_beyond_the_old_place(log: Path) -> None:
    log.write_text("a\nb\n")
    async with following(log, 1) as lines:
        assert await lines.next() == ["b"]
        log.write_text("much longer than before\nsecond\n")
        assert await lines.next(2) == ["much longer than before", "second"]


def test_pages_removed_from_the_head_lose_and_repeat_nothing(log: Path) -> None:
    """Rotation takes whole pages from the head of the file while its writer goes on."""
    text = [f"line {number:06d} {'x' * 50}" for number in range(1000)]
    log.write_text("".join(f"{line}\n" for line in text[:500]))
    reader = LogReader(LogFile(log))
    try:
        reader.open_at_end(1)
        assert reader.read() == [text[499]]
        rest = log.read_bytes()[2 * 4096 :]
        with log.open("r+b") as file:  # the same inode, as with FALLOC_FL_COLLAPSE_RANGE, on any file system
            file.write(rest)
            file.truncate()
        append(log, "".join(f"{line}\n" for line in text[500:]))
        seen = []
        while some := reader.read():
            seen += some
        assert seen == text[500:]
    finally:
        reader.close()


async def test_a_follower_is_told_that_the_directory_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIRECTORY_LOOK", 0.02)
    log = tmp_path / "logs" / "primary.log"
    log.parent.mkdir()
    log.write_text("a\n")
    async with following(log, 1) as lines:
        assert await lines.next() == ["a"]
        log.unlink()
        log.parent.rmdir()
        with pytest.raises(Failed) as failed:
            await lines.next()
    assert str(failed.value) == f"cannot go on with the log {log}: its directory was removed or renamed"


async def test_nothing_is_read_after_the_end(log: Path) -> None:
    log.write_text("a\n")
    reader = LogReader(LogFile(log))
    reader.open_at_end(1)
    reader.close()
    assert reader.read() == []
    reader.close()


async def test_a_directory_that_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(Failed) as failed:
        await anext(follow(LogFile(tmp_path / "gone" / "primary.log"), 5))
    assert str(failed.value) == f"cannot watch {tmp_path / 'gone'}: No such file or directory"


class HungDisk:
    """Reads hang until they are let go."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.gate = threading.Event()
        self._pread = os.pread

    def pread(self, file: int, size: int, position: int) -> bytes:
        self.hangs.set()
        self.gate.wait(DEADLINE_S)
        return self._pread(file, size, position)


@pytest.fixture
def hung_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[HungDisk]:
    disk = HungDisk()
    monkeypatch.setattr(os, "pread", disk.pread)
    yield disk
    disk.gate.set()


def test_closing_does_not_wait_for_a_read_which_then_lets_go_of_the_file(log: Path, hung_disk: HungDisk) -> None:
    log.write_text("a\nb\n")
    reader = LogReader(LogFile(log))
    reading = threading.Thread(target=reader.open_at_end, args=(1,))
    reading.start()
    assert hung_disk.hangs.wait(DEADLINE_S)
    reader.close()
    assert reading.is_alive()
    hung_disk.gate.set()
    reading.join(DEADLINE_S)
    assert reader._file is None
    assert reader.read() == []


def test_a_scan_ends_when_its_reader_is_closed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_bytes(b"x" * (20 * BLOCK))
    reader = LogReader(LogFile(log))
    pread, reads = os.pread, 0

    def close_at_the_third(file: int, size: int, position: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 3:
            reader.close()
        return pread(file, size, position)

    monkeypatch.setattr(os, "pread", close_at_the_third)
    reader.open_at_end(5)
    assert reads == 4  # the last for the anchor
    assert reader._file is None


async def test_hung_reads_starve_no_other_work(log: Path, hung_disk: HungDisk) -> None:
    log.write_text("a\n")
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    shown = [asyncio.ensure_future(last(log, 1)) for _ in range(3 * module.MOST_THREADS)]
    await asyncio.sleep(0)  # all have begun
    assert hung_disk.hangs.wait(DEADLINE_S)
    async with asyncio.timeout(DEADLINE_S / 2):
        assert await asyncio.to_thread(lambda: 7) == 7
    assert not any(task.done() for task in shown)
    hung_disk.gate.set()
    for task in shown:
        assert await task == ["a"]


def test_a_hung_read_does_not_hold_up_the_end_of_the_process(log: Path) -> None:
    log.write_text("a\n")
    program = """
import asyncio, os, pathlib, sys, threading
from clojarsd.system.log_file import LogFile
from clojarsd.system.log_tail import last_lines

hangs = threading.Event()
os.pread = lambda *_: (hangs.set(), threading.Event().wait())

async def main():
    async def show():
        async for _ in last_lines(LogFile(pathlib.Path(sys.argv[1])), 1):
            pass
    shown = asyncio.ensure_future(show())
    while not hangs.is_set():
        await asyncio.sleep(0)
    shown.cancel()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program, str(log)], check=True, timeout=DEADLINE_S)


async def test_the_last_lines_are_looked_for_so_far_and_no_farther(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SCANNED", 3 * BLOCK + 7)
    log.write_text("".join(f"{number:09d}\n" for number in range(BLOCK)))
    shown = await last(log, BLOCK)
    assert shown == [f"{number:09d}" for number in range(BLOCK - (3 * BLOCK + 7) // 10, BLOCK)]
    log.write_bytes(b"x" * (8 * BLOCK))  # no line to begin with
    reader = LogReader(LogFile(log))
    reader.open_at_end(5)
    assert reader._position == 5 * BLOCK - 7
    reader.close()
