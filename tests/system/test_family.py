"""What an instance has started: ended with it, wherever it went, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from clojarsd.core.identity import HOOK, MARK, InstanceMark
from clojarsd.core.names import Address, ExitStatus, HookName, Incarnation, Role
from clojarsd.system.family import _kill, children_of, end_hook, find_marked, still_taken
from clojarsd.system.identity import identify, is_between_programs, mark_of, stat_of, user_of
from clojarsd.system.process import Processes
from tests.support.launches import Heard, Launches, launching, reads
from tests.support.real import root_only
from tests.support.waiting import PATIENCE, until

STRANGER = 65534

LEAVES_A_DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], 'w').write(str(os.getpid()))
        time.sleep(60)
    os._exit(0)
os.wait()
time.sleep(60)
"""
"""A double fork into a session of its own, as daemons do it."""

LEADS_A_SESSION = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    open(sys.argv[1], 'w').write(str(os.getpid()))
time.sleep(60)
"""
"""A child that leads a session, as an instance does."""

A_THOUSAND = """
import os, sys, time
reads, writes = os.pipe()
for _ in range(1000):
    if os.fork() == 0:
        os.setsid()
        os.close(writes)
        os.read(reads, 1)
        os._exit(0)
open(sys.argv[1], 'w').write('up')
time.sleep(60)
"""
"""All of them end at once, when the pipe does."""


@pytest.fixture
async def launches(tmp_path: Path) -> AsyncIterator[Launches]:
    async with launching(tmp_path) as made:
        yield made


def words(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def runs(pid: int) -> bool:
    stat = stat_of(pid)
    return stat is not None and not stat.has_ended


async def leaving_a_daemon(launches: Launches, mark: InstanceMark, name: str) -> tuple[Heard, int, int]:
    fifo = launches.fifo(name)
    process, heard = launches.python(LEAVES_A_DAEMON, str(fifo), mark=mark)
    return heard, process.pid, int(await reads(fifo))


async def test_a_daemon_that_it_left_is_ended_with_it(launches: Launches) -> None:
    heard, pid, left = await leaving_a_daemon(launches, launches.mark(), "ready")
    os.kill(pid, signal.SIGKILL)
    assert await heard.how_it_ended() == ExitStatus(None, signal.SIGKILL)
    assert not os.path.exists(f"/proc/{left}")


LEAVES_NO_TRACE = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], 'w').write(str(os.getpid()))
        os.execve('/bin/sleep', ['sleep', '600'], {})
    os._exit(0)
os.wait()
os.execv('/bin/sleep', ['sleep', '600'])
"""
"""A daemon without its instance's environment."""


async def test_what_left_no_trace_is_told_and_ends_when_no_instance_is_left(launches: Launches) -> None:
    """Nobody can tell whose it was, so that the end of one instance does not end it."""
    mark, told = InstanceMark("/s", Role.PRIMARY, Incarnation(1)), launches.fifo("stray")
    spec = replace(launches.spec, command=(sys.executable, "-c", LEAVES_NO_TRACE, str(told)), mark=mark)
    process, heard = launches(spec)
    stray = int(await reads(told))
    await until(lambda: mark_of(stray) is None and "sleep" in words(stray))
    process.signal(signal.SIGKILL)
    await heard.how_it_ended()
    assert runs(stray)
    assert launches.processes.strangers() == (f"process {stray} (sleep)",)
    assert await launches.processes.end_strangers() == ()
    await until(lambda: not runs(stray))


async def test_the_daemon_of_the_other_instance_is_left_alone(launches: Launches) -> None:
    heard, pid, left = await leaving_a_daemon(launches, launches.mark(Role.PRIMARY), "primary")
    other, other_pid, other_left = await leaving_a_daemon(launches, launches.mark(Role.BACKUP), "backup")
    os.kill(pid, signal.SIGKILL)
    await heard.how_it_ended()
    assert not os.path.exists(f"/proc/{left}")
    assert runs(other_left)
    assert runs(other_pid)
    os.kill(other_pid, signal.SIGKILL)
    await other.how_it_ended()
    assert not os.path.exists(f"/proc/{other_left}")


async def test_what_an_earlier_incarnation_left_is_ended_too(launches: Launches) -> None:
    """A daemon that was killed in the middle could not; a later incarnation is never touched."""
    earlier, earlier_pid, earlier_left = await leaving_a_daemon(launches, launches.mark(incarnation=1), "earlier")
    launches.forget(launches.made[0][0])
    later, later_pid, later_left = await leaving_a_daemon(launches, launches.mark(incarnation=3), "later")
    heard, pid, left = await leaving_a_daemon(launches, launches.mark(incarnation=2), "ready")
    os.kill(pid, signal.SIGKILL)
    await heard.how_it_ended()
    assert not os.path.exists(f"/proc/{left}")
    assert not os.path.exists(f"/proc/{earlier_left}")
    assert runs(later_left)
    os.kill(earlier_pid, signal.SIGKILL)
    os.waitpid(earlier_pid, 0)
    launches.processes.release(earlier_pid)
    earlier.end.cancel()
    os.kill(later_pid, signal.SIGKILL)
    await later.how_it_ended()


async def test_a_member_of_its_session_without_its_environment_is_ended(launches: Launches) -> None:
    """In a group of its own, as a shell puts its jobs, and with nothing in the environment that tells."""
    fifo = launches.fifo()
    program = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "  os.setpgid(0, 0)\n"
        "  shell = ['sh', '-c', 'echo $$ > \"$0\"; exec /bin/sleep 60', sys.argv[1]]\n"
        "  os.execve('/bin/sh', shell, {})\n"
        "time.sleep(60)"
    )
    process, heard = launches.python(program, str(fifo), mark=launches.mark())
    left = int(await reads(fifo))
    os.kill(process.pid, signal.SIGKILL)  # by a stranger: nobody looked at its descendants before
    await heard.how_it_ended()
    assert not os.path.exists(f"/proc/{left}")


async def test_children_of_what_is_found_belong_to_it(launches: Launches) -> None:
    """The marked daemon has a child with another environment and session: parentage tells."""
    fifo = launches.fifo()
    program = LEAVES_A_DAEMON.replace(
        "open(sys.argv[1], 'w').write(str(os.getpid()))",
        "import subprocess; child = subprocess.Popen(['/bin/sleep', '60'], env={}, start_new_session=True);"
        " open(sys.argv[1], 'w').write(str(child.pid))",
    )
    process, heard = launches.python(program, str(fifo), mark=launches.mark())
    left = int(await reads(fifo))
    process.signal(signal.SIGKILL)
    await heard.how_it_ended()
    assert not os.path.exists(f"/proc/{left}")


async def test_the_end_of_a_hook_ends_nothing_of_its_instance(launches: Launches) -> None:
    """A hook has the mark in its environment, and is no instance."""
    _, pid, left = await leaving_a_daemon(launches, launches.mark(), "ready")
    fifo = launches.fifo("end")
    command = (sys.executable, "-I", "-S", "-c", "import sys; open(sys.argv[1]).read()", str(fifo))
    _, hook = launches(replace(launches.spec, command=command, imposed={MARK: str(launches.mark())}))
    await hook.runs.wait()
    await asyncio.to_thread(fifo.write_text, "")
    assert await hook.how_it_ended() == ExitStatus(0, None)
    assert runs(left)
    assert runs(pid)


@pytest.mark.parametrize("by_us", [True, False])
async def test_what_descended_from_it_when_it_was_signalled_is_ended(launches: Launches, by_us: bool) -> None:
    """A child in a session of its own, without our mark: parentage tells, as long as there is a parent."""
    fifo = launches.fifo()
    program = (
        "import os, signal, subprocess, sys, time\n"
        "child = subprocess.Popen(['/bin/sleep', '60'], env={'A': '1'}, start_new_session=True)\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
        "time.sleep(60)"
    )
    process, heard = launches.python(program, str(fifo), mark=launches.mark())
    left = int(await reads(fifo))
    if by_us:
        process.signal(signal.SIGTERM)
    else:
        os.kill(process.pid, signal.SIGTERM)
    await heard.how_it_ended()
    assert runs(left) is not by_us  # after an accident nothing proves whose it is: it might be the other instance's
    if not by_us:
        os.kill(left, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("adopted", [False, True])
async def test_a_thousand_descendants_that_end_at_once_leave_nothing(launches: Launches, adopted: bool) -> None:
    """No zombie is left, and the daemon does not spin over them; also when it has adopted the instance."""
    fifo = launches.fifo()
    process, heard = launches.python(A_THOUSAND, str(fifo), mark=launches.mark())
    await reads(fifo)
    if adopted:
        await heard.runs.wait()
        launches.forget(process)
        found = launches.adopt(process.identity)
        assert found is not None
        process, heard = found
    assert len(children_of(process.pid)) == 1000
    began = time.process_time()
    process.signal_main(signal.SIGKILL)
    await heard.how_it_ended()
    await until(lambda: not children_of(os.getpid()) - launches.processes._shared.ours, "the end of the last")
    assert time.process_time() - began < 3.0


def test_nobody_is_killed_who_has_the_number_of_another() -> None:
    child = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    try:
        stat = stat_of(child)
        assert stat is not None
        _kill([replace(stat, started_ticks=stat.started_ticks - 1)], 1.0)
        assert runs(child)
        _kill([stat], 30.0)
        assert not runs(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def test_running_instances_are_found_by_their_mark(launches: Launches) -> None:
    """Their main processes alone, of this state directory alone, the latest first."""
    _, first, left = await leaving_a_daemon(launches, launches.mark(incarnation=4), "first")
    _, second, _ = await leaving_a_daemon(launches, launches.mark(incarnation=5), "second")
    fifo = launches.fifo("leader")
    _, heard = launches.python(LEADS_A_SESSION, str(fifo), mark=launches.mark(Role.BACKUP))
    leader = int(await reads(fifo))
    assert os.getsid(leader) == leader
    assert mark_of(leader) == launches.mark(Role.BACKUP)
    backup = launches.made[-1][0]
    other = InstanceMark(f"{launches.directory}/other", Role.PRIMARY, Incarnation(1))
    await leaving_a_daemon(launches, other, "other")
    assert mark_of(left) == launches.mark(incarnation=4)
    assert find_marked(launches.directory) == {
        Role.PRIMARY: [(5, identify(second)), (4, identify(first))],
        Role.BACKUP: [(1, identify(backup.pid))],
    }
    os.kill(backup.pid, signal.SIGKILL)
    await heard.how_it_ended()
    assert find_marked(launches.directory / "none") == {}


async def test_the_mark_wins_over_the_environment_file(launches: Launches) -> None:
    file = launches.directory / "variables"
    file.write_text(f"{MARK}=/nowhere:backup:9\nNOTIFY_SOCKET=/nowhere\nA=file\n")
    spec = replace(
        launches.spec,
        command=("/usr/bin/env",),
        environment_file=str(file),
        mark=launches.mark(),
        imposed={"NOTIFY_SOCKET": "/run/x", "A": "start"},
    )
    process, heard = launches(spec)
    await heard.how_it_ended()
    seen = dict(line.split("=", 1) for line in launches.output().splitlines())
    assert (seen[MARK], seen["NOTIFY_SOCKET"], seen["A"]) == (str(launches.mark()), "/run/x", "start")
    assert seen["CLOJARSD_MAIN_PID"] == str(process.pid)


def test_marks_are_read_back() -> None:
    mark = InstanceMark("/var/lib/a:b", Role.BACKUP, Incarnation(12))
    assert str(mark) == "/var/lib/a:b:backup:12"
    assert InstanceMark.parse(str(mark)) == mark
    for text in ("", "a", "/x:backup", "/x:third:1", "/x:backup:-1", "/x:backup:\u0662", ":backup:1"):
        assert InstanceMark.parse(text) is None


def test_ports_that_are_still_taken_are_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        free = {"http": Address("127.0.0.2", port)}
        assert still_taken(free) is None
        said = still_taken({**free, "nailgun": Address("127.0.0.1", port)})
    name = Path("/proc/self/comm").read_text().strip()
    assert said is not None
    assert said.startswith(f"port {port} (nailgun) is still taken by process {os.getpid()} (")
    assert name[:6] in said


def test_a_machine_without_lists_of_children_needs_no_subreaper(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Processes()._shared.is_subreaper is False


@root_only
async def test_a_strangers_process_with_our_mark_is_no_instance(launches: Launches) -> None:
    """Anybody could have a process of theirs taken up as the latest launch, and the real one ended as a leftover."""
    launches.directory.chmod(0o755)
    spec = replace(launches.spec, command=("/bin/sleep", "600"), directory="/", mark=launches.mark(incarnation=9))
    real, heard_real = launches(replace(spec, mark=launches.mark()))
    forged, heard = launches(replace(spec, user=str(STRANGER), group=str(STRANGER)))
    async with asyncio.timeout(PATIENCE):
        await heard_real.runs.wait()
        await heard.runs.wait()
    assert user_of(forged.pid) == STRANGER
    assert find_marked(launches.directory) == {Role.PRIMARY: [(1, identify(real.pid))]}
    found = find_marked(launches.directory, (STRANGER,))
    assert [incarnation for incarnation, _ in found[Role.PRIMARY]] == [9, 1]


async def test_only_what_was_begun_of_the_hook_is_ended_before_it_is_run_again(launches: Launches) -> None:
    mark = launches.mark()
    instance, _ = launches(replace(launches.spec, command=("/bin/sleep", "600"), mark=mark))
    others = {MARK: str(mark), HOOK: "pre_stop"}, {MARK: str(launches.mark(Role.BACKUP)), HOOK: "post_start"}
    left = [subprocess.Popen(["/bin/sleep", "600"], env=environment) for environment in others]
    tree = subprocess.Popen(
        ["/bin/sh", "-c", "sleep 600 & sleep 600"], env={MARK: str(mark), HOOK: "post_start"}, start_new_session=True
    )
    await until(lambda: len(children_of(tree.pid)) == 2, "the children")
    await until(lambda: not is_between_programs(instance.pid), "the instance")
    begun = {tree.pid, *children_of(tree.pid)}
    assert await asyncio.to_thread(end_hook, mark, HookName.POST_START)
    assert all((stat := stat_of(pid)) is None or stat.has_ended for pid in begun)
    tree.wait()
    assert [one.poll() for one in left] == [None, None]
    seen = stat_of(instance.pid)
    assert seen is not None
    assert not seen.has_ended
    for one in left:
        one.kill()
        one.wait()
