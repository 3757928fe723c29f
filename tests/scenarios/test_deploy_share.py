"""While a deploy waits for its answer some clients meet the new release, by `[deploy] share`, and no longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scenarios.test_deploy import steered_here
from tests.support.deploys import Site, place

pytestmark = pytest.mark.slow

SHARE = "share = 50\n"


@pytest.fixture
def home() -> Iterator[Path]:
    with place() as path:
        yield path


def shares(site: Site) -> set[float]:
    """What the frontends show, in percent."""
    return {one["share_percent"] for one in site.pair.status()["frontends"].values()}


def asks(site: Site) -> None:
    """A deploy of 1.1.0 has come to its question."""
    deployed = site.pair.ctl("deploy", "1.1.0", "--no-promote")
    assert deployed.returncode == 0, deployed.stderr
    site.pair.until(lambda seen: shares(site) == {50.0})


def is_answered(site: Site, word: str) -> None:
    assert site.pair.ctl(word).returncode == 0
    assert shares(site) == {0.0}


@pytest.mark.parametrize("word", ["promote", "abort"])
def test_relayed_clients_meet_the_backup_until_there_is_an_answer(home: Path, word: str) -> None:
    share_until_answered(home, "relay", lambda site: is_answered(site, word))


@steered_here
def test_steered_clients_meet_it_too(tmp_path: Path) -> None:
    with place() as home:
        share_until_answered(home, "auto", lambda site: is_answered(site, "promote"))


def share_until_answered(home: Path, mode: str, answer: Callable[[Site], None]) -> None:
    site = Site(home, mode=mode, more=SHARE)
    site.bring("1.0.0")
    site.tag("1.1.0")
    with site.running(), site.traffic() as traffic:
        asks(site)
        seen = traffic.names()
        while not {"primary 1.0.0", "backup 1.1.0"} <= seen:
            traffic.more()
            seen = traffic.names()
        answer(site)
    assert traffic.failures == []


def test_a_share_ends_when_the_daemon_after_a_dead_one_goes_back(home: Path) -> None:
    """The relay process goes on sharing while no daemon runs; the next daemon has no question to share for."""
    site = Site(home, more=SHARE, approval_timeout="1s")
    site.bring("1.0.0")
    site.tag("1.1.0")
    with site.running() as pair:
        asks(site)
        pair.kill()
        pair.begin()
        ended = site.until_over()
        assert "nobody answered until" in ended["message"]
        assert shares(site) == {0.0}
        site.assert_runs("1.0.0")
