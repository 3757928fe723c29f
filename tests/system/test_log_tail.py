"""The last lines of a log, and those that come."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed, Refused
from clojarsd.system.log_tail import BLOCK, CUT, LONGEST_LINE, LogReader, follow, last_lines
from tests.support.control import DEADLINE_S


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "primary.log"


async def last(path: Path, count: int) -> list[str]:
    async with aclosing(last_lines(path, count)) as batches:
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
    async with aclosing(follow(path, count)) as batches:
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
    reader = LogReader(log)
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


async def test_nothing_is_read_after_the_end(log: Path) -> None:
    log.write_text("a\n")
    reader = LogReader(log)
    reader.open_at_end(1)
    reader.close()
    assert reader.read() == []
    reader.close()


async def test_a_directory_that_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(Failed) as failed:
        await anext(follow(tmp_path / "gone" / "primary.log", 5))
    assert str(failed.value) == f"cannot watch {tmp_path / 'gone'}: No such file or directory"
