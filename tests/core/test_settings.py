"""What a valid configuration becomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from clojarsd.core.names import Address, Role
from clojarsd.core.restart import RestartWhen
from clojarsd.core.settings import (
    CheckKind,
    CheckSettings,
    LogTo,
    Mode,
    RestartLimit,
    Settings,
    StopStep,
    parse_settings,
)

LEAST = """
[app]
command = ["serve"]
[instances.primary]
ports = { http = 8001 }
[instances.backup]
ports = { http = 8002 }
"""


def settings(more: str = "") -> Settings:
    return parse_settings(LEAST + more, "test.toml")


def test_least_configuration_has_every_default() -> None:
    seen = settings()
    assert seen.service.name == seen.service.user == seen.service.group == "clojars"
    assert seen.service.runtime_dir == Path("/run/clojarsd")
    assert (seen.frontends, seen.deploy, seen.admin, seen.hooks) == ({}, None, None, ())
    assert seen.control.socket == Path("/run/clojarsd/control.sock")
    assert seen.control.operators == ("root", "clojars")
    assert seen.control.viewers == ("@adm",)
    primary = seen.instances[Role.PRIMARY]
    assert (primary.name, primary.address("http")) == ("clojars", Address("127.0.0.1", 8001))
    assert (primary.command, primary.directory, primary.environment) == (("serve",), Path("/"), {})
    assert primary.stop_signal == (StopStep(15, 30.0),)
    assert primary.success_codes == {0, 143}
    assert (primary.umask, primary.restart, primary.log) == (0o022, RestartWhen.ON_FAILURE, LogTo.FILE)
    assert (primary.notify, primary.watchdog, primary.memory_max, primary.cpu_affinity) == (False, None, None, ())
    assert (primary.chroot, primary.supplementary_groups, primary.cgroup) == (None, (), {})
    assert seen.instances[Role.BACKUP].name == "clojars-backup"
    assert (seen.stall.sample, seen.hang.restart_after, seen.warmup.requests) == (0.05, 30.0, ())


def test_app_is_overridden_key_by_key_in_each_instance() -> None:
    text = """
[app]
command = ["serve", "{role}"]
stop_timeout = "5s"
restart = "always"
environment = { A = "1", B = "2" }
limits = { nofile = 1024, core = "unlimited" }
pre_start = [["one"], ["two", "three"]]
[instances.primary]
ports = { http = 8001 }
[instances.backup]
host = "127.0.0.2"
ports = { http = 8001 }
restart = "never"
stop_signal = ["SIGQUIT", "10s", "SIGTERM"]
environment = { B = "3", C = "4" }
limits = { core = 0 }
restart_limit = { count = 3 }
"""
    seen = parse_settings(text, "test.toml").instances
    primary, backup = seen[Role.PRIMARY], seen[Role.BACKUP]
    assert (primary.restart, backup.restart) == (RestartWhen.ALWAYS, RestartWhen.NEVER)
    assert primary.environment == {"A": "1", "B": "2"}
    assert backup.environment == {"A": "1", "B": "3", "C": "4"}
    assert (primary.limits, backup.limits) == ({"nofile": 1024, "core": -1}, {"nofile": 1024, "core": 0})
    assert primary.stop_signal == (StopStep(15, 5.0),)
    assert backup.stop_signal == (StopStep(3, 10.0), StopStep(15, 5.0))
    assert backup.restart_limit == RestartLimit.model_construct(count=3, within=120.0)
    assert primary.pre_start == backup.pre_start == (("one",), ("two", "three"))
    assert backup.host == "127.0.0.2"


def test_surroundings_of_a_process_are_read() -> None:
    text = """
[app]
command = ["serve"]
notify = true
watchdog = "30s"
memory_max = "1GiB"
cpu_affinity = [1, 0]
chroot = "/srv/clojars"
supplementary_groups = ["adm", "1000"]
cgroup = { "memory.max" = "2GiB", "pids.max" = 4096, "cpu.max" = "50000 100000", "memory.high" = "max" }
[instances.primary]
ports = { http = 8001 }
[instances.backup]
ports = { http = 8002 }
watchdog = "never"
memory_max = "unlimited"
cpu_affinity = []
chroot = "/"
supplementary_groups = []
cgroup = { "memory.max" = "max", "hugetlb.2MB.max" = "4MiB" }
"""
    seen = parse_settings(text, "test.toml").instances
    primary, backup = seen[Role.PRIMARY], seen[Role.BACKUP]
    assert (primary.notify, primary.watchdog, primary.memory_max) == (True, 30.0, 1024**3)
    assert (primary.cpu_affinity, primary.chroot) == ((1, 0), Path("/srv/clojars"))
    assert primary.supplementary_groups == ("adm", "1000")
    whole = {"memory.max": str(2 * 1024**3), "pids.max": "4096", "cpu.max": "50000 100000", "memory.high": "max"}
    assert primary.cgroup == whole
    assert (backup.notify, backup.watchdog, backup.memory_max) == (True, None, None)
    assert (backup.cpu_affinity, backup.chroot, backup.supplementary_groups) == ((), None, ())
    assert backup.cgroup == whole | {"memory.max": "max", "hugetlb.2MB.max": str(4 * 1024**2)}


def test_byte_order_mark_is_not_minded() -> None:
    assert parse_settings("\ufeff" + LEAST, "test.toml") == settings()


def test_instances_may_each_bring_their_own_command() -> None:
    text = """
[instances.primary]
command = ["one"]
ports = { http = 8001 }
[instances.backup]
command = ["two"]
ports = { http = 8002 }
"""
    seen = parse_settings(text, "test.toml").instances
    assert [seen[role].command for role in Role] == [("one",), ("two",)]


def test_stop_steps_keep_their_own_times() -> None:
    seen = settings('[service]\nname = "x"\n').instances[Role.PRIMARY]
    assert seen.name == "x"
    text = LEAST.replace("[app]", '[app]\nstop_signal = ["SIGQUIT", "10s", "SIGTERM", "20s"]\nstop_timeout = "1s"')
    stepped = parse_settings(text, "test.toml").instances[Role.PRIMARY]
    assert stepped.stop_signal == (StopStep(3, 10.0), StopStep(15, 20.0))


def test_one_tcp_check_for_each_port_of_a_frontend_is_implied() -> None:
    text = """
[app]
command = ["serve"]
[instances.primary]
ports = { http = 8001, nailgun = 8101, debug = 9001 }
[instances.backup]
ports = { http = 8002, nailgun = 8102, debug = 9002 }
"""
    without = parse_settings(text, "test.toml")
    assert [(check.kind, check.port) for check in without.checks] == [
        (CheckKind.TCP, port) for port in ("http", "nailgun", "debug")
    ]
    text += """
[frontends.web]
listen = "127.0.0.1:0"
port = "http"
[frontends.web6]
listen = "[::1]:0"
port = "http"
"""
    implied = parse_settings(text, "test.toml").checks
    assert implied == (CheckSettings.model_validate({"kind": "tcp", "port": "http"}),)
    assert (implied[0].interval, implied[0].timeout, implied[0].rise, implied[0].fall) == (1.0, 1.0, 1, 2)
    given = parse_settings(text + '[[checks]]\nkind = "http"\nport = "http"\nstatus = [200, 204]', "test.toml").checks
    assert [(check.kind, check.path, check.status) for check in given] == [(CheckKind.HTTP, "/health", (200, 204))]


def test_frontend_listens_on_one_address_or_several() -> None:
    seen = settings("""
[frontends.http]
listen = ["127.0.0.1:8080", "[::1]:8080", "localhost:8081"]
port = "http"
mode = "relay"
hold = "0s"
""").frontends["http"]
    assert seen.listen == (Address("127.0.0.1", 8080), Address("::1", 8080), Address("localhost", 8081))
    assert (seen.mode, seen.hold, seen.quickack, seen.connect_timeout) == (Mode.RELAY, 0.0, False, 1.0)


def test_control_follows_the_service_unless_told() -> None:
    seen = settings('[service]\nuser = "web"\nruntime_dir = "/run/web"').control
    assert (seen.socket, seen.operators) == (Path("/run/web/control.sock"), ("root", "web"))
    assert settings('[service]\nuser = "root"').control.operators == ("root",)
    told = settings('[control]\nsocket = "/run/x.sock"\noperators = []\nviewers = ["nobody", "@wheel"]').control
    assert (told.socket, told.operators, told.viewers) == (Path("/run/x.sock"), (), ("nobody", "@wheel"))


def test_never_is_no_time() -> None:
    assert settings('[hang]\nrestart_after = "never"').hang.restart_after is None


def test_the_keys_that_the_file_gives_are_known() -> None:
    seen = settings("[stall]\nenabled = true\n")
    assert "stall" in seen.model_fields_set
    assert "hang" not in seen.model_fields_set
    assert seen.stall.model_fields_set == {"enabled"}
    assert seen.instances[Role.BACKUP].model_fields_set == {"command", "ports"}


def test_settings_are_equal_by_value_and_frozen() -> None:
    assert settings() == settings()
    assert settings() != settings("[stall]\nenabled = false\n")
    with pytest.raises(ValidationError):
        settings().service.name = "other"


def test_placeholders_stay_until_a_start() -> None:
    text = LEAST.replace('"serve"', '"serve", "{role}", "{name}", "{port.http}", "{state_dir}", "{log_dir}", "${X}"')
    assert parse_settings(text, "t").instances[Role.BACKUP].command[1:4] == ("{role}", "{name}", "{port.http}")


def test_settings_can_be_dumped_as_json() -> None:
    frontend = '[frontends.http]\nlisten = "127.0.0.1:0"\nport = "http"\n[admin]\n'
    seen = json.loads(settings(frontend).model_dump_json())
    assert seen["frontends"]["http"]["listen"] == [{"host": "127.0.0.1", "port": 0}]
    assert seen["frontends"]["http"]["mode"] == "auto"
    assert seen["instances"]["backup"]["stop_signal"] == [{"signal": 15, "wait": 30.0}]
    assert seen["service"]["log_dir"] == "/var/log/clojarsd"
