"""Sets the daemon's own log up, once: a line of key=value for each event, to stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from typing import TextIO

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
VARIABLE = "CLOJARSD_LOG"


def set_up_logs(environment: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Send what is logged, by libraries too, to the stream (stderr), from the level in CLOJARSD_LOG on (info).

    A terminal gets colours. A stream that takes nothing any more loses lines and never ends the daemon.
    """
    out = _Enduring(sys.stderr if stream is None else stream)
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
