"""The look at the machine before a deploy, on real directories, as the service user."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clojarsd.core.preflight import INODES, Found, Tool
from clojarsd.system.acting_as import Actor, acting_as
from clojarsd.system.preflight import Preflight, find_tool, make_directory
from tests.support.builds import GROUP, IS_ROOT, USER, directory_of_user
from tests.support.real import unavailable

ACTOR = Actor(USER, GROUP) if IS_ROOT else None
PATH = "/usr/bin:/bin"


@pytest.fixture
def home() -> Iterator[Path]:
    with directory_of_user() as made:
        yield made


def preflight(home: Path, tmp_path: Path, **changes: object) -> Preflight:
    values = {
        "user": "clojars",
        "actor": ACTOR,
        "work_dir": home / "builds",
        "link": home / "releases" / "current.jar",
        "log_dir": tmp_path,
        "state_dir": tmp_path,
        "min_free": 1024,
        "tools": (Tool("sh", ("test",), PATH),),
    }
    return Preflight(**{**values, **changes})  # type: ignore[arg-type]


def test_what_is_missing_is_made_for_the_service_user(home: Path, tmp_path: Path) -> None:
    assert preflight(home, tmp_path).problems() == ()
    for made in (home / "builds", home / "releases"):
        assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (USER, 0o755)
        assert list(made.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_told_at_once(home: Path, tmp_path: Path) -> None:
    (home / "builds").write_text("")
    (home / "releases" / "current.jar").mkdir(parents=True)
    os.chown(home / "releases", USER, GROUP)
    tools = (Tool("lein-of-nobody", ("test", "build"), PATH), Tool(str(home), ("smoke",), PATH))
    seen = preflight(home, tmp_path, tools=tools, state_dir=tmp_path / "absent", min_free=2**62).problems()
    builds = home / "builds"
    assert seen[:4] == (
        f"work_dir: {builds} cannot be made: file exists; make it for clojars: install -d -o clojars {builds}",
        f"state_dir: nothing can be written in {tmp_path}/absent: no such file or directory",
        f"current: {home}/releases/current.jar is a directory, and must be a link or not be there",
        seen[3],
    )
    assert seen[3].startswith(f"too little room in releases {home}/releases, work_dir {home}/builds, state_dir")
    assert seen[3].endswith("4294967296 GiB needed (min_free)")
    assert seen[4:] == (
        f"test, build: lein-of-nobody is not on the PATH of clojars ({PATH})",
        f"smoke: {home} is a directory, not a command",
    )


def test_a_release_counts_by_its_size(home: Path, tmp_path: Path) -> None:
    """A sparse file, larger than a third of any disk; as a directory, too."""
    releases = home / "releases"
    (releases / "big").mkdir(parents=True)
    with (releases / "big" / "file").open("wb") as file:
        file.truncate(8 * 1024**4)
    for target in ("big/file", "big"):
        (releases / "current.jar").unlink(missing_ok=True)
        (releases / "current.jar").symlink_to(target)
        os.chown(releases, USER, GROUP)
        (problem,) = preflight(home, tmp_path).problems()
        assert problem.endswith("24576 GiB needed (3 times the current release)")


def test_a_directory_that_the_service_user_may_not_write_to_is_told(home: Path, tmp_path: Path) -> None:
    if not IS_ROOT:
        unavailable("a directory of another user cannot be made here")
    (home / "releases").mkdir()
    assert preflight(home, tmp_path).problems() == (
        f"releases: nothing can be written in {home}/releases: permission denied (as user clojars)",
    )


def test_root_makes_a_directory_only_where_nobody_else_has_a_hand_in(home: Path) -> None:
    """In root's directory below one of the user's, the user could have put anything; below root's own nobody could."""
    if not IS_ROOT:
        unavailable("only root makes directories for others")
    (home / "of-root").mkdir(mode=0o755)
    with pytest.raises(PermissionError):
        make_directory(home / "of-root" / "work", ACTOR)
    base = Path("/var/lib") / home.name
    try:
        base.mkdir(mode=0o755)
        make_directory(base / "a" / "b", ACTOR)
        assert [one.stat().st_uid for one in (base, base / "a", base / "a" / "b")] == [0, USER, USER]
    finally:
        for made in (base / "a" / "b", base / "a", base):
            made.rmdir()


def test_a_tool_is_what_the_service_user_would_get(home: Path) -> None:
    first, second = home / "first", home / "second"
    for directory, mode in ((first, 0o644), (second, 0o755)):
        directory.mkdir()
        (directory / "tool").write_text("#!/bin/sh\n")
        (directory / "tool").chmod(mode)
    (first / "sub").mkdir()

    def look(word: str, *path: Path) -> tuple[Found, str]:
        with acting_as(ACTOR):
            return find_tool(Tool(word, ("test",), os.pathsep.join(map(str, path))))

    assert look("tool", first, second) == (Found.TOOL, str(second / "tool"))
    assert look("tool", first) == (Found.NOT_EXECUTABLE, str(first / "tool"))
    assert look("sub", first, second) == (Found.DIRECTORY, str(first / "sub"))
    assert look("absent", first, second) == (Found.NOTHING, "absent")
    assert look(str(second / "tool")) == (Found.TOOL, str(second / "tool"))
    if IS_ROOT:
        second.chmod(0o700)
        assert look("tool", second) == (Found.NOTHING, "tool")
        second.chmod(0o755)
        (second / "tool").chmod(0o700)
        assert look("tool", second) == (Found.NOT_EXECUTABLE, str(second / "tool"))


def test_a_disk_without_inodes_is_told(home: Path, tmp_path: Path) -> None:
    if not IS_ROOT:
        unavailable("a small file system cannot be mounted here")
    (home / "builds").mkdir()
    options = f"size=8m,nr_inodes={INODES // 2},mode=0755,uid={USER}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(home / "builds")], check=True)
    try:
        (problem,) = preflight(home, tmp_path).problems()
        assert problem == f"too few inodes in work_dir {home}/builds: {INODES // 2 - 1} free, {INODES} needed"
    finally:
        subprocess.run(["umount", str(home / "builds")], check=True)
