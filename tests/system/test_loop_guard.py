"""A loop that stands still is told of, by a thread; each case in a process of its own with a real blocking call."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from tests.support.waiting import PATIENCE

HEAD = """
import asyncio, os, sys, time
import structlog, uvloop
from clojarsd.system.logs import set_up_logs
from clojarsd.system.loop_guard import LoopGuard

set_up_logs({})
new_loop = uvloop.new_event_loop if sys.argv[1] == "uvloop" else asyncio.new_event_loop

async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0.01)

def run(main):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main)
    print("done", flush=True)
"""

BLOCKED = """
def hold_everything_up():
    os.set_blocking(0, True)  # uvloop's add_reader changed that
    os.read(0, 1)  # until the test writes

async def main():
    async with LoopGuard(0.2):
        await turns(3)
        for _ in range(2):
            print("blocking", flush=True)
            hold_everything_up()
            print("moving", flush=True)
            reader = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(0, lambda: reader.done() or reader.set_result(os.read(0, 1)))
            await reader
            asyncio.get_running_loop().remove_reader(0)

run(main())
"""

LOG_HELD = """
import clojarsd.system.logs as logs

async def main():
    async with LoopGuard(0.2):
        await turns(3)
        with logs._queued[0]._lock:  # what a loop may be blocked in is the log itself
            os.read(0, 1)

run(main())
"""

CALM = """
async def main():
    async with LoopGuard(0.6):
        print("calm", flush=True)
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        loop.add_reader(0, lambda: over.done() or over.set_result(os.read(0, 1)))
        await over
        loop.remove_reader(0)
        await turns(80)

run(main())
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def program(text: str, loop_name: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + text, loop_name], stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def line_of(stream: IO[str] | None) -> str:
    """The next line; the stream is at its end of what was said before."""
    assert stream is not None
    assert select.select([stream], [], [], PATIENCE)[0], "nothing was said"
    return stream.readline()


def go_on(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    running.stdin.write("x")
    running.stdin.flush()


@pytest.mark.slow
def test_a_blocked_loop_is_told_with_its_stack_and_told_again_when_it_moves(loop_name: str) -> None:
    with program(BLOCKED, loop_name) as running:
        assert running.stderr is not None
        for _ in range(2):
            assert line_of(running.stdout) == "blocking\n"
            stands = line_of(running.stderr)
            assert not select.select([running.stderr], [], [], 0.3)[0], "a standstill is told once"
            go_on(running)
            assert line_of(running.stdout) == "moving\n"
            moves = line_of(running.stderr)
            assert re.search(r" level=error event=loop_stands_still stood_s=0\.[2-9]|stood_s=[1-9]", stands), stands
            assert re.search(r'stack=".*<string>:\d+ main; <string>:\d+ hold_everything_up"', stands), stands
            assert re.search(r" level=warning event=loop_moves_again stood_s=\d+\.\d\n", moves), moves
            go_on(running)
        assert line_of(running.stdout) == "done\n"
        assert running.stderr.read() == ""


@pytest.mark.slow
def test_a_log_that_the_loop_itself_holds_up_is_gone_round(loop_name: str) -> None:
    with program(LOG_HELD, loop_name) as running:
        stands = line_of(running.stderr)
        assert " level=error event=loop_stands_still stood_s=" in stands
        assert 'log="does not move"' in stands
        go_on(running)
        assert line_of(running.stdout) == "done\n"


@pytest.mark.slow
def test_a_process_that_was_stopped_is_no_loop_that_was_blocked(loop_name: str) -> None:
    with program(CALM, loop_name) as running:
        assert line_of(running.stdout) == "calm\n"
        for _ in range(2):
            os.kill(running.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, running.pid, os.WSTOPPED)
            select.select([], [], [], 0.9)  # the time itself is what is tested
            os.kill(running.pid, signal.SIGCONT)
            os.waitid(os.P_PID, running.pid, os.WCONTINUED)
        go_on(running)
        assert line_of(running.stdout) == "done\n"
        assert running.stderr is not None
        assert running.stderr.read() == ""
