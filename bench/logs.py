"""`python -m bench.logs`: a log that is written at full speed and rotated meanwhile: every line once, and in order.

With `--mode truncate`, which can lose lines, as many bytes at most may be missing as the keeper says.

The writer is a process of its own that makes one write call a line. The keeper is the daemon's own, on the daemon's
loop, with a ticker beside it that shows how long the loop was held. The first line and the last are not the writer's:
a follower that has shown the one is in its place before the writer begins, and one that shows the other misses nothing
that is still to come.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from structlog.testing import capture_logs

from clojarsd.core.names import Role
from clojarsd.core.settings_types import LogTo
from clojarsd.runtime import log_keeper
from clojarsd.runtime.log_keeper import LogKeeper, LogPlan
from clojarsd.system.cgroup import _own_group, find_delegated
from clojarsd.system.fallocate import Removal, first_byte
from clojarsd.system.log_file import LogFile

LINE = 100
"""Bytes of a line, with its end."""
TICK = 0.005
WRITER = """
import os, sys, time
path, lines, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for group in sys.argv[4:]:
    open(group + "/cgroup.procs", "w").write("0")
file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
rest = b"x" * (length - 11) + b"\\n"
clock, longest = time.perf_counter_ns, 0
began = before = clock()
for number in range(1, lines - 1):
    os.write(file, b"%010d" % number + rest)
    now = clock()
    longest = max(longest, now - before)
    before = now
print((clock() - began) / 1e9, longest / 1e9)
"""


def main() -> None:
    arguments = parse(sys.argv[1:])
    log_keeper.EVERY = arguments.every
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="clojarsd-bench-") as name:
        plain = uvloop.run(measure(Path(name) / "plain", arguments, rotate=False))
        rotated = uvloop.run(measure(Path(name) / "rotated", arguments, rotate=True))
    picture = {"version": 1, "lines": arguments.lines, "line_bytes": LINE, "plain": plain, "rotated": rotated}
    print(json.dumps(picture, indent=2))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(picture, indent=2) + "\n")
    too_few = rotated["rotations"] < arguments.rotations and not rotated["truncations"]
    if rotated["missing_bytes"] > rotated["told_lost_bytes"] or rotated["wrong"] or too_few:
        sys.exit("lines are missing, double or out of order, or there were too few rotations")


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.logs", description=__doc__)
    parser.add_argument("--lines", type=int, default=10_000_000, help="at least 3")
    parser.add_argument("--rotations", type=int, default=20, help="at least so many")
    parser.add_argument("--follow", action="store_true", help="follow the log meanwhile, as `clojarsctl logs -f` does")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the file system that is tried")
    parser.add_argument("--mode", choices=[way.value for way in Removal], help="how heads are removed")
    parser.add_argument("--every", type=float, default=log_keeper.EVERY, help="seconds between two looks at the log")
    parser.add_argument("--hold", action="store_true", help="hold the writer still in a control group of its own")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(words)


async def measure(directory: Path, arguments: argparse.Namespace, *, rotate: bool) -> dict[str, Any]:
    """One run of the writer; what it took, and what became of its lines."""
    path = make(directory)
    total = arguments.lines * LINE
    plan = LogPlan("clojars", path, LogTo.FILE, total // (arguments.rotations + 4), 1000)
    writer = WriterProcess(path, arguments.lines, hold=arguments.hold and rotate)
    keeper = LogKeeper({Role.PRIMARY: plan}, lambda role: writer.pid, lambda role: writer.group)
    keeper.logs[Role.PRIMARY].file.way = Removal(arguments.mode) if arguments.mode else None
    follower = Follower(arguments.lines)
    with capture_logs() as told, writer:
        seconds, longest, lag, settled = await run(
            keeper, writer, follower if arguments.follow else None, rotate=rotate
        )
    found: dict[str, Any] = {
        "lines_per_second": round(arguments.lines / seconds),
        "longest_write_ms": round(longest * 1000, 2),
        "loop_held_ms": round(lag * 1000, 1),
    }
    if rotate:
        found |= await asyncio.to_thread(
            partial(verify, path, arguments.lines, gaps=arguments.mode == Removal.TRUNCATE.value)
        )
        found |= {
            "settled_s": round(settled, 1),
            "rotations": len(rotated_files(path)),
            "followed": follower.order.seen,
        }
        found |= told_of_cuts(told)
        found["wrong"] += follower.order.wrong
    return found


async def run(
    keeper: LogKeeper, writer: WriterProcess, follower: Follower | None, *, rotate: bool
) -> tuple[float, float, float, float]:
    """Seconds that the writer took, of its longest write, by which the loop was late at worst, and until quiet."""
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        lag = group.create_task(longest_lag(ended))
        tasks: list[asyncio.Task[None]] = [group.create_task(keeper.run())] if rotate else []
        if rotate and follower is not None:
            tasks.append(group.create_task(follower.run(keeper)))
            await follower.in_place.wait()
        began = time.perf_counter()
        spoken = await asyncio.to_thread(writer.run)
        file = keeper.logs[Role.PRIMARY].file
        if rotate:
            await asyncio.to_thread(wait_for_quiet, file)
        append_line(file.path, writer.lines - 1)
        if rotate:
            await asyncio.to_thread(wait_for_quiet, file)
            if follower is not None:
                await follower.complete.wait()
        settled = time.perf_counter() - began
        ended.set()
        for task in tasks:
            task.cancel()
    seconds, longest = map(float, spoken.split())
    return seconds, longest, lag.result(), settled


def told_of_cuts(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the keeper has said of rotations that were truncations."""
    cuts = [one for one in told if one["event"] == "log_truncated"]
    stills = [one["held_still_s"] for one in cuts if one["held_still_s"] is not None]
    lost = [one["at_most_lost_bytes"] for one in cuts]
    return {
        "truncations": len(cuts),
        "truncations_with_loss": sum(one != 0 for one in lost),
        "told_lost_bytes": sum(one if one != "unknown" else sys.maxsize for one in lost),
        "held_still_ms": [round(one * 1000, 2) for one in sorted(stills)],
    }


def make(directory: Path) -> Path:
    """A log with the first line in a new directory."""
    directory.mkdir()
    path = directory / "primary.log"
    path.touch(0o640)
    append_line(path, 0)
    return path


def append_line(path: Path, number: int) -> None:
    """Write one line as the writer does."""
    with path.open("ab", buffering=0) as log:
        log.write(b"%010d" % number + b"x" * (LINE - 11) + b"\n")


class WriterProcess:
    """The process that writes. Use it as a context; its control group, if it has one, is removed with that."""

    def __init__(self, path: Path, lines: int, *, hold: bool) -> None:
        self._command = [sys.executable, "-I", "-S", "-c", WRITER, str(path), str(lines), str(LINE)]
        self.lines = lines
        self.pid: int | None = None
        self.group: Path | None = None
        if hold:
            base = find_delegated() or _own_group()
            if base is None:
                sys.exit("no control groups can be made here")
            self.group = base / f"clojarsd-bench-{os.getpid()}"

    def __enter__(self) -> None:
        if self.group is not None:
            self.group.mkdir()
            self._command.append(str(self.group))

    def __exit__(self, *exc_info: object) -> None:
        if self.group is not None:
            self.group.rmdir()

    def run(self) -> str:
        """Write it all; what the process says at the end."""
        with subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True) as process:
            self.pid = process.pid
            said, _ = process.communicate()
            self.pid = None
        if process.returncode != 0:
            sys.exit("the writer has failed")
        return said


class Order:
    """Counts the lines that come, those that are missing before them, and those that are no whole line in its turn."""

    def __init__(self, *, gaps: bool) -> None:
        self._gaps = gaps
        self.seen = self.expected = self.wrong = self.bytes = 0

    def take(self, line: bytes | str) -> None:
        self.seen += 1
        self.bytes += len(line) + 1
        number = int(line[:10]) if len(line) == LINE - 1 else -1
        if number == self.expected or (self._gaps and number > self.expected):
            self.expected = number + 1
        elif not self._gaps or number >= 0:
            self.wrong += 1


class Follower:
    """Reads the log as `clojarsctl logs -f` does, and counts what does not come in its turn.

    Attributes:
        in_place: set when it has shown what was there at its beginning; whatever is written from then on must come.
        complete: set when it has shown the last line, whatever was missing before that.
    """

    def __init__(self, lines: int) -> None:
        self._last = f"{lines - 1:010d}"
        self.order = Order(gaps=False)
        self.in_place = asyncio.Event()
        self.complete = asyncio.Event()

    async def run(self, keeper: LogKeeper) -> None:
        log = keeper.logs[Role.PRIMARY]
        self.order = Order(gaps=log.file.way is Removal.TRUNCATE)
        async with aclosing(log.follow(1)) as batches:
            async for batch in batches:
                for line in batch:
                    self.order.take(line)
                self.in_place.set()
                if batch[-1].startswith(self._last):
                    self.complete.set()


async def longest_lag(ended: asyncio.Event) -> float:
    """Seconds by which the loop was late at worst."""
    loop, longest = asyncio.get_running_loop(), 0.0
    while not ended.is_set():
        due = loop.time() + TICK
        await asyncio.sleep(TICK)
        longest = max(longest, loop.time() - due)
    return longest


def wait_for_quiet(file: LogFile) -> None:
    """Return when the log is short and everything but the latest rotated file is packed."""
    log = file.path
    done = re.compile(rf"{re.escape(log.name)}(\.1|\.\d+\.gz)?")
    while (
        file.size() > file.most
        or file.cut is not None  # not told yet
        or not all(done.fullmatch(entry.name) for entry in log.parent.iterdir())
    ):
        time.sleep(0.05)


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
                opened.seek(first_byte(opened.fileno()))
            while block := opened.read(1 << 20):
                yield block


def verify(path: Path, lines: int, *, gaps: bool) -> dict[str, Any]:
    """How many bytes are missing, and how many lines are not where they should be."""
    order, rest = Order(gaps=gaps), b""
    for block in content(path):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            order.take(line)
    wrong = order.wrong + (rest != b"") + (order.expected != lines)
    return {"missing_bytes": lines * LINE - order.bytes, "wrong": wrong}


if __name__ == "__main__":
    main()
