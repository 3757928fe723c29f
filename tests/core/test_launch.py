"""What is launched: the settings of an instance with every placeholder replaced."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from clojarsd.core.identity import InstanceMark
from clojarsd.core.launch import LaunchSpec, World, log_path, make_spec
from clojarsd.core.names import Address, Incarnation, Role
from clojarsd.core.settings import Settings, parse_settings

WORLD = World({"PATH": "/bin", "LANG": "C.UTF-8"}, becomes_user=True, soft_nofile=1024)
RELEASES = {"release": "/srv/releases/1.jar", "current": "/srv/releases/current.jar"}


CONFIG = """
[service]
user = "clojars"
group = "web"
state_dir = "/var/lib/c"
log_dir = "/var/log/c"
[app]
command = ["java"]
directory = "/srv"
[instances.primary]
name = "one"
ports = { http = 8001, nailgun = 8101 }
[instances.backup]
name = "two"
host = "::1"
ports = { http = 8002, nailgun = 8102 }
"""


def settings(backup: str = "") -> Settings:
    return parse_settings(CONFIG + backup, "test.toml")


def spec(role: Role = Role.PRIMARY, world: World = WORLD, backup: str = "") -> LaunchSpec:
    chosen = settings(backup)
    return make_spec(role, chosen.instances[role], chosen.service, world, RELEASES)


def test_placeholders_are_replaced_in_command_and_environment() -> None:
    backup = """
command = ["/bin/x", "{role}", "{name}", "{port.http}", "x{port.nailgun}", "{state_dir}", "{log_dir}", "{}"]
environment = { NAME = "{name}-{role}", LANG = "C" }
"""
    seen = spec(Role.BACKUP, backup=backup)
    assert seen.command == ("/bin/x", "backup", "two", "8002", "x8102", "/var/lib/c", "/var/log/c", "{}")
    assert seen.environment == {"PATH": "/bin", "LANG": "C", "NAME": "two-backup"}


def test_the_rest_is_as_the_settings_have_it() -> None:
    backup = """
umask = "077"
nice = 5
oom_score_adjust = -10
limits = { nofile = 99 }
environment_file = "/etc/default/c"
"""
    seen = spec(Role.BACKUP, backup=backup)
    assert seen == LaunchSpec(
        command=("java",),
        directory="/srv",
        environment={"PATH": "/bin", "LANG": "C.UTF-8"},
        environment_file="/etc/default/c",
        log="/var/log/c/backup.log",
        ports={"http": Address("::1", 8002), "nailgun": Address("::1", 8102)},
        user="clojars",
        group="web",
        umask=0o077,
        nice=5,
        oom_score_adjust=-10,
        limits={"nofile": 99},
        soft_nofile=1024,
        log_to="file",
        log_name="two",
    )


def test_a_daemon_that_can_be_nobody_else_asks_for_no_user() -> None:
    seen = spec(world=replace(WORLD, becomes_user=False))
    assert (seen.user, seen.group, seen.environment_file) == (None, None, None)


@pytest.mark.parametrize("role", Role)
def test_each_role_has_a_log_of_its_own(role: Role) -> None:
    assert log_path(settings().service, role) == f"/var/log/c/{role.value}.log" == spec(role).log


def test_the_launcher_can_read_it() -> None:
    seen = json.loads(json.dumps(spec().as_json()))
    assert seen["ports"] == {"http": ["127.0.0.1", 8001], "nailgun": ["127.0.0.1", 8101]}
    assert seen["command"] == ["java"]
    assert set(seen) == set(LaunchSpec.__slots__) - {"mark", "cgroup"} | {"main_variable"}


def test_an_incarnation_has_a_mark_and_what_is_started_beside_it_has_none() -> None:
    chosen = settings()
    args = (Role.PRIMARY, chosen.instances[Role.PRIMARY], chosen.service, WORLD, RELEASES)
    marked = make_spec(*args, incarnation=Incarnation(7))
    assert marked.mark == InstanceMark("/var/lib/c", Role.PRIMARY, Incarnation(7))
    assert marked.as_json()["imposed"] == {"CLOJARSD_INSTANCE": "/var/lib/c:primary:7"}
    assert marked.as_json()["main_variable"] == "CLOJARSD_MAIN_PID"
    beside = make_spec(*args)
    assert beside.mark is None
    assert (beside.as_json()["imposed"], beside.as_json()["main_variable"]) == ({}, None)


def test_the_environment_of_one_start_wins_save_over_what_the_daemon_needs() -> None:
    chosen = settings()
    args = (Role.PRIMARY, chosen.instances[Role.PRIMARY], chosen.service, WORLD, RELEASES)
    seen = make_spec(*args, notify_socket="/run/n", extra={"A": "1", "NOTIFY_SOCKET": "/elsewhere"})
    assert seen.imposed == {"A": "1", "NOTIFY_SOCKET": "/run/n"}


def test_the_world_of_the_child_is_that_of_the_settings() -> None:
    backup = """
cpu_affinity = [0, 1]
chroot = "/srv/root"
supplementary_groups = ["adm"]
cgroup = { "memory.max" = "2GiB", "pids.max" = 4096 }
log = "journal"
"""
    seen = spec(Role.BACKUP, backup=backup)
    assert (seen.cpu_affinity, seen.chroot, seen.supplementary_groups) == ((0, 1), "/srv/root", ("adm",))
    assert (seen.log_to, seen.log_name) == ("journal", "two")
    assert seen.cgroup == {"memory.max": "2147483648", "pids.max": "4096"}
