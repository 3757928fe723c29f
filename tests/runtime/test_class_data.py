"""Of which instance an archive can be made, one at a time; and how a failure is told. What is made is scenarios'."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed, Refused
from clojarsd.core.names import Role, UnitState
from clojarsd.core.view import DaemonView
from clojarsd.runtime.class_data import ClassData, Outcome
from clojarsd.runtime.status import Board
from tests.runtime.test_plans import LEAST, plans_of
from tests.support.control import instance

DEPLOY = f"""
[service]
user = "{os.geteuid()}"
group = "{os.getegid()}"
[deploy]
repository = "/origin"
work_dir = "/builds"
releases = "{{home}}"
current = "current.jar"
"""
B = Role.BACKUP
CANNOT = "cannot make a class-data archive of backup"


class Room:
    """Class data before a pair as the test has it; no command is ever run."""

    def __init__(self, home: Path) -> None:
        self.board = Board("demo", DaemonView("1", 1, "then", "x"), lambda: None)
        self.plans = plans_of(LEAST + DEPLOY.format(home=home))
        for role in Role:
            self.board.publish(instance(role))
        self.class_data = ClassData(self.board, lambda: self.plans, lambda deploy: self._run)

    async def _run(self, step: str, command: Sequence[str], directory: Path, *, timeout: float) -> Outcome:
        raise AssertionError("nothing is to be run")

    async def refusal(self) -> str:
        async with asyncio.TaskGroup() as group:
            with pytest.raises(Refused) as refused:
                self.class_data.order(B, group)
        return str(refused.value)


@pytest.fixture
async def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


async def test_it_must_run_and_have_a_release(room: Room) -> None:
    room.board.publish(instance(B, state=UnitState.STOPPED, pid=None))
    assert await room.refusal() == (
        f"{CANNOT}: it is stopped, and only one that has started has its classes loaded; nothing was done"
    )
    room.board.publish(instance(B, state=UnitState.STARTING))
    assert "it is starting" in await room.refusal()
    room.board.publish(instance(B, release=None))
    assert await room.refusal() == (
        f"{CANNOT}: it was launched with no release: its command has no {{release}}; nothing was done"
    )


async def test_the_settings_must_allow_it(room: Room, tmp_path: Path) -> None:
    deploy = DEPLOY.format(home=tmp_path)
    room.plans = plans_of(LEAST.replace("[app]\n", '[app]\nchroot = "/srv/root"\n') + deploy)
    assert await room.refusal() == f"{CANNOT}: it runs in a root directory of its own (chroot); nothing was done"
    room.plans = plans_of(LEAST)
    assert await room.refusal() == f"{CANNOT}: the configuration has no [deploy]; nothing was done"
    await room.class_data.remove("1.jar")


async def test_one_at_a_time_and_a_failure_is_told_with_what_still_holds(room: Room) -> None:
    """A process that is gone is no JVM."""
    room.board.publish(replace(instance(B), pid=2**22 + 1))
    async with asyncio.TaskGroup() as group:
        work = room.class_data.order(B, group)
        await asyncio.sleep(0)
        assert await room.refusal() == f"{CANNOT}: one is being made, of backup; nothing was done"
    with pytest.raises(Failed) as failed:
        await work.result()
    assert str(failed.value) == (
        f"{CANNOT}: there is no JVM in process {2**22 + 1}, nor in what it has started; nothing was changed"
    )
    with pytest.raises(Refused, match="there is no JVM"):
        await room.class_data.make(B)


async def test_an_archive_is_removed_with_its_release(room: Room, tmp_path: Path) -> None:
    (tmp_path / ".cds").mkdir()
    for name in ("1.jar.jsa", "1.jar.json", "2.jar.jsa"):
        (tmp_path / ".cds" / name).touch()
    await room.class_data.remove("1.jar")
    assert [path.name for path in (tmp_path / ".cds").iterdir()] == ["2.jar.jsa"]
