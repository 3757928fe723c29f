"""The keeper of logs: rotation while an instance writes, and what it says when something is wrong with a log."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from clojarsd.core.errors import Refused
from clojarsd.core.names import Role
from clojarsd.core.settings_types import LogTo
from clojarsd.runtime import log_keeper as module
from clojarsd.runtime.log_keeper import InstanceLog, LogKeeper, LogPlan
from clojarsd.system.fallocate import Removal
from clojarsd.system.log_look import look
from tests.support.control import DEADLINE_S
from tests.support.real import unavailable
from tests.support.waiting import until

ROOT = Path(__file__).parent.parent.parent
WRITER = """
import os, sys
for line in sys.stdin:
    os.write(1, line.encode())
    os.write(2, b"")
    print(end="", file=sys.stderr, flush=True)
"""
"""Writes to its log what it is told, at once."""


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.02)
    monkeypatch.setattr(module, "QUIET_LOOK", 0.2)


def plan(path: Path, **changes: Any) -> LogPlan:
    return replace(LogPlan("clojars", path, LogTo.FILE, 10_000, 3), **changes)


class Writer:
    """A process that has a log as its stdout, as an instance has."""

    def __init__(self, path: Path) -> None:
        with path.open("ab", buffering=0) as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", WRITER], stdin=subprocess.PIPE, stdout=log, text=True
            )
        self.pid: int | None = self._process.pid

    def say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self.pid = None
        self._process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs" / "primary.log"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(path)
    yield writer
    writer.end()


@asynccontextmanager
async def keeping(
    path: Path, pid_of: Callable[[], int | None] = lambda: None, **changes: Any
) -> AsyncIterator[LogKeeper]:
    keeper = LogKeeper({Role.PRIMARY: plan(path, **changes)}, lambda role: pid_of())
    async with asyncio.TaskGroup() as group:
        task = group.create_task(keeper.run())
        yield keeper
        task.cancel()


async def shown(log: InstanceLog, count: int) -> list[str]:
    async with aclosing(log.last_lines(count)) as batches:
        return [line async for batch in batches for line in batch]


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


async def test_a_log_is_rotated_and_packed_while_it_grows(path: Path) -> None:
    path.touch()
    async with keeping(path) as keeper:
        path.write_text("".join(f"{number:09d}\n" for number in range(9000)))
        wanted = ["primary.log", "primary.log.1", "primary.log.2.gz", "primary.log.3.gz"]
        await until(lambda: names(path) == wanted, "three rotated files, two packed")
        assert await shown(keeper.logs[Role.PRIMARY], 2) == ["000008998", "000008999"]
        assert (await shown(keeper.logs[Role.PRIMARY], 2500))[0] == "000006500"
        keeper.configure(Role.PRIMARY, plan(path, keep=1))
        with path.open("a") as file:
            file.write("x" * 15_000 + "\n")
        await until(lambda: names(path) == ["primary.log", "primary.log.1"], "one rotated file")


async def test_what_a_killed_daemon_left_is_finished_at_the_start(path: Path) -> None:
    path.write_text("short\n")
    path.with_name("primary.log.rotating").write_text("torn")
    path.with_name("primary.log.2").write_text("a\n" * 5)
    path.with_name("primary.log.7.gz").write_text("beyond")
    async with keeping(path):
        await until(lambda: names(path) == ["primary.log", "primary.log.2.gz"], "order")


async def test_a_log_that_waits_is_not_looked_at_all_the_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet logs wake the keeper by inotify; growing ones are looked at once per interval."""
    monkeypatch.setattr(module, "QUIET_LOOK", 3600.0)
    looks = 0

    def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return look(*arguments)

    monkeypatch.setattr(module, "look", counted)
    path.touch()
    async with keeping(path):
        await until(lambda: looks >= 2, "the first looks")
        with path.open("a") as file:
            file.write("x" * 15_000 + "\n")
        await until(lambda: "primary.log.1" in names(path), "a rotation that inotify began")
    assert looks < 10


def warnings(logged: list[Any]) -> list[str]:
    return [entry["event"] for entry in logged if entry["log_level"] == "warning"]


async def test_a_removed_log_is_said_once_and_can_still_be_read(path: Path, writer: Writer) -> None:
    with structlog.testing.capture_logs() as logged:
        async with keeping(path, lambda: writer.pid) as keeper:
            log = keeper.logs[Role.PRIMARY]
            writer.say("before")
            await until(lambda: path.stat().st_size == 7, "the line")
            await until(lambda: keeper._seen[Role.PRIMARY].inode is not None, "a look")
            shutil.rmtree(path.parent)
            await until(lambda: "log_removed" in warnings(logged) and path.parent.is_dir(), "the warning")
            writer.say("after")
            async with aclosing(log.follow(2)) as batches:
                lines: list[str] = []
                async with asyncio.timeout(DEADLINE_S):
                    while len(lines) < 2:
                        lines += await anext(batches)
                    writer.say("more")
                    lines += await anext(batches)
            assert lines == ["before", "after", "more"]
            assert log.missing() is None
            writer.end()
            path.write_text("the next instance\n")
            await until(lambda: "log_in_its_place" in [entry["event"] for entry in logged], "the end of it")
            assert await shown(log, 5) == ["the next instance"]
    assert warnings(logged) == ["log_removed"]
    said = next(entry for entry in logged if entry["event"] == "log_removed")
    assert said["reason"] == (
        "its file was removed; primary writes to the removed file until its next start, and the space is not free"
        " before that; `clojarsctl logs primary` still shows it"
    )


async def test_each_truncation_says_what_it_may_have_lost(path: Path, writer: Writer) -> None:
    with structlog.testing.capture_logs() as logged:
        async with keeping(path, lambda: writer.pid) as keeper:
            keeper.logs[Role.PRIMARY].file.way = Removal.TRUNCATE
            for number in (1, 2):
                writer.say("x" * 15_000)
                await until(lambda: len(cuts(logged)) == number, f"truncation {number}")  # noqa: B023  # waited for
            writer.say("last")
            await until(lambda: path.stat().st_size == 5, "the last line")
            shown_now = await shown(keeper.logs[Role.PRIMARY], 5)
    assert shown_now == ["x" * 15_000, "x" * 15_000, "last"]
    first = {"event": "log_truncated", "log_level": "info", "role": "primary", "path": str(path)}
    assert cuts(logged) == [{**first, "kept_bytes": 15_001, "at_most_lost_bytes": 0, "held_still_s": None}] * 2


def cuts(logged: Sequence[Any]) -> list[Any]:
    return [entry for entry in logged if entry["event"] == "log_truncated"]


async def test_an_instance_that_a_killed_daemon_left_standing_still_runs_on(path: Path, tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    (group / "cgroup.freeze").write_text("1\n")
    path.touch()
    with structlog.testing.capture_logs() as logged:
        keeper = LogKeeper({Role.PRIMARY: plan(path)}, lambda role: None, lambda role: group)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(keeper.run())
            await until(lambda: "instance_thawed" in warnings(logged), "the warning")
            task.cancel()
    assert (group / "cgroup.freeze").read_text() == "0"
    assert warnings(logged) == ["instance_thawed"]


async def test_a_log_that_somebody_renames_is_said_once(path: Path, writer: Writer) -> None:
    with structlog.testing.capture_logs() as logged:
        async with keeping(path, lambda: writer.pid) as keeper:
            writer.say("before")
            await until(lambda: keeper._seen[Role.PRIMARY].look, "a look")
            moved = path.rename(path.with_name("primary.log-20261123"))
            path.touch()  # as logrotate does with `create`
            await until(lambda: "log_moved" in warnings(logged), "the warning")
            writer.say("after")
            await until(lambda: moved.stat().st_size == 13, "the line")
            assert await shown(keeper.logs[Role.PRIMARY], 5) == ["before", "after"]
    assert warnings(logged) == ["log_moved"]
    assert next(entry for entry in logged if entry["event"] == "log_moved")["to"] == str(moved)


async def test_a_file_that_was_never_the_log_is_not_shown(path: Path, tmp_path: Path) -> None:
    """The instance cannot make the daemon read for it what it may not read itself."""
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    path.write_text("the log\n")
    writer = Writer(secret)
    try:
        async with keeping(path, lambda: writer.pid) as keeper:
            await until(lambda: keeper._seen[Role.PRIMARY].look, "a look")
            assert await shown(keeper.logs[Role.PRIMARY], 5) == ["the log"]
    finally:
        writer.end()


async def test_a_log_that_cannot_be_rotated_is_said_once(path: Path, tmp_path: Path) -> None:
    (tmp_path / "treasure").write_text("x" * 20_000)
    path.hardlink_to(tmp_path / "treasure")
    with structlog.testing.capture_logs() as logged:
        async with keeping(path):
            await until(lambda: warnings(logged), "the warning")
            path.write_text("y" * 30_000)
            path.unlink()
            path.write_text("z" * 30_000)
            await until(lambda: "log_rotated_again" in [entry["event"] for entry in logged], "a rotation")
            assert "primary.log.1" in names(path)
    assert warnings(logged) == ["log_not_rotated"]


def test_inherited_output_is_not_shown_and_it_is_said_where_it_is(path: Path) -> None:
    log = InstanceLog(Role.BACKUP, plan(path, to=LogTo.INHERIT))
    with pytest.raises(Refused) as refused:
        log.missing()
    assert str(refused.value) == (
        'backup has log = "inherit": it writes where clojarsd itself does; under systemd `journalctl -u clojarsd` shows'
        " that"
    )


FULL_DISK = """
import asyncio, json, os, pathlib, subprocess, sys
import structlog
from clojarsd.core.names import Role
from clojarsd.core.settings_types import LogTo
from clojarsd.runtime import log_keeper as module

disk = pathlib.Path(sys.argv[1])
path = disk / "primary.log"
module.EVERY, module.QUIET_LOOK = 0.02, 0.05
MEBIBYTE = 1024 * 1024

async def until(fact):
    async with asyncio.timeout(60):
        while not fact():
            await asyncio.sleep(0.005)

def begin_of(file):
    try:
        return file.read_bytes()[:1]
    except FileNotFoundError:  # between two steps of a rotation
        return b""

def events(logged):
    return [entry["event"] for entry in logged if entry["event"].startswith("log_disk")]

async def main():
    plan = module.LogPlan("clojars", path, LogTo.FILE, MEBIBYTE, 4)
    keeper = module.LogKeeper({Role.PRIMARY: plan}, lambda role: os.getpid())
    (disk / "filler").write_bytes(b"f" * (7 * MEBIBYTE // 2))
    for number in (1, 2, 3):
        (disk / f"primary.log.{number}{'.gz' if number > 1 else ''}").write_bytes(b"%d" % number * MEBIBYTE)
    with structlog.testing.capture_logs() as logged, path.open("ab", buffering=0) as log:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(keeper.run())
            log.write(b"n" * (MEBIBYTE // 2))
            await until(lambda: keeper._seen[Role.PRIMARY].look is not None)
            log.write(b"n" * (MEBIBYTE * 3 // 4))  # what is free now cannot take a copy
            latest = disk / "primary.log.1"
            await until(lambda: begin_of(latest) == b"n")
            await until(lambda: (disk / "primary.log.2.gz").exists() and not list(disk.glob("*ing")))
            kept = sorted(entry.name for entry in disk.glob("primary*"))
            with (disk / "more").open("wb", buffering=0) as more:  # and now nothing helps
                try:
                    while more.write(b"f" * 4096):
                        pass
                except OSError:
                    pass
            await until(lambda: events(logged))
            failed = 0
            for _ in range(50):
                try:
                    log.write(b"lost" * 4096)
                except OSError:
                    failed += 1
                await asyncio.sleep(0.005)
            at_full = events(logged)
            (disk / "filler").unlink()
            await until(lambda: len(events(logged)) > 1)
            task.cancel()
    last = next(entry for entry in logged if entry["event"] == "log_disk_has_room")
    print(json.dumps({"kept": kept, "at_full": at_full, "events": events(logged), "failed": failed, "last": last}))

asyncio.run(main())
"""


FULL_BETWEEN_LOOKS = """
import asyncio, json, os, pathlib, sys
from datetime import UTC, datetime
import structlog
from clojarsd.core.history import stamp
from clojarsd.core.names import Role
from clojarsd.core.settings_types import LogTo
from clojarsd.runtime import log_keeper as module

disk = pathlib.Path(sys.argv[1])
plan = module.LogPlan("clojars", disk / "primary.log", LogTo.FILE, 64 * 1024 * 1024, 4)
plans = {Role.PRIMARY: plan, Role.BACKUP: module.LogPlan("other", disk / "backup.log", LogTo.FILE, 64 * 1024 * 1024, 4)}

def fill():
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(b"f" * 4096):
                pass
        except OSError:
            pass

def lose_a_line():
    with (disk / "primary.log").open("ab", buffering=0) as log:
        try:
            log.write(b"lost" * 4096)
        except OSError:
            return True

async def episode(keeper):
    fill()
    lost_at = stamp(datetime.now(UTC))
    assert lose_a_line()
    await keeper._look()
    assert lose_a_line()
    await keeper._look()
    keeper._room = 4 * 1024 * 1024  # as after a rotation that found none: what is free now does not end it
    os.truncate(disk / "filler", os.stat(disk / "filler").st_size - 2 * 1024 * 1024)
    await keeper._look()
    (disk / "filler").unlink()
    await keeper._look()
    return lost_at

async def main():
    keeper = module.LogKeeper(plans, lambda role: None)
    late = module.LogKeeper(plans, lambda role: None)
    with structlog.testing.capture_logs() as logged:
        before = stamp(datetime.now(UTC))
        await keeper._look()
        first = await episode(keeper)
        second = await episode(keeper)
        noticed = len(logged)
        await episode(late)
    for one in (keeper, late):
        one._threads.close()
        one._pack_threads.close()
    print(json.dumps({"logged": logged[:noticed], "late": logged[noticed:], "times": [before, first, second]}))

asyncio.run(main())
"""


@pytest.mark.slow
def test_what_was_lost_before_the_disk_was_seen_full_is_told_as_well(tmp_path: Path) -> None:
    """Nobody counts it, so that no number is told: from when on something may be missing is."""
    seen = on_small_disk(tmp_path, FULL_BETWEEN_LOOKS)
    assert [entry["event"] for entry in seen["logged"]] == ["log_disk_full", "log_disk_has_room"] * 2
    assert all(value not in ("", None) for entry in seen["logged"] for value in entry.values())
    before, first, second = seen["times"]
    since = []
    for entry in seen["logged"]:
        match = re.fullmatch(
            r"what (is|was) written since (\S+), when room was last seen; how much is not known",
            entry["may_be_missing"],
        )
        assert match is not None, entry
        assert (match[1] == "is") == (entry["event"] == "log_disk_full")
        since.append(match[2])
    assert since[0] == since[1]
    assert since[2] == since[3]
    assert before <= since[0] <= first <= since[2] <= second
    assert [entry["may_be_missing"] for entry in seen["late"]] == [
        f"what {verb} written, from before clojarsd began to look; how much is not known" for verb in ("is", "was")
    ]


def on_small_disk(tmp_path: Path, program: str) -> Any:
    """What a program prints that has a disk of 8 MiB to itself."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=8m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(disk), sys.executable]
    if subprocess.run([*command[:4], "true"], capture_output=True, check=False).returncode:
        unavailable("no mount namespace can be made here")
    done = subprocess.run(
        [*command, program], cwd=ROOT, capture_output=True, text=True, timeout=4 * DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_full_disk_is_one_warning_and_one_end_of_it(tmp_path: Path) -> None:
    """Rotation removes the oldest rotated file to make room; when nothing helps it waits, and says so once."""
    seen = on_small_disk(tmp_path, FULL_DISK)
    assert seen["kept"] == ["primary.log", "primary.log.1", "primary.log.2.gz", "primary.log.3.gz"]
    assert seen["at_full"] == ["log_disk_full"]
    assert seen["events"] == ["log_disk_full", "log_disk_has_room"]
    assert seen["failed"] > 0
    assert seen["last"]["seen_full_s"] >= 0
    assert "at_most" not in str(seen["last"]), "nobody counts what is lost"


@pytest.mark.slow
@pytest.mark.parametrize("directory", ["/var/tmp", "/dev/shm"], ids=["collapse", "punch"])
def test_every_line_is_there_once_and_in_order_and_followed_so(directory: str, tmp_path: Path) -> None:
    """The benchmark, small: a writer at full speed, a keeper, and a reader that follows."""
    target = tmp_path / "logs.json"
    options = ["--lines", "200000", "--rotations", "5", "--follow", "--json", str(target)]
    with tempfile.TemporaryDirectory(dir=directory) as ours:  # what is killed at the deadline removes nothing
        done = subprocess.run(
            [sys.executable, "-m", "bench.logs", *options, "--directory", ours],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=6 * DEADLINE_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    rotated = json.loads(target.read_text())["rotated"]
    assert (rotated["missing_bytes"], rotated["wrong"], rotated["followed"]) == (0, 0, 200_000)
    assert rotated["rotations"] >= 5
