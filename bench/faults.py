"""`python -m bench.faults`: what each fault costs the clients of a running pair, and how soon all is as before.

The same scenarios as in the tests, with a larger transfer through the upgrade; what a scenario promises is checked here
too. The time of a fault that lasts as long as we like is taken from its end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench.pairs import write_json
from tests.support.fault_matrix import FAULTS, STEERED, play
from tests.support.faults import CannotInject, Outcome, Scene, table

GIGABYTE = 1_000_000_000


def main() -> None:
    arguments = parse(sys.argv[1:])
    faults = STEERED if arguments.steered else FAULTS
    mode = "auto" if arguments.steered else "relay"
    outcomes, left_out, broken = measure([name for name in faults if arguments.only in name], arguments.bulk, mode)
    print(table(outcomes))
    for name, reason in [*left_out.items(), *broken.items()]:
        print(f"{name}: {reason}")
    rows = [asdict(outcome) for outcome in outcomes]
    write_json(arguments.json, {"version": 1, "faults": rows, "left_out": left_out, "broken": broken})
    sys.exit(1 if broken else 0)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="faults whose name holds these words")
    parser.add_argument("--steered", action="store_true", help="let them happen to a pair that the kernel steers to")
    parser.add_argument("--bulk", type=int, default=GIGABYTE, help="bytes of the transfer through the upgrade")
    parser.add_argument("--json", type=Path, default=Path("build/faults.json"))
    return parser.parse_args(words)


def measure(names: list[str], bulk: int, mode: str) -> tuple[list[Outcome], dict[str, str], dict[str, str]]:
    """The outcomes; the faults that cannot happen here, with why; and those that cost more than they may."""
    outcomes: list[Outcome] = []
    left_out, broken = dict[str, str](), dict[str, str]()
    for name in names:
        print(name, file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="clojarsd-bench-") as made:
            scene = Scene(name, Path(made), bulk, mode)
            try:
                play(scene)
            except CannotInject as reason:
                left_out[name] = f"cannot happen here: {reason}"
            except AssertionError as error:
                broken[name] = f"not as promised: {error}"
        outcomes += scene.outcomes
    return outcomes, left_out, broken


if __name__ == "__main__":
    main()
