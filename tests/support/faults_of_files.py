"""Faults of files: the state torn or gone, disks full, directories and sockets removed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.faults import (
    CannotInject,
    Faults,
    Load,
    Scene,
    happened,
    is_normal,
    kill,
    pids,
    said,
    state,
    still_runs,
    until_normal,
    until_said,
)
from tests.support.pair import Pair

fault = Faults()

SMALL_DISK = "4m"
"""Of a disk that is to be filled; the history alone begins with some hundred kilobytes."""


def _tear(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _make_foreign(path: Path) -> None:
    path.write_text(json.dumps({"format": 99, "instances": []}))


def _damaged_state(scene: Scene, damage: Callable[[Path], None], why: str | None) -> None:
    with scene.pair() as pair:
        with Load(pair) as load:
            before, path = pids(pair), scene.home / "state" / "state.json"
            pair.kill()
            damage(path)
            damaged = path.read_bytes() if path.exists() else None
            began = time.monotonic()
            pair.begin()
            seconds = until_normal(pair, began)
            load.prove()
            assert pids(pair) == before
        load.assert_nothing_lost()
        assert len(said(pair, "event=adopted_by_mark")) == 2
        complaints = said(pair, "event=state_not_usable")
        assert [why is not None and why in line for line in complaints] == [True] * (why is not None)
        if damaged is not None:
            assert path.with_name("state.json.bad").read_bytes() == damaged
        pair.until_true(lambda: path.exists() and state(pair)["format"] == 1, "a whole state file")
        assert [pair.instance(role)["incarnation"] for role in ("primary", "backup")] == [1, 1]
        pair.done("restart", "all")
        assert [pair.instance(role)["incarnation"] for role in ("primary", "backup")] == [2, 2]
    scene.tell(load, "both were found by their marks and adopted", seconds)


@fault("state file cut in half")
def torn_state(scene: Scene) -> None:
    _damaged_state(scene, _tear, "it holds no whole JSON")


@fault("state file empty")
def empty_state(scene: Scene) -> None:
    _damaged_state(scene, _empty, "it is empty")


@fault("state file of another format")
def foreign_state(scene: Scene) -> None:
    _damaged_state(scene, _make_foreign, "it has format 99")


@fault("state file missing")
def missing_state(scene: Scene) -> None:
    _damaged_state(scene, Path.unlink, None)


@fault("the primary's pid belongs to another process")
def reused_pid(scene: Scene) -> None:
    with (
        scene.pair() as pair,
        subprocess.Popen(["sleep", "600"], start_new_session=True) as sleep,
    ):
        try:
            stranger = psutil.Process(sleep.pid)
            with Load(pair) as load:
                before = pids(pair)
                pair.kill()
                gone_at = kill(before["primary"])
                document = state(pair)
                assert document["instances"]["PRIMARY"]["process"]["pid"] == before["primary"]
                document["instances"]["PRIMARY"]["process"]["pid"] = stranger.pid
                (scene.home / "state" / "state.json").write_text(json.dumps(document))
                began = time.monotonic()
                pair.begin()
                seconds = until_normal(pair, began, lambda seen: seen["instances"]["primary"]["incarnation"] == 2)
                load.prove()
                after = pids(pair)
            load.assert_only_inside(gone_at)
            assert after["primary"] not in (before["primary"], stranger.pid)
            assert (after["backup"], after["relay"]) == (before["backup"], before["relay"])
            pair.end()
            assert still_runs(stranger), "somebody else's process was ended"
            assert stranger.status() == psutil.STATUS_SLEEPING
        finally:
            sleep.kill()
    scene.tell(load, "not touched, by start or by stop; the primary was launched again", seconds)


@fault("disk of state and logs full")
def full_disk(scene: Scene) -> None:
    disks = [scene.home / name for name in ("state", "log")]
    with _small_disks(disks) as program, scene.pair(program=program) as pair:
        assert pair.daemon is not None
        seen_from_outside = Path(f"/proc/{pair.daemon.pid}/root")
        with Load(pair) as load:
            ballast = [seen_from_outside / disk.relative_to("/") / "ballast" for disk in disks]
            for path in ballast:
                _fill(path)
            gone_at = kill(pair.pid("primary"))
            pair.until(lambda seen: is_normal(seen) and seen["instances"]["primary"]["incarnation"] == 2)
            for role in ("backup", "primary"):
                assert pair.ctl("restart", role).returncode in (0, 1), "done, or not noted on the disk"
            pair.until(lambda seen: is_normal(seen) and seen["instances"]["primary"]["incarnation"] == 3)
            until_said(pair, "event=state_not_written")
            load.prove()
            began = time.monotonic()
            for path in ballast:
                path.unlink()
            until_said(pair, "event=state_written_again")
            seconds = time.monotonic() - began
            load.prove()
        load.assert_only_inside(gone_at)
        for event in ("state_not_written", "history_not_written"):
            assert len(said(pair, "level=warning", f"event={event} ")) == 1
        assert len(said(pair, "level=warning", "event=log_disk_full")) <= 1
        saved = json.loads((seen_from_outside / disks[0].relative_to("/") / "state.json").read_text())
        assert saved["instances"]["PRIMARY"]["unit"]["incarnation"] == 3
        pair.until_true(
            lambda: happened(pair).count("instance-ready") >= 5, "the history, whole again", pair.daemon_log
        )
        pair.done("restart", "backup")
    scene.tell(load, "kill and restarts went on, each writer warned once; written again when there was room", seconds)


@contextmanager
def _small_disks(paths: list[Path]) -> Iterator[list[str]]:
    """The command line before a daemon's arguments that runs it with a small disk of its own at each path.

    Raises:
        CannotInject: nothing can be mounted.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        raise CannotInject("a small disk needs root and unshare(1)")
    for path in paths:
        path.mkdir()
    mounts = [f"mount -t tmpfs -o size={SMALL_DISK} tmpfs '{path}'" for path in paths]
    steps = " && ".join([*mounts, 'exec "$@"'])
    enter = ["unshare", "--mount", "sh", "-ec", steps, "sh"]
    tried = subprocess.run([*enter, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise CannotInject(f"a small disk cannot be mounted: {tried.stderr.strip()}")
    yield [*enter, *Pair(paths[0]).program]


def _fill(path: Path) -> None:
    """Leave no room on the disk."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


@fault("log directory removed")
def removed_logs(scene: Scene) -> None:
    logs = scene.home / "log"
    with scene.pair() as pair:
        with Load(pair) as load:
            before = pids(pair)
            began = time.monotonic()
            remove_whole(logs)
            gone_at = kill(before["backup"])
            seconds = until_normal(pair, began, lambda seen: seen["instances"]["backup"]["incarnation"] == 2)
            pair.until_true(lambda: (logs / "backup.log").exists(), "the log of the next backup")
            assert "ready name=backup" in (logs / "backup.log").read_text()
            pair.done("restart", "primary")
            assert "ready name=primary" in pair.done("logs", "primary", "-n", "5")
            load.prove()
        load.assert_only_inside(gone_at)
        load.assert_nothing_lost(reopened=scene.is_steered)  # the backup had no traffic when it was killed
        assert said(pair, "event=launch_failed") == []
    scene.tell(load, "made again; a kill and a restart went on, and what is new is logged", seconds)


@fault("control, relay and notify sockets removed")
def removed_sockets(scene: Scene) -> None:
    run = scene.home / "run"
    names = ("control.sock", "relay/relay.sock", "notify-primary.sock", "notify-backup.sock")
    with scene.pair() as pair:
        with Load(pair) as load:
            before = pids(pair)
            began = time.monotonic()
            for name in names:
                (run / name).unlink()
            pair.until_true(lambda: all((run / name).exists() for name in names), "the sockets", pair.daemon_log)
            seconds = until_normal(pair, began)
            pair.done("restart", "backup")
            load.prove()
            pair.kill()
            pair.begin()
            pair.until(is_normal)
            load.prove()
            assert pids(pair)["primary"] == before["primary"]
            assert pids(pair)["relay"] == before["relay"]
        load.assert_nothing_lost()
    scene.tell(load, "bound again; orders came, and the next daemon found the relay by its own", seconds)


def remove_whole(directory: Path) -> None:
    """Remove it with all that is in it, and with what is made in it again before it is gone."""
    while True:
        try:
            shutil.rmtree(directory)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            return


@fault("the whole runtime directory removed")
def removed_runtime_directory(scene: Scene) -> None:
    run = scene.home / "run"
    with scene.pair() as pair:
        with Load(pair) as load:
            before = pids(pair)
            began = time.monotonic()
            remove_whole(run)
            pair.until_true(
                lambda: (run / "control.sock").exists() and (run / "relay/relay.sock").exists(), "the sockets"
            )
            seconds = until_normal(pair, began)
            pair.done("restart", "backup")
            pair.kill()
            pair.begin()
            pair.until(is_normal)
            load.prove()
            assert pids(pair)["primary"] == before["primary"]
            assert pids(pair)["relay"] == before["relay"]
        load.assert_nothing_lost()
    scene.tell(load, "made again, sockets in it; orders came, and the next daemon found the relay", seconds)
