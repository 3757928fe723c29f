"""A command of a rollout: its world, its words, its time, and the end of everything that it has started."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import uvloop

from clojarsd.core.identity import ROLLOUT
from clojarsd.system.build_command import NICE
from clojarsd.system.cgroup import Groups, _own_group, end_group, remove
from clojarsd.system.family import strangers
from clojarsd.system.rollout_family import end_leftovers, find_rollout
from tests.support.builds import GROUP, IS_ROOT, USER, Room, is_gone, room_for_builds
from tests.support.launches import reads
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE, until

HIDE = 'setsid sh -c \'echo $$ > "$0"; exec sleep 60\' "$0" & wait $! || true'
"""A script that leaves its session, tells its number in the fifo that it is given, and stays."""


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with room_for_builds(tmp_path) as made:
        yield made
        assert find_rollout(made.state_dir, None, {0, USER}) == []


async def test_what_succeeds_is_told_with_its_time_and_its_last_lines(room: Room) -> None:
    outcome = await room.shell("seq 30; printf 'no end'")
    assert outcome.failure is None
    assert outcome.last_lines == (*map(str, range(12, 31)), "no end")
    assert 0 < outcome.seconds < PATIENCE


async def test_its_world(room: Room) -> None:
    """The user, nice, the score, the session, the mask, the environment and nothing else, and nothing to read."""
    builder = room.builder(environment={"LEIN_OFFLINE": "1", "SAME": "settings"})
    script = (
        "id -u; id -g; nice; cat /proc/self/oom_score_adj; umask; pwd; cat; env | sort; ps -o sid= -p $$ | tr -d ' '"
    )
    outcome = await builder.run(
        "test", ("sh", "-c", f"echo $$; {script}"), room.home, timeout=PATIENCE, environment={"SAME": "caller"}
    )
    before = int(Path("/proc/self/oom_score_adj").read_text())
    pid, *lines, session = outcome.last_lines
    assert session == pid
    assert lines[:6] == [str(USER), str(GROUP), str(NICE), str(min(1000, before + 500)), "0022", str(room.home)]
    variables = dict(line.split("=", 1) for line in lines[6:])
    del variables["PWD"], variables["PATH"]
    assert variables == {
        "HOME": str(room.home),
        "LANG": "C.UTF-8",
        "LEIN_OFFLINE": "1",
        "SAME": "caller",
        "CLOJARSD_ROLLOUT": "20261128-212345",
        ROLLOUT: f"{room.state_dir}:20261128-212345",
    }


async def test_the_log_has_all_commands_each_below_its_header(room: Room) -> None:
    builder = room.builder()
    await builder.run("test", ("echo", "one"), room.home, timeout=PATIENCE)
    await builder.run("build", ("echo", "two three"), room.home, timeout=PATIENCE)
    first, one, second, two = room.log.read_text().splitlines()
    assert first.startswith("== test: echo one (20")
    assert second.startswith("== build: echo 'two three' (20")
    assert (one, two) == ("one", "two three")
    assert room.log.stat().st_mode & 0o777 == 0o640


async def test_output_comes_while_the_command_runs(room: Room) -> None:
    """The command waits until its first line has been heard; what has no line end comes at the end."""
    fifo = room.fifo()
    running = asyncio.ensure_future(room.shell('echo first; read go < "$0"; printf rest', str(fifo)))
    await until(lambda: room.heard == ["first"], "the first line")
    await asyncio.to_thread(fifo.write_text, "go\n")
    assert (await running).failure is None
    assert room.heard == ["first", "rest"]


async def test_of_output_that_is_too_fast_the_log_has_all_and_the_listener_the_end(room: Room) -> None:
    outcome = await room.shell("yes 'a line of some length' | head -n 400000; echo last")
    assert outcome.failure is None
    assert len(room.heard) < 200_000
    assert room.heard[-1] == outcome.last_lines[-1] == "last"
    assert any(line.endswith("bytes are left out here; the log has them") for line in room.heard)
    assert len(room.log.read_text().splitlines()) == 400_002


async def test_what_would_command_a_terminal_is_taken_out(room: Room) -> None:
    outcome = await room.shell(r"printf '\033[31mred\033[0m\n10%%\r100%%\n\a\n'")
    assert outcome.last_lines == ("red", "100%")
    assert room.heard == ["red", "100%", ""]


async def test_an_exit_code_is_told_in_a_sentence(room: Room) -> None:
    outcome = await room.run("sh", "-c", "echo three tests failed; exit 3")
    assert outcome.failure == f"sh -c 'echo three tests failed; exit 3' ended with code 3 after {outcome.seconds:.1f} s"
    assert outcome.last_lines == ("three tests failed",)


async def test_a_death_by_a_signal_is_told(room: Room) -> None:
    outcome = await room.shell("kill -9 $$")
    assert outcome.failure == f"sh -c 'kill -9 $$' was killed by signal 9 after {outcome.seconds:.1f} s"


async def test_a_command_that_is_not_there_is_told_with_the_path_that_was_searched(room: Room) -> None:
    builder = room.builder(environment={"PATH": "/usr/bin:/bin"})
    outcome = await room.run("lein-of-nobody", "test", by=builder)
    assert outcome.failure == "cannot run lein-of-nobody test: lein-of-nobody: no such command on PATH /usr/bin:/bin"


async def test_a_directory_that_is_not_there_is_told(room: Room) -> None:
    outcome = await room.builder().run("test", ("true",), room.home / "absent", timeout=PATIENCE)
    assert outcome.failure == (
        f"cannot run true: entering its directory: {room.home}/absent: no such file or directory"
    )


async def test_a_log_that_cannot_be_is_told(room: Room, tmp_path: Path) -> None:
    (tmp_path / "rollouts").write_text("")
    outcome = await room.run("true")
    assert outcome.failure == f"cannot run true: its log {room.log}: file exists"


async def test_a_log_that_is_a_link_is_not_followed(room: Room, tmp_path: Path) -> None:
    room.log.parent.mkdir()
    room.log.symlink_to(tmp_path / "elsewhere")
    outcome = await room.run("true")
    assert outcome.failure == f"cannot run true: its log {room.log}: too many levels of symbolic links"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
async def test_what_takes_too_long_is_ended_with_all_that_it_has_started(room: Room) -> None:
    """A shell that ignores SIGTERM, with a child that has left the session: nothing of both is left."""
    fifo = room.fifo()
    hidden = asyncio.ensure_future(reads(fifo))
    outcome = await room.shell(f"trap '' TERM; {HIDE}; sleep 60", str(fifo), timeout=1.0)
    assert outcome.failure is not None
    assert outcome.failure.endswith("took longer than 1s and was ended")
    assert is_gone(int(await hidden))


async def test_a_command_may_clean_up_on_sigterm(room: Room) -> None:
    outcome = await room.shell("trap 'echo cleaned up; exit 1' TERM; sleep 60 & wait", timeout=0.5)
    assert outcome.last_lines == ("cleaned up",)
    assert outcome.failure is not None
    assert outcome.failure.endswith("took longer than 500ms and was ended")


async def test_what_a_successful_command_leaves_is_ended(room: Room) -> None:
    fifo = room.fifo()
    hidden = asyncio.ensure_future(reads(fifo))
    outcome = await room.shell('setsid sh -c \'echo $$ > "$0"; exec sleep 60\' "$0" & sleep 0.1', str(fifo))
    assert outcome.failure is None
    assert is_gone(int(await hidden))


async def test_a_cancelled_command_is_gone_before_the_cancellation_goes_on(room: Room) -> None:
    fifo = room.fifo()
    running = asyncio.ensure_future(room.shell(HIDE, str(fifo)))
    hidden = int(await reads(fifo))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert is_gone(hidden)


async def test_who_cancels_twice_does_not_wait_for_the_grace(room: Room) -> None:
    fifo = room.fifo()
    running = asyncio.ensure_future(room.shell(f"trap '' TERM; {HIDE}; sleep 60", str(fifo)))
    hidden = int(await reads(fifo))
    began = asyncio.get_running_loop().time()
    running.cancel()
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert is_gone(hidden)
    assert asyncio.get_running_loop().time() - began < 2.5


async def test_a_command_that_fills_the_log_is_ended(room: Room) -> None:
    outcome = await room.run("yes", by=room.builder(most_output=1024**2))
    assert outcome.failure == "yes wrote more than 1MiB to its log and was ended"


async def test_a_full_disk_of_the_log_is_the_commands_to_mind(room: Room) -> None:
    """The header cannot be written; what the command does not write succeeds, what it does is its failure."""
    room.log.parent.mkdir()
    if not IS_ROOT:
        unavailable("a small file system cannot be mounted here")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(room.log.parent)], check=True)
    try:
        (room.log.parent / "fill").write_bytes(b"x" * 4096)
        assert (await room.run("true")).failure is None
        outcome = await room.shell("echo some; echo words")
        assert outcome.failure is not None
    finally:
        subprocess.run(["umount", str(room.log.parent)], check=True)


async def test_as_much_output_is_kept_as_was_asked_for(room: Room) -> None:
    outcome = await room.builder().run("test", ("echo", "0123456789"), room.home, timeout=PATIENCE, keep=4)
    assert outcome.output == "0123"


async def test_a_memory_limit_that_cannot_be_is_told_once(room: Room) -> None:
    builder = room.builder(memory_max=512 * 1024**2)
    await room.run("true", by=builder)
    await room.run("true", by=builder)
    note = "== memory_max = 512MiB has no effect: no control group is delegated to clojarsd"
    assert room.heard == [note]
    assert room.log.read_text().count(note) == 1


async def test_what_a_rollout_has_left_is_no_stranger(room: Room) -> None:
    """What the pair's instances have let go of is told to operators; a build's processes are the rollout's."""
    fifo = room.fifo()
    running = asyncio.ensure_future(room.shell(f"({HIDE}) & sleep 60", str(fifo)))
    hidden = int(await reads(fifo))
    os.kill(psutil.Process(hidden).ppid(), signal.SIGKILL)
    await until(lambda: psutil.Process(hidden).ppid() == os.getpid(), "the orphan")
    assert hidden not in [stat.pid for stat in strangers(set())]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert is_gone(hidden)


@pytest.mark.slow
async def test_the_next_daemon_ends_what_a_dead_one_has_left(room: Room, tmp_path: Path) -> None:
    """A command of another process, which is killed: found by the mark, with what has left its session."""
    fifo = room.fifo()
    mark = f"{room.state_dir}:20261128-200000"
    other = subprocess.Popen(
        ["sh", "-c", f"({HIDE}) & sleep 60", str(fifo)], env={**os.environ, ROLLOUT: mark}, start_new_session=True
    )
    spared = subprocess.Popen(
        ["sleep", "60"], env={**os.environ, ROLLOUT: f"{room.state_dir}2:20261128-200000"}, start_new_session=True
    )
    for child in (other, spared):
        room.processes.claim(child.pid)
    try:
        hidden = int(await reads(fifo))
        assert await asyncio.to_thread(end_leftovers, room.state_dir, (USER,)) == ()
        assert other.wait(PATIENCE) == -signal.SIGKILL
        assert spared.poll() is None
        await until(lambda: is_gone(hidden), "the end of the hidden one")
    finally:
        spared.kill()
        spared.wait()


DAEMON = """
import asyncio, sys
from pathlib import Path
from tests.support.builds import Room

async def main(home, logs, fifo, script):
    room = Room(Path(home), Path(logs))
    with room.processes.adopting_orphans():
        await room.shell(script, fifo)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
async def test_a_daemon_that_is_killed_leaves_its_command_to_the_next(room: Room, tmp_path: Path) -> None:
    """kill -9 of the process that runs the builder: the build runs on, and the next daemon ends it and what it hid."""
    fifo, root = room.fifo(), Path(__file__).parent.parent.parent
    arguments = (str(room.home), str(tmp_path), str(fifo), f"({HIDE}) & sleep 60")
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON, *arguments], cwd=root)
    room.processes.claim(daemon.pid)
    try:
        hidden = int(await reads(fifo))
        left = [stat.pid for stat in find_rollout(room.state_dir, None, {0, USER})]
        assert hidden in left
        assert len(left) > 1
    finally:
        daemon.kill()
        daemon.wait()
    assert find_rollout(room.state_dir, None, {0, USER})
    assert await asyncio.to_thread(end_leftovers, room.state_dir, (USER,)) == ()
    await until(lambda: all(map(is_gone, left)), "the end of all")


@pytest.mark.slow
def test_it_runs_on_the_daemons_other_loop_too(tmp_path: Path) -> None:
    """A cancelled one on uvloop: gone, with what has left the session."""

    async def run() -> None:
        async with room_for_builds(tmp_path) as room:
            assert (await room.run("echo", "hello")).last_lines == ("hello",)
            fifo = room.fifo()
            running = asyncio.ensure_future(room.shell(HIDE, str(fifo)))
            hidden = int(await reads(fifo))
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert is_gone(hidden)
            assert room.heard == ["hello"]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


# --- in a control group ----------------------------------------------------------------------------------------------


@pytest.fixture
def groups() -> Iterator[Groups]:
    """Groups below a new one with this process in it, which is moved back afterwards."""
    own = _own_group()
    if own is None or not os.access(own / "cgroup.procs", os.W_OK) or os.geteuid() != 0:
        unavailable("no control groups can be made here")
    base = own / f"clojarsd-test-{secrets.token_hex(6)}"
    base.mkdir()
    try:
        groups = Groups(base)
        yield groups
        groups.close()
    finally:
        (own / "cgroup.procs").write_text(str(os.getpid()))
        end_group(base, PATIENCE)
        remove(base)


@pytest.fixture
async def grouped(tmp_path: Path, groups: Groups) -> AsyncIterator[Room]:
    async with room_for_builds(tmp_path, groups) as made:
        yield made


async def test_its_group_ends_what_hides_from_everything_else(grouped: Room) -> None:
    """No mark, no session, no parent: the group knows it."""
    fifo = grouped.fifo()
    hidden = asyncio.ensure_future(reads(fifo))
    script = '(setsid env -i sh -c \'echo $$ > "$0"; exec sleep 60\' "$0" &); cat /proc/self/cgroup; sleep 0.1'
    outcome = await grouped.shell(script, str(fifo))
    assert outcome.failure is None
    assert any(line.endswith("/rollout-20261128-212345") for line in outcome.last_lines)
    assert is_gone(int(await hidden))
    assert grouped.groups is not None
    assert not (grouped.groups.base / "rollout-20261128-212345").exists()


async def test_a_limit_without_its_controller_is_told_and_the_command_runs_in_its_group(grouped: Room) -> None:
    assert grouped.groups is not None
    if "memory" in (grouped.groups.base / "cgroup.controllers").read_text():
        unavailable("memory is counted here")
    outcome = await grouped.run("cat", "/proc/self/cgroup", by=grouped.builder(memory_max=64 * 1024**2))
    assert outcome.failure is None
    assert "memory_max = 64MiB has no effect: memory.max = 67108864: no controller memory" in grouped.heard[0]
    assert any("/rollout-20261128-212345" in line for line in outcome.last_lines)


async def test_the_next_daemon_ends_the_group_that_a_dead_one_has_left(grouped: Room) -> None:
    assert grouped.groups is not None
    left = grouped.groups.make_named("rollout-20261128-200000", {})
    script = f"echo $$ > {left}/cgroup.procs; exec setsid env -i sleep 60"
    other = subprocess.Popen(["sh", "-c", script])
    grouped.processes.claim(other.pid)
    await until(lambda: str(other.pid) in (left / "cgroup.procs").read_text().split(), "the process in its group")
    assert await asyncio.to_thread(end_leftovers, grouped.state_dir, (), grouped.groups.base) == ()
    assert other.wait(PATIENCE) == -signal.SIGKILL
    assert not left.exists()
