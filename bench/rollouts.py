"""`python -m bench.rollouts`: what becomes of good deploys and bad ones, rollbacks, full disks and a killed daemon.

The pair of demo/clojure, which leiningen tests and builds anew for each case, under people who read pages and upload
files all the time, over nailgun and by scp. For each case: what was ordered and how that ended, what the link names and
both instances run afterwards, who serves, and how many requests and uploads there were meanwhile. None may fail, and no
upload that was acknowledged may be lost. As root the pair has mounts of its own, and disks that can be full.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from bench.pairs import write_json
from tests.support.clojure_app import BUILT_S
from tests.support.clojure_pair import ClojurePair
from tests.support.namespaces import enter_new
from tests.support.pair import CHECKOUT, CLOJARSCTL
from tests.support.small_disks import fill, mount_small
from tests.support.traffic import Traffic
from tests.support.waiting import PATIENCE

DISK_SIZE: Final = 1024**3
DISKS: Final = ("builds", "releases", "state")
SHORT: Final = (('start_timeout = "60s"', 'start_timeout = "15s"'),)
"""Two of the bad releases never get ready."""


@dataclass
class Ordered:
    """One order: its words, its exit status, None for one that nobody waited for, and all lines that it has said."""

    words: str
    status: int | None
    lines: list[str]


@dataclass
class Row:
    """One case, as it was afterwards.

    Attributes:
        versions: what clients were told meanwhile by `/version`, each once.
        counts: requests and uploads that succeeded meanwhile, by kind.
        failures: those that did not, each with why.
    """

    name: str
    orders: list[Ordered]
    link: str | None
    primary: str
    backup: str
    active: str
    versions: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Place:
    """The pair of all cases, one after the other."""

    def __init__(self, pair: ClojurePair) -> None:
        self.pair = pair
        self.orders: list[Ordered] = []
        self._config = pair.config.read_text()

    def order(self, *words: str) -> None:
        """Order this, and note how it ended."""
        self.end(self.begin(*words))

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Order this; `end` waits for it."""
        command = [str(CLOJARSCTL), "--socket", str(self.pair.socket), *words]
        pipe, none = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(command, stdin=none, stdout=pipe, stderr=pipe, text=True, cwd=CHECKOUT)

    def end(self, order: subprocess.Popen[str]) -> None:
        """Wait for an order, and note how it ended."""
        stdout, stderr = order.communicate(timeout=4 * PATIENCE + BUILT_S)
        assert isinstance(order.args, list)
        words = " ".join(["clojarsctl", *map(str, order.args[3:])])
        self.orders.append(Ordered(words, order.returncode, [*stderr.splitlines(), *stdout.splitlines()]))

    def until_step(self, step: str) -> None:
        """Return when the deploy is at that step."""
        self.pair.until(lambda seen: seen["rollout"] is not None and seen["rollout"]["step"] == step)

    def until_over(self) -> None:
        """Return when nothing is under way, and note how it ended."""
        self.pair.until(lambda seen: seen["rollout"] is None, pause=0.2)
        last = self.pair.ask("GET", "/v1/rollout")["last_rollout"]
        self.orders.append(Ordered("the next daemon", None, [last["message"]]))

    def configure(self, *changes: tuple[str, str]) -> None:
        """Have the configuration of demo/clojure again, but for this."""
        text = self._config
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        self.pair.config.write_text(text)
        self.pair.done("config", "reload")


# Cases.


def deploy(tag: str, *more: str) -> Callable[[Place], None]:
    """One that nobody has to approve."""
    return lambda at: at.order("deploy", tag, "--yes", *more)


def answered_with_no(at: Place) -> None:
    at.order("deploy", "1.2.0", "--no-promote")
    at.order("abort")


def never_answered(at: Place) -> None:
    at.configure(('approval_timeout = "30m"', 'approval_timeout = "3s"'))
    at.order("deploy", "1.2.0")
    at.configure()


def two_at_once(at: Place) -> None:
    at.order("deploy", "1.2.0", "--no-promote")
    at.order("deploy", "1.1.0", "--yes")
    at.order("promote")


def full_disk(name: str, step: str, tag: str) -> Callable[[Place], None]:
    """One whose disk becomes full at the step."""

    def act(at: Place) -> None:
        order = at.begin("deploy", tag, "--yes")
        at.until_step(step)
        ballast = fill(at.pair.home / name)
        at.end(order)
        ballast.unlink()

    return act


def killed(step: str, tag: str) -> Callable[[Place], None]:
    """One whose daemon is killed at the step, and started again."""

    def act(at: Place) -> None:
        order = at.begin("deploy", tag, "--yes")
        at.until_step(step)
        at.pair.kill()
        at.end(order)
        at.pair.begin()
        at.until_over()

    return act


CASES: Final[dict[str, Callable[[Place], None]]] = {
    "a good deploy": deploy("1.1.0"),
    "a test fails": deploy("bad-tests"),
    "the build fails": deploy("bad-build"),
    "the build leaves no artefact": deploy("bad-no-artifact", "--skip-tests"),
    "the build leaves two": deploy("bad-two-artifacts", "--skip-tests"),
    "a release that exits after 2 s": deploy("bad-exits"),
    "one that listens and is not healthy": deploy("bad-unhealthy"),
    "one that never listens": deploy("bad-slow-start"),
    "one whose smoke test fails": deploy("bad-smoke"),
    "somebody says no": answered_with_no,
    "nobody says anything": never_answered,
    "there is no such tag": deploy("9.9.9"),
    "two deploys at once": two_at_once,
    "a rollback": lambda at: at.order("rollback", "--yes"),
    "a rollback to a named one": lambda at: at.order("rollback", "1.0.0", "--yes"),
    "the daemon is killed during the build": killed("build", "1.1.0"),
    "the daemon is killed while the primary restarts": killed("primary", "1.1.0"),
}
ON_SMALL_DISKS: Final[dict[str, Callable[[Place], None]]] = {
    "the disk is full during the build": full_disk("builds", "build", "1.2.0-rebuilt"),
    "the disk is full when the artefact is copied": full_disk("releases", "build", "1.2.0-rebuilt"),
    "the disk of the journal is full": full_disk("state", "test", "1.2.0-rebuilt"),
}


def main(words: list[str] | None = None) -> None:
    """Play all cases and print what became of each."""
    parser = argparse.ArgumentParser(prog="python -m bench.rollouts", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose name holds these words")
    parser.add_argument("--steered", action="store_true", help="let the kernel give pages to the instances; needs root")
    parser.add_argument("--json", type=Path, default=Path("build/rollouts.json"))
    arguments = parser.parse_args(words)
    is_root = os.geteuid() == 0
    if arguments.steered and not is_root:
        parser.error("only root can let the kernel give connections to the instances")
    if is_root:
        enter_new()
    cases = {name: act for name, act in (CASES | (ON_SMALL_DISKS if is_root else {})).items() if arguments.only in name}
    with tempfile.TemporaryDirectory(prefix="clojarsd-bench-") as made:
        rows, lost = play(Path(made), cases, small_disks=is_root, mode="auto" if arguments.steered else "relay")
    write_json(arguments.json, {"version": 1, "rows": [asdict(row) for row in rows], "lost": lost})
    failed = sum(len(row.failures) for row in rows)
    total = sum((Counter(row.counts) for row in rows), Counter[str]())
    print(f"all: {_counted(total)}; {failed} failed; {len(lost)} acknowledged uploads lost")
    sys.exit(1 if failed or lost else 0)


def play(
    home: Path,
    cases: dict[str, Callable[[Place], None]],
    *,
    small_disks: bool = False,
    mode: str = "relay",
    real_builds: bool = True,
) -> tuple[list[Row], list[str]]:
    """What became of each case, and of the first deploy; the uploads that were acknowledged and are not there.

    Args:
        small_disks: some directories are disks of their own; needs a mount namespace.
        mode: of the frontend of the pages.
        real_builds: see `ClojurePair`.
    """
    (pair_home := home / "pair").mkdir()
    (clients_home := home / "clients").mkdir()
    with _pair(pair_home, small_disks, mode, real_builds) as pair:
        at = Place(pair)
        at.order("deploy", "1.0.0", "--yes")
        rows = [_row("the very first deploy", at)]
        print(text(rows[0]), flush=True)
        with Traffic(http=pair.http, nailgun=pair.nailgun, home=clients_home, ssh=True) as traffic:
            for name, act in cases.items():
                before, failed = len(traffic.successes), len(traffic.failures)
                act(at)
                row = _row(name, at)
                traffic.go_on()
                succeeded = list(traffic.successes)[before:]
                row.versions = list(dict.fromkeys(one.said for one in succeeded if one.said))
                row.counts = dict(Counter(one.kind for one in succeeded))
                row.failures = [f"{one.kind} {one.what}: {one.error}" for one in list(traffic.failures)[failed:]]
                print(text(row), flush=True)
                rows.append(row)
        return rows, traffic.lost_from(pair.repository)


@contextmanager
def _pair(home: Path, small_disks: bool, mode: str, real_builds: bool) -> Iterator[ClojurePair]:
    """A daemon without a release yet."""

    def rewrite(text: str) -> str:
        for before, after in (*SHORT, ('mode     = "relay"', f'mode     = "{mode}"')):
            assert before in text
            text = text.replace(before, after)
        return text

    pair = ClojurePair(home, first=None, real_builds=real_builds, rewrite=rewrite)
    for name in DISKS if small_disks else ():
        (home / name).mkdir(exist_ok=True)
        mount_small(home / name, DISK_SIZE)
    try:
        with pair:
            yield pair
    finally:
        for name in DISKS if small_disks else ():
            subprocess.run(["umount", home / name], check=True)


def _row(name: str, at: Place) -> Row:
    seen = at.pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
    runs = {role: one["release"] for role, one in seen["instances"].items()}
    active = " and ".join(sorted({str(one["active"]) for one in seen["frontends"].values()}))
    orders, at.orders = at.orders, []
    return Row(name, orders, at.pair.current, runs["primary"], runs["backup"], active)


def text(row: Row) -> str:
    """The case for people."""
    runs = f"both run {row.primary}" if row.primary == row.backup else f"run {row.primary} and {row.backup}"
    link = "which the link names" if row.link == row.primary else f"the link names {row.link}"
    lines = [f"{row.name}"]
    for order in row.orders:
        status = "" if order.status is None else f" ({order.status})"
        lines += [f"  {order.words}{status}: {order.lines[-1] if order.lines else ''}"]
    seen = f"clients saw {', '.join(row.versions)}" if row.versions else "no clients yet"
    lines += [f"  {runs}, {link}; {row.active} serves; {seen}: {_counted(row.counts)}, {len(row.failures)} failed"]
    return "\n".join([*lines, *(f"  FAILED {failure}" for failure in row.failures), ""])


def _counted(counts: dict[str, int] | Counter[str]) -> str:
    pages = counts.get("fresh", 0) + counts.get("kept", 0)
    return f"{pages} pages, {counts.get('upload', 0)} uploads, {counts.get('scp', 0)} by scp"


if __name__ == "__main__":
    main()
