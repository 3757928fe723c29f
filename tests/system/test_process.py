"""A launched process: its world, its stages, its end, and the end of what it started."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.names import Address, ExitStatus, LaunchStage
from clojarsd.system.launcher import parse_environment
from tests.support.launches import Heard, Launches, failure, launching, reads
from tests.support.real import root_only
from tests.support.waiting import PATIENCE, until


@pytest.fixture
async def launches(tmp_path: Path) -> AsyncIterator[Launches]:
    async with launching(tmp_path) as made:
        yield made


async def test_an_exit_code_is_told(launches: Launches) -> None:
    _, heard = launches.python("raise SystemExit(3)")
    assert await heard.how_it_ended() == ExitStatus(3, None)


async def test_output_is_appended_to_the_log(launches: Launches) -> None:
    Path(launches.spec.log).write_text("before\n")
    _, heard = launches.python("import os; os.write(1, b'out\\n'); os.write(2, b'err\\n')")
    await heard.how_it_ended()
    assert launches.output() == "before\nout\nerr\n"


async def test_a_signal_reaches_the_whole_group(launches: Launches, tmp_path: Path) -> None:
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    program = (
        "import os, sys, time\nchild = os.fork()\nif child: open(sys.argv[1], 'w').write(str(child))\ntime.sleep(60)"
    )
    process, heard = launches.python(program, str(fifo))
    child = int(await reads(fifo))
    process.signal(signal.SIGTERM)
    assert await heard.how_it_ended() == ExitStatus(None, signal.SIGTERM)
    assert not os.path.exists(f"/proc/{child}")


async def test_what_an_ended_process_left_in_its_group_is_ended(launches: Launches, tmp_path: Path) -> None:
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    program = (
        "import os, signal, sys, time\nchild = os.fork()\n"
        "if child == 0:\n  signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)\n"
        "open(sys.argv[1], 'w').write(str(child))"
    )
    _, heard = launches.python(program, str(fifo))
    child = int(await reads(fifo))
    assert await heard.how_it_ended() == ExitStatus(0, None)
    assert not os.path.exists(f"/proc/{child}")


async def test_signals_after_the_end_reach_nobody(launches: Launches) -> None:
    process, heard = launches.python("")
    await heard.how_it_ended()
    process.signal(signal.SIGKILL)  # whoever has the number now is not ours


async def test_an_exit_is_seen_within_milliseconds(launches: Launches, tmp_path: Path) -> None:
    """The time from the exit to its report is that of one turn of the loop, not of a polling interval."""
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    process, heard = launches.python("import sys, time; open(sys.argv[1], 'w').write('up'); time.sleep(60)", str(fifo))
    await reads(fifo)
    loop = asyncio.get_running_loop()
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not heard.end.done():
            loop.call_later(0.001, turn)

    process.signal(signal.SIGKILL)
    turn()
    await heard.how_it_ended()
    assert turns < 500


async def test_descendants_that_left_the_group_leave_no_zombie(launches: Launches, tmp_path: Path) -> None:
    """A double fork makes an orphan in a session of its own; when it ends, the daemon reaps it."""
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    program = (
        "import os, sys\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    open(sys.argv[1], 'w').write(str(os.getpid()))\n  os._exit(0)\nos.wait()"
    )
    _, heard = launches.python(program, str(fifo))
    orphan = int(await reads(fifo))
    await heard.how_it_ended()
    await until(lambda: not os.path.exists(f"/proc/{orphan}"), "the end of the orphan")


async def test_an_abandoned_process_runs_on(launches: Launches, tmp_path: Path) -> None:
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    heard = Heard()
    command = (sys.executable, "-c", "import sys, time; open(sys.argv[1], 'w').write('up'); time.sleep(60)", str(fifo))
    process = launches.processes.launch(replace(launches.spec, command=command), lambda pid: heard)
    await reads(fifo)
    process.abandon()
    assert os.path.exists(f"/proc/{process.pid}")
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    assert not heard.end.done()


async def test_the_world_is_what_the_spec_says(launches: Launches, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    variables = tmp_path / "variables"
    variables.write_text("# more\nB=from file\nexport C='quoted'\n")
    program = (
        "import os, resource, signal\n"
        "print(os.getcwd(), oct(os.umask(0)), sorted(os.environ.items()), sep='\\n')\n"
        "print(os.getpid() == os.getpgrp() == os.getsid(0), os.getpriority(0, 0))\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE), open('/proc/self/oom_score_adj').read().strip())\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "print([line for line in open('/proc/self/status') if line.startswith(('SigIgn', 'SigBlk'))])\n"
        "print(sorted(os.listdir('/proc/self/fd'))[:3], os.read(0, 1))\n"
    )
    spec = replace(
        launches.spec,
        command=("/usr/bin/env", "--", sys.executable, "-I", "-S", "-c", program),
        directory=str(inner),
        environment={"A": "1", "B": "2"},
        environment_file=str(variables),
        umask=0o027,
        nice=5,
        oom_score_adjust=300,
        limits={"nofile": 123},
    )
    _, heard = launches(spec)
    assert await heard.how_it_ended() == ExitStatus(0, None)
    directory, umask, environment, session, limits, mask, dispositions, descriptors = launches.output().splitlines()
    assert directory == str(inner)
    assert umask == "0o27"
    assert "[('A', '1'), ('B', 'from file'), ('C', 'quoted')" in environment
    assert session == "True 5"
    assert limits == "(123, 123) 300"
    assert mask == "set()"
    assert "SigBlk:\\t0000000000000000" in dispositions
    assert descriptors.endswith("b''")


async def test_ignored_signals_are_not_inherited(launches: Launches) -> None:
    """Python ignores SIGPIPE; a shell that inherited that would write for ever."""
    spec = replace(launches.spec, command=("/bin/grep", "SigIgn", "/proc/self/status"))
    _, heard = launches(spec)
    await heard.how_it_ended()
    ignored = int(launches.output().split()[1], 16)
    internal_to_libc = 1 << 31 | 1 << 32
    assert ignored & ~internal_to_libc == 0


async def test_no_descriptor_of_the_daemon_is_inherited(launches: Launches) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        spec = replace(launches.spec, command=("/bin/ls", "/proc/self/fd"))
        _, heard = launches(spec)
        await heard.how_it_ended()
    assert launches.output().split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


async def test_each_stage_names_itself(launches: Launches, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not KEY=VALUE\n")
    latin = tmp_path / "latin"
    latin.write_bytes(b"A=\xe9\n")
    spec, absent = launches.spec, str(tmp_path / "absent")
    cases = [
        (replace(spec, log=f"{file}/x.log"), LaunchStage.LOG, f"{file}/x.log: not a directory"),
        (replace(spec, environment_file=absent), LaunchStage.ENVIRONMENT, f"{absent}: no such file or directory"),
        (
            replace(spec, environment_file=str(file)),
            LaunchStage.ENVIRONMENT,
            f"{file}: line 1 is not KEY=VALUE",
        ),
        (replace(spec, environment_file=str(latin)), LaunchStage.ENVIRONMENT, f"{latin}: is not UTF-8 text"),
        (replace(spec, directory=absent), LaunchStage.DIRECTORY, f"{absent}: no such file or directory"),
        (
            replace(spec, command=("no-such-command",), environment={"PATH": "/usr/bin:/bin"}),
            LaunchStage.EXECUTE,
            "no-such-command: no such command on PATH /usr/bin:/bin",
        ),
        (replace(spec, command=(absent,)), LaunchStage.EXECUTE, f"{absent}: no such command"),
        (replace(spec, command=(str(file),)), LaunchStage.EXECUTE, f"{file}: permission denied"),
        (replace(spec, user="nobody-here"), LaunchStage.USER, "no user nobody-here on this machine"),
    ]
    for broken, stage, reason in cases:
        _, heard = launches(broken)
        assert failure(await heard.how_it_ended()) == (stage, reason)
        assert not heard.runs.is_set()


async def test_a_long_reason_is_cut_and_the_stage_is_still_told(launches: Launches) -> None:
    _, heard = launches(replace(launches.spec, command=("/" + "x" * 100_000,)))
    stage, reason = failure(await heard.how_it_ended())
    assert (stage, len(reason)) == (LaunchStage.EXECUTE, 2000)


async def test_a_limit_above_the_hard_one_is_refused(launches: Launches) -> None:
    if os.geteuid() == 0:
        limit = int(Path("/proc/sys/fs/nr_open").read_text()) + 1
    else:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] + 1
    _, heard = launches(replace(launches.spec, limits={"nofile": limit}))
    stage, reason = failure(await heard.how_it_ended())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert (stage, reason) == (LaunchStage.LIMITS, f"nofile {limit}: above the hard limit {hard}")


async def test_a_taken_port_is_found_before_the_command_runs(launches: Launches) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, heard = launches(replace(launches.spec, ports={"http": Address("127.0.0.1", port)}))
        how = failure(await heard.how_it_ended())
    holder = f"process {os.getpid()} ({psutil.Process().name()})"
    assert how == (LaunchStage.PORTS, f"port {port} (http): address already in use by {holder}")


@root_only
async def test_it_becomes_its_user(launches: Launches, tmp_path: Path) -> None:
    spec = replace(launches.spec, user="nobody", group="daemon", command=("/usr/bin/id",), directory="/")
    _, heard = launches(spec)
    assert await heard.how_it_ended() == ExitStatus(0, None)
    assert "uid=65534(nobody) gid=1(daemon) groups=1(daemon)" in launches.output()


async def test_no_process_to_be_had_is_a_failed_launch(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses a further descriptor: nothing leaks, and the reason is told."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = os.listdir("/proc/self/fd")
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(descriptors) + 1, hard))
    try:
        with pytest.raises(LaunchFailed) as caught:
            launches.processes.launch(launches.spec, lambda pid: Heard())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert failure(caught.value) == (LaunchStage.SPAWN, os.strerror(errno.EMFILE).lower())
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_environment_lines() -> None:
    assert parse_environment('A=1\n\n # x\nexport B="two words"\nC=a=b\nD=\nE=\'"\'\n') == {
        "A": "1",
        "B": "two words",
        "C": "a=b",
        "D": "",
        "E": '"',
    }
    with pytest.raises(ValueError, match=r"^line 2 is not KEY=VALUE$"):
        parse_environment("A=1\n9X=1\n")


@contextmanager
def without_descriptors() -> Iterator[None]:
    """No further descriptor can be had within the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_signal_is_sent_by_a_daemon_that_is_out_of_descriptors(launches: Launches) -> None:
    """What it cannot look at, the descendants, must not keep it from that."""
    process, heard = launches.python("import time; time.sleep(600)")
    async with asyncio.timeout(PATIENCE):
        await heard.runs.wait()
    with without_descriptors():
        process.signal(signal.SIGTERM)
    assert await heard.how_it_ended() == ExitStatus(None, signal.SIGTERM)


async def test_that_the_command_runs_is_told_by_a_daemon_that_is_out_of_descriptors(launches: Launches) -> None:
    """Nobody would check it else, and a start that takes too long is ended."""
    process, heard = launches.python("import time; time.sleep(600)")
    cmdline = Path(f"/proc/{process.pid}/cmdline")
    while b"sleep(600)" not in cmdline.read_bytes():  # the loop, which would tell, does not turn
        os.sched_yield()
    with without_descriptors():
        async with asyncio.timeout(PATIENCE):
            await heard.runs.wait()
