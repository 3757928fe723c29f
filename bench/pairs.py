"""The pair that the benches of supervision use: a real daemon, whose instances and checks are as the bench wants."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.pair import Pair

CONFIG = """
[service]
name = "bench"
user = "{user}"
group = "{group}"
runtime_dir = "{home}/run"
state_dir = "{home}/state"
log_dir = "{home}/log"

[app]
command = {command}
directory = "{home}"
restart = "always"
restart_delay = "0s"
restart_limit = {{ count = 1000000, within = "1s" }}
start_timeout = "1h"
stop_timeout = "10s"
[instances.primary]
ports = {{ http = {primary} }}
[instances.backup]
ports = {{ http = {backup} }}

[[checks]]
kind = "http"
port = "http"
path = "{check_path}"
interval = "{interval}"
timeout = "10s"

[hang]
restart_after = "never"

[frontends.http]
listen = "127.0.0.1:{http}"
port = "http"
mode = "relay"
drain = "1s"
failback = "{failback}"
"""


@dataclass
class BenchPair(Pair):
    """A pair that is relaunched at once, however often it ends, and is checked as often as `interval` says."""

    check_path: str = "/last"
    interval: str = "1s"
    failback: str = "100ms"

    def write_config(self) -> Path:
        """The configuration file, written; also again with another interval, for a reload."""
        self.config.write_text(
            CONFIG.format(
                user=os.geteuid(),
                group=os.getegid(),
                home=self.home,
                command=json.dumps(list(self.command)),
                primary=self.primary[0],
                backup=self.backup[0],
                check_path=self.check_path,
                interval=self.interval,
                http=self.http,
                failback=self.failback,
            )
        )
        return self.config

    def until_ready(self) -> None:
        """Return when both instances can serve and the primary does."""
        self.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
        self.until_active("primary")


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds. rss, pss: KiB; cpu: seconds so far."""

    rss: float
    pss: float
    descriptors: int
    threads: int
    cpu: float


def footprint(pid: int) -> Footprint:
    """What the process holds now."""
    process = psutil.Process(pid)
    with process.oneshot():
        memory, cpu = process.memory_full_info(), process.cpu_times()
        return Footprint(
            memory.rss / 1024, memory.pss / 1024, process.num_fds(), process.num_threads(), cpu.user + cpu.system
        )


def own_processes(pair: Pair) -> dict[str, int]:
    """The pids of the daemon's own processes by what they are: `daemon`, and `relay` where it is another process."""
    daemon = pair.status()["daemon"]
    found = {"daemon": int(daemon["pid"])}
    if daemon.get("relay_pid"):
        found["relay"] = int(daemon["relay_pid"])
    return found


def write_json(path: Path, picture: dict[str, object]) -> None:
    """The picture in a file that programs can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(picture, indent=2) + "\n")
