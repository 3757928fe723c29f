"""What tools/install does with versions: it goes back, and undoes what the running service does not take."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.support.real import unavailable
from tests.support.systemd_sandbox import Sandbox, boot, missing_for_sandbox
from tests.support.systemd_service import CHECKOUT, PREFIX

pytestmark = [pytest.mark.slow, pytest.mark.real]

VERSIONS = f"{PREFIX}.d"
UNIT = "[Service]\nExecStart=/usr/bin/sleep infinity\nEnvironment=VERSION={name}\n"
CLOJARSD = "#!/bin/sh\necho clojarsd, version {name}\n"
CLOJARSCTL = '#!/bin/sh\necho "{name} is told: $*"\nexit {status}\n'


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A machine on which version `new` is installed and runs, and version `old` was before."""
    if reason := missing_for_sandbox():
        unavailable(f"cannot boot a systemd: {reason}")
    with boot(tmp_path_factory.mktemp("install"), {}, shared=[CHECKOUT]) as machine:
        machine.run("rm", "-rf", PREFIX, VERSIONS)
        for name in ("old", "new"):
            write(machine, f"{name}/libexec/clojarsd.service", UNIT.format(name=name))
            write(machine, f"{name}/bin/clojarsd", CLOJARSD.format(name=name))
            write(machine, f"{name}/bin/clojarsctl", CLOJARSCTL.format(name=name, status=0))
        machine.run("ln", "-s", f"{VERSIONS}/new", PREFIX)
        machine.run("ln", "-s", f"{VERSIONS}/old", f"{VERSIONS}/previous")
        machine.run("cp", f"{PREFIX}/libexec/clojarsd.service", "/etc/systemd/system/")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", "clojarsd")
        yield machine


def test_the_version_before_is_gone_back_to_by_the_running_service_as_well(machine: Sandbox) -> None:
    assert "old is told: daemon upgrade" in back(machine).stdout
    assert links(machine) == ("old", "new")
    assert machine.run("systemctl", "show", "--property=Environment", "--value", "clojarsd") == "VERSION=old\n"
    assert "new is told: daemon upgrade" in back(machine).stdout
    assert links(machine) == ("new", "old")


def test_a_version_that_the_running_service_does_not_take_is_not_installed(machine: Sandbox) -> None:
    """Otherwise a daemon that dies would be followed by one that cannot go on."""
    write(machine, "old/bin/clojarsctl", CLOJARSCTL.format(name="old", status=1))
    done = back(machine, status=1)
    assert "not upgraded: the version before is installed again" in done.stderr
    assert links(machine) == ("new", "old")
    assert machine.run("systemctl", "show", "--property=Environment", "--value", "clojarsd") == "VERSION=new\n"


def test_a_service_that_does_not_run_is_not_upgraded(machine: Sandbox) -> None:
    machine.run("systemctl", "stop", "clojarsd")
    done = back(machine)
    assert "is told" not in done.stdout
    assert "this version begins with its next start" in done.stdout
    assert links(machine) == ("old", "new")


def test_without_a_version_before_nothing_is_done(machine: Sandbox) -> None:
    machine.run("rm", f"{VERSIONS}/previous")
    assert "there is no version before" in back(machine, status=1).stderr
    assert machine.run("readlink", PREFIX) == f"{VERSIONS}/new\n"


def back(machine: Sandbox, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = machine.call(str(CHECKOUT / "tools" / "install"), "--back")
    assert done.returncode == status, done.stdout + done.stderr
    return done


def links(machine: Sandbox) -> tuple[str, ...]:
    """The names of the version in use, and of the one before."""
    lines = machine.run("readlink", PREFIX, f"{VERSIONS}/previous").splitlines()
    return tuple(line.removeprefix(f"{VERSIONS}/") for line in lines)


def write(machine: Sandbox, path: str, text: str) -> None:
    """Write a program of a version."""
    machine.run("sh", "-c", 'mkdir -p "${0%/*}" && printf %s "$1" > "$0" && chmod 755 "$0"', f"{VERSIONS}/{path}", text)
