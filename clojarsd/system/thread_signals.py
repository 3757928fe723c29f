"""Who of a process's threads takes the signals that come to it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

_OF_A_THREAD = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT})
"""What a thread gets for what it has done itself."""


@contextlib.contextmanager
def left_to_the_main_thread() -> Iterator[None]:
    """Threads that are started within the block leave signals for the process to the main thread, for ever.

    That one has handlers for them, or holds them back. The kernel gives them to any thread that takes them, which may
    get its turn long after the main thread has done what somebody wanted of it after the signal.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _OF_A_THREAD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
