"""Sets the daemon's own log up, once: a line of key=value for each event, to stderr."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import sys
import threading
from collections.abc import Mapping
from queue import SimpleQueue
from typing import TextIO

import structlog

from clojarsd.system.thread_signals import left_to_the_main_thread

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
VARIABLE = "CLOJARSD_LOG"
MOST_QUEUED = 10_000
"""Lines that wait for a reader of stderr that has stalled; those that come after them are dropped, and counted."""
EXIT_TIMEOUT = 1.0
"""Seconds that the end of the process waits for that reader."""


def set_up_logs(environment: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Send what is logged, by libraries too, to the stream (stderr), from the level in CLOJARSD_LOG on (info).

    A terminal gets colours. A stderr that takes nothing for now holds up nobody: a thread writes to it. One that takes
    nothing any more loses lines and never ends the daemon. A stream that is given is written to at once.
    """
    out = _Enduring(stream) if stream is not None else _to_stderr()
    wanted = environment.get(VARIABLE, "info").lower()
    level = LEVELS.get(wanted, logging.INFO)
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    render = _renderers(out.isatty())
    structlog.configure(
        processors=[*before, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=out),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    foreign = logging.StreamHandler(out)
    foreign.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    logging.basicConfig(handlers=[foreign], level=max(level, logging.INFO), force=True)
    if wanted not in LEVELS:
        structlog.get_logger().warning(
            "log_level_not_understood", variable=VARIABLE, value=wanted, allowed=list(LEVELS)
        )


def flush_logs(timeout: float) -> None:
    """Wait until what has been logged is written, at most that many seconds. Blocks; for the end of the process."""
    for lines in _queued:
        lines.wait_until_written(timeout)


def _to_stderr() -> _Enduring | _Queued:
    try:
        lines = _Queued(sys.stderr.fileno(), sys.stderr.encoding)
    except (AttributeError, OSError, ValueError):  # there is none, it is closed, or it is no file
        return _Enduring(sys.stderr)
    if not _queued:
        atexit.register(flush_logs, EXIT_TIMEOUT)
    _queued[:] = [lines]
    return lines


def _renderers(is_terminal: bool) -> list[structlog.typing.Processor]:
    if is_terminal:
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=True, exception_formatter=plain)]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False),
    ]


class _Enduring:
    """A stream whose writes do not fail: when the terminal or the journal has gone, its lines are lost."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None: the process was started without stderr

    def write(self, text: str) -> int:
        """Write the text, or lose it."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Send what is buffered, or lose it."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether people read it as it comes."""
        with contextlib.suppress(ValueError):
            return self._stream is not None and self._stream.isatty()
        return False


class _Queued:
    """Lines on their way to a file descriptor, written in their order by a thread; to add one never blocks.

    The descriptor is written to directly: a thread that hung within sys.stderr would hold its lock, which the
    interpreter needs at its end.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._queue: SimpleQueue[str | threading.Event | None] = SimpleQueue()  # None: here lines were dropped
        self._dropped = 0
        self._lock = threading.RLock()  # reentrant: a finalizer may log in the middle of `write`
        self._thread = threading.Thread(target=self._write_all, name="logs", daemon=True)
        with left_to_the_main_thread():
            self._thread.start()

    def write(self, text: str) -> int:
        """Put the line into the queue, or drop it if that is full."""
        if threading.current_thread() is self._thread:
            self._write(text)
            return len(text)
        with self._lock:
            if self._queue.qsize() < MOST_QUEUED:
                self._queue.put(text)
            else:
                self._dropped += 1
                if self._dropped == 1:
                    self._queue.put(None)
        return len(text)

    def flush(self) -> None:
        """Nothing: whoever logs does not wait."""

    def isatty(self) -> bool:
        """Whether people read it as it comes."""
        return os.isatty(self._descriptor)

    def wait_until_written(self, timeout: float) -> None:
        """Return when all that is in the queue now has been written, or after that many seconds."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(timeout)

    def _write_all(self) -> None:
        while True:
            match self._queue.get():
                case str(text):
                    self._write(text)
                case None:
                    with self._lock:
                        dropped, self._dropped = self._dropped, 0
                    structlog.get_logger().error("log_lines_dropped", count=dropped, reason="stderr was not read")
                case written:
                    written.set()

    def _write(self, text: str) -> None:
        """Write the text however long that takes, or lose it."""
        rest = text.encode(self._encoding, errors="backslashreplace")
        with contextlib.suppress(OSError):
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # somebody who shares it has made it non-blocking
                    writable = select.poll()
                    writable.register(self._descriptor, select.POLLOUT)
                    writable.poll()


_queued: list[_Queued] = []
"""The one that is in use, for `flush_logs`."""
