"""The daemon is killed in the middle of something, and the next one goes on with it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.app import command
from tests.support.pair import Pair, connection, same_instant

pytestmark = pytest.mark.slow

WAITING = 'start_timeout = "60s"\n'


@contextmanager
def begun(pair: Pair) -> Iterator[Pair]:
    """The pair, both of which can serve, until the block ends; then nothing is left."""
    with pair:
        yield pair


def state(pair: Pair, role: str, wanted: str) -> dict[str, Any]:
    found: dict[str, Any] = pair.until(lambda seen: seen["instances"][role]["state"] == wanted)["instances"][role]
    return found


def started(pair: Pair) -> list[str]:
    """The roles in the order of their launches."""
    return [event["role"] for event in pair.events() if event["event"] == "instance-started"]


def runs(saved: Path, role: str, pid: int) -> bool:
    """Whether it is on the disk that the process has executed its command: until then its launch is told anew."""
    process = json.loads(saved.read_text())["instances"][role]["process"]
    return process is not None and process["pid"] == pid and process["executable"] is not None


def app(*extra: str | Path) -> list[str]:
    return command("--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}", *extra)


def test_killed_during_a_drain_the_next_one_ends_the_restart(tmp_path: Path) -> None:
    """The slow request gets its answer, from the instance that had it, before that one is stopped."""
    with begun(Pair(tmp_path)) as pair, connection(pair.http) as slow:
        before = pair.pid("primary")
        slow.request("GET", "/slow?ms=2000")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] == 1)
        assert pair.ctl("restart", "primary", "--no-wait").returncode == 0
        state(pair, "primary", "draining")
        pair.kill()
        pair.begin()
        assert state(pair, "primary", "draining")["pid"] == before
        answer = slow.getresponse()
        assert (answer.status, answer.read().split()[:2]) == (200, [b"primary", str(before).encode()])
        pair.until(lambda seen: seen["instances"]["primary"]["incarnation"] == 2)
        pair.until_active("primary")
        *first, last = started(pair)
        assert (sorted(first), last) == (["backup", "primary"], "primary"), (
            "both at once, in either order; then it alone"
        )


def test_killed_during_a_stop_the_next_one_sends_the_next_signal(tmp_path: Path) -> None:
    """Also when that is due while nobody is there to send it."""
    pair = Pair(tmp_path, command=app("--ignore-term"), app="", backup_extra='stop_timeout = "1s"')
    pair.primary_extra = 'stop_timeout = "1s"'
    with begun(pair):
        deaf = psutil.Process(pair.pid("backup"))
        assert pair.ctl("stop", "backup", "--no-wait").returncode == 0
        state(pair, "backup", "stopping")
        pair.kill()
        assert deaf.is_running()
        pair.begin()
        seen = state(pair, "backup", "stopped")
        assert not deaf.is_running() or deaf.status() == psutil.STATUS_ZOMBIE
        assert (seen["goal"], seen["pid"]) == ("down", None)
        pair.done("start", "backup")


def test_killed_during_a_start_the_next_one_waits_for_the_same_process(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with begun(Pair(tmp_path, command=app("--wait-for", gate), app=WAITING)) as pair:
        gate.unlink()
        assert pair.ctl("restart", "backup", "--no-wait").returncode == 0
        pair.until(lambda seen: seen["instances"]["backup"]["incarnation"] == 2)
        before = state(pair, "backup", "starting")
        saved = tmp_path / "state" / "state.json"
        pair.until_true(lambda: runs(saved, "BACKUP", before["pid"]), "the command in the saved state")
        pair.kill()
        pair.begin()
        after = state(pair, "backup", "starting")
        assert (after["pid"], after["incarnation"]) == (before["pid"], 2)
        assert same_instant(after["next"]["at"], before["next"]["at"]), "the deadline is the one it had"
        gate.touch()
        assert state(pair, "backup", "ready")["pid"] == before["pid"]
        assert started(pair).count("backup") == 2


def test_killed_during_a_backoff_the_next_one_launches_when_it_is_due(tmp_path: Path) -> None:
    pair = Pair(tmp_path, backup_extra='restart_delay = "3s"\nrestart_max_delay = "3s"')
    with begun(pair):
        os.kill(pair.pid("backup"), signal.SIGKILL)
        before = state(pair, "backup", "backoff")
        saved = tmp_path / "state" / "state.json"
        pair.until_true(lambda: '"BACKOFF"' in saved.read_text(), "the backoff in the saved state")
        pair.kill()
        pair.begin()
        after = state(pair, "backup", "backoff")
        assert same_instant(after["next"]["at"], before["next"]["at"])
        seen = state(pair, "backup", "ready")
        assert (seen["restarts"], seen["incarnation"]) == (1, 2)


def test_an_instance_that_dies_while_no_daemon_is_there_is_started_by_the_next_one(tmp_path: Path) -> None:
    with begun(Pair(tmp_path)) as pair:
        dying = psutil.Process(pair.pid("primary"))
        pair.kill()
        dying.kill()
        pair.until_true(lambda: not dying.is_running() or dying.status() == psutil.STATUS_ZOMBIE, "its end")
        pair.begin()
        pair.until(lambda seen: seen["instances"]["primary"]["incarnation"] == 2)
        pair.until_active("primary")
        seen = pair.instance("primary")
        assert (seen["restarts"], seen["adopted"]) == (1, False)
        assert pair.instance("backup")["adopted"]


@pytest.mark.parametrize("hook", ["pre_start", "post_start", "pre_stop", "post_stop"])
def test_killed_during_a_hook_the_next_one_runs_it_again_and_goes_on(tmp_path: Path, hook: str) -> None:
    """What comes of the one under way is not known: it is ended, and the hook begins anew; never two at a time.

    That holds from when it is on the disk that the hook runs, some milliseconds after it began.
    """
    gate, runs = tmp_path / "gate", tmp_path / "runs"
    gate.touch()
    script = f"echo run >> {runs}; while ! [ -e {gate} ]; do sleep 0.02; done; echo end >> {runs}"
    pair = Pair(tmp_path, backup_extra=f'{hook} = [["/bin/sh", "-c", "{script}"]]')
    with begun(pair):
        runs.unlink(missing_ok=True)
        gate.unlink()
        assert pair.ctl("restart", "backup", "--no-wait").returncode == 0
        pair.until_true(runs.exists, "the hook")
        saved = tmp_path / "state" / "state.json"
        pair.until_true(lambda: f'"hook": "{hook.upper()}"' in saved.read_text(), "the hook in the saved state")
        pair.kill()
        pair.begin()
        pair.until_true(lambda: runs.read_text().count("run") == 2, "the second run")
        assert f"its {hook} runs" in pair.instance("backup")["reason"]
        assert pair.instance("primary")["eligible"]
        gate.touch()
        seen = pair.until(lambda seen: seen["instances"]["backup"]["eligible"])["instances"]["backup"]
        assert (seen["incarnation"], seen["goal"]) == (2, "up")
        assert runs.read_text().split() == ["run", "run", "end"]
        assert started(pair).count("backup") == 2


DOING: dict[str, Callable[[Pair], object]] = {
    "nothing": lambda pair: None,
    "restart all": lambda pair: pair.ctl("restart", "all", "--no-wait"),
    "stop all": lambda pair: pair.ctl("stop", "all", "--no-wait"),
}


@pytest.mark.parametrize("doing", DOING)
def test_whatever_was_under_way_the_next_one_can_end_the_pair(tmp_path: Path, doing: str) -> None:
    """And nothing is left then, though nothing was its own child."""
    pair = Pair(tmp_path)
    with begun(pair):
        DOING[doing](pair)
        pair.kill()
        pair.begin()
        assert pair.daemon is not None
        pair.daemon.send_signal(signal.SIGTERM)
        assert pair.daemon.wait(30) == 0
        assert pair.processes() == []
        assert not pair.socket.exists()


def test_a_state_that_cannot_be_read_costs_no_instance(tmp_path: Path) -> None:
    """What runs is found by its marks."""
    with begun(Pair(tmp_path)) as pair:
        before = {role: pair.pid(role) for role in ("primary", "backup")}
        pair.kill()
        (tmp_path / "state" / "state.json").write_text('{"format": 1, "ser')
        pair.begin()
        seen = pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
        assert {role: one["pid"] for role, one in seen["instances"].items()} == before
        assert "state_not_usable" in pair.daemon_log()
        assert sorted(started(pair)) == ["backup", "primary"]
        pair.done("restart", "all")
