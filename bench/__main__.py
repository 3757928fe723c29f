"""`python -m bench`: the targets side by side, with the same backend, in interleaved rounds.

Machines are noisy, so what counts is the ratio to the direct way within the same round; the table shows the median over
the rounds of that ratio, and of the number itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from bench.daemon import pair
from bench.scenarios import FIGURES, SCENARIOS, Sizes, idle
from bench.targets import TARGETS, Target, backend

BASE = "direct"
DAEMON = "clojarsd"
Values = dict[str, dict[str, list[float]]]
"""figure -> target -> one number for each round."""


def main() -> None:
    arguments = parse(sys.argv[1:])
    sizes = Sizes(seconds=arguments.seconds, bulk=arguments.bulk_mb * 1_000_000, idle=arguments.idle)
    with contextlib.ExitStack() as stack:
        targets = open_targets(arguments.targets, stack)
        values = measure(targets, sizes, arguments.rounds)
    picture = summary(values, [target.name for target in targets], arguments.rounds)
    print(table(picture))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(picture, indent=2) + "\n")


def open_targets(names: list[str], stack: contextlib.ExitStack) -> list[Target]:
    """The targets of these names, all in front of the same backend: the daemon's primary where it takes part."""
    if DAEMON in names:
        backend_port, daemon = stack.enter_context(pair())
    else:
        backend_port, daemon = stack.enter_context(backend())[0], None
    opened = []
    for name in names:
        if name == DAEMON and daemon is not None:
            opened.append(daemon)
        else:
            opened.append(stack.enter_context(TARGETS[name](backend_port)))
    return opened


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small loads, for a first look")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement of rate or latency")
    parser.add_argument("--bulk-mb", type=int, help="size of a bulk transfer")
    parser.add_argument("--idle", type=int, help="idle connections whose memory is measured")
    parser.add_argument("--targets", nargs="+", choices=[*TARGETS, DAEMON], default=[BASE, DAEMON])
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    arguments = parser.parse_args(words)
    if BASE not in arguments.targets:
        arguments.targets.insert(0, BASE)
    for name, quick, full in (("rounds", 2, 5), ("seconds", 0.8, 2.0), ("bulk_mb", 128, 512), ("idle", 500, 2000)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else full)
    return arguments


def measure(targets: list[Target], sizes: Sizes, rounds: int) -> Values:
    """Every scenario for every target in every round; who comes first changes from round to round."""
    values: Values = defaultdict(lambda: defaultdict(list))
    for number in range(rounds):
        for scenario in SCENARIOS:
            if scenario is idle and number:
                continue
            for target in targets if number % 2 == 0 else reversed(targets):
                print(f"round {number + 1} of {rounds}: {scenario.__name__}: {target.name}", file=sys.stderr)
                for figure, value in scenario(target, sizes).items():
                    values[figure][target.name].append(value)
    return values


def summary(values: Values, names: list[str], rounds: int) -> dict[str, object]:
    """What the file holds: medians of the numbers, and of their ratios to the direct way in the same round."""
    figures: dict[str, object] = {}
    for name, figure in FIGURES.items():
        seen = values[name]
        entry: dict[str, object] = {
            "unit": figure.unit,
            "more_is_better": figure.more_is_better,
            "medians": {target: statistics.median(seen[target]) for target in names if seen[target]},
            "values": {target: seen[target] for target in names if seen[target]},
        }
        if figure.compared:
            entry["ratios"] = {
                target: statistics.median(value / base for value, base in zip(seen[target], seen[BASE], strict=True))
                for target in names
                if target != BASE
            }
        figures[name] = entry
    return {"version": 1, "rounds": rounds, "targets": names, "figures": figures}


def table(picture: dict[str, object]) -> str:
    """The summary for people."""
    names = picture["targets"]
    figures = picture["figures"]
    assert isinstance(names, list)
    assert isinstance(figures, dict)
    lines = [f"{'':<28}{'unit':<12}" + "".join(f"{name:>16}{'ratio' if name != BASE else '':>8}" for name in names)]
    for figure, entry in figures.items():
        line = f"{figure:<28}{entry['unit']:<12}"
        for name in names:
            median = entry["medians"].get(name)
            ratio = entry.get("ratios", {}).get(name)
            line += f"{median:>16,.2f}" if median is not None else f"{'':>16}"
            line += f"{ratio:>8.2f}" if ratio is not None else f"{'':>8}"
        lines.append(line.rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
