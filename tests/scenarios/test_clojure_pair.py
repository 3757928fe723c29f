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
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ClojurePair]:
    """A pair with the first release in place, or deployed, as the test asks for by parameter."""
    (home := tmp_path / "pair").mkdir()
    first = getattr(request, "param", "1.0.0")
    with ClojurePair(home, first=first) as pair:
        if first is None:
            deployed = pair.order("deploy", "1.0.0", "--yes")
            assert deployed.returncode == 0, (deployed.stdout, deployed.stderr, pair.daemon_log())
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


@pytest.mark.parametrize("pair", [None], indirect=True)
def test_nothing_fails_while_releases_are_deployed_and_rolled_back(pair: ClojurePair, traffic: Traffic) -> None:
    """What the README of the demo has a new user do; the first release is deployed, too."""

    def ordered(*words: str) -> subprocess.CompletedProcess[str]:
        return pair.order(*words, "--yes")

    deployed = ordered("deploy", "1.1.0")
    assert deployed.returncode == 0, (deployed.stdout, deployed.stderr, pair.daemon_log())
    traffic.until_version("1.1.0")
    bad = ordered("deploy", "bad-smoke")
    assert bad.returncode == 1
    assert "smoke: /version says ['<!DOCTYPE html>'], and the release is 1.2.0-bad-smoke" in bad.stderr
    assert pair.current == "clojars-web-1.1.0-standalone.jar"
    assert set(pair.running().values()) == {pair.current}
    back = ordered("rollback")
    assert back.returncode == 0, (back.stdout, back.stderr)
    traffic.until_version("1.0.0")
    nothing_failed(traffic, pair)
    assert traffic.versions == ["1.0.0", "1.1.0", "1.0.0"]
    told = {success.said for success in traffic.successes if success.said}
    assert told == {"1.0.0", "1.1.0"}, "no client has ever seen the bad one"
