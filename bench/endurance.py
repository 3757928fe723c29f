"""`python -m bench.endurance`: a long life in a short time, and what the daemon's processes hold before and after it.

A pair is checked as often as the daemon can, and its instances are killed one after the other and launched again at
once, with a request through the frontend after each launch. Figures are taken after a warm-up of one hundredth, in the
middle and at the end; the idle CPU before and after, with a check each second, where the daemon can reload its
configuration.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path

from bench.light_app import COUNT, counted
from bench.pairs import BenchPair, Footprint, footprint, own_processes, write_json
from tests.support.pair import connection, get

APP = Path(__file__).with_name("light_app.py")
QUIET, BUSY = "1s", "1ms"
"""Between two checks of an instance."""
ROLES = ("primary", "backup")
STALLED_S = 60.0
FIGURES = {"rss": "KiB", "pss": "KiB", "descriptors": "", "threads": ""}
MOMENTS = ("begin", "middle", "end")
Seen = dict[str, Footprint]
"""By what the process is."""


@dataclass
class Life:
    """One pair's life.

    Attributes:
        restarts: instances killed and launched again so far.
        failed: requests through the frontend that got no answer.
    """

    pair: BenchPair
    restarts: int = 0
    failed: int = 0
    roles: Iterator[str] = field(default_factory=lambda: cycle(ROLES))

    @property
    def rounds(self) -> int:
        """Checks that the instances have answered so far, together."""
        return sum(counted(self.pair.home / f"{role}.count") for role in ROLES)

    def live(self, rounds: int, restarts: int) -> None:
        """Return when there were so many in all."""
        while self.restarts < restarts:
            self.restart(next(self.roles))
            if self.restarts % 100 == 0:
                print(f"{self.restarts} restarts, {self.rounds} check rounds", file=sys.stderr)
        deadline, seen = time.monotonic() + STALLED_S, self.rounds
        while (now := self.rounds) < rounds:
            if now != seen:
                deadline, seen = time.monotonic() + STALLED_S, now
            if time.monotonic() > deadline:
                raise SystemExit(f"no check for {STALLED_S:g} s; {self.pair.daemon_log()}")
            time.sleep(0.05)

    def restart(self, role: str) -> None:
        """Kill the role's instance; return when the next one serves and a client was answered."""
        before = self.pair.pid(role)
        os.kill(before, signal.SIGKILL)
        self.pair.until(lambda seen: is_new(seen["instances"][role], before))
        try:
            with connection(self.pair.http) as opened:
                get(opened, "/")
        except (OSError, AssertionError):
            self.failed += 1
        self.restarts += 1

    def reload(self, interval: str) -> bool:
        """Check that often from now on; False when the daemon cannot reload."""
        self.pair.interval = interval
        self.pair.write_config()
        return self.pair.ctl("config", "reload").returncode == 0

    def look(self) -> Seen:
        return {name: footprint(pid) for name, pid in own_processes(self.pair).items()}

    def idle(self, seconds: float) -> dict[str, float]:
        """CPU milliseconds a second, of each process, while nothing happens."""
        before, began = self.look(), time.monotonic()
        time.sleep(seconds)
        after, took = self.look(), time.monotonic() - began
        return {name: (after[name].cpu - before[name].cpu) * 1000 / took for name in after if name in before}


def is_new(instance: dict[str, object], before: int) -> bool:
    return bool(instance["eligible"]) and instance["pid"] not in (None, before)


def main() -> None:
    arguments = parse(sys.argv[1:])
    picture = measure(arguments.rounds, arguments.restarts, arguments.idle)
    print(table(picture))
    write_json(arguments.json, picture)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.endurance", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100_000, help="checks, of both instances together")
    parser.add_argument("--restarts", type=int, default=1_000, help="launches after a kill")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds over which the idle CPU is taken")
    parser.add_argument("--json", type=Path, default=Path("build/endurance.json"))
    return parser.parse_args(words)


@contextmanager
def living(interval: str) -> Iterator[Life]:
    """A pair that serves; nothing is left of it in the end."""
    with tempfile.TemporaryDirectory(prefix="clojarsd-bench-") as made:
        home = Path(made)
        for role in ROLES:
            (home / f"{role}.count").write_bytes(COUNT.pack(0))
        command = [sys.executable, "-S", "-E", str(APP), "--port", "{port.http}", "--count", f"{home}/{{role}}.count"]
        with BenchPair(home, command=command, check_path="/health", interval=interval) as pair:
            pair.until_ready()
            yield Life(pair)


def measure(rounds: int, restarts: int, idle: float) -> dict[str, object]:
    with living(QUIET) as life:
        if life.reload(QUIET):
            idle_before = life.idle(idle)
            life.reload(BUSY)
            picture = live(life, rounds, restarts)
            life.reload(QUIET)
            return {**picture, "idle_ms_per_s": {"begin": idle_before, "end": life.idle(idle)}}
    print("this daemon cannot reload: no idle CPU is taken", file=sys.stderr)
    with living(BUSY) as life:
        return live(life, rounds, restarts)


def live(life: Life, rounds: int, restarts: int) -> dict[str, object]:
    """The whole life, and the figures of its three moments."""
    life.live(rounds // 100, restarts // 100)
    moments, at = {}, {}
    for number, moment in enumerate(MOMENTS):
        life.live(rounds * number // 2, restarts * number // 2)
        moments[moment], at[moment] = life.look(), (life.rounds, time.monotonic())
    seconds = at["end"][1] - at["begin"][1]
    per_round = {
        f"{first}_{last}": {
            name: (moments[last][name].cpu - moments[first][name].cpu) * 1000 / max(at[last][0] - at[first][0], 1)
            for name in moments[last]
            if name in moments[first]
        }
        for first, last in (("begin", "middle"), ("middle", "end"))
    }
    return {
        "version": 1,
        "rounds": life.rounds,
        "restarts": life.restarts,
        "failed_requests": life.failed,
        "seconds": seconds,
        "moments": {moment: {name: asdict(one) for name, one in seen.items()} for moment, seen in moments.items()},
        "cpu_ms_per_round": per_round,
    }


def table(picture: dict[str, object]) -> str:
    moments, idle, per_round = picture["moments"], picture.get("idle_ms_per_s"), picture["cpu_ms_per_round"]
    assert isinstance(moments, dict)
    assert isinstance(per_round, dict)
    lines = [
        f"{picture['rounds']} check rounds and {picture['restarts']} restarts in {picture['seconds']:.0f} s, "
        f"{picture['failed_requests']} failed requests",
        f"{'':<36}" + "".join(f"{moment:>12}" for moment in (*MOMENTS, "end/begin")),
    ]
    for name in moments["end"]:
        for figure, unit in FIGURES.items():
            values = [moments[moment].get(name, {}).get(figure) for moment in MOMENTS]
            lines.append(line(f"{name} {figure}", unit, values))
        halves = [per_round["begin_middle"].get(name), per_round["middle_end"].get(name)]
        lines.append(line(f"{name} CPU a check", "ms", [None, *halves], of=halves))
        if isinstance(idle, dict):
            lines.append(line(f"{name} idle CPU", "ms/s", [idle["begin"].get(name), None, idle["end"].get(name)]))
    return "\n".join(lines)


def line(name: str, unit: str, values: list[float | None], of: list[float | None] | None = None) -> str:
    """One row; the ratio is that of the last to the first of `of`, which is of `values` unless given."""
    first, last = (of or values)[0], (of or values)[-1]
    cells = "".join(f"{value:>12,.2f}" if value is not None else f"{'':>12}" for value in values)
    ratio = f"{last / first:>12.2f}" if first and last is not None else ""
    return f"{name:<28}{unit:<8}{cells}{ratio}"


if __name__ == "__main__":
    main()
