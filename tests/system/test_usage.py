"""What a family of processes uses, of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest

from clojarsd.system.usage import Member, family_of, usage, usages, with_pss

MIB = 1024**2

SHARING = """
import mmap, os, sys, time
memory = mmap.mmap(-1, 40 * 1024 * 1024)
memory.write(b"x" * len(memory))
if not os.fork():
    bytes(memory)
    print("child", flush=True)
    sys.stdin.read()
    os._exit(0)
while time.process_time() < 0.1: pass
if not (burner := os.fork()):
    while time.process_time() < 0.1: pass
    os._exit(0)
os.waitpid(burner, 0)
print("up", flush=True)
sys.stdin.read()
"""


@contextmanager
def sharing() -> Iterator[int]:
    """A leader and its child that share 40 MiB, and have used 0.2 s of processor time with one that has ended."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-S", "-c", SHARING], stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as running:
        assert running.stdout is not None
        assert {running.stdout.readline(), running.stdout.readline()} == {"child\n", "up\n"}
        yield running.pid


def test_shared_memory_counts_once_in_pss_and_twice_in_rss() -> None:
    with sharing() as pid:
        seen = usage(pid)
        assert seen is not None
        assert seen.pss_bytes is not None
        assert len(seen.pids) == 2
        assert seen.rss_bytes > 80 * MIB
        assert 40 * MIB < seen.pss_bytes < 80 * MIB
        assert seen.rss_bytes >= seen.pss_bytes
        assert seen.cpu_seconds >= 0.18
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        expected = sum(process.memory_full_info().pss for process in family)
        assert abs(seen.pss_bytes - expected) < 4 * MIB


def test_one_pass_looks_at_all_leaders_and_asks_for_no_pss() -> None:
    with sharing() as one, sharing() as other:
        seen = usages((one, other, 2**22 + 1))
        assert set(seen) == {one, other}
        assert all(usage.pss_bytes is None and usage.rss_bytes > 80 * MIB for usage in seen.values())


def test_who_has_ended_uses_nothing() -> None:
    with sharing() as pid:
        leader = replace(usages((pid,))[pid], pids=(pid,))
    assert usage(pid) is None
    assert with_pss(leader).pss_bytes == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_a_process_that_may_not_be_read_counts_with_its_rss() -> None:
    seen = usages((os.getpid(),))[os.getpid()]
    program = (
        "import os, sys; from clojarsd.system.usage import usage; os.setuid(65534); seen = usage(int(sys.argv[1]));"
        "print(seen.pss_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(os.getpid())], capture_output=True, text=True, check=True)
    assert int(done.stdout) > seen.rss_bytes / 2


def test_a_name_of_brackets_and_spaces_is_no_trap() -> None:
    program = "import sys; open('/proc/self/comm', 'w').write(') R 1 (x'); print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdin=pipe, stdout=pipe, text=True) as running:
        assert running.stdout is not None
        running.stdout.readline()
        assert usages((running.pid,))[running.pid].rss_bytes > MIB
        assert running.stdin is not None
        running.stdin.close()


def test_a_family_is_session_group_and_descendants() -> None:
    def one(pid: int, parent: int, group: int, session: int) -> Member:
        return Member(pid, parent, group, session, 0, 0)

    everybody = [
        one(10, 1, 10, 10),
        one(11, 10, 10, 10),
        one(12, 1, 12, 10),  # lost its parent, has a group of its own
        one(13, 11, 13, 13),  # has left the session, and still has its parent
        one(14, 13, 13, 13),
        one(15, 1, 15, 15),
        one(16, 15, 15, 15),
    ]
    assert {member.pid for member in family_of(10, everybody)} == {10, 11, 12, 13, 14}
    assert family_of(99, everybody) == ()
