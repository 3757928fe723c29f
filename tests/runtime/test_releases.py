"""The release log is read once, written in order, and in nobody's way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from clojarsd.core.errors import Failed, Refused
from clojarsd.core.releases import (
    BecameCurrent,
    ProvedGood,
    ReleaseBook,
    ReleaseKind,
    ReleaseRecord,
    WasInstalled,
    WasRemoved,
    record_from_json,
)
from clojarsd.core.settings_deploy import DeploySettings
from clojarsd.runtime.releases import RESERVED, Releases
from clojarsd.system.record_log import RecordLog
from tests.support.namespaces import apart
from tests.support.small_disks import fill, mount_small

NOON = "2026-11-23T12:00:00.000Z"
ROLLOUT = "20261123-120000"
RECORDS: list[ReleaseRecord] = [
    record
    for name in ("a.jar", "b.jar")
    for record in (
        WasInstalled(name, "1.0", "f00", f"sha256:{name}", ReleaseKind.FILE, 1, "ann", NOON, ROLLOUT),
        BecameCurrent(name, NOON, "ann", f"{ROLLOUT}-{name}"),
        ProvedGood(name, NOON, ROLLOUT),
    )
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "releases.jsonl"


@contextmanager
def opened(path: Path) -> Iterator[Releases]:
    releases = Releases(path, lambda: None, lambda: None)
    releases.load()
    yield releases
    releases.close()


async def test_what_was_recorded_is_known_at_once_and_to_the_next_daemon(path: Path) -> None:
    with opened(path) as releases:
        assert (releases.book, releases.problem, path.exists()) == (ReleaseBook(), None, False)
        for record in RECORDS:
            await releases.record(record)
        assert releases.book == ReleaseBook.of(RECORDS)
    with opened(path) as releases:
        assert (releases.book, releases.problem) == (ReleaseBook.of(RECORDS), None)
        assert releases.checksum_of("a.jar") == "sha256:a.jar"
        assert releases.checksum_of("c.jar") is None
        assert (releases.previous_of("b.jar"), releases.previous_of("a.jar")) == ("a.jar", None)
        await releases.record(WasRemoved("a.jar", NOON))
        assert releases.checksum_of("a.jar") is None


async def test_records_are_written_in_the_order_in_which_they_were_given(path: Path) -> None:
    with opened(path) as releases:
        async with asyncio.TaskGroup() as group:
            for record in RECORDS:
                group.create_task(releases.record(record))
    with RecordLog.open(path, create=False) as log:
        assert [document["class"] for document in log.records()] == [type(record).__name__ for record in RECORDS]


async def test_a_record_that_was_begun_counts_though_nobody_waits_for_it(path: Path) -> None:
    with opened(path) as releases:
        await releases.reserve()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(releases.record(record)) for record in RECORDS]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
        await releases.reserve()  # behind whatever was begun
        seen = releases.book
        with RecordLog.open(path, create=False) as log:
            written = [record_from_json(document) for document in log.records()]
    assert seen == ReleaseBook.of(written)


async def test_a_log_that_cannot_be_read_stops_nothing_and_is_tried_again(path: Path) -> None:
    path.mkdir()
    with capture_logs() as logged, opened(path) as releases:
        problem = f"cannot open the log {path}: is a directory"
        assert (releases.problem,) == (problem,)
        assert [line["reason"] for line in logged if line["log_level"] == "error"] == [problem]
        for attempt in (releases.reserve(), releases.record(RECORDS[0])):
            with pytest.raises(Failed, match=rf"^{problem}$"):
                await attempt
        assert releases.book == ReleaseBook()
        path.rmdir()
        with RecordLog.open(path, create=True):
            pass
        await releases.record(RECORDS[0])
        assert (releases.problem, releases.checksum_of("a.jar")) == (None, "sha256:a.jar")


async def test_what_a_log_lacks_or_this_version_does_not_know_is_told(path: Path) -> None:
    with opened(path) as releases:
        for record in RECORDS:
            await releases.record(record)
    with RecordLog.open(path, create=False) as log:
        log.append({"class": "ProvedBest", "name": "a.jar"})
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"a.jar","at"', b'"x.jar","at"', 1))
    with opened(path) as releases:
        assert releases.problem == (
            f"line 3 of the log {path} cannot be read; all others stand;"
            f" this version does not know 1 of the records of the log {path}: they do not count"
        )
        assert releases.book == ReleaseBook.of([RECORDS[0], *RECORDS[2:]])


async def on_a_full_disk(disk: Path) -> None:
    with opened(disk / "releases.jsonl") as releases:
        await releases.reserve()
        fill(disk)
        for record in RECORDS * 10:
            await releases.record(record)
        assert os.stat(disk / "releases.jsonl").st_size - RESERVED < 100, "no more than what was reserved"
        with pytest.raises(Failed, match=r"no space left on device$"):
            await releases.reserve()
        assert releases.book == ReleaseBook.of(RECORDS * 10)
    with opened(disk / "releases.jsonl") as releases:
        assert releases.book == ReleaseBook.of(RECORDS * 10)
    full = pytest.raises(Failed, match=r"^cannot open the log .*: no space left on device$")
    with opened(disk / "another.jsonl") as releases, full:
        await releases.reserve()


@pytest.mark.real
@apart(bpf_fs=False)
async def test_a_full_disk_takes_what_was_reserved_for(tmp_path: Path) -> None:
    mount_small(tmp_path, 262_144)
    await on_a_full_disk(tmp_path)


def test_the_directory_is_that_of_the_settings_in_use(tmp_path: Path) -> None:
    tables: list[DeploySettings | None] = [None]
    releases = Releases(tmp_path / "releases.jsonl", lambda: tables[-1], lambda: None)
    assert releases.link() is None
    with pytest.raises(Refused, match=r"^the configuration has no table \[deploy\]$"):
        _ = releases.store
    text = {"work_dir": "/builds", "releases": str(tmp_path), "current": "now.jar"}
    tables.append(DeploySettings.model_validate({"repository": "/repo", **text}))
    assert releases.link() is None
    (tmp_path / "a.jar").write_text("")
    releases.store.switch("a.jar")
    assert releases.link() == os.readlink(tmp_path / "now.jar") == "a.jar"
