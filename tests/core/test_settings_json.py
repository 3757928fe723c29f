"""That the settings in force are written as the file would say them, without what is secret, and are read again."""

from __future__ import annotations

import json
import string
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clojarsd.core.names import Role
from clojarsd.core.quantities import duration_text
from clojarsd.core.settings import TABLES, InstanceSettings, Settings, parse_settings
from clojarsd.core.settings_json import settings_json, settings_toml, toml_text
from clojarsd.core.stopping import SIGNALS
from tests.core.test_settings_problems import document

SHIPPED = (Path(__file__).parents[2] / "etc/clojarsd.toml").read_text()
RICH = """
[service]
name = "web"
user = "web"
[app]
command = ["serve", "tab\\t quote\\" back\\\\ del\\u007f bell\\u0007 ü", "{role}"]
environment = { TOKEN = "s3cr3t", EMPTY = "" }
environment_file = "/etc/default/web"
pre_start = [["a"], ["b", ""]]
post_start = [["c"]]
pre_stop = [["d"]]
post_stop = [["e"]]
start_timeout = "1m30s"
stop_signal = ["SIGQUIT", "10s", "SIGTERM"]
stop_timeout = "250ms"
reload_signal = "SIGUSR2"
restart = "never"
restart_delay = "0s"
restart_limit = { count = 3, within = "1h" }
success_codes = [3, 1]
umask = "007"
nice = -5
oom_score_adjust = 7
limits = { core = "unlimited", nofile = 10 }
notify = true
watchdog = "20s"
memory_max = "1GB"
cpu_affinity = [3, 1]
chroot = "/srv"
supplementary_groups = ["adm"]
cgroup = { "memory.max" = "2GiB", "cpu.max" = "max 100000" }
log = "journal"
log_max_size = "10MB"
log_keep = 0
[instances.primary]
ports = { http = 8001, nailgun = 8101 }
sockets = { web = "/run/web.sock" }
resolve = "5m"
[instances.backup]
host = "::1"
resolve = "never"
ports = { http = 8002, nailgun = 8102 }
stop_signal = ["SIGTERM", "20s"]
watchdog = "never"
chroot = "/"
[[checks]]
kind = "tcp"
port = "http"
[[checks]]
kind = "http"
port = "http"
path = "/x"
status = [200, 204]
rise = 3
[[checks]]
kind = "nailgun"
port = "nailgun"
[[checks]]
kind = "exec"
command = ["check", "{port.http}"]
fall = 5
[stall]
enabled = false
[hang]
restart_after = "never"
[warmup]
requests = ["/"]
[frontends.a]
listen = ["127.0.0.1:0", "[::1]:0"]
port = "http"
mode = "steer"
[frontends.b-c]
listen = "localhost:8080"
port = "nailgun"
hold = "0s"
max_connections = 9
[deploy]
repository = "https://me:pass@git.example/r.git"
work_dir = "/w"
releases = "/r"
test = []
cds = true
[control]
operators = []
viewers = []
[admin]
listen = "[::1]:9180"
[[hooks]]
on = ["failover"]
exec = ["x"]
[[hooks]]
on = ["*"]
exec = ["y"]
timeout = "1s"
"""


def again(seen: Settings) -> Settings:
    return parse_settings(settings_toml(seen, hide=False), "again.toml")


@pytest.mark.parametrize("text", [SHIPPED, RICH, document(), document(admin={}, hang={"restart_after": '"1m"'})])
def test_what_is_written_is_read_as_equal_settings(text: str) -> None:
    seen = parse_settings(text, "x.toml")
    assert again(seen) == seen
    for hide in (True, False):
        whole = settings_json(seen, hide=hide)
        assert {"frontends": {}, "hooks": [], **tomllib.loads(settings_toml(seen, hide=hide))} == whole


def test_rich_configuration_has_another_value_than_the_default_for_every_key_of_an_instance() -> None:
    primary = parse_settings(RICH, "x.toml").instances[Role.PRIMARY]
    least = parse_settings(document(), "x.toml").instances[Role.PRIMARY]
    same = {key for key in InstanceSettings.model_fields if getattr(primary, key) == getattr(least, key)}
    assert same == {"directory", "host", "restart_max_delay", "restart_reset"}


def test_keys_and_texts_are_those_of_the_file() -> None:
    seen = settings_json(parse_settings(RICH, "x.toml"))
    assert list(seen) == [key for key in TABLES if key != "app"]
    primary, backup = seen["instances"]["primary"], seen["instances"]["backup"]
    assert set(primary) == {*InstanceSettings.model_fields}
    expected: dict[str, Any] = {
        "start_timeout": "1m30s",
        "stop_signal": ["SIGQUIT", "10s", "SIGTERM"],
        "reload_signal": "SIGUSR2",
    }
    expected |= {"umask": "007", "limits": {"core": "unlimited", "nofile": 10}, "memory_max": "1GB", "chroot": "/srv"}
    expected |= {"restart_limit": {"count": 3, "within": "1h"}, "success_codes": [1, 3], "log_max_size": "10MB"}
    assert {key: primary[key] for key in expected} == expected
    assert (backup["stop_signal"], backup["watchdog"], backup["chroot"]) == (["SIGTERM", "20s"], "never", "/")
    assert seen["hang"] == {"restart_after": "never", "thread_dump": True}
    assert [seen["frontends"][name]["listen"] for name in ("a", "b-c")] == [
        ["127.0.0.1:0", "[::1]:0"],
        "localhost:8080",
    ]
    assert seen["control"]["socket"] == "/run/clojarsd/control.sock"
    assert "path" not in seen["checks"][0]
    assert json.loads(json.dumps(seen)) == seen


def test_what_may_be_secret_is_not_written() -> None:
    seen = parse_settings(RICH, "x.toml")
    text = settings_toml(seen)
    assert text.startswith("# *** stands for what is not shown.\n\n[service]\n")
    for secret in ("s3cr3t", "me:pass"):
        assert secret not in text
        assert secret not in json.dumps(settings_json(seen))
        assert secret in settings_toml(seen, hide=False)
    assert 'environment = { TOKEN = "***", EMPTY = "***" }\n' in text
    assert 'repository = "https://***@git.example/r.git"\n' in text
    assert parse_settings(text, "masked.toml").instances[Role.PRIMARY].environment == {"TOKEN": "***", "EMPTY": "***"}


def test_frontend_of_any_name_is_written_whole() -> None:
    text = document(frontends__environment={"listen": '"127.0.0.1:0"', "port": '"http"'})
    assert settings_json(parse_settings(text, "x"))["frontends"]["environment"]["port"] == "http"


TEXTS = st.text(st.characters(exclude_characters="\0{}", exclude_categories=["Cs"]), max_size=20)
DURATIONS = st.integers(1, 10**9).map(lambda milliseconds: duration_text(milliseconds / 1000))
NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=8)
COMMANDS = st.lists(TEXTS, max_size=3).map(lambda words: ["x", *words])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "command": COMMANDS,
    "environment": st.dictionaries(NAMES, TEXTS, max_size=3),
    "pre_start": st.lists(COMMANDS, max_size=2),
    "stop_timeout": DURATIONS,
    "stop_signal": st.tuples(
        st.lists(st.tuples(st.sampled_from(list(SIGNALS)), DURATIONS)), st.sampled_from(list(SIGNALS))
    ).map(lambda steps: [*(word for step in steps[0] for word in step), steps[1]]),
    "success_codes": st.lists(st.integers(0, 255)),
    "umask": st.integers(0, 0o777).map(lambda bits: f"{bits:o}"),
    "memory_max": st.integers(16 * 1024**2, 2**62).map(lambda size: f"{size}B") | st.just("unlimited"),
    "log_max_size": st.integers(1, 2**62).map(lambda size: f"{size}B"),
    "limits": st.dictionaries(st.sampled_from(["core", "nofile"]), st.integers(0, 2**63 - 1) | st.just("unlimited")),
    "cgroup": st.dictionaries(st.sampled_from(["memory.max", "io.max"]), st.integers(0) | st.just("max")),
    "cpu_affinity": st.lists(st.integers(0, 8191), unique=True, max_size=4),
    "directory": st.sampled_from(["/", "/a b", "/ü", '/"']),
}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({}, optional=VALUES), st.fixed_dictionaries({}, optional=VALUES))
def test_any_configuration_survives_being_written(app: dict[str, Any], backup: dict[str, Any]) -> None:
    text = document(
        app={key: toml_text(value) for key, value in app.items()},
        instances__backup={key: toml_text(value) for key, value in backup.items()},
    )
    seen = parse_settings(text, "x.toml")
    assert again(seen) == seen
