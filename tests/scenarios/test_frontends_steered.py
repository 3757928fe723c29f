"""What operators order about a frontend that the kernel steers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.test_steering import steered
from tests.support.namespaces import apart
from tests.support.pair import Clients, connection

pytestmark = pytest.mark.slow


@apart
def test_a_pause_holds_what_the_kernel_would_have_steered(tmp_path: Path) -> None:
    with steered(tmp_path) as pair, Clients(pair.http, 4) as clients:
        clients.await_answers(8)
        pair.done("pause", "http", "--for", "5m")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] == 4)
        before = sum(clients.answered.values())
        pair.done("resume", "http")
        clients.await_answers(before + 20)
        assert pair.status()["frontends"]["http"]["mode"] == "steer"
        assert clients.failures == []


@apart
def test_a_pause_outlives_the_daemon_and_ends_without_it(tmp_path: Path) -> None:
    """The next daemon steers again."""
    with steered(tmp_path) as pair, Clients(pair.http, 2) as clients:
        pair.done("pause", "http", "--for", "3s")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] == 2)
        pair.kill()
        before = sum(clients.answered.values())
        clients.await_answers(before + 10)
        pair.begin()
        pair.until(lambda seen: seen["frontends"]["http"]["paused"] is None)
        accepted = pair.status()["frontends"]["http"]["accepted_total"]["primary"]
        pair.until(lambda seen: seen["frontends"]["http"]["accepted_total"]["primary"] > accepted)
        assert clients.failures == []


@apart
def test_the_next_daemon_goes_on_with_a_pause(tmp_path: Path) -> None:
    with steered(tmp_path) as pair, Clients(pair.http, 2) as clients:
        pair.done("pause", "http", "--for", "5m")
        pair.kill()
        pair.begin()
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] == 2)
        before = sum(clients.answered.values())
        pair.done("resume", "http")
        clients.await_answers(before + 20)
        assert clients.failures == []


@apart
def test_limits_are_refused_and_counters_begin_anew(tmp_path: Path) -> None:
    with steered(tmp_path) as pair:
        refused = pair.ctl("cap", "http", "5")
        assert (refused.returncode, refused.stdout) == (3, "")
        assert refused.stderr == (
            "cannot cap http: the kernel steers it, and only the relay can count;"
            " `max_connections` or `max_per_instance` in the configuration makes it relay\n"
        )
        with Clients(pair.http, 1) as clients:
            clients.await_answers(5)
        pair.done("reset", "http")
        assert pair.status()["frontends"]["http"]["accepted_total"]["primary"] == 0


@apart
def test_a_second_order_shortens_the_drain_of_a_steered_connection(tmp_path: Path) -> None:
    with steered(tmp_path) as pair, connection(pair.http) as slow:
        before = pair.pid("primary")
        slow.request("GET", "/slow?ms=60000")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] == 1)
        pair.done("restart", "primary", "--no-wait")
        pair.until(lambda seen: seen["instances"]["primary"]["state"] == "draining")
        ended = pair.ctl("restart", "primary", "--within", "500ms")
        assert ended.returncode == 0, ended.stderr
        assert "1 of 1 connection was cut after " in ended.stderr
        [told] = [one for one in pair.events() if one["event"] == "drain-finished"]
        assert (told["detail"]["cut"], told["detail"]["ended"]) == (1, 0)
        assert "1 of 1 connection was cut after " in told["message"]
        assert "(sooner than drain)" in told["message"]
        assert pair.pid("primary") != before
