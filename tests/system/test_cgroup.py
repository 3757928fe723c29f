"""Control groups of instances, in a group that a test has made below its own."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.identity import InstanceMark
from clojarsd.core.names import ExitStatus, Incarnation, LaunchStage, Role
from clojarsd.system.cgroup import SUPERVISOR, Groups, _own_group, end_group, find_delegated, remove
from clojarsd.system.identity import stat_of
from clojarsd.system.process import Processes
from tests.support.launches import Heard, Launches, failure, launching, reads
from tests.support.real import unavailable
from tests.support.systemd_sandbox import boot, missing_for_sandbox
from tests.support.waiting import PATIENCE

MARK = InstanceMark("/var/lib/clojarsd", Role.PRIMARY, Incarnation(1))
HUGETLB = "hugetlb.2MB.max"
"""Of the one controller that this file may find on a machine that keeps the others in version 1."""
DEPTH = "cgroup.max.depth"
"""A file that every group has, also where no controller is shared out. Settings may not name it."""


@pytest.fixture
def base() -> Iterator[Path]:
    """A new group with this process in it, which is moved back afterwards."""
    own = _own_group()
    if own is None or not os.access(own / "cgroup.procs", os.W_OK) or os.geteuid() != 0:
        unavailable("no control groups can be made here")
    base = own / f"clojarsd-test-{secrets.token_hex(6)}"
    base.mkdir()
    try:
        (base / "cgroup.procs").write_text(str(os.getpid()))
        yield base
    finally:
        (own / "cgroup.procs").write_text(str(os.getpid()))
        end_group(base, PATIENCE)
        remove(base)
    assert not base.exists()


@pytest.fixture
def groups(base: Path) -> Iterator[Groups]:
    groups = Groups(base)
    yield groups
    groups.close()


@pytest.fixture
async def launches(tmp_path: Path, groups: Groups) -> AsyncIterator[Launches]:
    async with launching(tmp_path, groups) as made:
        yield made


def controllers(base: Path) -> list[str]:
    return (base / "cgroup.controllers").read_text().split()


def test_only_a_delegated_group_is_divided(base: Path) -> None:
    """Root could divide any; systemd marks those that it has given away."""
    assert find_delegated() is None
    os.setxattr(base, "trusted.delegate", b"1")
    assert find_delegated() == base
    Groups(base).close()
    assert _own_group() == base / SUPERVISOR
    assert find_delegated() == base  # the next daemon, which begins in the leaf of the one before


async def test_an_instance_is_in_a_group_of_its_own_from_the_beginning(launches: Launches, groups: Groups) -> None:
    spec = replace(launches.spec, command=("/bin/cat", "/proc/self/cgroup"), mark=MARK)
    _, heard = launches(spec)
    assert await heard.how_it_ended() == ExitStatus(0, None)
    assert f"{groups.base.name}/instance-primary-1\n" in launches.output()
    assert not (groups.base / "instance-primary-1").exists()
    assert groups.of(MARK) is None


async def test_the_group_ends_what_hides_from_everything_else(launches: Launches, groups: Groups) -> None:
    """No mark, no session, no parent, and even a group below: it is ended, and its group removed."""
    fifo = launches.fifo()
    inner = groups.base / "instance-primary-1" / "inner"
    program = (
        "import os, sys\n"
        "if os.fork() == 0:\n"
        "  os.setsid()\n"
        "  if os.fork() == 0:\n"
        f"    os.mkdir({str(inner)!r})\n"
        f"    open({str(inner / 'cgroup.procs')!r}, 'w').write('0')\n"
        "    shell = ['sh', '-c', 'echo $$ > \"$0\"; exec /bin/sleep 60', sys.argv[1]]\n"
        "    os.execve('/bin/sh', shell, {})\n"
        "  os._exit(0)\n"
        "os.wait()\n"
        "import time; time.sleep(60)"
    )
    process, heard = launches.python(program, str(fifo), mark=MARK)
    hidden = int(await reads(fifo))
    process.signal_main(signal.SIGKILL)
    assert await heard.how_it_ended() == ExitStatus(None, signal.SIGKILL)
    stat = stat_of(hidden)
    assert stat is None or stat.has_ended
    assert not inner.parent.exists()


def test_empty_groups_of_a_killed_daemon_are_removed(base: Path) -> None:
    (base / "instance-primary-9").mkdir()
    Groups(base).close()
    assert not (base / "instance-primary-9").exists()


async def test_an_adopted_instance_keeps_its_group_until_its_end(launches: Launches, groups: Groups) -> None:
    fifo = launches.fifo()
    program = "import sys, time; open(sys.argv[1], 'w').write('up'); time.sleep(60)"
    first, heard = launches.python(program, str(fifo), mark=MARK)
    await reads(fifo)
    await heard.runs.wait()
    launches.forget(first)
    again = Groups(groups.base)
    found = launches.adopt(first.identity, Processes(again))
    assert found is not None
    process, adopted = found
    assert again.of(MARK) is not None
    process.signal(signal.SIGTERM)
    assert await adopted.how_it_ended() == ExitStatus(None, signal.SIGTERM)
    assert again.of(MARK) is None
    launches.processes.release(first.pid)
    again.close()


def files(groups: Groups) -> dict[str, str]:
    """Files that can be written here, with values as they are read again."""
    return {DEPTH: "5"} | ({HUGETLB: "4194304"} if "hugetlb" in controllers(groups.base) else {})


def values(groups: Groups) -> dict[str, str]:
    """What those files hold in the group of the launch."""
    group = groups.base / "instance-primary-1"
    return {name: (group / name).read_text().strip() for name in files(groups)}


async def test_values_are_written_before_the_launch(launches: Launches, groups: Groups) -> None:
    spec = replace(launches.spec, command=("/bin/sleep", "60"), mark=MARK, cgroup=files(groups))
    _, heard = launches(spec)
    await heard.runs.wait()
    assert values(groups) == files(groups)


async def test_values_that_were_taken_away_come_back_with_the_next_daemon(launches: Launches, groups: Groups) -> None:
    """The unit file has to take controllers back before systemd can start a daemon again that was killed."""
    spec = replace(launches.spec, command=("/bin/sleep", "60"), mark=MARK, cgroup=files(groups))
    first, heard = launches(spec)
    await heard.runs.wait()
    launches.forget(first)
    (groups.base / "instance-primary-1" / DEPTH).write_text("7")
    if HUGETLB in files(groups):
        (groups.base / "cgroup.subtree_control").write_text("-hugetlb")
        assert not (groups.base / "instance-primary-1" / HUGETLB).exists()
    again = Groups(groups.base)
    found = launches.adopt(first.identity, Processes(again))
    assert found is not None
    assert values(groups) == files(groups)
    found[0].signal(signal.SIGKILL)
    await found[1].how_it_ended()
    launches.processes.release(first.pid)
    again.close()


def test_a_value_that_is_refused_fails_the_launch(groups: Groups) -> None:
    for name in files(groups):
        with pytest.raises(LaunchFailed) as caught:
            groups.make(MARK, {name: "much"})
        assert failure(caught.value) == (LaunchStage.CGROUP, f"{name} = much: invalid argument")
    assert groups.of(MARK) is None


def test_a_controller_that_is_not_there_fails_the_launch(groups: Groups) -> None:
    available = ", ".join(controllers(groups.base)) or "none"
    with pytest.raises(LaunchFailed) as caught:
        groups.make(MARK, {"luck.max": "1"})
    assert failure(caught.value) == (
        LaunchStage.CGROUP,
        f"luck.max = 1: no controller luck is delegated here (available: {available})",
    )
    assert groups.of(MARK) is None


async def test_a_group_that_cannot_be_joined_is_a_failed_launch(launches: Launches, groups: Groups) -> None:
    (groups.base / "instance-primary-1").mkdir()
    spec = replace(launches.spec, cgroup_directory=str(groups.base / "none"))
    _, heard = launches(spec)
    reason = f"{groups.base}/none/cgroup.procs: no such file or directory"
    assert failure(await heard.how_it_ended()) == (LaunchStage.CGROUP, reason)


async def test_where_nothing_is_delegated_a_wish_is_refused_and_no_wish_is_silent(tmp_path: Path) -> None:
    async with launching(tmp_path) as launches:
        _, heard = launches(replace(launches.spec, mark=MARK))
        assert await heard.how_it_ended() == ExitStatus(0, None)
        with pytest.raises(LaunchFailed) as caught:
            launches.processes.launch(replace(launches.spec, mark=MARK, cgroup={"pids.max": "9"}), lambda pid: Heard())
    assert failure(caught.value) == (
        LaunchStage.CGROUP,
        "pids.max = 9: no control group is delegated to clojarsd (systemd: Delegate=yes)",
    )


def test_what_happens_to_its_memory_is_told(tmp_path: Path) -> None:
    """On a tree of plain files: the machine of a test may keep memory in version 1 of the hierarchy."""
    told: list[tuple[InstanceMark, str, int]] = []
    group = tmp_path / "instance-primary-1"
    group.mkdir()
    (group / "memory.max").touch()
    events = group / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 3\noom 0\noom_kill 0\n")
    groups = Groups(tmp_path, lambda mark, name, count: told.append((mark, name, count)))
    try:
        assert groups.make(MARK, {"memory.max": "1048576"}) == group
        assert (group / "memory.max").read_text() == "1048576"
        groups.read_events()
        assert told == []
        events.write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n")
        groups.read_events()
        assert told == [(MARK, "oom", 1), (MARK, "oom_kill", 2)]
        events.write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 3\n")
        groups.forget(MARK)  # what came last is told before
        assert told[2:] == [(MARK, "oom_kill", 1)]
    finally:
        groups.close()


async def test_a_controller_is_shared_out_when_it_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    groups = Groups(tmp_path)
    with pytest.raises(LaunchFailed, match=r"pids.max = 9: the kernel has no such file$"):
        groups.make(MARK, {"pids.max": "9"})
    groups.close()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"
    assert (tmp_path / SUPERVISOR / "cgroup.procs").read_text() == str(os.getpid())


def test_everything_in_a_group_is_ended_also_without_cgroup_kill(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.14."""
    group = base / "x"
    group.mkdir()
    child = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    (group / "cgroup.procs").write_text(str(child))
    real = Path.open

    def old(self: Path, *arguments: object, **more: object) -> object:
        if self.name == "cgroup.kill":
            raise FileNotFoundError
        return real(self, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", old)
    assert end_group(group, PATIENCE)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_group_that_stays_is_no_end_of_the_daemon(base: Path) -> None:
    """Somebody else has a process in it; it is told in the log and left."""
    group = base / "x"
    group.mkdir()
    child = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    (group / "cgroup.procs").write_text(str(child))
    remove(group)
    assert group.exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with suppress(OSError):
        remove(group)


DIVIDES = """
from clojarsd.core.identity import InstanceMark
from clojarsd.core.names import Incarnation, Role
from clojarsd.system.cgroup import Groups, find_delegated
base = find_delegated()
print(base)
if base is not None:
    mark = InstanceMark("/x", Role.BACKUP, Incarnation(2))
    groups = Groups(base)
    print(open("/proc/self/cgroup").read().splitlines()[-1].rpartition("/")[2], find_delegated() == base)
    print(groups.make(mark, {}).name)
    groups.forget(mark)
    print(groups.of(mark))
"""


@pytest.mark.slow
@pytest.mark.real
def test_systemd_says_which_group_is_delegated(tmp_path: Path) -> None:
    """To root and to a plain user alike; one that is not delegated is left alone."""
    if reason := missing_for_sandbox():
        unavailable(f"cannot boot a systemd: {reason}")
    divided = ["supervisor True", "instance-backup-2", "None"]
    checkout, program = Path(__file__).parents[2], tmp_path / "divides.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(checkout)!r})\n{DIVIDES}")
    sandbox = tmp_path / "sandbox"
    sandbox.mkdir()
    shared = [checkout, Path(sys.prefix), Path(os.path.realpath(sys.executable)).parent, tmp_path]
    with boot(sandbox, {}, shared) as machine:
        machine.run("install", "-D", "--mode=0644", str(program), "/srv/divides.py")
        for properties, expected in (
            (("Delegate=yes",), divided),
            (("Delegate=yes", "User=nobody"), divided),
            ((), ["None"]),
            (("User=nobody",), ["None"]),
        ):
            given = [word for one in properties for word in ("--property", one)]
            said = machine.run("systemd-run", "--quiet", "--wait", "--pipe", *given, sys.executable, "/srv/divides.py")
            assert said.splitlines()[-len(expected) :] == expected
            assert len(said.splitlines()) == (4 if expected is divided else 1)
