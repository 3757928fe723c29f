"""Whether a process is one of an instance's, with real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from clojarsd.core.identity import MARK, InstanceMark
from clojarsd.core.names import Incarnation, Role
from clojarsd.system.kinship import belongs, members

LEADER = """
import os, sys
child = os.fork()
if not child:
    own = os.fork()
    if not own:
        os.setsid()
        grand = os.fork()
        if not grand:
            sys.stdin.read()
            os._exit(0)
        print(os.getpid(), grand, flush=True)
        sys.stdin.read()
        os._exit(0)
    print(os.getpid(), flush=True)
    os._exit(0)  # its child has a session of its own and lost its parent
os.waitpid(child, 0)
member = os.fork()
if not member:
    sys.stdin.read()
    os._exit(0)
print(member, flush=True)
sys.stdin.read()
"""


@contextmanager
def leader(mark: InstanceMark) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """A leader, and the processes it told of: one in its session, two that left."""
    pipe = subprocess.PIPE
    environment = {"PATH": os.environ["PATH"], MARK: str(mark)}
    with subprocess.Popen(
        [sys.executable, "-S", "-c", LEADER],
        stdin=pipe,
        stdout=pipe,
        text=True,
        start_new_session=True,
        env=environment,
    ) as running:
        assert running.stdout is not None
        told: set[int] = set()
        for _ in range(3):
            told.update(map(int, running.stdout.readline().split()))
        living = {pid for pid in told if psutil.pid_exists(pid)}
        assert len(living) == 3
        try:
            yield running, living
        finally:
            for pid in [*living, running.pid]:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def mark(tmp_path: Path) -> InstanceMark:
    """Of this test alone: all of the machine is looked at."""
    return InstanceMark(str(tmp_path), Role.BACKUP, Incarnation(3))


def test_who_belongs_is_known_by_session_or_by_the_marker(mark: InstanceMark) -> None:
    with leader(mark) as (running, others):
        member = {pid for pid in others if os.getsid(pid) == running.pid}
        assert len(member) == 1
        assert {pid for pid in others if belongs(pid, running.pid)} == member
        assert all(belongs(pid, running.pid, mark) for pid in [running.pid, *others])
        other = InstanceMark(mark.state_dir, mark.role, Incarnation(30))
        assert not any(belongs(pid, running.pid, other) for pid in others - member)
        assert not belongs(os.getpid(), running.pid, mark)
        assert not belongs(0, running.pid, mark)


def test_all_of_an_instance_is_found_with_those_that_left(mark: InstanceMark) -> None:
    with leader(mark) as (running, others):
        assert members(running.pid, mark)[0] == running.pid
        assert set(members(running.pid, mark)) == {running.pid, *others}
        assert set(members(running.pid)) < {running.pid, *others}
