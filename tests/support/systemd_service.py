"""clojarsd.service in a sandbox: installed where the shipped unit expects it, from a copy of this checkout's code."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.support.real import unavailable
from tests.support.systemd_sandbox import Sandbox, boot, missing_for_sandbox
from tests.support.waiting import PATIENCE

CHECKOUT = Path(__file__).parents[2]
UNIT = CHECKOUT / "systemd" / "clojarsd.service"
PREFIX = "/opt/clojarsd"
CONFIG = "/etc/clojarsd.toml"
DEADLINE_S = 2 * PATIENCE
USER = "clojars-test"
"""No user of the machine, where a real clojarsd may be installed."""
ROLES = ("primary", "backup")
T = TypeVar("T")

SETTINGS = """
[service]
user = "{user}"
group = "{user}"

[app]
command = [{python}, "/srv/app.py", "--port", "{{port.http}}", "--line-port", "{{port.nailgun}}", "--name", "{{role}}"]
directory = "/"
stop_timeout = "4s"
restart_delay = "100ms"

[instances.primary]
name = "clojars"
ports = {{ http = 8001, nailgun = 8101 }}

[instances.backup]
name = "clojars-backup"
ports = {{ http = 8002, nailgun = 8102 }}

[[checks]]
kind = "http"
port = "http"
path = "/health"
interval = "100ms"

[frontends.http]
listen = "127.0.0.1:8080"
port = "http"
mode = "relay"
drain = "5s"

[frontends.nailgun]
listen = "127.0.0.1:8700"
port = "nailgun"
mode = "relay"
drain = "5s"
drain_idle = "100ms"

[control]
operators = ["root"]
"""

SCRIPT = """#!{prefix}/bin/python
import sys
from {module} import main
sys.exit(main())
"""

CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", 8700), 30) as line:
    answers = line.makefile("rb")
    for text in sys.stdin.buffer:
        line.sendall(text)
        sys.stdout.buffer.write(answers.readline() or b"end\\n")
        sys.stdout.buffer.flush()
"""


class Connection:
    """A client in the sandbox that keeps one connection to the frontend `nailgun` open."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, text: str) -> str:
        """The instance's answer to a line, `ROLE PID: TEXT`; `end` when the connection has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(text, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().rstrip("\n")


class Service:
    """clojarsd.service in the sandbox."""

    def __init__(self, machine: Sandbox) -> None:
        self.machine = machine
        self.complaint = ""

    def systemctl(self, *arguments: str) -> str:
        return self.machine.run("systemctl", *arguments).strip()

    def show(self, name: str) -> str:
        """One property, as `systemctl show` prints it."""
        return self.systemctl("show", "--property", name, "--value", "clojarsd")

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What clojarsctl says, as root."""
        return self.machine.call(f"{PREFIX}/bin/clojarsctl", *arguments)

    def status(self) -> Any:
        """What `clojarsctl status --json` says, or None when the daemon is not reachable."""
        asked = self.ctl("--json", "status")
        self.complaint = asked.stderr
        return json.loads(asked.stdout) if asked.returncode == 0 else None

    def until(self, look: Callable[[], T], fits: Callable[[T], bool]) -> T:
        """The first look that fits; each look is a process of its own, which is pause enough."""
        deadline = time.monotonic() + DEADLINE_S
        while not fits(seen := look()):
            assert time.monotonic() < deadline, f"last seen: {seen}\n{self.complaint}\n{self.journal()}"
        return seen

    def when_both_are_eligible(self) -> Any:
        return self.until(self.status, both_are_eligible)

    def when_another_daemon_serves(self, before: str) -> Any:
        """The status of the daemon that follows the one with that number, when both instances are eligible."""
        return self.until(self.status, lambda seen: both_are_eligible(seen) and str(seen["daemon"]["pid"]) != before)

    def kill_daemon(self, signal: str = "KILL") -> str:
        """Signal the daemon alone; its number."""
        pid = self.show("MainPID")
        self.systemctl("kill", f"--signal={signal}", "--kill-whom=main", "clojarsd")
        return pid

    def journal(self) -> str:
        return self.machine.run("journalctl", "--no-pager", "--output=cat", "--unit=clojarsd")

    def processes_of_the_user(self) -> list[str]:
        return self.machine.call("pgrep", "-u", USER).stdout.split()

    def group(self) -> str:
        """The directory of the service's control group; empty when there is none."""
        path = self.show("ControlGroup")
        return f"/sys/fs/cgroup{path}" if path else ""

    def members(self) -> dict[str, list[str]]:
        """The processes in the service's control group: names of the groups below it to process numbers."""
        group = self.group()
        listed = self.machine.call("sh", "-c", f"cd {group or '/nowhere'} && grep -r . --include=cgroup.procs .").stdout
        found: dict[str, list[str]] = {}
        for line in listed.splitlines():
            path, _, pid = line.partition(":")
            found.setdefault(str(Path(path).parent), []).append(pid)
        return found

    def fault(self, role: str, name: str) -> None:
        """Give an instance a fault of demo/app.py."""
        url = f"http://127.0.0.1:{8001 + ROLES.index(role)}/fault/{name}"
        self.machine.run(sys.executable, "-c", f"import urllib.request as u; u.urlopen({url!r}, b'', 30).read()")

    def begin_stop(self, verb: str = "stop") -> None:
        """Begin to stop the pair, of which the primary does not end when it is asked to; it is now being asked."""
        self.fault("primary", "ignore-term")
        self.systemctl(verb, "--no-block", "clojarsd")
        self.until(self.status, lambda seen: seen["instances"]["primary"]["state"] == "stopping")

    def when_inactive(self) -> str:
        """The result of the unit, as soon as it is neither active nor on its way."""
        self.until(lambda: self.show("ActiveState"), lambda state: state in ("inactive", "failed"))
        return self.show("Result")

    def write_settings(self, text: str) -> None:
        """Replace the configuration file."""
        self.machine.run("sh", "-c", 'cat > "$0" <<"END"\n' + text + "\nEND", CONFIG)

    @contextlib.contextmanager
    def drop_in(self, text: str) -> Iterator[None]:
        """The unit with more lines for its section [Service], within the block."""
        path = "/run/systemd/system/clojarsd.service.d/test.conf"
        self.machine.run("sh", "-c", f'mkdir -p "${{0%/*}}" && printf "[Service]\\n{text}\\n" > "$0"', path)
        self.systemctl("daemon-reload")
        try:
            yield
        finally:
            self.machine.run("rm", path)
            self.systemctl("daemon-reload")

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection of a client through the relay."""
        with subprocess.Popen(
            self.machine.command(sys.executable, "-c", CLIENT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            yield Connection(process)


def both_are_eligible(status: Any) -> bool:
    return status is not None and all(status["instances"][role]["eligible"] for role in ROLES)


def standing(status: Any) -> dict[str, int]:
    """The processes that outlive a daemon: by role, and that of the relay."""
    pids = {role: status["instances"][role]["pid"] for role in ROLES}
    return {**pids, "relay": status["daemon"]["relay_pid"]}


def settings() -> str:
    """The configuration of the pair in the sandbox."""
    return SETTINGS.format(python=json.dumps(os.path.realpath(sys.executable)), user=USER)


@contextlib.contextmanager
def installed(directory: Path) -> Iterator[Sandbox]:
    """A machine with the service installed, which was never started.

    The code is a copy, so that a test can break it, or bring another version; see `write_version`.
    """
    if reason := missing_for_sandbox():
        unavailable(f"cannot boot a systemd: {reason}")
    inside = directory / "sandbox"
    inside.mkdir()
    python = Path(os.path.realpath(sys.executable)).parent
    with boot(inside, {"clojarsd.service": UNIT.read_text()}, shared=[CHECKOUT, Path(sys.prefix), python]) as machine:
        _install(machine)
        machine.run("useradd", "--system", "--user-group", "--no-create-home", USER)
        machine.run("rm", "-rf", "/var/lib/clojarsd", "/var/log/clojarsd")
        # the service user need not be able to read this checkout
        machine.run("install", "-D", "--mode=0644", str(CHECKOUT / "demo" / "app.py"), "/srv/app.py")
        Service(machine).write_settings(settings())
        yield machine


def _install(machine: Sandbox) -> None:
    machine.run("rm", "-rf", PREFIX)
    machine.run(os.path.realpath(sys.executable), "-m", "venv", "--without-pip", PREFIX)
    (packages,) = machine.run("sh", "-c", f"echo {PREFIX}/lib/python3.*/site-packages").split()
    (ours,) = (Path(sys.prefix) / "lib").glob("python3.*/site-packages")
    machine.run("sh", "-c", f"echo {ours} > {packages}/outer.pth")
    machine.run("cp", "-R", str(CHECKOUT / "clojarsd"), packages)
    machine.run("sh", "-c", f"cp -R {ours}/clojarsd-*.dist-info {packages}")
    for name, module in (("clojarsd", "clojarsd.__main__"), ("clojarsctl", "clojarsd.ctl.main")):
        text = SCRIPT.format(prefix=PREFIX, module=module)
        machine.run("sh", "-c", f"cat > {PREFIX}/bin/{name} <<'END'\n{text}END\nchmod 755 {PREFIX}/bin/{name}")
    machine.run("install", "-D", str(CHECKOUT / "systemd" / "stop-post"), f"{PREFIX}/libexec/stop-post")


def write_version(machine: Sandbox, version: str) -> None:
    """Install another version, as far as anybody can tell."""
    metadata = f"{PREFIX}/lib/python3.*/site-packages/clojarsd-*.dist-info/METADATA"
    machine.run("sh", "-c", f"sed -i 's/^Version: .*/Version: {version}/' {metadata}")


@contextlib.contextmanager
def running(machine: Sandbox) -> Iterator[Service]:
    """The service, started, with both instances eligible; stopped when the block is left, which leaves nothing."""
    with started(machine) as service:
        service.when_both_are_eligible()
        yield service


@contextlib.contextmanager
def started(machine: Sandbox) -> Iterator[Service]:
    """The service, started, whatever becomes of its instances; stopped when the block is left, which leaves nothing."""
    service = Service(machine)
    began = machine.call("systemctl", "start", "clojarsd")
    try:
        assert began.returncode == 0, began.stderr + service.journal()
        yield service
    finally:
        machine.call("systemctl", "stop", "clojarsd")
        machine.call("systemctl", "reset-failed", "clojarsd")
    assert service.members() == {}
