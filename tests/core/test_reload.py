"""What another configuration changes, and when."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from clojarsd.core.names import Address, Role, UnixAddress
from clojarsd.core.reload import (
    DAEMON_RESTART,
    NEXT_START,
    NOW,
    TAKES_EFFECT,
    Change,
    Changes,
    checks_in_force,
    compare,
    settings_in_force,
    taken_until_a_start,
)
from clojarsd.core.saved import InForce
from clojarsd.core.settings import TABLES, InstanceSettings, Settings, parse_settings
from clojarsd.core.settings_types import LogTo
from tests.core.test_settings_json import RICH, SHIPPED
from tests.core.test_settings_problems import document

BOTH = (Role.PRIMARY, Role.BACKUP)
HTTP = {"listen": '"127.0.0.1:8080"', "port": '"http"'}
Keys = dict[str, dict[str, str]]


def read(**tables: dict[str, str]) -> Settings:
    return parse_settings(document(**tables), "x.toml")


def changes(old: Keys, new: Keys) -> Changes:
    return compare(read(**old), read(**new))


def one(old: Keys, new: Keys) -> Change:
    (change,) = changes(old, new).every
    return change


def test_every_key_of_every_table_is_classified() -> None:
    for table, model in TABLES.items():
        if table != "app":
            fields = InstanceSettings.model_fields if table == "instances" else model.model_fields
            assert set(TAKES_EFFECT[table]) == set(fields), table
    assert set(TAKES_EFFECT) == set(Settings.model_fields)


@pytest.mark.parametrize("text", [SHIPPED, RICH, document()])
def test_what_is_equal_has_not_changed(text: str) -> None:
    seen = compare(parse_settings(text, "x"), parse_settings("# with a comment\n" + text, "y"))
    assert (seen.every, seen.refusal, seen.sentences()) == ((), None, ("nothing has changed",))
    assert seen.awaiting(Role.PRIMARY) == ()


def test_every_difference_of_two_rich_configurations_is_told() -> None:
    """No kind of change is unexpected: tables and keys come and go both ways."""
    texts = [SHIPPED, RICH, document(), document(frontends__restart_limit=HTTP, hooks={"on": '["*"]', "exec": '["x"]'})]
    every = [parse_settings(text, "x") for text in texts]
    for old in every:
        for new in every:
            seen = compare(old, new)
            assert (old == new) is (seen.every == ())
            assert all(str(change) for change in seen.every)
            assert "s3cr3t" not in repr(seen)
            assert "me:pass" not in repr(seen)


def test_key_of_app_is_named_so_when_both_instances_get_it() -> None:
    assert one({}, {"app": {"nice": "1"}}) == Change("app.nice", "0", "1", NEXT_START, BOTH)
    assert one({}, {"instances__backup": {"nice": "1"}}) == Change(
        "instances.backup.nice", "0", "1", NEXT_START, (Role.BACKUP,)
    )
    assert [
        change.path for change in changes({}, {"app": {"nice": "1"}, "instances__primary": {"nice": "2"}}).every
    ] == [
        "instances.primary.nice",
        "instances.backup.nice",
    ]
    assert one({"instances__primary": {"nice": "5"}}, {"instances__primary": {"nice": "5"}, "app": {"nice": "1"}}) == (
        Change("instances.backup.nice", "0", "1", NEXT_START, (Role.BACKUP,))
    )


def test_names_within_keys_are_compared_one_by_one() -> None:
    old: Keys = {"app": {"limits": "{ core = 0, nofile = 1 }"}}
    new: Keys = {"app": {"limits": "{ nofile = 2, nproc = 3 }"}}
    assert [str(change) for change in changes(old, new).every] == [
        "app.limits.core: no longer there",
        "app.limits.nofile: 2 instead of 1",
        "app.limits.nproc: 3, which is new",
    ]
    ports: Keys = {"instances__backup": {"ports": "{ http = 9 }"}}
    assert one({}, ports) == Change("instances.backup.ports.http", "8002", "9", NEXT_START, (Role.BACKUP,))
    limit: Keys = {"app": {"restart_limit": "{ count = 3 }"}}
    assert str(one({}, limit)) == (
        'app.restart_limit: { count = 3, within = "2m" } instead of { count = 10, within = "2m" }'
    )


def test_values_of_variables_and_passwords_are_not_told() -> None:
    old: Keys = {"app": {"environment": '{ TOKEN = "old-secret", GONE = "gone-secret" }'}}
    new: Keys = {"app": {"environment": '{ TOKEN = "new-secret", CAME = "came-secret" }'}}
    seen = changes(old, new)
    assert seen.awaiting(Role.BACKUP) == ("app.environment.TOKEN", "app.environment.GONE", "app.environment.CAME")
    assert seen.every[0] == Change("app.environment.TOKEN", '"***"', '"***"', NEXT_START, BOTH)
    deploy = {"work_dir": '"/w"', "releases": '"/r"'}
    moved = changes(
        {"deploy": {**deploy, "repository": '"https://u:old-secret@h/r"'}},
        {"deploy": {**deploy, "repository": '"https://u:new-secret@h/r"'}},
    )
    assert moved.sentences() == ("deploy.repository: another value, which is not shown",)
    came = changes({}, {"deploy": {**deploy, "repository": '"https://u:new-secret@h/r"'}})
    assert came.sentences()[0].startswith('deploy: { repository = "https://***@h/r", work_dir = "/w", ')
    assert "secret" not in repr((seen, seen.sentences(), moved, came))


def test_tables_come_and_go_at_once() -> None:
    frontend: Keys = {"frontends__a": HTTP, "checks": {"kind": '"tcp"', "port": '"http"'}}
    check = {"kind": '"tcp"', "port": '"http"'}
    (came,) = changes({"checks": check}, frontend).every
    assert (came.path, came.old, came.takes_effect) == ("frontends.a", None, NOW)
    assert str(came).startswith('frontends.a: { listen = "127.0.0.1:8080", port = "http", mode = "auto", ')
    assert changes(frontend, {"checks": check}).sentences() == ("frontends.a: no longer there",)
    assert str(one({}, {"admin": {}})) == 'admin: { listen = "127.0.0.1:9180" }, which is new'
    two = parse_settings(document(checks=check) + '[[checks]]\nkind = "http"\nport = "http"\n', "x")
    assert compare(read(checks=check), two).sentences() == ("checks: 2 tables instead of 1 table",)
    hook = {"on": '["*"]', "exec": '["x"]'}
    assert changes({}, {"hooks": hook}).sentences() == ("hooks: 1 table instead of 0 tables",)
    assert changes({"hooks": hook}, {"hooks": {**hook, "timeout": '"1s"'}}).sentences() == (
        'hooks[0].timeout: "1s" instead of "10s"',
    )


def test_stop_timeout_is_told_once_though_the_last_step_waits_for_it() -> None:
    assert changes({}, {"app": {"stop_timeout": '"5s"'}}).sentences() == ('app.stop_timeout: "5s" instead of "30s"',)


@pytest.mark.parametrize(
    ("old", "new", "takes_effect"),
    [
        *(("never", "10s", NEXT_START), ("10s", "never", NOW), ("10s", "1m", NOW), ("1m", "10s", NEXT_START)),
    ],
)
def test_process_must_be_told_of_a_shorter_watchdog(old: str, new: str, takes_effect: object) -> None:
    keys: list[Keys] = [{"app": {"notify": "true", "watchdog": f'"{value}"'}} for value in (old, new)]
    assert one(*keys).takes_effect is takes_effect


def test_sentences_say_what_holds_now_and_which_instances_must_be_restarted() -> None:
    seen = changes(
        {"frontends__http": HTTP},
        {
            "frontends__http": {**HTTP, "hold": '"5s"'},
            "service": {"user": '"web"'},
            "control": {"operators": '["root"]'},
            "app": {"umask": '"077"'},
            "instances__backup": {"nice": "1", "command": '["other"]'},
        },
    )
    assert seen.refusal is None
    now = (
        'frontends.http.hold: "5s" instead of "30s"',
        'control.operators: ["root"] instead of ["root", "clojars"]',
    )
    assert seen.sentences() == (
        *now,
        "restart primary and backup to use it: service.user, app.umask",
        "restart backup to use it: instances.backup.command, instances.backup.nice",
    )
    assert seen.sentences(running=[Role.PRIMARY]) == (
        *now,
        "restart primary to use it: service.user, app.umask",
        "used at the next start of backup: service.user, app.umask, instances.backup.command, instances.backup.nice",
    )
    assert seen.awaiting(Role.PRIMARY) == ("service.user", "app.umask")


def test_what_a_running_daemon_cannot_take_over_is_refused_whole() -> None:
    assert changes({}, {"service": {"state_dir": '"/s"'}, "app": {"nice": "1"}}).refusal == (
        "cannot reload: service.state_dir needs a restart of the daemon; nothing was changed"
    )
    seen = changes({}, {"service": {"runtime_dir": '"/run/x"', "name": '"x"'}})
    assert seen.refusal == (
        "cannot reload: service.name, service.runtime_dir, control.socket need a restart of the daemon; "
        "nothing was changed"
    )
    assert {change.takes_effect for change in seen.every} == {DAEMON_RESTART, NOW}


LAUNCHED = InForce("127.0.0.1", {"http": 8001, "nailgun": 8101})


def primary(**keys: str) -> InstanceSettings:
    return read(
        instances__primary=keys, instances__backup={"ports": "{ http = 1, nailgun = 2, x = 3, web = 4 }"}
    ).instances[Role.PRIMARY]


def test_running_instance_keeps_its_address_until_its_next_start() -> None:
    now = primary(ports="{ http = 9001, nailgun = 9101 }", host='"127.0.0.2"', memory_max='"1GiB"', log='"journal"')
    seen = settings_in_force(now, LAUNCHED)
    assert seen.address("http") == Address("127.0.0.1", 8001)
    assert seen.ports == {"http": 8001, "nailgun": 8101}
    assert (seen.memory_max, seen.log, seen.notify) == (1024**3, LogTo.FILE, False)


def test_port_that_has_only_got_another_name_is_known_by_both() -> None:
    seen = settings_in_force(primary(ports="{ web = 8001, http = 9001, x = 9002 }"), LAUNCHED)
    assert seen.ports == {"http": 8001, "nailgun": 8101, "web": 8001}
    with pytest.raises(KeyError):
        seen.address("x")
    swapped = settings_in_force(primary(ports="{ http = 8101, nailgun = 8001 }"), LAUNCHED)
    assert swapped.ports == LAUNCHED.ports
    elsewhere = settings_in_force(primary(ports="{ web = 8001 }", host='"127.0.0.2"'), LAUNCHED)
    assert elsewhere.ports == LAUNCHED.ports


@pytest.mark.parametrize(
    ("now", "told", "seen"),
    [('"10s"', None, None), ('"never"', 10.0, None), ('"10s"', 60.0, 60.0), ('"1m"', 10.0, 60.0)],
)
def test_watchdog_is_never_shorter_than_the_process_was_told(now: str, told: float | None, seen: float | None) -> None:
    settings = primary(notify="true", watchdog=now, ports="{ http = 8001 }")
    assert settings_in_force(settings, replace(LAUNCHED, watchdog=told)).watchdog == seen


def test_checks_that_a_running_instance_can_be_asked() -> None:
    settings = parse_settings(
        """
[app]
command = ["serve"]
[instances.primary]
ports = { http = 8001, x = 9001 }
[instances.backup]
ports = { http = 8002, x = 9002 }
[[checks]]
kind = "http"
port = "http"
[[checks]]
kind = "tcp"
port = "x"
[[checks]]
kind = "exec"
command = ["check", "{role}", "{port.http}"]
[[checks]]
kind = "exec"
command = ["check", "{port.http}:{port.x}"]
""",
        "x",
    )
    now = settings.instances[Role.PRIMARY]
    first, second, third, fourth = settings.checks
    assert checks_in_force(settings.checks, now) == settings.checks
    running = settings_in_force(now, LAUNCHED)
    assert checks_in_force(settings.checks, running) == (first, third)
    assert [(check.kind.value, check.port) for check in checks_in_force((second, fourth), running)] == [
        ("tcp", "http"),
        ("tcp", "nailgun"),
    ]


def test_listening_where_an_instance_that_moves_away_still_listens_is_refused() -> None:
    launched = {Role.PRIMARY: LAUNCHED}
    moved = {"instances__primary": {"ports": "{ http = 9001 }"}}
    assert taken_until_a_start(read(**moved, frontends__http=HTTP), launched) is None
    assert taken_until_a_start(read(**moved, frontends__http={**HTTP, "listen": '"0.0.0.0:8001"'}), launched) == (
        "cannot reload: frontends.http.listen: 0.0.0.0:8001 is in use by primary until its next start; "
        "nothing was changed"
    )
    assert taken_until_a_start(read(**moved, admin={"listen": '"127.0.0.1:8101"'}), launched) == (
        "cannot reload: admin.listen: 127.0.0.1:8101 is in use by primary until its next start; nothing was changed"
    )
    assert taken_until_a_start(read(**moved, admin={"listen": '"127.0.0.1:8101"'}), {}) is None


def test_instances_that_change_places_are_refused() -> None:
    launched = {Role.PRIMARY: InForce("127.0.0.1", {"http": 8001}), Role.BACKUP: InForce("127.0.0.1", {"http": 8002})}

    def moved(primary: int, backup: int) -> Settings:
        ports = {
            f"instances__{role}": {"ports": f"{{ http = {port} }}"}
            for role, port in (("primary", primary), ("backup", backup))
        }
        return read(**ports)

    assert taken_until_a_start(moved(8002, 8001), launched) == (
        "cannot reload: instances.backup.ports.http: 127.0.0.1:8001 is in use by primary until its next start; "
        "nothing was changed"
    )
    assert taken_until_a_start(moved(8002, 8001), {Role.PRIMARY: launched[Role.PRIMARY]}) is None
    assert taken_until_a_start(moved(8002, 8003), launched) is None
    assert taken_until_a_start(moved(8003, 8001), launched) is None
    assert taken_until_a_start(moved(8001, 8002), launched) is None


def test_reference_says_when_each_key_takes_effect() -> None:
    reference = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
    rows = dict(
        re.findall(
            r"^\| (at once|at the next start of the instance|when clojarsd is started again) \| (.*) \|$",
            reference,
            re.M,
        )
    )
    named = {
        when: set(re.findall(r"`([a-z_.]+)`", row))
        for when, row in zip((NOW, NEXT_START, DAEMON_RESTART), rows.values(), strict=True)
    }
    for table, keys in TAKES_EFFECT.items():
        for key, when in keys.items():
            if table == "instances" and not key.startswith(("restart", "pre_", "post_")):
                assert key in named[when]
            elif table in ("service", "control"):
                assert f"{table}.{key}" in named[when]


def test_running_instance_keeps_its_sockets_until_its_next_start() -> None:
    launched = replace(LAUNCHED, sockets={"web": "/run/a"})
    seen = settings_in_force(primary(sockets='{ web = "/run/b", admin = "/run/a", http2 = "/run/c" }'), launched)
    assert seen.sockets == {"web": "/run/a", "admin": "/run/a"}
    assert (seen.backend("web"), seen.backend("admin")) == (UnixAddress("/run/a"), UnixAddress("/run/a"))
    assert "http2" not in seen.port_names


def test_a_port_that_becomes_a_socket_is_a_port_until_the_next_start() -> None:
    seen = settings_in_force(primary(ports="{ nailgun = 8101 }", sockets='{ http = "/run/a" }'), LAUNCHED)
    assert seen.backend("http") == Address("127.0.0.1", 8001)
    back = settings_in_force(primary(), replace(LAUNCHED, ports={"nailgun": 8101}, sockets={"http": "/run/a"}))
    assert back.backend("http") == UnixAddress("/run/a")


def test_instances_that_change_sockets_are_refused() -> None:
    launched = {role: InForce("127.0.0.1", {"nailgun": 1}, sockets={"web": f"/run/{role.value}"}) for role in BOTH}
    new = read(
        instances__primary={"sockets": '{ web = "/run/backup" }'},
        instances__backup={"sockets": '{ web = "/run/primary" }'},
    )
    assert taken_until_a_start(new, launched) == (
        "cannot reload: instances.backup.sockets.web: /run/primary is in use by primary until its next start; "
        "nothing was changed"
    )
