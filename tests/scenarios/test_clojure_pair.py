"""A pair of the Clojure application under traffic: pages and uploads go on whatever is done to the pair."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import scp
from bench.proxies import NotThere
from tests.support import clojure_app
from tests.support.clojure_pair import ClojurePair
from tests.support.real import unavailable
from tests.support.traffic import Traffic
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[ClojurePair]:
    (home := tmp_path / "pair").mkdir()
    with ClojurePair(home) as pair:
        yield pair


@pytest.fixture
def traffic(pair: ClojurePair, tmp_path: Path) -> Iterator[Traffic]:
    (home := tmp_path / "traffic").mkdir()
    try:
        with Traffic(http=pair.http, nailgun=pair.nailgun, home=home, ssh=True) as traffic:
            yield traffic
    except NotThere as reason:
        unavailable(f"scp: {reason}")


def nothing_failed(traffic: Traffic, pair: ClojurePair) -> None:
    traffic.go_on()
    traffic.end()
    assert traffic.failures == []
    assert set(traffic.counts) == {"fresh", "kept", "upload", "scp"}
    assert traffic.lost_from(pair.repository) == []


def test_scp_brings_a_megabyte_by_the_frontend(pair: ClojurePair, tmp_path: Path) -> None:
    (home := tmp_path / "sshd").mkdir()
    (file := tmp_path / "a.jar").write_bytes(os.urandom(1_000_000))
    program = {"pair": f"{clojure_app.SOURCE / 'receive'} {pair.nailgun}"}
    try:
        with scp.serving(home, program) as sshd:
            command = sshd.command("pair", file, "127.0.0.1:")
            sent = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except NotThere as reason:
        unavailable(f"scp: {reason}")
    assert (sent.returncode, sent.stderr) == (0, "")
    assert (pair.repository / "a.jar").read_bytes() == file.read_bytes()


def test_nothing_fails_while_both_are_restarted(pair: ClojurePair, traffic: Traffic) -> None:
    restarted = pair.order("restart", "all")
    assert restarted.returncode == 0, (restarted.stdout, restarted.stderr)
    nothing_failed(traffic, pair)
