"""A whole pair that is steered under a real systemd, as root and as a plain user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.scenarios.test_systemd_outlive import SWEPT
from tests.scenarios.test_systemd_steering import DROP_INS, pins, plain_user, uid, write
from tests.support.systemd_sandbox import Sandbox
from tests.support.systemd_service import USER, Service, installed, running, settings, standing

pytestmark = [pytest.mark.slow, pytest.mark.real]

STEERED = settings().replace('port = "http"\nmode = "relay"', 'port = "http"\nmode = "auto"')
MADE = ["clojarsd", "clojarsd/clojars"]
PINNED = [*MADE, *(f"clojarsd/clojars/{name}" for name in ("counters", "link", "names", "order", "sockets"))]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with installed(tmp_path_factory.mktemp("systemd")) as machine:
        assert 'mode = "auto"' in STEERED
        Service(machine).write_settings(STEERED)
        yield machine


@contextmanager
def with_lines(machine: Sandbox, *lines: str) -> Iterator[None]:
    """The shipped unit with these lines in its section [Service]."""
    write(machine, f"{DROP_INS}/steering.conf", "\n".join(["[Service]", *lines]))
    machine.run("systemctl", "daemon-reload")
    owner = f"{USER}:" if lines else "root:"
    machine.run("sh", "-c", f"mkdir -p /var/lib/clojarsd /var/log/clojarsd; chown -R {owner} /var/l*/clojarsd")
    try:
        yield
    finally:
        machine.run("rm", "-r", DROP_INS)
        machine.run("sh", "-c", "rm -rf /var/lib/clojarsd /var/log/clojarsd")
        machine.run("systemctl", "daemon-reload")


@contextmanager
def as_user(machine: Sandbox, who: str) -> Iterator[None]:
    with with_lines(machine, *([plain_user()] if who == "plain" else [])):
        yield


def frontend(service: Service) -> Any:
    return service.when_both_are_eligible()["frontends"]["http"]


def is_steered(service: Service) -> bool:
    seen = frontend(service)
    assert (seen["mode"], seen["mode_reason"]) == ("steer", None), seen
    return True


def capabilities_of(machine: Sandbox, pid: int) -> set[str]:
    said = machine.run("sh", "-c", f"grep -E '^Cap(Eff|Prm|Amb)' /proc/{pid}/status")
    return {line.split()[1].lstrip("0") for line in said.splitlines()}


@pytest.mark.parametrize("who", ["root", "plain"])
def test_it_steers_and_outlives_its_daemon_and_a_stop_leaves_nothing(machine: Sandbox, who: str) -> None:
    with as_user(machine, who), running(machine) as service:
        assert is_steered(service)
        assert pins(machine) == PINNED
        before = standing(service.status())
        if who == "plain":
            for pid in before.values():
                assert capabilities_of(machine, pid) == {""}
        counted = frontend(service)["accepted_total"]["primary"]
        killed = service.kill_daemon()
        machine.run("sh", "-c", "for i in 1 2 3 4 5; do curl -sSf http://127.0.0.1:8080/who > /dev/null; done")
        after = service.when_another_daemon_serves(killed)
        assert standing(after) == before
        assert is_steered(service)
        assert frontend(service)["accepted_total"]["primary"] >= counted + 5
        assert pins(machine) == PINNED
        upgraded = service.ctl("daemon", "upgrade")
        assert upgraded.returncode == 0, upgraded.stderr
        assert is_steered(service)
        assert standing(service.status()) == before
        service.systemctl("restart", "clojarsd")
        assert is_steered(service)
        assert not set(standing(service.status()).values()) & set(before.values())
        service.systemctl("stop", "clojarsd")
        assert service.show("Result") == "success"
        assert pins(machine) == []
        assert SWEPT not in service.journal()


@pytest.mark.parametrize("who", ["root", "plain"])
@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_a_daemon_that_does_not_end_its_stop_leaves_nothing_in_the_kernel(
    machine: Sandbox, who: str, signal: str
) -> None:
    """stop-post removes it when the instances have ended."""
    with as_user(machine, who), running(machine) as service, service.drop_in("TimeoutStopSec=5s"):
        assert is_steered(service)
        service.begin_stop()
        service.kill_daemon(signal)
        service.when_inactive()
        service.until(service.members, lambda members: not members)
        service.until(lambda: pins(machine), lambda left: left in ([], MADE))


def test_a_plain_user_without_capabilities_relays_and_says_which(machine: Sandbox) -> None:
    with with_lines(machine, f"User={USER}", f"Group={USER}"), running(machine) as service:
        seen = frontend(service)
        assert seen["mode"] == "relay"
        assert seen["mode_reason"] == (
            f"user {uid(machine)} may not steer: it takes root, or the capabilities CAP_BPF and CAP_NET_ADMIN "
            "(systemd: AmbientCapabilities=)"
        )
        assert json.loads(machine.run("curl", "-sSf", "http://127.0.0.1:8080/who"))["name"] == "primary"
