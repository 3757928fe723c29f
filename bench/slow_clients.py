"""`python -m bench.slow_clients`: ten thousand clients that send a byte now and then, and others beside them.

Each slow client has a connection through the relay and sends its request byte by byte; nobody answers it meanwhile.
Beside them ordinary clients ask, and an operator. In the end every slow client says the rest and must be answered.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from socket import socket

from bench import stand_ins, surroundings
from bench.load import dial
from bench.pairs import BenchPair, memory_kib, own_processes, write_json
from bench.role_app import answer
from bench.stand_ins import clojarsd
from bench.unique_load import loading

MOST = 10_000
SPARE = 1000
"""Descriptors beside the two that each slow client needs in the relay process."""
PATIENCE_S = 10.0
RATE = 100.0
"""Ordinary clients a second."""
REST = b" HTTP/1.1\r\nHost: bench\r\n\r\n"
FIGURES = {
    "latency_p50_ms": "of an ordinary request",
    "latency_p99_ms": "",
    "latency_worst_ms": "",
    "failed": "ordinary requests",
    "status_p50_ms": "of an operator's `status`",
    "status_worst_ms": "",
}


def main() -> None:
    surroundings.begin()
    arguments = parse(sys.argv[1:])
    limit = surroundings.get_descriptors(2 * (arguments.clients or MOST) + SPARE)
    clients = min(arguments.clients or MOST, (limit - SPARE) // 2)
    if clients < (arguments.clients or MOST):
        print(
            f"only {clients} slow clients: the descriptor limit is {limit}, and nobody here may raise it",
            file=sys.stderr,
        )
    picture = measure(clients, arguments.seconds, arguments.every)
    print(table(picture))
    write_json(arguments.json, picture)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.slow_clients", description=__doc__)
    parser.add_argument("--clients", type=int, help=f"{MOST}, or what the descriptor limit allows")
    parser.add_argument("--seconds", type=float, default=20.0, help="that they stay, and that come before them")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two bytes of a client")
    parser.add_argument("--json", type=Path, default=Path("build/slow_clients.json"))
    return parser.parse_args(words)


def measure(count: int, seconds: float, every: float) -> dict[str, object]:
    with (
        tempfile.TemporaryDirectory(prefix="clojarsd-bench-") as made,
        clojarsd(Path(made), "relay", delay=0.0, jvm=False) as subject,
    ):
        pair = subject.pair
        alone = beside(pair, seconds, iter(lambda: time.sleep(0.01), 0))
        before = memory(pair)
        with slow_clients(subject.port, count) as clients:
            pair.until(lambda seen: seen["frontends"]["relay"]["connections"]["primary"] >= count)
            with_them = beside(pair, seconds, bytes_of(clients, every))
            after = memory(pair)
            answered = sum(finished(client, number) for number, client in enumerate(clients))
    return {
        "version": 1,
        "clients": count,
        "alone": alone,
        "beside": with_them,
        "memory_kib": {name: {"before": before[name], "after": after[name]} for name in after},
        "memory_kib_per_client": (sum(after.values()) - sum(before.values())) / count,
        "answered_in_the_end": answered,
    }


@contextmanager
def slow_clients(port: int, count: int) -> Iterator[list[socket]]:
    """So many connections that have begun a request."""
    with ExitStack() as stack:
        clients = []
        for number in range(count):
            client = stack.enter_context(dial(port))
            client.sendall(b"GET /%d" % number)
            clients.append(client)
        yield clients


def bytes_of(clients: list[socket], every: float) -> Iterator[None]:
    """One client after the other sends a byte, each as often as `every` says; yields after each."""
    next_at = time.monotonic()
    for client in cycle(clients):
        next_at += every / len(clients)
        time.sleep(max(next_at - time.monotonic(), 0.0))
        client.sendall(b"0")
        yield


def beside(pair: BenchPair, seconds: float, turns: Iterator[object]) -> dict[str, float]:
    """What ordinary clients and an operator notice in so many seconds, while the turns are taken."""
    asked: list[float] = []
    ends_at = time.monotonic() + seconds
    next_look = 0.0
    with loading(pair.front("relay"), RATE, PATIENCE_S) as load:
        while (now := time.monotonic()) < ends_at:
            next(turns)
            if now >= next_look:
                pair.status()
                asked.append(time.monotonic() - now)
                next_look = now + 0.5
        over = load.finish()
    taken = sorted(one.ended - one.began for one in over if one.role)
    return {
        "latency_p50_ms": statistics.median(taken) * 1000,
        "latency_p99_ms": taken[len(taken) * 99 // 100] * 1000,
        "latency_worst_ms": taken[-1] * 1000,
        "failed": sum(one.role is None for one in over),
        "status_p50_ms": statistics.median(asked) * 1000,
        "status_worst_ms": max(asked) * 1000,
    }


def memory(pair: BenchPair) -> dict[str, int]:
    return {name: memory_kib([pid]) for name, pid in own_processes(pair).items()}


def finished(client: socket, number: int) -> bool:
    """Whether the slow client is answered when it says the rest, with all that it had said."""
    client.settimeout(PATIENCE_S)
    client.sendall(REST)
    said = b"".join(iter(lambda: client.recv(4096), b""))
    return any(said == answer(role, path) for role in stand_ins.ROLES for path in paths(number, said))


def paths(number: int, said: bytes) -> list[str]:
    """The path of an answer, where it is the number and any zeroes that came one by one."""
    path = said.decode().rpartition(" ")[2].strip()
    return [path] if path.startswith(str(number)) and not path[len(str(number)) :].strip("0") else []


def table(picture: Mapping[str, object]) -> str:
    alone, with_them, memories = picture["alone"], picture["beside"], picture["memory_kib"]
    assert isinstance(alone, dict)
    assert isinstance(with_them, dict)
    assert isinstance(memories, dict)
    lines = [f"{'':<28}{'without':>12}{picture['clients']:>12,} slow clients"]
    for figure, text in FIGURES.items():
        lines.append(f"{figure:<28}{alone[figure]:>12,.2f}{with_them[figure]:>12,.2f} {text}".rstrip())
    for name, one in memories.items():
        lines.append(f"{name + ' memory KiB':<28}{one['before']:>12,}{one['after']:>12,}")
    lines.append(f"{'memory KiB per client':<40}{picture['memory_kib_per_client']:>12.2f}")
    lines.append(f"{'answered in the end':<40}{picture['answered_in_the_end']:>12,}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
