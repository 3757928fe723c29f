"""`python -m bench.deploys`: how long a whole deploy takes, with class-data archives and without, and who notices.

A pair of the Clojure application in demo/clojure, built by leiningen for each deploy as an operator's is: checkout,
test, uberjar, backup, smoke test, primary, soak. Deploys with and without an archive take turns, which is first
changing from round to round, and bring in the same two releases alternately. Meanwhile a client asks all the time, with
a connection for each request.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import surroundings
from bench.pairs import write_json

REPOSITORY = Path(__file__).parents[1]
COMMANDS = Path(sys.prefix) / "bin"
TAGS = ("1.0.0", "1.1.0")
KINDS = ("without", "with")
PATIENCE = 30.0
"""Seconds for the daemon to be there, and for an answer."""


@dataclass
class Asking:
    """A client that asks all the time, in a thread; what it counts."""

    port: int
    answered: int = 0
    failed: list[str] = field(default_factory=list)
    longest: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask until `end`."""
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
                connection.request("GET", "/health")
                status = connection.getresponse().status
                connection.close()
                if status != 200:
                    self.failed.append(str(status))
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
            self.answered += 1
            self.longest = max(self.longest, time.monotonic() - began)

    def end(self) -> None:
        """Ask no more."""
        self._ended.set()


def main(words: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.deploys", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="each has a deploy with and one without an archive")
    parser.add_argument("--json", type=Path, default=Path("build/deploys.json"))
    arguments = parser.parse_args(words)
    surroundings.begin()
    with tempfile.TemporaryDirectory(prefix="clojarsd-bench-") as home, _pair(Path(home)) as config:
        picture = measure(config, arguments.rounds)
    write_json(arguments.json, picture)
    print(table(picture))
    if picture["failed"]:
        sys.exit("requests failed during the deploys")


@contextmanager
def _pair(home: Path) -> Iterator[Path]:
    """The configuration of a daemon that runs, without a release yet."""
    made = home / "clojars"
    subprocess.run([REPOSITORY / "demo/clojure/make-repository", made, "--config"], check=True, stdout=sys.stderr)
    config = made / "clojarsd.toml"
    with (home / "clojarsd.log").open("w") as log:
        daemon = subprocess.Popen([COMMANDS / "clojarsd", "-c", config], stdout=log, stderr=log)
        try:
            _wait(config)
            yield config
        finally:
            daemon.terminate()
            daemon.wait()


def _wait(config: Path) -> None:
    give_up_at = time.monotonic() + PATIENCE
    while subprocess.run(_ctl(config, "status"), capture_output=True, check=False).returncode:
        if time.monotonic() > give_up_at:
            sys.exit("cannot measure: clojarsd does not answer")
        time.sleep(0.1)


def _ctl(config: Path, *words: str) -> list[str | Path]:
    socket = Path(tomllib.loads(config.read_text())["service"]["runtime_dir"]) / "control.sock"
    return [COMMANDS / "clojarsctl", "--socket", socket, *words]


def measure(config: Path, rounds: int) -> dict[str, Any]:
    """The seconds of each deploy and of each of its steps, and what the client saw."""
    _deploy(config, TAGS[0], "without")
    port = int(tomllib.loads(config.read_text())["frontends"]["http"]["listen"].rpartition(":")[2])
    asking = Asking(port)
    thread = threading.Thread(target=asking.run)
    thread.start()
    taken: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    number = 0
    try:
        for turn in range(rounds):
            for kind in KINDS if turn % 2 == 0 else reversed(KINDS):
                number += 1
                taken[kind].append(_deploy(config, TAGS[number % 2], kind))
                whole = taken[kind][-1]["whole"]
                print(f"round {turn + 1} of {rounds}: {kind} an archive: {whole:.1f} s", file=sys.stderr)
    finally:
        asking.end()
        thread.join()
    return {
        "version": 1,
        "seconds": taken,
        "answered": asking.answered,
        "failed": asking.failed,
        "longest_s": asking.longest,
    }


def _deploy(config: Path, tag: str, kind: str) -> dict[str, float]:
    """Deploy, and give the seconds of the whole and of each step."""
    text = config.read_text().splitlines()
    kept = [line for line in text if not line.startswith("cds ")]
    kept.insert(kept.index("[deploy]") + 1, f"cds = {'true' if kind == 'with' else 'false'}")
    config.write_text("\n".join(kept) + "\n")
    subprocess.run(_ctl(config, "config", "reload"), check=True, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    done = subprocess.run(_ctl(config, "deploy", tag, "--yes"), capture_output=True, text=True, check=False)
    whole = time.monotonic() - began
    if done.returncode:
        sys.exit(f"cannot measure: {done.stderr}")
    return {**_steps(config), "whole": whole}


def _steps(config: Path) -> dict[str, float]:
    """The seconds of each step of the latest rollout, out of its journal."""
    journals = Path(tomllib.loads(config.read_text())["service"]["state_dir"]) / "rollouts"
    latest = max(journals.glob("*.jsonl"), key=os.path.getmtime)
    records = [json.loads(line) for line in latest.read_text().replace("\0", "").splitlines()]
    return {record["step"]: record["seconds"] for record in records if record.get("what") == "done"}


def table(picture: dict[str, Any]) -> str:
    """The medians for people."""
    taken = picture["seconds"]
    steps = dict.fromkeys(step for kind in KINDS for one in taken[kind] for step in one)
    lines = [f"{'seconds, medians':<20}{'without':>10}{'with':>10}"]
    for step in steps:
        cells = [[one[step] for one in taken[kind] if step in one] for kind in KINDS]
        shown = [f"{statistics.median(cell):.1f}" if cell else "-" for cell in cells]
        lines.append(f"{step:<20}{shown[0]:>10}{shown[1]:>10}")
    lines.append(
        f"{picture['answered']} requests meanwhile, {len(picture['failed'])} failed,"
        f" the longest took {picture['longest_s']:.2f} s"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
