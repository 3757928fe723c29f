"""A daemon that is a plain user with the two capabilities: it steers, and nothing that it starts could."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from clojarsd.core.steering_reasons import CAP_BPF, CAP_NET_ADMIN
from clojarsd.system.capabilities import CAP_SYS_PTRACE
from tests.support.namespaces import BPF_FS, apart
from tests.support.pair import Clients, Pair
from tests.support.real import unavailable

pytestmark = pytest.mark.slow

PLAIN = 65534
PINS = BPF_FS / "clojarsd" / "demo"
STEERING = 1 << CAP_BPF | 1 << CAP_NET_ADMIN | 1 << CAP_SYS_PTRACE
CHECKOUT = Path(__file__).parents[2]
HOOK = 'post_start = [["/bin/sh", "-c", "grep ^Cap /proc/self/status > {home}/hook-$CLOJARSD_ROLE"]]\n'


def may_enter(path: Path) -> bool:
    """Whether anybody may look into the directory."""
    return all(one.stat().st_mode & 0o001 for one in [path, *path.parents])


@contextmanager
def home_of_nobody() -> Iterator[Path]:
    """A directory in which the plain user can do everything; pytest's own are for root."""
    if not may_enter(CHECKOUT) or not may_enter(Path(sys.executable).resolve().parent):
        unavailable("a plain user cannot read this checkout, or its Python")
    with tempfile.TemporaryDirectory() as made:
        os.chown(made, PLAIN, PLAIN)
        yield Path(made)


def as_plain_user(*capabilities: str) -> tuple[str, ...]:
    """The command line that runs the daemon as a unit with AmbientCapabilities= would."""
    program = shutil.which("setpriv")
    if program is None:
        unavailable("there is no setpriv on this machine")
    given = ",".join(["-all", *(f"+{one}" for one in capabilities)])
    who = (f"--reuid={PLAIN}", f"--regid={PLAIN}", "--clear-groups")
    return (program, *who, f"--inh-caps={given}", f"--ambient-caps={given}", sys.executable, "-m", "clojarsd")


@contextmanager
def plain_pair(home: Path, *capabilities: str, app: str = "") -> Iterator[Pair]:
    BPF_FS.chmod(0o711)
    PINS.mkdir(parents=True)
    os.chown(PINS, PLAIN, PLAIN)
    with Pair(home, mode="auto", user=PLAIN, program=as_plain_user(*capabilities), app=app) as pair:
        yield pair


def capabilities(pid: int, which: str = "CapEff CapPrm CapAmb") -> set[int]:
    """Those of steering that a process has, as bits; one number for each set."""
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {int(lines[name], 16) & STEERING for name in which.split()}


BOTH = 1 << CAP_BPF | 1 << CAP_NET_ADMIN


@apart
def test_it_steers_through_death_and_upgrade_and_hands_nothing_to_what_it_starts() -> None:
    with home_of_nobody() as home, plain_pair(home, "bpf", "net_admin", app=HOOK.format(home=home)) as pair:
        for generation in (1, 2, 3):
            seen = pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
            frontend = seen["frontends"]["http"]
            assert (frontend["mode"], frontend["mode_reason"]) == ("steer", None), pair.daemon_log()
            assert seen["daemon"]["generation"] == generation
            daemon = seen["daemon"]["pid"]
            assert capabilities(daemon, "CapEff CapPrm") == {BOTH}
            assert capabilities(daemon, "CapAmb") == {0}
            made = pair.processes()
            assert len(made) == 3, "two instances and the relay process"
            for process in made:
                assert process.uids().real == PLAIN
                assert capabilities(process.pid) == {0}, process
            pair.done("restart", "backup")
            with Clients(pair.http, 2) as clients:
                if generation < 3:
                    pair.done("daemon", "upgrade")
                clients.await_answers(10)
            assert clients.failures == []
        for hook in (home / "hook-primary", home / "hook-backup"):
            caps = dict(line.split(":\t") for line in hook.read_text().splitlines())
            assert [int(caps[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")] == [0, 0, 0]
        with Clients(pair.http, 2) as clients:
            pair.kill()
            clients.await_answers(10)
            pair.begin()
            seen = pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
            assert seen["frontends"]["http"]["mode"] == "steer"
            clients.await_answers(10)
        assert clients.failures == []
    assert list(PINS.iterdir()) == [], "the directory is root's to remove"


@apart
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            (),
            f"user {PLAIN} may not steer: it takes root, or the capabilities CAP_BPF and CAP_NET_ADMIN "
            "(systemd: AmbientCapabilities=)",
        ),
        (
            ("bpf",),
            "steering takes CAP_NET_ADMIN, which this process does not have (systemd: CapabilityBoundingSet=)",
        ),
        (("net_admin",), "steering takes CAP_BPF, which this process does not have (systemd: CapabilityBoundingSet=)"),
    ],
    ids=["none", "bpf", "net_admin"],
)
def test_what_is_missing_is_named_and_all_is_relayed(given: tuple[str, ...], reason: str) -> None:
    with home_of_nobody() as home, plain_pair(home, *given) as pair:
        frontend = pair.status()["frontends"]["http"]
        assert (frontend["mode"], frontend["mode_reason"]) == ("relay", reason)
        with Clients(pair.http, 1) as clients:
            clients.await_answers(3)
        assert clients.failures == []
        pair.until(lambda seen: seen["frontends"]["http"]["accepted_total"]["primary"] > 0)


@apart
def test_a_daemon_that_has_lost_its_capabilities_takes_away_what_it_cannot_steer() -> None:
    """Else the kernel would send clients for ever where the last daemon has sent them."""
    with home_of_nobody() as home, plain_pair(home, "bpf", "net_admin") as pair:
        with Clients(pair.http, 2) as clients:
            pair.kill()
            assert (PINS / "link").exists()
            pair.begin(as_plain_user())
            seen = pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
            assert seen["frontends"]["http"]["mode"] == "relay"
            assert list(PINS.iterdir()) == []
            before = psutil.Process(pair.pid("primary"))
            pair.done("restart", "primary")
            assert not before.is_running() or before.status() == psutil.STATUS_ZOMBIE
            clients.await_answers(10)
        assert clients.failures == []


@apart
def test_a_rehearsal_of_an_upgrade_does_not_steer() -> None:
    """It looks at the state, and neither at the kernel nor at what is pinned there."""
    with home_of_nobody() as home, plain_pair(home, "bpf", "net_admin") as pair:
        before = {path.name: path.stat().st_ino for path in PINS.iterdir()}
        state = home / "state" / "state.json"
        program = [*as_plain_user("bpf", "net_admin"), "check", "--config", str(pair.config), "--take-over", str(state)]
        said = subprocess.run(program, capture_output=True, text=True, check=True, cwd=CHECKOUT).stdout
        assert "can take over" in said
        assert {path.name: path.stat().st_ino for path in PINS.iterdir()} == before
        assert pair.status()["frontends"]["http"]["mode"] == "steer"
