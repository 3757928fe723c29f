"""A log of records loses nothing that it has acknowledged, whatever happens to its disk and to who writes it."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system import record_log as module
from clojarsd.system.record_log import RecordLog, line
from tests.support.namespaces import apart, mount
from tests.support.small_disks import fill, mount_small

CHECKOUT = Path(__file__).parents[2]
HEAD = line({"format": 1})
RECORDS: list[dict[str, Any]] = [
    {"record": "first", "at": "2026-11-23T12:00:00.000Z"},
    {},
    {"record": "odd", "text": 'a\nb\0c"\u00e9\ud800', "list": [1, 2.5, None, True], "object": {"crc": "inner"}},
    {"record": "last"},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.jsonl"


def filled(path: Path, records: list[dict[str, Any]] = RECORDS) -> bytes:
    """The bytes of a log with these records."""
    with RecordLog.open(path, create=True) as log:
        for record in records:
            log.append(record)
    return path.read_bytes()


def seen(path: Path) -> tuple[list[Any], str | None]:
    with RecordLog.open(path, create=False) as log:
        return list(log.records()), log.problem


def test_what_was_appended_is_read_in_order(path: Path) -> None:
    content = filled(path)
    assert seen(path) == (RECORDS, None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert content == HEAD + b"".join(map(line, RECORDS))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_line_is_json_that_says_its_own_checksum() -> None:
    assert line({"a": 1}) == b'{"a":1,"crc":"%08x"}\n' % zlib.crc32(b'{"a":1')
    assert line({}) == b'{"crc":"%08x"}\n' % zlib.crc32(b"{")
    with pytest.raises(ValueError, match=r"^a record has a member crc, which is the checksum's name$"):
        line({"crc": 1})


def test_a_record_is_kept_as_it_is_read_back(path: Path) -> None:
    """Whoever has the log open sees the same as the next who opens it."""
    with RecordLog.open(path, create=True) as log:
        log.append({"a": (1, 2)})
        assert log.records() == ({"a": [1, 2]},)
        assert log.path == path


def test_a_log_that_is_not_there_is_told(path: Path) -> None:
    with pytest.raises(Failed, match=rf"^cannot open the log {path}: there is none$"):
        RecordLog.open(path, create=False)
    with pytest.raises(Failed, match=r": no such file or directory$"):
        RecordLog.open(path.parent / "none" / "some.jsonl", create=True)


def test_an_existing_log_is_not_made_anew(path: Path) -> None:
    content = filled(path)
    RecordLog.open(path, create=True).close()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (line({"format": 2}) + line({"a": 1}), "it has format 2, and this version knows 1"),
        (line({"a": 1}), "it has format None, and this version knows 1"),
        (b"#!/bin/sh\nrm x\n", "it is something else, or damaged beyond use; it was left as it is"),
        (b"no newline", "it is something else, or damaged beyond use; it was left as it is"),
    ],
)
def test_what_is_no_log_of_this_version_is_refused_and_left(path: Path, content: bytes, why: str) -> None:
    path.write_bytes(content)
    with pytest.raises(Failed) as failed:
        RecordLog.open(path, create=True)
    assert str(failed.value) == f"cannot open the log {path}: {why}"
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Path.mkdir, "is a directory"),
        (os.mkfifo, "it is no regular file"),
        (lambda path: path.symlink_to("elsewhere"), "too many levels of symbolic links"),
    ],
    ids=["directory", "pipe", "link"],
)
def test_what_is_no_file_is_refused(path: Path, make: Callable[[Path], None], why: str) -> None:
    make(path)
    with pytest.raises(Failed) as failed:
        RecordLog.open(path, create=True)
    assert str(failed.value) == f"cannot open the log {path}: {why}"


def test_a_file_that_is_far_too_large_is_not_read(path: Path) -> None:
    filled(path)
    os.truncate(path, module.LARGEST + 1)
    with pytest.raises(Failed, match="it is larger than 67108864 bytes"):
        RecordLog.open(path, create=False)


@pytest.mark.parametrize("reserve", [0, 5000], ids=["as long as its records", "with space reserved"])
def test_cut_at_any_byte_every_whole_record_is_there_and_the_log_goes_on(path: Path, reserve: int) -> None:
    """Power loss leaves a part of the last write; where space was reserved, NULs take the place of the rest."""
    content = filled(path)
    ends = [len(HEAD)]
    for record in RECORDS:
        ends.append(ends[-1] + len(line(record)))
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut] + bytes(reserve))
        whole = sum(end <= cut for end in ends) - 1
        records, problem = seen(path)
        assert records == RECORDS[: max(whole, 0)]
        if cut in ends:
            assert problem is None
        elif cut < len(HEAD):
            assert problem == f"the log {path} was empty: not even its first line was whole"
        else:
            torn = cut - ends[whole]
            assert problem == (
                f"the last record of the log {path} was not written to its end ({torn} bytes) and does not count"
            )
        with RecordLog.open(path, create=False) as log:
            assert not log.lacks_records
            log.append({"n": 1})  # shorter than what was torn
        assert seen(path) == ([*records, {"n": 1}], None)


def test_damage_in_the_middle_hides_neither_what_is_before_nor_what_is_behind(path: Path) -> None:
    content = filled(path)
    start, end = len(HEAD), len(HEAD) + len(line(RECORDS[0]))
    for at in range(start, end):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with RecordLog.open(path, create=False) as log:
            told = [record for record in log.records() if record in RECORDS]
            assert told == (RECORDS[1:] if at < end - 1 else RECORDS[2:])  # the last byte is what parts two lines
            assert log.problem == f"line 2 of the log {path} cannot be read; all others stand"
            assert log.lacks_records
            log.append({"n": 1})
            assert log.records()[-2:] == (RECORDS[-1], {"n": 1})


def test_several_damaged_lines_are_told_by_number_and_never_written_over(path: Path) -> None:
    """Of lines at the end that cannot be read only the last may be one that was torn."""
    lines = [HEAD, b"bad\n", line({"n": 1}), b"bad\n", b"worse\n"]
    path.write_bytes(b"".join(lines))
    with RecordLog.open(path, create=False) as log:
        assert log.problem == (
            f"lines 2, 4 of the log {path} cannot be read; all others stand;"
            f" the last record of the log {path} was not written to its end (6 bytes) and does not count"
        )
        log.append({"n": 2})
    assert path.read_bytes() == b"".join(lines[:-1]) + line({"n": 2})


def test_a_damaged_first_line_costs_no_record(path: Path) -> None:
    content = filled(path)
    path.write_bytes(b"x" + content[1:])
    assert seen(path) == (RECORDS, f"line 1 of the log {path} cannot be read; all others stand")


def test_a_right_checksum_of_what_is_no_json_is_damage(path: Path) -> None:
    text = b"{nothing"
    path.write_bytes(HEAD + text + b',"crc":"%08x"}\n' % zlib.crc32(text) + line({"n": 1}))
    assert seen(path) == ([{"n": 1}], f"line 2 of the log {path} cannot be read; all others stand")


def test_space_is_reserved_behind_the_records_and_used_up_by_them(path: Path) -> None:
    with RecordLog.open(path, create=True) as log:
        assert log.reserved == 0
        log.reserve(10_000)
        assert log.reserved == 10_000
        assert log.reserve_is_sure
        assert path.stat().st_size == len(HEAD) + 10_000
        assert path.stat().st_blocks * 512 >= 10_000
        log.append(RECORDS[0])
        assert log.reserved == 10_000 - len(line(RECORDS[0]))
        log.reserve(10_000)
        assert log.reserved == 10_000
        log.reserve(50)
        assert log.reserved == 10_000, "what is reserved stays"
        log.reserve(0)
    assert seen(path) == ([RECORDS[0]], None)
    with RecordLog.open(path, create=False) as log:
        assert log.reserved == 10_000
        log.append(RECORDS[1])
    assert seen(path) == (RECORDS[:2], None)


def test_a_record_is_on_the_disk_when_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acts: list[str] = []
    pwrite, fdatasync = os.pwrite, os.fdatasync

    def see_pwrite(file: int, content: bytes, offset: int) -> int:
        acts.append("write")
        return pwrite(file, content[:7], offset)  # as a kernel may do it

    def see_fdatasync(file: int) -> None:
        acts.append("flush")
        fdatasync(file)

    with RecordLog.open(path, create=True) as log:
        monkeypatch.setattr(os, "pwrite", see_pwrite)
        monkeypatch.setattr(os, "fdatasync", see_fdatasync)
        log.append({})
        assert acts == ["write", "write", "write", "flush"]
    assert seen(path) == ([{}], None)


@pytest.mark.parametrize("broken_for_ever", [False, True])
def test_a_record_that_could_not_be_flushed_is_not_in_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken_for_ever: bool
) -> None:
    flushes = 0
    fdatasync = os.fdatasync

    def fail(file: int) -> None:
        nonlocal flushes
        flushes += 1
        if flushes == 1 or broken_for_ever:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fdatasync(file)

    with RecordLog.open(path, create=True) as log:
        log.append({"n": 1})
        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", fail)
            with pytest.raises(Failed) as failed:
                log.append({"n": 2, "text": "long" * 10})
        assert str(failed.value) == f"cannot write to the log {path}: input/output error; the record is not in it"
        assert log.records() == ({"n": 1},)
        assert seen(path) == ([{"n": 1}], None)
        log.append({"n": 3})
    assert seen(path) == ([{"n": 1}, {"n": 3}], None)


def test_a_log_that_cannot_be_made_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Failed, match=rf"^cannot open the log {path}: input/output error$"):
        RecordLog.open(path, create=True)
    assert list(path.parent.iterdir()) == []


# Disks that are full.


def append_for_ever(log: RecordLog) -> NoReturn:
    while True:
        log.append({"text": "x" * 1000})


def goes_on_while_the_disk_is_full(disk: Path) -> None:
    path = disk / "some.jsonl"
    with RecordLog.open(path, create=True) as log:
        log.reserve(20_000)
        fill(disk)
        size = path.stat().st_size
        with pytest.raises(Failed) as failed:
            log.reserve(200_000)
        assert str(failed.value) == f"cannot reserve 200000 bytes for the log {path}: no space left on device"
        assert path.stat().st_size == size
        count = 0
        while log.reserved > 100:
            log.append({"n": count})
            count += 1
        assert count > 500
        with pytest.raises(Failed, match=rf"{path}: no space left on device; the record is not in it$"):
            append_for_ever(log)
        kept = list(log.records())
        assert seen(path) == (kept, None)
        another = disk / "another.jsonl"
        with pytest.raises(Failed, match=rf"^cannot open the log {another}: no space left on device$"):
            RecordLog.open(another, create=True)
        assert not another.exists()
        (disk / "ballast").unlink()
        log.append({"text": "y" * 1000})
        assert log.reserve_is_sure
    assert seen(path) == ([*kept, {"text": "y" * 1000}], None)


@pytest.mark.real
@pytest.mark.parametrize(("kind", "size"), [("tmpfs", 131_072), ("ext4", 4_194_304)])
@apart(bpf_fs=False)
def test_what_was_reserved_can_be_written_when_the_disk_is_full(tmp_path: Path, kind: str, size: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount_small(disk, size, kind)
    goes_on_while_the_disk_is_full(disk)


@pytest.mark.real
@apart(bpf_fs=False)
def test_a_file_system_that_cannot_reserve_is_told_and_gets_nuls(tmp_path: Path) -> None:
    mount(tmp_path, "ramfs")
    path = tmp_path / "some.jsonl"
    with RecordLog.open(path, create=True) as log:
        log.reserve(10_000)
        assert not log.reserve_is_sure
        assert log.reserved == 10_000
        log.append(RECORDS[0])
        log.reserve(10_000)
        assert log.reserved == 10_000
    assert seen(path) == ([RECORDS[0]], None)
    assert path.read_bytes().rstrip(b"\0") == HEAD + line(RECORDS[0])


WRITER = """
import os, sys
from pathlib import Path
from clojarsd.system.record_log import RecordLog

with RecordLog.open(Path(sys.argv[1]), create=True) as log:
    count = len(log.records())
    log.reserve(4096)
    while True:
        log.append({"n": count, "text": "x" * (count * 37 % 500)})
        count += 1
        os.write(1, b"%d\\n" % count)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_loses_nothing_that_it_has_acknowledged(path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    acknowledged = 0
    for _ in range(20):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(moments.randrange(1, 60)):
                acknowledged = int(writer.stdout.readline())
            signal.pidfd_send_signal(pidfd := os.pidfd_open(writer.pid), signal.SIGKILL)
            os.close(pidfd)
            for told in writer.stdout:
                acknowledged = int(told)
        with RecordLog.open(path, create=False) as log:
            assert not log.lacks_records
            numbers = [record["n"] for record in log.records()]
        assert numbers == list(range(len(numbers)))
        assert acknowledged <= len(numbers) <= acknowledged + 1
