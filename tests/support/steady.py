"""Requests that come at a steady rate, whatever becomes of the ones before: each over a connection of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from dataclasses import dataclass
from typing import Self

from tests.support.waiting import PATIENCE


@dataclass(frozen=True)
class Asked:
    """One request. name: of the instance that has answered, or None; error: why there was no whole answer."""

    number: int
    began: float
    ended: float
    name: str | None
    error: str | None


class Steady:
    """Asks until its block ends, then waits for every answer.

    Args:
        rate: requests a second.
        upload: bytes that each posts, which come back as a checksum that is compared; 0: it asks for `/who`.

    Attributes:
        asked: every request that has come to its end, in the order of their ends.
    """

    def __init__(self, port: int, rate: float, *, upload: int = 0) -> None:
        self._port = port
        self._rate = rate
        self._upload = upload
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask_all()))
        self.asked: list[Asked] = []
        self.open = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.until(lambda: len(self.asked) >= 10)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def until(self, fact: object) -> None:
        """Return when it holds."""
        assert callable(fact)
        deadline = time.monotonic() + PATIENCE
        while not fact():
            assert time.monotonic() < deadline, self.asked[-5:]
            time.sleep(0.005)

    @property
    def failures(self) -> list[Asked]:
        return [one for one in self.asked if one.error is not None]

    def first_by(self, name: str, after: float) -> float | None:
        """The earliest answer of an instance after an instant, or None."""
        return min((one.ended for one in self.asked if one.name == name and one.ended > after), default=None)

    async def _ask_all(self) -> None:
        number, loop = 0, asyncio.get_running_loop()
        next_at = loop.time()
        async with asyncio.TaskGroup() as group:
            while not self._over.is_set():
                number += 1
                group.create_task(self._ask(number))
                next_at = max(next_at + 1 / self._rate, loop.time() - 1.0)
                await asyncio.sleep(next_at - loop.time())

    async def _ask(self, number: int) -> None:
        began, name, error = time.monotonic(), None, None
        self.open += 1
        try:
            async with asyncio.timeout(PATIENCE):
                name = await self._exchange(number)
        except (OSError, TimeoutError, ValueError, AssertionError) as failed:
            error = repr(failed)
        self.open -= 1
        self.asked.append(Asked(number, began, time.monotonic(), name, error))

    async def _exchange(self, number: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            body = hashlib.shake_128(str(number).encode()).digest(self._upload)
            what = f"POST /upload?n={number}" if body else f"GET /who?n={number}"
            head = f"{what} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.read()
            assert b" 200 " in answer.split(b"\r\n", 1)[0], answer[:100]
            told = json.loads(answer.partition(b"\r\n\r\n")[2])
            if body:
                assert told["sha256"] == hashlib.sha256(body).hexdigest(), "it did not arrive whole"
                return "uploaded"
            return str(told["name"])
        finally:
            writer.transport.abort()
