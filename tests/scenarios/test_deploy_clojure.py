"""Deploys of the Clojure application, built by leiningen, under clients who read pages and upload by scp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.proxies import NotThere
from tests.support.clojure_pair import ClojurePair
from tests.support.real import unavailable
from tests.support.traffic import Traffic

pytestmark = [pytest.mark.slow, pytest.mark.real]

FIRST, SECOND = "clojars-web-1.0.0-standalone.jar", "clojars-web-1.1.0-standalone.jar"


def with_shorter_soak(text: str) -> str:
    """What exits after two seconds is found out all the same."""
    assert 'soak       = "5s"' in text
    return text.replace('soak       = "5s"', 'soak       = "3s"')


@contextmanager
def deploying(tmp_path: Path, *, real_builds: bool = False) -> Iterator[tuple[ClojurePair, Traffic]]:
    """A pair with 1.0.0, under traffic of which nothing fails, and no upload that was acknowledged is lost."""
    (home := tmp_path / "pair").mkdir()
    (sshd := tmp_path / "sshd").mkdir()
    with ClojurePair(home, real_builds=real_builds, rewrite=with_shorter_soak) as pair:
        try:
            with Traffic(http=pair.http, nailgun=pair.nailgun, home=sshd, ssh=True) as traffic:
                yield pair, traffic
                traffic.go_on()
        except NotThere as reason:
            unavailable(f"scp: {reason}")
        assert traffic.failures == [], pair.daemon_log()
        assert set(traffic.counts) == {"fresh", "kept", "upload", "scp"}
        assert traffic.lost_from(pair.repository) == []


def assert_runs(pair: ClojurePair, release: str) -> None:
    """The link names it, and both instances run it and can serve."""
    assert pair.current == release, pair.daemon_log()
    assert pair.running() == {"primary": release, "backup": release}
    assert all(seen["eligible"] for seen in pair.status()["instances"].values())
    assert pair.status()["rollout"] is None


def test_leiningen_tests_and_builds_a_release_as_the_service_user(tmp_path: Path) -> None:
    """Nothing comes out of a cache here."""
    with deploying(tmp_path, real_builds=True) as (pair, traffic):
        deployed = pair.order("deploy", "1.1.0", "--yes")
        assert deployed.returncode == 0, deployed.stderr
        assert "0 failures, 0 errors." in deployed.stderr
        assert "  | Created " in deployed.stderr
        assert_runs(pair, SECOND)
        traffic.until_version("1.1.0")
    assert traffic.versions == ["1.0.0", "1.1.0"]


BAD = {
    "bad-tests": ("running its tests: ", "1 failures, 0 errors."),
    "bad-build": ("building it: ", "Unable to resolve symbol: format-number"),
    "bad-no-artifact": ("installing it: no artifact: nothing matches target/*-standalone.jar", ""),
    "bad-two-artifacts": (
        "installing it: no artifact: target/*-standalone.jar must match one file, and matches 2",
        "",
    ),
    "bad-exits": ("restarting backup: backup has ended: exited with 1", "giving up"),
}


def test_no_client_sees_a_bad_release_or_one_that_was_answered_with_no(tmp_path: Path) -> None:
    """After the bad ones comes a good one, whose artefact has a name that another release has."""
    with deploying(tmp_path) as (pair, traffic):
        before = pair.pid("primary")
        for tag, (why, said) in BAD.items():
            failed = pair.order("deploy", tag, "--yes")
            assert (failed.returncode, failed.stdout) == (1, ""), tag
            message = failed.stderr.splitlines()[-1]
            assert message.startswith(f"cannot deploy {tag}: {why}")
            assert said in failed.stderr, tag
            back = f"the link and backup are back at {FIRST}, the primary was not touched"
            assert (back if "restarting backup" in why else "nothing was changed") in message
            assert_runs(pair, FIRST)
        asked = pair.order("deploy", "1.2.0", "--no-promote")
        assert asked.returncode == 0, asked.stderr
        assert pair.running() == {"primary": FIRST, "backup": "clojars-web-1.2.0-standalone.jar"}
        assert pair.order("abort").returncode == 0
        assert_runs(pair, FIRST)
        assert pair.pid("primary") == before
        assert pair.order("deploy", "1.2.0-rebuilt", "--yes").returncode == 0
        assert_runs(pair, "clojars-web-1.2.0-standalone-1.2.0-rebuilt.jar")
        traffic.until_version("1.2.0")
    assert traffic.versions == ["1.0.0", "1.2.0"]
