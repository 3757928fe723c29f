"""What is started is what was installed, or it is not started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core.releases import BecameCurrent, ProvedGood, ReleaseKind, WasInstalled, record_as_json
from clojarsd.system.record_log import RecordLog
from clojarsd.system.release_checksum import checksum_of
from tests.scenarios.test_first_release import pair_of_releases, switch
from tests.support.pair import Clients, Pair

pytestmark = pytest.mark.slow

NOON = "2026-11-23T12:00:00.000Z"


def record_installed(pair: Pair, name: str) -> str:
    """Have the log say that the release was installed as it is, and was good; its checksum."""
    state = pair.home / "state"
    state.mkdir(exist_ok=True)
    checksum = checksum_of(str(pair.home / "releases" / name))
    with RecordLog.open(state / "releases.jsonl", create=True) as log:
        log.append(record_as_json(WasInstalled(name, "1", "f00", checksum, ReleaseKind.FILE, 1, "ann", NOON, name)))
        log.append(record_as_json(BecameCurrent(name, NOON, "ann", name)))
        log.append(record_as_json(ProvedGood(name, NOON, name)))
    return checksum


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A pair whose second release is current; the first is good as well."""
    made = pair_of_releases(tmp_path)
    for name in ("1.py", "2.py"):
        switch(made, name)
        record_installed(made, name)
    running = made.begin()
    try:
        running.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
        yield running
    finally:
        running.end()


def test_status_names_the_release_that_a_rollback_goes_to(pair: Pair) -> None:
    assert pair.status()["release"] == {"current": "2.py", "previous": "1.py"}
    assert [one["release"] for one in pair.status()["instances"].values()] == ["2.py"] * 2


def test_a_release_that_was_changed_is_not_started_and_the_other_instance_serves(pair: Pair) -> None:
    release = pair.home / "releases" / "2.py"
    content, before = release.read_text(), checksum_of(str(release))
    release.write_text(content + "# changed\n")
    changed = (
        f"{release} is not what was installed: its checksum is {checksum_of(str(release))[:15]}… instead of"
        f" {before[:15]}…; deploy it again, or go back with `clojarsctl rollback`"
    )

    def rests(seen: dict[str, Any]) -> bool:
        one: dict[str, Any] = seen["instances"]["backup"]
        return (one["state"], one["goal"], one["reason"]) == ("stopped", "up", changed)

    with Clients(pair.http) as clients:
        os.kill(pair.pid("backup"), 9)
        pair.until(rests)
        clients.await_answers(5)
        failed = pair.ctl("start", "backup")
        assert failed.returncode == 1
        assert f"cannot start backup: {changed}" in failed.stderr
        pair.until(rests)
        assert clients.failures == []
    assert pair.instance("primary")["eligible"]
    release.write_text(content)
    assert "backup is up" in pair.done("start", "backup")


def test_an_instance_that_runs_another_release_than_the_link_names_is_told(pair: Pair) -> None:
    assert [one["other_release"] for one in pair.status()["instances"].values()] == [None, None]
    switch(pair, "3.py")
    told = "primary runs 2.py, and the link names 3.py: clojarsctl restart primary"
    assert pair.instance("primary")["other_release"] == told
    for verb in ("status", "why"):
        assert told in " ".join(pair.done(verb).split())
    assert "backup is up" in pair.done("restart", "backup")
    assert [one["other_release"] for one in pair.status()["instances"].values()] == [told, None]


def test_a_release_that_nobody_has_recorded_is_started_as_ever(pair: Pair) -> None:
    switch(pair, "by-hand.py")
    assert "backup is up" in pair.done("restart", "backup")
    assert pair.instance("backup")["release"] == "by-hand.py"
