"""How a command of a rollout is told of: its output in lines that a terminal can be shown, and its failure in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.hook import command_text
from clojarsd.core.names import ExitStatus, LaunchStage
from clojarsd.core.quantities import duration_text, size_text

LAST_LINES: Final = 20
"""So many lines of its output come with a failure."""
LONGEST_LINE: Final = 1000
"""Characters."""

_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""What terminals take for colours, moves and titles."""


def seconds_text(seconds: float) -> str:
    """The seconds for people, with one decimal below a minute: `12.3 s`, `140 s`."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds:.0f} s"


def clean_line(line: str) -> str:
    """The line as it would stand on a terminal in the end, without what would command that.

    Of a line that was written over (a progress bar), the last writing counts.
    """
    text = _ESCAPE.sub("", line).rstrip("\r").rpartition("\r")[2].expandtabs()
    text = "".join(character if character.isprintable() else " " for character in text).rstrip()
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"


def clean_lines(output: str) -> list[str]:
    """The lines of an output, each as `clean_line` gives it; line ends other than those of Unix are part of a line."""
    lines = output.split("\n")
    return [clean_line(line) for line in (lines if lines[-1] else lines[:-1])]


def last_lines(output: str, most: int = LAST_LINES) -> tuple[str, ...]:
    """The last lines of an output, those at its end that say nothing left out."""
    lines = clean_lines(output)
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines[-most:])


def header(step: str, command: Sequence[str], at: str) -> str:
    """The line of the log that stands before the output of a command.

    Args:
        at: the time, for people.
    """
    return f"== {step}: {command_text(command)} ({at})\n"


def describe_end(command: Sequence[str], how: ExitStatus, seconds: float) -> str:
    """How the command has ended by itself, other than with 0."""
    end = f"ended with code {how.code}" if how.code is not None else str(how)
    return f"{command_text(command)} {end} after {seconds_text(seconds)}"


def describe_timeout(command: Sequence[str], timeout: float) -> str:
    """That the command was ended because it was not done in time."""
    return f"{command_text(command)} took longer than {duration_text(timeout)} and was ended"


def describe_flood(command: Sequence[str], most: int) -> str:
    """That the command was ended because it filled the disk.

    Args:
        most: bytes.
    """
    return f"{command_text(command)} wrote more than {size_text(most)} to its log and was ended"


def describe_launch_failure(command: Sequence[str], failed: LaunchFailed) -> str:
    """Why the command never ran."""
    why = failed.reason if failed.stage is LaunchStage.EXECUTE else str(failed)
    return f"cannot run {command_text(command)}: {why}"


def describe_log_failure(command: Sequence[str], log: str, why: str) -> str:
    """That the log of the command cannot be used, so that nobody can tell what it has done."""
    return f"cannot run {command_text(command)}: its log {log}: {why}"


def describe_memory_kill(most: int) -> str:
    """What follows the sentence when the kernel has ended a process of the command's control group."""
    return f"; the kernel has ended a process of it, since together they needed more than {size_text(most)} of memory"


def no_memory_limit(most: int, why: str) -> str:
    """The line that says that the limit of memory does nothing here.

    Args:
        most: bytes.
    """
    return f"== memory_max = {size_text(most)} has no effect: {why}"


def describe_left(left: Sequence[str]) -> str:
    """What follows the sentence when something of the command runs on."""
    return f"; could not be ended: {', '.join(left)}" if left else ""


def left_out(size: int) -> str:
    """The line that stands where output was written faster than it is shown.

    Args:
        size: bytes.
    """
    return f"… {size} bytes are left out here; the log has them"
