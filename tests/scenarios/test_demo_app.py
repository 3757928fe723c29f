"""The demo's application, in Java and in Python, keeps one contract; and the test double built on it does what it says.

The Java one runs when the machine has a JDK; with CLOJARSD_REQUIRE_REAL=1 its absence is a failure.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.support.app import command as stand_in

pytestmark = pytest.mark.slow

DEMO = Path(__file__).resolve().parents[2] / "demo"
DEADLINE = 60.0
"""Seconds in which everything that must happen happens, also on a machine that is busy."""
MOMENT = 0.3
"""Seconds for which we look on where nothing must happen."""
TEN_MB = 10_000_000
ANY_PORTS = ("--port", "0", "--line-port", "0")

Launch = Callable[..., "Running"]


class Running:
    """One process of the application, from its ready line on. `running` makes it and ends it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.process = process
        self.pid = process.pid
        self._stdout = process.stdout.fileno()
        self._seen = b""
        self._fields = dict(part.partition("=")[::2] for part in self.line("ready ").split()[1:])

    @property
    def http(self) -> tuple[str, int]:
        host, _, port = self._fields["http"].rpartition(":")
        return host, int(port)

    @property
    def lines(self) -> tuple[str, int]:
        host, _, port = self._fields["line"].rpartition(":")
        return host, int(port)

    def line(self, text: str) -> str:
        """The next line of its stdout that contains the text; fails with all it wrote when there is none in time."""
        deadline = time.monotonic() + DEADLINE
        start = 0
        while True:
            while (end := self._seen.find(b"\n", start)) >= 0:
                line = self._seen[start:end].decode()
                start = end + 1
                if text in line:
                    self._seen = self._seen[start:]
                    return line
            ready, _, _ = select.select([self._stdout], [], [], deadline - time.monotonic())
            block = os.read(self._stdout, 65536) if ready else b""
            assert block, f"no line with {text!r} in {self._seen.decode()!r}"
            self._seen += block

    def has_output(self, within: float) -> bool:
        """Whether its stdout has more to read, or has ended, after this many seconds at most."""
        return bool(select.select([self._stdout], [], [], within)[0])

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of the answer to a GET, or to a POST if there is a body, on a connection of its own."""
        with closing(http.client.HTTPConnection(*self.http, timeout=DEADLINE)) as client:
            client.request("GET" if body is None else "POST", path, body)
            answer = client.getresponse()
            return answer.status, answer.read()

    def text(self, path: str) -> str:
        """What a POST to this path answers, which must be a 200."""
        status, body = self.ask(path, b"")
        assert status == 200, body
        return body.decode().strip()

    @contextmanager
    def pending(self, path: str) -> Iterator[socket.socket]:
        """A connection on which a request for this path has been sent and nothing was read."""
        with socket.create_connection(self.http, DEADLINE) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n".encode())
            yield sock


@contextmanager
def running(command: Sequence[str], pass_fds: Sequence[int] = ()) -> Iterator[Running]:
    """The command, serving, which heeds what we ignore, as SIGHUP under nohup; afterwards it is dead and reaped."""
    command = ["env", "--default-signal", *command]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=pass_fds) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


def is_silent(sock: socket.socket, within: float) -> bool:
    """Whether nothing comes from the other side for so many seconds."""
    return not select.select([sock], [], [], within)[0]


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other side closes."""
    with sock.makefile("rb") as reader:
        return reader.read()


class Flavour:
    """One way to write the application. `command` is without its ports."""

    def __init__(self, name: str, command: Sequence[str], small_heap: Sequence[str]) -> None:
        self.name = name
        self.command = (*command, "--name", "primary")
        self.small_heap = (*small_heap, "--name", "primary")
        """Started so that it ends with 3 when a small heap is used up."""


@pytest.fixture(scope="module", params=[pytest.param("java", marks=pytest.mark.real), "python"])
def flavour(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Flavour:
    if request.param == "python":
        command = (sys.executable, str(DEMO / "app.py"))
        return Flavour("python", command, (*command, "--heap", "16"))
    need_jdk()
    classes = tmp_path_factory.mktemp("classes")
    subprocess.run(["javac", "-d", classes, DEMO / "App.java"], check=True, timeout=DEADLINE)
    java = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", str(classes))
    return Flavour("java", (*java, "App"), (*java, "-Xmx16m", "-XX:+ExitOnOutOfMemoryError", "App"))


def need_jdk() -> None:
    if shutil.which("java") is None or shutil.which("javac") is None:
        if os.environ.get("CLOJARSD_REQUIRE_REAL") == "1":
            pytest.fail("there is no JDK")
        pytest.skip("there is no JDK")


@pytest.fixture(scope="module")
def app(flavour: Flavour) -> Iterator[Running]:
    """One instance for all tests that leave it as it was."""
    with running([*flavour.command, *ANY_PORTS]) as app:
        yield app


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Start an instance for one test."""
    with ExitStack() as stack:

        def start(command: Sequence[str], pass_fds: Sequence[int] = ()) -> Running:
            return stack.enter_context(running([*command, *ANY_PORTS], pass_fds))

        yield start


@pytest.fixture
def victim(flavour: Flavour, launch: Launch) -> Running:
    """An instance for the faults of one test."""
    return launch(flavour.command)


# ---------------------------------------------------------------- what it serves


def test_health_is_ok(app: Running) -> None:
    assert app.ask("/health") == (200, b"ok\n")


def test_who_names_the_instance_and_its_process(app: Running) -> None:
    status, body = app.ask("/who")
    assert (status, json.loads(body)) == (200, {"name": "primary", "pid": app.pid})


def test_page_says_who_it_is_and_what_can_be_asked(app: Running) -> None:
    status, body = app.ask("/")
    first, second, *rest = body.decode().splitlines()
    assert status == 200
    assert first.startswith(f"primary, pid {app.pid}, up ")
    assert first.endswith(" requests served")
    assert second == "faults now: none"
    assert {line.split()[0].partition("?")[0].partition("[")[0] for line in rest if line.startswith("/fault/")} == {
        f"/fault/{name}"
        for name in (
            *("slow", "hang", "deadlock", "leak", "exit", "unhealthy", "healthy", "ignore-term", "logspam"),
            *("child", "none"),
        )
    }


def test_both_programs_and_the_readme_describe_the_same_urls() -> None:
    from demo.app import HELP

    java, readme = (DEMO / "App.java").read_text(), (DEMO / "README.md").read_text()
    for line in HELP.splitlines():
        assert f'"{line}",' in java
        if "/" in line.partition("  ")[0]:
            assert f"`{line.partition('  ')[0]}" in readme or line.split()[1] in readme


def test_a_connection_carries_many_requests(app: Running) -> None:
    with closing(http.client.HTTPConnection(*app.http, timeout=DEADLINE)) as client:
        client.connect()
        first = client.sock
        for _ in range(50):
            client.request(
                "POST", "/health", b"GET /who HTTP/1.1\r\n\r\n" * 200
            )  # a body nobody asked for does not confuse the next
            assert client.getresponse().read() == b"ok\n"
        assert client.sock is first


def test_keep_alive_answers_are_not_held_back(app: Running) -> None:
    with closing(http.client.HTTPConnection(*app.http, timeout=DEADLINE)) as client:
        times = []
        for _ in range(20):
            start = time.monotonic()
            client.request("GET", "/who")
            client.getresponse().read()
            times.append(time.monotonic() - start)
    assert min(times) < 0.03, "an answer waits for the client's delayed ACK"


def test_slow_answers_late(app: Running) -> None:
    start = time.monotonic()
    assert app.ask("/slow?ms=150") == (200, f"primary {app.pid} after 150 ms\n".encode())
    assert time.monotonic() - start >= 0.15


def test_download_is_complete_and_right(app: Running) -> None:
    status, body = app.ask(f"/bytes?n={TEN_MB}")
    expected = (bytes(range(251)) * (TEN_MB // 251 + 1))[:TEN_MB]
    assert status == 200
    assert hashlib.sha256(body).digest() == hashlib.sha256(expected).digest()


def test_download_is_the_same_in_odd_chunks(app: Running) -> None:
    assert app.ask("/bytes?n=100000&chunk=777") == app.ask("/bytes?n=100000")


def test_an_empty_download_is_empty(app: Running) -> None:
    assert app.ask("/bytes?n=0") == (200, b"")


def test_upload_is_read_whole(app: Running) -> None:
    body = os.urandom(TEN_MB)
    status, answer = app.ask("/upload", body)
    assert (status, json.loads(answer)) == (200, {"length": TEN_MB, "sha256": hashlib.sha256(body).hexdigest()})


def test_upload_may_come_in_chunks(app: Running) -> None:
    blocks = [os.urandom(size) for size in (1, 70_000, 3)]
    with closing(http.client.HTTPConnection(*app.http, timeout=DEADLINE)) as client:
        client.request("POST", "/upload", iter(blocks), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
        answer = json.loads(client.getresponse().read())
        assert answer == {"length": 70_004, "sha256": hashlib.sha256(b"".join(blocks)).hexdigest()}
        client.request("GET", "/health")
        assert client.getresponse().read() == b"ok\n"


def test_upload_may_wait_to_be_asked_on(app: Running) -> None:
    with socket.create_connection(app.http, DEADLINE) as sock:
        head = "POST /upload HTTP/1.1\r\nHost: demo\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close"
        sock.sendall(f"{head}\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"abc")
        assert b'"length":3' in read_all(sock)


def test_stream_comes_piece_by_piece(app: Running) -> None:
    with closing(http.client.HTTPConnection(*app.http, timeout=DEADLINE)) as client:
        start = time.monotonic()
        client.request("GET", "/stream?n=3&ms=50")
        answer = client.getresponse()
        pieces = [answer.readline().decode() for _ in range(3)]
        assert pieces == [f"primary {app.pid} chunk {number}\n" for number in range(3)]
        assert answer.read() == b""
        assert time.monotonic() - start >= 0.15


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/nothing", 404, "there is no /nothing"),
        ("/fault/nothing", 404, "there is no /fault/nothing"),
        ("/slow", 400, "/slow needs ms=N, a whole number of 0 or more"),
        ("/bytes?n=-1", 400, "/bytes needs n=N, a whole number of 0 or more"),
        ("/fault/slow?ms=soon", 400, "/fault/slow needs ms=N, a whole number of 0 or more"),
        ("/upload", 405, "/upload takes POST or PUT"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(app: Running, path: str, status: int, text: str) -> None:
    assert app.ask(path) == (status, f"{text}\n".encode())


def test_head_gets_no_body(app: Running) -> None:
    with closing(http.client.HTTPConnection(*app.http, timeout=DEADLINE)) as client:
        for path, length in (("/health", 3), ("/bytes?n=1000000", 1_000_000)):
            client.request("HEAD", path)
            answer = client.getresponse()
            assert (answer.status, answer.getheader("Content-Length"), answer.read()) == (200, str(length), b"")


def test_http_half_close_still_gets_its_answer(app: Running) -> None:
    with app.pending("/slow?ms=100") as sock:
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).endswith(f"\r\n\r\nprimary {app.pid} after 100 ms\n".encode())


def test_lines_come_back_with_the_name_and_pid(app: Running) -> None:
    with socket.create_connection(app.lines, DEADLINE) as sock, sock.makefile("rwb") as stream:
        for text in (b"one", b"", b"\xff\xe4 two"):
            stream.write(text + b"\n")
            stream.flush()
            assert stream.readline() == f"primary {app.pid}: ".encode() + text + b"\n"


def test_quit_ends_the_line_connection(app: Running) -> None:
    with socket.create_connection(app.lines, DEADLINE) as sock:
        sock.sendall(b"one\nquit\n")
        assert read_all(sock) == f"primary {app.pid}: one\n".encode()


def test_line_half_close_gets_every_answer(app: Running) -> None:
    with socket.create_connection(app.lines, DEADLINE) as sock:
        sent = [f"line {number}" for number in range(1000)]
        sock.sendall("\n".join(sent).encode())  # the last one without its end
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).decode().splitlines() == [f"primary {app.pid}: {line}" for line in sent]


def test_many_clients_are_served_at_once(app: Running) -> None:
    with ExitStack() as stack:
        start = time.monotonic()
        clients = [stack.enter_context(app.pending("/slow?ms=300")) for _ in range(40)]
        assert all(read_all(client).endswith(b"after 300 ms\n") for client in clients)
        assert time.monotonic() - start < 40 * 0.3 / 2


# ---------------------------------------------------------------- faults


def test_unhealthy_and_back(victim: Running) -> None:
    assert victim.text("/fault/unhealthy") == "/health answers 503"
    assert victim.ask("/health") == (503, b"unhealthy\n")
    assert victim.ask("/who")[0] == 200
    assert b"faults now: unhealthy\n" in victim.ask("/")[1]
    assert victim.text("/fault/healthy") == "/health answers 200"
    assert victim.ask("/health") == (200, b"ok\n")


def test_slow_slows_everything_until_it_is_taken_back(victim: Running) -> None:
    assert victim.text("/fault/slow?ms=200") == "every request and line takes 200 ms longer"
    start = time.monotonic()
    assert victim.ask("/health")[0] == 200
    assert time.monotonic() - start >= 0.2
    assert victim.text("/fault/none") == "what is left: no fault"
    assert b"faults now: none\n" in victim.ask("/")[1]


def test_hang_blocks_health_and_lines_until_it_is_taken_back(victim: Running) -> None:
    assert victim.text("/fault/hang") == "hangs for ever"
    with victim.pending("/health") as health, socket.create_connection(victim.lines, DEADLINE) as lines:
        lines.sendall(b"one\n")
        assert is_silent(health, MOMENT)
        assert is_silent(lines, 0)
        assert victim.text("/fault/none") == "what is left: no fault"
        assert read_all(health).endswith(b"ok\n")
        lines.shutdown(socket.SHUT_WR)
        assert read_all(lines) == f"primary {victim.pid}: one\n".encode()


def test_hang_may_end_by_itself(victim: Running) -> None:
    start = time.monotonic()
    assert victim.text("/fault/hang?s=1") == "hangs for 1 s"
    assert victim.ask("/health") == (200, b"ok\n")
    assert time.monotonic() - start >= 1


def test_deadlock_blocks_health_alone_and_shows_in_a_thread_dump(flavour: Flavour, victim: Running) -> None:
    blocked = "deadlock: two threads block each other, /health waits for one of them"
    assert victim.text("/fault/deadlock") == blocked
    assert victim.text("/fault/deadlock") == "deadlock: is there already"
    with victim.pending("/health") as health:
        for _ in range(20):
            assert victim.ask("/who")[0] == 200
        assert victim.text("/fault/none") == "what is left: deadlock"
        assert is_silent(health, MOMENT)
        os.kill(victim.pid, signal.SIGQUIT)
        assert victim.line("Found one Java-level deadlock" if flavour.name == "java" else "in embrace")


def test_exit_ends_it_at_once_with_the_code(victim: Running) -> None:
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        victim.ask("/fault/exit?code=42")
    assert victim.process.wait(DEADLINE) == 42


def test_a_small_leak_is_kept(victim: Running) -> None:
    assert victim.text("/fault/leak?mb=5") == "keeps 5 MB"
    assert victim.text("/fault/leak?mb=2") == "keeps 7 MB"
    assert b"faults now: leak of 7 MB\n" in victim.ask("/")[1]
    assert victim.ask("/health") == (200, b"ok\n")
    assert victim.text("/fault/none") == "what is left: no fault"


def test_a_leak_without_limit_ends_a_process_that_was_told_to_end(flavour: Flavour, launch: Launch) -> None:
    victim = launch(flavour.small_heap)
    with victim.pending("/fault/leak"):  # which it may or may not answer
        assert victim.process.wait(DEADLINE) == 3


@pytest.mark.real
@pytest.mark.parametrize("flavour", ["java"], indirect=True, scope="module")
def test_a_jvm_without_memory_lives_on_if_nobody_told_it_to_end(flavour: Flavour, launch: Launch) -> None:
    victim = launch([word for word in flavour.small_heap if "OutOfMemory" not in word])
    with victim.pending("/fault/leak"):  # whose answer may find no memory left
        victim.line("out of memory")
    with pytest.raises(subprocess.TimeoutExpired):
        victim.process.wait(MOMENT)


def test_term_ends_it_with_143_also_in_the_middle_of_requests(victim: Running) -> None:
    with victim.pending("/slow?ms=600000") as slow, socket.create_connection(victim.lines, DEADLINE) as idle:
        assert victim.ask("/health")[0] == 200
        victim.process.terminate()
        assert victim.process.wait(DEADLINE) == 143
        assert read_all(slow) == read_all(idle) == b""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_other_signals_end_it_with_their_own_status(victim: Running, number: signal.Signals, status: int) -> None:
    victim.process.send_signal(number)
    assert victim.process.wait(DEADLINE) == status


def test_ignore_term_outlives_many_terms_and_serves_on(victim: Running) -> None:
    assert victim.text("/fault/ignore-term") == "SIGTERM, SIGINT and SIGHUP no longer end it"
    for _ in range(3):
        victim.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        victim.process.wait(3 * MOMENT)
    assert victim.ask("/health") == (200, b"ok\n")


def test_ignore_term_can_be_taken_back(victim: Running) -> None:
    victim.text("/fault/ignore-term")
    assert victim.text("/fault/none") == "what is left: no fault"
    victim.process.terminate()
    assert victim.process.wait(DEADLINE) == 143


def test_logspam_fills_the_log(victim: Running) -> None:
    assert victim.text("/fault/logspam?lines=200") == "wrote 200 lines"
    assert victim.line("spam 1 of 200: ").endswith("x" * 60)
    assert victim.line("spam 200 of 200: ")


def test_child_holds_stdout_and_outlives_it(victim: Running) -> None:
    words = victim.text("/fault/child?s=600").split()
    child = int(words[1])
    try:
        assert " ".join((words[0], *words[2:])) == "child holds the log open"
        victim.process.kill()
        assert victim.process.wait(DEADLINE) == -signal.SIGKILL
        assert not victim.has_output(MOMENT), "nobody holds its stdout open"
        assert os.getpgid(child) == os.getpgid(0), "the child has left the process group"
    finally:
        os.kill(child, signal.SIGKILL)
    assert victim.has_output(DEADLINE)


@pytest.mark.parametrize("option", ["--port", "--line-port"])
def test_a_taken_port_ends_it_with_one_clear_line(flavour: Flavour, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [*flavour.command, *ANY_PORTS, option, str(port)], capture_output=True, text=True, timeout=DEADLINE
        )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"cannot listen on 127.0.0.1:{port}: address already in use\n"


def test_a_port_that_cannot_be_is_a_usage_error(flavour: Flavour) -> None:
    ended = subprocess.run([*flavour.command, "--port", "70000"], capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == 2
    assert "--port: 70000 is not a port (0 to 65535)" in ended.stderr


@pytest.mark.real
def test_the_java_program_runs_from_source(launch: Launch) -> None:
    need_jdk()
    app = launch(["java", str(DEMO / "App.java"), "--name", "backup"])
    assert json.loads(app.ask("/who")[1]) == {"name": "backup", "pid": app.pid}


# ---------------------------------------------------------------- the test double


def test_stand_in_is_told_by_files_how_healthy_it_is(launch: Launch, tmp_path: Path) -> None:
    sick, stuck = tmp_path / "sick", tmp_path / "stuck"
    app = launch(stand_in("--unhealthy-while", sick, "--hang-while", stuck))
    assert app.ask("/health")[0] == 200
    sick.touch()
    assert app.ask("/health")[0] == 503
    stuck.touch()
    with app.pending("/health") as health:
        assert app.ask("/who")[0] == 200
        assert is_silent(health, MOMENT)
        sick.unlink()
        stuck.unlink()
        assert read_all(health).endswith(b"ok\n")


def test_stand_in_listens_no_earlier_than_the_test_allows(tmp_path: Path) -> None:
    allowed, report, is_ready = (tmp_path / name for name in ("allowed", "report", "ready"))
    told, tell = os.pipe()
    words = stand_in("--wait-for", allowed, "--ready-fd", tell, "--ready-file", is_ready, "--report", report)
    with (
        open(told, "rb") as reader,
        subprocess.Popen([*words, *ANY_PORTS], pass_fds=[tell], stdout=subprocess.DEVNULL) as process,
    ):
        os.close(tell)
        assert not select.select([reader], [], [], MOMENT)[0]
        assert not is_ready.exists()
        allowed.touch()
        assert read_pipe(reader) == b"\n"
        assert int(is_ready.read_text()) == process.pid
        assert json.loads(report.read_text())["pid"] == process.pid
        process.terminate()
        assert process.wait(DEADLINE) == 143


def read_pipe(reader: BinaryIO) -> bytes:
    """Everything until the last writer has closed its end."""
    assert select.select([reader], [], [], DEADLINE)[0], "nobody told us"
    return reader.read()


def test_stand_in_can_be_made_to_fail_until_the_test_lets_it(launch: Launch, tmp_path: Path) -> None:
    broken, launches = tmp_path / "broken", tmp_path / "launches"
    words = stand_in("--exit-at-once", 7, "--exit-while", broken, "--launches", launches, "--print-lines", 2)
    broken.touch()
    ended = [subprocess.run(words, capture_output=True, timeout=DEADLINE) for _ in range(2)]
    assert [(each.returncode, each.stdout) for each in ended] == [(7, b"line 1\nline 2\n")] * 2
    assert ended[0].stderr == b"error line 1\nerror line 2\n"
    broken.unlink()
    assert launch(words).ask("/health")[0] == 200
    assert len(launches.read_text().splitlines()) == 3


def test_stand_in_reports_the_world_it_was_launched_into(tmp_path: Path) -> None:
    report = tmp_path / "report"
    prepare = 'umask 027; ulimit -n 123; trap "" USR1; exec nice -n 5 "$@"'
    subprocess.run(
        ["sh", "-c", prepare, "sh", *stand_in("--report", report, "--exit-at-once", 0)],
        cwd=tmp_path,
        env={"COLOUR": "blue"},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=DEADLINE,
    )
    world = json.loads(report.read_text())
    assert world["cwd"] == str(tmp_path)
    assert world["umask"] == 0o027
    assert world["limits"]["nofile"] == [123, 123]
    assert world["nice"] == os.getpriority(os.PRIO_PROCESS, 0) + 5
    assert world["environment"]["COLOUR"] == "blue"
    assert world["pid"] == world["pgid"] == world["sid"]
    assert (world["uid"], world["gid"]) == (os.getuid(), os.getgid())
    assert signal.SIGUSR1 in world["ignored"]
    assert world["blocked"] == []
    assert world["descriptors"]["0"] == "/dev/null"


def test_stand_in_leaves_the_children_it_was_asked_to_leave(launch: Launch, tmp_path: Path) -> None:
    report = tmp_path / "report"
    app = launch(stand_in("--report", report, "--spawn-child", "--daemonize-child", "--ignore-term"))
    children = json.loads(report.read_text())["children"]
    try:
        app.process.terminate()
        os.kill(children["spawned"], signal.SIGTERM)
        assert app.ask("/health")[0] == 200
        app.process.kill()
        app.process.wait(DEADLINE)
        assert os.getpgid(children["spawned"]) == os.getpgid(0)
        assert os.getsid(children["daemonized"]) not in (os.getsid(0), children["daemonized"])
    finally:
        for child in children.values():
            os.kill(child, signal.SIGKILL)
