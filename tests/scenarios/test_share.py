"""A share of new connections for the backup, ordered of a real daemon: relayed and steered; and a slow start."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.scenarios.test_steering import steered
from tests.support.namespaces import apart
from tests.support.pair import Clients, Pair, connection, get

pytestmark = pytest.mark.slow


def backups(pair: Pair, count: int) -> int:
    """How many of so many clients, one after the other, the backup answers."""
    found = 0
    for _ in range(count):
        with connection(pair.http) as opened:
            found += b"backup" in get(opened, "/who")
    return found


def share_of(pair: Pair) -> set[float]:
    """The shares that frontends show, in percent."""
    return {one["share_percent"] for one in pair.status()["frontends"].values()}


def goes_on(pair: Pair) -> None:
    """A share is ordered, shown, outlives the daemon, and ends by order or with a clean stop."""
    with Clients(pair.http, 1) as clients:
        assert pair.done("share", "25%") == "25 % of new connections go to backup while both can serve\n"
        assert "25 % of new connections go to backup by order" in pair.done("status")
        assert "primary, 25 % backup" in pair.done("frontends")
        assert 20 <= backups(pair, 200) <= 80
        pair.done("daemon", "upgrade")
        pair.until(lambda seen: seen["daemon"]["generation"] == 2)
        assert (share_of(pair), 20 <= backups(pair, 200) <= 80) == ({25.0}, True)
        pair.kill()
        assert 20 <= backups(pair, 200) <= 80
        pair.begin()
        assert (share_of(pair), 20 <= backups(pair, 200) <= 80) == ({25.0}, True)
        assert pair.done("share", "0") == "all new connections go to primary while it can serve\n"
        assert backups(pair, 50) == 0
        pair.done("share", "50")
        pair.done("drain", "backup")
        assert backups(pair, 50) == 0
        pair.done("undrain", "backup")
        assert 5 <= backups(pair, 50) <= 45
    assert clients.failures == []
    pair.end()
    pair.begin()
    pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
    assert (share_of(pair), backups(pair, 20)) == ({0.0}, 0)


def test_a_share_of_relayed_connections(tmp_path: Path) -> None:
    with Pair(tmp_path, relay_workers=2) as pair:
        goes_on(pair)


@apart
def test_a_share_of_steered_connections(tmp_path: Path) -> None:
    with steered(tmp_path) as pair:
        goes_on(pair)
        assert pair.status()["frontends"]["http"]["mode"] == "steer"


def test_a_relay_process_that_dies_is_followed_by_one_that_knows_of_the_share(tmp_path: Path) -> None:
    with Pair(tmp_path) as pair:
        pair.done("share", "50")
        before = pair.status()["daemon"]["relay_pid"]
        os.kill(before, signal.SIGKILL)
        pair.until(lambda seen: seen["daemon"]["relay_pid"] not in (None, before))
        pair.until_active("primary")
        assert (share_of(pair), backups(pair, 20)) == ({50.0}, 10)


def test_a_primary_gets_its_connections_back_little_by_little(tmp_path: Path) -> None:
    """And not at the first start of a pair. The setting is what makes `auto` relay."""
    with Pair(tmp_path, mode="auto", http_extra='slow_start = "20s"') as pair:
        seen = pair.status()["frontends"]["http"]
        assert (seen["mode"], seen["mode_reason"]) == ("relay", "slow_start needs the relay")
        assert backups(pair, 20) == 0
        with Clients(pair.http, 2) as clients:
            pair.done("restart", "primary")
            seen = pair.status()["frontends"]["http"]
            assert seen["active"] == "primary"
            assert seen["next"]["what"] == "primary gets all of its new connections (slow start)"
            assert backups(pair, 40) >= 20
            pair.config.write_text(pair.config.read_text().replace('"20s"', '"0s"'))
            pair.done("config", "reload")
            assert backups(pair, 40) == 0
        assert clients.failures == []
