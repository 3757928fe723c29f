"""The benches of the data path measure what they say, with the real programs. How fast that is, is not asked here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bench import failover, goals
from bench.native_programs import compiled, java_command, load
from bench.proxies import STREAM_MODULE, await_listening
from bench.role_app import answer, counts
from bench.targets import other
from bench.unique_load import Asked, loading, who
from clojarsd.system.sockets import free_ports
from tests.support.pair import connection, get
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE
from tests.test_bench import DEADLINE_S, TINY, run, until

ROOT = Path(__file__).parent.parent
PROGRAMS = ("haproxy", "nginx", "sshd", "ng-nailgun", "javac")


@pytest.fixture(scope="module")
def native() -> None:
    """The programs in C can be made here."""
    try:
        for name in ("load", "backend"):
            compiled(name)
    except SystemExit as reason:
        unavailable(str(reason))


@pytest.fixture
def programs() -> None:
    """What the benches compare with, and what uploads go through, is installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if not any((Path(part) / name).exists() for part in path.split(":"))]
    if missing or not STREAM_MODULE.exists():
        unavailable(f"{', '.join(missing) or 'the stream module of nginx'} is not here; `tools/setup test` gets it")


@pytest.mark.slow
@pytest.mark.real
def test_every_proxy_is_measured_and_the_comparison_says_what_was_reached(
    tmp_path: Path, native: None, programs: None
) -> None:
    words = [*TINY, "--targets", "relay,haproxy,nginx,session"]
    picture, shown = run("bench", tmp_path / "bench.json", *words)
    assert picture["targets"] == ["direct", "relay", "haproxy", "nginx", "session"]
    for name, figure in picture["figures"].items():
        assert set(figure["medians"]) >= set(picture["targets"][1:]), name
    compared = picture["comparisons"]["relay_against_haproxy"]
    assert set(compared) == {goal.text for goal in goals.GOALS}
    assert "relay against haproxy" in shown
    assert ("reached" in shown) or ("NOT REACHED" in shown)


@pytest.mark.slow
@pytest.mark.real
def test_steering_is_measured_where_the_kernel_lets_this_user_steer(tmp_path: Path, native: None) -> None:
    command = [sys.executable, "-m", "bench", *TINY, "--targets", "steer", "--json", str(tmp_path / "bench.json")]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if "cannot measure mode steer" in shown.stderr:
        unavailable(shown.stderr.strip().splitlines()[-1])
    assert shown.returncode == 0, shown.stderr
    assert "steer against direct" in shown.stdout
    compared = json.loads((tmp_path / "bench.json").read_text())["comparisons"]["steer_against_direct"]
    assert set(compared) == {goal.text for goal in goals.GOALS}


@pytest.mark.slow
@pytest.mark.real
def test_another_proxy_takes_part_by_its_port_and_process(tmp_path: Path, native: None) -> None:
    backend_port = free_ports(1)[0]
    command = [sys.executable, "-m", "bench.relay_process", str(backend_port)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as proxy:
        assert proxy.stdout is not None
        port = int(proxy.stdout.readline())
        words = [f"mine={port}:{proxy.pid}", *TINY, "--targets", "direct", "--backend-port", str(backend_port)]
        picture, shown = run("bench", tmp_path / "bench.json", *words)
        proxy.kill()
    assert picture["targets"] == ["direct", "mine"]
    assert picture["figures"]["cpu_per_1000_requests"]["medians"]["mine"] > 0
    assert "mine" in shown


@pytest.mark.parametrize("words", ["relay=1:1", "=1:1", "mine", "mine=1", "mine=1:x"])
def test_a_proxy_that_cannot_be_meant_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        other(words)


def test_a_goal_is_reached_by_the_median_of_the_ratios_within_a_round() -> None:
    seen = {
        "new_connections": {"relay": [90.0, 300.0, 55.0], "haproxy": [100.0, 200.0, 50.0]},
        "latency_p50": {"relay": [11.0, 11.0, 11.0], "haproxy": [10.0, 10.0, 10.0]},
        "cpu_per_gb_download": {"steer": [0.0, 0.004, 0.2], "direct": []},
    }
    relay = goals.compare(seen, "relay", "haproxy")
    assert (relay["connections/s"].value, relay["connections/s"].reached) == (1.1, True)
    assert not relay["latency p50"].reached
    assert "upload GB/s" not in relay
    steer = goals.compare(seen, "steer", "direct")
    assert (steer["CPU per GB, download"].value, steer["CPU per GB, download"].reached) == (0.004, True)
    shown = goals.table({("steer", "direct"): steer, ("relay", "haproxy"): relay})
    assert "1.10   >= 1.00 reached" in shown
    assert "NOT REACHED" in shown


@pytest.mark.slow
def test_the_load_generator_counts_what_fails(native: None) -> None:
    (port,) = free_ports(1)
    with subprocess.Popen([compiled("backend"), str(port)]) as server:
        await_listening(port, server)
        seen = load(port, "new", 4, 60, 100)
        assert (seen.done, seen.failed) == (100, 0)
        assert 0 < seen.p50 <= seen.p99
        for kind in ("download", "upload"):
            seen = load(port, kind, 1_000_001)
            assert (seen.done, seen.failed) == (1_000_001, 0)
        server.kill()
        server.wait()
        with pytest.raises(SystemExit, match="connect"):
            load(port, "new", 1, 1, 0)


def test_an_outcome_tells_of_the_longest_silence_and_of_the_first_answer_of_the_backup() -> None:
    asked = [
        Asked(0, 9.0, 9.1, "primary", None),
        Asked(1, 9.9, 10.2, None, "Connection reset by peer"),
        Asked(2, 10.0, 10.5, "backup", None),
        Asked(3, 10.6, 10.7, "backup", None),
    ]
    seen = failover.outcome(asked, 10.0, 1)
    assert (seen.asked, seen.failed, seen.inside) == (4, 1, 1)
    assert seen.outage == pytest.approx(1400)
    assert seen.first == pytest.approx(500)
    assert seen.slowest == pytest.approx(500)
    assert seen.errors == {"Connection reset by peer": 1}


def test_only_the_whole_answer_to_the_own_number_counts() -> None:
    whole = answer("backup", "17")
    assert who(whole, 17) == "backup"
    assert who(whole, 18) is None
    assert who(whole[:-1], 17) is None
    assert who(whole.replace(b"200", b"503"), 17) is None


@pytest.mark.slow
def test_the_unique_load_tells_of_every_request(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    count = tmp_path / "count"
    with role_app(port, "--count", str(count), "--delay", "0.05") as app, loading(port, 200, PATIENCE) as clients:
        until(lambda: counts(count)[1] > 20)
        inside = failover.killed(app.pid, count)
        app.wait()
        until(lambda: app.returncode is not None)
        over = clients.finish()
    assert inside is not None
    assert inside > 0
    assert {one.number for one in over} == set(range(len(over)))
    good = [one for one in over if one.role == "primary"]
    assert len(good) > 20
    cut = [one for one in over if one.error not in (None, "Connection refused")]
    assert len(cut) >= inside


@pytest.mark.slow
def test_a_request_may_come_byte_by_byte() -> None:
    (port,) = free_ports(1)
    with role_app(port) as app, connection(port) as opened:
        opened.connect()
        for byte in b"GET /17 HTTP/1.1\r\n\r\n":
            opened.sock.sendall(bytes([byte]))
        assert b"".join(iter(lambda: opened.sock.recv(4096), b"")) == answer("primary", "17")
        app.kill()


@pytest.mark.slow
@pytest.mark.real
def test_failover_is_measured_of_all_in_front_of_the_same_pair(tmp_path: Path, programs: None) -> None:
    words = ("--rounds", "1", "--rate", "100", "--targets", "relay", "haproxy", "--events", "kill -9 primary")
    picture, shown = run("bench.failover", tmp_path / "failover.json", *words)
    for name in ("relay", "haproxy"):
        (seen,) = picture["events"]["kill -9 primary"][name]
        assert seen["asked"] > 100
        assert seen["failed"] <= seen["inside"] + 5
        assert name in shown
    (seen,) = picture["events"]["kill -9 primary"]["relay"]
    assert seen["first"] > 0


@pytest.mark.slow
def test_clients_do_not_notice_that_the_daemon_is_killed(tmp_path: Path) -> None:
    words = ("--daemon", "--modes", "relay", "--rounds", "1", "--rate", "100")
    picture, _ = run("bench.failover", tmp_path / "failover.json", *words)
    (seen,) = picture["events"]["kill -9 daemon"]["relay"]
    assert seen["failed"] == 0
    (seen,) = picture["events"]["kill -9 primary, no daemon"]["relay"]
    assert seen["first"] is not None


@pytest.mark.slow
def test_the_soak_takes_figures_of_all_processes_and_loses_no_connection(tmp_path: Path, native: None) -> None:
    picture, shown = run("bench.soak", tmp_path / "soak.json", "--connections", "2000", "--modes", "relay")
    life = picture["modes"]["relay"]
    assert life["failed"] == 0
    assert life["accepted_total"]["primary"] == 2000
    for moment in ("begin", "middle", "end"):
        assert set(life["moments"][moment]) == {"daemon", "relay"}
    assert "relay descriptors" in shown


@pytest.mark.slow
def test_slow_clients_are_answered_when_they_have_said_all(tmp_path: Path) -> None:
    words = ("--clients", "50", "--seconds", "1", "--every", "0.5")
    picture, _ = run("bench.slow_clients", tmp_path / "slow.json", *words)
    assert picture["answered_in_the_end"] == 50
    assert picture["beside"]["failed"] == 0


@pytest.mark.slow
@pytest.mark.real
def test_real_uploads_come_whole_by_every_way(tmp_path: Path, programs: None) -> None:
    words = ("--rounds", "1", "--size", "2500")
    picture, shown = run("bench.scp", tmp_path / "scp.json", *words)
    assert set(picture["ways"]) == {"direct", "relay", "haproxy"}
    for one in picture["ways"].values():
        assert one["bytes"] == 2500
        assert one["seconds"][0] > 0
    assert "scaled to 10 MB" in shown


@pytest.mark.slow
@pytest.mark.real
def test_a_jvm_answers_as_the_stand_in_does(programs: None) -> None:
    (port,) = free_ports(1)
    with subprocess.Popen(java_command("--http", str(port), "--role", "backup", "--delay", "1")) as jvm:
        try:
            await_listening(port, jvm)
            with connection(port) as opened:
                assert get(opened, "/17") == b"backup 17\n"
        finally:
            jvm.kill()


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_bench_that_is_ended_leaves_no_process_behind(
    number: signal.Signals, tmp_path: Path, native: None, programs: None
) -> None:
    words = [*TINY, "--rounds", "10000", "--targets", "relay,haproxy,nginx", "--json", str(tmp_path / "bench.json")]
    command = [sys.executable, "-m", "bench", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as bench:
        assert bench.stderr is not None
        for line in bench.stderr:
            if "new_connections: nginx" in line:
                break
        made = psutil.Process(bench.pid).children(recursive=True)
        assert len(made) >= 5
        bench.send_signal(number)
        bench.stderr.read()
    _, alive = psutil.wait_procs(made, PATIENCE)
    assert not alive


@contextmanager
def role_app(port: int, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The stand-in as a process that listens. The block ends with it gone."""
    command = [sys.executable, "-S", str(ROOT / "bench" / "role_app.py"), "--port", str(port), "--role", "primary"]
    with subprocess.Popen([*command, *words]) as process:
        try:
            await_listening(port, process)
            yield process
        finally:
            process.kill()
