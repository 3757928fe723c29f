"""Processes that another daemon has launched: found again, signalled, and ended with what they have started."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core.identity import MARK, ProcessIdentity
from clojarsd.core.names import UNKNOWN_END, ExitStatus
from clojarsd.system.identity import how_it_ended, identify, is_same, stat_of
from clojarsd.system.process import Processes
from tests.support.launches import Heard, Launches, launching, reads
from tests.support.waiting import PATIENCE

WAITS = "import sys, time; open(sys.argv[1], 'w').write('up'); time.sleep(60)"


@pytest.fixture
async def launches(tmp_path: Path) -> AsyncIterator[Launches]:
    async with launching(tmp_path) as made:
        yield made


@contextmanager
def child_of_another(launches: Launches, program: str, *, reaped: bool = True) -> Iterator[int]:
    """A session leader that runs the program with our mark, and is the child of a process that is not ours."""
    keeper = (
        "import os, sys\n"
        "reads, writes = os.pipe()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "  os.setsid()\n"
        "  os.execve(sys.executable, [sys.executable, '-I', '-S', '-c', sys.argv[1]], {sys.argv[2]: sys.argv[3]})\n"
        "os.close(writes)\n"
        "os.read(reads, 1)\n"  # ends when the child has become its program
        "print(pid, flush=True)\n"
        "if sys.argv[4] == 'True': os.waitpid(pid, 0)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-I", "-S", "-c", keeper, program, MARK, str(launches.mark()), str(reaped)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        launches.processes.claim(parent.pid)
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            yield pid
        finally:
            parent.kill()
            parent.wait()
            launches.processes.release(parent.pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def identity_of(pid: int) -> ProcessIdentity:
    identity = identify(pid)
    assert identity is not None
    return identity


async def taken_over(launches: Launches, program: str, *arguments: str) -> tuple[Any, Heard]:
    """A launched process that another `Processes` has adopted, as after an upgrade in place."""
    fifo = launches.fifo()
    first, heard = launches.python(program, str(fifo), *arguments, mark=launches.mark())
    await reads(fifo)
    await heard.runs.wait()
    identity = first.identity
    launches.forget(first)
    adopted = launches.adopt(identity)
    assert adopted is not None
    return adopted


async def test_a_child_of_ours_is_adopted_with_its_exit_code(launches: Launches) -> None:
    fifo = launches.fifo("end")
    ends = WAITS.replace("time.sleep(60)", "sys.exit(int(open(sys.argv[2]).read()))")
    process, heard = await taken_over(launches, ends, str(fifo))
    await asyncio.to_thread(fifo.write_text, "7")
    assert await heard.how_it_ended() == ExitStatus(7, None)
    assert not os.path.exists(f"/proc/{process.pid}")


async def test_a_child_that_has_ended_before_is_adopted_too(launches: Launches) -> None:
    first, _ = launches.python("raise SystemExit(9)")
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    identity = first.identity
    launches.forget(first)
    adopted = launches.adopt(identity)
    assert adopted is not None
    assert await adopted[1].how_it_ended() == ExitStatus(9, None)


async def test_an_adopted_child_takes_everything_along(launches: Launches) -> None:
    program = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "  os.setsid()\n"
        "  if os.fork() == 0:\n    open(sys.argv[1], 'w').write('up'); open(sys.argv[2], 'w').write(str(os.getpid()))\n"
        "  time.sleep(60)\n"
        "time.sleep(60)"
    )
    told = launches.fifo("told")
    reading = asyncio.ensure_future(asyncio.to_thread(told.read_text))
    process, heard = await taken_over(launches, program, str(told))
    grandchild = int(await reading)
    process.signal(signal.SIGTERM)
    assert await heard.how_it_ended() == ExitStatus(None, signal.SIGTERM)
    assert not os.path.exists(f"/proc/{grandchild}")


@pytest.mark.parametrize("reaped", [True, False])
@pytest.mark.parametrize(
    ("act", "how"), [("raise SystemExit(5)", ExitStatus(5, None)), ("os.kill(os.getpid(), 9)", ExitStatus(None, 9))]
)
async def test_the_kernel_tells_how_a_child_of_another_has_ended(
    launches: Launches, act: str, how: ExitStatus, reaped: bool
) -> None:
    """By the pidfd once it is reaped (Linux 6.15), by /proc while it is not."""
    fifo = launches.fifo()
    with child_of_another(launches, f"import os; open({str(fifo)!r}).read(); {act}", reaped=reaped) as pid:
        adopted = launches.adopt(identity_of(pid))
        assert adopted is not None
        await asyncio.to_thread(fifo.write_text, "go")
        assert await adopted[1].how_it_ended() == how


def test_an_end_of_which_nothing_is_known() -> None:
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    with open(os.devnull) as no_pidfd:
        assert how_it_ended(gone.pid, no_pidfd.fileno()) == UNKNOWN_END
    assert str(UNKNOWN_END) == "ended (how is not known: it is no child of this daemon)"


async def test_another_process_with_the_number_is_not_adopted(launches: Launches) -> None:
    fifo = launches.fifo()
    process, _ = launches.python(WAITS, str(fifo))
    await reads(fifo)
    true = identity_of(process.pid)
    for false in (
        replace(true, started_ticks=true.started_ticks - 1),
        replace(true, boot_id="another"),
        replace(true, executable=(1, 1)),  # and it has no mark that would say that it is ours all the same
    ):
        assert not is_same(false)
        assert launches.adopt(false) is None
    assert is_same(true)


async def test_a_process_that_is_gone_is_not_adopted(launches: Launches) -> None:
    process, heard = launches.python("")
    identity = process.identity
    await heard.how_it_ended()
    assert not is_same(identity)
    assert launches.adopt(identity) is None


async def test_an_instance_that_became_another_command_is_the_same(launches: Launches) -> None:
    """A wrapper that executes the JVM is no other process; the mark shows it."""
    fifo = launches.fifo()
    process, _ = launches.python(WAITS, str(fifo), mark=launches.mark())
    await reads(fifo)
    assert is_same(replace(identity_of(process.pid), executable=(1, 1)))


async def test_the_identity_knows_the_executable_once_the_command_runs(launches: Launches) -> None:
    process, heard = launches.python("import time; time.sleep(60)")
    assert process.identity.executable is None
    await heard.runs.wait()
    executable = os.stat(os.path.realpath(sys.executable))
    assert process.identity.executable == (executable.st_dev, executable.st_ino)


async def test_a_name_with_parentheses_is_read(launches: Launches) -> None:
    fifo = launches.fifo()
    program = "import sys, time; open('/proc/self/comm', 'w').write('a) R (b'); " + WAITS
    process, _ = launches.python(program, str(fifo))
    await reads(fifo)
    stat = stat_of(process.pid)
    assert stat is not None
    assert (stat.name, stat.parent, stat.group, stat.session) == ("a) R (b", os.getpid(), process.pid, process.pid)


async def test_a_launch_under_way_is_adopted_and_its_command_noticed(launches: Launches) -> None:
    variables = launches.fifo("variables")
    spec = replace(launches.spec, command=("/bin/sleep", "60"), environment_file=str(variables), mark=launches.mark())
    first, _ = launches(spec)
    identity = first.identity
    launches.forget(first)
    adopted = launches.adopt(identity)
    assert adopted is not None
    process, heard = adopted
    await asyncio.sleep(0)
    assert not heard.runs.is_set()
    await asyncio.to_thread(variables.write_text, "A=1\n")
    async with asyncio.timeout(PATIENCE):
        await heard.runs.wait()
    assert process.identity.executable is not None
    assert process.mark == launches.mark()


async def test_what_a_child_of_another_started_is_ended_with_it(launches: Launches) -> None:
    """The orphans went to somebody else; the mark in their environment finds them."""
    told = launches.fifo("told")
    program = (
        "import os, time\n"
        f"if os.fork() == 0:\n  os.setsid()\n  open({str(told)!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    with child_of_another(launches, program) as pid:
        orphan = int(await reads(told))
        adopted = launches.adopt(identity_of(pid))
        assert adopted is not None
        process, heard = adopted
        pidfd = os.pidfd_open(orphan)
        try:
            process.signal(signal.SIGTERM)
            assert await heard.how_it_ended() == ExitStatus(None, signal.SIGTERM)
            assert select.select([pidfd], [], [], 0)[0], "the orphan runs on"
        finally:
            os.close(pidfd)


async def test_what_is_left_of_an_instance_that_is_gone_is_ended(launches: Launches) -> None:
    """It ended while no daemon was there to see it; what it left would keep the port."""
    fifo = launches.fifo()
    program = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n  os.setsid()\n  open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    command = (sys.executable, "-I", "-S", "-c", program, str(fifo))
    process, heard = launches(replace(launches.spec, command=command, imposed={MARK: str(launches.mark())}))
    left = int(await reads(fifo))
    os.kill(process.pid, signal.SIGKILL)
    await heard.how_it_ended()
    other = replace(launches.mark(incarnation=2), state_dir="/nowhere")
    assert await launches.processes.end_remains(other) == ()
    stat = stat_of(left)
    assert stat is not None
    assert not stat.has_ended
    assert await launches.processes.end_remains(launches.mark(incarnation=2)) == ()
    stat = stat_of(left)
    assert stat is None or stat.has_ended


async def test_a_signal_for_the_main_process_reaches_it_alone(launches: Launches) -> None:
    fifo = launches.fifo()
    program = (
        "import os, signal, sys, time\n"
        "child = os.fork()\n"
        "signal.signal(signal.SIGHUP, lambda *_: os._exit(3 if child else 4))\n"
        "if child:\n  open(sys.argv[1], 'w').write(str(child))\n"
        "time.sleep(60)"
    )
    process, heard = launches.python(program, str(fifo))
    child = int(await reads(fifo))
    pidfd = os.pidfd_open(child)
    process.signal_main(signal.SIGHUP)
    assert await heard.how_it_ended() == ExitStatus(3, None)
    os.close(pidfd)


async def test_without_group_signals_by_pidfd_the_number_is_used(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.9."""
    real = signal.pidfd_send_signal

    def old(pidfd: int, number: int, siginfo: None = None, flags: int = 0) -> None:
        if flags:
            raise OSError(22, "Invalid argument")
        real(pidfd, number, siginfo, flags)

    monkeypatch.setattr(signal, "pidfd_send_signal", old)
    fifo = launches.fifo()
    process, heard = launches.python(WAITS, str(fifo))
    await reads(fifo)
    process.signal(signal.SIGTERM)
    assert await heard.how_it_ended() == ExitStatus(None, signal.SIGTERM)


async def test_a_claimed_child_keeps_its_exit_status(launches: Launches) -> None:
    """Somebody else of the daemon waits for it."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "raise SystemExit(6)"]) as child:
        launches.processes.claim(child.pid)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        _, heard = launches.python("")  # another one ends, and strangers are reaped
        await heard.how_it_ended()
        assert child.wait() == 6
        launches.processes.release(child.pid)


async def test_a_child_that_somebody_else_reaped_still_tells_its_end(launches: Launches) -> None:
    """A bug elsewhere in the daemon must not leave an instance in its state for ever."""
    fifo = launches.fifo()
    process, heard = launches.python(WAITS, str(fifo))
    await reads(fifo)
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)  # before the loop turns
    assert await heard.how_it_ended() == ExitStatus(None, signal.SIGKILL)


async def test_an_end_without_descriptors_is_told_once_there_are_some(launches: Launches) -> None:
    fifo = launches.fifo()
    process, heard = launches.python(WAITS, str(fifo))
    await reads(fifo)
    await heard.runs.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.sleep(0.2)  # nothing must happen in this time
        assert not heard.end.done()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await heard.how_it_ended() == ExitStatus(None, signal.SIGKILL)


def test_nothing_is_made_before_it_is_wanted() -> None:
    descriptors = os.listdir("/proc/self/fd")
    Processes()
    assert os.listdir("/proc/self/fd") == descriptors


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_process_whose_environment_is_hidden_is_not_taken_for_one_in_an_exec() -> None:
    """An adopted instance would never be checked: in a container root may not look at other users' processes."""
    with subprocess.Popen(["/bin/sleep", "600"], env={}) as running:
        asks = f"from clojarsd.system.identity import is_between_programs as asked; print(asked({running.pid}))"
        told = subprocess.run(
            [sys.executable, "-c", asks], user=65534, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        running.kill()
    assert told.stdout == "False\n"
