"""The daemon steers in the kernel: clients go straight to the instances, whatever becomes of those and of itself."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.test_pair import JAVA
from tests.support.namespaces import BPF_FS, apart
from tests.support.pair import Clients, Pair, connection, get
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

PINS = BPF_FS / "clojarsd" / "demo"


@contextlib.contextmanager
def steered(home: Path, kind: str = "python", **more: Any) -> Iterator[Pair]:
    """A pair whose http frontend is steered; `more`: as `Pair` takes it."""
    if kind == "java" and shutil.which("java") is None:
        unavailable("there is no java on this machine")
    pair = Pair(home, mode="auto", **more) if kind == "python" else Pair(home, mode="auto", command=JAVA, **more)
    with pair:
        seen = pair.status()["frontends"]["http"]
        assert (seen["mode"], seen["mode_reason"]) == ("steer", None), pair.daemon_log()
        yield pair


BOTH = pytest.mark.parametrize("kind", ["python", pytest.param("java", marks=pytest.mark.real)])


def peer_of(pair: Pair) -> set[int]:
    """The processes that have a connection on the frontend's port open, as the kernel tells it."""
    import psutil

    return {
        one.pid for one in psutil.net_connections("tcp")
        if one.laddr and one.laddr.port == pair.http and one.status == psutil.CONN_ESTABLISHED and one.pid
    } - {os.getpid()}  # fmt: skip


@BOTH
@apart
def test_a_connection_is_the_instances_own(tmp_path: Path, kind: str) -> None:
    with steered(tmp_path, kind) as pair, connection(pair.http) as opened:
        assert json.loads(get(opened, "/who"))["name"] == "primary"
        assert peer_of(pair) == {pair.pid("primary")}
        seen = pair.status()["frontends"]["http"]
        assert seen["accepted_total"]["primary"] >= 1
        assert seen["active"] == "primary"


@BOTH
@apart
def test_restarts_of_one_after_the_other_lose_no_request(tmp_path: Path, kind: str) -> None:
    with steered(tmp_path, kind) as pair:
        with Clients(pair.http, 2) as clients:
            for role in ("backup", "primary"):
                before = pair.pid(role)
                pair.done("restart", role)
                assert pair.pid(role) != before
                clients.await_answers(5)
        assert clients.failures == []
        assert set(clients.answered) == {"primary", "backup"}
        assert pair.status()["frontends"]["http"]["mode"] == "steer"


@BOTH
@apart
def test_a_killed_primary_costs_only_what_it_had_accepted(tmp_path: Path, kind: str) -> None:
    with steered(tmp_path, kind) as pair:
        with Clients(pair.http, 4) as clients:
            killed_at = time.monotonic()
            os.kill(pair.pid("primary"), signal.SIGKILL)
            pair.until_active("backup")
            pair.until_active("primary")
            clients.await_answers(8)
        assert all(failure.began <= killed_at + 0.25 for failure in clients.failures), clients.failures
        names = [name for at, name in clients.answers if at > killed_at]
        assert "backup" in names
        assert names[-1] == "primary"
        happened = [event["event"] for event in pair.events() if event["detail"].get("frontend") == "http"]
        assert happened.index("failover") < happened.index("failback")
        assert happened.count("failover") == 1, "told once, not by the relay process as well"


@BOTH
@apart
def test_the_daemon_may_be_killed_and_the_primary_after_it(tmp_path: Path, kind: str) -> None:
    """Nobody watches, and the kernel goes on; the next daemon takes the steering up as it is."""
    with steered(tmp_path, kind) as pair:
        primary = pair.pid("primary")
        with Clients(pair.http, 2) as clients:
            pair.kill()
            clients.await_answers(20)
            assert clients.failures == []
            killed_at = time.monotonic()
            os.kill(primary, signal.SIGKILL)
            clients.await_answers(20)
            pair.begin()
            pair.until_active("primary")
            clients.await_answers(10)
        assert all(failure.began <= killed_at + 0.25 for failure in clients.failures), clients.failures
        assert pair.status()["frontends"]["http"]["mode"] == "steer"


@apart
def test_the_daemon_is_killed_and_comes_again_without_a_failed_request(tmp_path: Path) -> None:
    with steered(tmp_path) as pair:
        before = pair.status()["frontends"]["http"]["accepted_total"]["primary"]
        with Clients(pair.http, 2) as clients:
            for _ in range(3):
                pair.kill()
                clients.await_answers(10)
                pair.begin()
                seen = pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
                assert seen["frontends"]["http"]["active"] == "primary", "it is not left to the relay meanwhile"
                clients.await_answers(10)
                pair.until_active("primary")
        assert clients.failures == []
        assert set(clients.answered) == {"primary"}
        assert pair.status()["frontends"]["http"]["accepted_total"]["primary"] >= before + 60
        with connection(pair.http) as opened:
            get(opened, "/who")
            assert peer_of(pair) == {pair.pid("primary")}, "it is steered, not relayed"


@apart
def test_daemon_and_relay_process_may_both_be_killed(tmp_path: Path) -> None:
    with steered(tmp_path) as pair:
        relay = pair.status()["daemon"]["relay_pid"]
        with Clients(pair.http, 2) as clients:
            pair.kill()
            os.kill(relay, signal.SIGKILL)
            clients.await_answers(20)
            pair.begin()
            pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
            clients.await_answers(20)
        assert clients.failures == []


@apart
def test_a_daemon_that_cannot_begin_leaves_the_kernel_as_the_last_one_has_left_it(tmp_path: Path) -> None:
    """Here since somebody else has an address that its configuration names now."""
    with steered(tmp_path) as pair, socket.create_server(("127.0.0.1", 0)) as stranger:
        primary, usual = pair.pid("primary"), pair.listen
        with Clients(pair.http, 2) as clients:
            pair.kill()
            pair.listen = (*usual, f"127.0.0.1:{stranger.getsockname()[1]}")
            program = [*pair.program, "-c", str(pair.write_config())]
            said = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, check=False)
            assert said.returncode == 1
            assert "address already in use" in said.stderr
            with connection(pair.http) as opened:
                get(opened, "/who")
                assert primary in peer_of(pair), "it is steered, not relayed"
            pair.listen = usual
            pair.begin()
            clients.await_answers(10)
        assert clients.failures == []


@apart
def test_an_upgrade_of_the_daemon_leaves_the_kernel_alone(tmp_path: Path) -> None:
    with steered(tmp_path) as pair:
        with Clients(pair.http, 2) as clients:
            pair.done("daemon", "upgrade")
            clients.await_answers(10)
        assert clients.failures == []
        assert pair.status()["frontends"]["http"]["mode"] == "steer"


@apart
def test_clients_wait_in_the_relay_process_while_nobody_can_serve(tmp_path: Path) -> None:
    with steered(tmp_path) as pair:
        pair.done("stop", "all")
        answers: list[str] = []

        def ask() -> None:
            with connection(pair.http) as opened:
                answers.append(json.loads(get(opened, "/who"))["name"])

        waiting = [threading.Thread(target=ask) for _ in range(5)]
        for thread in waiting:
            thread.start()
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] == 5)
        pair.done("start", "all")
        for thread in waiting:
            thread.join(PATIENCE)
        assert len(answers) == 5


@apart
def test_a_clean_stop_leaves_nothing_in_the_kernel(tmp_path: Path) -> None:
    with steered(tmp_path) as pair:
        assert PINS.exists()
        pair.done("daemon", "stop")
    assert list(BPF_FS.glob("clojarsd/*")) == []


@apart
def test_a_reload_while_the_daemon_ends_is_refused_and_nothing_is_left_in_the_kernel(tmp_path: Path) -> None:
    """It takes no clients any more, and would listen and steer for them again."""
    with steered(tmp_path) as pair:
        pair.done("stop", "backup")
        with connection(pair.http) as slow:
            slow.request("GET", "/slow?ms=3000")
            pair.until_true(lambda: peer_of(pair) == {pair.pid("primary")}, "the slow request")
            assert pair.daemon is not None
            pair.daemon.send_signal(signal.SIGTERM)
            pair.until(lambda seen: seen["instances"]["primary"]["state"] == "draining")
            pair.failback = "2s"
            pair.write_config()
            refused = pair.ctl("config", "reload")
            assert (refused.returncode, refused.stderr) == (
                3,
                "cannot reload: clojarsd is ending and takes no clients any more; nothing was changed\n",
            )
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", pair.http), PATIENCE)
            assert slow.getresponse().status == 200
        pair.daemon.wait(PATIENCE)
    assert list(BPF_FS.glob("clojarsd/*")) == []


@apart
def test_a_second_daemon_of_the_same_name_relays_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with steered(tmp_path) as first, Pair(tmp_path / "other", mode="auto") as second:
        assert first.daemon is not None
        seen = second.status()["frontends"]["http"]
        assert seen["mode"] == "relay"
        assert seen["mode_reason"] == f"process {first.daemon.pid} steers as demo already: it holds {PINS}"
        with connection(second.http) as opened:
            assert json.loads(get(opened, "/who"))["name"] == "primary"
        assert first.status()["frontends"]["http"]["mode"] == "steer"


@apart
def test_a_reload_moves_a_frontend_between_kernel_and_relay_under_clients(tmp_path: Path) -> None:
    with steered(tmp_path) as pair:
        with Clients(pair.http, 2) as clients:
            for mode in ("relay", "steer", "relay", "auto"):
                pair.mode = mode
                pair.write_config()
                pair.done("config", "reload")
                pair.until(lambda seen: seen["frontends"]["http"]["mode"] == ("relay" if mode == "relay" else "steer"))  # noqa: B023  # called at once
                clients.await_answers(10)
        assert clients.failures == []
        assert set(clients.answered) == {"primary"}


@apart
def test_a_drained_instance_gets_no_new_connections_and_may_finish_its_old_ones(tmp_path: Path) -> None:
    with steered(tmp_path) as pair, connection(pair.http) as slow:
        slow.request("GET", "/slow?ms=1500")
        pair.until_true(lambda: peer_of(pair) == {pair.pid("primary")}, "the slow request")
        with Clients(pair.http, 2) as clients:
            before = pair.pid("primary")
            pair.done("restart", "primary")
            assert pair.pid("primary") != before
        assert clients.failures == []
        answer = slow.getresponse()
        assert answer.status == 200
