"""The benchmarks run and write what they promise. How fast anything is, is not asked here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.light_app import COUNT, counted
from bench.upgrades import upgrade
from clojarsd.system.sockets import free_ports
from tests.support.pair import connection, get
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).parent.parent
TINY = ["--quick", "--rounds", "2", "--seconds", "0.05", "--bulk-mb", "4", "--idle", "20"]
DEADLINE_S = 2 * PATIENCE


def run(module: str, target: Path, *words: str) -> tuple[dict[str, Any], str]:
    """What the benchmark has written into the file, and what it has shown."""
    command = [sys.executable, "-m", module, *words, "--json", str(target)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert shown.returncode == 0, shown.stderr
    picture = json.loads(target.read_text())
    assert picture["version"] == 1
    return picture, shown.stdout


@pytest.mark.slow
def test_the_benchmark_writes_a_ratio_for_every_figure_that_is_compared(tmp_path: Path) -> None:
    picture, shown = run("bench", tmp_path / "deep" / "bench.json", *TINY, "--targets", "relay")
    assert picture["targets"] == ["direct", "relay"]
    assert len(picture["figures"]) == 14
    for name, figure in picture["figures"].items():
        assert name in shown
        assert figure["unit"]
        compared = "ratios" in figure
        assert set(figure["medians"]) == ({"direct", "relay"} if compared else {"relay"})
        assert all(value >= 0 for values in figure["values"].values() for value in values)
        if compared:
            assert figure["ratios"]["relay"] > 0


@pytest.mark.slow
def test_restart_latency_is_measured_of_every_supervisor_that_is_there(tmp_path: Path) -> None:
    picture, shown = run("bench.restart_latency", tmp_path / "deep" / "latency.json", "--rounds", "2")
    assert {"spawn", "clojarsd"} <= set(picture["subjects"])
    for name, subject in picture["subjects"].items():
        assert name in shown
        assert len(subject["values_ms"]) == 2
        assert 0 < subject["median_ms"] <= subject["worst_ms"]
    assert picture["subjects"]["clojarsd"]["ratio"] == 1


@pytest.mark.slow
def test_endurance_takes_figures_at_three_moments_of_the_life_that_was_asked_for(tmp_path: Path) -> None:
    words = ("--rounds", "100", "--restarts", "4", "--idle", "0.1")
    picture, shown = run("bench.endurance", tmp_path / "endurance.json", *words)
    assert picture["rounds"] >= 100
    assert picture["restarts"] == 4
    assert picture["failed_requests"] == 0
    for moment in ("begin", "middle", "end"):
        daemon = picture["moments"][moment]["daemon"]
        assert daemon["rss"] >= daemon["pss"] > 0
        assert daemon["threads"] > 0
        assert daemon["descriptors"] > 0
    assert "daemon descriptors" in shown


@pytest.mark.slow
def test_the_upgrade_benchmark_measures_the_load_it_puts_on(tmp_path: Path) -> None:
    words = ("--upgrades", "0", "--calm", "0.5", "--connections", "4")
    picture, shown = run("bench.upgrades", tmp_path / "upgrades.json", *words)
    for kind in ("kept", "new", "bulk"):
        seen = picture["calm"][kind]
        assert seen["answered"] > 0
        assert (seen["failed"], seen["cut"]) == (0, 0), seen
        assert f"{kind} longest pause" in shown
    assert picture["after"]["daemon"]["descriptors"] > 0


class PaperPair:
    """A pair whose daemon is upgraded on paper: the instances keep their processes, or the backup does not."""

    def __init__(self, *, restarts_backup: bool = False) -> None:
        self.generation = 1
        self.pids = {"primary": 901, "backup": 902}
        self._restarts_backup = restarts_backup
        self._looks = 0

    def status(self) -> dict[str, Any]:
        """Just upgraded it is not ready at once."""
        self._looks += 1
        instances = {role: {"pid": pid, "eligible": self._looks != 2} for role, pid in self.pids.items()}
        return {"daemon": {"generation": self.generation}, "instances": instances}

    def done(self, *words: str) -> str:
        assert words == ("daemon", "upgrade")
        self.generation += 1
        if self._restarts_backup:
            self.pids["backup"] += 1
        return ""

    def until(self, fact: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        while not fact(seen := self.status()):
            pass
        return seen


def test_an_upgrade_lasts_until_the_next_generation_has_both_instances_ready(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert upgrade(PaperPair()) >= 0
    assert "generation 2" in capsys.readouterr().err


def test_an_upgrade_that_restarts_an_instance_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="restarted backup"):
        upgrade(PaperPair(restarts_backup=True))


@pytest.mark.slow
def test_the_steady_load_notices_a_pause_and_a_cut() -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "bench.steady_load", str(port), "--connections", "4"]
    with (
        backend(port) as server,
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as load,
    ):
        try:
            ask(load)
            server.send_signal(signal.SIGSTOP)
            until(lambda: ask(load)["kept"]["longest_s"] > 0.3)
            assert ask(load)["new"]["longest_s"] > 0.3
            server.send_signal(signal.SIGCONT)
            until(lambda: ask(load)["new"]["answered"])
            assert ask(load)["kept"]["cut"] == 0
            server.kill()
            until_seen(load, "kept", "cut", 4)
            until_seen(load, "new", "failed", 1)
            until_seen(load, "bulk", "failed", 1)
            with backend(port) as again:
                for kind in ("kept", "new", "bulk"):
                    until_seen(load, kind, "answered", 1)
                again.kill()
        finally:
            load.kill()
            server.kill()


def test_the_light_app_counts_the_checks_it_answers_over_its_deaths(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    count = tmp_path / "count"
    count.write_bytes(COUNT.pack(41))
    app = [sys.executable, "-S", str(ROOT / "bench" / "light_app.py"), "--port", str(port), "--count", str(count)]
    for _ in range(2):
        with subprocess.Popen(app) as process:
            try:
                until(lambda: answers(port))
            finally:
                process.kill()
    assert counted(count) == 43


def backend(port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.backend", "--port", str(port)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    until(lambda: is_listening(port))
    return process


def ask(load: subprocess.Popen[str]) -> Any:
    assert load.stdin is not None
    assert load.stdout is not None
    load.stdin.write("\n")
    load.stdin.flush()
    return json.loads(load.stdout.readline())


def until_seen(load: subprocess.Popen[str], kind: str, figure: str, count: int) -> None:
    """Return when the load has seen so many more of them."""
    found = 0

    def look() -> bool:
        nonlocal found
        found += ask(load)[kind][figure]
        return bool(found >= count)

    until(look)


def is_listening(port: int) -> bool:
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines[1:])


def answers(port: int) -> bool:
    try:
        with connection(port) as opened:
            return get(opened, "/health") == b"ok\n"
    except OSError:
        return False


def until(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < deadline, "the fact did not come"
        time.sleep(0.01)
