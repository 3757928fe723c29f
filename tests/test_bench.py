"""The benchmark runs and writes what it promises. How fast anything is, is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = ["--quick", "--rounds", "2", "--seconds", "0.05", "--bulk-mb", "4", "--idle", "20"]
DEADLINE_S = 60.0


@pytest.mark.slow
def test_the_benchmark_writes_a_ratio_for_every_figure_that_is_compared(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bench.json"
    command = [sys.executable, "-m", "bench", *TINY, "--json", str(target)]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=DEADLINE_S)
    picture = json.loads(target.read_text())
    assert picture["version"] == 1
    assert picture["targets"] == ["direct", "clojarsd"]
    assert len(picture["figures"]) == 11
    for name, figure in picture["figures"].items():
        assert name in shown.stdout
        assert figure["unit"]
        compared = "ratios" in figure
        assert set(figure["medians"]) == ({"direct", "clojarsd"} if compared else {"clojarsd"})
        assert all(value >= 0 for values in figure["values"].values() for value in values)
        if compared:
            assert figure["ratios"]["clojarsd"] > 0
