"""Faults of what a kernel gives: no descriptors, no processes, and a clock that somebody has set."""

from __future__ import annotations

import errno
import os
import resource
import secrets
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

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
    until_normal,
    until_said,
)
from tests.support.pair import Clients, Pair
from tests.support.waiting import PATIENCE

fault = Faults()

DAY = timedelta(days=1)
PIDS_CGROUP = Path("/sys/fs/cgroup/pids")
"""Where cgroup v1 has its controller of process numbers."""


@fault("no free descriptors in the daemon")
def daemon_without_descriptors(scene: Scene) -> None:
    with Pair(scene.home) as pair:
        assert pair.daemon is not None
        with Load(pair) as load:
            primary = pair.pid("primary")
            with _no_descriptors_left(pair.daemon.pid):
                gone_at = kill(primary)
                until_said(pair, "event=launch_failed", "too many open files")
                load.prove()
                assert load.names_since(gone_at) == {"backup"}
                began = time.monotonic()
            seconds = until_normal(pair, began, lambda seen: seen["instances"]["primary"]["incarnation"] >= 2)
            load.prove()
        load.assert_only_inside(gone_at)
        assert pair.daemon.poll() is None
    scene.tell(load, "the relay served on; the primary was launched when there were some again", seconds)


@fault("no free descriptors in the relay process")
def relay_without_descriptors(scene: Scene) -> None:
    with Pair(scene.home) as pair:
        with Load(pair) as load:
            before = pids(pair)
            with _no_descriptors_left(before["relay"]), ExitStack() as stack:
                late = Clients(pair.http, 4)
                pair.until_true(lambda: said(pair, "event=accept_paused"), "clients that wait")
                asked = len(load.kept.answers)
                pair.until_true(lambda: len(load.kept.answers) >= asked + 8, "answers on connections that are open")
                began = time.monotonic()
                stack.callback(lambda: None)
            with late:
                seconds = until_normal(pair, began)
            load.prove()
            assert pids(pair) == before
        assert late.failures == []
        load.assert_nothing_lost()
        assert len(said(pair, "event=accept_paused")) == 1
    scene.tell(load, "open connections went on, new ones waited in the backlog and were served", seconds)
