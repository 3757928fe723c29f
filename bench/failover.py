"""`python -m bench.failover`: what clients notice when the primary dies, stands still, is drained or restarted.

Every second 500 clients come, each with a connection and a number of its own; the answer must carry it. The same load,
the same pair of instances and the same events for clojarsd in both modes, HAProxy and nginx. With `--daemon`: the
daemon itself is killed, and then the primary while there is no daemon.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from bench import stand_ins, surroundings
from bench.pairs import write_json
from bench.role_app import counts
from bench.stand_ins import Daemon, Subject
from bench.unique_load import Asked, loading

RATE = 500.0
PATIENCE_S = 3.0
"""How long a client waits for its answer before it has failed."""
DELAY_S = 0.01
"""What an instance takes for an answer: so some requests are always inside it."""
BEFORE_S, AFTER_S = 1.0, 3.0
"""How long the load runs before an event, and after it."""
STANDS_STILL_S = 10.0
NORMAL_S = 90.0
"""How long all may take to be as before."""
IN_A_ROW = 100
"""So many answers of the primary one after the other mean that all is as before."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What clients noticed of one event.

    Attributes:
        failed: requests without their answer.
        inside: connections that the primary had accepted and not ended when it was killed; None for other events.
        outage: the longest time in which no client got an answer, in milliseconds.
        first: from the event to the first answer of the backup, in milliseconds; None when there was none.
        slowest: of those that were answered, in milliseconds.
        errors: how many failed of what.
    """

    asked: int
    failed: int
    inside: int | None
    outage: float
    first: float | None
    slowest: float
    errors: Mapping[str, int]


Event: TypeAlias = Callable[[Subject], "int | None"]
"""Makes the event happen and returns when the load need not go on; gives what was inside the primary, or None."""


def drain(subject: Subject) -> None:
    subject.drain()
    time.sleep(AFTER_S)
    subject.undrain()


def restart(subject: Subject) -> None:
    subject.restart()
    time.sleep(AFTER_S)


def stand_still(subject: Subject) -> None:
    pid = subject.pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(STANDS_STILL_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    time.sleep(AFTER_S)


def kill(subject: Subject) -> int | None:
    inside = killed(subject.pid(), subject.counts)
    time.sleep(AFTER_S)
    return inside


def killed(pid: int, counted: Path) -> int | None:
    """Kill an instance; how many connections it had accepted and not ended, where it counts them."""
    with os.fdopen(os.pidfd_open(pid)) as process:
        os.kill(pid, signal.SIGKILL)
        select.select([process], [], [])
    if not counted.exists():
        return None
    accepted, ended = counts(counted)
    return accepted - ended


EVENTS: Mapping[str, Event] = {
    "drain": drain,
    "restart": restart,
    "SIGSTOP primary": stand_still,
    "kill -9 primary": kill,
}
"""What is planned comes first: a primary that has just died gets its connections back later each time."""


class Make(Protocol):
    """Opens a subject in a directory of its own."""

    def __call__(self, home: Path, *, delay: float, jvm: bool) -> AbstractContextManager[Subject]: ...


SUBJECTS: Mapping[str, Make] = {
    "steer": stand_ins.steer,
    "relay": stand_ins.relay,
    "haproxy": stand_ins.haproxy,
    "nginx": stand_ins.nginx,
}


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which all is measured. rate: clients a second; jvm: whether the instances are JVMs."""

    rate: float
    jvm: bool


def main() -> None:
    surroundings.begin()
    arguments = parse(sys.argv[1:])
    conditions = Conditions(arguments.rate, arguments.jvm)
    if arguments.daemon:
        outcomes = daemon_rounds(arguments.modes, arguments.rounds, conditions)
    else:
        outcomes = rounds(arguments.targets, arguments.events, arguments.rounds, conditions)
    picture = summary(outcomes, arguments.rounds, conditions)
    print(table(picture))
    write_json(arguments.json, picture)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.failover", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=RATE, help="clients a second")
    parser.add_argument("--targets", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--events", nargs="+", choices=list(EVENTS), default=list(EVENTS))
    parser.add_argument("--daemon", action="store_true", help="kill the daemon; then the primary too")
    parser.add_argument("--modes", nargs="+", choices=["steer", "relay"], default=["steer"], help="for --daemon")
    parser.add_argument("--jvm", action="store_true", help="instances are JVMs")
    parser.add_argument("--json", type=Path, default=Path("build/failover.json"))
    return parser.parse_args(words)


Outcomes = dict[str, dict[str, list[Outcome]]]
"""event -> subject -> one for each round; an event that a subject does not know is not there."""


def rounds(targets: list[str], events: list[str], count: int, conditions: Conditions) -> Outcomes:
    """Every event for every subject, in each round in a pair made for it."""
    found: Outcomes = {event: {} for event in events}
    for number in range(count):
        for name in targets if number % 2 == 0 else reversed(targets):
            with opened(name, conditions) as subject:
                for event in events:
                    if event == "drain" and not subject.drains:
                        continue
                    print(f"round {number + 1} of {count}: {name}: {event}", file=sys.stderr)
                    until_normal(subject.port)
                    found[event].setdefault(name, []).append(observed(subject, EVENTS[event], conditions))
    return found


@contextmanager
def opened(name: str, conditions: Conditions) -> Iterator[Subject]:
    with (
        tempfile.TemporaryDirectory(prefix="clojarsd-bench-") as made,
        SUBJECTS[name](Path(made), delay=DELAY_S, jvm=conditions.jvm) as subject,
    ):
        yield subject


def daemon_rounds(modes: list[str], count: int, conditions: Conditions) -> Outcomes:
    """The daemon is killed; then, while there is none, the primary. The next daemon finds all and goes on."""
    found: Outcomes = {"kill -9 daemon": {}, "kill -9 primary, no daemon": {}}
    for number in range(count):
        for mode in modes:
            print(f"round {number + 1} of {count}: {mode}: kill -9 daemon", file=sys.stderr)
            with opened(mode, conditions) as subject:
                assert isinstance(subject, Daemon)
                until_normal(subject.port)
                primary, pair = subject.pid(), subject.pair

                def without(_: Subject, subject: Daemon = subject) -> None:
                    subject.pair.kill()
                    time.sleep(AFTER_S)

                def dies(_: Subject, primary: int = primary) -> int | None:
                    inside = killed(primary, subject.counts)
                    time.sleep(AFTER_S)
                    return inside

                acts: tuple[Event, ...] = (without, dies)
                for event, act in zip(found, acts, strict=True):
                    found[event].setdefault(mode, []).append(observed(subject, act, conditions))
                pair.begin()
                until_normal(subject.port)
    return found


def observed(subject: Subject, event: Event, conditions: Conditions) -> Outcome:
    """What clients notice of the event."""
    with loading(subject.port, conditions.rate, PATIENCE_S) as load:
        time.sleep(BEFORE_S)
        at = time.monotonic()
        inside = event(subject)
        return outcome(load.finish(), at, inside)


def outcome(asked: list[Asked], at: float, inside: int | None) -> Outcome:
    """What clients noticed of an event at that instant."""
    good = sorted(one.ended for one in asked if one.role is not None)
    if not good or good[0] > at:
        raise SystemExit("nobody was answered before the event")
    last = max(one.ended for one in asked)
    gaps = [later - earlier for earlier, later in zip(good, [*good[1:], last], strict=True)]
    first = min((one.ended for one in asked if one.role == "backup" and one.ended >= at), default=None)
    failed = [one.error or "" for one in asked if one.role is None]
    return Outcome(
        asked=len(asked),
        failed=len(failed),
        inside=inside,
        outage=max(gaps) * 1000,
        first=None if first is None else (first - at) * 1000,
        slowest=max(one.ended - one.began for one in asked if one.role is not None) * 1000,
        errors={error: failed.count(error) for error in sorted(set(failed))},
    )


def until_normal(port: int) -> None:
    """Return when the primary answers again, and nobody else does."""
    deadline = time.monotonic() + NORMAL_S
    while time.monotonic() < deadline:
        with loading(port, IN_A_ROW, PATIENCE_S) as load:
            time.sleep(1.2)
            if all(one.role == "primary" for one in load.finish()):
                return
    raise SystemExit(f"port {port} did not come back to the primary within {NORMAL_S:g} s")


def summary(outcomes: Outcomes, count: int, conditions: Conditions) -> dict[str, object]:
    events = {
        event: {name: [asdict(one) for one in found] for name, found in subjects.items()}
        for event, subjects in outcomes.items()
    }
    return {"version": 1, "rounds": count, **asdict(conditions), "patience_s": PATIENCE_S, "events": events}


COLUMNS = (("failed", "failed"), ("outage", "outage ms"), ("first", "backup ms"), ("slowest", "slowest ms"))


def table(picture: Mapping[str, object]) -> str:
    """Median and worst of each, for people."""
    events = picture["events"]
    assert isinstance(events, dict)
    head = "".join(f"{text:>12}{'worst':>9}" for _, text in COLUMNS)
    lines = [
        f"{picture['rate']:g} clients a second, {picture['rounds']} rounds; inside: most that the killed primary had",
        f"{'':<28}{'':<10}{head}{'inside':>9}",
    ]
    for event, subjects in events.items():
        for name in [*SUBJECTS]:
            if name in subjects:
                lines.append(f"{event:<28}{name:<10}{cells(subjects[name])}".rstrip())
            elif event == "drain" and any(name in others for others in events.values()):
                lines.append(f"{event:<28}{name:<10}{'n/a':>12}")
    return "\n".join(lines)


def cells(found: list[Mapping[str, float]]) -> str:
    line = ""
    for key, _ in COLUMNS:
        values = [one[key] for one in found if one[key] is not None]
        line += f"{statistics.median(values):>12,.1f}{max(values):>9,.1f}" if values else f"{'-':>12}{'-':>9}"
    inside = [one["inside"] for one in found if one["inside"] is not None]
    return line + (f"{max(inside):>9}" if inside else "")


if __name__ == "__main__":
    main()
