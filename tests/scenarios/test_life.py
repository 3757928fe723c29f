"""The daemon's own life: other code in its place, signals, its end, and what the next one goes on with."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clojarsd.system.succession import HELD_BACK
from tests.support.app import blocked
from tests.support.pair import CHECKOUT, Clients, Pair, connection, get, same_instant
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

ME = pwd.getpwuid(os.geteuid()).pw_name
KEPT = ("pid", "incarnation", "since", "started_at", "restarts", "state", "health", "goal", "goal_by", "release")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path) as running:
        yield running


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of the package that a test may break."""
    copy = tmp_path / "code"
    shutil.copytree(CHECKOUT / "clojarsd", copy / "clojarsd", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def copied(tmp_path: Path, code: Path) -> Iterator[Pair]:
    """A pair whose daemon runs the copied code."""
    pair = Pair(tmp_path, environment={"PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"})
    try:
        pair.begin((sys.executable, "-P", "-m", "clojarsd"))
        pair.until(all_eligible)
        yield pair
    finally:
        pair.end()


def all_eligible(seen: dict[str, Any]) -> bool:
    return all(one["eligible"] for one in seen["instances"].values())


def kept(seen: dict[str, Any]) -> dict[str, Any]:
    """What of both instances no change of the daemon may touch."""
    return {role: {key: one[key] for key in KEPT} for role, one in seen["instances"].items()}


def daemon_pid(pair: Pair) -> int:
    assert pair.daemon is not None
    return pair.daemon.pid


def events_named(pair: Pair, name: str) -> list[dict[str, Any]]:
    return [event for event in pair.events() if event["event"] == name]


def past(pair: Pair) -> list[tuple[str, str | None, str | None, str]]:
    """The history of a daemon that has ended: event, role, by, message."""
    with sqlite3.connect(pair.home / "state" / "events.sqlite") as store:
        found = store.execute("SELECT event, role, by, message FROM events ORDER BY id").fetchall()
    store.close()
    return found


# Other code in its place.


def test_an_upgrade_touches_neither_instances_nor_connections(pair: Pair) -> None:
    """The same process goes on as other code; clients and operators notice nothing but the generation."""
    before = pair.status()
    with (
        Clients(pair.http, 4, keep_alive=True) as lasting,
        Clients(pair.http, 2) as short,
        socket.create_connection(("127.0.0.1", pair.line), PATIENCE) as line,
        connection(pair.http) as slow,
    ):
        line.sendall(b"one\n")
        first = line.recv(100)
        slow.request("GET", "/slow?ms=1500")
        said = pair.done("daemon", "upgrade")
        after = pair.status()
        line.sendall(b"two\n")
        second = line.recv(100)
        assert slow.getresponse().status == 200
        lasting.await_answers(8)
        short.await_answers(8)
    assert (lasting.failures, short.failures) == ([], [])
    assert lasting.connections == 4
    assert first.removesuffix(b"one\n") == second.removesuffix(b"two\n")
    assert kept(after) == kept(before)
    assert all_eligible(after), "nobody is out of rotation until checks have passed again"
    assert (before["daemon"]["generation"], after["daemon"]["generation"]) == (1, 2)
    assert after["daemon"]["pid"] == before["daemon"]["pid"] == daemon_pid(pair)
    assert after["daemon"]["relay_pid"] == before["daemon"]["relay_pid"]
    assert after["daemon"]["started_at"] != before["daemon"]["started_at"]
    version = before["daemon"]["version"]
    assert said == f"clojarsd {version} (process {daemon_pid(pair)}) was replaced by the same version\n"
    [upgraded] = events_named(pair, "daemon-upgraded")
    assert (upgraded["by"], upgraded["message"]) == (ME, f"clojarsd {version} took over from {version}")
    assert upgraded["detail"] == {"pid": daemon_pid(pair), "before": version, "generation": 2}
    assert len(events_named(pair, "instance-started")) == 2
    assert events_named(pair, "instance-exited") == []


def test_an_upgrade_is_told_step_by_step(pair: Pair) -> None:
    told = pair.ctl("daemon", "upgrade").stderr
    assert "the new code reads the configuration and the state, and touches nothing" in told
    version = pair.status()["daemon"]["version"]
    assert f"clojarsd {version} takes over from {version}" in told


def test_one_upgrade_after_the_other(pair: Pair) -> None:
    before = pair.status()
    with Clients(pair.http, 2) as clients:
        for _ in range(3):
            pair.done("daemon", "upgrade")
    after = pair.status()
    assert clients.failures == []
    assert kept(after) == kept(before)
    assert after["daemon"]["generation"] == 4
    pair.done("restart", "all")  # what was adopted over and over is still supervised


def test_the_instances_of_an_upgraded_daemon_are_still_its_own(pair: Pair) -> None:
    """An end is noticed and told with its exit code, as of any child."""
    pair.done("daemon", "upgrade")
    os.kill(pair.pid("backup"), signal.SIGKILL)
    pair.until(lambda seen: seen["instances"]["backup"]["restarts"] == 1 and all_eligible(seen))
    assert pair.instance("backup")["last_exit"]["signal"] == 9


def test_a_drained_and_a_stopped_instance_stay_so_over_an_upgrade(pair: Pair) -> None:
    pair.done("drain", "primary")
    before = pair.status()
    pair.done("daemon", "upgrade")
    after = pair.status()
    assert kept(after) == kept(before)
    assert after["instances"]["primary"]["reason"] == before["instances"]["primary"]["reason"]
    pair.done("undrain", "primary")
    pair.done("stop", "backup")
    before = pair.status()
    pair.done("daemon", "upgrade")
    assert kept(pair.status()) == kept(before)
    assert pair.instance("backup")["reason"] == before["instances"]["backup"]["reason"]


def test_what_an_instance_is_waiting_for_goes_on_over_an_upgrade(tmp_path: Path) -> None:
    """The next launch of one that has crashed is due when it was due."""
    with Pair(tmp_path, backup_extra='restart_delay = "15s"\nrestart_max_delay = "15s"') as pair:
        os.kill(pair.pid("backup"), signal.SIGKILL)
        before = pair.until(lambda seen: seen["instances"]["backup"]["state"] == "backoff")["instances"]["backup"]
        pair.done("daemon", "upgrade")
        after = pair.instance("backup")
        assert (after["state"], after["last_exit"]) == ("backoff", before["last_exit"])
        assert same_instant(after["next"]["at"], before["next"]["at"])
        seen = pair.until(lambda seen: seen["instances"]["backup"]["eligible"])["instances"]["backup"]
        assert (seen["incarnation"], seen["restarts"]) == (2, 1)


def test_a_signal_upgrades_too(pair: Pair) -> None:
    before = pair.status()
    os.kill(daemon_pid(pair), signal.SIGUSR2)
    after = pair.until(lambda seen: seen["daemon"]["generation"] == 2)
    assert kept(after) == kept(before)
    [upgraded] = events_named(pair, "daemon-upgraded")
    assert upgraded["by"] == "a signal"


def refused_upgrade(pair: Pair) -> str:
    """What clojarsctl says of an upgrade that must fail and change nothing."""
    before = pair.status()
    failed = pair.ctl("daemon", "upgrade")
    assert failed.returncode == 1, (failed.stdout, failed.stderr)
    after = pair.status()
    assert after["daemon"] == before["daemon"]
    assert kept(after) == kept(before)
    assert events_named(pair, "daemon-upgraded") == []
    assert "upgrade_failed" in pair.daemon_log()
    return failed.stderr.splitlines()[-1]


def test_a_configuration_that_cannot_be_used_keeps_the_old_code_in_charge(pair: Pair) -> None:
    good = pair.config.read_text()
    pair.config.write_text(good.replace('stop_timeout = "10s"', "stop_timeout = 5"))
    version = pair.status()["daemon"]["version"]
    sentence = refused_upgrade(pair)
    assert sentence.startswith(f"cannot upgrade: the new code cannot take over: {pair.config}: app.stop_timeout: 5: ")
    assert sentence.endswith(f"; clojarsd {version} stays in charge")
    pair.config.write_text(good)
    pair.done("daemon", "upgrade")


def test_code_that_cannot_be_loaded_keeps_the_old_code_in_charge(copied: Pair, code: Path) -> None:
    broken = code / "clojarsd" / "parts.py"
    good = broken.read_text()
    broken.write_text(good + "\nimport no_such_module\n")
    version = copied.status()["daemon"]["version"]
    assert refused_upgrade(copied) == (
        "cannot upgrade: the new code cannot take over: ModuleNotFoundError: No module named"
        f" 'no_such_module'; clojarsd {version} stays in charge"
    )
    broken.write_text(good)
    copied.done("daemon", "upgrade")
    assert copied.status()["daemon"]["generation"] == 2


def test_other_code_takes_over(copied: Pair, code: Path) -> None:
    """What answers after an upgrade is the code that lay there."""
    view = code / "clojarsd" / "core" / "view.py"
    view.write_text(view.read_text().replace('"service": self.service', '"service": "other code"'))
    assert copied.status()["service"] == "demo"
    copied.done("daemon", "upgrade")
    assert copied.status()["service"] == "other code"
    copied.done("restart", "backup")


def test_code_that_fails_after_its_rehearsal_leaves_the_pair_running(copied: Pair, code: Path) -> None:
    """The daemon is gone then, and says why; clients are served on, and good code takes the pair up again."""
    before = copied.status()
    daemon = code / "clojarsd" / "daemon.py"
    good = daemon.read_text()
    assert "    world = look_at_world(" in good
    daemon.write_text(
        good.replace("    world = look_at_world(", '    raise Failed("cannot begin")\n    world = look_at_world(', 1)
    )
    with Clients(copied.http, 2) as clients:
        failed = copied.ctl("daemon", "upgrade", "--timeout", "2s")
        assert failed.returncode == 4, (failed.stdout, failed.stderr)
        assert copied.daemon is not None
        assert copied.daemon.wait(PATIENCE) == 1
        assert copied.daemon_log().endswith("clojarsd: cannot begin\n")
        clients.await_answers(10)
        daemon.write_text(good)
        copied.begin((sys.executable, "-P", "-m", "clojarsd"))
        clients.await_answers(10)
    assert clients.failures == []
    assert kept(copied.status()) == kept(before)


def test_an_upgrade_waits_for_no_order_and_is_refused_while_one_is_under_way(pair: Pair) -> None:
    with connection(pair.http) as slow:
        slow.request("GET", "/slow?ms=3000")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] == 1)
        assert pair.ctl("restart", "primary", "--no-wait").returncode == 0
        refused = pair.ctl("daemon", "upgrade")
        assert refused.returncode == 3
        version = pair.status()["daemon"]["version"]
        assert refused.stderr.splitlines()[-1] == (
            f"cannot upgrade: an order is under way: restart primary (by {ME}); clojarsd {version} goes on"
        )
        assert slow.getresponse().status == 200
    pair.until_active("primary")
    pair.done("daemon", "upgrade")


# Signals and the end.


def test_sigterm_during_a_rehearsal_ends_the_pair(tmp_path: Path) -> None:
    with Pair(tmp_path) as pair:
        os.kill(daemon_pid(pair), signal.SIGUSR2)
        pair.until_true(lambda: "upgrade_begun" in pair.daemon_log(), "the upgrade")
        os.kill(daemon_pid(pair), signal.SIGTERM)
        assert pair.daemon is not None
        assert pair.daemon.wait(PATIENCE) == 0
        assert pair.processes() == []
        assert [role for event, role, *_ in past(pair) if event == "instance-exited"] == ["primary", "backup"]


@pytest.mark.parametrize("after_ms", [0, 15, 40, 80, 150, 250])
def test_sigterm_during_the_replacement_ends_the_pair(tmp_path: Path, after_ms: int) -> None:
    """Whenever it comes, the one that comes gets it; nothing is left running."""
    with Pair(tmp_path) as pair:
        os.kill(daemon_pid(pair), signal.SIGUSR2)
        pair.until_true(lambda: "upgrade_goes_on" in pair.daemon_log(), "the upgrade")
        signal.sigtimedwait([], after_ms / 1000)
        os.kill(daemon_pid(pair), signal.SIGTERM)
        assert pair.daemon is not None
        assert pair.daemon.wait(PATIENCE) == 0, pair.daemon_log()
        assert pair.processes() == []
        assert not pair.socket.exists()


def test_signals_wait_for_the_main_thread_and_for_nobody_else(pair: Pair) -> None:
    """Another thread that took one while the loop is closed for good would lose it, or end the process by it."""
    pair.done("restart", "backup")
    pair.done("logs", "backup")
    for _ in range(2):
        threads = {int(task.name): blocked(task) for task in Path(f"/proc/{daemon_pid(pair)}/task").iterdir()}
        assert HELD_BACK & threads.pop(daemon_pid(pair)) == set()
        assert len(threads) > 4
        assert all(held >= HELD_BACK for held in threads.values()), threads
        for role in ("primary", "backup"):
            assert blocked(Path(f"/proc/{pair.pid(role)}")) == set()
        pair.done("daemon", "upgrade")


def test_daemon_stop_ends_both_and_leaves_nothing(tmp_path: Path) -> None:
    with Pair(tmp_path) as pair:
        said = pair.done("daemon", "stop")
        assert said == "primary and backup are stopped; clojarsd ends\n"
        assert pair.daemon is not None
        assert pair.daemon.wait(PATIENCE) == 0
        assert pair.processes() == []
        assert not pair.socket.exists()
        assert sorted(path.name for path in (pair.home / "run").iterdir()) == ["control.sock.lock"]
        ended = [role for event, role, *_ in past(pair) if event == "instance-exited"]
        assert ended == ["primary", "backup"]
        assert any(event == "order" and by == ME and "stop clojarsd" in text for event, _, by, text in past(pair))


def test_a_pair_that_the_daemon_itself_has_stopped_comes_up_with_the_next_one(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    with pair:
        before = pair.status()
        pair.done("daemon", "stop")
        assert pair.daemon is not None
        pair.daemon.wait(PATIENCE)
        pair.begin()
        seen = pair.until(all_eligible)
        assert [one["incarnation"] for one in seen["instances"].values()] == [2, 2]
        assert all(one["goal_by"] is None for one in seen["instances"].values())
        assert kept(before) != kept(seen)


# What operators want.


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_stopped_by_order_stays_stopped_under_the_next_daemon(tmp_path: Path, end: signal.Signals) -> None:
    with Pair(tmp_path) as pair:
        pair.done("stop", "backup")
        before = pair.instance("backup")
        assert (before["goal"], before["goal_by"]) == ("down", ME)
        os.kill(daemon_pid(pair), end)
        assert pair.daemon is not None
        pair.daemon.wait(PATIENCE)
        pair.begin()
        pair.until(lambda seen: seen["instances"]["primary"]["eligible"])
        after = pair.instance("backup")
        assert (after["state"], after["goal"], after["goal_by"], after["goal_at"]) == (
            "stopped",
            "down",
            ME,
            before["goal_at"],
        )
        sentence = f"stopped by {ME} at {before['goal_at']}; `clojarsctl start backup` starts it"
        assert after["reason"] == sentence
        assert sentence in " ".join(pair.done("status").split())
        pair.done("start", "backup")
        started = pair.instance("backup")
        assert (started["goal"], started["goal_by"], started["eligible"]) == ("up", ME, True)
        pair.kill()
        pair.begin()
        assert pair.instance("backup")["goal"] == "up"
        assert pair.instance("backup")["eligible"]


def test_an_order_that_is_answered_is_not_forgotten(pair: Pair) -> None:
    """The daemon is killed right after it has said that the stop was taken."""
    assert pair.ctl("stop", "backup", "--no-wait").returncode == 0
    pair.kill()
    pair.begin()
    seen = pair.until(lambda seen: seen["instances"]["backup"]["state"] == "stopped")["instances"]["backup"]
    assert (seen["goal"], seen["goal_by"]) == ("down", ME)


def test_the_history_goes_on_over_daemons(pair: Pair) -> None:
    pair.kill()
    pair.begin()
    pair.until(all_eligible)
    names = [event["event"] for event in pair.events()]
    assert names.count("daemon-started") == 2
    assert names.count("daemon-adopted") == 2
    assert names.count("instance-started") == 2


def test_clients_notice_neither_the_death_of_the_daemon_nor_the_next_one(pair: Pair) -> None:
    before = pair.status()
    with Clients(pair.http, 4, keep_alive=True) as lasting, Clients(pair.http, 2) as short:
        pair.kill()
        short.await_answers(10)
        lasting.await_answers(10)
        pair.begin()
        short.await_answers(10)
        after = pair.status()
        lasting.await_answers(10)
    assert (lasting.failures, short.failures) == ([], [])
    assert lasting.connections == 4
    assert all_eligible(after)
    assert kept(after) == kept(before)
    with connection(pair.http) as opened:
        assert json.loads(get(opened, "/who"))["name"] == "primary"
