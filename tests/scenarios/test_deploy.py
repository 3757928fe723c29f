"""Releases, good and bad, are brought in under clients who lose nothing; whatever fails brings back what was there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deploys import LINK, NOBODY, Site, place, release
from tests.support.namespaces import apart

pytestmark = pytest.mark.slow

MODE = "auto" if os.geteuid() == 0 else "relay"
NO_RELEASE = "no release: clojarsctl deploy TAG"


def steered_here(test: Callable[..., Any]) -> Callable[..., Any]:
    """The test, with a frontend that the kernel steers besides the relayed one, where this machine lets us."""
    return apart(test) if MODE == "auto" else test


@pytest.fixture
def home() -> Iterator[Path]:
    with place() as path:
        yield path


def events(site: Site, *names: str) -> list[str]:
    """The sentences of these events, oldest first."""
    return [one["message"] for one in site.pair.events() if one["event"] in names]


# --- The very first one


def test_the_very_first_deploy_brings_the_pair_up_backup_first(home: Path) -> None:
    site = Site(home)
    site.tag("1.0.0")
    pair = site.pair.begin()
    try:
        seen = pair.until(lambda seen: all(one["reason"] == NO_RELEASE for one in seen["instances"].values()))
        assert seen["rollout"] is None
        deployed = pair.ctl("deploy", "1.0.0", "--yes")
        assert deployed.returncode == 0, deployed.stderr
        assert deployed.stdout == (
            "deploy of 1.0.0 is done and recorded as good: primary and backup run app-1.0.0-standalone.py\n"
        )
        site.assert_runs("1.0.0")
        started = [one["role"] for one in pair.events() if one["event"] == "instance-started"]
        assert started == ["backup", "primary"]
        assert list(site.listed()) == [release("1.0.0")]
        assert site.listed()[release("1.0.0")]["state"] == "good"
        assert pair.ctl("rollback", "--yes").returncode == 3
    finally:
        pair.end()


def test_the_very_first_deploy_can_fail_and_then_there_is_no_release_as_before(home: Path) -> None:
    site = Site(home)
    site.tag("bad", "refuses", "1.0.0")
    site.tag("1.0.1")
    pair = site.pair.begin()
    try:
        pair.until(lambda seen: all(one["reason"] == NO_RELEASE for one in seen["instances"].values()))
        failed = pair.ctl("deploy", "bad", "--yes")
        assert failed.returncode == 1
        assert "cannot deploy bad: restarting backup: " in failed.stderr
        assert "; there is no release, as before; whole log: " in failed.stderr
        assert site.link() is None
        seen = pair.until(lambda seen: all(one["reason"] == NO_RELEASE for one in seen["instances"].values()))
        assert [(one["state"], one["pid"]) for one in seen["instances"].values()] == [("stopped", None)] * 2
        assert site.listed()[release("1.0.0")]["state"] == "bad"
        site.assert_nothing_left()
        pair.done("deploy", "1.0.1", "--yes")
        site.assert_runs("1.0.1")
    finally:
        pair.end()


def test_while_the_first_deploy_asks_the_primary_says_what_it_waits_for(home: Path) -> None:
    site = Site(home)
    site.tag("1.0.0")
    pair = site.pair.begin()
    try:
        site.begin("deploy", "1.0.0", "--no-promote").end()
        why = "no release that is approved: deploy of 1.0.0 is under way"
        pair.until(lambda seen: seen["instances"]["primary"]["reason"] == why)
        pair.done("promote")
        site.assert_runs("1.0.0")
    finally:
        pair.end()


# --- Good ones


@steered_here
def test_a_good_deploy_replaces_both_and_no_request_fails(home: Path) -> None:
    site = Site(home, mode=MODE)
    site.bring("1.0.0")
    site.tag("1.1.0")
    with site.running() as pair, site.traffic() as traffic:
        assert pair.status()["frontends"]["http"]["mode"] == ("steer" if MODE == "auto" else "relay")
        deployed = pair.ctl("deploy", "1.1.0", "--yes")
        assert (deployed.returncode, deployed.stdout) == (
            0,
            "deploy of 1.1.0 is done and recorded as good: primary and backup run app-1.1.0-standalone.py"
            " instead of app-1.0.0-standalone.py\n",
        )
        for line in ("  | testing 1.1.0", "  | building 1.1.0 of 1.1.0"):
            assert line in deployed.stderr.splitlines()
        traffic.more()
        site.assert_runs("1.1.0")
        assert (
            {"primary 1.0.0", "primary 1.1.0"}
            <= traffic.names()
            <= {*("primary 1.0.0", "primary 1.1.0", "backup 1.1.0")}
        ), "what serves while the primary is restarted is the new release, on the backup"
        gates = ["before_switch", "after_backup", "smoke", "before_promote", "after_deploy"]
        assert site.ran() == [f"{step} deploy" for step in ("test", "build", *gates)]
        assert events(site, "deploy-finished") == [deployed.stdout.strip()]
        listed = site.listed()
        assert [(one["name"], one["state"], one["runs_on"]) for one in listed.values()] == [
            (release("1.1.0"), "good", ["primary", "backup"]),
            (release("1.0.0"), "good", []),
        ]
        assert (listed[release("1.1.0")]["current"], listed[release("1.0.0")]["previous"]) == (True, True)
        assert os.stat(site.releases / release("1.1.0")).st_uid == site.user
    assert site.user == (NOBODY if os.geteuid() == 0 else os.geteuid())


def test_without_tests_and_with_a_release_that_is_a_directory(home: Path) -> None:
    site = Site(home, is_directory=True)
    site.bring("1.0.0", fault="directory")
    site.tag("1.1.0", "directory")
    with site.running() as pair, site.traffic():
        pair.done("deploy", "1.1.0", "--yes", "--skip-tests")
        assert site.ran()[0] == "build deploy"
        assert site.link() == "app-1.1.0-standalone"
        listed = site.listed()["app-1.1.0-standalone"]
        assert (listed["kind"], listed["state"], listed["runs_on"]) == ("directory", "good", ["primary", "backup"])
        assert (site.releases / "app-1.1.0-standalone" / "page").read_text() == "some page\n"
        (site.releases / "app-1.0.0-standalone").chmod(0o755)
        (site.releases / "app-1.0.0-standalone" / "page").unlink()
        refused = pair.ctl("rollback", "--yes")
        assert refused.returncode == 3
        assert "is not what was installed" in refused.stderr


def test_a_ready_artefact_needs_no_repository(home: Path) -> None:
    site = Site(home, has_repository=False)
    site.bring("1.0.0")
    artefact = site.build("1.1.0")
    with site.running() as pair, site.traffic():
        refused = pair.ctl("deploy", "1.1.0", "--yes")
        assert (refused.returncode, refused.stderr) == (
            3,
            "cannot deploy 1.1.0: [deploy] has no repository; clojarsctl deploy --artifact FILE brings in what was"
            " built elsewhere; nothing was done\n",
        )
        missing = pair.ctl("deploy", "--artifact", str(home / "no.py"), "--yes")
        assert missing.returncode in (1, 3)
        assert "no.py" in missing.stderr
        site.assert_runs("1.0.0")
        done = pair.done("deploy", "--artifact", str(artefact), "--yes")
        assert done.startswith(f"deploy of {artefact} is done")
        site.assert_runs("1.1.0")
        assert site.ran()[-5:] == [
            f"{step} deploy" for step in ("before_switch", "after_backup", "smoke", "before_promote", "after_deploy")
        ]
        assert site.listed()[release("1.1.0")]["tag"] is None
        pair.done("rollback", "--yes")
        site.assert_runs("1.0.0")


# --- Bad ones: nothing has changed

NOTHING_WAS_CHANGED = "nothing was changed, primary and backup still serve, with app-1.0.0-standalone.py"
BACKUP_IS_BACK = (
    "the link and backup are back at app-1.0.0-standalone.py, the primary was not touched,"
    " primary and backup still serve"
)
BOTH_ARE_BACK = "the link, primary and backup are back at app-1.0.0-standalone.py, primary and backup still serve"


@pytest.mark.parametrize(
    ("fault", "step", "why", "output"),
    [
        ("tests", "running its tests", "step test /bin/sh test.sh ended with code 1", "1 failures, 0 errors"),
        ("build", "building it", "step build /bin/sh build.sh ended with code 1", "cannot compile"),
        ("no-artifact", "installing it", "nothing matches target/*-standalone*; target is empty", None),
        (
            "two-artifacts",
            "installing it",
            "must match one file, and matches 2: target/app-1.1.0-standalone.py, target/app-thin-standalone.py",
            None,
        ),
    ],
)
def test_what_fails_before_the_switch_has_changed_nothing(
    home: Path, fault: str, step: str, why: str, output: str | None
) -> None:
    site = Site(home)
    site.bring("1.0.0")
    site.tag("bad", fault, "1.1.0")
    with site.running() as pair, site.traffic() as traffic:
        before = pair.pid("primary"), pair.pid("backup")
        failed = pair.ctl("deploy", "bad", "--yes")
        assert (failed.returncode, failed.stdout) == (1, "")
        message = failed.stderr.splitlines()[-1]
        assert message.startswith(f"cannot deploy bad: {step}: ")
        assert why in message
        log = home / "log" / "rollouts"
        (path,) = log.iterdir()
        assert message.endswith(f"; {NOTHING_WAS_CHANGED}; whole log: {path}")
        if output is not None:
            assert failed.stderr.count(f"  | {output}\n") == 1
            assert output in path.read_text()
        assert (pair.pid("primary"), pair.pid("backup")) == before
        site.assert_runs("1.0.0")
        assert events(site, "deploy-failed") == [message]
        assert list(site.listed()) == [release("1.0.0")]
    assert traffic.names() == {"primary 1.0.0"}


# --- Bad ones that the backup is brought back from

SHORT = 'start_timeout = "1s"'


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("refuses", "backup exited with 1"),
        ("exits", "backup has ended: exited with 1"),
        ("deaf", "backup was not ready in time (http: {http} refused) and was ended (was killed by SIGTERM)"),
        (
            "unhealthy",
            "backup was not ready in time (http: {http} answered 503 (expected 200)) and was ended (exited with 143)",
        ),
    ],
)
def test_a_release_that_does_not_serve_brings_the_backup_back(home: Path, fault: str, why: str) -> None:
    """One that is never ready, that is unhealthy, and one that exits after two seconds."""
    site = Site(home, soak="3s" if fault == "exits" else "300ms", app=SHORT if fault in ("deaf", "unhealthy") else "")
    site.bring("1.0.0")
    site.tag("bad", fault, "1.1.0")
    why = why.format(http=f"127.0.0.1:{site.pair.backup[0]}")
    with site.running() as pair, site.traffic() as traffic:
        before = pair.pid("primary")
        failed = pair.ctl("deploy", "bad", "--yes")
        assert (failed.returncode, failed.stdout) == (1, "")
        message = failed.stderr.splitlines()[-1]
        assert message.startswith(f"cannot deploy bad: restarting backup: {why}; {BACKUP_IS_BACK}; whole log: ")
        if fault == "refuses":
            assert "  | this release does not start" in failed.stderr.splitlines()
        if fault == "exits":
            assert "  | giving up" in failed.stderr.splitlines()
        assert "ready name=backup 1.0.0" not in failed.stderr, "these are not its own words"
        site.assert_runs("1.0.0")
        assert pair.pid("primary") == before
        listed = site.listed()[release("1.1.0")]
        assert (listed["state"], listed["why"]) == ("bad", why)
        assert (listed["current"], listed["previous"], listed["runs_on"]) == (False, False, [])
        assert events(site, "deploy-failed") == [message]
        assert pair.instance("backup")["restarts"] <= 1
    assert traffic.names() == {"primary 1.0.0"}


@pytest.mark.parametrize("gate", ["before_switch", "after_backup", "smoke", "before_promote", "after_deploy"])
def test_a_gate_that_fails_brings_everything_back(home: Path, gate: str) -> None:
    site = Site(home)
    site.bring("1.0.0")
    site.tag("1.1.0")
    site.fail(gate)
    with site.running() as pair, site.traffic() as traffic:
        before = pair.pid("primary")
        failed = pair.ctl("deploy", "1.1.0", "--yes")
        assert (failed.returncode, failed.stdout) == (1, "")
        begins = f"cannot deploy 1.1.0: running {gate}: {home}/step {gate} /bin/true ended with code 1 after "
        message = failed.stderr.splitlines()[-1]
        assert message.startswith(begins)
        ends = {"before_switch": NOTHING_WAS_CHANGED, "after_deploy": BOTH_ARE_BACK}.get(gate, BACKUP_IS_BACK)
        assert f" s; {ends}; whole log: " in message
        assert f"  | {gate} was told to fail" in failed.stderr.splitlines()
        site.assert_runs("1.0.0")
        assert (pair.pid("primary") == before) == (gate != "after_deploy")
        assert site.listed()[release("1.1.0")]["state"] == ("unproved" if gate == "before_switch" else "bad")
        assert site.ran()[-1] == f"{gate} deploy", "what comes after is not run"
        (home / f"fail-{gate}").unlink()
        if gate == "smoke":
            pair.done("deploy", "1.1.0", "--yes")
            site.assert_runs("1.1.0")
    assert "backup 1.0.0" not in traffic.names() or gate == "after_deploy"


@steered_here
def test_a_release_that_the_primary_cannot_run_brings_both_back(home: Path) -> None:
    site = Site(home, mode=MODE)
    site.bring("1.0.0")
    site.tag("bad", "refuses on primary", "1.1.0")
    with site.running() as pair, site.traffic() as traffic:
        failed = pair.ctl("deploy", "bad", "--yes")
        assert failed.returncode == 1
        message = failed.stderr.splitlines()[-1]
        assert message.startswith(
            f"cannot deploy bad: restarting primary: primary exited with 1; {BOTH_ARE_BACK}; whole log: "
        )
        assert "  | this release does not start" in failed.stderr.splitlines()
        site.assert_runs("1.0.0")
        assert site.listed()[release("1.1.0")]["state"] == "bad"
    assert "primary 1.1.0" not in traffic.names()


def test_a_release_that_falls_over_on_the_primary_during_the_soak_brings_both_back(home: Path) -> None:
    """A request that was inside it when it fell is lost, as with any crash; nothing else."""
    site = Site(home, soak="3s")
    site.bring("1.0.0")
    site.tag("bad", "exits on primary", "1.1.0")
    with site.running() as pair:
        failed = pair.ctl("deploy", "bad", "--yes")
        assert failed.returncode == 1
        message = failed.stderr.splitlines()[-1]
        assert message.startswith(
            "cannot deploy bad: watching both instances serve: primary has ended: exited with 1;"
            f" {BOTH_ARE_BACK}; whole log: "
        )
        assert "  | giving up" in failed.stderr.splitlines()
        site.assert_runs("1.0.0")


# --- Tags


def test_a_release_whose_file_is_brought_in_again_stays_that_of_its_tag(home: Path) -> None:
    """So that it is noticed when the tag moves."""
    site = Site(home)
    site.bring("1.0.0")
    site.tag("1.1.0")
    with site.running() as pair:
        pair.done("deploy", "1.1.0", "--yes")
        before = site.listed()[release("1.1.0")]
        site.begin("deploy", "--artifact", str(site.releases / release("1.1.0")), "--no-promote").end()
        pair.done("abort")
        after = site.listed()[release("1.1.0")]
        assert [after[key] for key in ("tag", "commit", "state")] == [before[key] for key in ("tag", "commit", "state")]
        site.commit("1.1.1")
        site.repository.tag("1.1.0", "--force")
        moved = pair.ctl("deploy", "1.1.0", "--yes")
        assert moved.returncode == 3
        assert "tag 1.1.0 has moved" in moved.stderr


def test_a_tag_that_does_not_exist_or_is_a_branch_or_has_moved(home: Path) -> None:
    site = Site(home)
    site.bring("1.0.0")
    site.tag("1.1.0")
    site.commit("1.1.0", "build")
    site.repository.git("branch", "1.1.0")
    site.repository.git("branch", "topic")
    with site.running() as pair:
        for tag, why in (("9.9.9", "9.9.9"), ("topic", "branch")):
            refused = pair.ctl("deploy", tag, "--yes")
            assert (refused.returncode, refused.stdout) == (3, "")
            assert refused.stderr.startswith(f"cannot deploy {tag}: ")
            assert why in refused.stderr
            assert "nothing was done" in refused.stderr
        pair.done("deploy", "1.1.0", "--yes")
        site.assert_runs("1.1.0")
        pair.done("rollback", "--yes")
        site.repository.git("tag", "--force", "1.1.0", "refs/tags/1.0.0")
        moved = pair.ctl("deploy", "1.1.0", "--yes")
        assert moved.returncode == 3
        assert moved.stderr.startswith("cannot deploy 1.1.0: ")
        assert moved.stderr.endswith("; nothing was done; --force deploys what it names now\n")
        pair.done("deploy", "1.1.0", "--yes", "--force")
        site.assert_runs("1.0.0")
        assert json.loads(pair.done("--json", "releases"))["warnings"] == []


# --- Retention


def test_old_releases_go_but_never_one_that_a_process_has_open(home: Path) -> None:
    site = Site(home, keep=1, soak="0s")
    site.bring("1.0.0", "1.0.1", "1.0.2", "1.0.3")
    site.tag("1.1.0")
    with site.running() as pair, (site.releases / release("1.0.0")).open():
        done = pair.ctl("deploy", "1.1.0", "--yes")
        assert done.returncode == 0, done.stderr
        assert f"removed {release('1.0.1')}" in done.stderr
        left = {release(one) for one in ("1.0.0", "1.0.2", "1.0.3", "1.1.0")}
        assert set(site.listed()) == left
        assert {path.name for path in site.releases.iterdir()} == {*left, LINK}
