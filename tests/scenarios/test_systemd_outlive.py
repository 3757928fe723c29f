"""What outlives the daemon under a real systemd, and what does not outlive a stop."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.systemd_sandbox import Sandbox
from tests.support.systemd_service import (
    CONFIG,
    PREFIX,
    ROLES,
    Service,
    installed,
    running,
    standing,
    started,
    write_version,
)

pytestmark = [pytest.mark.slow, pytest.mark.real]

SWEPT = "the daemon has left"
ESCAPE = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 256)
        os.execve(sys.executable, [sys.executable, "-c", "import signal; signal.pause() # escaped"], {})
    os._exit(0)
os.wait()
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with installed(tmp_path_factory.mktemp("systemd")) as machine:
        yield machine


@pytest.fixture
def service(machine: Sandbox) -> Iterator[Service]:
    with running(machine) as service:
        yield service


def test_a_killed_daemon_is_replaced_and_nothing_else_is(service: Service) -> None:
    """After `kill -9` instances and relay process are what they were, and a connection that was open stays open."""
    before = standing(service.status())
    with service.connection() as client:
        served_by = f"primary {before['primary']}"
        assert client.ask("before") == f"{served_by}: before"
        killed = service.kill_daemon()
        assert client.ask("meanwhile") == f"{served_by}: meanwhile"
        after = service.when_another_daemon_serves(killed)
        assert client.ask("after") == f"{served_by}: after"
    assert standing(after) == before
    assert (service.show("NRestarts"), service.show("ActiveState")) == ("1", "active")
    assert SWEPT not in service.journal()


def test_a_daemon_that_stands_still_is_killed_by_systemd_and_replaced(machine: Sandbox) -> None:
    """Within WatchdogSec=, here a shorter one; the journal has where its threads stood."""
    with running(machine) as service:
        assert service.show("WatchdogUSec") == "20s"
        with service.drop_in("WatchdogSec=3s"):
            service.systemctl("restart", "clojarsd")
            before = standing(service.when_both_are_eligible())
            stopped = service.kill_daemon("STOP")
            assert standing(service.when_another_daemon_serves(stopped)) == before
        assert service.show("NRestarts") == "1"
        journal = service.journal()
        assert "Watchdog timeout" in journal
        assert "Fatal Python error: Aborted" in journal


def test_an_upgrade_is_nothing_to_systemd(machine: Sandbox) -> None:
    """The main process keeps its number, the unit its state, and no restart is counted; the version is another."""
    with running(machine) as service:
        names = ("MainPID", "NRestarts", "ActiveState", "SubState", "ActiveEnterTimestampMonotonic")
        before, unit = standing(service.status()), [service.show(name) for name in names]
        write_version(machine, "99.1.0")
        with service.connection() as client:
            served_by = client.ask("before").rpartition(":")[0]
            upgraded = service.ctl("daemon", "upgrade")
            assert upgraded.returncode == 0, upgraded.stderr
            assert "99.1.0" in upgraded.stdout
            assert client.ask("after") == f"{served_by}: after"
        seen = service.status()
        assert (seen["daemon"]["version"], seen["daemon"]["generation"]) == ("99.1.0", 2)
        assert standing(seen) == before
        assert [service.show(name) for name in names] == unit
        # systemd hears the new code: a reload, a watchdog that is fed, and a stop
        service.systemctl("reload", "clojarsd")
        service.systemctl("stop", "clojarsd")
        assert service.show("Result") == "success"


def test_new_code_that_cannot_be_imported_does_not_take_over(service: Service) -> None:
    before = service.status()
    with broken(service.machine, "raise SystemExit('cut short')"):
        upgraded = service.ctl("daemon", "upgrade")
    assert upgraded.returncode == 1
    assert "stays in charge" in upgraded.stderr
    assert service.status()["daemon"] == before["daemon"]


def test_new_code_that_fails_after_all_is_tried_again_and_touches_nothing(service: Service) -> None:
    """It passes its rehearsal and dies when executed: systemd tries it until it is mended, and clients see nothing."""
    before = standing(service.status())
    with service.connection() as client:
        served_by = client.ask("before").rpartition(":")[0]
        with broken(service.machine, "async def serve(*_):\n    raise RuntimeError('worn out')"):
            assert service.ctl("daemon", "upgrade", "--timeout", "1s").returncode == 4
            service.until(lambda: int(service.show("NRestarts")), lambda restarts: restarts > 1)
            assert client.ask("meanwhile") == f"{served_by}: meanwhile"
        assert standing(service.when_both_are_eligible()) == before
        assert client.ask("after") == f"{served_by}: after"
    assert service.show("ActiveState") == "active"


def test_a_stop_while_the_daemon_cannot_be_started_leaves_nothing(service: Service) -> None:
    with broken(service.machine, "async def serve(*_):\n    raise RuntimeError('worn out')"):
        service.kill_daemon()
        service.until(lambda: int(service.show("NRestarts")), lambda restarts: restarts > 1)
        assert len(service.processes_of_the_user()) == len(ROLES) + 1, "instances and relay process"
        service.systemctl("stop", "clojarsd")
        service.until(service.members, lambda members: not members)
        assert service.processes_of_the_user() == []


def test_a_daemon_that_is_killed_while_it_stops_leaves_nothing(service: Service) -> None:
    """What it can no longer end is asked to end, and killed if it does not."""
    service.begin_stop()
    service.kill_daemon()
    assert service.when_inactive() == "signal"
    assert service.members() == {}
    assert service.show("NRestarts") == "0"
    assert SWEPT in service.journal()


def test_a_daemon_that_hangs_while_it_stops_leaves_nothing(machine: Sandbox) -> None:
    """systemd kills it when the time is over that it asked for; what it looked after is ended then."""
    with running(machine) as service, service.drop_in("TimeoutStopSec=5s"):
        service.systemctl("restart", "clojarsd")
        service.when_both_are_eligible()
        service.begin_stop()
        service.kill_daemon("STOP")
        assert service.when_inactive() == "timeout"
        service.until(service.members, lambda members: not members)


def test_a_restart_whose_first_half_is_cut_short_starts_from_nothing(service: Service) -> None:
    before = standing(service.status())
    service.begin_stop("restart")
    killed = service.kill_daemon()
    after = standing(service.when_another_daemon_serves(killed))
    assert not set(before.values()) & set(after.values())
    assert SWEPT in service.journal()


def test_a_stop_between_two_daemons_leaves_nothing(machine: Sandbox) -> None:
    """Also in the moment in which systemd runs nothing for it, here a longer one."""
    with running(machine) as service, service.drop_in("RestartSec=1min"):
        service.kill_daemon()
        service.until(lambda: service.show("SubState"), lambda state: state == "auto-restart")
        assert len(service.processes_of_the_user()) == len(ROLES) + 1, "instances and relay process"
        service.systemctl("stop", "clojarsd")
        service.until(service.members, lambda members: not members)
        assert service.processes_of_the_user() == []


def test_what_an_instance_lets_loose_ends_with_it(machine: Sandbox) -> None:
    """A grandchild in a session of its own, without parent and environment, is still in the instance's group."""
    machine.run("sh", "-c", "cat > /srv/escape.py <<'END'\n" + ESCAPE + "END")
    text = machine.run("cat", CONFIG)
    python = json.dumps(os.path.realpath(sys.executable))
    Service(machine).write_settings(text.replace("command = [", f'command = [{python}, "/srv/escape.py", '))
    try:
        with running(machine) as service:
            escaped = escapees(service)
            assert len(escaped) == len(ROLES)
            killed = service.kill_daemon()
            service.when_another_daemon_serves(killed)
            assert escapees(service) == escaped
            assert service.ctl("restart", "backup").returncode == 0
            assert len(escapees(service) - escaped) == 1
            assert len(escapees(service)) == len(ROLES)
            service.systemctl("stop", "clojarsd")
            assert escapees(service) == set()
    finally:
        Service(machine).write_settings(text)


def test_limits_of_an_instances_group_hold_across_daemons(machine: Sandbox) -> None:
    """Where version 2 has no controller for them, because version 1 has it, the launch fails and says so."""
    controllers = machine.run("cat", "/sys/fs/cgroup/cgroup.controllers").split()
    text = machine.run("cat", CONFIG)
    Service(machine).write_settings(text.replace("[app]\n", '[app]\ncgroup = { "pids.max" = 77 }\n'))
    try:
        if "pids" in controllers:
            with running(machine) as service:
                before = standing(service.status())
                limits = ["sh", "-c", f"cat {service.group()}/instance-*/pids.max"]
                assert machine.run(*limits).split() == ["77"] * len(ROLES)
                killed = service.kill_daemon()
                assert standing(service.when_another_daemon_serves(killed)) == before
                assert machine.run(*limits).split() == ["77"] * len(ROLES)
        else:
            with started(machine) as service:
                reason = "joining its control group: pids.max = 77: no controller pids is delegated here"
                service.until(service.status, lambda seen: seen is not None and all_say(seen, reason))
    finally:
        Service(machine).write_settings(text)


def all_say(seen: Any, reason: str) -> bool:
    """Whether that is why each instance is not there."""
    return all(reason in (one["reason"] or "") for one in seen["instances"].values())


def escapees(service: Service) -> set[str]:
    return set(service.machine.call("pgrep", "-f", "signal.pause.. # escaped").stdout.split())


@contextlib.contextmanager
def broken(machine: Sandbox, text: str) -> Iterator[None]:
    """The installed daemon.py with a text at its end, within the block."""
    file = machine.run("sh", "-c", f"echo {PREFIX}/lib/python3.*/site-packages/clojarsd/daemon.py").strip()
    machine.run("cp", file, "/srv/daemon.py")
    machine.run("sh", "-c", 'printf "\\n%s\\n" "$1" >> "$0"', file, text)
    try:
        yield
    finally:
        machine.run("cp", "/srv/daemon.py", file)
