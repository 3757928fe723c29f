"""`python -m bench.upgrades`: the daemon is upgraded in place again and again, under a load that notices everything.

The same load runs as long without an upgrade first: the longest pause is to be compared with that one, because a busy
machine has pauses of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.pairs import BenchPair, Footprint, footprint, own_processes, write_json
from tests.support.pair import CHECKOUT

BACKEND = Path(__file__).with_name("backend.py")
FIGURES = {"rss": "KiB", "pss": "KiB", "descriptors": "", "threads": ""}


class Upgradable(Protocol):
    """A running pair; see `tests.support.pair.Pair`."""

    def status(self) -> dict[str, Any]:
        """`GET /v1/status`."""

    def done(self, *words: str) -> str:
        """What clojarsctl says of an order that must come to its end."""

    def until(self, fact: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first status for which the fact holds."""


@dataclass(frozen=True, slots=True)
class Load:
    """A running `bench.steady_load`."""

    process: subprocess.Popen[str]

    def seen(self) -> dict[str, Any]:
        """What it has seen since it was asked last."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the load has ended by itself")
        picture: dict[str, Any] = json.loads(line)
        return picture


def main() -> None:
    arguments = parse(sys.argv[1:])
    picture = measure(arguments.upgrades, arguments.connections, arguments.calm)
    print(table(picture))
    write_json(arguments.json, picture)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.upgrades", description=__doc__)
    parser.add_argument("--upgrades", type=int, default=20)
    parser.add_argument("--connections", type=int, default=100, help="that stay open all the time")
    parser.add_argument("--calm", type=float, default=20.0, help="seconds of the same load without an upgrade")
    parser.add_argument("--json", type=Path, default=Path("build/upgrades.json"))
    return parser.parse_args(words)


@contextmanager
def loaded(pair: BenchPair, connections: int) -> Iterator[Load]:
    """The load on the pair's frontend, all of it under way; the primary serves."""
    pair.until_ready()
    command = [sys.executable, "-m", "bench.steady_load", str(pair.http), "--connections", str(connections)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as process:
        try:
            load = Load(process)
            load.seen()  # begins the count when everything is under way
            yield load
        finally:
            process.kill()


def measure(upgrades: int, connections: int, calm: float) -> dict[str, object]:
    command = [sys.executable, "-S", "-E", str(BACKEND), "--port", "{port.http}"]
    with (
        tempfile.TemporaryDirectory(prefix="clojarsd-bench-") as made,
        BenchPair(Path(made), command=command) as pair,
        loaded(pair, connections) as load,
    ):
        time.sleep(calm)
        quiet, before = load.seen(), look(pair)
        seconds = [upgrade(pair) for _ in range(upgrades)]
        seen, after = load.seen(), look(pair)
    return {
        "version": 1,
        "upgrades": upgrades,
        "connections": connections,
        "seconds": seconds,
        "calm": quiet,
        "upgrading": seen,
        "before": {name: asdict(one) for name, one in before.items()},
        "after": {name: asdict(one) for name, one in after.items()},
    }


def look(pair: BenchPair) -> dict[str, Footprint]:
    return {name: footprint(pid) for name, pid in own_processes(pair).items()}


def upgrade(pair: Upgradable) -> float:
    """Seconds from the order until the next generation has both instances ready; their processes must be the same."""
    before = pair.status()
    began = time.monotonic()
    pair.done("daemon", "upgrade")
    after = pair.until(
        lambda seen: (
            seen["daemon"]["generation"] == before["daemon"]["generation"] + 1
            and all(one["eligible"] for one in seen["instances"].values())
        )
    )
    took = time.monotonic() - began
    for role, one in before["instances"].items():
        if after["instances"][role]["pid"] != one["pid"]:
            raise SystemExit(f"the upgrade has restarted {role}")
    print(f"generation {after['daemon']['generation']} after {took:.2f} s", file=sys.stderr)
    return took


def table(picture: dict[str, object]) -> str:
    calm, upgrading, seconds = picture["calm"], picture["upgrading"], picture["seconds"]
    before, after = picture["before"], picture["after"]
    assert isinstance(calm, dict)
    assert isinstance(upgrading, dict)
    assert isinstance(seconds, list)
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    lines = [f"{picture['upgrades']} upgrades, {picture['connections']} connections that stay"]
    if seconds:
        lines.append(f"seconds each: median {statistics.median(seconds):.2f}, longest {max(seconds):.2f}")
    lines.append(f"{'':<28}{'without':>14}{'upgrading':>14}")
    for name in calm:
        for figure, text in (("answered", "answered"), ("failed", "failed"), ("cut", "cut")):
            lines.append(f"{name + ' ' + text:<28}{calm[name][figure]:>14,}{upgrading[name][figure]:>14,}")
        pauses = [1000 * seen[name]["longest_s"] for seen in (calm, upgrading)]
        lines.append(f"{name + ' longest pause, ms':<28}{pauses[0]:>14,.1f}{pauses[1]:>14,.1f}")
    lines.append(f"{'':<28}{'before':>14}{'after':>14}{'ratio':>10}")
    for name in after:
        for figure, unit in FIGURES.items():
            old, new = before.get(name, {}).get(figure), after[name][figure]
            shown = f"{old:>14,.0f}{new:>14,.0f}{new / old:>10.2f}" if old else f"{'':>14}{new:>14,.0f}"
            lines.append(f"{f'{name} {figure} {unit}'.strip():<28}{shown}")
    for seen in (calm, upgrading):
        for name, one in seen.items():
            if one["last_error"]:
                lines.append(f"last error of {name}: {one['last_error']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
