"""Every way in which two keys can disagree, word for word."""

from __future__ import annotations

import pytest

from clojarsd.core.addresses import overlap
from clojarsd.core.names import Address
from tests.core.test_settings_problems import document, problems

HTTP = {"listen": '"127.0.0.1:8080"', "port": '"http"'}
TAKEN = "(a port or host of its own)"
DEPLOY = {"repository": '"/r"', "work_dir": '"/w"', "releases": '"/x"'}
TCP = {"kind": '"tcp"', "port": '"http"'}


SOURCE = {"source": '"127.0.0.2"'}
ON_SOCKETS = {
    "instances__primary": {"ports": "{}", "sockets": '{ http = "/run/a.sock" }'},
    "instances__backup": {"ports": "{}", "sockets": '{ http = "/run/b.sock" }'},
}


def one(**tables: dict[str, str]) -> str:
    """The only problem of a configuration with these keys."""
    (problem,) = problems(document(**tables))
    return problem


@pytest.mark.parametrize(
    "tables",
    [
        {"frontends__http": {**HTTP, "listen": '["127.0.0.2:8001", "[::1]:8001", "127.0.0.1:0", "127.0.0.1:0"]'}},
        {"instances__backup": {"host": '"127.0.0.2"', "ports": "{ http = 8001 }"}},
        {"admin": {"listen": '"[::1]:8001"'}, "frontends__http": {**HTTP, "listen": '"localhost:8081"'}},
        {"app": {"restart_delay": '"30s"', "restart_max_delay": '"30s"'}, "stall": {"sample": '"300ms"'}},
        {"checks": {**TCP, "timeout": '"120s"', "rise": "120"}},
        {"checks": {"kind": '"exec"', "command": '["x", "{port.http}"]'}},
        {"frontends__http": {**HTTP, "mode": '"steer"', "quickack": "false", "max_connections": "0"}},
        {"frontends__http": {**HTTP, "quickack": "true", "max_connections": "5", "proxy_protocol": "true"}},
        {"warmup": {"requests": '["/"]'}},
        {"app": {"command": '["{release}", "{current}"]'}, "deploy": {**DEPLOY, "smoke": '["x", "{port.http}"]'}},
        {"deploy": {**DEPLOY, "build": '["make", "{state_dir}"]'}},
        {"hooks": {"on": '["*"]', "exec": '["x", "{log_dir}", "$HOME"]'}},
        {"instances__primary": {"name": '"primary"'}, "instances__backup": {"name": '"backup"'}},
        {**ON_SOCKETS, "frontends__http": HTTP, "checks": TCP, "app": {"command": '["x", "{socket.http}"]'}},
        {"instances__primary": {"ports": "{}", "sockets": '{ http = "/a" }'}, "frontends__http": {**HTTP, **SOURCE}},
        {"frontends__http": {**HTTP, **SOURCE}, "instances__backup": {"host": '"app2.example"'}},
        {"frontends__http": {**HTTP, "mode": '"steer"', "source": '""', "half_closed_timeout": '"never"'}},
    ],
)
def test_what_fits_is_accepted(tables: dict[str, dict[str, str]]) -> None:
    assert problems(document(**tables)) == []


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1:8001"),
        ("0.0.0.0", "0.0.0.0:8001"),
        ("[::]", "[::]:8001"),
        ("localhost", "localhost:8001"),
        ("LOCALHOST", "LOCALHOST:8001"),
        ("[0::0]", "[::]:8001"),
    ],
)
def test_frontend_on_the_port_of_an_instance(host: str, shown: str) -> None:
    assert one(frontends__http={**HTTP, "listen": f'"{host}:8001"'}) == (
        f'frontends.http.listen: "{host}:8001": {shown} is taken by instances.primary.ports.http, '
        f"127.0.0.1:8001 {TAKEN}"
    )


@pytest.mark.parametrize(
    ("host", "other", "shared"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("localhost", "::1", True),
        ("web.example", "WEB.example", True),
        ("web.example", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        ("::", "127.0.0.1", True),
        ("10.0.0.1", "0.0.0.0", True),
    ],
)
def test_hosts_that_share_an_address(host: str, other: str, shared: bool) -> None:
    assert overlap(Address(host, 80), Address(other, 80)) is shared
    assert overlap(Address(other, 80), Address(host, 80)) is shared
    assert not overlap(Address(host, 80), Address(other, 81))
    assert not overlap(Address(host, 0), Address(other, 0))


def test_ports_that_clash_elsewhere() -> None:
    assert one(instances__backup={"ports": "{ http = 8001 }"}) == (
        "instances.backup.ports.http: 8001: 127.0.0.1:8001 is taken by instances.primary.ports.http, "
        f"127.0.0.1:8001 {TAKEN}"
    )
    assert one(instances__backup={"ports": "{ http = 8002, x = 8002 }"}) == (
        "instances.backup.ports.x: 8002: 127.0.0.1:8002 is taken by instances.backup.ports.http, "
        f"127.0.0.1:8002 {TAKEN}"
    )
    assert one(frontends__http=HTTP, admin={"listen": '"0.0.0.0:8080"'}) == (
        f'admin.listen: "0.0.0.0:8080": 0.0.0.0:8080 is taken by frontends.http.listen, 127.0.0.1:8080 {TAKEN}'
    )
    assert one(instances__primary={"ports": "{ http = 9180 }"}, admin={}) == (
        'admin.listen: "127.0.0.1:9180": 127.0.0.1:9180 is taken by instances.primary.ports.http, '
        f"127.0.0.1:9180 {TAKEN}"
    )
    assert one(frontends__http={**HTTP, "listen": '["127.0.0.1:1", "127.0.0.1:1"]'}) == (
        'frontends.http.listen: ["127.0.0.1:1", "127.0.0.1:1"]: 127.0.0.1:1 is taken by frontends.http.listen, '
        f"127.0.0.1:1 {TAKEN}"
    )


def test_ports_that_no_instance_has_or_only_one() -> None:
    assert one(frontends__http={**HTTP, "port": '"htp"'}) == (
        'frontends.http.port: "htp": no instance has a port of that name (ports: http)'
    )
    primary = {"ports": "{ http = 8001, debug = 9001 }"}
    assert one(instances__primary=primary, checks={**TCP, "port": '"debug"'}) == (
        'checks[0].port: "debug": only primary has a port of that name (both must have it)'
    )


def test_warmup_asks_port_http() -> None:
    text = document(
        instances__primary={"ports": "{ web = 1 }"},
        instances__backup={"ports": "{ web = 2 }"},
        warmup={"requests": '["/"]'},
    )
    assert problems(text) == ['warmup.requests: ["/"]: are sent to port http, which both instances must have']


def test_names_that_mean_two_things() -> None:
    assert one(instances__primary={"name": '"backup"'}) == (
        'instances.primary.name: "backup": is the word for the other instance (any other name)'
    )
    assert one(instances__backup={"name": '"all"'}) == (
        'instances.backup.name: "all": is the word for both instances (any other name)'
    )
    assert one(service={"name": '"all"'}) == (
        'instances.primary.name: "all": is the word for both instances (any other name)'
    )
    assert one(instances__backup={"name": '"clojars"'}) == (
        'instances.backup.name: "clojars": is also the name of primary (two different names)'
    )


def test_missing_command_is_told_once() -> None:
    missing = 'app.command: missing (the argument list that starts an instance, such as ["java"])'
    assert one(app={"command": "[]"}) == missing
    assert one(app={"command": "[]"}, instances__primary={"command": '["x"]'}) == missing


def test_restart_delays_that_shrink() -> None:
    assert one(app={"restart_max_delay": '"500ms"'}) == (
        'app.restart_max_delay: "500ms": is shorter than app.restart_delay, 1s'
    )
    assert one(instances__backup={"restart_delay": '"1m"'}) == (
        'app.restart_max_delay: "30s": is shorter than instances.backup.restart_delay, 1m'
    )


def test_watchdog_that_nobody_could_feed() -> None:
    text = "needs notify = true, by which the instance is told where to send WATCHDOG=1"
    assert one(app={"watchdog": '"30s"'}) == f'app.watchdog: "30s": {text}'
    assert one(app={"watchdog": '"30s"', "notify": "true"}, instances__backup={"notify": "false"}) == (
        f'app.watchdog: "30s": {text}'
    )
    assert one(instances__backup={"watchdog": '"30s"'}) == f'instances.backup.watchdog: "30s": {text}'
    assert one(app={"watchdog": '"30s"', "notify": "1"}).startswith("app.notify: 1: ")
    assert problems(document(app={"watchdog": '"30s"', "notify": "true"})) == []
    assert problems(document(app={"watchdog": '"never"'})) == []


def test_checks_that_no_start_could_pass() -> None:
    assert one(checks={**TCP, "timeout": '"5m"'}) == ('checks[0].timeout: "5m": is longer than app.start_timeout, 2m')
    assert one(checks={**TCP, "rise": "121"}) == (
        "checks[0].rise: 121: passes take at least as long as app.start_timeout, 2m, so that no start could succeed"
    )
    assert one(checks={**TCP, "timeout": '"3s"'}, instances__backup={"start_timeout": '"2s"'}) == (
        'checks[0].timeout: "3s": is longer than instances.backup.start_timeout, 2s'
    )


def test_keys_that_do_not_fit_the_kind_of_a_check() -> None:
    assert one(checks={"kind": '"http"'}) == "checks[0].port: missing (kind http needs it)"
    assert one(checks={"kind": '"exec"'}) == "checks[0].command: missing (kind exec needs it)"
    assert one(checks={"kind": '"exec"', "command": "[]"}) == (
        "checks[0].command: []: is empty (kind exec needs an argument list)"
    )
    assert one(checks={**TCP, "path": '"/x"'}) == (
        'checks[0].path: "/x": means nothing to a check of kind tcp (kinds: http)'
    )
    assert one(checks={**TCP, "kind": '"nailgun"', "status": "[200]"}) == (
        "checks[0].status: [200]: means nothing to a check of kind nailgun (kinds: http)"
    )
    assert one(checks={**TCP, "command": '["x"]'}) == (
        'checks[0].command: ["x"]: means nothing to a check of kind tcp (kinds: exec)'
    )
    assert one(checks={"kind": '"exec"', "command": '["x"]', "port": '"http"'}) == (
        'checks[0].port: "http": means nothing to a check of kind exec (kinds: tcp, http, nailgun)'
    )


def test_stall_shorter_than_its_samples() -> None:
    assert one(stall={"sample": '"1s"'}) == 'stall.after: "300ms": is shorter than stall.sample, 1s'


@pytest.mark.parametrize(
    ("key", "value"),
    [("quickack", "true"), ("max_connections", "1"), ("max_per_instance", "1"), ("proxy_protocol", "true")],
)
def test_keys_of_the_relay_with_mode_steer(key: str, value: str) -> None:
    assert one(frontends__http={**HTTP, "mode": '"steer"', key: value}) == (
        f'frontends.http.{key}: {value}: needs the relay, and mode is "steer" (mode "auto" or "relay")'
    )


def test_socket_path_that_the_kernel_refuses() -> None:
    long = "/" + "x" * 107
    assert one(control={"socket": f'"{long}"'}).endswith("...: is too long for a Unix socket (at most 107 bytes)")
    assert one(service={"runtime_dir": f'"{long}"'}).startswith('control.socket: "/xxx')
    assert problems(document(control={"socket": f'"{long[:107]}"'})) == []


def test_unknown_placeholders() -> None:
    known = "(known: {log_dir}, {name}, {port.http}, {role}, {state_dir})"
    assert one(app={"command": '["x", "{relase}", "{relase}"]'}) == (
        f'app.command: ["x", "{{relase}}", "{{relase}}"]: unknown placeholder {{relase}} {known}'
    )
    assert one(app={"environment": '{ A = "{x}" }'}) == f'app.environment.A: "***": unknown placeholder {{x}} {known}'
    assert one(instances__backup={"environment": '{ A = "{port.x}" }'}) == (
        f'instances.backup.environment.A: "***": unknown placeholder {{port.x}} {known}'
    )
    assert one(app={"pre_stop": '[["a"], ["b", "{c}"]]'}) == (
        f'app.pre_stop[1]: ["b", "{{c}}"]: unknown placeholder {{c}} {known}'
    )
    assert one(checks={"kind": '"exec"', "command": '["{x}"]'}) == (
        f'checks[0].command: ["{{x}}"]: unknown placeholder {{x}} {known}'
    )
    assert one(hooks={"on": '["oom"]', "exec": '["{role}"]'}) == (
        'hooks[0].exec: ["{role}"]: unknown placeholder {role} (known: {log_dir}, {state_dir})'
    )
    assert one(deploy={**DEPLOY, "build": '["{release}"]'}) == (
        'deploy.build: ["{release}"]: unknown placeholder {release} (known: {current}, {log_dir}, {state_dir})'
    )
    for gate in ("before_switch", "after_backup", "before_promote", "after_deploy"):
        good = {**DEPLOY, gate: '[["{release}", "{current}", "{port.http}", "{role}"]]'}
        assert problems(document(deploy=good)) == []
        assert one(deploy={**DEPLOY, gate: '[["true"], ["{tag}"]]'}).startswith(
            f'deploy.{gate}[1]: ["{{tag}}"]: unknown placeholder {{tag}} (known: '
        )
    assert one(deploy={**DEPLOY, "environment": '{ A = "{release}" }'}) == (
        'deploy.environment.A: "***": unknown placeholder {release} (known: {log_dir}, {state_dir})'
    )
    assert one(deploy={**DEPLOY, "smoke": '["{port.x}"]'}) == (
        'deploy.smoke: ["{port.x}"]: unknown placeholder {port.x} '
        "(known: {current}, {log_dir}, {name}, {port.http}, {release}, {role}, {state_dir})"
    )


@pytest.mark.parametrize("name", ["release", "current"])
def test_releases_need_deploy(name: str) -> None:
    assert one(app={"command": f'["x", "{{{name}}}"]'}) == (
        f'app.command: ["x", "{{{name}}}"]: {{{name}}} needs a table [deploy], which says where releases are'
    )


def test_a_wrong_key_is_not_also_told_as_a_disagreement() -> None:
    assert one(app={"restart_delay": '"x"', "restart_max_delay": '"1ms"'}).startswith('app.restart_delay: "x"')
    assert one(deploy={**DEPLOY, "repository": "1"}, app={"command": '["{release}"]'}) == (
        "deploy.repository: 1: is not text (text stands in quotes)"
    )
    assert problems(
        document(instances__primary={"ports": "{ http = 0 }"}, frontends__http=HTTP, checks={**TCP, "port": '"http"'})
    ) == ["instances.primary.ports.http: 0: is not a port (1 to 65535)"]


def test_an_instance_listens_somewhere() -> None:
    assert one(instances__primary={"ports": "{}"}) == (
        "instances.primary.ports: {}: is empty (at least one port, such as { http = 8001 })"
    )


def test_a_name_is_a_port_or_a_socket() -> None:
    assert one(instances__primary={"sockets": '{ http = "/run/a.sock" }'}) == (
        'instances.primary.sockets.http: "/run/a.sock": is also the name of a port (each name once)'
    )


@pytest.mark.parametrize(
    ("tables", "path", "taker"),
    [
        ({}, "/run/a.sock", "instances.primary.sockets.http"),
        ({"control": {"socket": '"/run/control.sock"'}}, "/run/control.sock", "control.socket"),
    ],
)
def test_a_socket_is_taken_once(tables: dict[str, dict[str, str]], path: str, taker: str) -> None:
    backup = {"ports": "{}", "sockets": f'{{ http = "{path}" }}'}
    assert one(**{**ON_SOCKETS, "instances__backup": backup, **tables}) == (
        f'instances.backup.sockets.http: "{path}": is taken by {taker} (a path of its own)'
    )


def test_a_name_that_only_one_instance_has_among_both_kinds() -> None:
    assert one(frontends__http={**HTTP, "port": '"web"'}, instances__backup={"sockets": '{ web = "/a" }'}) == (
        'frontends.http.port: "web": only backup has a port of that name (both must have it)'
    )


def test_a_placeholder_of_a_socket_that_is_not_there() -> None:
    assert one(**ON_SOCKETS, app={"command": '["x", "{socket.web}"]'}) == (
        'app.command: ["x", "{socket.web}"]: unknown placeholder {socket.web}'
        " (known: {log_dir}, {name}, {role}, {socket.http}, {state_dir})"
    )


def test_a_source_for_unix_sockets() -> None:
    assert one(**ON_SOCKETS, frontends__http={**HTTP, **SOURCE}) == (
        'frontends.http.source: "127.0.0.2": means nothing to a Unix socket, which http is of both instances'
        " (leave it out)"
    )


@pytest.mark.parametrize(("source", "host"), [("::1", "127.0.0.1"), ("127.0.0.2", "::1")])
def test_a_source_of_another_kind_than_the_host(source: str, host: str) -> None:
    backup = {"host": f'"{host}"'}
    primary = {"host": '"app1.example"'}
    frontend = {**HTTP, "source": f'"{source}"'}
    assert one(frontends__http=frontend, instances__backup=backup, instances__primary=primary) == (
        f'frontends.http.source: "{source}": cannot connect to {host}, the host of backup (an address of the same kind)'
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("source", '"127.0.0.2"'), ("idle_timeout", '"1h"'), ("access_log", "true"), ("proxy_protocol", "true")],
)
def test_what_needs_the_relay(key: str, value: str) -> None:
    assert one(frontends__http={**HTTP, "mode": '"steer"', key: value}) == (
        f'frontends.http.{key}: {value}: needs the relay, and mode is "steer" (mode "auto" or "relay")'
    )
