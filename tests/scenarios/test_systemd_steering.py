"""Steering with what the shipped unit allows, as root and as a plain user, under a real systemd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.systemd_sandbox import Sandbox
from tests.support.systemd_service import CHECKOUT, PREFIX, USER, Service, installed

pytestmark = [pytest.mark.slow, pytest.mark.real]

PLAIN_USER = CHECKOUT / "systemd" / "plain-user.conf"
DROP_INS = "/run/systemd/system/clojarsd.service.d"
STEERER = """
import os, signal, socket, sys
from clojarsd.core.errors import CannotSteer
from clojarsd.core.names import Address, Role
from clojarsd.core.steering import Steered
from clojarsd.system.capabilities import lower_ambient
from clojarsd.system.steering import KernelSteering

def say(text):
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.sendto(("READY=1\\nSTATUS=" + text).encode(), os.environ["NOTIFY_SOCKET"])

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
try:
    opened = KernelSteering.open("clojars")
    opened.configure([Steered("http", (Address("127.0.0.1", 8080),))])
    opened.detach()
    steering = KernelSteering.open("clojars")
    instance = socket.create_server(("127.0.0.1", 0))
    steering.put("http", Role.PRIMARY, [instance])
    steering.set_order("http", [Role.PRIMARY])
    socket.create_connection(("127.0.0.1", 8080), 30).close()
    instance.accept()
    lower_ambient()
    caps = os.popen("grep CapEff /proc/self/status").read().split()[1]
    say(f"user {os.getuid()} steers, {steering.counters('http')[Role.PRIMARY]} connection; children: {int(caps, 16):x}")
except CannotSteer as error:
    say(f"relays: {error}")
    steering = None
signal.sigwait([signal.SIGTERM])
if steering is not None:
    steering.remove()
"""
AS_STEERER = f"""
ExecStart=
ExecStart={PREFIX}/bin/python /srv/steer.py
ExecReload=
WatchdogSec=0
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with installed(tmp_path_factory.mktemp("systemd")) as machine:
        write(machine, "/srv/steer.py", STEERER)
        yield machine


def write(machine: Sandbox, path: str, text: str) -> None:
    machine.run("sh", "-c", 'mkdir -p "${0%/*}" && cat > "$0" <<"END"\n' + text + "\nEND", path)


def plain_user() -> str:
    """The shipped drop-in, for this test's user; the directory keeps the service's name."""
    lines = PLAIN_USER.read_text().partition("[Service]\n")[2]
    for setting in ("User=clojars", "Group=clojars", "-o clojars", "-g clojars"):
        assert setting in lines
        lines = lines.replace(setting, setting.replace("clojars", USER))
    return lines


@contextlib.contextmanager
def steerer(machine: Sandbox, *lines: str, restart: str = "no") -> Iterator[Service]:
    """The shipped unit, with these lines in its section [Service], whose daemon does nothing but steer."""
    write(machine, f"{DROP_INS}/test.conf", "\n".join(["[Service]", *lines, f"Restart={restart}", AS_STEERER]))
    machine.run("systemctl", "daemon-reload")
    service = Service(machine)
    began = machine.call("systemctl", "start", "clojarsd")
    try:
        assert began.returncode == 0, began.stderr + service.journal()
        yield service
    finally:
        machine.call("systemctl", "stop", "clojarsd")
        machine.call("systemctl", "reset-failed", "clojarsd")
        machine.run("rm", "-r", DROP_INS)
        machine.run("systemctl", "daemon-reload")


def pins(machine: Sandbox) -> list[str]:
    found = machine.run("find", "/sys/fs/bpf", "-mindepth", "1", "-not", "-name", "*.debug")
    return sorted(path.removeprefix("/sys/fs/bpf/") for path in found.split())


def uid(machine: Sandbox) -> str:
    return machine.run("id", "-u", USER).strip()


def test_the_shipped_unit_may_steer(machine: Sandbox) -> None:
    """As root; a clean stop leaves nothing."""
    with steerer(machine) as service:
        assert service.show("StatusText").startswith("user 0 steers, 1 connection")
        assert "clojarsd/clojars/link" in pins(machine)
        service.systemctl("stop", "clojarsd")
        assert service.show("Result") == "success"
        assert pins(machine) == []


def test_a_plain_user_may_steer_with_the_shipped_drop_in(machine: Sandbox) -> None:
    """What it starts has no capability; a clean stop leaves nothing, and another start works as well."""
    with steerer(machine, plain_user()) as service:
        for _ in range(2):
            assert service.show("StatusText") == f"user {uid(machine)} steers, 1 connection; children: 0"
            assert "clojarsd/clojars/link" in pins(machine)
            service.systemctl("stop", "clojarsd")
            assert service.show("Result") == "success"
            assert pins(machine) == []
            service.systemctl("start", "clojarsd")


def test_what_a_killed_daemon_of_a_plain_user_has_pinned_is_taken_up_by_the_next(machine: Sandbox) -> None:
    with steerer(machine, plain_user(), restart="always") as service:
        before = service.kill_daemon()
        text = f"user {uid(machine)} steers, 2 connection"
        service.until(
            lambda: (service.show("MainPID"), service.show("StatusText")),
            lambda seen: seen[0] not in (before, "0") and seen[1].startswith(text),
        )
        assert "clojarsd/clojars/link" in pins(machine)
        service.systemctl("stop", "clojarsd")
        assert pins(machine) == []


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            f"User={USER}",
            "user {uid} may not steer: it takes root, or the capabilities CAP_BPF and CAP_NET_ADMIN "
            "(systemd: AmbientCapabilities=)",
        ),
        (
            f"User={USER}\nAmbientCapabilities=CAP_BPF CAP_NET_ADMIN",
            "/sys/fs/bpf/clojarsd cannot be made or entered by user {uid}: permission denied "
            "(systemd: ExecStartPre=+ of clojarsd.service)",
        ),
        (
            "CapabilityBoundingSet=~CAP_BPF CAP_SYS_ADMIN",
            "steering takes CAP_BPF, which this process does not have (systemd: CapabilityBoundingSet=)",
        ),
        (
            "ProtectKernelTunables=yes",
            "/sys/fs/bpf/clojarsd cannot be made: it is on a file system that is read-only "
            "(systemd: ProtectKernelTunables=)",
        ),
        (
            "SystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM",
            "making the maps failed: the kernel does not permit it, although this process has the capabilities "
            "(a user namespace, systemd's SystemCallFilter= or a security module)",
        ),
    ],
    ids=["no capabilities", "no directory", "root without a capability", "read-only", "filtered"],
)
def test_what_a_unit_does_not_allow_is_named(machine: Sandbox, lines: str, reason: str) -> None:
    machine.run("chmod", "700", "/sys/fs/bpf")
    with steerer(machine, lines) as service:
        assert service.show("StatusText") == "relays: " + reason.format(uid=uid(machine))
        assert pins(machine) == []


@pytest.mark.parametrize(
    "lines",
    [
        "SystemCallFilter=@system-service bpf pidfd_getfd\nSystemCallErrorNumber=EPERM",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "ProtectSystem=strict\nProtectHome=read-only\nNoNewPrivileges=yes",
    ],
)
def test_what_steering_can_do_with(machine: Sandbox, lines: str) -> None:
    with steerer(machine, lines) as service:
        assert service.show("StatusText").startswith("user 0 steers")


def test_systemd_understands_the_drop_in(machine: Sandbox) -> None:
    write(machine, f"{DROP_INS}/plain-user.conf", "[Service]\n" + plain_user())
    machine.run("systemctl", "daemon-reload")
    try:
        said = machine.run("sh", "-c", "systemd-analyze verify clojarsd.service 2>&1")
        assert [line for line in said.splitlines() if "clojarsd" in line] == []
    finally:
        machine.run("rm", "-r", DROP_INS)
        machine.run("systemctl", "daemon-reload")
