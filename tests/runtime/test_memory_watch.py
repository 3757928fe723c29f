"""Restarts for memory, with the kernel's figures made up, and once with real ones."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping

import pytest
import structlog

from clojarsd.core.errors import Refused
from clojarsd.core.names import Role
from clojarsd.runtime import memory_watch
from clojarsd.runtime.memory_watch import MemoryWatch
from clojarsd.system.usage import Usage
from tests.support.waiting import PATIENCE, until

MIB = 1024**2
LIMIT = 100 * MIB
PIDS = {Role.PRIMARY: 11, Role.BACKUP: 12}
SENTENCE = "its memory stayed above memory_max (150 MiB, at most 100 MiB)"


class Machine:
    """A machine whose instances use what the test says, in MiB: (RSS, PSS) of each."""

    def __init__(self, limits: Mapping[Role, int | None]) -> None:
        self.uses = {11: (50, 50), 12: (50, 50)}
        self.measured: list[int] = []
        self.restarts: list[tuple[Role, str]] = []
        self.is_refused = False
        self.gate = threading.Event()
        self.gate.set()
        self.watch = MemoryWatch(limits, self._restart, self._look, self._measure)
        for role, pid in PIDS.items():
            self.watch.begin(role, pid)

    def _look(self, pids: Iterable[int]) -> Mapping[int, Usage]:
        return {pid: Usage(None, self.uses[pid][0] * MIB, 1.0, (pid,)) for pid in pids if pid in self.uses}

    def _measure(self, seen: Usage) -> Usage:
        (pid,) = seen.pids
        self.measured.append(pid)
        assert self.gate.wait(PATIENCE)
        return Usage(self.uses[pid][1] * MIB, seen.rss_bytes, seen.cpu_seconds, seen.pids)

    def _restart(self, role: Role, reason: str) -> None:
        if self.is_refused:
            raise Refused("the backup is not ready")
        self.restarts.append((role, reason))

    async def samples(self, count: int) -> None:
        for _ in range(count):
            await self.watch.sample()


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine({Role.PRIMARY: LIMIT, Role.BACKUP: None})
    yield machine
    machine.watch.close()


async def test_memory_that_stays_above_restarts_once(machine: Machine) -> None:
    machine.uses[11] = (200, 150)
    await machine.samples(2)
    assert not machine.restarts
    await machine.samples(1)
    assert machine.restarts == [(Role.PRIMARY, SENTENCE)]
    await machine.samples(59)  # it is still being drained, or so it seems
    assert len(machine.restarts) == 1
    await machine.samples(1)
    assert machine.restarts == [(Role.PRIMARY, SENTENCE)] * 2
    machine.watch.begin(Role.PRIMARY, 12)
    machine.uses[12] = (200, 150)
    await machine.samples(3)
    assert len(machine.restarts) == 3


async def test_a_look_that_the_kernel_refuses_is_told_once_and_made_again(machine: Machine) -> None:
    good, machine.watch._look = machine.watch._look, _refused
    with structlog.testing.capture_logs() as logs:
        await machine.samples(3)
        machine.watch._look = good
        await machine.samples(1)
        machine.watch._look = _refused
        await machine.samples(1)
    assert [(line["event"], line["reason"]) for line in logs] == [("memory_not_seen", "too many open files")] * 2
    seen = machine.watch.latest(Role.PRIMARY)
    assert seen is not None
    assert seen.rss_bytes == 50 * MIB


def _refused(pids: Iterable[int]) -> Mapping[int, Usage]:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_rss_alone_restarts_nobody(machine: Machine) -> None:
    machine.uses[11] = (200, 90)
    await machine.samples(5)
    assert machine.measured == [11] * 5
    assert not machine.restarts


async def test_the_exact_figure_is_asked_for_only_above_a_limit(machine: Machine) -> None:
    machine.uses = {11: (100, 100), 12: (900, 900)}
    await machine.samples(3)
    assert not machine.measured
    seen = machine.watch.latest(Role.BACKUP)
    assert seen is not None
    assert (seen.rss_bytes, seen.pss_bytes, seen.cpu_seconds) == (900 * MIB, None, 1.0)


async def test_a_sample_below_begins_the_count_anew(machine: Machine) -> None:
    for used in ((200, 150), (200, 150), (200, 99), (200, 150), (200, 150), (90, 90), (200, 150), (200, 150)):
        machine.uses[11] = used
        await machine.samples(1)
    assert not machine.restarts


async def test_a_refused_restart_is_tried_again_and_told_once(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.uses[11] = (200, 150)
    machine.is_refused = True
    await machine.samples(6)
    assert capsys.readouterr().out.count("memory_restart_put_off") == 1
    machine.is_refused = False
    await machine.samples(1)
    assert machine.restarts == [(Role.PRIMARY, SENTENCE)]


async def test_a_new_incarnation_begins_with_nothing(machine: Machine) -> None:
    machine.uses[11] = (200, 150)
    await machine.samples(2)
    machine.watch.begin(Role.PRIMARY, 12)
    assert machine.watch.latest(Role.PRIMARY) is None
    machine.uses[12] = (200, 150)
    await machine.samples(2)
    assert not machine.restarts
    machine.watch.end(Role.PRIMARY)
    assert machine.watch.latest(Role.PRIMARY) is None
    await machine.samples(3)
    assert not machine.restarts


async def test_who_has_ended_is_not_judged(machine: Machine) -> None:
    machine.uses[11] = (200, 150)
    await machine.samples(2)
    del machine.uses[11]
    await machine.samples(3)
    assert not machine.restarts


async def test_a_figure_that_hangs_is_asked_for_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory_watch, "PSS_TIMEOUT", 0.02)
    machine.uses[11] = (200, 150)
    machine.gate.clear()
    await machine.samples(4)
    assert machine.measured == [11]
    assert capsys.readouterr().out.count("memory_not_measured") == 1
    seen = machine.watch.latest(Role.PRIMARY)
    assert seen is not None
    assert seen.pss_bytes is None
    machine.gate.set()
    monkeypatch.setattr(memory_watch, "PSS_TIMEOUT", PATIENCE)
    await until(lambda: not machine.watch._measured)
    await machine.samples(3)
    assert len(machine.restarts) == 1


async def test_a_real_process_is_found_too_large() -> None:
    program = "import sys; memory = b'x' * (60 * 1024 * 1024); print(flush=True); sys.stdin.read()"
    pipe, restarts = subprocess.PIPE, list[Role]()
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdin=pipe, stdout=pipe, start_new_session=True
    ) as one:
        assert one.stdout is not None
        one.stdout.readline()
        watch = MemoryWatch({Role.BACKUP: 50 * MIB}, lambda role, reason: restarts.append(role))
        watch.begin(Role.BACKUP, one.pid)
        for _ in range(3):
            await watch.sample()
        seen = watch.latest(Role.BACKUP)
        watch.close()
    assert restarts == [Role.BACKUP]
    assert seen is not None
    assert seen.pss_bytes is not None
    assert seen.pss_bytes > 60 * MIB
