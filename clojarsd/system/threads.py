"""Threads for work that may hang: nothing else waits behind it, and the process's end does not wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from clojarsd.system.thread_signals import left_to_the_main_thread

T = TypeVar("T")
START_PAUSE = 0.1
"""Seconds until the next try to have a first thread, when the kernel gives none."""


def executor(name: str, count: int) -> ThreadPoolExecutor:
    """An executor whose threads all run already: when they are wanted the kernel may give none any more.

    Raises:
        RuntimeError: it gives none now.
    """
    made = ThreadPoolExecutor(count, thread_name_prefix=name)
    together = threading.Barrier(count)
    try:
        with left_to_the_main_thread():
            for _ in range(count):
                made.submit(together.wait)  # each takes a thread of its own, since none goes on before all are there
    except RuntimeError:
        together.abort()
        made.shutdown(wait=False, cancel_futures=True)
        raise
    return made


class Threads:
    """At most so many daemon threads of one kind, started when first wanted. Acts are begun in their order.

    The loop's default executor is another matter: it is shared by everybody, and joined when the loop closes.
    """

    def __init__(self, name: str, most: int = 1) -> None:
        self._name = name
        self._most = most
        self._started = 0
        self._acts: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    async def run(self, act: Callable[..., T], *arguments: object) -> T:
        """What the act returns or raises; one that has not begun when this is cancelled never does."""
        future: Future[T] = Future()

        def carry_out() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(act(*arguments))
                except BaseException as error:  # whatever it is, it is the caller's
                    future.set_exception(error)

        self._acts.put(carry_out)
        if self._started < self._most:
            await self._start_one()
        return await asyncio.wrap_future(future)

    def close(self, last: Callable[[], None] | None = None) -> None:
        """End the threads after what they were given; does not wait for it.

        Args:
            last: done after all that; here and now where no thread was wanted so far.
        """
        if last is not None:
            assert self._most == 1, "with several of them nothing is the last"
            self._acts.put(last) if self._started else last()
        for _ in range(self._started):
            self._acts.put(None)

    async def _start_one(self) -> None:
        """Start another thread; when the kernel gives none, those there are do the work; the first is waited for."""
        while True:
            number = self._started + 1
            try:
                with left_to_the_main_thread():
                    threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True).start()
            except RuntimeError:  # "can't start new thread" is all that Python says of it
                if self._started:
                    return
                await asyncio.sleep(START_PAUSE)
            else:
                self._started = number
                return

    def _work(self) -> None:
        while (act := self._acts.get()) is not None:
            act()
