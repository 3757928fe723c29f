"""clojarsd as a service of a real systemd, with the unit that the project ships."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.support.systemd_sandbox import Sandbox
from tests.support.systemd_service import CONFIG, ROLES, USER, Service, both_are_eligible, installed, running, standing

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with installed(tmp_path_factory.mktemp("systemd")) as machine:
        yield machine


@pytest.fixture
def service(machine: Sandbox) -> Iterator[Service]:
    with running(machine) as service:
        yield service


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
        + [(role, status["instances"][role]["pid"]) for role in ROLES]
    }
    assert owners == {"daemon": "root", "primary": USER, "backup": USER}


def test_each_instance_has_a_control_group_and_so_have_the_relay_process_and_the_daemon(service: Service) -> None:
    status = service.status()
    members = service.members()
    groups = {name: f"instance-{name}-{status['instances'][name]['incarnation']}" for name in ROLES}
    for name, pid in standing(status).items():
        assert members[groups.get(name, name)] == [str(pid)]
    assert str(status["daemon"]["pid"]) in members["supervisor"]
    assert "." not in members


def test_instances_do_not_inherit_the_line_to_systemd(service: Service) -> None:
    pid = service.status()["instances"]["primary"]["pid"]
    assert "NOTIFY_SOCKET" not in service.machine.run("cat", f"/proc/{pid}/environ")


def test_a_stopped_service_leaves_no_process(service: Service) -> None:
    """A stop is a clean one, in order, and nothing is started again."""
    service.systemctl("stop", "clojarsd")
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    assert service.processes_of_the_user() == []
    assert service.members() == {}
    assert service.status() is None
    journal = service.journal()
    assert "daemon_stopped" in journal
    assert "the daemon has left" not in journal


def test_a_restart_ends_the_pair_in_order_and_starts_it_again(service: Service) -> None:
    before = standing(service.status())
    service.systemctl("restart", "clojarsd")
    after = standing(service.when_both_are_eligible())
    assert not set(before.values()) & set(after.values())
    assert service.show("NRestarts") == "0"
    journal = service.journal()
    assert journal.rindex("unit_stopped role=primary") < journal.rindex("unit_stopping role=backup")


def test_a_reload_reads_the_configuration_and_replaces_nothing(service: Service) -> None:
    before = standing(service.status())
    text = service.machine.run("cat", CONFIG)
    service.write_settings(text.replace('drain = "5s"', 'drain = "6s"'))
    try:
        service.systemctl("reload", "clojarsd")
        assert 'drain = "6s"' in service.ctl("config", "show").stdout
        assert standing(service.status()) == before
    finally:
        service.write_settings(text)


def test_a_reload_of_a_configuration_that_cannot_be_used_fails_and_changes_nothing(service: Service) -> None:
    """`systemctl reload` says so by its exit status, the journal has why, and the service runs on."""
    before = standing(service.status())
    text = service.machine.run("cat", CONFIG)
    service.write_settings("nonsense = 1\n" + text)
    try:
        assert service.machine.call("systemctl", "reload", "clojarsd").returncode == 1
    finally:
        service.write_settings(text)
    assert "nonsense" in service.journal().rpartition("Reloading clojarsd.service")[2]
    assert service.show("ActiveState") == "active"
    assert standing(service.status()) == before


def test_a_daemon_that_was_asked_to_end_stays_down(service: Service) -> None:
    """An exit with 0 is nobody's accident: systemd does not undo it."""
    service.kill_daemon("TERM")
    assert service.when_inactive() == "success"
    assert service.show("NRestarts") == "0"
    assert service.processes_of_the_user() == []


def test_clojarsctl_daemon_stop_is_a_stop_of_the_service(service: Service) -> None:
    assert service.ctl("daemon", "stop").returncode == 0
    assert service.when_inactive() == "success"
    assert service.show("NRestarts") == "0"
    assert service.members() == {}


def test_a_stop_may_take_longer_than_the_unit_says_where_the_configuration_does(machine: Sandbox) -> None:
    """Two instances that have to be killed after 4 s each: the daemon asks systemd for that time."""
    with running(machine) as service, service.drop_in("TimeoutStopSec=2s"):
        service.systemctl("restart", "clojarsd")  # the time-out of a running unit is what it was
        service.when_both_are_eligible()
        for role in ROLES:
            service.fault(role, "ignore-term")
        service.systemctl("stop", "clojarsd")
        assert service.show("Result") == "success"


def test_an_operators_stop_is_remembered_across_a_boot(machine: Sandbox) -> None:
    """Also when the machine loses its power: `status` says who stopped the backup, and when."""
    boot_id = "/proc/sys/kernel/random/boot_id"
    machine.run("sh", "-c", f"cat {boot_id} > /srv/boot_id && mount --bind /srv/boot_id {boot_id}")
    try:
        with running(machine) as service:
            service.ctl("stop", "backup")
            reason = service.status()["instances"]["backup"]["reason"]
            assert reason.startswith("stopped by root at ")
            machine.run("systemctl", "kill", "--signal=KILL", "--kill-whom=all", "clojarsd")
            machine.call("systemctl", "stop", "clojarsd")
            machine.run("sh", "-c", "echo 0f0f0f0f-1111-4222-8333-444444444444 > /srv/boot_id; rm -rf /run/clojarsd")
            service.systemctl("start", "clojarsd")
            seen = service.until(service.status, lambda seen: seen and seen["instances"]["primary"]["eligible"])
            assert seen["instances"]["backup"]["reason"] == reason
            assert service.ctl("start", "backup").returncode == 0
    finally:
        machine.run("umount", boot_id)


def test_a_configuration_that_cannot_be_used_is_named_in_the_journal_until_it_can_be(machine: Sandbox) -> None:
    """The service comes up by itself when the file is good again."""
    service = Service(machine)
    text = machine.run("cat", CONFIG)
    service.write_settings("nonsense = 1\n" + text)
    try:
        machine.run("systemctl", "start", "--no-block", "clojarsd")
        service.until(lambda: int(service.show("NRestarts")), lambda restarts: restarts > 1)
        assert f"{CONFIG}: nonsense:" in service.journal()
        service.write_settings(text)
        service.until(service.status, both_are_eligible)
    finally:
        service.write_settings(text)
        machine.call("systemctl", "stop", "clojarsd")
        machine.call("systemctl", "reset-failed", "clojarsd")
