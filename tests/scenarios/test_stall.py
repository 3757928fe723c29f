"""A primary that stops accepting while clients come: traffic moves, and who waited in its queue is answered."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.pair import Pair
from tests.support.steady import Steady

pytestmark = pytest.mark.slow

RATE = 50.0
BOUND_S = 10.0
"""Far above what it takes where nobody else works on the machine, which is some 0.6 s."""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path, failback="200ms") as running:
        running.until_active("primary")
        yield running


@contextmanager
def stopped(pid: int) -> Iterator[float]:
    """The process stands still; since when. It goes on afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield time.monotonic()
    finally:
        os.kill(pid, signal.SIGCONT)


def of(pair: Pair, event: str) -> list[dict[str, object]]:
    """The events of that name, oldest first."""
    return [one for one in pair.events() if one["event"] == event]


@pytest.mark.parametrize("upload", [0, 30_000], ids=["who", "uploads"])
def test_a_stopped_primary_loses_no_request_and_comes_home(pair: Pair, upload: int) -> None:
    """Those inside it are answered when it goes on, those in its queue by the backup, whole, and new ones too."""
    with Steady(pair.http, RATE, upload=upload) as load:
        with stopped(pair.pid("primary")) as at:
            pair.until_active("backup")
            seen = pair.instance("primary")
            assert (seen["health"], seen["eligible"], seen["state"]) in (
                ("stalled", False, "ready"),
                ("down", False, "ready"),
            )
            count = len(load.asked)
            load.until(lambda: len(load.asked) > count + 20)
            if not upload:
                first = load.first_by("backup", at)
                assert first is not None
                assert first - at < BOUND_S
                print(f"first answer by the backup {first - at:.3f} s after the stop")
        pair.until_active("primary")
        if not upload:
            back = time.monotonic()
            load.until(lambda: load.first_by("primary", back) is not None)
    assert load.failures == []
    (stall,) = of(pair, "instance-stalled")
    assert str(stall["message"]).startswith("primary is stalled: it has not accepted ")
    detail = stall["detail"]
    assert isinstance(detail, dict)
    assert detail["rescued"] > 0
    assert len(of(pair, "instance-recovered")) == 1
    assert len(of(pair, "failback")) >= 1
    assert pair.instance("primary")["stalls"] == 1
    assert pair.instance("primary")["stall_seconds"] > 0


def test_a_client_of_the_instances_own_port_is_rescued_too(pair: Pair) -> None:
    with Steady(pair.primary[0], RATE) as load:
        with stopped(pair.pid("primary")) as at:
            pair.until_active("backup")
            load.until(lambda: load.first_by("backup", at) is not None)
            count = len(load.asked)
            load.until(lambda: len(load.asked) > count + 20)
            assert {one.name for one in load.asked[count:]} == {"backup"}
        pair.until_active("primary")
    assert load.failures == []


def test_a_stalled_instance_gets_nothing_from_the_next_daemon(pair: Pair) -> None:
    """The daemon dies while the primary stands still; its successor knows, before it has looked for itself."""
    with Steady(pair.http, RATE) as load, stopped(pair.pid("primary")):
        pair.until_active("backup")
        pair.until(lambda seen: seen["instances"]["primary"]["health"] in ("stalled", "down"))
        pair.done("daemon", "upgrade")
        assert pair.status()["frontends"]["http"]["active"] == "backup"
        began = time.monotonic()
        load.until(lambda: load.first_by("backup", began) is not None)
        assert all(one.name == "backup" for one in load.asked if one.began > began)
    assert load.failures == []
    pair.until_active("primary")


def test_the_last_one_that_stalls_lets_clients_wait_and_serves_them_when_it_goes_on(pair: Pair) -> None:
    pair.done("stop", "backup")
    with Steady(pair.http, RATE) as load:
        with stopped(pair.pid("primary")):
            pair.until_active(None)
            pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] > 5)
            assert pair.instance("primary")["stalls"] == 1
        pair.until_active("primary")
    assert load.failures == []
    (stall,) = of(pair, "instance-stalled")
    assert isinstance(stall["detail"], dict)
    assert stall["detail"]["rescued"] == 0, "there was nobody to serve them"


def test_turned_off_nothing_is_called_stalled(tmp_path: Path) -> None:
    with Pair(tmp_path, failback="200ms") as pair:
        pair.until_active("primary")
        pair.config.write_text(pair.config.read_text() + "\n[stall]\nenabled = false\n")
        pair.done("config", "reload")
        with Steady(pair.http, RATE) as load:
            with stopped(pair.pid("primary")):
                pair.until_active("backup")  # its checks fail
                assert pair.instance("primary")["stalls"] == 0
            pair.until_active("primary")
        assert of(pair, "instance-stalled") == []
        assert load.failures == []
