"""The daemon as a real process with a pair of real instances, in a directory of its own; and clients that count."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import psutil

from clojarsd.runtime.relay_owner import SOCKET
from clojarsd.system.sockets import free_ports
from tests.support.app import command as app_command
from tests.support.waiting import PATIENCE

CHECKOUT = Path(__file__).parents[2]
CLOJARSCTL = Path(sys.executable).with_name("clojarsctl")

CONFIG = """
[service]
name = "demo"
user = "{user}"
group = "{group}"
runtime_dir = "{home}/run"
state_dir = "{home}/state"
log_dir = "{home}/log"
relay_workers = {relay_workers}

[app]
command = {command}
directory = "{home}"
stop_timeout = "10s"
restart_delay = "100ms"
{app}
[instances.primary]
ports = {{ http = {primary[0]}, line = {primary[1]} }}
{primary_extra}
[instances.backup]
ports = {{ http = {backup[0]}, line = {backup[1]} }}
{backup_extra}
[[checks]]
kind = "http"
port = "http"
path = "/health"
interval = "250ms"

[frontends.http]
listen = {listen}
port = "http"
mode = "{mode}"
failback = "{failback}"
drain = "{drain}"
drain_idle = "500ms"
{http_extra}
[frontends.line]
listen = "127.0.0.1:{line}"
port = "line"
mode = "relay"
drain = "10s"
drain_idle = "500ms"
failback = "{failback}"
"""

LOOK_AGAIN = 0.01
"""Seconds between two looks at what nobody announces."""

STAND_IN = app_command("--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}")


@dataclass
class Pair:
    """A daemon in `home`, as operators and clients see it. Its block ends with nothing left."""

    home: Path
    command: Sequence[str] = tuple(STAND_IN)
    app: str = ""
    primary_extra: str = ""
    backup_extra: str = ""
    http_extra: str = ""
    failback: str = "1s"
    drain: str = "10s"
    mode: str = "relay"
    listen: Sequence[str] = ("127.0.0.1:{http}",)
    ports: list[int] = field(default_factory=lambda: free_ports(6))
    environment: dict[str, str] = field(default_factory=dict)
    program: Sequence[str] = (sys.executable, "-m", "clojarsd")
    daemon: subprocess.Popen[bytes] | None = None
    user: int = field(default_factory=os.geteuid)
    relay_workers: int = 1

    def __post_init__(self) -> None:
        self.primary, self.backup = self.ports[0:2], self.ports[2:4]
        self.http, self.line = self.ports[4:6]
        self.config = self.home / "clojarsd.toml"
        self.socket = self.home / "run" / "control.sock"

    def write_config(self) -> Path:
        """The configuration file, written."""
        self.config.write_text(
            CONFIG.format(
                user=self.user,
                group=os.getegid() if self.user == os.geteuid() else self.user,
                home=self.home,
                command=json.dumps(list(self.command)),
                app=self.app,
                primary=self.primary,
                primary_extra=self.primary_extra,
                backup=self.backup,
                backup_extra=self.backup_extra,
                http_extra=self.http_extra,
                listen=json.dumps([address.format(http=self.http) for address in self.listen]),
                line=self.line,
                failback=self.failback,
                drain=self.drain,
                mode=self.mode,
                relay_workers=self.relay_workers,
            )
        )
        return self.config

    def begin(self, program: Sequence[str] | None = None) -> Self:
        """Start the daemon; return when it takes orders."""
        self.write_config()
        with (self.home / "daemon.log").open("ab") as output:
            self.daemon = subprocess.Popen(
                [*(program or self.program), "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=CHECKOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        self.until_true(lambda: self.daemon_ended() or self.answers(), "the daemon's control socket")
        assert not self.daemon_ended(), self.daemon_log()
        return self

    def __enter__(self) -> Self:
        try:
            self.begin()
            self.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
            self.until_true(self._is_saved, "what a next daemon must know")
        except BaseException:
            self.end()
            raise
        return self

    def _is_saved(self) -> bool:
        """Whether the state says that both are ready: after a daemon that is killed before, they are proved anew."""
        assert self.daemon is not None
        root = Path(f"/proc/{self.daemon.pid}/root")  # as the daemon sees it, which may have mounts of its own
        try:
            saved = json.loads((root / str(self.home).lstrip("/") / "state" / "state.json").read_text())
        except OSError:
            return False
        return all(instance["unit"]["state"] == "READY" for instance in saved["instances"].values())

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop the daemon the ordinary way; no process that it made is left."""
        if self.daemon is None:
            return
        made = self.processes()
        if self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGTERM)
        try:
            self.daemon.wait(PATIENCE)
            left = [process for process in made if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
            assert not left, f"{left} outlived the daemon"
        finally:
            for process in {*made, *self.processes()}:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if self.daemon.poll() is None:
                self.daemon.kill()
                self.daemon.wait()
            self.daemon = None

    def processes(self) -> list[psutil.Process]:
        """What was made here and runs, whoever its parent is now: relay process, instances, and what those made."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self.daemon is not None and process.pid == self.daemon.pid:
                    continue
                mark = process.environ().get("CLOJARSD_INSTANCE", "")
                ours = mark.startswith(f"{self.home}/") or str(self.home / "run" / SOCKET) in process.cmdline()
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def daemon_ended(self) -> bool:
        """Whether the daemon's process has exited."""
        return self.daemon is not None and self.daemon.poll() is not None

    def daemon_log(self) -> str:
        """What the daemon has said."""
        return (self.home / "daemon.log").read_text(errors="replace")

    # What operators do.

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that the API answers; for a stream a list of its lines."""
        with _UnixConnection(self.socket) as connection:
            connection.request(method, path, None if body is None else json.dumps(body))
            lines = connection.getresponse().read().splitlines()
        found = [json.loads(line) for line in lines]
        return found[0] if len(found) == 1 else found

    def kill(self) -> None:
        """Kill the daemon alone, as nobody should."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()

    def answers(self) -> bool:
        """Whether the API answers."""
        try:
            return bool(self.ask("GET", "/v1/status"))
        except OSError:
            return False

    def status(self) -> dict[str, Any]:
        """`GET /v1/status`; asked again of the daemon that takes over while another does."""
        try:
            status = self.ask("GET", "/v1/status")
        except (http.client.RemoteDisconnected, ConnectionResetError):
            status = self.ask("GET", "/v1/status")
        assert isinstance(status, dict)
        return status

    def instance(self, role: str) -> dict[str, Any]:
        """One instance of the status."""
        found = self.status()["instances"][role]
        assert isinstance(found, dict)
        return found

    def pid(self, role: str) -> int:
        """The process of an instance, which there must be."""
        pid = self.instance(role)["pid"]
        assert isinstance(pid, int)
        return pid

    def ctl(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """clojarsctl, as a process."""
        return subprocess.run(
            [str(CLOJARSCTL), "--socket", str(self.socket), *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=CHECKOUT,
            check=False,
            **options,
        )

    def done(self, *words: str) -> str:
        """What clojarsctl says of an order that must come to its end."""
        finished = self.ctl(*words)
        assert finished.returncode == 0, (words, finished.stdout, finished.stderr, self.daemon_log())
        return finished.stdout

    def until(self, fact: Callable[[dict[str, Any]], object], pause: float = LOOK_AGAIN) -> dict[str, Any]:
        """The first status for which the fact holds. pause: seconds between two looks, which cost processor time."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [self.status()]
            return bool(fact(found[0]))

        self.until_true(look, "the fact", lambda: f"{json.dumps(found)}\n{self.daemon_log()}", pause)
        return found[0]

    def until_true(
        self,
        fact: Callable[[], object],
        what: str,
        more: Callable[[], str] = lambda: "",
        pause: float = LOOK_AGAIN,
    ) -> None:
        """Return when the fact holds."""
        deadline = time.monotonic() + PATIENCE
        while not fact():
            assert time.monotonic() < deadline, f"{what} did not come; {more()}"
            time.sleep(pause)

    def until_active(self, role: str | None) -> dict[str, Any]:
        """The first status in which new connections of every frontend go to the role."""
        return self.until(lambda seen: all(one["active"] == role for one in seen["frontends"].values()))

    def events(self) -> list[dict[str, Any]]:
        """The history, oldest first."""
        found = self.ask("GET", "/v1/events?n=500")
        return [line for line in found if "event" in line]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("clojarsd", timeout=PATIENCE)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@contextlib.contextmanager
def connection(port: int) -> Iterator[http.client.HTTPConnection]:
    """An HTTP connection to a port of this machine."""
    opened = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        yield opened
    finally:
        opened.close()


def get(opened: http.client.HTTPConnection, path: str) -> bytes:
    """The body that a GET over the connection is answered with; the status must be 200."""
    opened.request("GET", path)
    answer = opened.getresponse()
    body = answer.read()
    assert answer.status == 200, (answer.status, body)
    return body


@dataclass
class Failure:
    """One request that got no whole answer. client: the number of who asked."""

    error: str
    began: float
    ended: float
    client: int = 0


class Clients:
    """Clients that ask `/who` over and over until the block ends, and count.

    Args:
        keep_alive: each keeps its connection; one that is closed between two requests costs none.
        pause: seconds between a client's answer and its next request.
        repeats: a request on a kept connection that ends without a byte of an answer is asked once more, over a new
            one, as HTTP clients do: the other side may have ended the connection before it saw the request.

    Attributes:
        answered: by name of the instance.
        connections: how many were opened.
        failures: every request that got no answer.
        answers: (instant, name) of each answer, in their order.
        asked: the same with the instant at which it was asked.
    """

    def __init__(
        self, port: int, count: int = 1, *, keep_alive: bool = False, pause: float = 0.0, repeats: bool = False
    ) -> None:
        self._port = port
        self._keep_alive = keep_alive
        self._repeats = repeats
        self._pause = pause
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._loop, args=(number,)) for number in range(count)]
        self._opened: list[int] = []
        self.failures: list[Failure] = []
        self.answers: list[tuple[float, str]] = []
        self.asked: list[tuple[float, str]] = []

    @property
    def connections(self) -> int:
        return len(self._opened)

    @property
    def answered(self) -> dict[str, int]:
        names = [name for _, name in self.answers]
        return {name: names.count(name) for name in set(names)}

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.await_answers(len(self._threads))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def await_answers(self, count: int) -> None:
        """Return when so many more answers have come."""
        target, deadline = len(self.answers) + count, time.monotonic() + PATIENCE
        while len(self.answers) < target:
            assert time.monotonic() < deadline, (self.answered, self.failures[:5])
            time.sleep(0.005)

    def _loop(self, number: int) -> None:
        while not self._stop.is_set():
            with connection(self._port) as opened:
                self._opened.append(number)
                is_kept = False
                while not (self._stop.is_set() or was_left(opened)) and self._ask(opened, number, is_kept):
                    if not self._keep_alive:
                        break
                    is_kept = True
                    self._stop.wait(self._pause)
            self._stop.wait(self._pause)

    def _ask(self, opened: http.client.HTTPConnection, number: int, is_kept: bool) -> bool:
        began = time.monotonic()
        try:
            name = json.loads(get(opened, "/who"))["name"]
        except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected) as error:
            if not (is_kept and self._repeats):
                self.failures.append(Failure(repr(error), began, time.monotonic(), number))
            return False
        except (OSError, http.client.HTTPException, AssertionError) as error:
            self.failures.append(Failure(repr(error), began, time.monotonic(), number))
            return False
        self.asked.append((began, name))
        self.answers.append((time.monotonic(), name))
        return True


def was_left(opened: http.client.HTTPConnection) -> bool:
    """Whether the other side has closed the connection, between two requests."""
    if opened.sock is None:
        return False
    poller = select.poll()
    poller.register(opened.sock, select.POLLIN)
    return bool(poller.poll(0))


def same_instant(one: str, other: str) -> bool:
    """Whether two stamps of one deadline mean the same: each is made from a look at two clocks."""
    return abs(datetime.fromisoformat(one) - datetime.fromisoformat(other)) < timedelta(seconds=0.5)
