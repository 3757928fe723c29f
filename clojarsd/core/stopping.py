"""Signals by name, and the steps in which an instance is asked to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from clojarsd.core.quantities import longer_than_zero, parse_duration
from clojarsd.core.settings_problems import word_text

SIGNALS: Final = {
    "SIGHUP": 1,
    "SIGINT": 2,
    "SIGQUIT": 3,
    "SIGABRT": 6,
    "SIGKILL": 9,
    "SIGUSR1": 10,
    "SIGUSR2": 12,
    "SIGTERM": 15,
    "SIGWINCH": 28,
}
"""The signals that a configuration may name, and their numbers on Linux."""

_NOT_FOR_RELOAD: Final = frozenset({"SIGKILL", "SIGQUIT"})
_STEPS_HINT: Final = 'a signal, or signals with the time to wait after each, ["SIGQUIT", "10s", "SIGTERM", "20s"]'


@dataclass(frozen=True, slots=True)
class StopStep:
    """One step of stopping an instance: send `signal` (a number), then wait at most `wait` seconds for its end."""

    signal: int
    wait: float


@dataclass(frozen=True, slots=True)
class WrittenStep:
    """A stop step as the file has it. wait: seconds, or None where `stop_timeout` is meant."""

    signal: int
    wait: float | None


def parse_reload_signal(value: object) -> int:
    """The number of a signal that may ask a process to reload. Raises ValueError; the message is for people."""
    asking = [name for name in SIGNALS if name not in _NOT_FOR_RELOAD]
    if not isinstance(value, str) or value not in asking:
        raise ValueError(f"is not a signal that can ask for a reload ({', '.join(asking)})")
    return SIGNALS[value]


def parse_stop_steps(value: object) -> tuple[WrittenStep, ...]:
    """The steps that a signal, or a list of signals with the time to wait after each, stands for; at least one.

    Only the last may lack its time, and then waits for `stop_timeout`.

    Raises:
        ValueError: it is neither; the message is for people.
    """
    words = value if isinstance(value, list) else [value]
    steps: list[WrittenStep] = []
    for word in words:
        if not isinstance(word, str):
            raise ValueError(f"is not a way to stop ({_STEPS_HINT})")
        if word[:1].isdigit():
            if not steps or steps[-1].wait is not None:
                raise ValueError(f"{word_text(word)} does not follow a signal ({_STEPS_HINT})")
            steps[-1] = WrittenStep(steps[-1].signal, longer_than_zero(parse_duration(word)))
        elif word not in SIGNALS:
            raise ValueError(f"{word_text(word)} is not a signal ({', '.join(SIGNALS)})")
        elif steps and steps[-1].wait is None:
            raise ValueError(f"{word} follows a signal without a time to wait between them ({_STEPS_HINT})")
        else:
            steps.append(WrittenStep(SIGNALS[word], None))
    if not steps:
        raise ValueError(f"is empty ({_STEPS_HINT})")
    return tuple(steps)
