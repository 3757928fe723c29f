"""The state file is whole at every moment, whatever happens to it and to who writes it."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.core.saved import as_json
from clojarsd.system import state_file as module
from clojarsd.system.state_file import StateFile, alone_in
from tests.support.saved import a_pair
from tests.support.waiting import PATIENCE

CHECKOUT = Path(__file__).parents[2]
GOOD = json.dumps(as_json(a_pair())).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_what_was_written_is_read(path: Path) -> None:
    file = StateFile(path)
    for generation in (1, 2):
        file.write(as_json(a_pair(generation)))
        loaded = file.load()
        assert (loaded.pair, loaded.problem) == (a_pair(generation), None)
    assert names(path) == ["state.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_no_file_is_no_problem(path: Path) -> None:
    loaded = StateFile(path).load()
    assert (loaded.pair, loaded.problem) == (None, None)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"\0" * 4096, "it is empty"),
        (GOOD[: len(GOOD) // 2], "it holds no whole JSON: "),
        (GOOD.replace(b'"UP"', b'"SIDEWAYS"', 1), 'instances.PRIMARY.unit.goal: "SIDEWAYS" is not one of UP, DOWN'),
        (b"\xff\xfe", "it holds no whole JSON: "),
        (b"[" * 1_000_000, "it holds no whole JSON: "),
        (b"null", "it holds no state of a pair"),
        (GOOD.replace(b'"format": 1', b'"format": 7'), "it has format 7, and this version knows 1"),
    ],
    ids=["empty", "zeros", "torn", "other values", "not text", "too deep", "other JSON", "other format"],
)
def test_a_file_that_cannot_be_used_is_survived_and_kept(path: Path, content: bytes, why: str) -> None:
    path.write_bytes(content)
    with pytest.raises(Failed, match=r"^cannot use the state"):
        StateFile(path).read()
    assert names(path) == ["state.json"]
    loaded = StateFile(path).load()
    assert loaded.pair is None
    assert loaded.problem is not None
    assert loaded.problem.startswith(f"cannot use the state {path}: {why}")
    assert loaded.problem.endswith("; it was kept as state.json.bad")
    assert names(path) == ["state.json.bad"]
    assert (path.parent / "state.json.bad").read_bytes() == content


def test_only_the_latest_bad_file_is_kept(path: Path) -> None:
    for content in (b"first", b"second"):
        path.write_bytes(content)
        StateFile(path).load()
    assert names(path) == ["state.json.bad"]
    assert (path.parent / "state.json.bad").read_bytes() == b"second"
    StateFile(path).write(as_json(a_pair()))
    assert StateFile(path).load().pair == a_pair()


def test_a_file_that_is_far_too_large_is_not_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(module.LARGEST + 1)
        file.write(b"{")
    assert "it is larger than" in str(StateFile(path).load().problem)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Path.mkdir, "is a directory"),
        (os.mkfifo, "it is no regular file"),
        (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
    ],
    ids=["directory", "pipe", "loop"],
)
def test_what_cannot_be_read_is_survived_and_left(path: Path, make: Callable[[Path], None], why: str) -> None:
    make(path)
    loaded = StateFile(path).load()
    assert (loaded.pair, loaded.problem) == (None, f"cannot read the state {path}: {why}")
    assert names(path) == ["state.json"]


def test_what_a_killed_writer_left_is_removed(path: Path) -> None:
    (path.parent / ".state.json.4711.new").write_bytes(b"half")
    (path.parent / "other.new").write_bytes(b"")
    StateFile(path).load()
    assert names(path) == ["other.new"]


def test_a_writer_may_find_what_one_of_its_number_left(path: Path) -> None:
    (path.parent / f".state.json.{os.getpid()}.new").symlink_to(path.parent / "elsewhere")
    StateFile(path).write(as_json(a_pair()))
    assert names(path) == ["state.json"]


def test_it_is_on_the_disk_before_it_gets_its_name_and_the_name_is_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StateFile(path).write(as_json(a_pair(1)))
    acts: list[str] = []
    fsync, rename = os.fsync, os.rename

    def see_fsync(fd: int) -> None:
        acts.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    def see_rename(old: Path, new: Path) -> None:
        acts.append(f"rename {old.name} {new.name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", see_fsync)
    monkeypatch.setattr(os, "rename", see_rename)
    StateFile(path).write(as_json(a_pair(2)))
    beside = f".state.json.{os.getpid()}.new"
    assert acts == [f"fsync {beside}", f"rename {beside} state.json", f"fsync {path.parent.name}"]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_disk_that_fails_leaves_the_old_version(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file = StateFile(path)
    file.write(as_json(a_pair(1)))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, step, fail)
        with pytest.raises(Failed, match=rf"^cannot write the state {path}: input/output error$"):
            file.write(as_json(a_pair(2)))
    assert names(path) == ["state.json"]
    assert file.read() == a_pair(1)
    file.write(as_json(a_pair(2)))
    assert file.read() == a_pair(2)


def test_a_directory_that_is_gone_is_told(path: Path) -> None:
    file = StateFile(path.parent / "gone" / "state.json")
    with pytest.raises(Failed, match="no such file or directory"):
        file.write(as_json(a_pair()))
    assert file.load().pair is None


WRITER = """
import asyncio, os, sys
from pathlib import Path
from clojarsd.runtime.state_keeper import StateKeeper
from clojarsd.system.state_file import StateFile
from tests.support.saved import a_pair

async def main():
    async with StateKeeper(StateFile(Path(sys.argv[1]))) as keeper, asyncio.TaskGroup() as group:
        group.create_task(keeper.run())
        generation = int(sys.argv[2])
        while True:
            generation += 1
            keeper.save(a_pair(generation))
            await keeper.flushed()
            os.write(1, b"%d\\n" % generation)

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_whole_version_that_is_not_behind(path: Path) -> None:
    """Thousands of versions, some twenty kills: nothing acknowledged is lost, nothing torn is ever found."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    acknowledged = total = 0
    while total < 3000:
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(acknowledged)],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
        ) as writer:
            assert writer.stdout is not None
            for _ in range(moments.randrange(1, 400)):
                acknowledged = int(writer.stdout.readline())
                total += 1
            signal.pidfd_send_signal(pidfd := os.pidfd_open(writer.pid), signal.SIGKILL)
            os.close(pidfd)
            for line in writer.stdout:
                acknowledged = int(line)
                total += 1
        content = path.read_bytes()
        loaded = StateFile(path).load()
        assert loaded.problem is None, content
        assert loaded.pair is not None
        assert acknowledged <= loaded.pair.generation <= acknowledged + 1
        assert loaded.pair == a_pair(loaded.pair.generation)
        assert names(path) == ["state.json"]


ON_A_SMALL_DISK = """
import os, sys
from pathlib import Path
from clojarsd.core.errors import Failed
from clojarsd.core.saved import as_json
from clojarsd.system.state_file import StateFile
from tests.support.saved import a_pair

disk = Path(sys.argv[1])
file = StateFile(disk / "state.json")

def attempt(generation):
    try:
        file.write(as_json(a_pair(generation)))
        said = "written"
    except Failed as failed:
        said = str(failed)
    print(said, file.read().generation, sorted(entry.name for entry in disk.iterdir()), sep=" | ", flush=True)

attempt(1)
with (disk / "ballast").open("wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(bytes(4096))
    except OSError:
        pass
attempt(2)
(disk / "ballast").unlink()
attempt(3)
assert os.system(f"mount -o remount,ro {disk}") == 0
attempt(4)
assert os.system(f"mount -o remount,rw {disk}") == 0
attempt(5)
"""


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_a_full_disk_and_one_that_may_not_be_written_leave_the_old_version(tmp_path: Path) -> None:
    steps = 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"'
    command = [sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", steps, str(tmp_path), *command],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    prefix = f"cannot write the state {tmp_path}/state.json: "
    assert done.stdout.splitlines() == [
        "written | 1 | ['state.json']",
        f"{prefix}no space left on device | 1 | ['ballast', 'state.json']",
        "written | 3 | ['state.json']",
        f"{prefix}read-only file system | 3 | ['state.json']",
        "written | 5 | ['state.json']",
    ]
    assert list(tmp_path.iterdir()) == []


def test_one_daemon_alone_has_a_state_directory(tmp_path: Path) -> None:
    """Two with different sockets would take each other's instances up."""
    with alone_in(tmp_path):
        with pytest.raises(Failed, match=f"^cannot start: another clojarsd has the state directory {tmp_path}$"):
            alone_in(tmp_path).__enter__()
        with alone_in(tmp_path / "none"):
            pass
    with alone_in(tmp_path):
        pass
