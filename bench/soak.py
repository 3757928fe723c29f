"""`python -m bench.soak`: a week's worth of connections in minutes, and what the daemon's processes hold.

Every connection carries one request; `--at-once` are under way. Figures are taken after a warm-up of one hundredth, in
the middle and at the end, each when no client is there. Ten million connections are `--connections 10000000`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench import surroundings
from bench.native_programs import load
from bench.pairs import BenchPair, Footprint, footprint, own_processes, write_json
from bench.targets import daemon

MOMENTS = ("begin", "middle", "end")
FIGURES = {"rss": "KiB", "pss": "KiB", "descriptors": "", "threads": ""}
A_TURN = 100_000
"""Connections between two words about how far it is."""
LONG_S = 3600
"""Seconds after which a turn ends though it is not through."""
DESCRIPTORS = 20000


def main() -> None:
    surroundings.begin()
    arguments = parse(sys.argv[1:])
    surroundings.need_descriptors(DESCRIPTORS)
    lives = {mode: measure(mode, arguments.connections, arguments.at_once) for mode in arguments.modes}
    picture: dict[str, object] = {"version": 1, "connections": arguments.connections, "modes": lives}
    print(table(lives))
    write_json(arguments.json, picture)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--connections", type=int, default=1_000_000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--modes", nargs="+", choices=["steer", "relay"], default=["steer", "relay"])
    parser.add_argument("--json", type=Path, default=Path("build/soak.json"))
    return parser.parse_args(words)


def measure(mode: str, connections: int, at_once: int) -> dict[str, object]:
    """One daemon's life in that mode."""
    with (
        tempfile.TemporaryDirectory(prefix="clojarsd-bench-") as made,
        daemon(Path(made), [mode], None) as pair,
    ):
        warm = max(connections // 100, 1)
        failed = come(pair, mode, warm, at_once)
        moments, began = {"begin": look(pair)}, time.monotonic()
        for moment, share in (("middle", connections // 2 - warm), ("end", connections - connections // 2)):
            failed += come(pair, mode, share, at_once)
            moments[moment] = look(pair)
        seconds = time.monotonic() - began
        counted = pair.status()["frontends"][mode]["accepted_total"]
    return {
        "failed": failed,
        "seconds": seconds,
        "rate": (connections - warm) / seconds,
        "accepted_total": counted,
        "moments": {moment: {name: asdict(one) for name, one in seen.items()} for moment, seen in moments.items()},
    }


def come(pair: BenchPair, mode: str, connections: int, at_once: int) -> int:
    """Let so many connections come and go; how many failed. Returns when the daemon has seen the last one end."""
    failed = 0
    for begun in range(0, connections, A_TURN):
        seen = load(pair.front(mode), "new", at_once, LONG_S, min(A_TURN, connections - begun))
        failed += seen.failed
        print(f"{mode}: {begun + seen.done} of {connections}, {seen.rate:.0f} a second", file=sys.stderr)
    pair.until(lambda status: not any(status["frontends"][mode]["connections"].values()))
    return failed


def look(pair: BenchPair) -> dict[str, Footprint]:
    return {name: footprint(pid) for name, pid in own_processes(pair).items()}


def table(lives: Mapping[str, Mapping[str, object]]) -> str:
    lines = []
    for mode, life in lives.items():
        lines.append(
            f"{mode}: {life['rate']:.0f} connections a second, {life['seconds']:.0f} s, {life['failed']} failed; "
            f"the daemon counted {life['accepted_total']}"
        )
        lines.append(f"{'':<36}" + "".join(f"{moment:>12}" for moment in (*MOMENTS, "end/begin")))
        moments = life["moments"]
        assert isinstance(moments, dict)
        for name in moments["end"]:
            for figure, unit in FIGURES.items():
                lines.append(line(f"{name} {figure}", unit, [moments[moment][name][figure] for moment in MOMENTS]))
    return "\n".join(lines)


def line(name: str, unit: str, values: Sequence[float]) -> str:
    cells = "".join(f"{value:>12,.0f}" for value in values)
    return f"{name:<28}{unit:<8}{cells}{values[-1] / values[0]:>12.2f}"


if __name__ == "__main__":
    main()
