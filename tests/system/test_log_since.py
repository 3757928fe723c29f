"""What comes into a log from one moment on, over everything that happens to logs."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system.log_file import LogFile
from clojarsd.system.log_since import file_since_now


def written(log: Path, *lines: str) -> None:
    with log.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


async def test_what_was_there_before_is_not_told(tmp_path: Path) -> None:
    log = tmp_path / "primary.log"
    written(log, "of the former one", "of the former one, too")
    async with file_since_now(LogFile(log)) as last_lines:
        written(log, "a", "b", "c")
        assert await last_lines(2) == ("b", "c")


async def test_nothing_was_written(tmp_path: Path) -> None:
    log = tmp_path / "primary.log"
    written(log, "of the former one")
    async with file_since_now(LogFile(log)) as last_lines:
        assert await last_lines(20) == ()


async def test_a_line_without_an_end_counts(tmp_path: Path) -> None:
    log = tmp_path / "primary.log"
    written(log, "of the former one")
    async with file_since_now(LogFile(log)) as last_lines:
        with log.open("a") as file:
            file.write("Killed")
        assert await last_lines(20) == ("Killed",)


async def test_a_log_that_comes_later_counts_from_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "primary.log"
    async with file_since_now(LogFile(log)) as last_lines:
        written(log, "first")
        assert await last_lines(20) == ("first",)


async def test_a_log_that_never_comes(tmp_path: Path) -> None:
    async with file_since_now(LogFile(tmp_path / "primary.log")) as last_lines:
        assert await last_lines(20) == ()


async def test_a_log_that_is_replaced_meanwhile_counts_in_both_its_files(tmp_path: Path) -> None:
    log = tmp_path / "primary.log"
    written(log, "of the former one")
    async with file_since_now(LogFile(log)) as last_lines:
        written(log, "a")
        log.rename(tmp_path / "primary.log.old")
        written(log, "b")
        assert await last_lines(20) == ("a", "b")


async def test_a_log_that_is_rotated_meanwhile_counts_in_both_its_files(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "primary.log")
    written(file.path, "of the former one")
    async with file_since_now(file) as last_lines:
        written(file.path, "a")
        deque(file.rotate(), maxlen=0)
        written(file.path, "b")
        assert await last_lines(20) == ("a", "b")


async def test_a_log_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    log = tmp_path / "primary.log"
    os.symlink("/etc/passwd", log)
    with pytest.raises(Failed, match="it is a symbolic link"):
        async with file_since_now(LogFile(log)):
            pass
