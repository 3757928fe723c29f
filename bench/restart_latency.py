"""`python -m bench.restart_latency`: from the death of a process to the first act of the next, by supervisor.

clojarsd, supervisord and runit's runsv run the same program at the same time; each round kills each one's process with
SIGKILL, in an order that changes, and waits for the next. The program is a shell script that tells its number and
becomes `sleep`; how long it takes when nothing supervises it is measured too (`spawn`). Before each kill the process
has lived a second and a random part of another: runsv makes one that ended sooner wait, and supervisord looks once a
second.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.pairs import BenchPair, write_json

COMPARED = Path(__file__).parent.parent / "build" / "compared"
"""Where `tools/setup bench` unpacks programs that are not installed."""
BASE = "spawn"
PATIENCE_S = 60.0
LEAST_LIFE_S = 1.1
PROGRAM = """#!/bin/sh
echo $$ > {fifo}
exec sleep 1000000
"""


@dataclass
class Subject:
    """Somebody who keeps the program running. fifo: where each of its processes tells its number."""

    name: str
    fifo: int
    pid: int = 0
    born: float = 0.0
    taken: list[float] = field(default_factory=list)

    def await_launch(self) -> float:
        """The instant at which the next process has told its number."""
        os.set_blocking(self.fifo, True)
        line = os.read(self.fifo, 100)
        self.born = time.monotonic()
        self.pid = int(line.split()[-1])
        return self.born

    def kill_and_wait(self) -> None:
        """One round."""
        killed = time.monotonic()
        os.kill(self.pid, signal.SIGKILL)
        self.taken.append(self.await_launch() - killed)


def main() -> None:
    arguments = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="clojarsd-bench-") as made, contextlib.ExitStack() as stack:
        signal.signal(signal.SIGALRM, give_up)
        home = Path(made)
        names = [name for name in SUPERVISORS if name in arguments.targets]
        subjects = [stack.enter_context(supervised(home, name)) for name in names if is_there(name)]
        spawns = measure(subjects, home, arguments.rounds)
    picture = summary({BASE: spawns, **{subject.name: subject.taken for subject in subjects}}, arguments.rounds)
    print(table(picture))
    write_json(arguments.json, picture)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.restart_latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--targets", nargs="+", choices=[*SUPERVISORS], default=[*SUPERVISORS])
    parser.add_argument("--json", type=Path, default=Path("build/restart_latency.json"))
    return parser.parse_args(words)


def give_up(*_: object) -> None:
    raise SystemExit(f"no process was launched within {PATIENCE_S:g} s")


# Who supervises.


def find(program: str) -> str | None:
    """The path of a program that is installed, or was unpacked by the set-up."""
    beside = COMPARED / "usr" / "bin" / program
    return shutil.which(program) or (str(beside) if beside.exists() else None)


def is_there(name: str) -> bool:
    if name == "clojarsd" or find(name) is not None:
        return True
    print(f"{name} is not there and is left out: tools/setup bench gets it", file=sys.stderr)
    return False


@contextlib.contextmanager
def supervised(home: Path, name: str) -> Iterator[Subject]:
    """The supervisor of that name with a process of the program; in the end both are gone."""
    own = home / name
    own.mkdir()
    with fifo(own / "fifo") as reader, SUPERVISORS[name](own, program(own)):
        subject = Subject(name, reader)
        signal.alarm(int(PATIENCE_S))
        subject.await_launch()
        signal.alarm(0)
        yield subject


@contextlib.contextmanager
def fifo(path: Path) -> Iterator[int]:
    os.mkfifo(path)
    opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield opened
    finally:
        os.close(opened)


def program(own: Path) -> Path:
    path = own / "run"
    path.write_text(PROGRAM.format(fifo=own / "fifo"))
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def clojarsd(own: Path, run: Path) -> Iterator[None]:
    """Its primary is the one that is measured."""
    backup = own / "run-backup"
    backup.write_text("#!/bin/sh\nexec sleep 1000000\n")
    backup.chmod(0o755)
    (own / "run-primary").symlink_to(run)
    home = own / "home"
    home.mkdir()
    pair = BenchPair(home, command=[str(own / "run-{role}")])
    pair.begin()
    try:
        yield
    finally:
        pair.end()


@contextlib.contextmanager
def supervisord(own: Path, run: Path) -> Iterator[None]:
    config = own / "supervisord.conf"
    config.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={own}/log\npidfile={own}/pid\nchildlogdir={own}\n"
        f"[program:it]\ncommand={run}\nautorestart=true\nstartsecs=0\nstartretries=1000000\n"
    )
    found = find("supervisord")
    assert found is not None
    with running([found, "-c", str(config)], own):
        yield


@contextlib.contextmanager
def runsv(own: Path, run: Path) -> Iterator[None]:
    """`run` is where runsv looks for what it is to run."""
    found = find("runsv")
    assert found is not None
    with running([found, str(own)], own):
        yield


SUPERVISORS: Mapping[str, Callable[[Path, Path], contextlib.AbstractContextManager[None]]] = {
    "clojarsd": clojarsd,
    "supervisord": supervisord,
    "runsv": runsv,
}


@contextlib.contextmanager
def running(command: list[str], own: Path) -> Iterator[None]:
    packages = COMPARED / "usr" / "lib" / "python3" / "dist-packages"
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(packages)}
    with (
        (own / "output").open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=own, env=environment
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


# What is measured.


def measure(subjects: list[Subject], home: Path, rounds: int) -> list[float]:
    """Fill `taken` of each subject; the seconds that the program takes when nobody supervises it."""
    chance = random.Random(1)
    spawns = []
    with fifo(home / "fifo") as reader:
        alone = Subject(BASE, reader)
        run = program(home)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            chance.shuffle(subjects)
            for subject in subjects:
                time.sleep(max(0.0, subject.born + LEAST_LIFE_S + chance.random() - time.monotonic()))
                signal.alarm(int(PATIENCE_S))
                subject.kill_and_wait()
                signal.alarm(0)
            spawns.append(spawn(alone, run))
    return spawns


def spawn(alone: Subject, run: Path) -> float:
    """Seconds from the wish for a process to its first act, with nothing but posix_spawn in between."""
    began = time.monotonic()
    pid = os.posix_spawn(str(run), [str(run)], os.environ)
    taken = alone.await_launch() - began
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return taken


def summary(values: Mapping[str, list[float]], rounds: int) -> dict[str, object]:
    """Milliseconds, and the median over the rounds of each one's ratio to clojarsd in the same round."""
    ours = values.get("clojarsd")
    subjects = {}
    for name, seconds in values.items():
        taken = sorted(second * 1000 for second in seconds)
        subjects[name] = {
            "median_ms": statistics.median(taken),
            "p90_ms": taken[math.ceil(len(taken) * 0.9) - 1],
            "worst_ms": taken[-1],
            "ratio": statistics.median(own / base for own, base in zip(seconds, ours, strict=True)) if ours else None,
            "values_ms": taken,
        }
    return {"version": 1, "rounds": rounds, "subjects": subjects}


def table(picture: dict[str, object]) -> str:
    subjects = picture["subjects"]
    assert isinstance(subjects, dict)
    lines = [f"{'kill -9 to the next one':<24}{'median ms':>12}{'p90 ms':>12}{'worst ms':>12}{'to clojarsd':>12}"]
    for name, entry in subjects.items():
        figures = "".join(f"{entry[key]:>12.1f}" for key in ("median_ms", "p90_ms", "worst_ms"))
        ratio = f"{entry['ratio']:>12.2f}" if entry["ratio"] is not None else ""
        lines.append(f"{name:<24}{figures}{ratio}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
