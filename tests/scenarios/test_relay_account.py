"""A daemon that is root, with a service's user that is not: the relay process is that user's, whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clojarsd.runtime.relay_owner import SOCKET
from tests.support.faults import kill, pids
from tests.support.pair import CHECKOUT, Clients, Pair
from tests.support.real import unavailable

pytestmark = pytest.mark.slow

FILTERED = "2" if os.uname().machine == "x86_64" else "0"
"""What /proc says of a process whose system calls are filtered, or are not."""

NOBODY = 65534


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that everybody may pass by, with the application in it."""
    if os.geteuid() != 0:
        unavailable("only root can become another user")
    path = Path(tempfile.mkdtemp(prefix="clojarsd-test-"))
    path.chmod(0o755)
    shutil.copytree(CHECKOUT / "demo", path / "code" / "demo")
    (path / "code" / "tests" / "support").mkdir(parents=True)
    shutil.copy(CHECKOUT / "tests" / "support" / "app.py", path / "code" / "tests" / "support")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def pair(home: Path) -> Iterator[Pair]:
    app = home / "code" / "tests" / "support" / "app.py"
    python = Path(sys.executable).resolve()
    words = [str(python), "-S", "-E", str(app), "--port", "{port.http}", "--line-port", "{port.line}"]
    with Pair(home, command=[*words, "--name", "{role}"], user=NOBODY) as pair:
        yield pair


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status by their names."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: " ".join(value.split()) for name, _, value in (line.partition(":") for line in lines)}


def assert_unprivileged(pid: int) -> None:
    seen = status(pid)
    assert (seen["Uid"], seen["Groups"]) == (f"{NOBODY} {NOBODY} {NOBODY} {NOBODY}", "")
    assert {int(seen[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", FILTERED)
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0, "it cannot be traced by others of its user"


def test_the_relay_process_is_never_root(pair: Pair) -> None:
    first = pids(pair)
    assert pair.daemon is not None
    assert status(pair.daemon.pid)["Uid"].split()[0] == "0"
    assert status(first["primary"])["Uid"].split()[0] == str(NOBODY)
    assert_unprivileged(first["relay"])
    with Clients(pair.http, 2, pause=0.02) as clients:
        kill(first["relay"])
        pair.until(lambda seen: seen["daemon"]["relay_pid"] not in (None, first["relay"]))
        second = pids(pair)["relay"]
        assert_unprivileged(second)
        clients.await_answers(10)
    assert len(clients.failures) <= 2, "one request of each, inside it"


def test_the_next_daemon_finds_it_also_after_its_directory_was_removed(pair: Pair) -> None:
    before = pids(pair)
    with Clients(pair.http, 2, keep_alive=True, pause=0.02) as clients:
        shutil.rmtree((pair.home / "run" / SOCKET).parent)
        pair.until_true((pair.home / "run" / SOCKET).exists, "the socket", pair.daemon_log)
        pair.kill()
        clients.await_answers(4)
        pair.begin()
        pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
        assert pids(pair) == before
        pair.done("daemon", "upgrade")
        pair.until(lambda seen: seen["daemon"]["generation"] == 2)
        assert pids(pair)["relay"] == before["relay"]
        clients.await_answers(4)
    assert (clients.failures, clients.connections) == ([], 2)


def test_one_that_hangs_is_aborted_by_the_daemon(pair: Pair) -> None:
    before = pids(pair)["relay"]
    os.kill(before, signal.SIGABRT)
    pair.until(lambda seen: seen["daemon"]["relay_pid"] not in (None, before))
    assert "Fatal Python error: Aborted" in pair.daemon_log(), "and it has said where it stood"
    assert_unprivileged(pids(pair)["relay"])
