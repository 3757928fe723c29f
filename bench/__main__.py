"""`python -m bench`: the targets side by side, with the same backend, in interleaved rounds.

Machines are noisy, so what counts are ratios within the same round; the table shows the median over the rounds of the
ratio to the direct way, and of the number itself. Below it stands what is to be reached and what was.

Another proxy takes part as NAME=PORT:PID; it has to lead to the port that `--backend-port` gives the backend.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from bench import goals, surroundings
from bench.goals import COMPARISONS, Result, ratio
from bench.pairs import write_json
from bench.proxies import NotThere
from bench.scenarios import FIGURES, SCENARIOS, Scenario, Sizes, Subject, background, idle
from bench.targets import DIRECT, NAMES, opened, other

DEFAULT = (DIRECT, "steer", "relay", "haproxy", "nginx")
BY_NAME = {scenario.__name__: scenario for scenario in SCENARIOS}
DESCRIPTORS = 20000
Values = dict[str, dict[str, list[float]]]
"""figure -> target -> one number for each round."""


def main() -> None:
    surroundings.begin()
    arguments = parse(sys.argv[1:])
    surroundings.need_descriptors(DESCRIPTORS)
    sizes = Sizes(seconds=arguments.seconds, bulk=arguments.bulk_mb * 1_000_000, idle=arguments.idle)
    try:
        with opened(arguments.targets, arguments.others, arguments.backend_port) as targets:
            print(f"the backend listens on {targets[0].port}", file=sys.stderr)
            values = measure([Subject(target, sizes) for target in targets], arguments.scenarios, arguments.rounds)
            names = [target.name for target in targets]
    except NotThere as reason:
        raise SystemExit(f"cannot measure all targets: {reason}; or leave it out with --targets") from None
    results = {pair: goals.compare(values, *pair) for pair in COMPARISONS if set(pair) <= set(names)}
    picture = summary(values, names, arguments.rounds, results)
    print(table(picture))
    if results:
        print("\n" + goals.table(results))
    write_json(arguments.json, picture)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "others", nargs="*", type=other, metavar="NAME=PORT:PID", help="another proxy, which runs already"
    )
    parser.add_argument("--quick", action="store_true", help="small loads, for a first look")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement of rate or latency")
    parser.add_argument("--bulk-mb", type=int, help="size of a bulk transfer")
    parser.add_argument("--idle", type=int, help="idle connections whose memory is measured")
    parser.add_argument("--targets", type=lambda text: text.split(","), default=list(DEFAULT), metavar="NAME,NAME...")
    parser.add_argument("--scenarios", type=lambda text: text.split(","), default=list(BY_NAME), metavar="NAME,NAME...")
    parser.add_argument("--backend-port", type=int, help="the port of the backend, for other proxies to lead to")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    arguments = parser.parse_args(words)
    if unknown := [name for name in arguments.targets if name not in NAMES]:
        parser.error(f"no such target: {', '.join(unknown)} (there are {', '.join(NAMES)})")
    if unknown := [name for name in arguments.scenarios if name not in BY_NAME]:
        parser.error(f"no such scenario: {', '.join(unknown)} (there are {', '.join(BY_NAME)})")
    arguments.scenarios = [act for name, act in BY_NAME.items() if act is background or name in arguments.scenarios]
    arguments.targets = [DIRECT, *(name for name in arguments.targets if name != DIRECT)]
    for name, quick, full in (("rounds", 2, 5), ("seconds", 0.8, 2.0), ("bulk_mb", 256, 1500), ("idle", 500, 2000)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else full)
    return arguments


def measure(subjects: list[Subject], scenarios: list[Scenario], rounds: int) -> Values:
    """Each scenario for every target in every round; who comes first changes from round to round."""
    values: Values = defaultdict(lambda: defaultdict(list))
    for number in range(rounds):
        for scenario in scenarios:
            if scenario is idle and number:
                continue
            for subject in subjects if number % 2 == 0 else reversed(subjects):
                print(f"round {number + 1} of {rounds}: {scenario.__name__}: {subject.target.name}", file=sys.stderr)
                for figure, value in scenario(subject).items():
                    values[figure][subject.target.name].append(value)
    return values


def summary(
    values: Values, names: list[str], rounds: int, results: dict[tuple[str, str], dict[str, Result]]
) -> dict[str, object]:
    """What the file holds: medians of the numbers, and of their ratios to the direct way in the same round."""
    figures: dict[str, object] = {}
    for name, figure in FIGURES.items():
        if not (seen := values[name]):
            continue
        entry: dict[str, object] = {
            "unit": figure.unit,
            "more_is_better": figure.more_is_better,
            "medians": {target: statistics.median(seen[target]) for target in names if seen[target]},
            "values": {target: seen[target] for target in names if seen[target]},
        }
        if figure.compared:
            entry["ratios"] = {target: ratio(seen[target], seen[DIRECT]) for target in names if target != DIRECT}
        figures[name] = entry
    comparisons = {
        f"{subject}_against_{base}": {goal: asdict(result) for goal, result in found.items()}
        for (subject, base), found in results.items()
    }
    return {"version": 1, "rounds": rounds, "targets": names, "figures": figures, "comparisons": comparisons}


def table(picture: dict[str, object]) -> str:
    """The summary for people."""
    names = picture["targets"]
    figures = picture["figures"]
    assert isinstance(names, list)
    assert isinstance(figures, dict)
    head = "".join(f"{name:>14}{'ratio' if name != DIRECT else '':>7}" for name in names)
    lines = [f"{'':<28}{'unit':<12}{head}".rstrip()]
    for figure, entry in figures.items():
        line = f"{figure:<28}{entry['unit']:<12}"
        for name in names:
            median = entry["medians"].get(name)
            to_direct = entry.get("ratios", {}).get(name)
            line += f"{median:>14,.2f}" if median is not None else f"{'':>14}"
            line += f"{to_direct:>7.2f}" if to_direct is not None else f"{'':>7}"
        lines.append(line.rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
