"""An instance that wants to be told who comes: `python -m tests.support.announced_app NAME PORT|PATH LINE_PORT`.

Every connection begins with a PROXY header; HTTP requests are answered with the name and what the header has said.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

from tests.support.proxy_headers import parse_header

NAME, WHERE, LINE = sys.argv[1:]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        head = await reader.readexactly(16)
        header, _ = parse_header(head + await reader.readexactly(int.from_bytes(head[14:16], "big")))
        client = "nobody" if header.source is None else "{}:{}".format(*header.source)
        while await reader.readuntil(b"\r\n\r\n"):
            said = f"{NAME} {header.command} {client}".encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))
    writer.close()


async def main() -> None:
    """Serve until told to end."""
    if WHERE.startswith("/"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(WHERE)
        await asyncio.start_unix_server(serve, WHERE)
    else:
        await asyncio.start_server(serve, "127.0.0.1", int(WHERE))
    await asyncio.start_server(serve, "127.0.0.1", int(LINE))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
