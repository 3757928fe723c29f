"""`clojarsd demo` as somebody meets it: a process that prints what to do next, and leaves nothing."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from clojarsd.core.names import Role
from clojarsd.core.settings import Settings
from clojarsd.demo import PREFERRED_PORTS, run_demo
from tests.support.namespaces import BPF_FS, apart
from tests.support.pair import CHECKOUT, CLOJARSCTL, connection, get
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE

SOCKET = re.compile(r"^  export CLOJARSD_SOCKET=(.+)$", re.M)
HTTP = re.compile(r"curl http://127\.0\.0\.1:(\d+)/who")
LAST = " logs primary -f\n"


class Demo:
    """The demo as a process; `said` is what it printed until it was up."""

    def __init__(self, *words: str | Path, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clojarsd", "demo", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            env=environment,
        )
        self.errors: list[str] = []
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self.errors.extend, args=(self.process.stderr,))
        self._reader.start()
        self._guard = threading.Timer(PATIENCE, self.process.kill)
        self._guard.start()
        self.said = ""

    def until_up(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if line.endswith(LAST):
                return
        self.process.wait()
        raise AssertionError((self.said, "".join(self.errors)))

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        self._guard.cancel()
        made = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        for one in made:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


class Demos:
    """Those that a test has begun; it ends them itself where it is in a process of its own."""

    def __init__(self) -> None:
        self._made: list[Demo] = []

    def __call__(self, *words: str | Path, **environment: str) -> Demo:
        self._made.append(Demo(*words, environment={**os.environ, **environment}))
        return self._made[-1]

    def end(self) -> None:
        while self._made:
            self._made.pop().end()


@pytest.fixture
def demo() -> Iterator[Demos]:
    made = Demos()
    yield made
    made.end()


def alone(test: Callable[..., None]) -> Callable[..., Any]:
    """The test where nothing that the demo's daemon mounts or pins is this machine's; a plain user's does neither."""

    @functools.wraps(test)
    def run(demo: Demos, **named: Any) -> None:
        try:
            test(demo=demo, **named)
        finally:
            demo.end()

    return apart(run) if os.geteuid() == 0 else run


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory that is not too deep for the path of a socket, as pytest's own are."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def status_of(path: str) -> dict[str, Any]:
    """What `clojarsctl status` says of the demo with that socket."""
    shown = subprocess.run(
        [str(CLOJARSCTL), "--socket", path, "--json", "status"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    found = json.loads(shown.stdout)
    assert isinstance(found, dict)
    return found


def until_both_run(path: str) -> dict[str, Any]:
    """Both instances by role, as soon as both run their command."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found: dict[str, Any] = status_of(path)["instances"]
        if all(one["pid"] is not None and one["eligible"] for one in found.values()):
            return found
        assert time.monotonic() < deadline, found


def without_java(tmp_path: Path) -> str:
    """A PATH with nothing on it."""
    (tmp_path / "bin").mkdir()
    return str(tmp_path / "bin")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["python", pytest.param("java", marks=pytest.mark.real)])
@alone
def test_the_demo_runs_a_pair_and_says_how_to_use_it(demo: Demos, tmp_path: Path, short_path: Path, kind: str) -> None:
    if kind == "java" and shutil.which("java") is None:
        unavailable("there is no java on this machine")
    home = short_path / "home"
    running = demo("--dir", home, **({"PATH": without_java(tmp_path)} if kind == "python" else {}))
    running.until_up()
    words = "Python processes (there is no JDK here)" if kind == "python" else "JVMs"
    assert f"A pair of {words} runs here, with its files in {home}; Ctrl-C ends it.\n" in running.said
    assert re.search(r"^(The kernel gives connections|Connections) of http ", running.said, re.M)
    path, port = SOCKET.search(running.said), HTTP.search(running.said)
    assert path is not None
    assert port is not None
    with connection(int(port[1])) as opened:  # held until one of them is ready
        assert b"primary" in get(opened, "/who") or b"backup" in get(opened, "/who")
    status = subprocess.run(
        [str(CLOJARSCTL), "status"],
        env={**os.environ, "CLOJARSD_SOCKET": path[1]},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert status.returncode == 0, status.stderr
    assert "primary" in status.stdout
    made = psutil.Process(running.process.pid).children(recursive=True)
    pids = [one["pid"] for one in until_both_run(path[1]).values()]
    for pid in pids:
        assert ("java" in psutil.Process(pid).name()) == (kind == "java")
    made += [psutil.Process(pid) for pid in pids]
    assert running.interrupt() == 0
    assert not any(one.is_running() for one in made)
    assert not Path(path[1]).exists()
    assert not [line for line in running.errors if "Traceback" in line]


@pytest.mark.slow
@alone
def test_it_says_that_it_steers_and_leaves_nothing_in_the_kernel(demo: Demos, tmp_path: Path, short_path: Path) -> None:
    if os.geteuid() != 0:
        unavailable("only root steers without any set-up")
    running = demo("--dir", short_path / "home", PATH=without_java(tmp_path))
    running.until_up()
    path, port = SOCKET.search(running.said), HTTP.search(running.said)
    assert path is not None
    assert port is not None
    assert running.said.splitlines()[2] == (
        "The kernel gives connections of http straight to an instance: no proxy, and no need of the daemon."
    )
    until_both_run(path[1])
    assert (BPF_FS / "clojarsd" / "demo" / "link").exists()
    assert status_of(path[1])["frontends"]["http"]["mode"] == "steer"
    assert running.interrupt() == 0
    assert list(BPF_FS.glob("clojarsd/*")) == []


@pytest.mark.slow
@alone
def test_a_second_demo_relays_and_says_why(demo: Demos, tmp_path: Path, short_path: Path) -> None:
    if os.geteuid() != 0:
        unavailable("only root steers without any set-up")
    environment = {"PATH": without_java(tmp_path)}
    first = demo("--dir", short_path / "1", **environment)
    first.until_up()
    second = demo("--dir", short_path / "2", **environment)
    second.until_up()
    assert f"Connections of http are relayed: process {first.process.pid} steers as demo already" in second.said
    assert second.interrupt() == 0
    assert first.interrupt() == 0


@pytest.mark.slow
@alone
def test_without_a_directory_nothing_is_left(demo: Demos, tmp_path: Path, short_path: Path) -> None:
    running = demo(PATH=without_java(tmp_path), TMPDIR=str(short_path))
    running.until_up()
    assert len(list(short_path.iterdir())) == 1
    assert running.interrupt() == 0
    assert list(short_path.iterdir()) == []
    assert running.errors[0] == "No JDK 11 or later here: the demo's application runs in Python instead.\n"


@pytest.mark.slow
@alone
def test_its_directory_stays_as_long_as_the_pair_whichever_code_is_in_charge(
    demo: Demos, tmp_path: Path, short_path: Path
) -> None:
    running = demo(PATH=without_java(tmp_path), TMPDIR=str(short_path))
    running.until_up()
    path = SOCKET.search(running.said)
    assert path is not None
    before = until_both_run(path[1])
    subprocess.run([str(CLOJARSCTL), "--socket", path[1], "daemon", "upgrade"], check=True, timeout=PATIENCE)
    after = status_of(path[1])
    assert after["daemon"]["generation"] == 2
    assert [after["instances"][role]["pid"] for role in before] == [one["pid"] for one in before.values()]
    assert running.interrupt() == 0
    assert list(short_path.iterdir()) == []


def prepared(directory: Path | None) -> Settings:
    """The settings that the demo would run with."""
    found: list[Settings] = []
    run_demo(directory, lambda settings, config, when_up, temporary: found.append(settings))
    return found[0]


def test_ports_in_use_lead_to_others(tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", without_java(tmp_path))
    preferred = [8080, 8700, 8001, 8101, 8002, 8102]
    assert set(preferred) == {
        port for some in PREFERRED_PORTS.values() for port in (some if isinstance(some, tuple) else (some,))
    }
    with contextlib.ExitStack() as taken:
        for port in preferred:
            with contextlib.suppress(OSError):  # somebody else has it already
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
        seen = prepared(short_path / "home")
    chosen = [one.listen[0].port for one in seen.frontends.values()]
    chosen += [port for role in Role for port in seen.instances[role].ports.values()]
    assert len(set(chosen)) == 6
    assert not set(chosen) & set(preferred)


def test_the_demo_runs_as_whoever_starts_it(tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", without_java(tmp_path))
    seen = prepared(short_path / 'ho"me')
    assert (seen.service.user, seen.service.group) == (str(os.geteuid()), str(os.getegid()))
    assert seen.service.log_dir == short_path / 'ho"me' / "log"


@pytest.mark.slow
@alone
def test_a_directory_whose_socket_would_have_too_long_a_path(demo: Demos, tmp_path: Path) -> None:
    home = tmp_path / ("x" * 100)
    running = demo("--dir", home)
    assert running.process.wait(PATIENCE) == 1
    running._reader.join()
    assert running.errors == [
        f"clojarsd: cannot run the demo in {home}: the path of its control socket would be too long;"
        " name a shorter directory with --dir\n"
    ]
    assert not home.exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["is a file", "holds a directory clojarsd.toml"])
def test_a_directory_that_cannot_be_used(demo: Demos, short_path: Path, case: str) -> None:
    home = short_path / "x"
    if case == "is a file":
        home.write_text("")
    else:
        (home / "clojarsd.toml").mkdir(parents=True)
    running = demo("--dir", home)
    assert running.process.wait(PATIENCE) == 1
    running._reader.join()
    reason = "file exists" if case == "is a file" else "is a directory"
    assert running.errors == [f"clojarsd: cannot run the demo in {home}: {reason}\n"]
