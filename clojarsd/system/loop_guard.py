"""Notices from a thread that the event loop stands still, and says in which line of code.

It tells, and ends nothing: that is for the service manager's watchdog, which the loop itself keeps content.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Self

import structlog

from clojarsd.system.logs import flush_logs
from clojarsd.system.thread_signals import left_to_the_main_thread

log = structlog.get_logger()

ALLOWED = 2.0
"""Seconds that the loop may stand still before that is told."""
LOOKS = 4
"""How many looks the thread takes in that time, and how often the loop beats. Only its own looks count, so that time
in which the whole process stood still (stopped, suspended, without a processor) is nobody's blame."""
LOG_TIMEOUT = 1.0
"""Seconds after which a line that the ordinary log has not written goes to stderr directly."""
MOST_FRAMES = 30
LONGEST_STACK = 3000
"""Characters: with the rest of the line less than PIPE_BUF, so that a pipe that is writable takes it at once."""
STDERR = 2


class LoopGuard:
    """Watches the loop that enters it, until it is left. Whoever makes it closes it; a thread of its own runs inside.

    Source: the idea of a heartbeat looked at by a thread is that of watchdog timers everywhere.
    """

    def __init__(self, allowed: float = ALLOWED) -> None:
        """Args: allowed: seconds that the loop may stand still."""
        self._look_every = allowed / LOOKS
        self._beats = 0
        self._beaten_at = 0.0
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle
        self._watched = 0
        self._inside = threading.Lock()  # held until it is left; waiting for a lock is cheaper than for an Event
        self._telling: threading.Event | None = None
        self._thread = threading.Thread(target=self._watch, name="loop-guard", daemon=True)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._inside.acquire()
        self._beat()
        with left_to_the_main_thread():
            self._thread.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._timer.cancel()
        self._inside.release()
        self._thread.join(LOG_TIMEOUT)

    def _beat(self) -> None:
        """In the loop: it moves."""
        self._beats += 1
        self._beaten_at = time.monotonic()
        self._timer = self._loop.call_later(self._look_every, self._beat)

    def _watch(self) -> None:
        """In the thread: count looks without a beat between them; tell the end of each standstill that was told."""
        seen, seen_at, looks, told = self._beats, self._beaten_at, 0, False
        while not self._inside.acquire(timeout=self._look_every):
            beats, beaten_at = self._beats, self._beaten_at
            if beats != seen:
                if told:
                    self._tell("warning", "loop_moves_again", stood_s=f"{beaten_at - seen_at:.1f}")
                seen, seen_at, looks, told = beats, beaten_at, 0, False
                continue
            looks += 1
            if looks >= LOOKS and not told:
                stack = stack_of(self._watched)
                if self._beats == seen:  # else it has just begun to move, and the stack is of something else
                    told = True
                    self._tell("error", "loop_stands_still", stood_s=f"{time.monotonic() - seen_at:.1f}", stack=stack)

    def _tell(self, level: str, event: str, **values: str) -> None:
        """Log it, in a thread of its own since the log may hang on what the loop holds; write it if that takes long."""
        if self._telling is None or self._telling.is_set():
            written = self._telling = threading.Event()

            def tell() -> None:
                getattr(log, level)(event, **values)
                flush_logs(threading.TIMEOUT_MAX)
                written.set()

            threading.Thread(target=tell, name="loop-guard-log", daemon=True).start()
            if written.wait(LOG_TIMEOUT):
                return
        _write({"level": level, "event": event, **values, "log": "does not move"})


def stack_of(thread: int) -> str:
    """Where the thread with this identifier is: `FILE:LINE FUNCTION; …`, the innermost last, the outermost cut off.

    Nothing is read from disk for it: sources on a disk that hangs must not matter here.
    """
    frame: FrameType | None = sys._current_frames().get(thread)
    places: list[str] = []
    while frame is not None and len(places) < MOST_FRAMES:
        code = frame.f_code
        places.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}"[-500:])
        frame = frame.f_back
    stack = "; ".join(reversed(places))
    return stack if len(stack) <= LONGEST_STACK else f"…{stack[-LONGEST_STACK:]}"


def _write(values: dict[str, str]) -> None:
    """Write one line of key=value to stderr if it takes it now; nothing here waits or needs anybody else."""
    line = f"timestamp={datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    for name, value in values.items():
        shown = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        line += f' {name}="{shown}"' if " " in shown else f" {name}={shown}"
    writable = select.poll()
    writable.register(STDERR, select.POLLOUT)
    with suppress(OSError):
        if writable.poll(0):
            os.write(STDERR, f"{line}\n".encode(errors="backslashreplace")[-4096:])
