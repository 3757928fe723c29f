"""The daemon's own log: a line of key=value for each event, for every kind of reader."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import subprocess
import sys

from tests.support.control import DEADLINE_S

PROGRAM = """
import logging
import structlog
from clojarsd.system.logs import set_up_logs

set_up_logs()
log = structlog.get_logger()
log.debug("listener_bound", port=8080)
log.info("unit_ready", role="primary", pid=901, why='a "b"\\nc', eligible=True)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("request_failed")
logging.getLogger("asyncio").error("task %s was lost", 7)
print("still alive")
"""


def run(level: str | None = None, **streams: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CLOJARSD_LOG": level} if level is not None else os.environ
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, text=True, check=True, **streams)  # type: ignore[call-overload, no-any-return]


def without_time(line: str) -> str:
    first, _, rest = line.partition(" ")
    assert first.startswith("timestamp=20")
    assert first.endswith("Z")
    return rest


def test_a_line_for_each_event() -> None:
    ready, failed, lost = run().stderr.splitlines()
    assert without_time(ready) == ('level=info event=unit_ready role=primary pid=901 why="a \\"b\\"\\nc" eligible=true')
    assert without_time(failed).startswith('level=error event=request_failed exception="Traceback ')
    assert "ZeroDivisionError: division by zero" in failed
    assert without_time(lost) == 'level=error event="task 7 was lost"'


def test_the_level_comes_from_the_environment() -> None:
    assert len(run("debug").stderr.splitlines()) == 4
    assert len(run("error").stderr.splitlines()) == 2
    warned, *rest = run("loud").stderr.splitlines()
    assert without_time(warned).startswith("level=warning event=log_level_not_understood variable=CLOJARSD_LOG")
    assert len(rest) == 3


def test_a_terminal_gets_colours() -> None:
    ours, theirs = pty.openpty()
    try:
        run(stderr=theirs)
        shown = os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"\x1b[" in shown
    assert b"unit_ready" in shown


def test_a_reader_that_has_gone_ends_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        assert run(stderr=write).stdout == "still alive\n"
    finally:
        os.close(write)


def test_no_stderr_at_all_ends_nothing() -> None:
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, PROGRAM]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "still alive\n"


def test_a_stream_of_ones_own() -> None:
    program = "import io, structlog; from clojarsd.system.logs import set_up_logs; out = io.StringIO();"
    program += "set_up_logs({}, out); structlog.get_logger().info('x', a=1); print(out.getvalue(), end='')"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert without_time(io.StringIO(done.stdout).readline()) == "level=info event=x a=1\n"


STALLED = """
import sys
import structlog
from clojarsd.system.logs import flush_logs, set_up_logs

set_up_logs({})
log = structlog.get_logger()
for number in range(15_000):
    log.info("x", number=number)
print("never held up", flush=True)
if sys.stdin.readline():
    flush_logs(60.0)
    log.info("end")
"""


def stalled(stderr: int) -> subprocess.Popen[str]:
    """A program whose stderr nobody reads yet, after it has logged more than fits anywhere."""
    fcntl.fcntl(stderr, fcntl.F_SETPIPE_SZ, 4096)
    pipe = subprocess.PIPE
    program = subprocess.Popen([sys.executable, "-c", STALLED], stdin=pipe, stdout=pipe, stderr=stderr, text=True)
    assert program.stdout is not None
    said, _, _ = select.select([program.stdout], [], [], DEADLINE_S)
    if not said:
        program.kill()
    assert program.stdout.readline() == "never held up\n"
    return program


def test_a_reader_that_stalls_holds_up_nobody_and_what_it_missed_is_counted() -> None:
    read, write = os.pipe()
    with stalled(write) as program, open(read, encoding="utf-8") as reader:
        os.close(write)
        assert program.stdin is not None
        program.stdin.write("go on\n")
        program.stdin.flush()
        *lines, missed, end = [without_time(line) for line in reader.read().splitlines()]
    assert program.returncode == 0
    assert 10_000 <= len(lines) < 15_000
    assert lines == [f"level=info event=x number={number}" for number in range(len(lines))]
    dropped = 15_000 - len(lines)
    assert missed == f'level=error event=log_lines_dropped count={dropped} reason="stderr was not read"'
    assert end == "level=info event=end"


def test_a_reader_that_stalls_does_not_hold_up_the_end() -> None:
    read, write = os.pipe()
    try:
        with stalled(write) as program:
            assert program.stdin is not None
            program.stdin.close()
            assert program.wait(DEADLINE_S) == 0
    finally:
        os.close(write)
        os.close(read)
