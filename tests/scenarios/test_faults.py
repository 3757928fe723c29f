"""The fault matrix: each fault really happens to a running pair under load, and costs only what it must.

What each one cost is printed as a table at the end of the run, also by `python -m bench.faults`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fault_matrix import FAULTS, STEERED, play
from tests.support.faults import CannotInject, Outcome, Scene, table
from tests.support.pair import CHECKOUT
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest) -> Iterator[list[Outcome]]:
    """Takes the rows, and shows them when all tests are over."""
    found: list[Outcome] = []
    yield found
    plugins = request.config.pluginmanager
    terminal, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
    if found and terminal is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            terminal.write(f"\n\n{table(found)}\n")


def test_the_benchmark_shows_and_writes_the_same_rows(tmp_path: Path) -> None:
    written = tmp_path / "deep" / "faults.json"
    command = [sys.executable, "-m", "bench.faults", "--only", "kill -9 of the relay", "--json", str(written)]
    shown = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    (row,) = json.loads(written.read_text())["faults"]
    assert row["fault"] == "kill -9 of the relay process"
    assert row["failed"] >= 5, "the slow requests inside it"
    header, line = shown.stdout.splitlines()
    assert header.split()[-1] == "normal"
    assert line.startswith(row["fault"])
    assert line.split()[-3:] == [str(row["failed"]), str(row["asked"]), f"{row['seconds']:.2f}"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_only_what_it_must(fault: str, tmp_path: Path, outcomes: list[Outcome]) -> None:
    outcomes += played(Scene(fault, tmp_path))


@pytest.mark.parametrize("fault", STEERED)
def test_a_fault_costs_a_steered_pair_only_what_it_must(fault: str, tmp_path: Path, outcomes: list[Outcome]) -> None:
    outcomes += played(Scene(fault, tmp_path, mode="auto"))


def played(scene: Scene) -> list[Outcome]:
    try:
        play(scene)
    except CannotInject as reason:
        unavailable(str(reason))
    assert len(scene.outcomes) == 1
    assert scene.outcomes[0].fault.startswith(scene.fault)
    return scene.outcomes
