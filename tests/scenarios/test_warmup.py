"""Warm-ups by the daemon as a process: the application sees them, clients see their effect and never wait for one."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.app import COLD
from tests.support.pair import STAND_IN, Clients, Pair, connection, get
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow


def pair_with(home: Path, *options: str, app: str = "", **keys: object) -> Pair:
    """A pair of stand-ins with these options whose warm-up has these keys besides its requests."""
    given = {"requests": ["/who", "/bytes?n=10"], **keys}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in given.items())
    return Pair(home, command=[*STAND_IN, *options], app=f"{app}\n[warmup]\n{lines}\n")


def asked(path: Path, pid: int) -> Counter[str]:
    """How often each path was asked of a process."""
    lines = [line.rsplit(" ", 2) for line in path.read_text().splitlines()] if path.exists() else []
    return Counter(what for _, number, what in lines if int(number) == pid)


def outcomes(pair: Pair) -> list[str | None]:
    """What came of the warm-ups of both."""
    return [one["warmup"] and one["warmup"]["outcome"] for one in pair.status()["instances"].values()]


def test_the_application_is_asked_before_clients_come(tmp_path: Path) -> None:
    """And what came of it is in status, why, the history, and the narration of a restart."""
    log = tmp_path / "asked"
    with pair_with(tmp_path, "--asked", str(log), "--cold", "6", "--cold-ms", "30", rounds=12) as pair:
        told = pair.ctl("restart", "backup")
        assert told.returncode == 0, told.stderr
        seen = pair.instance("backup")
        warmup = seen["warmup"]
        assert asked(log, seen["pid"]) == {"/who": warmup["rounds"], "/bytes": warmup["rounds"]}
        assert warmup["outcome"] in ("settled", "rounds done")
        assert warmup["first_ms"] > 30 > warmup["latency_ms"]
        assert (warmup["of"], warmup["failure"]) == (12, None)
        assert "backup is warming up (at most 12 rounds)" in told.stderr
        assert f" in {warmup['rounds']} rounds" in told.stderr
        assert told.stderr.index("backup is warming up") < told.stderr.index("backup is warm: ")
        assert told.stderr.index("backup is warm: ") < told.stderr.index("backup is ready")
        assert "warm-up: " in pair.done("status")
        assert "its warm-up: " in pair.done("why", "backup")
        names = [event["event"] for event in pair.events() if event["role"] == "backup"]
        assert names[-2:] == ["warmup-finished", "instance-ready"]


def test_a_restart_shows_no_client_a_cold_answer(tmp_path: Path) -> None:
    with pair_with(tmp_path, "--cold", "6", "--cold-ms", "20", rounds=6) as pair:
        with Clients(pair.http, 1) as clients:  # at the start the first instance serves as cold as it is
            clients.await_answers(20)
        with Clients(pair.http, 1) as clients:
            pair.done("restart", "all")
            pair.until_active("primary")
            clients.await_answers(20)
        assert clients.failures == []
        assert set(clients.answered) == {"primary", "backup"}
        assert not any(name.endswith(COLD) for name in clients.answered)


def test_a_failing_warm_up_says_so_and_the_instance_serves(tmp_path: Path) -> None:
    failing = tmp_path / "failing"
    with pair_with(tmp_path, "--fail-while", str(failing), rounds=2) as pair:
        failing.touch()
        told = pair.ctl("restart", "backup")
        assert told.returncode == 0, told.stderr
        text = "backup was not warmed up: /bytes?n=10 answered 503"
        assert text in told.stderr
        warmup = pair.instance("backup")["warmup"]
        assert (warmup["outcome"], warmup["failure"]) == ("failed", "/bytes?n=10 answered 503")
        assert "warm-up failed: /bytes?n=10 answered 503" in pair.done("status")
        [event] = [event for event in pair.events() if event["event"] == "warmup-failed"]
        assert event["message"] == f"{text}; it serves all the same"
        assert "warmup_failed" in pair.daemon_log()


def test_a_failing_warm_up_that_is_required_is_a_failed_start(tmp_path: Path) -> None:
    """The instance is tried again and serves as soon as it becomes warm; the other one serves meanwhile."""
    failing = tmp_path / "failing"
    often = 'restart_max_delay = "300ms"'
    with pair_with(tmp_path, "--fail-while", str(failing), app=often, rounds=2, required=True) as pair:
        failing.touch()
        told = pair.ctl("restart", "backup")
        assert told.returncode == 1
        assert "was ended because its warm-up failed: /bytes?n=10 answered 503" in told.stderr
        assert "primary still serves" in told.stderr
        failing.unlink()
        seen = pair.until(lambda seen: seen["instances"]["backup"]["eligible"])
        assert seen["instances"]["backup"]["restarts"] >= 1


def is_answered(pair: Pair) -> bool:
    """Whether a client is; one that comes in the very moment of a death may have connected to who dies."""
    with contextlib.suppress(ConnectionError, http.client.HTTPException), connection(pair.http) as opened:
        return bool(get(opened, "/who"))
    return False


def test_nobody_waits_for_a_warm_up_when_both_have_died(tmp_path: Path) -> None:
    """Requests take half a second each, so a warm-up takes 20 s: the first that is up serves cold."""
    with pair_with(tmp_path, rounds=1000, requests=["/slow?ms=500"]) as pair:
        assert "cut short" in outcomes(pair)
        killed_at = time.monotonic()
        for role in ("primary", "backup"):
            os.kill(pair.pid(role), signal.SIGKILL)
        pair.until_true(lambda: is_answered(pair), "an answer")
        assert time.monotonic() - killed_at < PATIENCE / 4
        assert "cut short" in outcomes(pair)


def is_warming(seen: dict[str, Any]) -> bool:
    """Whether the backup is being warmed up, and a round of that is through."""
    backup = seen["instances"]["backup"]
    return bool(backup["state"] == "starting" and backup["warmup"] and backup["warmup"]["rounds"])


def test_a_warm_up_begins_again_under_the_next_daemon(tmp_path: Path) -> None:
    """After an upgrade and after a crash of the daemon, while what was ready is left alone; and a stop ends it."""
    log = tmp_path / "asked"
    with pair_with(tmp_path, "--asked", str(log), requests=["/slow?ms=1000"], rounds=1000, timeout="60s") as pair:
        os.kill(pair.pid("backup"), signal.SIGKILL)
        seen = pair.until(is_warming)
        pid, primary = seen["instances"]["backup"]["pid"], pair.pid("primary")
        warmed = pair.instance("primary")["warmup"]
        assert seen["instances"]["backup"]["reason"].startswith("warming up: round ")
        before = asked(log, primary)
        pair.done("daemon", "upgrade")
        pair.until(lambda seen: seen["daemon"]["generation"] == 2)
        count = asked(log, pid)["/slow"]
        seen = pair.until(is_warming)
        assert seen["instances"]["backup"]["state"] == "starting"
        pair.until_true(lambda: asked(log, pid)["/slow"] > count, "more requests")
        pair.kill()
        pair.begin()
        seen = pair.until(is_warming)
        assert (seen["instances"]["backup"]["pid"], seen["instances"]["backup"]["state"]) == (pid, "starting")
        assert asked(log, primary) == before
        assert pair.instance("primary")["warmup"] == warmed
        assert pair.ctl("stop", "backup").returncode == 0
