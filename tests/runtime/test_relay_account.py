"""What a relay process of root may do: nothing that a plain user may not, and less than that user's own processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from clojarsd.core.errors import Failed
from clojarsd.runtime.relay_launch import FORMER_SOCKET
from clojarsd.runtime.relay_link import RelayLink
from clojarsd.runtime.relay_owner import SOCKET
from clojarsd.system.confinement import Account
from clojarsd.system.source_digest import PACKAGE
from tests.support.fronts import B, P
from tests.support.real import unavailable
from tests.support.relays import NOBODY, Client, Pair, a_pair, is_relay
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.slow

FILTERED = "2" if os.uname().machine == "x86_64" else "0"
"""What /proc says of a process whose system calls are filtered, or are not."""

NO_CAPABILITIES = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), "0000000000000000")

INTRUDER = """
import ctypes, os, socket, sys
pid, room = int(sys.argv[1]), sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)

def trace():
    if libc.ptrace(0x4206, pid, 0, 0):  # PTRACE_SEIZE: what it traces runs on
        raise OSError(ctypes.get_errno(), "")

def take_descriptor():
    pidfd = os.pidfd_open(pid)
    if libc.syscall(438, pidfd, 3, 0) < 0:  # pidfd_getfd
        raise OSError(ctypes.get_errno(), "")

def call():
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.connect(f"{room}/relay.sock")
    end.settimeout(20)
    if not end.recv(100):
        raise ConnectionError

for act in (trace, take_descriptor, lambda: open(f"/proc/{pid}/mem", "rb"), lambda: os.listdir(f"/proc/{pid}/fd"),
            lambda: open(f"/proc/{pid}/environ", "rb"), call):
    try:
        act()
        print("done")
    except OSError as error:
        print(type(error).__name__)
"""
"""What another process of a user tries; says of each attempt how it went."""


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        unavailable("only root can become another user")


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that everybody may pass by."""
    path = Path(tempfile.mkdtemp(prefix="clojarsd-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def pair(reachable: Path) -> AsyncIterator[Pair]:
    async with a_pair(reachable, NOBODY) as pair:
        yield pair


def pid_of(link: RelayLink) -> int:
    assert link.pid is not None
    return link.pid


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status by their names."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: " ".join(value.split()) for name, _, value in (line.partition(":") for line in lines)}


async def intrude(pid: int, room: Path) -> list[str]:
    """How the attempts went of a process of the same user that knows the relay process's number and directory."""
    where = os.open(room, os.O_PATH)
    try:
        process = await asyncio.create_subprocess_exec(
            *("/usr/bin/env", "python3", "-c", INTRUDER, str(pid), f"/proc/self/fd/{where}"),
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[where],
            user=NOBODY.uid,
            group=NOBODY.gid,
            extra_groups=[],
        )
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
    finally:
        os.close(where)
    return output.decode().split()


async def an_answer(pair: Pair, link: RelayLink) -> Client:
    client = await pair.client(await pair.listening(link))
    assert await client.ask() in (b"p", b"b")
    return client


async def test_it_is_the_given_user_without_capabilities_and_gets_none(pair: Pair) -> None:
    async with pair.link() as link:
        await an_answer(pair, link)
        seen = status(pid_of(link))
        assert (seen["Uid"], seen["Gid"]) == ("65534 65534 65534 65534",) * 2
        assert seen["Groups"] == ""
        assert {name: seen[name] for name in NO_CAPABILITIES} == NO_CAPABILITIES
        assert int(seen["CapBnd"], 16) == 0
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", FILTERED)
        assert os.stat(pair.dir / SOCKET).st_uid == NOBODY.uid
        await link.close()


async def test_one_that_stays_root_has_no_capabilities_either(pair: Pair) -> None:
    pair.account = None
    async with pair.link() as link:
        await an_answer(pair, link)
        seen = status(pid_of(link))
        assert seen["Uid"] == "0 0 0 0"
        assert {name: seen[name] for name in NO_CAPABILITIES} == NO_CAPABILITIES
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", FILTERED)
        await link.close()


async def test_others_of_its_user_cannot_look_into_it_nor_command_it(pair: Pair) -> None:
    async with pair.link() as link:
        await an_answer(pair, link)
        tried = await intrude(pid_of(link), (pair.dir / SOCKET).parent)
        assert tried[:5] == ["PermissionError"] * 5
        assert tried[5:] in (["ConnectionError"], ["ConnectionResetError"]), "it may knock, and is not let in"
        await an_answer(pair, link)
        await link.close()


async def test_the_same_attempts_succeed_with_an_ordinary_process_of_that_user(reachable: Path) -> None:
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if scope.exists() and scope.read_text().strip() != "0":
        unavailable("the kernel lets nobody trace what is not its own child (Yama)")
    with subprocess.Popen(["sleep", "60"], user=NOBODY.uid, group=NOBODY.gid, extra_groups=[]) as sleep:
        try:
            assert (await intrude(sleep.pid, reachable))[:5] == ["done", "OSError", "done", "done", "done"]
        finally:
            sleep.kill()


async def test_everybody_else_is_kept_out_of_its_directory(pair: Pair) -> None:
    async with pair.link() as link:
        seen = (pair.dir / SOCKET).parent.stat()
        assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o7777) == (NOBODY.uid, NOBODY.gid, 0o700)
        await link.close()
    assert list(pair.dir.iterdir()) == []


async def test_its_directory_is_made_again_and_its_socket_in_it(pair: Pair) -> None:
    async with pair.link() as link:
        pid = pid_of(link)
        shutil.rmtree((pair.dir / SOCKET).parent)
        await until((pair.dir / SOCKET).exists, "the socket")
        link.detach()
    async with pair.link(begin=False) as link:
        assert link.pid == pid
        await link.close()


async def test_it_needs_no_right_to_pass_by_above_its_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    async with a_pair(tmp_path, NOBODY) as pair, pair.link() as link:
        (pair.dir / SOCKET).unlink()
        await until((pair.dir / SOCKET).exists, "the socket")
        await an_answer(pair, link)
        await link.close()


async def test_one_of_an_earlier_version_is_found_and_hands_over_to_one_that_is_not_root(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.account = None
    monkeypatch.setattr("clojarsd.runtime.relay_owner.SOCKET", FORMER_SOCKET)
    async with pair.link() as link:
        old = pid_of(link)
        view = await pair.listening(link)
        clients = [await an_answer(pair, link) for _ in range(10)]
        link.detach()
    assert (pair.dir / FORMER_SOCKET).exists()
    monkeypatch.undo()
    pair.dir.chmod(0o755)
    pair.account = NOBODY
    async with pair.link() as link:
        assert (link.pid, link.is_adopted, link.is_outdated) == (old, True, True)
        await link.replace()
        new = pid_of(link)
        assert not is_relay(old)
        assert status(new)["Uid"].split() == ["65534"] * 4
        assert [await client.ask() for client in clients] == [b"p"] * 10
        assert await (await pair.client(view)).ask() == b"p"
        assert not (pair.dir / FORMER_SOCKET).exists()
        assert not link.is_outdated
        link.detach()
    async with pair.link(begin=False) as link:
        assert link.pid == new
        await link.close()


async def test_one_of_another_user_is_outdated(pair: Pair) -> None:
    async with pair.link() as link:
        link.detach()
    pair.account = Account(65533, 65533)
    async with pair.link() as link:
        assert (link.is_adopted, link.is_outdated) == (True, True)
        client = await an_answer(pair, link)
        await link.replace()
        assert status(pid_of(link))["Uid"].split() == ["65533"] * 4
        assert await client.ask() == b"p"
        (pair.dir / SOCKET).unlink()
        await until((pair.dir / SOCKET).exists, "the socket")
        await link.close()


async def test_all_that_it_needs_is_loaded_while_it_may_read_it(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o700)
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    async with pair.link() as link:
        view = await pair.listening(link)
        assert str(tmp_path) not in sys.path
        client = await an_answer(pair, link)
        for role in (P, B):
            link.set_eligible(role, False)
        await until(lambda: link.views["line"].view().active is None, "nobody")
        held = await pair.client(view)
        await until(lambda: link.views["line"].view().connections[None], "the one who waits")
        link.set_eligible(P, True)
        assert await held.ask() == b"p"
        drained: list[str] = []
        link.begin_drain(P, lambda: drained.append("over"))
        await link.replace()
        link.cut(P)
        assert await client.is_cut()
        await until(lambda: drained == ["over"], "the end of the drain")
        link.end_drain(P)
        await link.configure([pair.plan(hold=1.0), pair.plan("two")])
        await an_answer(pair, link)
        await link.close()
    said = capfd.readouterr().err
    assert "Error" not in said, said
    assert str(tmp_path) not in said, said


async def test_a_directory_that_cannot_be_had_is_told(pair: Pair) -> None:
    (pair.dir / SOCKET).parent.write_text("something else")
    expected = f"cannot reach the relay process at {pair.dir / SOCKET}: not a directory"
    with structlog.testing.capture_logs(), pytest.raises(Failed, match=expected):
        async with RelayLink.open([pair.plan()], pair.dir):
            pass
