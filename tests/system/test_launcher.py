"""What the launcher makes of the child's world, and the launcher that waits."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from clojarsd.core.names import ExitStatus, LaunchStage
from clojarsd.system.identity import stat_of
from clojarsd.system.spawning import LAUNCHER
from tests.support.launches import Launches, failure, launching
from tests.support.waiting import until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")
STATIC = Path("/sbin/ldconfig")
"""A program that needs no library, so that it runs in an empty root directory."""


@pytest.fixture
async def launches(tmp_path: Path) -> AsyncIterator[Launches]:
    async with launching(tmp_path) as made:
        yield made


def spare(launches: Launches) -> int | None:
    return launches.processes._shared.spare.pid


async def spare_waits(launches: Launches) -> int:
    """The number of the launcher that waits, once it does."""
    launches.processes._shared.replenish()
    pid = spare(launches)
    assert pid is not None
    await until(lambda: (stat := stat_of(pid)) is not None and stat.name == "clojarsd-launch", "a waiting launcher")
    return pid


async def test_it_runs_on_the_chosen_cpus(launches: Launches) -> None:
    cpu = max(os.sched_getaffinity(0))
    spec = replace(launches.spec, command=("/bin/grep", "Cpus_allowed_list", "/proc/self/status"), cpu_affinity=(cpu,))
    _, heard = launches(spec)
    await heard.how_it_ended()
    assert launches.output().split()[1] == str(cpu)


async def test_a_cpu_that_is_not_there_is_named(launches: Launches) -> None:
    """The kernel would leave it out silently."""
    mine = sorted(os.sched_getaffinity(0))
    runs_on = f"clojarsd itself runs on {', '.join(map(str, mine))}"
    _, heard = launches(replace(launches.spec, cpu_affinity=(mine[0], 1000)))
    assert failure(await heard.how_it_ended()) == (
        LaunchStage.AFFINITY,
        f"CPU 1000 cannot be used: {runs_on}",
    )
    _, heard = launches(replace(launches.spec, cpu_affinity=(1000,)))
    assert failure(await heard.how_it_ended()) == (
        LaunchStage.AFFINITY,
        f"none of the CPUs 1000 can be used: {runs_on}",
    )


async def test_every_limit_of_setrlimit_can_be_set(launches: Launches) -> None:
    limits = {"core": 0, "nproc": 5000, "stack": 4194304, "memlock": 65536, "sigpending": 77}
    _, heard = launches(replace(launches.spec, command=("/bin/cat", "/proc/self/limits"), limits=limits))
    await heard.how_it_ended()
    seen = {line[:26].strip(): line[26:].split()[:2] for line in launches.output().splitlines()}
    assert seen["Max core file size"] == ["0", "0"]
    assert seen["Max processes"] == ["5000", "5000"]
    assert seen["Max stack size"] == ["4194304", "4194304"]
    assert seen["Max locked memory"] == ["65536", "65536"]
    assert seen["Max pending signals"] == ["77", "77"]
    _, heard = launches(replace(launches.spec, limits={"hope": 1}))
    assert failure(await heard.how_it_ended()) == (LaunchStage.LIMITS, "hope 1: there is no such limit here")


@needs_root
async def test_it_is_shut_up_in_its_root_directory(launches: Launches) -> None:
    """The log is opened outside; directory and command are inside; the user's name is of the outside."""
    if not STATIC.exists():
        pytest.skip("no static program to be had")
    root = launches.directory / "root"
    (root / "inner").mkdir(parents=True)
    launches.directory.chmod(0o755)
    shutil.copy(STATIC, root / "inner" / "program")
    spec = replace(
        launches.spec,
        command=("/inner/program", "--version"),
        directory="/inner",
        chroot=str(root),
        user="nobody",
        supplementary_groups=("daemon",),
    )
    _, heard = launches(spec)
    assert await heard.how_it_ended() == ExitStatus(0, None)
    assert launches.output().startswith("ldconfig")
    _, heard = launches(replace(spec, command=("/bin/sh",)))
    assert failure(await heard.how_it_ended()) == (LaunchStage.EXECUTE, "/bin/sh: no such command")
    _, heard = launches(replace(spec, chroot=f"{root}/none"))
    how = failure(await heard.how_it_ended())
    assert how == (LaunchStage.CHROOT, f"{root}/none: no such file or directory")


@needs_root
async def test_supplementary_groups_are_added_to_those_of_the_user(launches: Launches) -> None:
    spec = replace(launches.spec, command=("/usr/bin/id", "-G"), directory="/")
    _, heard = launches(replace(spec, user="nobody", supplementary_groups=("daemon", "4321")))
    assert await heard.how_it_ended() == ExitStatus(0, None)
    assert sorted(map(int, launches.output().split())) == [1, 4321, 65534]
    _, heard = launches(replace(spec, supplementary_groups=("4321",)))  # without another user
    assert await heard.how_it_ended() == ExitStatus(0, None)
    assert "4321" in launches.output().splitlines()[-1].split()
    _, heard = launches(replace(spec, supplementary_groups=("no-such-group",)))
    assert failure(await heard.how_it_ended()) == (LaunchStage.GROUPS, "no group no-such-group on this machine")


async def test_the_umask_is_set(launches: Launches) -> None:
    _, heard = launches(replace(launches.spec, command=("/bin/sh", "-c", "umask"), umask=0o027))
    await heard.how_it_ended()
    assert launches.output() == "0027\n"


async def test_a_launch_takes_the_launcher_that_waits(launches: Launches) -> None:
    waiting = await spare_waits(launches)
    process, heard = launches.python("raise SystemExit(3)")
    assert process.pid == waiting
    assert await heard.how_it_ended() == ExitStatus(3, None)
    assert spare(launches) not in (None, waiting)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_launcher_that_does_not_wait_any_more_is_not_taken(launches: Launches, number: int) -> None:
    """Dead or frozen, it fails no launch, and is reaped."""
    waiting = await spare_waits(launches)
    os.kill(waiting, number)
    await until(lambda: (stat := stat_of(waiting)) is not None and stat.state in "ZT", "the signal's effect")
    process, heard = launches.python("raise SystemExit(3)")
    assert process.pid != waiting
    assert await heard.how_it_ended() == ExitStatus(3, None)
    assert not os.path.exists(f"/proc/{waiting}")


async def test_a_launcher_that_cannot_take_its_launch_is_replaced(launches: Launches) -> None:
    waiting = await spare_waits(launches)
    spawned = launches.processes._shared.spare._spawned
    assert spawned is not None
    spawned.line.shutdown(socket.SHUT_WR)
    process, heard = launches.python("raise SystemExit(3)")
    assert process.pid != waiting
    assert await heard.how_it_ended() == ExitStatus(3, None)


async def test_through_the_waiting_launcher_nothing_is_inherited_either(launches: Launches) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        await spare_waits(launches)
        process, heard = launches(replace(launches.spec, command=("/bin/sleep", "60")))
        await heard.runs.wait()
        opened = {name: os.readlink(f"/proc/{process.pid}/fd/{name}") for name in os.listdir(f"/proc/{process.pid}/fd")}
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert opened == {"0": "/dev/null", "1": launches.spec.log, "2": launches.spec.log}
    assert shown == b"/bin/sleep\x0060\x00"


async def test_the_waiting_launcher_ends_with_the_block(launches: Launches) -> None:
    waiting = await spare_waits(launches)
    launches.processes._shared.spare.close()
    assert not os.path.exists(f"/proc/{waiting}")


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os.execv('/bin/sleep', ['sleep', '60'])"])
async def test_the_waiting_launcher_ends_with_the_daemon(launches: Launches, end: str) -> None:
    """However that ends, also by becoming another program."""
    program = (
        "import os\nfrom clojarsd.system.spawning import Spare\n"
        f"spare = Spare(set()); spare.replenish(); print(spare.pid, flush=True); input(); {end}"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as daemon:
        launches.processes.claim(daemon.pid)
        assert daemon.stdout is not None
        waiting = int(daemon.stdout.readline())
        await until(lambda: str(LAUNCHER) in Path(f"/proc/{waiting}/cmdline").read_text(), "the launcher")
        assert daemon.stdin is not None
        daemon.stdin.write("\n")
        daemon.stdin.flush()
        await until(lambda: (stat := stat_of(waiting)) is None or stat.has_ended, "the end of the launcher")
        daemon.kill()
        daemon.wait()
        launches.processes.release(daemon.pid)
