"""The daemon, its commands and a pair of real instances under clients that count what they lose."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from clojarsd.system.sockets import free_ports
from tests.support.pair import CHECKOUT, CLOJARSCTL, Clients, Pair, connection, get
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

JAVA = [
    "java",
    "-Xmx64m",
    "-XX:TieredStopAtLevel=1",
    str(CHECKOUT / "demo" / "App.java"),
    *("--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}"),
]
TEN_MB = 10_000_000


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path) as running:
        yield running


@pytest.fixture(params=["python", pytest.param("java", marks=pytest.mark.real)])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """The pair of stand-ins, and the pair of real JVMs."""
    if request.param == "python":
        running = Pair(tmp_path)
    elif shutil.which("java") is None:
        unavailable("there is no java on this machine")
    else:
        running = Pair(tmp_path, command=JAVA)
    with running:
        yield running


def test_restarts_of_one_after_the_other_lose_no_request(either: Pair) -> None:
    with Clients(either.http, 2) as clients:
        for role in ("backup", "primary"):
            before = either.pid(role)
            either.done("restart", role)
            assert either.pid(role) != before
            clients.await_answers(5)
    assert clients.failures == []
    assert set(clients.answered) == {"primary", "backup"}
    assert either.status()["frontends"]["http"]["active"] == "primary"


def test_a_killed_primary_costs_only_what_was_inside_it(either: Pair) -> None:
    """The backup answers next; the primary comes back, is checked, and takes over again after failback.

    A client can lose the request that was inside, and one more: as it dies, the kernel closes the accepted connections
    before the listener, which has the lower descriptor, and whoever connects in between waits in a queue that nobody
    will serve. Nobody outside can tell such a connection from one whose request is being carried out, so it is not
    repeated. What comes after the listener's end goes to the backup.
    """
    with Clients(either.http, 2) as clients:
        killed_at = time.monotonic()
        os.kill(either.pid("primary"), signal.SIGKILL)
        either.until_active("backup")
        either.until_active("primary")
        clients.await_answers(6)  # two of them may have been asked before
    assert all(failure.began <= killed_at + 0.25 for failure in clients.failures), clients.failures
    assert max(Counter(failure.client for failure in clients.failures).values(), default=0) <= 2, clients.failures
    names = [name for at, name in clients.answers if at > killed_at]
    assert "backup" in names
    assert names[-1] == "primary"
    seen = either.instance("primary")
    assert (seen["restarts"], seen["last_exit"]["signal"], seen["incarnation"]) == (1, 9, 2)
    happened = [event["event"] for event in either.events()]
    assert happened.index("failover") < happened.index("failback")


def test_restart_all_with_keep_alive_clients_loses_nothing(either: Pair) -> None:
    """200 clients, each with one connection, ask on through the restart of both; no connection is even closed."""
    with Clients(either.http, 200, keep_alive=True) as clients:
        either.done("restart", "all")
        clients.await_answers(200)
    assert clients.failures == []
    assert clients.connections == 200
    assert set(clients.answered) == {"primary", "backup"}


def test_restart_all_with_transfers_in_flight_loses_nothing(pair: Pair) -> None:
    """A slow upload and a slow download of 10 MB, both under way when the restart begins, end whole."""
    sent = os.urandom(TEN_MB)
    under_way = threading.Barrier(3)
    outcome: dict[str, str] = {}

    def upload() -> None:
        with connection(pair.http) as opened:
            opened.putrequest("POST", "/upload")
            opened.putheader("Content-Length", str(TEN_MB))
            opened.endheaders(sent[:1000])
            under_way.wait()
            released.wait()
            opened.send(sent[1000:])
            outcome["up"] = json.loads(opened.getresponse().read())["sha256"]

    def download() -> None:
        with connection(pair.http) as opened:
            opened.request("GET", f"/bytes?n={TEN_MB}")
            answer = opened.getresponse()
            first = answer.read(1000)
            under_way.wait()
            released.wait()
            outcome["down"] = hashlib.sha256(first + answer.read()).hexdigest()

    released = threading.Event()
    threads = [threading.Thread(target=transfer) for transfer in (upload, download)]
    for thread in threads:
        thread.start()
    under_way.wait()
    restart = subprocess.Popen([str(CLOJARSCTL), "--socket", str(pair.socket), "restart", "all"])
    pair.until(lambda seen: seen["instances"]["primary"]["state"] == "draining")
    released.set()
    for thread in threads:
        thread.join()
    assert restart.wait(PATIENCE) == 0
    expected = hashlib.sha256(bytes(i % 251 for i in range(251)) * (TEN_MB // 251 + 1))
    whole = (bytes(i % 251 for i in range(251)) * (TEN_MB // 251 + 1))[:TEN_MB]
    assert outcome == {"up": hashlib.sha256(sent).hexdigest(), "down": hashlib.sha256(whole).hexdigest()}, expected


def test_a_connection_is_held_while_both_are_stopped_and_then_answered(pair: Pair) -> None:
    pair.done("stop", "all")
    answer: list[bytes] = []

    def ask() -> None:
        with connection(pair.http) as opened:
            answer.append(get(opened, "/who"))

    client = threading.Thread(target=ask)
    client.start()
    pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] == 1)
    pair.done("start", "all")
    client.join()
    assert json.loads(answer[0])["name"] in ("primary", "backup")
    assert pair.status()["frontends"]["http"]["connections"]["held"] == 0
    happened = [event["event"] for event in pair.events()]
    assert "hold-started" in happened
    assert "hold-ended" in happened


def test_a_held_client_that_leaves_is_forgotten(pair: Pair) -> None:
    pair.done("stop", "all")
    with socket.create_connection(("127.0.0.1", pair.http)):
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] == 1)
    pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] == 0)


def test_a_restart_is_refused_when_the_other_could_not_take_over(pair: Pair) -> None:
    pair.done("stop", "backup")
    before = pair.pid("primary")
    refused = pair.ctl("restart", "primary")
    assert refused.returncode == 3
    stopped = pair.instance("backup")
    assert (
        f"cannot restart primary: backup could not take over, it is stopped (stopped by {stopped['goal_by']} at"
        f" {stopped['goal_at']}; `clojarsctl start backup` starts it); nothing was done; --force restarts all the same"
    ) in refused.stderr
    assert stopped["goal_by"] == pwd.getpwuid(os.geteuid()).pw_name
    assert pair.pid("primary") == before
    with Clients(pair.http, 2, keep_alive=True) as clients:
        pair.done("restart", "primary", "--force")
    assert pair.pid("primary") != before
    assert clients.failures == []


def test_a_drained_instance_runs_on_without_connections(pair: Pair) -> None:
    with Clients(pair.http, 2, keep_alive=True) as clients:
        pair.done("drain", "primary")
        seen = pair.status()
        assert seen["instances"]["primary"]["state"] == "draining"
        assert seen["frontends"]["http"]["connections"]["primary"] == 0
        assert seen["frontends"]["http"]["active"] == "backup"
        assert seen["instances"]["primary"]["reason"] == (
            "out of rotation by order; `clojarsctl undrain primary` brings it back"
        )
        pair.done("undrain", "primary")
        pair.until_active("primary")
    assert clients.failures == []


def test_a_silent_line_connection_is_closed_by_a_drain_and_a_waiting_one_is_not(pair: Pair) -> None:
    with (
        socket.create_connection(("127.0.0.1", pair.line), PATIENCE) as silent,
        connection(pair.http) as slow,
    ):
        silent.sendall(b"hello\n")
        assert silent.recv(100).endswith(b": hello\n")
        slow.request("GET", "/slow?ms=2000")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] == 1)
        pair.done("drain", "primary")
        assert silent.recv(100) == b""
        assert slow.getresponse().status == 200


def test_sigterm_ends_the_pair_and_leaves_nothing(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    with pair:
        made = [psutil.Process(pair.pid(role)) for role in ("primary", "backup")]
        assert pair.daemon is not None
        pair.daemon.send_signal(signal.SIGTERM)
        assert pair.daemon.wait(PATIENCE) == 0
        assert not any(process.is_running() for process in made)
        assert not pair.socket.exists()
    ended = [event for event in _past(tmp_path) if event[0] == "instance-exited"]
    assert [role for _, role in ended] == ["primary", "backup"], "the backup goes last"


def _past(home: Path) -> list[tuple[str, str]]:
    import sqlite3

    with sqlite3.connect(home / "state" / "events.sqlite") as store:
        found = store.execute("SELECT event, role FROM events ORDER BY id").fetchall()
    store.close()
    return found


TELLS_OF_GARBAGE = """
import gc
from clojarsd.__main__ import main
try:
    main()
finally:
    print("garbage is collected:", gc.isenabled())
"""


def test_garbage_is_collected_though_not_while_the_daemon_starts(tmp_path: Path) -> None:
    pair = Pair(tmp_path, program=(sys.executable, "-c", TELLS_OF_GARBAGE))
    with pair:
        pass
    assert "garbage is collected: True" in pair.daemon_log()


def test_a_second_daemon_is_refused(pair: Pair) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "clojarsd", "-c", str(pair.config)],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        timeout=PATIENCE,
        check=False,
    )
    assert second.returncode == 1
    assert pair.daemon is not None
    assert f"clojarsd already runs as process {pair.daemon.pid}" in second.stderr
    assert pair.answers()


def test_a_frontend_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.write_config()
    with socket.create_server(("127.0.0.1", pair.http)):
        refused = subprocess.run(
            [sys.executable, "-m", "clojarsd", "-c", str(pair.config)],
            capture_output=True,
            text=True,
            cwd=CHECKOUT,
            timeout=PATIENCE,
            check=False,
        )
    assert refused.returncode == 1
    name = psutil.Process().name()
    assert refused.stderr.splitlines()[-1] == (
        f"clojarsd: cannot listen on 127.0.0.1:{pair.http} for frontend http: address already in use"
        f" by process {os.getpid()} ({name})"
    )


@pytest.mark.parametrize("case", ["exits at once", "no command", "no directory", "no log", "taken port", "never ready"])
def test_an_instance_that_cannot_start_has_its_sentence(tmp_path: Path, case: str) -> None:
    """The daemon goes on, answers, and says why; the other instance serves."""
    ports = free_ports(6)
    directory, log = tmp_path / "absent", tmp_path / "log"
    broken = {
        "exits at once": ('command = ["/bin/sh", "-c", "exit 3"]', "exited with 3"),
        "no command": (
            'command = ["/absent/java"]',
            "cannot start backup: running its command: /absent/java: no such command",
        ),
        "no directory": (
            f'directory = "{directory}"',
            f"cannot start backup: entering its directory: {directory}: no such file or directory",
        ),
        "no log": ("", f"cannot start backup: opening its log: {log}/backup.log: is a directory"),
        "taken port": (
            "",
            f"cannot start backup: finding its ports free: port {ports[3]} (line): address already in use"
            f" by process {os.getpid()} ({psutil.Process().name()})",
        ),
        "never ready": (
            'command = ["/bin/sleep", "60"]\nstart_timeout = "1100ms"',
            f"was not ready in time (http: 127.0.0.1:{ports[2]} refused) and was ended (was killed by SIGTERM)",
        ),
    }
    extra, sentence = broken[case]
    if case == "no log":
        (log / "backup.log").mkdir(parents=True)
    app = 'restart_limit = { count = 2, within = "60s" }\n'
    pair = Pair(tmp_path, app=app, backup_extra=extra, ports=ports)
    with socket.socket() as holder:
        if case == "taken port":
            holder.bind(("127.0.0.1", ports[3]))
            holder.listen()
        try:
            pair.begin()
            seen = pair.until(lambda seen: seen["instances"]["backup"]["state"] == "failed")["instances"]["backup"]
            assert seen["reason"] == (
                f"{sentence}; given up after 2 restarts within 60 s; `clojarsctl start backup` tries again"
            )
            pair.until_active("primary")
            with connection(pair.http) as opened:
                assert json.loads(get(opened, "/who"))["name"] == "primary"
            assert pair.ctl("check").returncode == 1
            failed = pair.ctl("start", "backup")
            assert failed.returncode == 1
            assert sentence in failed.stderr
            assert "primary still serves" in failed.stderr
        finally:
            pair.end()
    lines = pair.daemon_log().count("role=backup")
    assert lines < 60, "a daemon that keeps trying must stay quiet"


def test_a_port_in_use_is_noticed_before_a_stranger_passes_our_checks(tmp_path: Path) -> None:
    """Somebody else answers /health on the instance's port: the instance must not become ready by that."""
    ports = free_ports(6)
    stranger = subprocess.Popen(
        [sys.executable, str(CHECKOUT / "demo" / "app.py"), "--port", str(ports[2]), "--line-port", "0"],
        stdout=subprocess.PIPE,
    )
    assert stranger.stdout is not None
    stranger.stdout.readline()
    pair = Pair(tmp_path, ports=ports)
    try:
        pair.begin()
        seen = pair.until(lambda seen: seen["instances"]["backup"]["state"] == "backoff")["instances"]["backup"]
        assert f"by process {stranger.pid} " in seen["reason"]
        stranger.terminate()
        stranger.wait()
        pair.until(lambda seen: seen["instances"]["backup"]["eligible"])
    finally:
        pair.end()
        stranger.kill()
        stranger.wait()
        stranger.stdout.close()


def test_an_unhealthy_primary_loses_its_traffic_and_gets_it_back(pair: Pair) -> None:
    with connection(pair.primary[0]) as direct:
        direct.request("POST", "/fault/unhealthy")
        direct.getresponse().read()
        pair.until_active("backup")
        seen = pair.instance("primary")
        assert (seen["state"], seen["health"], seen["eligible"]) == ("ready", "down", False)
        assert seen["reason"] == (f"its checks fail (http: 127.0.0.1:{pair.primary[0]} answered 503 (expected 200))")
        direct.request("POST", "/fault/healthy")
        direct.getresponse().read()
        pair.until_active("primary")


def test_a_frozen_primary_loses_its_traffic_until_it_moves_again(pair: Pair) -> None:
    """The kernel still completes connections to its port: that nobody accepts them is seen, then its checks fail."""
    frozen = pair.pid("primary")
    os.kill(frozen, signal.SIGSTOP)
    try:
        pair.until_active("backup")
        with connection(pair.http) as opened:
            assert json.loads(get(opened, "/who"))["name"] == "backup"
        seen = pair.until(lambda seen: "its checks fail" in (seen["instances"]["primary"]["reason"] or ""))
        assert re.search(r"has not accepted the connection|did not answer", seen["instances"]["primary"]["reason"])
        stalls = [event["message"] for event in pair.events() if event["event"] == "instance-stalled"]
        assert len(stalls) == 1
        assert re.match(r"primary is stalled: it has not accepted \d+ waiting connections? for \d\.\d s", stalls[0])
    finally:
        os.kill(frozen, signal.SIGCONT)
    pair.until_active("primary")
    assert pair.pid("primary") == frozen


def test_a_frozen_instance_is_killed_when_it_does_not_stop(tmp_path: Path) -> None:
    with Pair(tmp_path, backup_extra='stop_timeout = "300ms"') as pair:
        frozen = psutil.Process(pair.pid("backup"))
        frozen.suspend()
        pair.done("stop", "backup")
        assert not frozen.is_running()
        seen = pair.instance("backup")
        assert (seen["state"], seen["last_exit"]["signal"]) == ("stopped", signal.SIGKILL)


def test_clients_cannot_use_up_the_descriptors_of_the_daemon(tmp_path: Path) -> None:
    """With few descriptors and many silent clients the daemon is still in charge, and a crash is still answered."""
    limited = f"import resource, runpy; resource.setrlimit({resource.RLIMIT_NOFILE}, (200, 200));"
    program = [sys.executable, "-c", f"{limited} runpy.run_module('clojarsd', run_name='__main__')"]
    pair = Pair(tmp_path)
    try:
        pair.begin(program)
        pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
        with ExitStack() as clients:
            for _ in range(120):
                clients.enter_context(socket.create_connection(("127.0.0.1", pair.http), PATIENCE))
            pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] > 50)
            before = pair.pid("backup")
            os.kill(before, signal.SIGKILL)
            pair.until(lambda seen: seen["instances"]["backup"]["pid"] not in (None, before))
            seen = pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
            assert seen["frontends"]["http"]["active"] == "primary"
        assert "too many open files" not in pair.daemon_log()
        with connection(pair.http) as opened:
            assert json.loads(get(opened, "/who"))["name"] == "primary"
    finally:
        pair.end()


def test_a_client_that_keeps_its_end_open_does_not_hold_up_a_restart(pair: Pair) -> None:
    """The instance has said its end, and the client, a pool, will notice when it needs the connection again."""
    with socket.create_connection(("127.0.0.1", pair.line), PATIENCE) as pooled:
        pooled.sendall(b"quit\n")
        while pooled.recv(100):
            pass
        pair.done("restart", "primary")
    assert "drain_cut" not in pair.daemon_log()


def test_the_last_instance_answers_to_the_end_when_the_daemon_stops(tmp_path: Path) -> None:
    with Pair(tmp_path) as pair:
        pair.done("stop", "backup")
        with connection(pair.http) as opened:
            get(opened, "/who")
            opened.request("GET", "/slow?ms=700")
            pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] == 1)
            assert pair.daemon is not None
            pair.daemon.send_signal(signal.SIGTERM)
            pair.until_true(lambda: "daemon_stopping" in pair.daemon_log(), "the stop")
            assert opened.getresponse().read()
            assert json.loads(get(opened, "/who"))["name"] == "primary"


def test_an_order_goes_on_when_its_watcher_leaves(pair: Pair) -> None:
    before = pair.pid("backup")
    assert pair.ctl("restart", "backup", "--no-wait").returncode == 0
    pair.until(lambda seen: seen["instances"]["backup"]["eligible"] and seen["instances"]["backup"]["pid"] != before)


def test_orders_for_one_instance_do_not_wait_for_the_other(pair: Pair) -> None:
    """While a restart of the primary drains a slow request, the backup can be drained and undrained... and asked."""
    with connection(pair.http) as slow:
        slow.request("GET", "/slow?ms=3000")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] == 1)
        assert pair.ctl("restart", "primary", "--no-wait").returncode == 0
        pair.until(lambda seen: seen["instances"]["primary"]["state"] == "draining")
        pair.done("undrain", "backup")
        pair.done("start", "backup")
        refused = pair.ctl("restart", "backup")
        assert refused.returncode == 3
        assert pair.instance("primary")["state"] == "draining"
        assert slow.getresponse().status == 200
    pair.until_active("primary")
