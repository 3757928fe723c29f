"""`python -m bench.cds`: how long an instance takes to start, with the class-data archive of its release and without.

The daemon runs a pair of JVMs and makes the archive of its backup. Then the backup is restarted by order, in turns with
the archive and without, which is first changing from round to round. What counts is from the launch to the first check
that passes, as the daemon itself has measured it; checks are made every 20 ms here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.pairs import write_json
from tests.support.jars import build_jar, pair_of_jars
from tests.support.pair import Pair

INTERVAL = ('interval = "250ms"', 'interval = "20ms"\nfall = 50')


def main(words: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.cds", description=__doc__, add_help=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--java", default="java", help="the program that runs the release")
    parser.add_argument("--jar", type=Path, help="the release; the demo's Java application, if not given")
    parser.add_argument("--arguments", help="those of the release, such as '--port {port.http}'; split at spaces")
    parser.add_argument("--json", type=Path, default=Path("build/cds.json"))
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="clojarsd-bench-") as home:
        jar = arguments.jar or build_jar(Path(home))
        given = None if arguments.arguments is None else tuple(arguments.arguments.split())
        with _pair(Path(home), jar, arguments.java, given) as pair:
            picture = measure(pair, arguments.rounds)
    write_json(arguments.json, picture)
    print(table(picture))


@contextmanager
def _pair(home: Path, jar: Path, java: str, arguments: tuple[str, ...] | None) -> Iterator[Pair]:
    command = () if arguments is None else (java, "-Xmx256m", "-jar", "{release}", *arguments)
    pair = pair_of_jars(home, jar, java=java, command=command)
    pair.write_config = lambda: _hasty(pair)  # type: ignore[method-assign]
    with pair:
        yield pair


def _hasty(pair: Pair) -> Path:
    """The configuration, with checks that look often."""
    Pair.write_config(pair)
    pair.config.write_text(pair.config.read_text().replace(*INTERVAL))
    return pair.config


def measure(pair: Pair, rounds: int) -> dict[str, object]:
    """The seconds of each start, and what making the archive took."""
    made = pair.done("jvm", "cds", "backup").strip()
    print(made, file=sys.stderr)
    taken: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(rounds):
        for kind in ("without", "with") if number % 2 == 0 else ("with", "without"):
            text = pair.config.read_text()
            wished = "cds = true" if kind == "with" else "cds = false"
            pair.config.write_text(text.replace("cds = true", wished).replace("cds = false", wished))
            pair.done("restart", "backup")
            seen = pair.instance("backup")
            if seen["cds"] is not (kind == "with"):
                raise SystemExit(
                    f"cannot measure: the backup has started with cds {seen['cds']}, in round {number + 1}"
                )
            taken[kind].append(seen["start_seconds"])
            print(f"round {number + 1} of {rounds}: {kind}: {taken[kind][-1]:.3f} s", file=sys.stderr)
    ratios = [one / other for one, other in zip(taken["with"], taken["without"], strict=True)]
    medians = {kind: statistics.median(values) for kind, values in taken.items()}
    return {"version": 1, "made": made, "seconds": taken, "medians": medians, "ratio": statistics.median(ratios)}


def table(picture: dict[str, object]) -> str:
    """The medians for people."""
    medians, ratio = picture["medians"], picture["ratio"]
    assert isinstance(medians, dict)
    lines = [f"{kind:<10}{seconds:>8.3f} s" for kind, seconds in medians.items()]
    return "\n".join([*lines, f"{'ratio':<10}{ratio:>8.2f}   (median over the rounds)"])


if __name__ == "__main__":
    main()
