"""A pair before its first release, or whose release was taken away: it rests, says so, and comes up by order."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.app import command as app_command
from tests.support.pair import Clients, Pair, connection, get

pytestmark = pytest.mark.slow

NO_RELEASE = "no release: clojarsctl deploy TAG"
APP = str(app_command()[3])
SCRIPT = f"import runpy, sys\nsys.argv[0] = {APP!r}\nrunpy.run_path({APP!r}, run_name='__main__')\n"
"""A release."""


def pair_of_releases(home: Path, **settings: str) -> Pair:
    """A pair that runs what `current` names, which nothing does yet."""
    releases = home / "releases"
    releases.mkdir()
    deploy = f"""
[deploy]
repository = "{home}/origin"
work_dir = "{home}/builds"
releases = "{releases}"
current = "current.py"
"""
    command = [sys.executable, "-S", "-E", "{release}", *app_command("--port", "{port.http}")[4:]]
    command += ["--line-port", "{port.line}", "--name", "{role}"]
    return Pair(home, command=command, backup_extra=deploy, **settings)  # type: ignore[arg-type]


def switch(pair: Pair, name: str) -> None:
    """Have a release of that name, and the link name it."""
    releases = pair.home / "releases"
    (releases / name).write_text(SCRIPT)
    (releases / "next").symlink_to(name)
    (releases / "next").rename(releases / "current.py")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    running = pair_of_releases(tmp_path).begin()
    try:
        yield running
    finally:
        running.end()


def rests(status: dict[str, object], reason: str = NO_RELEASE) -> bool:
    instances = status["instances"]
    assert isinstance(instances, dict)
    return all(
        (one["goal"], one["state"], one["reason"], one["next"]) == ("up", "stopped", reason, None)
        for one in instances.values()
    )


def test_a_pair_without_a_release_rests_and_says_what_to_do(pair: Pair) -> None:
    seen = pair.until(rests)
    assert [one["lacks"] for one in seen["instances"].values()] == [NO_RELEASE] * 2
    assert [(one["restarts"], one["incarnation"], one["pid"]) for one in seen["instances"].values()] == [
        (0, 1, None)
    ] * 2
    assert seen["release"] == {"current": None, "previous": None}
    assert NO_RELEASE in pair.done("status")
    check = pair.ctl("check")
    assert check.returncode == 2
    assert check.stdout == (
        f"demo CRITICAL: nothing can serve; primary is stopped: {NO_RELEASE}; backup is stopped: {NO_RELEASE}\n"
    )
    why = json.loads(pair.done("--json", "why"))
    assert why["todo"] == [NO_RELEASE] * 2
    late = pair.ctl("wait", "all", "--for", "ready", "--timeout", "1s")
    assert late.returncode == 1
    assert f"backup is stopped ({NO_RELEASE}); primary is stopped ({NO_RELEASE})" in late.stderr


def test_every_order_that_needs_a_process_is_refused_until_there_is_a_release(pair: Pair) -> None:
    pair.until(rests)
    for verb, roles in (("start", "backup"), ("restart", "backup"), ("start", "all"), ("restart", "all")):
        refused = pair.ctl(verb, roles)
        assert refused.returncode == 3
        assert f"cannot {verb} backup: {NO_RELEASE}; nothing was done" in refused.stderr
    (pair.home / "releases" / "current.py").symlink_to("1.py")
    refused = pair.ctl("start", "primary")
    missing = "the current release 1.py is missing: clojarsctl rollback, or clojarsctl deploy TAG"
    assert refused.returncode == 3
    assert f"cannot start primary: {missing}; nothing was done" in refused.stderr
    events = [one for one in pair.events() if one["event"] in ("instance-exited", "instance-failed")]
    assert [one["message"] for one in events] == [
        f"cannot start {role}: {NO_RELEASE}" for role in ("primary", "backup")
    ], "each is told once"


def test_clients_that_come_before_the_first_release_are_served_when_it_is_there(pair: Pair) -> None:
    pair.until(rests)
    answers: list[bytes] = []

    def ask() -> None:
        with connection(pair.http) as opened:
            answers.append(get(opened, "/who"))

    client = threading.Thread(target=ask)
    client.start()
    pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] == 1)
    switch(pair, "1.py")
    assert "backup is up" in pair.done("start", "backup")
    client.join()
    assert [json.loads(answer)["name"] for answer in answers] == ["backup"]
    assert pair.instance("primary")["state"] == "stopped", "which nobody has started"
    assert "primary is up" in pair.done("start", "primary")
    assert [one["release"] for one in pair.status()["instances"].values()] == ["1.py"] * 2


@pytest.mark.parametrize("ending", ["killed", "upgraded", "stopped"])
def test_the_next_daemon_finds_the_pair_at_rest_and_leaves_it_there(pair: Pair, ending: str) -> None:
    pair.until(rests)
    if ending == "killed":
        pair.until_true(lambda: "release" in (pair.home / "state" / "state.json").read_text(), "what is to be known")
        pair.kill()
        pair.begin()
    elif ending == "upgraded":
        pair.done("daemon", "upgrade")
    else:
        pair.end()
        pair.begin()
    seen = pair.until(rests)
    launches = 2 if ending == "stopped" else 1  # one that begins after a stop tries once
    assert [one["incarnation"] for one in seen["instances"].values()] == [launches] * 2
    assert [one["restarts"] for one in seen["instances"].values()] == [0, 0]
    switch(pair, "1.py")
    pair.done("start", "all")
    pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))


def test_a_crash_after_the_release_was_taken_away_comes_to_rest_while_the_other_serves(pair: Pair) -> None:
    pair.until(rests)
    switch(pair, "1.py")
    pair.done("start", "all")
    pair.until_active("primary")
    (pair.home / "releases" / "1.py").unlink()
    missing = "the current release 1.py is missing: clojarsctl rollback, or clojarsctl deploy TAG"
    with Clients(pair.http, keep_alive=False) as clients:
        refused = pair.ctl("restart", "primary")
        assert refused.returncode == 3
        assert f"cannot restart primary: {missing}; nothing was done" in refused.stderr
        clients.await_answers(5)
        assert clients.failures == [], "nothing that runs was ended"
    os.kill(pair.pid("primary"), 9)
    seen = pair.until(lambda seen: seen["instances"]["primary"]["reason"] == missing)
    assert (seen["instances"]["primary"]["state"], seen["instances"]["primary"]["goal"]) == ("stopped", "up")
    assert seen["instances"]["backup"]["eligible"]
    pair.until_active("backup")
    assert pair.ctl("check").returncode == 1
    messages = [one["message"] for one in pair.events() if one["role"] == "primary"]
    assert messages[-2:] == ["primary was killed by SIGKILL", f"cannot start primary: {missing}"]
    switch(pair, "2.py")
    assert "primary is up" in pair.done("start", "primary")
    assert pair.instance("primary")["release"] == "2.py"


def test_a_pre_start_that_needs_the_release_is_not_run_without_one(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    running = pair_of_releases(tmp_path, app=f'pre_start = [["/bin/cp", "{{release}}", "{ran}"]]').begin()
    try:
        running.until(rests)
        assert not ran.exists()
        switch(running, "1.py")
        running.done("start", "backup")
        assert ran.exists()
    finally:
        running.end()
