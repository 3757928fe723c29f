"""A process that ends as a whole, and says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clojarsd.system.memory_trouble import SPARED
from tests.support.waiting import PATIENCE

PROGRAM = """
import asyncio, faulthandler, gc, os, sys, threading
from clojarsd.system.memory_trouble import LoudEnd
faulthandler.enable()
end = LoudEnd()
end.watch_threads()

def fail(kind):
    raise kind("no more")

class Cursed:
    def __del__(self):
        fail(MemoryError)

async def main():
    loop = asyncio.get_running_loop()
    end.watch_loop(loop)
    async with asyncio.timeout(30):
        {act}
        await asyncio.Event().wait()

asyncio.run(main())
"""
SHORT = "loop.call_soon(fail, MemoryError)"
LOST = """loop.create_future().set_exception(ValueError('unasked')); gc.collect(); os._exit(7)"""
CAP_SYS_RESOURCE = 24


def ended(act: str, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """How a process has ended in which this was done."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(act=act)], stderr=stderr, text=True, timeout=PATIENCE, check=False
    )


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (SHORT, "MemoryError('no more')"),
        ("loop.call_soon(fail, ValueError)", "ValueError('no more')"),
        ("fail(MemoryError)", "MemoryError('no more')"),
        ("threading.Thread(target=fail, args=[MemoryError]).start()", "MemoryError('no more')"),
        ("Cursed()", "MemoryError('no more')"),
    ],
    ids=["callback", "callback that is wrong", "main task", "thread", "destructor"],
)
def test_an_error_that_nobody_expects_ends_it_and_is_told(act: str, error: str) -> None:
    seen = ended(act)
    assert seen.returncode == -signal.SIGABRT, seen.stderr
    assert f"clojarsd: this process ends with all that it has: {error}" in seen.stderr
    assert "in fail" in seen.stderr, "where it came from"
    assert "Fatal Python error: Aborted" in seen.stderr, "where everybody stood"


def test_an_error_that_a_future_has_kept_is_only_told() -> None:
    seen = ended(LOST)
    assert seen.returncode == 7, seen.stderr
    assert "unasked" in seen.stderr


def test_it_ends_also_when_nobody_reads_what_it_says() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        while True:
            os.write(write_end, bytes(65536))
    except BlockingIOError:
        os.set_blocking(write_end, True)
    try:
        assert ended(SHORT, write_end).returncode == -signal.SIGALRM
    finally:
        os.close(read_end)
        os.close(write_end)


def test_it_is_spared_as_far_as_it_may_be() -> None:
    program = "from clojarsd.system.memory_trouble import be_spared; be_spared()"
    show = "print(open('/proc/self/oom_score_adj').read())"
    seen = subprocess.run([sys.executable, "-c", f"{program}; {show}"], capture_output=True, text=True, check=True)
    inherited = int(Path("/proc/self/oom_score_adj").read_text())
    may = int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16) >> CAP_SYS_RESOURCE & 1
    assert int(seen.stdout) == (min(SPARED, inherited) if may else inherited)
