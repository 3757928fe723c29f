"""clojarsd as a service of a real systemd, with the unit that the project ships."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.support.real import unavailable
from tests.support.systemd_sandbox import Sandbox, boot, missing_for_sandbox

pytestmark = [pytest.mark.slow, pytest.mark.real]

CHECKOUT = Path(__file__).parents[2]
UNIT = CHECKOUT / "systemd" / "clojarsd.service"
PROGRAMS = Path(sys.prefix) / "bin"
DEADLINE_S = 60.0
USER = "clojars-test"
"""No user of the machine, where a real clojarsd may be installed."""
T = TypeVar("T")

CONFIG = """
[service]
user = "{user}"
group = "{user}"

[app]
command = [{python}, "/srv/app.py", "--port", "{{port.http}}", "--line-port", "{{port.nailgun}}", "--name", "{{role}}"]
directory = "/"

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

[control]
operators = ["root"]
"""


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

    def status(self) -> Any:
        """What `clojarsctl status --json` says, or None when the daemon is not reachable."""
        asked = self.machine.call(str(PROGRAMS / "clojarsctl"), "--json", "status")
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

    def journal(self) -> str:
        return self.machine.run("journalctl", "--no-pager", "--output=cat", "--unit=clojarsd")

    def processes_of_the_user(self) -> list[str]:
        return self.machine.call("pgrep", "-u", USER).stdout.split()


def both_are_eligible(status: Any) -> bool:
    return status is not None and all(status["instances"][role]["eligible"] for role in ("primary", "backup"))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    if reason := missing_for_sandbox():
        unavailable(f"cannot boot a systemd: {reason}")
    directory = tmp_path_factory.mktemp("systemd")
    python = os.path.realpath(sys.executable)
    (directory / "clojarsd.toml").write_text(CONFIG.format(python=json.dumps(python), user=USER))
    program = str(PROGRAMS / "clojarsd").replace("%", "%%").replace("$", "$$")
    units = {
        "clojarsd.service": UNIT.read_text(),
        "clojarsd.service.d/checkout.conf": f'[Service]\nExecStart=\nExecStart="{program}" -c /etc/clojarsd.toml\n',
    }
    sandbox_directory = directory / "sandbox"
    sandbox_directory.mkdir()
    with boot(sandbox_directory, units, shared=[CHECKOUT, Path(sys.prefix), Path(python).parent, directory]) as machine:
        machine.run("useradd", "--system", "--user-group", "--no-create-home", USER)
        machine.run("rm", "-rf", "/var/lib/clojarsd", "/var/log/clojarsd")
        machine.run("install", "--mode=0644", str(directory / "clojarsd.toml"), "/etc/clojarsd.toml")
        # the service user need not be able to read this checkout
        machine.run("install", "-D", "--mode=0644", str(CHECKOUT / "demo" / "app.py"), "/srv/app.py")
        yield machine


@pytest.fixture
def service(machine: Sandbox) -> Iterator[Service]:
    """Started, and both instances eligible; stopped afterwards."""
    service = Service(machine)
    service.systemctl("start", "clojarsd")
    service.when_both_are_eligible()
    yield service
    machine.call("systemctl", "stop", "clojarsd")
    machine.call("systemctl", "reset-failed", "clojarsd")


def test_the_shipped_unit_has_nothing_that_systemd_does_not_understand(machine: Sandbox) -> None:
    """systemd-analyze says nothing about it, not even a warning."""
    said = machine.run("sh", "-c", "systemd-analyze verify clojarsd.service 2>&1")
    assert [line for line in said.splitlines() if "clojarsd" in line] == []


def test_a_started_service_serves_from_the_primary(service: Service) -> None:
    """`systemctl start` is followed by two eligible instances, and a client of the frontend gets the primary."""
    assert service.show("ActiveState") == "active"
    ask = (
        "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8080/who', timeout=30).read().decode())"
    )
    assert json.loads(service.machine.run(sys.executable, "-c", ask))["name"] == "primary"


def test_the_daemon_is_root_and_its_instances_are_not(service: Service) -> None:
    status = service.status()
    assert str(status["daemon"]["pid"]) == service.show("MainPID")
    owners = {
        name: service.machine.run("ps", "-o", "user:32=", "-p", str(pid)).strip()
        for name, pid in [("daemon", status["daemon"]["pid"])]
        + [(role, status["instances"][role]["pid"]) for role in ("primary", "backup")]
    }
    assert owners == {"daemon": "root", "primary": USER, "backup": USER}


def test_instances_do_not_inherit_the_line_to_systemd(service: Service) -> None:
    pid = service.status()["instances"]["primary"]["pid"]
    assert "NOTIFY_SOCKET" not in service.machine.run("cat", f"/proc/{pid}/environ")


def test_a_stopped_service_leaves_no_process(service: Service) -> None:
    """A stop is a clean one, in order, and nothing is started again."""
    service.systemctl("stop", "clojarsd")
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    assert service.processes_of_the_user() == []
    assert service.status() is None
    assert "daemon_stopped" in service.journal()


def test_a_killed_daemon_is_started_again(service: Service) -> None:
    """After `kill -9` there is another daemon, and the pair is complete again with nobody's help."""
    killed = service.show("MainPID")
    service.systemctl("kill", "--signal=KILL", "--kill-whom=main", "clojarsd")
    service.until(service.status, lambda seen: both_are_eligible(seen) and str(seen["daemon"]["pid"]) != killed)
    assert service.show("NRestarts") == "1"
    assert service.show("ActiveState") == "active"


def test_a_daemon_that_was_asked_to_end_stays_down(service: Service) -> None:
    """An exit with 0 is nobody's accident: systemd does not undo it."""
    service.systemctl("kill", "--signal=TERM", "--kill-whom=main", "clojarsd")
    service.until(lambda: service.show("ActiveState"), lambda state: state == "inactive")
    assert service.show("NRestarts") == "0"
    assert service.processes_of_the_user() == []


def test_a_configuration_that_cannot_be_used_is_named_in_the_journal(machine: Sandbox) -> None:
    service = Service(machine)
    machine.run("sh", "-c", "cp /etc/clojarsd.toml /etc/good.toml && echo 'nonsense = 1' > /etc/clojarsd.toml")
    try:
        machine.run("systemctl", "start", "--no-block", "clojarsd")
        service.until(service.journal, lambda text: "/etc/clojarsd.toml: nonsense:" in text)
    finally:
        machine.call("systemctl", "stop", "clojarsd")
        machine.run("mv", "/etc/good.toml", "/etc/clojarsd.toml")
        machine.call("systemctl", "reset-failed", "clojarsd")
