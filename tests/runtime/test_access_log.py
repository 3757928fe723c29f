"""The line of a connection comes out of a real relay process, and a reader of it that stalls holds up nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

from clojarsd.runtime.relay_link import RelayLink
from tests.support.relays import Pair, a_pair
from tests.support.waiting import until

REPLY = b"ppppp"


@contextlib.asynccontextmanager
async def logging_to(descriptor: int, pair: Pair) -> AsyncIterator[RelayLink]:
    """A link to a relay process with that stderr, whose frontend `line` has an access log and `other` has none."""
    async with contextlib.AsyncExitStack() as stack:
        before = os.dup(2)
        os.dup2(descriptor, 2)
        try:
            link = await stack.enter_async_context(
                pair.link(pair.plan(access_log=True), pair.plan("other", half_closed_timeout=3600.0))
            )
        finally:
            os.dup2(before, 2)
            os.close(before)
        await pair.listening(link)
        await pair.listening(link, "other")
        await until(lambda: link.views["line"].view().active is not None, "a route")
        yield link


async def talk(pair: Pair, link: RelayLink, name: str) -> None:
    """A connection, from its beginning to its end."""
    client = await pair.client(link, name)
    assert await client.ask(b"12345") == REPLY
    client.close()


async def test_the_line_is_in_the_log_where_nobody_asks_for_debug_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with a_pair(tmp_path) as pair:
        with log.open("wb") as file:
            async with logging_to(file.fileno(), pair) as link:
                await talk(pair, link, "other")
                await talk(pair, link, "line")
                await until(lambda: "connection_ended" in log.read_text(), "the line")
    (line,) = [line for line in log.read_text().splitlines() if "connection_ended" in line]
    assert " level=info event=connection_ended " in line
    for told in ("frontend=line", "client=127.0.0.1:", "role=primary", "up_bytes=5", "down_bytes=5", "tries=1"):
        assert told in line


async def test_a_stderr_that_nobody_reads_holds_up_no_client(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 512)
    os.set_blocking(writer, True)
    async with a_pair(tmp_path) as pair, logging_to(writer, pair) as link:
        for _ in range(200):
            await talk(pair, link, "line")
        os.set_blocking(reader, False)
        said = b""

        def read() -> bool:
            nonlocal said
            with contextlib.suppress(BlockingIOError):
                said += os.read(reader, 1 << 16)
            return said.count(b"connection_ended") == 200

        await until(read, "all lines, when somebody reads again")
    os.close(reader)
    os.close(writer)
