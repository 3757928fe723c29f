"""Which keys the daemon says that it does not act on."""

from __future__ import annotations

import pytest

from clojarsd.core.settings import features_not_acted_on, parse_settings
from tests.core.test_settings_problems import document

HTTP = {"listen": '"127.0.0.1:8080"', "port": '"http"'}
DEPLOY = {"repository": '"/r"', "work_dir": '"/w"', "releases": '"/x"'}


def keys(**tables: dict[str, str]) -> list[str]:
    sentences = features_not_acted_on(parse_settings(document(**tables), "x.toml"))
    assert all(sentence.endswith(": accepted, not acted on in this version") for sentence in sentences)
    return [sentence.removesuffix(": accepted, not acted on in this version") for sentence in sentences]


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"app": {"pre_start": "[]", "log": '"file"', "limits": "{ nofile = 1 }", "nice": "1", "oom_score_adjust": "1"}},
        {"app": {"stop_signal": '["SIGQUIT", "1s", "SIGTERM"]', "reload_signal": '"SIGHUP"'}},
        *({"app": {key: '[["x"]]'}} for key in ("pre_start", "post_start", "pre_stop", "post_stop")),
        *({"app": {"log": log, "log_max_size": '"1MiB"', "log_keep": "5"}} for log in ('"journal"', '"inherit"')),
        {"stall": {"enabled": "true", "after": '"1s"'}, "hang": {"restart_after": '"never"', "thread_dump": "false"}},
        {"warmup": {"requests": '["/"]', "rounds": "3", "required": "true"}},
        *({"frontends__http": {**HTTP, "mode": mode}} for mode in ('"steer"', '"relay"')),
        {"frontends__http": {**HTTP, "mode": '"auto"', "max_connections": "5", "proxy_protocol": "true"}},
        {"checks": {"kind": '"http"', "port": '"http"'}},
    ],
)
def test_what_is_acted_on_or_asks_for_nothing_is_not_named(tables: dict[str, dict[str, str]]) -> None:
    assert keys(**tables) == []


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"checks": {"kind": '"nailgun"', "port": '"http"'}}, ['checks[0].kind "nailgun"']),
        ({"checks": {"kind": '"exec"', "command": '["x"]'}}, ['checks[0].kind "exec"']),
        ({"hang": {"restart_after": '"30s"', "thread_dump": "true"}}, ["hang.restart_after", "hang.thread_dump"]),
        (
            {"deploy": DEPLOY, "admin": {}, "hooks": {"on": '["oom"]', "exec": '["x"]'}},
            ["admin", "hooks"],
        ),
    ],
)
def test_what_is_not_acted_on_is_named(tables: dict[str, dict[str, str]], named: list[str]) -> None:
    assert keys(**tables) == named
