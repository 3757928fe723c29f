"""What an instance really runs is seen from what its processes have open."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clojarsd.core.errors import Refused
from clojarsd.core.names import Role
from clojarsd.runtime import release_look
from clojarsd.runtime.release_look import ReleaseLook
from clojarsd.system.releases import ReleaseStore
from tests.support.waiting import PATIENCE, until

P, B = Role.PRIMARY, Role.BACKUP
CHILD = """
import subprocess, sys
grandchild = "import os, sys, time; kept = open(sys.argv[1]); os.write(1, b'+'); time.sleep(1000)"
subprocess.run([sys.executable, "-S", "-c", grandchild, sys.argv[1]])
"""


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    store = ReleaseStore(tmp_path / "releases", "current.jar", None)
    store.prepare()
    (tmp_path / "jar").write_text("a jar")
    for name in ("1.jar", "2.jar"):
        store.install(tmp_path / "jar", name)
    return store


@contextmanager
def a_process(path: Path) -> Iterator[int]:
    """One whose child has the file open; both are gone with the block."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", CHILD, path], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"+"
        try:
            yield process.pid
        finally:
            os.killpg(process.pid, 9)


async def test_what_a_process_or_its_child_has_open_is_what_it_runs(store: ReleaseStore) -> None:
    with a_process(store.directory / "2.jar") as pid:
        look = ReleaseLook(lambda: store, {P: pid, B: None}.get)
        assert look.runs(P, "1.jar") == "1.jar", "nobody has looked"
        await until_seen(look, "2.jar")
        assert look.runs(P, "2.jar") == "2.jar"
        assert look.runs(P, None) == "2.jar"
        assert (look.runs(B, "1.jar"), look.runs(B, None)) == ("1.jar", None)


async def until_seen(look: ReleaseLook, name: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while look.runs(P, "1.jar") != name:  # a look that takes too long is made again by the next
            await look.look()


async def test_another_process_is_looked_at_anew(store: ReleaseStore) -> None:
    pids: dict[Role, int] = {}
    look = ReleaseLook(lambda: store, pids.get)
    with a_process(store.directory / "2.jar") as pids[P]:
        await until_seen(look, "2.jar")
    with a_process(store.directory / "1.jar") as pids[P]:
        assert look.runs(P, "1.jar") == "1.jar", "what the one before had open does not count"
        await look.look()
        assert look.runs(P, "1.jar") == "1.jar"


async def test_what_was_seen_holds_for_a_while(store: ReleaseStore) -> None:
    asked = []

    def counted() -> ReleaseStore:
        asked.append(1)
        return store

    with a_process(store.directory / "2.jar") as pid:
        look = ReleaseLook(counted, {P: pid}.get)
        await until_seen(look, "2.jar")
        seen = len(asked)
        for _ in range(5):
            await look.look()
        assert len(asked) == seen


async def test_a_process_that_has_none_open_runs_what_it_was_launched_with(store: ReleaseStore) -> None:
    look = ReleaseLook(lambda: store, {P: os.getpid()}.get)
    await look.look()
    assert look.runs(P, "1.jar") == "1.jar"


async def test_without_a_directory_of_releases_nothing_is_seen() -> None:
    def none() -> ReleaseStore:
        raise Refused("the configuration has no table [deploy]")

    look = ReleaseLook(none, {P: os.getpid()}.get)
    await look.look()
    assert look.runs(P, None) is None


async def test_a_disk_that_hangs_holds_nobody_up_and_is_not_asked_twice(
    store: ReleaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_look, "LOOK_TIMEOUT", 0.05)
    asked: list[int] = []
    answers = threading.Event()

    def hanging() -> ReleaseStore:
        asked.append(1)
        answers.wait(PATIENCE)
        return store

    with a_process(store.directory / "2.jar") as pid:
        look = ReleaseLook(hanging, {P: pid}.get)
        while not asked:
            await look.look()
        for _ in range(3):
            await look.look()
        assert asked == [1]
        assert look.runs(P, "1.jar") == "1.jar"
        answers.set()
        await until(lambda: not look._is_looking, "the end of the look")
        await until_seen(look, "2.jar")
