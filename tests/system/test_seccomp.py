"""What a process cannot do any more, and what it still can, by really trying."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clojarsd.system.seccomp import CLONE, CLONE3, REFUSED, program
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE

NUMBERS = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")

TRY = """
import ctypes, os, sys
from clojarsd.system.confinement import confine
from clojarsd.system.seccomp import REFUSED, filter_calls
libc = ctypes.CDLL(None, use_errno=True)
confine(None)
assert filter_calls()
{act}
"""
EACH = """
for name, number in REFUSED.items():
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    print(name, result, ctypes.get_errno())
"""
ORDINARY = """
import asyncio, socket, threading
ran = []
thread = threading.Thread(target=ran.append, args=[1])
thread.start()
thread.join()
async def main():
    async def answer(reader, writer):
        writer.write(await reader.read(1))
        writer.close()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x")
        ran.append(await reader.read())
        writer.close()
asyncio.run(main())
os.pidfd_open(os.getpid())
print(ran)
"""


@pytest.fixture(autouse=True)
def x86_64() -> None:
    if os.uname().machine != "x86_64":
        unavailable("calls are filtered on x86_64 only")


def told(act: str) -> subprocess.CompletedProcess[str]:
    """What a process says that has done this behind the filter."""
    words = [sys.executable, "-c", TRY.format(act=act)]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_each_of_the_calls_is_refused() -> None:
    lines = told(EACH).stdout.splitlines()
    assert lines == [f"{name} -1 1" for name in REFUSED]


@pytest.mark.parametrize(
    "act",
    [
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "import subprocess; subprocess.run(['/bin/true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
    ],
)
def test_no_program_is_executed_and_no_process_made(act: str) -> None:
    seen = told(act)
    assert seen.returncode == 1
    assert "PermissionError: [Errno 1] Operation not permitted" in seen.stderr


def test_threads_and_sockets_are_made_as_ever() -> None:
    seen = told(ORDINARY)
    assert seen.stdout == "[1, b'x']\n", seen.stderr


def test_it_can_still_be_aborted_and_say_where_it_stood() -> None:
    seen = told("import faulthandler; faulthandler.enable(); os.abort()")
    assert seen.returncode == -6
    assert "Fatal Python error: Aborted" in seen.stderr


def test_the_numbers_are_those_of_the_kernel() -> None:
    if not NUMBERS.exists():
        unavailable("no headers of the kernel's calls")
    known = {name: int(number) for name, number in re.findall(r"__NR_(\w+) (\d+)", NUMBERS.read_text())}
    assert {name: known[name] for name in REFUSED} == REFUSED
    assert (known["clone"], known["clone3"]) == (CLONE, CLONE3)


def test_the_filter_is_whole_instructions() -> None:
    assert len(program()) == 8 * (len(REFUSED) + 13)
