"""What is measured of each target: a scenario gives its numbers for one target in one round."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.targets import Target

GB = 1e9


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of each load. seconds: of one measurement; bulk: bytes of one transfer; idle: connections."""

    seconds: float
    bulk: int
    idle: int


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a scenario gives. compared: whether its ratio to the direct way says something."""

    unit: str
    more_is_better: bool
    compared: bool = True


FIGURES = {
    "new_connections": Figure("requests/s", True),
    "keep_alive_32": Figure("requests/s", True),
    "latency_p50": Figure("us", False),
    "latency_p99": Figure("us", False),
    "download": Figure("MB/s", True),
    "upload": Figure("MB/s", True),
    "latency_beside_bulk_p50": Figure("us", False),
    "latency_beside_bulk_p99": Figure("us", False),
    "cpu_per_gb_download": Figure("CPU s/GB", False, compared=False),
    "cpu_per_gb_upload": Figure("CPU s/GB", False, compared=False),
    "memory_per_idle_connection": Figure("KiB", False, compared=False),
}
"""Every figure, in the order of the table."""

Scenario = Callable[[Target, Sizes], Mapping[str, float]]


def new_connections(target: Target, sizes: Sizes) -> Mapping[str, float]:
    return {"new_connections": load.new_connections(target.port, 32, sizes.seconds)}


def keep_alive(target: Target, sizes: Sizes) -> Mapping[str, float]:
    return {"keep_alive_32": load.keep_alive(target.port, 32, sizes.seconds)}


def latency(target: Target, sizes: Sizes) -> Mapping[str, float]:
    taken = load.latencies(target.port, sizes.seconds)
    return {"latency_p50": percentile(taken, 50) * 1e6, "latency_p99": percentile(taken, 99) * 1e6}


def bulk(target: Target, sizes: Sizes) -> Mapping[str, float]:
    figures: dict[str, float] = {}
    for name, transfer in (("download", load.download), ("upload", load.upload)):
        before = cpu_seconds(target)
        figures[name] = transfer(target.port, sizes.bulk) / 1e6
        if target.pid is not None:
            figures[f"cpu_per_gb_{name}"] = (cpu_seconds(target) - before) / (sizes.bulk / GB)
    return figures


def latency_beside_bulk(target: Target, sizes: Sizes) -> Mapping[str, float]:
    with load.downloading(target.port):
        taken = load.latencies(target.port, sizes.seconds)
    return {
        "latency_beside_bulk_p50": percentile(taken, 50) * 1e6,
        "latency_beside_bulk_p99": percentile(taken, 99) * 1e6,
    }


def idle(target: Target, sizes: Sizes) -> Mapping[str, float]:
    """Memory that the open, answered and now silent connections take in the process on the way."""
    if target.pid is None:
        return {}
    with contextlib.ExitStack() as stack:
        before = memory_kib(target.pid)
        for _ in range(sizes.idle):
            connection = stack.enter_context(load.dial(target.port))
            connection.sendall(load.SMALL)
            connection.recv(4096)
        return {"memory_per_idle_connection": max(memory_kib(target.pid) - before, 0) / sizes.idle}


SCENARIOS: tuple[Scenario, ...] = (idle, new_connections, keep_alive, latency, bulk, latency_beside_bulk)
"""The memory comes first, while the process has none to reuse; it is measured in the first round alone."""


def percentile(ascending: list[float], percent: int) -> float:
    return ascending[min(len(ascending) * percent // 100, len(ascending) - 1)]


def cpu_seconds(target: Target) -> float:
    """CPU time of all threads of the target's process so far; 0 without one."""
    if target.pid is None:
        return 0.0
    tasks = Path(f"/proc/{target.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def memory_kib(pid: int) -> int:
    """Memory of a process that it shares with nobody else, its share of the rest included."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
