"""The whole daemon as a target: a pair whose instances are the benchmark's backend."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.targets import Target
from clojarsd.system.sockets import free_ports

START_S = 30.0
"""How long the pair may take until it serves."""
CONFIG = """
[service]
user = "{user}"
group = "{group}"
runtime_dir = "{home}/run"
state_dir = "{home}/state"
log_dir = "{home}/log"
[app]
command = {command}
directory = "{directory}"
[instances.primary]
ports = {{ http = {ports[0]} }}
[instances.backup]
ports = {{ http = {ports[1]} }}
[[checks]]
kind = "http"
port = "http"
path = "/small"
[frontends.http]
listen = "127.0.0.1:{ports[2]}"
port = "http"
mode = "relay"
drain = "1s"
"""


@contextlib.contextmanager
def pair() -> Iterator[tuple[int, Target]]:
    """A daemon that serves: the port of its primary, which is the direct way, and the daemon as a target."""
    with tempfile.TemporaryDirectory(prefix="clojarsd-bench-") as made:
        home, ports = Path(made), free_ports(3)
        config = home / "clojarsd.toml"
        config.write_text(
            CONFIG.format(
                user=os.geteuid(),
                group=os.getegid(),
                home=home,
                directory=Path.cwd(),
                command=json.dumps([sys.executable, "-m", "bench.backend", "--port", "{port.http}"]),
                ports=ports,
            )
        )
        with (home / "daemon.log").open("wb") as log, _running(config, log.fileno()) as pid:
            _await_pair(home / "run" / "control.sock", home / "daemon.log")
            yield ports[0], Target("clojarsd", ports[2], pid)


@contextlib.contextmanager
def _running(config: Path, log: int) -> Iterator[int]:
    """The daemon's pid; in the end the daemon has stopped its pair and is gone."""
    command = [sys.executable, "-m", "clojarsd", "-c", str(config)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as daemon:
        try:
            yield daemon.pid
        finally:
            daemon.terminate()


def _await_pair(control: Path, log: Path) -> None:
    """Return when both instances can serve."""
    deadline = time.monotonic() + START_S
    check = [str(Path(sys.executable).with_name("clojarsctl")), "check"]
    environment = {**os.environ, "CLOJARSD_SOCKET": str(control)}
    while subprocess.run(check, env=environment, capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            raise SystemExit(f"the pair does not serve:\n{log.read_text()}")
        time.sleep(0.1)
