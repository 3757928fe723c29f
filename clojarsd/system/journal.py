"""What an instance has written to systemd's journal, read with `journalctl`.

Source: journalctl(1).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime

from clojarsd.core.errors import Failed, reason_of
from clojarsd.system.program import Program

SOCKET = "/run/systemd/journal/stdout"
"""Where the journal takes the output of programs; the launcher knows it too."""
LONGEST_LINE = 65536
CUT = " [cut]"
_JOURNALCTL = ("journalctl", "--no-pager", "--quiet", "--all", "--output=cat")


async def journal_lines(
    identifier: str, count: int, *, follow: bool = False, since: datetime | None = None
) -> AsyncGenerator[Sequence[str], None]:
    """The last lines that the journal has of this identifier, some at a time.

    Nothing is read ahead of the caller. The reading program ends with the reader.

    Args:
        follow: give those that come as well, without end.
        since: give none that are older.

    Raises:
        Failed: the journal cannot be read.
    """
    command = [*_JOURNALCTL, f"--identifier={identifier}", f"--lines={count}"]
    command += ["--follow"] if follow else []
    command += [f"--since=@{since.timestamp():.6f}"] if since is not None else []
    try:
        program = Program(command)
    except FileNotFoundError as error:
        raise Failed("cannot read the journal: journalctl is not installed") from error
    except OSError as error:
        raise Failed(f"cannot read the journal: {reason_of(error)}") from error
    async with program:
        unfinished = b""
        while block := await program.read():
            *lines, unfinished = (unfinished + block).split(b"\n")
            unfinished = unfinished[: LONGEST_LINE + 1]
            if lines:
                yield [_text(line) for line in lines]
        if unfinished:
            yield [_text(unfinished)]
    if follow:
        raise Failed("cannot follow the journal any more: journalctl has ended")


def no_journal() -> str | None:
    """Why there is no journal to read, or None when there is one. Blocks."""
    return None if os.path.exists(SOCKET) else "there is no journal on this machine"


def _text(line: bytes) -> str:
    if len(line) > LONGEST_LINE:
        return line[:LONGEST_LINE].decode(errors="replace") + CUT
    return line.decode(errors="replace")
