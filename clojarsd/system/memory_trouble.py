"""What becomes of this process when memory runs out: it is not the first to be killed, and it ends as a whole.

Half of it must not go on. A callback that has failed in its middle leaves a connection that nobody serves and nobody
ends; one that ends with its process is seen by both sides, and whoever watches makes another process.

Source: proc_pid_oom_score_adj(5).
"""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any

SPARED = -500
"""So that instances are killed before, and yet this process before others if it has taken half of the memory."""
RESERVE = 8 << 20
"""Bytes of address space, not of memory, that are given back for the last words when there is no more to be had."""
WORDS_TIMEOUT = 2
"""Seconds in which the last words must have been written, else they are lost."""


def be_spared() -> None:
    """Have the kernel kill others before, if we may say so: a plain user may not, and what is inherited stays."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        if int(file.read()) > SPARED:
            file.write(str(SPARED).encode())


class LoudEnd:
    """Aborts this process at the first error that nobody has expected, memory that is wanting before all.

    Whoever makes it lets it watch what runs. Stderr gets the error, and where each thread stood if faulthandler is on.
    """

    def __init__(self) -> None:
        self._reserve = mmap.mmap(-1, RESERVE)

    def watch_threads(self) -> None:
        """End with an error that leaves the main thread or any other."""

        def uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
            if issubclass(kind, Exception):
                self.end(error)
            sys.__excepthook__(kind, error, where)

        def uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
            if found.exc_value is not None and not isinstance(found.exc_value, SystemExit):
                self.end(found.exc_value)

        def unraisable(found: sys.UnraisableHookArgs) -> None:
            if isinstance(found.exc_value, MemoryError):
                self.end(found.exc_value)
            sys.__unraisablehook__(found)

        sys.excepthook, sys.unraisablehook, threading.excepthook = uncaught, unraisable, uncaught_in_thread

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """End with an error that leaves a callback of the loop; one that a task or future has kept is only told."""

        def failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if isinstance(error, MemoryError) or (isinstance(error, Exception) and "future" not in context):
                self.end(error)
            loop.default_exception_handler(context)

        loop.set_exception_handler(failed)

    def end(self, error: BaseException) -> None:
        """End by this error, which nobody has expected."""
        self._reserve.close()
        signal.alarm(WORDS_TIMEOUT)  # nobody may read stderr; the signal ends the process, since it has no handler
        try:
            words = "".join(traceback.format_exception(error))
            os.write(2, f"{words}clojarsd: this process ends with all that it has: {error!r}\n".encode())
        except Exception:  # it ends in any case, and the next word is one that needs no memory
            os.write(2, b"clojarsd: this process ends with all that it has, and cannot say why\n")
        finally:
            os.abort()
