"""Rotation by truncation, where the file system can do no better: what is lost is little, and told."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system.cgroup import _own_group, end_group, remove
from clojarsd.system.fallocate import Removal
from clojarsd.system.freezer import FROZEN, TO_FREEZE, Freezer, thaw
from clojarsd.system.last_page import PAGE, LastPage
from clojarsd.system.log_cut import Writer
from clojarsd.system.log_file import LogFile
from clojarsd.system.log_packing import pack_one
from clojarsd.system.threads import Threads
from tests.support.logs import Reading, append, lines, numbered, rotate, written
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE, until

MOST = 20_000
STEPS = ("made", "copied", "marked", "moved 2", "moved 1", "renamed", "removed")
WRITER = """
import os, sys
for group in sys.argv[3:]:
    open(group + "/cgroup.procs", "w").write("0")
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
for number in range(int(sys.argv[2])):
    os.write(file, b"line %07d of this log\\n" % number)
"""
LINE = len(lines(0, 1))


@pytest.fixture
def log() -> Iterator[Path]:
    """A log that does not exist yet, on a file system that keeps pages and has a disk."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory) / "primary.log"


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group that nobody is in."""
    own = _own_group()
    if own is None or os.geteuid() != 0 or not os.access(own / "cgroup.procs", os.W_OK):
        unavailable("no control groups can be made here")
    path = own / f"clojarsd-test-{secrets.token_hex(6)}"
    path.mkdir()
    try:
        yield path
    finally:
        thaw(path)
        end_group(path, PATIENCE)
        remove(path)


def cutting(path: Path, keep: int = 100) -> LogFile:
    return LogFile(path, MOST, keep, Removal.TRUNCATE)


def rotate_until(log: Path, step: str) -> None:
    """Begin a rotation that goes no further."""
    for done in cutting(log).rotate():
        if done == step:
            return


def test_what_was_written_is_there_once_and_in_order(log: Path) -> None:
    append(log, lines(0, 5000))
    log.chmod(0o604)
    file = cutting(log)
    assert rotate(file) == 1
    assert file.cut is not None
    assert (file.cut.copied, file.cut.lost, file.cut.still) == (5000 * LINE, 0, None)
    assert (log.stat().st_size, numbered(log)[1].stat().st_mode & 0o777) == (0, 0o604)
    append(log, lines(5000, 2000))
    assert rotate(file) == 1
    assert written(log) == lines(0, 7000)
    assert sorted(entry.name for entry in log.parent.iterdir()) == ["primary.log", "primary.log.1", "primary.log.2"]


def test_a_short_log_is_left_alone(log: Path) -> None:
    append(log, b"x" * MOST)
    assert rotate(cutting(log)) == 0
    assert [entry.name for entry in log.parent.iterdir()] == ["primary.log"]


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_so_many_rotated_files_are_kept(log: Path, keep: int) -> None:
    file = cutting(log, keep)
    for first in range(0, 5000, 1000):
        append(log, lines(first, 1000))
        assert rotate(file) == 1
    assert written(log) == lines(5000 - 1000 * keep, 1000 * keep)
    assert len(numbered(log)) == keep


KILLED = """
import os, pathlib, signal, sys
from clojarsd.system.fallocate import Removal
from clojarsd.system.log_file import LogFile
for step in LogFile(pathlib.Path(sys.argv[1]), 20000, 10, Removal.TRUNCATE).rotate():
    if step == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
sys.exit("it was not killed")
"""


@pytest.mark.parametrize("same", [False, True], ids=["lines that differ", "lines that are all the same"])
@pytest.mark.parametrize("step", STEPS)
def test_a_rotation_that_is_killed_neither_loses_nor_doubles(log: Path, step: str, same: bool) -> None:
    def some(first: int, count: int) -> bytes:
        return b"the same\n" * count if same else lines(first, count)

    for first in (0, 3000):
        append(log, some(first, 3000))
        rotate(cutting(log))
    append(log, some(6000, 4000))
    died = subprocess.run([sys.executable, "-c", KILLED, str(log), step], capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    append(log, some(10_000, 1000))  # its writer goes on
    file = cutting(log)
    list(file.recover())
    assert written(log) == some(0, 11_000)
    append(log, some(11_000, 3000))
    rotate(file)
    assert written(log) == some(0, 14_000)
    assert not list(log.parent.glob("*ing"))
    assert sorted(numbered(log)) == list(range(1, len(numbered(log)) + 1))


def test_a_copy_that_was_cut_short_is_gone_on_with(log: Path) -> None:
    """As when the disk was full for the last of it: its length says how far it came."""
    append(log, lines(0, 5000))
    rotate_until(log, "renamed")
    with log.with_name("primary.log.1").open("ab") as copy:
        copy.write(lines(0, 5001)[copy.tell() : 5000 * LINE - 1])
    append(log, lines(5000, 100))
    list(cutting(log).recover())
    assert written(log) == lines(0, 5100)


def write_and_rotate(log: Path, count: int, group: Path | None = None) -> tuple[list[int], list[float]]:
    """Rotate as often as can be while a process writes at full speed; what was told of each: lost bytes, seconds."""
    log.touch()
    file, lost, still = cutting(log, 10_000), [], []
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        WRITER,
        str(log),
        str(count),
        *([str(group)] if group is not None else []),
    ]
    with subprocess.Popen(command) as writer:
        file.writer = Writer(writer.pid, group)
        while writer.poll() is None:
            if list(file.rotate()):
                assert file.cut is not None
                lost.append(sys.maxsize if file.cut.lost is None else file.cut.lost)
                still.append(file.cut.still if file.cut.still is not None else 0.0)
    assert writer.returncode == 0
    return lost, still


def test_no_more_is_lost_than_is_told(log: Path) -> None:
    lost, _ = write_and_rotate(log, 200_000)
    found = written(log)
    assert 200_000 * LINE - len(found) <= sum(lost)
    assert len(lost) >= 5
    whole = [line for line in found.split(b"\n") if len(line) == LINE - 1]
    assert whole == sorted(whole)
    assert len(whole) == len(set(whole))
    assert sum(one == 0 for one in lost) >= len(lost) / 4


@pytest.mark.parametrize(("appended", "lost"), [(100, 0), (3 * PAGE, 3 * PAGE)])
def test_what_comes_between_the_last_copy_and_the_truncation(
    log: Path, monkeypatch: pytest.MonkeyPatch, appended: int, lost: int
) -> None:
    """Little is saved; of much, no more than a page is, and what is told is at least the rest."""
    append(log, b"x" * (10 * PAGE + 100))
    file = cutting(log)
    file.writer = Writer(os.getpid())
    truncate = os.ftruncate

    def late(opened: int, length: int) -> None:
        if os.path.samestat(os.fstat(opened), log.stat()):
            append(log, b"y" * appended)
        truncate(opened, length)

    monkeypatch.setattr(os, "ftruncate", late)
    rotate(file)
    assert file.cut is not None
    assert file.cut.lost is not None
    kept = len(written(log)) - (10 * PAGE + 100)
    assert kept == (appended if lost == 0 else PAGE - 100)
    assert (file.cut.lost == 0) if lost == 0 else (file.cut.lost >= appended - kept)
    file.writer = Writer()
    append(log, b"x" * (10 * PAGE + 100))
    rotate(file)
    assert file.cut.lost == (0 if lost == 0 else None)


def test_nothing_is_lost_while_the_writer_stands_still(log: Path, group: Path) -> None:
    lost, still = write_and_rotate(log, 600_000, group)
    stood = [seconds for one, seconds in zip(lost, still, strict=True) if seconds and one == 0]
    assert len(stood) >= 3
    assert 600_000 * LINE - len(written(log)) <= sum(lost)  # where the machine was too busy to freeze in time
    if len(stood) == len(lost):
        assert written(log) == lines(0, 600_000)
    assert not thaw(group)


def test_what_is_appended_at_the_last_moment_is_read_from_the_page(log: Path) -> None:
    append(log, b"x" * (PAGE + 100))
    with log.open("r+b") as opened, LastPage(opened.fileno(), PAGE + 100) as page:
        assert page.room == PAGE - 100
        append(log, b"last words\n")
        os.ftruncate(opened.fileno(), 0)
        append(log, b"first words\n")
        assert page.appended() == (b"last words\n", False)
    assert log.read_bytes() == b"first words\n"


def test_a_full_page_says_that_there_may_have_been_more(log: Path) -> None:
    append(log, b"x" * 100)
    with log.open("r+b") as opened, LastPage(opened.fileno(), 100) as page:
        append(log, b"y" * PAGE)
        os.ftruncate(opened.fileno(), 0)
        assert page.appended() == (b"y" * (PAGE - 100), True)
        with pytest.raises(OSError, match="Bad address"):
            LastPage(opened.fileno(), PAGE)


@pytest.mark.parametrize("same", [False, True])
async def test_a_reader_follows_through_rotations(log: Path, same: bool) -> None:
    """One that is at the end, and one that is two rotated files behind; also where all lines are alike."""

    def some(first: int, count: int) -> bytes:
        return b"always the same line\n" * count if same else lines(first, count)

    append(log, some(0, 4000))
    file = cutting(log)
    behind, at_end = Reading(file, 3500), Reading(file, 0)
    with closing(behind.reader), closing(at_end.reader):
        first = behind.reader.read()
        rotate(file)
        append(log, some(4000, 100))
        assert at_end.rest() == some(4000, 100)
        append(log, some(4100, 3000))
        rotate(file)
        threads = Threads("test")
        while await pack_one(file, threads):
            pass
        threads.close()
        append(log, some(7100, 10))
        assert at_end.rest() == some(4100, 3010)
        assert b"".join(f"{line}\n".encode() for line in first) + behind.rest() == some(500, 6610)


def test_a_rotated_file_with_a_second_name_is_not_written_to(log: Path) -> None:
    append(log, lines(0, 5000))
    rotate_until(log, "renamed")
    treasure = log.with_name("treasure")
    treasure.write_bytes(b"treasure")
    log.with_name("primary.log.1").unlink()
    log.with_name("primary.log.1").hardlink_to(treasure)
    with pytest.raises(Failed, match=r"primary\.log\.1 is not a regular file with one name"):
        list(cutting(log).recover())
    assert treasure.read_bytes() == b"treasure"


STANDING = """
import pathlib, signal, subprocess, sys, os
from clojarsd.system.freezer import Freezer
with Freezer(pathlib.Path(sys.argv[1])) as freezer:
    assert freezer.freeze()
    print("frozen", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def sleeper(group: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the group."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        (group / "cgroup.procs").write_text(str(process.pid))
        yield process
        process.kill()


def frozen(group: Path) -> bool:
    return (group / "cgroup.freeze").read_text() == "1\n" or "frozen 1" in (group / "cgroup.events").read_text()


@pytest.mark.usefixtures("sleeper")
async def test_a_group_is_thawed_when_who_froze_it_is_killed(group: Path) -> None:
    died = subprocess.run([sys.executable, "-c", STANDING, str(group)], capture_output=True, text=True)
    assert (died.returncode, died.stdout) == (-9, "frozen\n"), died.stderr
    await until(lambda: not frozen(group), "the group running again")


@pytest.mark.usefixtures("sleeper")
async def test_a_group_is_thawed_when_it_takes_too_long(group: Path) -> None:
    with Freezer(group) as freezer:
        assert freezer.freeze()
        assert "frozen 1" in (group / "cgroup.events").read_text()
        await until(lambda: not frozen(group), "the group running again")
    assert not freezer.whole


@pytest.mark.usefixtures("sleeper")
def test_a_group_is_thawed_when_its_guard_is_killed(group: Path) -> None:
    with Freezer(group) as freezer:
        assert freezer.freeze()
        assert freezer._guard is not None
        freezer._guard.kill()
    assert not freezer.whole
    assert not frozen(group)


@pytest.mark.usefixtures("sleeper")
def test_a_pause_is_short_and_told(group: Path) -> None:
    with Freezer(group) as freezer:
        assert freezer.freeze()
    assert freezer.whole
    assert freezer.seconds is not None
    assert 0 < freezer.seconds < TO_FREEZE + FROZEN
    assert not frozen(group)


def test_without_a_group_nothing_stands_still(tmp_path: Path) -> None:
    for group in (None, tmp_path):
        with Freezer(group) as freezer:
            assert not freezer.freeze()
        assert (freezer.seconds, freezer.whole) == (None, False)


IN_A_NAMESPACE = """
import pathlib, subprocess, sys
from clojarsd.system.log_file import LogFile
from tests.support.logs import append, lines, rotate, written
subprocess.run(["mount", "-t", "ramfs", "none", sys.argv[1]], check=True)
log = pathlib.Path(sys.argv[1]) / "primary.log"
file = LogFile(log, 20000, 100)
for first in range(0, 9000, 3000):
    append(log, lines(first, 3000))
    assert rotate(file) == 1
    assert file.cut is not None and file.cut.lost == 0, file.cut
append(log, lines(9000, 10))
assert written(log) == lines(0, 9010)
"""


def in_a_namespace(program: str, directory: Path) -> None:
    """Run it where it can mount what nobody else sees."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        unavailable("no file system can be mounted here")
    command = ["unshare", "-m", "--propagation", "private", sys.executable, "-c", program, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_is_the_way_of_a_file_system_that_can_do_no_better(tmp_path: Path) -> None:
    in_a_namespace(IN_A_NAMESPACE, tmp_path)


ON_A_FULL_DISK = """
import pathlib, subprocess, sys
from clojarsd.core.errors import Failed
from clojarsd.system.fallocate import Removal
from clojarsd.system.log_file import LogFile
from tests.support.logs import append, lines, numbered, rotate, written
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", sys.argv[1]], check=True)
log = pathlib.Path(sys.argv[1]) / "primary.log"
file = LogFile(log, 20000, 100, Removal.TRUNCATE)
for first in range(0, 20000, 4000):
    append(log, lines(first, 4000))
    assert rotate(file) == 1
append(log, lines(20000, 4000))
for step in file.rotate():
    if step == "renamed":
        break
append(log, lines(24000, 11000))
list(file.recover())
assert lines(0, 35000).endswith(written(log)), "wrong"
assert 2 <= len(numbered(log)) <= 4, numbered(log)
for number, older in numbered(log).items():
    older.unlink()
append(log, lines(35000, 4000))
for step in file.rotate():
    if step == "renamed":
        break
append(log, lines(39000, 2000))
filler = log.with_name("filler")
try:
    filler.write_bytes(b"x" * 2**20)
except OSError:
    pass
try:
    list(file.recover())
except Failed as failed:
    assert "no space left on device" in str(failed), failed
else:
    sys.exit("there was room")
filler.unlink()
list(file.recover())
assert written(log) == lines(35000, 6000), "wrong again"
"""


def test_when_the_disk_is_full_for_the_last_of_it_the_oldest_go(tmp_path: Path) -> None:
    """Where that is not enough it is gone on with when there is room; nothing is lost or doubled by that."""
    in_a_namespace(ON_A_FULL_DISK, tmp_path)
