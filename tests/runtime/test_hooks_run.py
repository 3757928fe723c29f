"""The commands of hooks, as real processes."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.identity import MARK, InstanceMark
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import Address, ExitStatus, Incarnation, LaunchStage, Role
from clojarsd.runtime.hooks_run import HookRun
from clojarsd.system.hook_command import HookCommand, HookProcess, hook_spec
from clojarsd.system.process import Processes, ProcessEvents
from tests.support.waiting import PATIENCE, until

LONG = 3600.0


def sh(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


class Hooks:
    """Runs hooks in one world. `ends`: what each has told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "primary.log"
        self.spec = LaunchSpec(
            command=("/bin/false",),
            directory=str(directory),
            environment={"PATH": "/usr/bin:/bin", "MORE": "given"},
            environment_file=None,
            log=str(self.log),
            ports={"http": Address("127.0.0.1", 1)},
            user=None,
            group=None,
            umask=0o022,
            nice=os.getpriority(os.PRIO_PROCESS, 0),
            oom_score_adjust=int(Path("/proc/self/oom_score_adj").read_text()),
            limits={},
            soft_nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )
        self.processes = Processes()
        self.pids: list[int] = []
        self.ends: list[str | None] = []

    def launch(self, spec: LaunchSpec, make_events: Callable[[int], ProcessEvents]) -> HookProcess:
        def make(pid: int) -> ProcessEvents:
            self.pids.append(pid)
            return make_events(pid)

        return self.processes.launch(spec, make)

    def run(self, *commands: Sequence[str], timeout: float = LONG) -> HookRun:
        return HookRun(self.launch, commands, self.spec, timeout, self.ends.append)

    async def end(self) -> str | None:
        """What the only hook has told."""
        await until(lambda: self.ends, "the end of the hook")
        (end,) = self.ends
        return end

    async def nothing_runs(self) -> None:
        await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in self.pids))


@pytest.fixture
async def hooks(tmp_path: Path) -> AsyncIterator[Hooks]:
    hooks = Hooks(tmp_path)
    with hooks.processes.adopting_orphans():
        yield hooks
        await hooks.nothing_runs()


async def test_commands_run_in_their_order_and_write_to_the_log_of_the_instance(hooks: Hooks) -> None:
    hooks.log.write_text("before\n")
    hooks.run(sh("echo one"), sh("echo two $MORE >&2"), sh("pwd"))
    assert hooks.ends == []
    assert await hooks.end() is None
    assert hooks.log.read_text() == f"before\none\ntwo given\n{hooks.directory}\n"


async def test_no_commands_are_a_success_told_later(hooks: Hooks) -> None:
    hooks.run()
    assert hooks.ends == []
    assert await hooks.end() is None


async def test_the_first_failure_ends_the_hook_with_its_last_words(hooks: Hooks) -> None:
    hooks.log.write_text("said by the instance before\n")
    hooks.run(sh("echo fine"), sh("seq 3 9; echo broken >&2; exit 3"), sh("echo never"))
    assert await hooks.end() == "/bin/sh -c 'seq 3 9; echo broken >&2; exit 3' exited with 3: 8 | 9 | broken"
    assert "never" not in hooks.log.read_text()


async def test_words_of_before_are_not_its_own(hooks: Hooks) -> None:
    hooks.log.write_text("said by the instance before\n")
    hooks.run(sh("exit 3"))
    assert await hooks.end() == "/bin/sh -c 'exit 3' exited with 3"


async def test_a_log_that_was_cut_meanwhile_is_read_from_its_head(hooks: Hooks) -> None:
    hooks.log.write_text("x" * 100_000 + "\n")
    hooks.run(sh(": > primary.log; echo broken; exit 3"))
    assert await hooks.end() == "/bin/sh -c ': > primary.log; echo broken; exit 3' exited with 3: broken"


async def test_a_signal_is_told(hooks: Hooks) -> None:
    hooks.run(sh("kill -TERM $$"))
    assert await hooks.end() == f"/bin/sh -c 'kill -TERM $$' {ExitStatus(None, signal.SIGTERM)}"


async def test_a_command_that_is_not_there_is_told(hooks: Hooks) -> None:
    hooks.run(("/no/such",), sh("echo never"))
    assert await hooks.end() == "cannot run /no/such: running its command: /no/such: no such command"
    assert hooks.log.read_text() == ""


async def test_no_process_to_be_had_is_told_and_not_at_once(hooks: Hooks) -> None:
    def refuse(spec: LaunchSpec, make_events: Callable[[int], ProcessEvents]) -> HookProcess:
        raise LaunchFailed(LaunchStage.SPAWN, "too many open files")

    HookRun(refuse, [sh("true")], hooks.spec, LONG, hooks.ends.append)
    assert hooks.ends == []
    assert await hooks.end() == "cannot run /bin/sh -c true: making its process: too many open files"


@pytest.mark.slow
async def test_out_of_time_its_whole_group_is_killed(hooks: Hooks) -> None:
    fifo = hooks.directory / "alive"
    os.mkfifo(fifo)
    hooks.run(sh("trap '' TERM; echo busy; sleep 600 > alive & wait"), timeout=2.0)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.to_thread(fifo.read_text) == ""  # at its end: nobody holds the other one
    script = "'trap '\"'\"''\"'\"' TERM; echo busy; sleep 600 > alive & wait'"
    assert await hooks.end() == f"/bin/sh -c {script} did not end within 2s: busy"


async def test_cancelled_it_is_killed_and_tells_nothing(hooks: Hooks) -> None:
    fifo = hooks.directory / "alive"
    os.mkfifo(fifo)
    running = hooks.run(sh("trap '' TERM; exec > alive; echo up; sleep 600"), sh("touch never"))
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await until(lambda: _read(reader) == b"up\n")
        running.cancel()
        running.cancel()
        await hooks.nothing_runs()
    finally:
        os.close(reader)
    assert hooks.ends == []
    assert not (hooks.directory / "never").exists()


async def test_a_command_alone_is_cancelled_as_well(hooks: Hooks) -> None:
    for script in ("sleep 600", "exit 3"):
        HookCommand(hooks.launch, hooks.spec, sh(script), LONG, hooks.ends.append).cancel()
    await hooks.nothing_runs()
    await until(lambda: not any(thread.name == "last-words" for thread in threading.enumerate()))
    await asyncio.sleep(0)
    assert hooks.ends == []


async def test_cancelled_before_its_end_was_told_it_tells_nothing(hooks: Hooks) -> None:
    hooks.run().cancel()
    hooks.run(("/no/such",)).cancel()
    await hooks.nothing_runs()
    await asyncio.sleep(0)
    assert hooks.ends == []


async def test_abandoned_it_runs_on(hooks: Hooks) -> None:
    fifo = hooks.directory / "go"
    os.mkfifo(fifo)
    hooks.run(sh("read line < go; touch went_on"), sh("touch never")).abandon()
    (pid,) = hooks.pids
    async with asyncio.timeout(PATIENCE):
        await asyncio.to_thread(fifo.write_text, "on\n")
        await asyncio.to_thread(_wait_for, pid)
    assert (hooks.directory / "went_on").exists()
    assert not (hooks.directory / "never").exists()
    assert hooks.ends == []


async def test_a_hook_is_marked_and_is_no_instance(hooks: Hooks) -> None:
    mark = InstanceMark("/var/lib/x", Role.BACKUP, Incarnation(3))
    hooks.spec = replace(hooks.spec, mark=mark, cgroup={"pids.max": "10"})
    spec = hook_spec(hooks.spec, ("/bin/x",))
    assert (spec.mark, spec.cgroup, spec.ports, spec.command) == (None, {}, {}, ("/bin/x",))
    hooks.run((sys.executable, "-S", "-c", f"import os; print(os.environ.get('{MARK}'))"))
    assert await hooks.end() is None
    assert hooks.log.read_text() == f"{mark}\n"


class Ignoring:
    """Hears how a process fares, and does nothing."""

    def executed(self) -> None: ...

    def ended(self, how: ExitStatus | LaunchFailed) -> None: ...


async def test_neither_the_instance_nor_its_hook_ends_with_the_other(hooks: Hooks) -> None:
    """Both have the mark of one launch, by which the rest of an ended process is found and ended."""
    mark = InstanceMark(str(hooks.directory), Role.BACKUP, Incarnation(3))  # of this test alone
    hooks.spec = replace(hooks.spec, mark=mark, ports={})
    script = "setsid sleep 600 & echo $! > orphan.new; mv orphan.new orphan; sleep 600"
    first = hooks.launch(replace(hooks.spec, command=sh(script)), lambda pid: Ignoring())
    await until((hooks.directory / "orphan").exists)
    instance, orphan = hooks.pids[0], int((hooks.directory / "orphan").read_text())
    hooks.run(sh("sleep 600 & exit 0"))
    assert await hooks.end() is None
    assert os.path.exists(f"/proc/{instance}")
    assert os.path.exists(f"/proc/{orphan}")

    os.mkfifo(hooks.directory / "fifo")
    running = hooks.run(sh("echo up > fifo; sleep 600"))
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.to_thread((hooks.directory / "fifo").read_text) == "up\n"
    first.signal(signal.SIGKILL)
    await until(lambda: not os.path.exists(f"/proc/{instance}"))
    await until(lambda: not os.path.exists(f"/proc/{orphan}"))
    assert os.path.exists(f"/proc/{hooks.pids[-1]}")
    assert len(hooks.ends) == 1
    running.cancel()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""


def _wait_for(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:  # reaped as an orphan by the daemon's own handler
        return
