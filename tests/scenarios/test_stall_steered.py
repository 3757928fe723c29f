"""Instances that stop accepting while the kernel steers clients to them: traffic moves, and who waits is answered."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from clojarsd.core.names import Role
from clojarsd.core.steering import roles_of_word
from clojarsd.system import bpf
from tests.scenarios.test_stall import BOUND_S, RATE, of, stopped
from tests.scenarios.test_steering import BOTH, PINS, steered
from tests.support.namespaces import apart
from tests.support.pair import Clients, Pair, connection
from tests.support.reluctant_app import command as reluctant
from tests.support.steady import Steady
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

P, B = Role.PRIMARY, Role.BACKUP
SOON = '200ms"\nfailback_max = "200ms'
"""The `failback` of a pair whose primary is trusted again at once, however often it fails."""


def kernel_order() -> tuple[Role, ...]:
    """The order in which the kernel tries the instances of the only steered frontend, as it is pinned."""
    descriptor = bpf.get_pinned(PINS / "order")
    try:
        word = bpf.look_up(descriptor, bytes(4), 4)
    finally:
        os.close(descriptor)
    assert word is not None
    return roles_of_word(int.from_bytes(word, bpf.BYTE_ORDER))


def answered_by(load: Steady, name: str, after: float, count: int) -> None:
    """Return when so many that were asked after an instant were answered by that instance."""
    load.until(lambda: sum(one.name == name and one.began > after for one in load.asked) >= count)


def settle(pair: Pair) -> None:
    """Return when both serve, and new connections go to the primary."""
    pair.until_active("primary")
    pair.until(lambda seen: all(one["health"] == "up" for one in seen["instances"].values()))


@BOTH
@pytest.mark.parametrize("upload", [0, 30_000], ids=["who", "uploads"])
@apart
def test_a_stopped_primary_loses_no_request_and_comes_home(tmp_path: Path, kind: str, upload: int) -> None:
    with steered(tmp_path, kind, failback=SOON) as pair, Steady(pair.http, RATE, upload=upload) as load:
        assert kernel_order() == (P, B)
        with stopped(pair.pid("primary")) as at:
            seen = pair.until_active("backup")
            assert kernel_order()[0] is B
            assert seen["frontends"]["http"]["mode"] == "steer"
            assert seen["instances"]["primary"]["eligible"] is False
            count = len(load.asked)
            load.until(lambda: len(load.asked) > count + 30)
            pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] == 0)
            if not upload:
                first = load.first_by("backup", at)
                assert first is not None
                assert first - at < BOUND_S
        settle(pair)
        pair.until_true(lambda: kernel_order() == (P, B), "the order of before")
        if not upload:
            answered_by(load, "primary", time.monotonic(), 10)
        (stall,) = of(pair, "instance-stalled")
        assert isinstance(stall["detail"], dict)
        assert stall["detail"]["rescued"] > 0
        assert len(of(pair, "instance-recovered")) == 1
        for event in ("failover", "failback"):
            assert sum("frontend http " in str(one["message"]) for one in of(pair, event)) == 1
    assert load.failures == []


@apart
def test_operators_are_told_what_has_happened_and_what_comes(tmp_path: Path) -> None:
    with steered(tmp_path, failback="5m") as pair, Steady(pair.http, RATE) as load:
        with stopped(pair.pid("primary")):
            pair.until(lambda seen: seen["instances"]["primary"]["health"] == "stalled")
            text = pair.done("status")
            assert "it has not accepted" in text
            told = pair.done("why")
            assert "backup serves http since" in told
            assert "primary is stalled: it has not accepted" in told
            assert "served by backup" in told
        pair.until(lambda seen: seen["instances"]["primary"]["eligible"])
        answered_by(load, "backup", time.monotonic(), 5)
        told = pair.done("why")
        assert "primary gets its new connections" in told
        assert "primary accepts connections again, after" in pair.done("events", "-n", "50")
    assert load.failures == []


@apart
def test_both_have_clients_when_one_stops(tmp_path: Path) -> None:
    """The backup serves its own port meanwhile: what waits there now and then is not taken for the primary's."""
    with (
        steered(tmp_path, failback=SOON) as pair,
        Steady(pair.http, RATE) as load,
        Steady(pair.backup[0], 4 * RATE) as others,
    ):
        with stopped(pair.pid("primary")):
            pair.until_active("backup")
            answered_by(load, "backup", time.monotonic(), 30)
        settle(pair)
        with stopped(pair.pid("backup")):
            pair.until(lambda seen: seen["instances"]["backup"]["health"] in ("stalled", "down"))
            answered_by(load, "primary", time.monotonic(), 30)
            answered_by(others, "primary", time.monotonic(), 30)
        settle(pair)
    assert load.failures == []
    assert others.failures == []


@apart
def test_the_last_one_that_stalls_lets_clients_come_to_the_relay_and_serves_them_when_it_goes_on(
    tmp_path: Path,
) -> None:
    with steered(tmp_path, failback=SOON) as pair:
        pair.done("stop", "backup")
        with Steady(pair.http, RATE) as load:
            with stopped(pair.pid("primary")):
                pair.until_active(None)
                assert kernel_order() == ()
                pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] > 10)
                assert pair.instance("primary")["health"] in ("stalled", "down")
            pair.until_active("primary")
            pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] == 0)
            assert kernel_order() == (P,)
            answered_by(load, "primary", time.monotonic(), 10)
        assert load.failures == []


@apart
def test_both_stop_and_the_one_that_goes_on_first_serves_all(tmp_path: Path) -> None:
    with steered(tmp_path, failback=SOON) as pair, Steady(pair.http, RATE) as load:
        primary, backup = pair.pid("primary"), pair.pid("backup")
        with stopped(primary):
            with stopped(backup):
                pair.until_active(None)
                pair.until(lambda seen: seen["frontends"]["http"]["connections"]["held"] > 10)
            pair.until_active("backup")
            answered_by(load, "backup", time.monotonic(), 20)
        settle(pair)
    assert load.failures == []


@apart
def test_an_instance_that_stalls_while_it_is_drained_lets_its_queue_go(tmp_path: Path) -> None:
    """The request inside it keeps the drain waiting, and is answered when it goes on; who came before is rescued."""
    with steered(tmp_path, failback=SOON) as pair, connection(pair.http) as slow, Steady(pair.http, RATE) as load:
        before = pair.pid("primary")
        slow.request("GET", "/slow?ms=2000")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] >= 1)
        with stopped(before):
            load.until(lambda: load.open > 3)
            pair.done("restart", "primary", "--no-wait")
            pair.until(lambda seen: seen["instances"]["primary"]["state"] == "draining")
            answered_by(load, "backup", time.monotonic(), 30)
            load.until(lambda: all(one.name == "backup" for one in load.asked[-20:]))
        assert slow.getresponse().status == 200
        pair.until(lambda seen: seen["instances"]["primary"]["pid"] not in (None, before))
        settle(pair)
    assert load.failures == []


@apart
def test_a_daemon_that_is_killed_during_a_stall_is_followed_by_one_that_knows(tmp_path: Path) -> None:
    with steered(tmp_path, failback=SOON) as pair, Steady(pair.http, RATE) as load:
        with stopped(pair.pid("primary")):
            pair.until_active("backup")
            answered_by(load, "backup", time.monotonic(), 10)
            pair.kill()
            began = time.monotonic()
            answered_by(load, "backup", began, 20)
            assert kernel_order()[0] is B
            pair.begin()
            answered_by(load, "backup", time.monotonic(), 20)
            seen = pair.status()
            assert seen["frontends"]["http"]["active"] == "backup"
            assert seen["instances"]["primary"]["eligible"] is False
            assert kernel_order()[0] is B
        settle(pair)
        answered_by(load, "primary", time.monotonic(), 10)
    assert load.failures == []


@apart
def test_an_upgrade_of_the_daemon_during_a_stall_changes_nothing(tmp_path: Path) -> None:
    with steered(tmp_path, failback=SOON) as pair, Steady(pair.http, RATE) as load:
        with stopped(pair.pid("primary")):
            pair.until(lambda seen: seen["instances"]["primary"]["health"] in ("stalled", "down"))
            pair.until_active("backup")
            began = time.monotonic()
            pair.done("daemon", "upgrade")
            assert kernel_order()[0] is B
            answered_by(load, "backup", time.monotonic(), 20)
            assert {one.name for one in load.asked if one.began > began} == {"backup"}
        settle(pair)
        answered_by(load, "primary", time.monotonic(), 10)
    assert load.failures == []


@apart
def test_the_daemon_is_killed_while_clients_wait_for_a_stopped_primary(tmp_path: Path) -> None:
    """Nobody has seen the stall yet: the next daemon does, and rescues who waits since then."""
    with steered(tmp_path, failback=SOON) as pair, Steady(pair.http, RATE) as load:
        primary = pair.pid("primary")
        pair.kill()
        with stopped(primary):
            load.until(lambda: load.open > 20)
            pair.begin()
            pair.until_active("backup")
            load.until(lambda: load.open < 20)
        settle(pair)
    assert load.failures == []


@apart
def test_a_slow_acceptor_with_a_full_queue_raises_no_alarm(tmp_path: Path) -> None:
    """32 steered clients, each with a new connection as soon as it is served: its queue is full at every look.

    The kernel may reset some of them by itself, which have waited for room for too long.
    """
    with steered(tmp_path, command=reluctant(pause=0.05)) as pair:
        patient = pair.config.read_text().replace('path = "/health"', 'path = "/health"\ntimeout = "25s"')
        pair.config.write_text(patient)  # its checks wait as long as clients do
        pair.done("config", "reload")
        with Clients(pair.http, 32) as clients:
            clients.await_answers(150)
        assert set(clients.answered) == {"primary"}
        assert pair.instance("primary")["stalls"] == 0
        assert of(pair, "instance-stalled") == []


@apart
def test_a_listener_that_is_opened_again_gets_its_connections_back(tmp_path: Path) -> None:
    """Nobody is told: the kernel goes to the backup when it is closed, and the watch sees the new one."""
    with steered(tmp_path, command=reluctant(pause=0.0)) as pair, Steady(pair.http, RATE) as load:
        os.kill(pair.pid("primary"), signal.SIGUSR1)
        load.until(lambda: load.asked[-1].name == "backup")
        at = time.monotonic()
        os.kill(pair.pid("primary"), signal.SIGUSR1)
        answered_by(load, "primary", at, 10)
        assert pair.status()["frontends"]["http"]["active"] == "primary", "its checks did not fail twice"
    assert load.failures == []


@apart
def test_a_frontend_tells_its_steered_connections_and_until_when_they_are_let_end(tmp_path: Path) -> None:
    with steered(tmp_path) as pair, ExitStack() as clients:
        slow = clients.enter_context(connection(pair.http))
        idle = clients.enter_context(connection(pair.http))
        idle.request("GET", "/who")
        assert idle.getresponse().read()
        slow.request("GET", "/slow?ms=60000")
        assert slow.sock is not None
        assert idle.sock is not None
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] == 2)
        lines = pair.done("connections", "http").splitlines()
        own = {f"{host}:{port}" for host, port in (one.sock.getsockname() for one in (slow, idle))}
        told = [line for line in lines if any(name in line for name in own)]
        assert len(told) == 2
        assert all("primary" in line for line in told)
        before = pair.pid("primary")
        pair.done("drain", "primary", "--within", "20s", "--no-wait")
        seen = pair.until(lambda seen: seen["frontends"]["http"]["draining"])
        assert seen["frontends"]["http"]["draining"].keys() == {"primary"}
        assert "until" in seen["frontends"]["http"]["draining"]["primary"]
        began = time.monotonic()
        pair.done("drain", "primary", "--within", "500ms")
        assert time.monotonic() - began < PATIENCE
        pair.until(lambda seen: not seen["frontends"]["http"]["draining"])
        with pytest.raises(ConnectionResetError):
            slow.getresponse()
        pair.done("undrain", "primary")
        assert pair.pid("primary") == before


@apart
def test_flapping_is_remembered_by_the_next_daemon(tmp_path: Path) -> None:
    with steered(tmp_path, failback="100ms") as pair:
        for number in (1, 2):
            os.kill(pair.pid("primary"), signal.SIGKILL)
            pair.until(lambda seen: seen["frontends"]["http"]["recent_failovers"] == number)  # noqa: B023  # called at once
            settle(pair)
        pair.kill()
        pair.begin()
        settle(pair)
        assert pair.status()["frontends"]["http"]["recent_failovers"] == 2
        pair.done("daemon", "upgrade")
        settle(pair)
        os.kill(pair.pid("primary"), signal.SIGKILL)
        pair.until(lambda seen: seen["frontends"]["http"]["recent_failovers"] == 3)
