"""What is measured of each target: a scenario gives its numbers for one target in one round."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.load import SMALL, dial, downloading
from bench.native_programs import Loaded, sound_load
from bench.pairs import cpu_seconds, memory_kib
from bench.targets import Target

GB = 1e9
MS = 1000
"""Milliseconds in a second."""
AT_ONCE = 32


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
    "cpu_per_1000_connections": Figure("CPU ms", False, compared=False),
    "cpu_per_1000_requests": Figure("CPU ms", False, compared=False),
    "cpu_per_gb_download": Figure("CPU s/GB", False, compared=False),
    "cpu_per_gb_upload": Figure("CPU s/GB", False, compared=False),
    "cpu_background": Figure("CPU ms/s", False, compared=False),
    "memory_per_idle_connection": Figure("KiB", False, compared=False),
}
"""Every figure, in the order of the table. CPU per unit is what the load took: the background is taken off."""


@dataclass
class Subject:
    """One target and the loads that it gets.

    Attributes:
        background: seconds of CPU a second that the target's processes take with nobody there, as seen last.
    """

    target: Target
    sizes: Sizes
    background: float = 0.0

    @property
    def port(self) -> int:
        return self.target.port

    def load(self, cpu_figure: str, per: float, *words: object) -> tuple[Loaded, Mapping[str, float]]:
        """What a load has seen, and as that figure the CPU seconds that it took of the target for `per` units done.

        The background is taken off. Without processes there is no such figure.
        """
        before, began = cpu_seconds(self.target.pids), time.monotonic()
        seen = sound_load(self.port, *words)
        taken, seconds = cpu_seconds(self.target.pids) - before, time.monotonic() - began
        if not self.target.pids:
            return seen, {}
        return seen, {cpu_figure: max(taken - self.background * seconds, 0.0) / seen.done * per}


Scenario = Callable[[Subject], Mapping[str, float]]


def background(subject: Subject) -> Mapping[str, float]:
    """What the target takes when nobody asks: checks of instances, above all."""
    if not subject.target.pids:
        return {}
    before, began = cpu_seconds(subject.target.pids), time.monotonic()
    time.sleep(max(subject.sizes.seconds, 0.1))
    subject.background = (cpu_seconds(subject.target.pids) - before) / (time.monotonic() - began)
    return {"cpu_background": subject.background * 1000}


def new_connections(subject: Subject) -> Mapping[str, float]:
    words = ("new", AT_ONCE, subject.sizes.seconds, 0)
    seen, spent = subject.load("cpu_per_1000_connections", 1000 * MS, *words)
    return {"new_connections": seen.rate, **spent}


def keep_alive(subject: Subject) -> Mapping[str, float]:
    seen, spent = subject.load("cpu_per_1000_requests", 1000 * MS, "keep", AT_ONCE, subject.sizes.seconds)
    return {"keep_alive_32": seen.rate, **spent}


def latency(subject: Subject) -> Mapping[str, float]:
    seen = sound_load(subject.port, "keep", 1, subject.sizes.seconds)
    return {"latency_p50": seen.p50 * 1e6, "latency_p99": seen.p99 * 1e6}


def bulk(subject: Subject) -> Mapping[str, float]:
    figures: dict[str, float] = {}
    for name in ("download", "upload"):
        seen, spent = subject.load(f"cpu_per_gb_{name}", GB, name, subject.sizes.bulk)
        figures |= {name: seen.rate / 1e6, **spent}
    return figures


def latency_beside_bulk(subject: Subject) -> Mapping[str, float]:
    with downloading(subject.port):
        seen = sound_load(subject.port, "keep", 1, subject.sizes.seconds)
    return {"latency_beside_bulk_p50": seen.p50 * 1e6, "latency_beside_bulk_p99": seen.p99 * 1e6}


def idle(subject: Subject) -> Mapping[str, float]:
    """Memory that the open, answered and now silent connections take in the processes on the way."""
    if not subject.target.pids:
        return {}
    with contextlib.ExitStack() as stack:
        before = memory_kib(subject.target.pids)
        for _ in range(subject.sizes.idle):
            connection = stack.enter_context(dial(subject.port))
            connection.sendall(SMALL)
            connection.recv(4096)
        return {"memory_per_idle_connection": max(memory_kib(subject.target.pids) - before, 0) / subject.sizes.idle}


SCENARIOS: tuple[Scenario, ...] = (background, idle, new_connections, keep_alive, latency, bulk, latency_beside_bulk)
"""The memory comes before all load, while a process has none to reuse; it is measured in the first round alone."""
