"""`python -m bench.logs`: a log that is written at full speed and rotated meanwhile: every line once, and in order.

The writer is a process of its own that makes one write call a line. The keeper is the daemon's own, on the daemon's
loop, with a ticker beside it that shows how long the loop was held.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import uvloop

from clojarsd.core.names import Role
from clojarsd.core.settings_types import LogTo
from clojarsd.runtime.log_keeper import LogKeeper, LogPlan

LINE = 100
"""Bytes of a line, with its end."""
TICK = 0.005
WRITER = """
import os, sys, time
path, lines, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
rest = b" " + b"x" * (length - 12) + b"\\n"
clock, longest = time.perf_counter_ns, 0
began = before = clock()
for number in range(lines):
    os.write(file, b"%010d" % number + rest)
    now = clock()
    longest = max(longest, now - before)
    before = now
print((clock() - began) / 1e9, longest / 1e9)
"""


def main() -> None:
    arguments = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="clojarsd-bench-") as name:
        plain = uvloop.run(measure(Path(name) / "plain", arguments, rotate=False))
        rotated = uvloop.run(measure(Path(name) / "rotated", arguments, rotate=True))
    picture = {"version": 1, "lines": arguments.lines, "line_bytes": LINE, "plain": plain, "rotated": rotated}
    print(json.dumps(picture, indent=2))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(picture, indent=2) + "\n")
    if rotated["missing"] or rotated["wrong"] or rotated["rotations"] < arguments.rotations:
        sys.exit("lines are missing, double or out of order, or there were too few rotations")


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.logs", description=__doc__)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--rotations", type=int, default=20, help="at least so many")
    parser.add_argument("--follow", action="store_true", help="follow the log meanwhile, as `clojarsctl logs -f` does")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the file system that is tried")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(words)


async def measure(directory: Path, arguments: argparse.Namespace, *, rotate: bool) -> dict[str, Any]:
    """One run of the writer; what it took, and what became of its lines."""
    path = make(directory)
    total = arguments.lines * LINE
    plan = LogPlan("clojars", path, LogTo.FILE, total // (arguments.rotations + 4), 1000)
    keeper = LogKeeper({Role.PRIMARY: plan}, lambda role: None)
    ended = asyncio.Event()
    follower = Follower(arguments.lines)
    async with asyncio.TaskGroup() as group:
        lag = group.create_task(longest_lag(ended))
        tasks: list[asyncio.Task[None]] = [group.create_task(keeper.run())] if rotate else []
        if rotate and arguments.follow:
            tasks.append(group.create_task(follower.run(keeper)))
        began = time.perf_counter()
        spoken = await asyncio.to_thread(write, path, arguments.lines)
        if rotate:
            await asyncio.to_thread(wait_for_quiet, path, plan.max_size)
            if arguments.follow:
                await follower.complete.wait()
        settled = time.perf_counter() - began
        ended.set()
        for task in tasks:
            task.cancel()
    seconds, longest = map(float, spoken.split())
    found: dict[str, Any] = {
        "lines_per_second": round(arguments.lines / seconds),
        "longest_write_ms": round(longest * 1000, 2),
        "loop_held_ms": round(lag.result() * 1000, 1),
    }
    if rotate:
        found |= await asyncio.to_thread(verify, path, arguments.lines)
        found |= {"settled_s": round(settled, 1), "rotations": len(rotated_files(path)), "followed": follower.seen}
        found["wrong"] += follower.wrong
    return found


def make(directory: Path) -> Path:
    """An empty log in a new directory."""
    directory.mkdir()
    path = directory / "primary.log"
    path.touch(0o640)
    return path


def write(path: Path, lines: int) -> str:
    command = [sys.executable, "-I", "-S", "-c", WRITER, str(path), str(lines), str(LINE)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Follower:
    """Reads the log as `clojarsctl logs -f` does, and counts what does not come in its turn."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self.seen = self.wrong = 0
        self.complete = asyncio.Event()

    async def run(self, keeper: LogKeeper) -> None:
        async with aclosing(keeper.logs[Role.PRIMARY].follow(0)) as batches:
            async for batch in batches:
                for line in batch:
                    self.wrong += int(line[:10]) != self.seen
                    self.seen += 1
                if self.seen >= self._lines:
                    self.complete.set()


async def longest_lag(ended: asyncio.Event) -> float:
    """Seconds by which the loop was late at worst."""
    loop, longest = asyncio.get_running_loop(), 0.0
    while not ended.is_set():
        due = loop.time() + TICK
        await asyncio.sleep(TICK)
        longest = max(longest, loop.time() - due)
    return longest


def wait_for_quiet(log: Path, most: int) -> None:
    """Return when the log is short and everything but the latest rotated file is packed."""
    done = re.compile(rf"{re.escape(log.name)}(\.1|\.\d+\.gz)?")
    while used(log) > most or not all(done.fullmatch(entry.name) for entry in log.parent.iterdir()):
        time.sleep(0.05)


def used(log: Path) -> int:
    """Bytes of the log, without the hole that rotation leaves where it cannot do better."""
    seen = log.stat()
    return min(seen.st_size, seen.st_blocks * 512)


def rotated_files(path: Path) -> list[Path]:
    """From the oldest to the latest."""
    found = {}
    for entry in path.parent.iterdir():
        if match := re.fullmatch(rf"{re.escape(path.name)}\.(\d+)(\.gz)?", entry.name):
            number = int(match[1])
            assert number not in found, f"two files with number {number}"
            found[number] = entry
    assert sorted(found) == list(range(1, len(found) + 1))
    return [found[number] for number in sorted(found, reverse=True)]


def content(path: Path) -> Iterator[bytes]:
    """Everything that was written to the log, in blocks."""
    for file in [*rotated_files(path), path]:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            if file == path:
                opened.seek(os.lseek(opened.fileno(), 0, os.SEEK_DATA))
            while block := opened.read(1 << 20):
                yield block


def verify(path: Path, lines: int) -> dict[str, Any]:
    """How many lines are missing, and how many are not where they should be."""
    expected = wrong = 0
    rest = b""
    for block in content(path):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            wrong += len(line) != LINE - 1 or int(line[:10]) != expected
            expected += 1
    return {"missing": lines - expected, "wrong": wrong + (rest != b"")}


if __name__ == "__main__":
    main()
