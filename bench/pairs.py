"""The pair that the benches of supervision use: a real daemon, whose instances and checks are as the bench wants."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
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
relay_workers = {relay_workers}

[app]
command = {command}
directory = "{home}"
restart = "always"
restart_delay = "0s"
restart_limit = {{ count = 1000000, within = "1s" }}
start_timeout = "1h"
stop_timeout = "10s"
{app}
[instances.primary]
ports = {{ http = {primary[0]}, {second_port} = {primary[1]} }}
[instances.backup]
ports = {{ http = {backup[0]}, {second_port} = {backup[1]} }}

[[checks]]
kind = "http"
port = "http"
path = "{check_path}"
interval = "{interval}"
timeout = "{check_timeout}"

[hang]
restart_after = "never"

{frontends}
"""
FRONTEND = """
[frontends.{mode}]
listen = "127.0.0.1:{port}"
port = "{front_port}"
mode = "{mode}"
drain = "{drain}"
failback = "{failback}"
{more}
"""


@dataclass
class BenchPair(Pair):
    """A pair that is relaunched at once, however often it ends, and is checked as often as `interval` says.

    Attributes:
        modes: of its frontends, one for each, which lead to the same port of the instances; at most two.
        frontend_more: lines of the relay frontend besides.
        front_port: which port of the instances the frontends lead to.
        second_port: what the instances' second port is called.
    """

    check_path: str = "/last"
    interval: str = "1s"
    check_timeout: str = "10s"
    drain: str = "1s"
    failback: str = "100ms"
    modes: Sequence[str] = ("relay",)
    frontend_more: str = ""
    front_port: str = "http"
    second_port: str = "line"

    def write_config(self) -> Path:
        """The configuration file, written; also again with another interval, for a reload."""
        frontends = [
            FRONTEND.format(
                mode=mode,
                port=self.front(mode),
                drain=self.drain,
                failback=self.failback,
                front_port=self.front_port,
                more=self.frontend_more if mode == "relay" else "",
            )
            for mode in self.modes
        ]
        self.config.write_text(
            CONFIG.format(
                user=os.geteuid(),
                group=os.getegid(),
                home=self.home,
                command=json.dumps(list(self.command)),
                app=self.app,
                primary=self.primary,
                backup=self.backup,
                second_port=self.second_port,
                relay_workers=self.relay_workers,
                check_path=self.check_path,
                interval=self.interval,
                check_timeout=self.check_timeout,
                frontends="".join(frontends),
            )
        )
        return self.config

    def front(self, mode: str) -> int:
        """The port of the frontend of that mode."""
        return (self.http, self.line)[list(self.modes).index(mode)]

    def require_modes(self) -> None:
        """End the bench unless every frontend is in the mode it is to be measured in."""
        for name, frontend in self.status()["frontends"].items():
            if frontend["mode"] != name:
                raise SystemExit(
                    f"cannot measure mode {name}: it is in mode {frontend['mode']}: {frontend['mode_reason']}"
                )

    def until_ready(self) -> None:
        """Return when both instances can serve and the primary does."""
        self.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
        self.until_active("primary")
        self.require_modes()


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
    """The pids of the daemon's own processes by what they are: `daemon`, `relay`, and `relay 2` and so on."""
    daemon = pair.status()["daemon"]
    found = {"daemon": int(daemon["pid"])}
    if daemon.get("relay_pid"):
        found["relay"] = int(daemon["relay_pid"])
        for number, pid in enumerate(daemon["relay_pids"][1:], 2):
            found[f"relay {number}"] = int(pid)
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of all threads of the processes so far."""
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def memory_kib(pids: Iterable[int]) -> int:
    """Memory that the processes have of their own, so that it changes by nothing that others do.

    Their share of files that others have mapped too is not in it: it moves whenever another Python starts or ends.
    """
    found = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        found += next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
    return found


def write_json(path: Path, picture: dict[str, object]) -> None:
    """The picture in a file that programs can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(picture, indent=2) + "\n")
