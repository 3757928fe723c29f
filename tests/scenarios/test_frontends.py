"""What operators order about frontends, with a daemon, a pair and clients that are all real."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.pair import STAND_IN, Clients, Pair, connection
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path) as running:
        yield running


def held(pair: Pair, frontend: str = "http") -> int:
    count: int = pair.status()["frontends"][frontend]["connections"]["held"]
    return count


def test_clients_see_a_pause_as_slowness_and_nothing_else(pair: Pair) -> None:
    """Also those that are inside a request when it begins."""
    with Clients(pair.http, 4) as clients, connection(pair.http) as slow:
        slow.request("GET", "/slow?ms=1000")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] >= 1)
        assert pair.done("pause", "http", "--for", "30s").startswith("new connections of http wait until ")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] == 4)
        assert slow.getresponse().status == 200
        assert "http: paused by " in pair.done("status")
        before = sum(clients.answered.values())
        assert pair.done("resume", "http") == "new connections of http wait no more\n"
        clients.await_answers(before + 20)
    assert clients.failures == []
    assert [event["message"].partition(" orders: ")[2] for event in pair.events() if event["event"] == "order"] == [
        "pause http for 30 s",
        "resume http",
    ]


def test_a_pause_ends_by_itself_after_its_time_though_the_daemon_was_killed(pair: Pair) -> None:
    pair.done("pause", "line", "--for", "2s")
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", pair.line), PATIENCE) as client:
        client.sendall(b"hello\n")
        pair.kill()
        assert client.recv(100).endswith(b": hello\n")
        assert time.monotonic() - began >= 1.0
    pair.begin()
    assert pair.status()["frontends"]["line"]["paused"] is None


def test_a_pause_goes_on_over_an_upgrade_and_a_death_of_the_daemon(pair: Pair) -> None:
    pair.done("pause", "line", "--for", "5m")
    before = pair.status()["frontends"]["line"]["paused"]
    with socket.create_connection(("127.0.0.1", pair.line), PATIENCE) as client:
        client.sendall(b"hello\n")
        pair.until(lambda seen: seen["frontends"]["line"]["connections"]["held"] == 1)
        pair.done("daemon", "upgrade")
        pair.kill()
        pair.begin()
        after = pair.status()["frontends"]["line"]["paused"]
        assert (after["by"], after["until"][:17]) == (before["by"], before["until"][:17])
        assert held(pair, "line") == 1
        pair.done("resume", "line")
        assert client.recv(100).endswith(b": hello\n")


def lines(pair: Pair, stack: ExitStack, count: int) -> list[socket.socket]:
    """Connections of the frontend `line` that have said something."""
    made = []
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", pair.line), PATIENCE))
        client.sendall(b"hello\n")
        made.append(client)
    return made


def test_who_finds_an_instance_full_goes_to_the_other_and_then_waits_for_room(pair: Pair) -> None:
    pair.done("cap", "line", "primary", "2")
    pair.done("cap", "line", "backup", "1")
    with ExitStack() as stack:
        clients = lines(pair, stack, 4)
        answers = [client.recv(100).split(b" ")[0].split(b":")[0] for client in clients[:3]]
        assert [answer[:1] for answer in answers] == [b"p", b"p", b"b"]
        pair.until(lambda seen: seen["frontends"]["line"]["connections"] == {"primary": 2, "backup": 1, "held": 1})
        assert "line: at most 2 to primary, 1 to backup" in pair.done("status")
        clients[0].close()
        assert clients[3].recv(100).startswith(b"p")
    pair.until(lambda seen: not any(seen["frontends"]["line"]["connections"].values()))


def test_limits_of_the_settings_are_taken_over_by_a_reload(pair: Pair) -> None:
    text = pair.config.read_text()
    pair.config.write_text(text.replace('port = "line"', 'port = "line"\nmax_connections = 1'))
    pair.done("config", "reload")
    with ExitStack() as stack:
        first, second = lines(pair, stack, 2)
        assert first.recv(100)
        second.settimeout(0.2)
        with pytest.raises(TimeoutError):
            second.recv(100)
        second.settimeout(PATIENCE)
        assert held(pair, "line") == 0
        first.close()
        assert second.recv(100).endswith(b": hello\n")


def test_counters_begin_anew_and_single_connections_are_shown(pair: Pair) -> None:
    with ExitStack() as stack:
        (client,) = lines(pair, stack, 1)
        assert client.recv(100)
        pair.until(lambda seen: seen["frontends"]["line"]["accepted_total"]["primary"] == 1)  # what is shown is reset
        pair.done("reset", "all")
        seen = pair.status()["frontends"]["line"]
        assert (seen["accepted_total"]["primary"], seen["connections"]["primary"]) == (0, 1)
        assert seen["counters_since"]["by"]
        (shown,) = json.loads(pair.done("connections", "line", "--json"))["connections"]
        assert shown["client"] == f"127.0.0.1:{client.getsockname()[1]}"
        assert (shown["role"], shown["phase"], shown["bytes_up"]) == ("primary", "open", 6)
        assert " line " in pair.done("connections")
        assert "nobody" not in pair.done("frontends")


def draining(seen: dict[str, Any]) -> Any:
    return seen["frontends"]["http"]["draining"].get("primary")


def test_a_second_order_shortens_a_restart_that_waits_for_a_slow_request(pair: Pair) -> None:
    before = pair.pid("primary")
    with connection(pair.http) as slow:
        slow.request("GET", "/slow?ms=60000")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] == 1)
        pair.done("restart", "primary", "--no-wait")
        left = draining(pair.until(draining))
        assert left["left"] == 1
        assert "http: 1 open connection of primary may end until " in pair.done("status")
        began = time.monotonic()
        ended = pair.ctl("restart", "primary", "--within", "500ms")
        assert ended.returncode == 0, ended.stderr
        assert "1 of 1 connection was cut after " in ended.stderr
        [told] = [one for one in pair.events() if one["event"] == "drain-finished"]
        assert (told["detail"]["cut"], told["detail"]["ended"]) == (1, 0)
        assert "1 of 1 connection was cut after " in told["message"]
        assert time.monotonic() - began < 9.0, "the drain of the settings takes 10 s"
        with pytest.raises(ConnectionError):
            slow.getresponse()
    assert pair.pid("primary") != before
    assert pair.instance("primary")["incarnation"] == 2


def test_a_drain_by_wish_can_be_ended_at_once(pair: Pair) -> None:
    with connection(pair.http) as slow:
        slow.request("GET", "/slow?ms=60000")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] == 1)
        pair.done("drain", "primary", "--no-wait")
        pair.until(draining)
        assert pair.done("drain", "primary", "--within", "0s").startswith("primary is out of rotation")
        assert pair.instance("primary")["state"] == "draining"
        assert draining(pair.status()) is None


def test_a_primary_that_flaps_gets_its_connections_back_later_each_time(tmp_path: Path) -> None:
    waits = []
    sick = tmp_path / "sick-primary"
    unhealthy = ("--unhealthy-while", str(tmp_path / "sick-{role}"))
    with Pair(tmp_path, command=(*STAND_IN, *unhealthy)) as pair:
        pair.until_active("primary")  # the backup may have been ready first
        for number in range(3):
            sick.touch()
            pair.until_active("backup")
            sick.unlink()
            seen = pair.until(lambda seen: seen["frontends"]["line"]["next"] is not None)["frontends"]["line"]
            assert seen["recent_failovers"] == number + 1
            began = time.monotonic()
            pair.until_active("primary")
            waits.append(time.monotonic() - began)
            late = f"it has failed {number + 1} times in a row and must be eligible for {2**number} s, not 1 s"
            assert seen["next"].get("reason") == (late if number else None)
    assert waits[1] > 1.5
    assert waits[2] > 3.0


def test_orders_are_no_flapping(pair: Pair) -> None:
    for _ in range(2):
        pair.done("drain", "primary")
        pair.until_active("backup")
        pair.done("undrain", "primary")
        seen = pair.until_active("primary")
        assert seen["frontends"]["line"]["recent_failovers"] == 0
