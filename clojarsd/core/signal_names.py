"""Signals in words. On its own, because clojarsctl needs it and must start fast: it imports nothing that takes long."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """`SIGTERM` for 15; the number where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
