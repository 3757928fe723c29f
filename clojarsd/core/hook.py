"""How the failure of a hook's command is told, and what of a process's output counts as its last words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.names import ExitStatus
from clojarsd.core.quantities import duration_text

MOST_LINES = 3
MOST_CHARACTERS = 300
"""Of its output."""
LONGEST_COMMAND = 120
"""Characters."""


def describe_failure(
    command: Sequence[str], how: ExitStatus | LaunchFailed, timeout: float | None = None, words: str = ""
) -> str:
    """What became of the command, and its last words.

    Args:
        how: how it ended, other than with 0 unless it was out of time.
        timeout: seconds in which it did not end and so was killed; None when it ended by itself.
        words: see `last_words`.
    """
    shown = command_text(command)
    if isinstance(how, LaunchFailed):
        return f"cannot run {shown}: {how}"
    end = f"did not end within {duration_text(timeout)}" if timeout is not None else str(how)
    return f"{shown} {end}: {words}" if words else f"{shown} {end}"


def command_text(command: Sequence[str]) -> str:
    """The command in one line, as a shell would take it; a long one without its middle."""
    text = _printable(shlex.join(command))
    if len(text) <= LONGEST_COMMAND:
        return text
    end = LONGEST_COMMAND // 2
    return f"{text[: LONGEST_COMMAND - end - 1]}…{text[-end:]}"


def last_words(output: str) -> str:
    """The last lines that say anything, in one line and without what a terminal would take for commands."""
    lines = (" ".join(_printable(line).split()) for line in output.splitlines())
    text = " | ".join([line for line in lines if line][-MOST_LINES:])
    return text if len(text) <= MOST_CHARACTERS else f"…{text[1 - MOST_CHARACTERS :]}"


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else " " for character in line)
