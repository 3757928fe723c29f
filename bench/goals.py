"""What the data path is to reach: figures of one target beside those of another, in the same rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

NO_CPU = 0.005
"""CPU seconds a GB below which a target takes none: what two decimals show as 0."""
NO_MEMORY = 0.1
"""KiB a connection below which a target takes none: a supervisor's memory moves by as much while it waits."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of a comparison.

    Attributes:
        figure: which of `scenarios.FIGURES`.
        steer: what the ratio of steer to direct must be at least, or at most.
        relay: the same of relay to HAProxy.
        at_least: whether more is better.
        nothing: where the steering daemon is to take nothing, the number itself must be below this one instead.
    """

    text: str
    figure: str
    steer: float
    relay: float
    at_least: bool
    nothing: float | None = None


GOALS = (
    Goal("connections/s", "new_connections", 0.97, 1.0, True),
    Goal("keep-alive requests/s", "keep_alive_32", 0.97, 0.95, True),
    Goal("latency p50", "latency_p50", 1.03, 1.05, False),
    Goal("latency p99", "latency_p99", 1.03, 1.05, False),
    Goal("download GB/s", "download", 0.97, 1.3, True),
    Goal("upload GB/s", "upload", 0.97, 1.3, True),
    Goal("CPU per GB, download", "cpu_per_gb_download", 0.0, 0.5, False, NO_CPU),
    Goal("CPU per GB, upload", "cpu_per_gb_upload", 0.0, 0.5, False, NO_CPU),
    Goal("memory per idle connection", "memory_per_idle_connection", 0.0, 0.6, False, NO_MEMORY),
)
COMPARISONS = (("steer", "direct"), ("relay", "haproxy"))

Seen = Mapping[str, Mapping[str, list[float]]]
"""figure -> target -> one number for each round."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a goal was met. value: the median over the rounds of the ratio, or the number itself where that must be 0."""

    value: float
    goal: str
    reached: bool


def compare(seen: Seen, subject: str, base: str) -> dict[str, Result]:
    """By the goal's text; only what was measured of both."""
    results = {}
    for goal in GOALS:
        wanted = goal.steer if subject == "steer" else goal.relay
        own, other = (seen.get(goal.figure, {}).get(name, []) for name in (subject, base))
        if subject == "steer" and goal.nothing is not None and own:
            value = statistics.median(own)
            results[goal.text] = Result(value, f"< {goal.nothing:g}", value < goal.nothing)
        elif own and other:
            value = ratio(own, other)
            reached = value >= wanted if goal.at_least else value <= wanted
            results[goal.text] = Result(value, f"{'>=' if goal.at_least else '<='} {wanted:.2f}", reached)
    return results


def ratio(own: list[float], base: list[float]) -> float:
    """The median over the rounds of the ratio within one round; rounds in which the base was 0 say nothing."""
    ratios = [value / other for value, other in zip(own, base, strict=True) if other]
    return statistics.median(ratios) if ratios else float("nan")


def table(results: Mapping[tuple[str, str], Mapping[str, Result]]) -> str:
    """The comparisons beside each other, for people."""
    lines = [f"{'':<28}" + "".join(f"{f'{one} against {other}':>38}" for one, other in results)]
    for goal in GOALS:
        line = f"{goal.text:<28}"
        for found in results.values():
            result = found.get(goal.text)
            verdict = "" if result is None else "reached" if result.reached else "NOT REACHED"
            value, goal_text = (f"{result.value:.2f}", result.goal) if result else ("", "")
            line += f"{value:>14}{goal_text:>10} {verdict:<13}"
        lines.append(line.rstrip())
    return "\n".join(lines)
