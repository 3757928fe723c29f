"""Real JVMs are asked; what is no JVM, or wants not to be asked, is left alive and told of in a sentence."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clojarsd.core.class_data import classes_in, major_version, property_of
from clojarsd.core.errors import Failed
from clojarsd.system.jvm_attach import ask_jvm
from tests.support.jars import build_jar, other_java
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.fixture(scope="module")
def jar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_jar(tmp_path_factory.mktemp("jar"))


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(jar: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts JVMs that serve; they end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*options: str, java: str = "java") -> subprocess.Popen[bytes]:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            ports = [one.getsockname()[1], two.getsockname()[1]]
        log = tmp_path / f"{len(started)}.log"
        words = [java, "-Xmx64m", *options, "-jar", str(jar), "--port", str(ports[0]), "--line-port", str(ports[1])]
        with log.open("wb") as output:
            process = subprocess.Popen([*words, "--name", "x"], stdout=output, stderr=output)
        started.append(process)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", ports[0])).close()
            except ConnectionRefusedError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.01)
            else:
                return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        Path(f"/tmp/.java_pid{process.pid}").unlink(missing_ok=True)  # which one that is killed leaves


def assert_nothing_left(pid: int) -> None:
    assert not Path(f"/tmp/.attach_pid{pid}").exists()


@pytest.mark.parametrize("which", ["usual", "other"])
def test_a_jvm_answers_and_goes_on(start: Start, jar: Path, which: str) -> None:
    java = "java" if which == "usual" else other_java()
    if java is None:
        unavailable("there is no second JDK on this machine")
    process = start(java=java or "")
    for _ in range(2):
        version = major_version(ask_jvm(process.pid, "VM.version", PATIENCE))
        assert version is not None
        assert version >= 11
    assert property_of(ask_jvm(process.pid, "VM.system_properties", PATIENCE), "java.class.path") == str(jar)
    classes = classes_in(ask_jvm(process.pid, "VM.classloaders show-classes=true", PATIENCE))
    assert {"java/lang/Object", "App"} <= set(classes)
    assert process.poll() is None
    assert_nothing_left(process.pid)


def test_what_it_cannot_do_it_says(start: Start) -> None:
    process = start()
    with pytest.raises(Failed, match=rf"^the JVM \(process {process.pid}\) cannot carry out VM\.nonsense: .*Unknown"):
        ask_jvm(process.pid, "VM.nonsense", PATIENCE)


def test_a_socket_that_an_earlier_process_has_left_is_not_taken_for_it(start: Start) -> None:
    process = start()
    path = f"/tmp/.java_pid{process.pid}"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    assert ask_jvm(process.pid, "VM.version", PATIENCE)


def test_somebody_elses_socket_is_not_believed(start: Start) -> None:
    process = start()
    path = Path(f"/tmp/.java_pid{process.pid}")
    with socket.socket(socket.AF_UNIX) as mine:
        mine.bind(str(path))
        mine.listen()
        try:
            with pytest.raises(Failed, match=rf"belongs to process {os.getpid()}, not to {process.pid}$"):
                ask_jvm(process.pid, "VM.version", PATIENCE)
        finally:
            path.unlink()


def test_one_that_wants_not_to_be_asked_lives_on(start: Start) -> None:
    process = start("-XX:+DisableAttachMechanism")
    with pytest.raises(Failed, match=r"lets nobody ask it anything: it was given -XX:\+DisableAttachMechanism"):
        ask_jvm(process.pid, "VM.version", 0.5)
    assert process.poll() is None
    assert_nothing_left(process.pid)


def test_one_that_sigquit_would_kill_lives_on(start: Start) -> None:
    """With -Xrs a JVM listens from its beginning; with its socket taken away it can be asked no more."""
    process = start("-Xrs")
    assert ask_jvm(process.pid, "VM.version", PATIENCE)
    Path(f"/tmp/.java_pid{process.pid}").unlink()
    with pytest.raises(Failed, match=r"does not heed SIGQUIT: it is no JVM, has only begun, or was given -Xrs$"):
        ask_jvm(process.pid, "VM.version", PATIENCE)
    assert process.poll() is None


def until_it_stands(pid: int) -> None:
    """Each thread stops where it comes to next, on another processor a moment later."""
    deadline = time.monotonic() + PATIENCE
    while any(state_of(task) != "T" for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def state_of(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def test_one_that_stands_still_is_waited_for_no_longer_than_allowed(start: Start) -> None:
    process = start()
    ask_jvm(process.pid, "VM.version", PATIENCE)
    process.send_signal(signal.SIGSTOP)
    until_it_stands(process.pid)
    with pytest.raises(Failed, match=r"it has not answered VM\.version within 0\.2 s$"):
        ask_jvm(process.pid, "VM.version", 0.2)
    process.send_signal(signal.SIGCONT)
    assert ask_jvm(process.pid, "VM.version", PATIENCE)


def test_what_is_no_jvm_is_not_signalled() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with pytest.raises(Failed, match=rf"^process {process.pid} does not heed SIGQUIT"):
            ask_jvm(process.pid, "VM.version", PATIENCE)
        assert process.poll() is None
        process.kill()
    with pytest.raises(Failed, match=r"^process \d+ cannot be asked: no such process$"):
        ask_jvm(process.pid, "VM.version", PATIENCE)
