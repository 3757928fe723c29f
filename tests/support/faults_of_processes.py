"""Faults of processes: each of them killed, stopped, deaf, or with children that want to stay."""

from __future__ import annotations

import os
import signal
import time

import psutil

from tests.support.app import command as app_command
from tests.support.faults import (
    Faults,
    Load,
    Scene,
    Transfer,
    happened,
    is_normal,
    kill,
    pids,
    said,
    still_runs,
    until_normal,
    until_said,
)
from tests.support.pair import STAND_IN, Clients, Pair
from tests.support.waiting import PATIENCE

fault = Faults()

STAYS = 50_000_000
"""Bytes of a transfer that is under way while something else is killed."""


@fault("kill -9 of the primary")
def killed_instance(scene: Scene) -> None:
    with scene.pair() as pair:
        with Load(pair, inside=5) as load:
            began = time.monotonic()
            gone_at = kill(pair.pid("primary"))
            seconds = until_normal(pair, began, lambda seen: seen["instances"]["primary"]["incarnation"] == 2)
            load.prove()
        load.assert_only_inside(gone_at)
        assert load.names_since(gone_at) == {"primary", "backup"}
        seen = pair.instance("primary")
        assert (seen["restarts"], seen["last_exit"]["signal"], seen["incarnation"]) == (1, signal.SIGKILL, 2)
        assert pair.instance("backup")["incarnation"] == 1
        assert {"failover", "failback"} <= set(happened(pair))
    scene.tell(load, "the backup served, the primary was launched again and took over", seconds)


@fault("kill -9 of both instances")
def killed_instances(scene: Scene) -> None:
    with scene.pair() as pair:
        with Load(pair, inside=5) as load:
            began = time.monotonic()
            gone_at = kill(pair.pid("primary"), pair.pid("backup"))
            seconds = until_normal(
                pair, began, lambda seen: all(one["incarnation"] == 2 for one in seen["instances"].values())
            )
            load.prove()
        load.assert_only_inside(gone_at)
        assert {"hold-started", "hold-ended"} <= set(happened(pair))
    scene.tell(load, "new connections were held until one of them could serve", seconds)


@fault("kill -9 of the daemon")
def killed_daemon(scene: Scene) -> None:
    with scene.pair() as pair:
        with (
            Load(pair, kept=20, inside=5, slow_ms=2000, kept_pause=0.05) as load,
            Transfer(pair.http, STAYS) as transfer,
        ):
            before = pids(pair)
            pair.kill()
            load.prove()
            transfer.goes_on()
            began = time.monotonic()
            pair.begin()
            seconds = until_normal(pair, began)
            load.prove()
            transfer.finish()
            assert pids(pair) == before
        load.assert_nothing_lost()
        assert happened(pair).count("daemon-adopted") == 2
        _is_in_charge(pair)
    scene.tell(load, "everybody was served; started again it adopted the same processes", seconds)


@fault("kill -9 of the daemon, then of the primary")
def killed_daemon_and_instance(scene: Scene) -> None:
    with scene.pair() as pair:
        with Load(pair, inside=5) as load:
            primary = pair.pid("primary")
            pair.kill()
            gone_at = kill(primary)
            load.prove()
            assert load.names_since(gone_at) == {"backup"}
            began = time.monotonic()
            pair.begin()
            seconds = until_normal(pair, began, lambda seen: seen["instances"]["primary"]["incarnation"] == 2)
            load.prove()
        load.assert_only_inside(gone_at)
        assert "instance-exited" in happened(pair)
    scene.tell(load, "the relay took the backup by itself; the next daemon launched the primary", seconds)


@fault("kill -9 of the relay process")
def killed_relay(scene: Scene) -> None:
    with scene.pair() as pair:
        with Load(pair, inside=5, slow_ms=3000 if scene.is_steered else 60_000) as load:
            before = pids(pair)
            began = time.monotonic()
            gone_at = kill(before["relay"])
            seconds = until_normal(pair, began, lambda seen: seen["daemon"]["relay_pid"] not in (None, before["relay"]))
            load.prove()
            assert {**pids(pair), "relay": before["relay"]} == before
        _assert_cost_of_relay(scene, load, gone_at)
        (lost,) = said(pair, "event=relay_lost")
        assert f"pid={before['relay']}" in lost
        assert "signal 9" in lost
        assert len(said(pair, "event=relay_replaced")) == 1
    told = "its connections were cut, new ones waited in the backlog and were served"
    scene.tell(load, "nobody noticed" if scene.is_steered else told, seconds)


def _assert_cost_of_relay(scene: Scene, load: Load, gone_at: float, *, refused: bool = False) -> None:
    """A relay process that is gone costs what was inside it; nothing, where the kernel steers."""
    if scene.is_steered:
        load.assert_nothing_lost()
    else:
        load.assert_only_inside(gone_at, refused)


@fault("kill -9 of the daemon and the relay process")
def killed_daemon_and_relay(scene: Scene) -> None:
    with scene.pair() as pair:
        before = pids(pair)
        with Load(pair, inside=5, slow_ms=3000 if scene.is_steered else 60_000) as load:
            pair.kill()
            gone_at = kill(before["relay"])
            if scene.is_steered:
                load.prove()
            began = time.monotonic()
            pair.begin()
            seconds = until_normal(pair, began)
            load.prove()
        assert {**pids(pair), "relay": before["relay"]} == before
        _assert_cost_of_relay(scene, load, gone_at, refused=True)
    told = "nobody listened until the next daemon made a relay; it adopted the instances"
    scene.tell(load, "the kernel steered on; nobody noticed" if scene.is_steered else told, seconds)


@fault("SIGSTOP of the primary")
def frozen_instance(scene: Scene) -> None:
    with scene.pair() as pair:
        with Load(pair) as load:
            frozen = pair.pid("primary")
            began = time.monotonic()
            os.kill(frozen, signal.SIGSTOP)
            try:
                pair.until_active("backup")
                out_after = time.monotonic() - began
                with Clients(pair.http, 2, pause=0.02) as others:
                    others.await_answers(4)
            finally:
                os.kill(frozen, signal.SIGCONT)
                continued = time.monotonic()
            seconds = until_normal(pair, continued)
            load.prove()
        assert (others.failures, set(others.answered)) == ([], {"backup"})
        assert load.failures == []
        assert pair.pid("primary") == frozen
    scene.tell(load, f"out after {out_after:.1f} s, the backup served; back after SIGCONT, all answered", seconds)


@fault("SIGSTOP of the daemon")
def frozen_daemon(scene: Scene) -> None:
    with scene.pair() as pair:
        assert pair.daemon is not None
        with Load(pair, inside=5, slow_ms=1000) as load:
            before = pids(pair)
            pair.daemon.send_signal(signal.SIGSTOP)
            try:
                load.prove()
            finally:
                pair.daemon.send_signal(signal.SIGCONT)
                continued = time.monotonic()
            seconds = until_normal(pair, continued)
            load.prove()
            assert pids(pair) == before
        load.assert_nothing_lost()
        _is_in_charge(pair)
    scene.tell(load, "everybody was served; after SIGCONT it was in charge again", seconds)


@fault("SIGSTOP of the relay process")
def frozen_relay(scene: Scene) -> None:
    with scene.pair() as pair:
        with Load(pair) as load:
            before = pids(pair)
            began = time.monotonic()
            os.kill(before["relay"], signal.SIGSTOP)
            pair.until(lambda seen: seen["daemon"]["relay_pid"] != before["relay"])
            gone_at = time.monotonic()
            seconds = until_normal(pair, began, lambda seen: seen["daemon"]["relay_pid"] is not None)
            load.prove()
            assert {**pids(pair), "relay": before["relay"]} == before
        _assert_cost_of_relay(scene, load, gone_at)
        assert len(said(pair, "event=relay_killed")) == 1
    scene.tell(load, "killed after ten pings without an answer, and replaced", seconds)


@fault("SIGTERM of the daemon")
def ended_daemon(scene: Scene) -> None:
    with scene.pair() as pair:
        made = pair.processes()
        # kept connections are silent for longer than drain_idle: the last instance's that ask on and on are cut
        with Load(pair, inside=10, slow_ms=1000, kept_pause=0.7) as load:
            assert pair.daemon is not None
            began = time.monotonic()
            pair.daemon.send_signal(signal.SIGTERM)
            assert pair.daemon.wait(PATIENCE) == 0, pair.daemon_log()
            seconds = time.monotonic() - began
        assert load.cut == 0
        # while it ends it serves on; what comes when nobody listens any more is refused, or reset in the backlog
        unaccepted = [one for one in load.failures if "refused" not in one.error]
        assert all(one.began > began for one in load.failures), load.errors
        assert all("ConnectionResetError" in one.error for one in unaccepted), load.errors
        assert len(unaccepted) <= 2, load.errors
        assert not any(map(still_runs, made))
        assert pair.processes() == []
        assert [path.name for path in (scene.home / "run").iterdir()] == ["control.sock.lock"]
        ended = [line.partition("role=")[2].split()[0] for line in said(pair, "event=unit_stopped")]
        assert ended == ["primary", "backup"]
    told = "what was accepted was answered; the primary ended, then the backup; nothing left"
    scene.tell(load, told, seconds, failed=len(unaccepted))


@fault("daemon upgrade")
def upgraded_daemon(scene: Scene) -> None:
    with scene.pair() as pair:
        with (
            Load(pair, kept=100, inside=5, slow_ms=2000, kept_pause=0.25) as load,
            Transfer(pair.http, scene.bulk) as transfer,
        ):
            before, generation = pids(pair), pair.status()["daemon"]["generation"]
            began = time.monotonic()
            pair.done("daemon", "upgrade")
            seconds = until_normal(pair, began, lambda seen: seen["daemon"]["generation"] == generation + 1)
            transfer.goes_on()
            load.prove()
            transfer.finish()
            after = pids(pair)
            assert {**after, "relay": None} == {**before, "relay": None}
            assert pair.daemon is not None
            assert pair.status()["daemon"]["pid"] == pair.daemon.pid
        load.assert_nothing_lost()
        assert "daemon-upgraded" in happened(pair)
        _is_in_charge(pair)
    size = f"{scene.bulk / 1e9:g} GB"
    scene.tell(load, f"100 connections and a transfer of {size} went on, checksum right", seconds)


def _is_in_charge(pair: Pair) -> None:
    """The daemon supervises: an instance that dies is launched again."""
    before = pair.instance("backup")["incarnation"]
    kill(pair.pid("backup"))
    pair.until(lambda seen: is_normal(seen) and seen["instances"]["backup"]["incarnation"] == before + 1)


@fault("an instance that ignores SIGTERM")
def deaf_instance(scene: Scene) -> None:
    patience = 'stop_timeout = "500ms"\n'
    command = [*STAND_IN, "--ignore-term"]
    with scene.pair(command=command, primary_extra=patience, backup_extra=patience) as pair:
        with Load(pair) as load:
            began = time.monotonic()
            pair.done("restart", "all")
            seconds = until_normal(pair, began)
            load.prove()
        load.assert_nothing_lost(reopened=scene.is_steered)
        for role in ("primary", "backup"):
            seen = pair.instance(role)
            assert (seen["last_exit"]["signal"], seen["incarnation"]) == (signal.SIGKILL, 2)
    scene.tell(load, "killed when its time was over, both in turn; nobody noticed", seconds)


@fault("an instance whose setsid child keeps its ports")
def double_forking_instance(scene: Scene) -> None:
    command = app_command(
        *("--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}"),
        *("--leave-listeners", "--daemonize-child"),
    )
    with scene.pair(command=command) as pair:
        with Load(pair) as load:
            first = _left_by(pair)
            assert len(first) == 4, "a sleep with the ports and one without, of each instance"
            sessions = {os.getsid(pair.pid(role)) for role in ("primary", "backup")}
            assert sessions.isdisjoint(os.getsid(one.pid) for one in first)
            taken = {kept.laddr.port for one in first for kept in one.net_connections("tcp") if kept.status == "LISTEN"}
            assert taken == {*pair.primary, *pair.backup}
            began = time.monotonic()
            pair.done("restart", "all")
            seconds = until_normal(pair, began)
            assert not any(map(still_runs, first))
            load.prove()
        load.assert_nothing_lost(reopened=scene.is_steered)
        second = _left_by(pair)
        assert len(second) == 4
        kill(pair.pid("backup"))
        pair.until(lambda seen: is_normal(seen) and seen["instances"]["backup"]["incarnation"] == 3)
        assert len([one for one in second if still_runs(one)]) == 2, "those of the primary"
        assert said(pair, "event=launch_failed") == []
        until_said(pair, "event=unit_ready", times=5)
        third = _left_by(pair)
    assert not any(map(still_runs, third))
    scene.tell(load, "what it had left was gone before the next launch, after a stop and a kill", seconds)


def _left_by(pair: Pair) -> list[psutil.Process]:
    """What the instances have started, in sessions of their own."""
    return [process for process in pair.processes() if process.name() == "sleep"]
