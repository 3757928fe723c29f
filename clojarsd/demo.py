"""`clojarsd demo`: a whole pair on this machine with nothing to configure."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.settings import Settings
from clojarsd.core.view import FrontendView
from clojarsd.system.settings_file import read_settings
from clojarsd.system.sockets import free_ports

PREFERRED_PORTS = {"http": (8080,), "line": (8700,), "primary": (8001, 8101), "backup": (8002, 8102)}
LONGEST_SOCKET_PATH = 100

CONFIG = """\
# Written by `clojarsd demo`. The repository's etc/clojarsd.toml explains every key.
[service]
name        = "demo"
user        = {user}
group       = {group}
runtime_dir = {run}
state_dir   = {state}
log_dir     = {log}

[app]
command   = {command}
directory = {directory}
restart_delay = "500ms"
stop_timeout  = "5s"

[instances.primary]
ports = {{ http = {primary[0]}, line = {primary[1]} }}
[instances.backup]
ports = {{ http = {backup[0]}, line = {backup[1]} }}

[[checks]]
kind = "http"
port = "http"
path = "/health"
interval = "500ms"

[frontends.http]
listen = "127.0.0.1:{http}"
port   = "http"
drain  = "10s"
[frontends.line]
listen = "127.0.0.1:{line}"
port   = "line"
mode   = "relay"
drain  = "10s"
"""

PATH = "{path of clients}"
"""Stands in the text for what is known only when the pair runs."""
NEXT = """
A pair of {kind} runs here, with its files in {home}; Ctrl-C ends it.
{path}
In a second terminal:

  export CLOJARSD_SOCKET={socket}
  {ctl} status                       # who serves, and how both are
  curl http://127.0.0.1:{http}/who                # through the frontend: the primary answers
  while curl -sS http://127.0.0.1:{http}/who; do :; done      # leave that running in a third one, and then:

  {ctl} restart backup               # nobody notices
  {ctl} restart primary              # the backup serves meanwhile
  kill -9 PID-OF-THE-PRIMARY                          # the backup takes over at once; the primary comes back
  curl -X POST http://127.0.0.1:{http}/fault/unhealthy  # also: /fault/hang /fault/deadlock /fault/leak /fault/exit
  {ctl} events                       # what happened, and who asked for it
  {ctl} logs primary -f
"""


WhenUp = Callable[[Mapping[str, FrontendView]], None]


def run_demo(directory: Path | None, run: Callable[[Settings, Path, WhenUp, Path | None], None]) -> None:
    """Prepare the demo in `directory`, or in a temporary one that is removed at the end, and run it.

    Raises:
        Failed: it could not be prepared.
    """
    home = Path(tempfile.mkdtemp(prefix="clojarsd-demo-")) if directory is None else directory.absolute()
    begun = False
    try:
        config, told = _prepare(home)

        def tell(frontends: Mapping[str, FrontendView]) -> None:
            nonlocal begun
            begun = True
            print(told.replace(PATH, _path_of_clients(frontends["http"])), flush=True)

        run(read_settings(config), config, tell, home if directory is None else None)
    finally:
        if directory is None and not begun:  # once the pair runs, it goes with the pair
            shutil.rmtree(home, ignore_errors=True)


def _prepare(home: Path) -> tuple[Path, str]:
    """The configuration, written into the directory, and what to tell when the pair runs; raises Failed."""
    _check_length(home)
    ports = _choose_ports()
    kind, command = _application()
    config = home / "clojarsd.toml"
    try:
        home.mkdir(parents=True, exist_ok=True)
        config.write_text(_configuration(home, ports, command))
    except OSError as error:
        raise Failed(f"cannot run the demo in {home}: {reason_of(error)}") from error
    path = shlex.quote(str(home / "run" / "control.sock"))
    ctl, port = _clojarsctl(), ports["http"][0]
    return config, NEXT.format(kind=kind, home=home, socket=path, ctl=ctl, http=port, path=PATH)


def _path_of_clients(http: FrontendView) -> str:
    """How they come to an instance, in one sentence."""
    if http.mode == "steer":
        return "The kernel gives connections of http straight to an instance: no proxy, and no need of the daemon."
    return f"Connections of http are relayed: {http.mode_reason or 'as the settings say'}."


def _check_length(home: Path) -> None:
    """Raise Failed if the kernel does not take the path of a socket in the directory."""
    if len(os.fsencode(home / "run" / "control.sock")) > LONGEST_SOCKET_PATH:
        raise Failed(
            f"cannot run the demo in {home}: the path of its control socket would be too long;"
            " name a shorter directory with --dir"
        )


def _configuration(home: Path, ports: dict[str, tuple[int, ...]], command: list[str]) -> str:
    return CONFIG.format(
        user=json.dumps(str(os.geteuid())),
        group=json.dumps(str(os.getegid())),
        run=json.dumps(str(home / "run")),
        state=json.dumps(str(home / "state")),
        log=json.dumps(str(home / "log")),
        directory=json.dumps(str(home)),
        command=json.dumps(command),
        primary=ports["primary"],
        backup=ports["backup"],
        http=ports["http"][0],
        line=ports["line"][0],
    )


def _application() -> tuple[str, list[str]]:
    """What the pair is made of, in words, and the command that runs one of it."""
    programs = _programs()
    ours = ["--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}"]
    java = shutil.which("java")
    if java is not None and _can_compile(java):
        return "JVMs", [java, "-Xmx256m", "-XX:+ExitOnOutOfMemoryError", str(programs / "App.java"), *ours]
    print("No JDK 11 or later here: the demo's application runs in Python instead.", file=sys.stderr)
    return "Python processes (there is no JDK here)", [sys.executable, str(programs / "app.py"), *ours]


def _programs() -> Path:
    """Where the demo's applications are: in the package when it is installed, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_demo"
    return installed if installed.is_dir() else package.parent / "demo"


def _can_compile(java: str) -> bool:
    """Whether this Java can run a program from its source: a JRE alone cannot."""
    try:
        modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "jdk.compiler" in modules.stdout and "jdk.httpserver" in modules.stdout


def _choose_ports() -> dict[str, tuple[int, ...]]:
    """The usual ports where they are free, others where they are not."""
    others = iter(free_ports(sum(map(len, PREFERRED_PORTS.values()))))
    return {
        name: tuple(port if _is_free(port) else next(others) for port in ports)
        for name, ports in PREFERRED_PORTS.items()
    }


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _clojarsctl() -> str:
    beside = Path(sys.executable).with_name("clojarsctl")
    return str(beside) if beside.exists() else "clojarsctl"
