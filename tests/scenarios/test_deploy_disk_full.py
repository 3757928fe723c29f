"""Disks that are really full, or can only be read, before a deploy or in its middle: what becomes of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.test_deploy import BACKUP_IS_BACK, NOTHING_WAS_CHANGED
from tests.scenarios.test_deploy_orders import DONE, until_at
from tests.support.deploys import Site, place, release
from tests.support.namespaces import apart
from tests.support.small_disks import fill, mount_small

pytestmark = pytest.mark.slow

SIZE = 80 * 1024**2


@pytest.fixture
def home() -> Iterator[Path]:
    with place() as path:
        yield path


@contextlib.contextmanager
def on_a_small_disk(home: Path, name: str) -> Iterator[tuple[Site, Path]]:
    """A pair that runs 1.0.0, with that one of its directories on a disk of its own, under clients who lose nothing."""
    site = Site(home, soak="100ms")
    disk = {"releases": site.releases, "builds": site.work}.get(name, home / name)
    disk.mkdir(exist_ok=True)
    mount_small(disk, SIZE)
    if disk in (site.releases, site.work):
        os.chown(disk, site.user, site.user)
    site.bring("1.0.0")
    for version in ("1.1.0", "1.2.0"):
        site.tag(version)
    with site.running(), site.traffic():
        yield site, disk


def full(site: Site, disk: Path, step: str) -> tuple[Path, str, int]:
    """A deploy of 1.1.0 whose disk becomes full at the step: what fills it, what was said in the end, and the code."""
    watcher = until_at(site, step)
    ballast = fill(disk)
    assert os.statvfs(disk).f_bavail == 0
    site.let_go(step)
    ended = watcher.end()
    return ballast, ended.stdout or ended.stderr, ended.returncode


def assert_refused_until_there_is_room(site: Site, ballast: Path, where: str, runs: str) -> None:
    """Nothing is begun on a full disk, and all is well as soon as there is room."""
    refused = site.pair.ctl("deploy", "1.2.0", "--yes")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr.startswith(f"cannot deploy 1.2.0: too little room in {where} {ballast.parent}: ")
    assert refused.stderr.endswith("; nothing was done\n")
    assert site.runs() == (runs, runs)
    ballast.unlink()
    site.pair.done("deploy", "1.2.0", "--yes")
    site.assert_runs("1.2.0")


@apart(bpf_fs=False)
def test_a_build_that_fills_its_disk_has_changed_nothing(home: Path) -> None:
    with on_a_small_disk(home, "builds") as (site, disk):
        ballast, said, code = full(site, disk, "build")
        assert code == 1
        assert "No space left on device" in said
        assert said.splitlines()[-1].startswith("cannot deploy 1.1.0: building it: ")
        assert NOTHING_WAS_CHANGED in said
        assert {path.name for path in disk.iterdir()} == {"mirror.git", ballast.name}, (
            "the checkout gives its room back"
        )
        assert_refused_until_there_is_room(site, ballast, "work_dir", "1.0.0")


@apart(bpf_fs=False)
def test_a_release_that_finds_no_room_is_not_there_in_part(home: Path) -> None:
    with on_a_small_disk(home, "releases") as (site, disk):
        before = {path.name for path in disk.iterdir()}
        ballast, said, code = full(site, disk, "build")
        assert code == 1
        assert "cannot deploy 1.1.0: installing it: cannot install app-1.1.0-standalone.py: " in said
        assert NOTHING_WAS_CHANGED in said
        assert {path.name for path in disk.iterdir()} == {*before, ballast.name}
        assert_refused_until_there_is_room(site, ballast, "releases", "1.0.0")


@apart(bpf_fs=False)
def test_without_room_for_its_journal_nothing_begins(home: Path) -> None:
    with on_a_small_disk(home, "state") as (site, disk):
        ballast = fill(disk)
        assert_refused_until_there_is_room(site, ballast, "state_dir", "1.0.0")
        # as if the last room had gone between the look and the beginning
        site.write_settings(min_free='min_free = "1B"')
        site.pair.done("config", "reload")
        ballast = fill(disk)
        os.truncate(ballast, ballast.stat().st_size - 96 * 1024)
        before = sorted((disk / "rollouts").iterdir())
        for words in (("deploy", "1.1.0", "--yes"), ("rollback", "1.0.0", "--yes")):
            refused = site.pair.ctl(*words)
            assert (refused.returncode, refused.stdout) == (3, ""), refused.stderr
            assert "no space left on device" in refused.stderr
            assert refused.stderr.endswith("; nothing was done\n")
            assert sorted((disk / "rollouts").iterdir()) == before
        site.assert_runs("1.2.0")


@pytest.mark.parametrize("step", ["build", "1.1.0-on-primary"])
@apart(bpf_fs=False)
def test_what_has_begun_needs_no_more_room_to_come_to_its_good_end(home: Path, step: str) -> None:
    with on_a_small_disk(home, "state") as (site, disk):
        ballast, said, code = full(site, disk, step)
        assert (said, code) == (DONE, 0)
        site.assert_runs("1.1.0")
        assert_refused_until_there_is_room(site, ballast, "state_dir", "1.1.0")
        assert {one["tag"]: one["state"] for one in site.listed().values()}["1.1.0"] == "good"


@apart(bpf_fs=False)
def test_what_has_begun_needs_no_more_room_to_go_back(home: Path) -> None:
    with on_a_small_disk(home, "state") as (site, disk):
        site.fail("smoke")
        ballast, said, code = full(site, disk, "smoke")
        assert code == 1
        assert "cannot deploy 1.1.0: running smoke: " in said
        assert BACKUP_IS_BACK in said
        site.assert_runs("1.0.0")
        (home / "fail-smoke").unlink()
        assert_refused_until_there_is_room(site, ballast, "state_dir", "1.0.0")


@pytest.mark.parametrize("step", ["smoke", "1.1.0-on-primary"])
@apart(bpf_fs=False)
def test_a_daemon_that_dies_on_a_full_disk_is_followed_by_one_that_goes_on(home: Path, step: str) -> None:
    """The journal has what it needs; what else it knows of the pair is as old as the room."""
    with on_a_small_disk(home, "state") as (site, disk):
        watcher = until_at(site, step)
        ballast = fill(disk)
        site.pair.kill()
        assert watcher.end().returncode == 4
        site.let_go(step)
        site.pair.begin()
        assert site.until_over()["outcome"] == "done", site.pair.daemon_log()
        site.assert_runs("1.1.0")
        assert_refused_until_there_is_room(site, ballast, "state_dir", "1.1.0")


@apart(bpf_fs=False)
def test_logs_that_find_no_room_stop_nothing(home: Path) -> None:
    with on_a_small_disk(home, "log") as (site, disk):
        ballast, said, code = full(site, disk, "test")
        assert (said, code) == (DONE, 0)
        site.assert_runs("1.1.0")
        assert_refused_until_there_is_room(site, ballast, "log_dir", "1.1.0")


def has_restarted(before: int, seen: dict[str, Any]) -> bool:
    return bool(seen["instances"]["primary"]["restarts"] > before)


@apart(bpf_fs=False)
def test_a_link_that_cannot_be_brought_back_does_not_lead_the_primary_to_the_release(home: Path) -> None:
    """The disk of the releases cannot be written to any more: the rollout ends, and says so."""
    site = Site(home, soak="100ms")
    site.bring("1.0.0")
    site.tag("1.1.0")
    subprocess.run(["mount", "--bind", site.releases, site.releases], check=True)
    with site.running() as pair:
        site.begin("deploy", "1.1.0", "--no-promote").end()
        subprocess.run(["mount", "-o", "remount,bind,ro", site.releases], check=True)
        aborted = pair.ctl("abort")
        assert aborted.returncode == 1
        assert "not everything could be brought back: primary is ready with app-1.0.0-standalone.py" in aborted.stderr
        assert (site.link(), site.runs()) == (release("1.1.0"), ("1.0.0", "1.1.0"))
        for is_next_daemon in (False, True):
            if is_next_daemon:
                pair.kill()
                pair.begin()
            restarts = pair.instance("primary")["restarts"]
            os.kill(pair.pid("primary"), signal.SIGKILL)
            pair.until(partial(has_restarted, restarts))
            pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
            assert site.runs() == ("1.0.0", "1.1.0")
        subprocess.run(["mount", "-o", "remount,bind,rw", site.releases], check=True)
        pair.done("rollback", "1.0.0", "--yes")
        site.assert_runs("1.0.0")
