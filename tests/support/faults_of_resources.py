"""Faults of what a kernel gives: no descriptors, no processes, and a clock that somebody has set."""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from tests.support.faults import (
    CannotInject,
    Faults,
    Load,
    Scene,
    happened,
    is_normal,
    kill,
    pids,
    said,
    until_normal,
    until_said,
)
from tests.support.pair import STAND_IN, Pair
from tests.support.waiting import PATIENCE

fault = Faults()

DAY = timedelta(days=1)
MOST_CLIENTS = 4000
PIDS_CGROUP = Path("/sys/fs/cgroup/pids")
"""Where cgroup v1 has its controller of process numbers."""


@fault("no free descriptors in the daemon")
def daemon_without_descriptors(scene: Scene) -> None:
    with scene.pair() as pair:
        assert pair.daemon is not None
        with Load(pair) as load:
            primary = pair.pid("primary")
            with _no_descriptors_left(pair.daemon.pid):
                gone_at = kill(primary)
                until_said(pair, "event=launch_failed", "too many open files")
                load.prove()
                assert load.names_since(gone_at) == {"backup"}
                began = time.monotonic()
            seconds = until_normal(pair, began, lambda seen: seen["instances"]["primary"]["incarnation"] >= 2)
            load.prove()
        load.assert_only_inside(gone_at)
        assert pair.daemon.poll() is None
    scene.tell(load, "the relay served on; the primary was launched when there were some again", seconds)


@fault("no free descriptors in the relay process")
def relay_without_descriptors(scene: Scene) -> None:
    with scene.pair() as pair:
        with Load(pair) as load:
            before = pids(pair)
            with _no_descriptors_left(before["relay"], step_by_step=_served_or(load, lambda: _is_paused(pair))):
                until_said(pair, "event=accept_paused")
                answered = len(load.fresh.answers)
                load.kept.await_answers(12)
                assert len(load.fresh.answers) <= answered + 2, "at most those who were inside"
                began = time.monotonic()
            load.prove()
            seconds = until_normal(pair, began)
            assert pids(pair) == before
        load.assert_nothing_lost()
        assert len(said(pair, "event=accept_paused")) == 1, "clients come to one frontend"
    scene.tell(load, "open connections went on, new ones waited in the backlog and were served", seconds)


def _is_paused(pair: Pair) -> bool:
    return bool(said(pair, "event=accept_paused"))


def _served_or(load: Load, is_over: Callable[[], bool]) -> Callable[[], None]:
    """Return when some more clients have been served, or it is over."""

    def wait() -> None:
        deadline, target = time.monotonic() + PATIENCE, len(load.fresh.answers) + 4
        while len(load.fresh.answers) < target and not is_over():
            assert time.monotonic() < deadline, load.errors
            time.sleep(0.005)

    return wait


@contextmanager
def _no_descriptors_left(pid: int, step_by_step: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within the block the process can open nothing; what it has open stays.

    Args:
        step_by_step: called after each one that was taken away.
    """
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    most = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    try:
        for limit in range(most, 2, -1):  # down below all numbers that may become free
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
            step_by_step()
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@fault("no memory for the relay process")
def relay_without_memory(scene: Scene) -> None:
    with scene.pair() as pair:
        with Load(pair, inside=5, slow_ms=5000 if scene.is_steered else 60_000) as load, ExitStack() as crowd:
            before = pids(pair)
            began = time.monotonic()
            used = int(Path(f"/proc/{before['relay']}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            hard = resource.prlimit(before["relay"], resource.RLIMIT_AS)[1]
            resource.prlimit(before["relay"], resource.RLIMIT_AS, (used, hard))
            for _ in range(MOST_CLIENTS):
                if not psutil.pid_exists(before["relay"]):
                    break
                client = crowd.enter_context(socket.create_connection(("127.0.0.1", pair.line), PATIENCE))
                with suppress(ConnectionError):
                    client.sendall(b"x")
            gone_at = time.monotonic()
            seconds = until_normal(pair, began, lambda seen: seen["daemon"]["relay_pid"] not in (None, before["relay"]))
            load.prove()
            assert {**pids(pair), "relay": before["relay"]} == before
        if scene.is_steered:
            load.assert_nothing_lost()
        else:
            load.assert_only_inside(gone_at)
        (lost,) = said(pair, "event=relay_lost")
        assert f"pid={before['relay']}" in lost
        assert "signal 6" in lost
        assert said(pair, "this process ends with all that it has: MemoryError()")
    told = "nobody noticed" if scene.is_steered else "new ones waited in the backlog and were served"
    scene.tell(load, f"it ended as a whole and said why; {told}", seconds)


@fault("no free process numbers for the daemon")
def daemon_without_processes(scene: Scene) -> None:
    with scene.pair(command=[*STAND_IN, "--daemonize-child"]) as pair:
        assert pair.daemon is not None
        with Load(pair) as load:
            with _no_processes_left(pair.daemon.pid):
                kill(pair.pid("backup"))  # for which a launcher waits, made before
                pair.until(lambda seen: is_normal(seen) and seen["instances"]["backup"]["incarnation"] == 2)
                assert load.failures == []
                gone_at = kill(pair.pid("primary"))
                until_said(pair, "event=launch_failed", "resource temporarily unavailable")
                load.prove()
                assert load.names_since(gone_at) == {"backup"}
                began = time.monotonic()
            seconds = until_normal(pair, began, lambda seen: seen["instances"]["primary"]["incarnation"] >= 2)
            load.prove()
        load.assert_only_inside(gone_at)
        assert pair.daemon.poll() is None
        pair.done("restart", "all")
    scene.tell(load, "one launch by the spare launcher, then none; the other served until it went", seconds)


@contextmanager
def _no_processes_left(pid: int) -> Iterator[None]:
    """Within the block the process can make neither processes nor threads.

    Raises:
        CannotInject: nothing here counts them; says what was tried.
    """
    if os.geteuid() != 0:
        before = resource.prlimit(pid, resource.RLIMIT_NPROC)
        resource.prlimit(pid, resource.RLIMIT_NPROC, (0, before[1]))  # which counts all of its user's
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_NPROC, before)
        return
    own = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":pids:" in line), None)
    if own is None or not PIDS_CGROUP.is_dir():
        raise CannotInject("RLIMIT_NPROC does not bind root, and there is no cgroup v1 controller of pids")
    home = PIDS_CGROUP / own.split(":")[2].lstrip("/")
    group = home / f"clojarsd-test-{secrets.token_hex(6)}"
    try:
        group.mkdir()
    except OSError as error:
        raise CannotInject(f"RLIMIT_NPROC does not bind root, and in {home}: {error.strerror}") from error
    try:
        (group / "pids.max").write_text("0")
        (group / "cgroup.procs").write_text(str(pid))
        try:
            yield
        finally:
            (home / "cgroup.procs").write_text(str(pid))
    finally:
        group.rmdir()


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile const long *shift;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CLOCK_SHIFT");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file >= 0 ? mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (mapped != MAP_FAILED)
        shift = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int failed = real(clock, at);
    if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += *shift;
    return failed;
}

int gettimeofday(struct timeval *at, void *zone)
{
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
"""
"""What stands between a process and its C library, and adds to the clock what a file says: no clock here is set."""


class _Clock:
    """The clock of the daemon and of the relay process."""

    def __init__(self, home: Path) -> None:
        self._path = home / "clock"
        source, self.library = home / "clock.c", home / "clock.so"
        self.set(timedelta())
        source.write_text(SHIM)
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise CannotInject("no C compiler for what stands between the daemon and its clock")
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(self.library), str(source), "-ldl"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise CannotInject(f"{compiler}: {made.stderr.strip()}")
        self.environment = {"LD_PRELOAD": str(self.library), "CLOCK_SHIFT": str(self._path)}

    def set(self, shift: timedelta) -> None:
        """Let it be that much ahead of the machine's, at once."""
        with self._path.open("r+b" if self._path.exists() else "w+b") as file:
            file.write(struct.pack("l", int(shift.total_seconds())))


@fault("clock set back by a day, then ahead by two")
def clock_set(scene: Scene) -> None:
    clock = _Clock(scene.home)
    with scene.pair(environment=clock.environment) as pair:
        assert pair.daemon is not None
        with Load(pair) as load:
            before = pids(pair)
            for pid in (pair.daemon.pid, before["relay"]):
                assert str(clock.library) in Path(f"/proc/{pid}/maps").read_text()
            clock.set(-DAY)
            began = time.monotonic()
            gone_at = kill(before["primary"])
            seconds = until_normal(pair, began, lambda seen: seen["instances"]["primary"]["incarnation"] == 2)
            assert _newest(pair) < datetime.now(UTC) - DAY + timedelta(hours=1), "the daemon did not see it"
            pair.done("restart", "primary")
            pair.kill()
            pair.begin()
            pair.until(is_normal)
            clock.set(DAY)
            kill(pair.pid("backup"))
            pair.until(lambda seen: is_normal(seen) and seen["instances"]["backup"]["incarnation"] == 2)
            assert _newest(pair) > datetime.now(UTC) + DAY - timedelta(hours=1)
            pair.until(_checked_tomorrow)
            load.prove()
        load.assert_only_inside(gone_at)
        assert happened(pair).count("daemon-adopted") == 2
    scene.tell(load, "kill, restart and adoption as ever; only the stamps of events moved", seconds)


def _checked_tomorrow(seen: dict[str, Any]) -> bool:
    """Whether the checks of both go on, by the clock that is a day ahead."""
    checked = [datetime.fromisoformat(instance["checks"][0]["at"]) for instance in seen["instances"].values()]
    return min(checked) > datetime.now(UTC) + DAY - timedelta(hours=1)


def _newest(pair: Pair) -> datetime:
    """The stamp of what happened last."""
    return datetime.fromisoformat(pair.events()[-1]["at"])
