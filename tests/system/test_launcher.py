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

from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import ExitStatus, LaunchStage
from clojarsd.system.identity import stat_of
from clojarsd.system.release_checksum import checksum_of
from clojarsd.system.spawning import LAUNCHER
from tests.support.launches import Launches, failure, launching
from tests.support.waiting import PATIENCE, until

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


async def why_not(launches: Launches, spec: LaunchSpec) -> str:
    """Why the command could not be executed."""
    _, heard = launches(spec)
    stage, reason = failure(await heard.how_it_ended())
    assert stage is LaunchStage.EXECUTE
    return reason


async def test_a_directory_on_path_that_is_shut_does_not_hide_that_there_is_no_command(launches: Launches) -> None:
    """What the kernel says then, permission denied, is of the directory."""
    shut = launches.directory / "shut"
    shut.mkdir(mode=0)
    user = "nobody" if os.geteuid() == 0 else None
    spec = replace(launches.spec, command=("no-such-program",), user=user, directory="/")
    path = f"/usr/bin:{shut}:/bin"
    assert await why_not(launches, replace(spec, environment={"PATH": path})) == (
        f"no-such-program: no such command on PATH {path} (cannot be looked into: {shut})"
    )
    assert await why_not(launches, replace(spec, environment={"PATH": "/usr/bin:/bin"})) == (
        "no-such-program: no such command on PATH /usr/bin:/bin"
    )


async def test_a_file_that_is_found_on_path_and_cannot_be_executed_is_named(launches: Launches) -> None:
    first, second = launches.directory / "first", launches.directory / "second"
    for directory in (first, second):
        directory.mkdir()
    (first / "program").write_text("#!/bin/sh\necho ran\n")
    spec = replace(launches.spec, command=("program",), environment={"PATH": f"{first}:{second}"})
    assert await why_not(launches, spec) == f"{first}/program: permission denied"
    (second / "program").symlink_to("/bin/true")
    _, heard = launches(spec)  # one that can be executed comes later
    assert await heard.how_it_ended() == ExitStatus(0, None)
    (first / "program").unlink()
    (first / "program").symlink_to("absent")
    (second / "program").unlink()
    assert await why_not(launches, spec) == f"{first}/program: a link that leads nowhere"


async def test_the_missing_interpreter_of_a_script_is_named(launches: Launches) -> None:
    script = launches.directory / "script"
    spec = replace(launches.spec, command=(str(script),))

    async def begins_with(line: bytes) -> str:
        script.write_bytes(line + b"\necho ran\n")
        script.chmod(0o755)
        return (await why_not(launches, spec)).removeprefix(f"{script}: ")

    assert await begins_with(b"#!/no/such -e") == "its interpreter /no/such does not exist"
    assert await begins_with(b"#! /bin/true/x") == "its interpreter /bin/true/x does not exist"
    crlf = "its interpreter /bin/sh\\r does not exist (its lines end with CR LF)"
    assert await begins_with(b"#!/bin/sh\r") == crlf
    assert await begins_with(b"#!/etc/passwd") == "its interpreter /etc/passwd: permission denied"
    script.chmod(0o644)
    assert await why_not(launches, spec) == f"{script}: permission denied"
    script.write_bytes(b"#!/no/such\n")
    script.chmod(0o755)
    on_path = replace(spec, command=("script",), environment={"PATH": str(launches.directory)})
    assert await why_not(launches, on_path) == f"{script}: its interpreter /no/such does not exist"


@needs_root
async def test_a_command_is_looked_for_on_path_inside_the_root_directory(launches: Launches) -> None:
    """Where the interpreter of the launcher finds no modules to import any more."""
    if not STATIC.exists():
        pytest.skip("no static program to be had")
    root = launches.directory / "root"
    root.mkdir()
    shutil.copy(STATIC, root / "program")
    spec = replace(launches.spec, directory="/", chroot=str(root), environment={"PATH": "/none:/"})
    _, heard = launches(replace(spec, command=("program", "--version")))
    assert await heard.how_it_ended() == ExitStatus(0, None)
    assert await why_not(launches, replace(spec, command=("sh",))) == "sh: no such command on PATH /none:/"


@pytest.mark.parametrize(
    ("key", "value", "capability"),
    [("nice", -5, "sys_nice"), ("oom_score_adjust", -500, "sys_resource")],
)
@pytest.mark.parametrize("user", ["root", "plain"])
def test_what_is_not_allowed_is_named_with_the_capability_that_is_missing(
    key: str, value: int, capability: str, user: str, tmp_path: Path
) -> None:
    """Root may lack it as well, in a container."""
    program = (
        "import os, runpy, sys\nlauncher = runpy.run_path(sys.argv[1])\n"
        "spec = {'nice': os.getpriority(os.PRIO_PROCESS, 0),"
        " 'oom_score_adjust': int(open('/proc/self/oom_score_adj').read()), sys.argv[2]: int(sys.argv[3])}\n"
        "try:\n    launcher['set_priority'](spec)\nexcept OSError as error:\n    print(launcher['reason_of'](error))"
    )
    launcher = shutil.copy(LAUNCHER, tmp_path)
    command = [sys.executable, "-I", "-S", "-c", program, launcher, key, str(value)]
    if os.geteuid() != 0:
        if user == "root":
            pytest.skip("only root can be root")
    elif user == "root":
        command = ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}", *command]
    else:  # the file stays root's: nobody else may enter the directory, and root could not lose what it has
        caps = (
            "--bounding-set=-all,+dac_read_search",
            "--inh-caps=-all,+dac_read_search",
            "--ambient-caps=+dac_read_search",
        )
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *caps, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.stdout, done.stderr) == (
        f"{key} {value}: needs the capability CAP_{capability.upper()}, which clojarsd does not have on this machine\n",
        "",
    )


def a_release(path: Path, kind: str) -> tuple[str, str]:
    """Make one; its path and checksum."""
    if kind == "directory":
        (path / "lib").mkdir(parents=True)
        (path / "lib" / "a.jar").write_text("a jar")
    else:
        path.write_text("a jar")
    return str(path), checksum_of(str(path))


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_a_release_that_is_what_was_installed_is_launched(launches: Launches, kind: str) -> None:
    release = a_release(launches.directory / "app-1", kind)
    _, heard = launches(replace(launches.spec, verify=(release,)))
    assert await heard.how_it_ended() == ExitStatus(0, None)


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_a_release_that_has_changed_is_not_launched(launches: Launches, kind: str) -> None:
    path, checksum = a_release(launches.directory / "app-1", kind)
    (Path(path) if kind == "file" else Path(path, "lib", "a.jar")).write_text("b jar")
    _, heard = launches(replace(launches.spec, verify=((path, checksum),)))
    assert failure(await heard.how_it_ended()) == (
        LaunchStage.RELEASE,
        f"{path} is not what was installed: its checksum is {checksum_of(path)[:15]}… instead of {checksum[:15]}…;"
        " deploy it again, or go back with `clojarsctl rollback`",
    )
    assert LaunchStage.RELEASE.waits_for_operator


async def test_a_release_that_cannot_be_read_is_a_failed_launch(launches: Launches) -> None:
    """What is wrong with the disk may be over soon."""
    path, checksum = a_release(launches.directory / "app-1", "file")
    Path(path).unlink()
    _, heard = launches(replace(launches.spec, verify=((path, checksum),)))
    assert failure(await heard.how_it_ended()) == (LaunchStage.VERIFY, f"{path}: no such file or directory")
    assert not LaunchStage.VERIFY.waits_for_operator


@needs_root
async def test_a_release_is_read_as_its_user(launches: Launches) -> None:
    """What only root can read must not be told of, be it by a checksum."""
    for above in (launches.directory, *launches.directory.parents):
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    path, checksum = a_release(launches.directory / "app-1", "file")
    spec = replace(launches.spec, user="nobody", command=("/bin/cat", path), verify=((path, checksum),))
    _, heard = launches(spec)
    assert await heard.how_it_ended() == ExitStatus(0, None)
    assert launches.output() == "a jar"
    Path(path).chmod(0o600)
    _, heard = launches(spec)
    assert failure(await heard.how_it_ended()) == (LaunchStage.VERIFY, f"{path}: permission denied")


@needs_root
async def test_a_release_is_read_outside_the_root_directory(launches: Launches) -> None:
    release = a_release(launches.directory / "app-1", "file")
    jail = launches.directory / "jail"
    jail.mkdir()
    _, heard = launches(
        replace(launches.spec, command=("/program",), directory="/", chroot=str(jail), verify=(release,))
    )
    assert failure(await heard.how_it_ended()) == (LaunchStage.EXECUTE, "/program: no such command")


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
