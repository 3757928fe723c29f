"""Instances whose hosts have names are found where the names lead, also later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.real import unavailable

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_name_is_followed_and_open_connections_stay(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        unavailable("/etc/hosts of our own needs root and unshare(1)")
    hosts = tmp_path / "hosts"
    hosts.write_text("")
    steps = 'mount --bind "$1" /etc/hosts && exec "$2" -m tests.support.named_host "$3" /etc/hosts'
    command = ["unshare", "--mount", "sh", "-ec", steps, "sh", str(hosts), sys.executable, str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if " " not in line] == ["remembered", "moved", "moved", "kept"]
