"""How the failure of a hook's command is told."""

from __future__ import annotations

from collections.abc import Sequence

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.names import ExitStatus
from clojarsd.core.quantities import duration_text

MOST_LINES = 5
MOST_CHARACTERS = 500
"""Of its output."""


def describe_failure(
    command: Sequence[str], how: ExitStatus | LaunchFailed, timeout: float | None = None, output: str = ""
) -> str:
    """What became of the command, and its last words.

    Args:
        how: how it ended, other than with 0 unless it was out of time.
        timeout: seconds in which it did not end and so was killed; None when it ended by itself.
        output: the end of what it has written.
    """
    if isinstance(how, LaunchFailed):
        return f"cannot run {command[0]}: {how}"
    end = f"did not end within {duration_text(timeout)}" if timeout is not None else str(how)
    words = last_words(output)
    return f"{command[0]} {end}: {words}" if words else f"{command[0]} {end}"


def last_words(output: str) -> str:
    """The last lines that say anything, in one line and without what a terminal would take for commands."""
    lines = (" ".join(_printable(line).split()) for line in output.splitlines())
    text = " | ".join([line for line in lines if line][-MOST_LINES:])
    return text if len(text) <= MOST_CHARACTERS else f"…{text[1 - MOST_CHARACTERS :]}"


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else " " for character in line)
