"""What an instance writes from one moment on: its last lines, to be told beside its failure."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TypeAlias

from clojarsd.core.errors import Refused
from clojarsd.system.journal import journal_lines
from clojarsd.system.log_file import LogFile
from clojarsd.system.log_tail import LogReader
from clojarsd.system.threads import Threads

LastLines: TypeAlias = Callable[[int], Awaitable[Sequence[str]]]
"""Gives the last lines written until now, at most so many; raises Failed. To be called once."""
_threads = Threads("log-since")


@asynccontextmanager
async def file_since_now(log: LogFile) -> AsyncIterator[LastLines]:
    """Within the block what comes into the log can be had; a file that is not there yet counts from its beginning.

    Raises:
        Failed: it cannot be read.
    """
    reader = LogReader(log)

    def last_lines(count: int) -> Sequence[str]:
        kept: deque[str] = deque(maxlen=count)
        while lines := reader.read():
            kept.extend(lines)
        kept.extend(reader.finish())
        return tuple(kept)

    try:
        with suppress(Refused):
            await _threads.run(reader.open_at_end, 0)
        yield lambda count: _threads.run(last_lines, count)
    finally:
        reader.close()


@asynccontextmanager
async def journal_since_now(identifier: str) -> AsyncIterator[LastLines]:
    """Within the block what the journal gets of this identifier can be had; asking raises Failed as `journal_lines`."""
    began = datetime.now(UTC)

    async def last_lines(count: int) -> Sequence[str]:
        found: list[str] = []
        async with aclosing(journal_lines(identifier, count, since=began)) as lines:
            async for some in lines:
                found.extend(some)
        return found

    yield last_lines
