"""Hearing from the kernel that an entry of a directory has changed."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system.inotify import EntryWatch
from tests.support.control import DEADLINE_S


async def changed(watch: EntryWatch) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await watch.change()


async def test_everything_that_happens_to_the_name_is_heard(tmp_path: Path) -> None:
    path, other = tmp_path / "name", tmp_path / "other"
    with EntryWatch(path) as watch:
        path.write_text("made")
        await changed(watch)
        with path.open("a") as file:
            file.write("more")
            file.flush()
            await changed(watch)
            os.ftruncate(file.fileno(), 0)
            await changed(watch)
        path.chmod(0o600)
        await changed(watch)
        path.rename(other)
        await changed(watch)
        other.rename(path)
        await changed(watch)
        path.unlink()
        await changed(watch)


async def test_what_happens_to_other_names_is_not(tmp_path: Path) -> None:
    with EntryWatch(tmp_path / "name") as watch:
        change = asyncio.ensure_future(watch.change())
        (tmp_path / "name2").write_text("x")
        (tmp_path / "nam").write_text("x")
        with EntryWatch(tmp_path / "nam") as fence:  # the kernel and the loop tell in the order of the changes
            (tmp_path / "nam").write_text("y")
            await changed(fence)
        assert not change.done()
        (tmp_path / "name").write_text("x")
        async with asyncio.timeout(DEADLINE_S):
            await change


async def test_the_end_of_the_directory_is_heard(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    with EntryWatch(directory / "name") as watch:
        directory.rmdir()
        await changed(watch)


async def test_what_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(Failed) as failed:
        EntryWatch(tmp_path / "gone" / "name")
    assert str(failed.value) == f"cannot watch {tmp_path / 'gone'}: {os.strerror(errno.ENOENT)}"
