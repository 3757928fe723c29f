"""A real daemon with several relay processes: restarts, deaths, upgrades, and another number of them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.pair import CHECKOUT, Clients, Pair
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path, relay_workers=2) as running:
        yield running


def workers(pair: Pair) -> list[int]:
    found = pair.status()["daemon"]["relay_pids"]
    assert isinstance(found, list)
    return found


def resize(pair: Pair, before: int, after: int) -> None:
    text = pair.config.read_text()
    assert f"relay_workers = {before}\n" in text
    pair.config.write_text(text.replace(f"relay_workers = {before}\n", f"relay_workers = {after}\n"))
    assert pair.done("config", "reload") == f"service.relay_workers: {after} instead of {before}\n"


def await_counted(pair: Pair, connections: int) -> None:
    """Return when all are counted, those of processes that have ended too; some may have been given up unopened."""

    def are_counted(seen: dict[str, Any]) -> bool:
        total = seen["frontends"]["http"]["accepted_total"]
        return connections - 8 <= int(total["primary"]) + int(total["backup"]) <= connections + 8

    pair.until(are_counted)


def test_a_restart_fails_no_request_and_is_told_once(pair: Pair) -> None:
    assert len(workers(pair)) == 2
    assert pair.status()["daemon"]["relay_pid"] == workers(pair)[0]
    with Clients(pair.http, 4) as short, Clients(pair.http, 4, keep_alive=True) as lasting:
        pair.done("restart", "primary")
        pair.until_active("primary")
        short.await_answers(8)
        lasting.await_answers(8)
    assert (short.failures, lasting.failures) == ([], [])
    moves = [one["event"] for one in pair.events() if one["detail"].get("frontend") == "http"]
    assert moves == ["failover", "failback"]
    await_counted(pair, short.connections + lasting.connections)


def test_all_outlive_the_daemon_and_its_upgrade(pair: Pair) -> None:
    before = workers(pair)
    with Clients(pair.http, 4) as clients, Clients(pair.http, 4, keep_alive=True) as lasting:
        pair.done("daemon", "upgrade")
        assert workers(pair) == before
        pair.kill()
        clients.await_answers(20)
        pair.begin()
        pair.until_active("primary")
        clients.await_answers(20)
        lasting.await_answers(8)
    assert workers(pair) == before
    assert (clients.failures, lasting.failures) == ([], [])
    assert lasting.connections == 4


def test_one_that_is_killed_is_replaced_and_the_others_are_untouched(pair: Pair) -> None:
    first, second = workers(pair)
    with Clients(pair.http, 4) as clients:
        os.kill(second, signal.SIGKILL)
        pair.until(lambda seen: len(set(seen["daemon"]["relay_pids"]) - {second}) == 2)
        clients.await_answers(20)
    assert workers(pair)[0] == first
    assert len(clients.failures) <= 4, "only who was in it"


def test_another_number_holds_at_once_and_fails_no_request(pair: Pair) -> None:
    with Clients(pair.http, 4) as clients:
        resize(pair, 2, 3)
        assert len(workers(pair)) == 3
        clients.await_answers(40)
        resize(pair, 3, 1)
        pair.until(lambda seen: len(seen["daemon"]["relay_pids"]) == 1)
        clients.await_answers(40)
        resize(pair, 1, 2)
        clients.await_answers(40)
    assert clients.failures == []
    assert len(workers(pair)) == 2
    await_counted(pair, clients.connections)


def test_another_daemon_on_the_same_port_is_refused(pair: Pair, tmp_path: Path) -> None:
    home = tmp_path / "other"
    home.mkdir()
    other = Pair(home, relay_workers=2, ports=[*(number + 1 for number in pair.ports[:4]), *pair.ports[4:]])
    ended = subprocess.run(
        [*other.program, "-c", str(other.write_config())],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 1
    assert (
        f"cannot listen on 127.0.0.1:{pair.http} for frontend http: address already in use by process" in ended.stderr
    )
    assert len(workers(pair)) == 2
    with Clients(pair.http, 4) as clients:
        clients.await_answers(20)
    assert clients.failures == []


def test_the_end_of_the_daemon_is_the_end_of_all(pair: Pair) -> None:
    pids = workers(pair)
    pair.end()
    assert not any(map(psutil.pid_exists, pids))
    assert not (pair.home / "run" / "relay").exists()
