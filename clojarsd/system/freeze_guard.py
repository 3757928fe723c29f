"""Freezes a control group for a moment: a program of its own, so that the group is thawed when its starter dies.

Run by path with the bare interpreter (`python -I -S freeze_guard.py GROUP SECONDS_TO_FREEZE SECONDS_FROZEN`). It says
`ready`; gets a byte; freezes, and says `frozen`, or `not` when that takes too long; and thaws when its stdin ends, or
after the longest time. Then it says `held` if it was stdin that ended it, or else `late`.

Source: Documentation/admin-guide/cgroup-v2.rst of Linux (cgroup.freeze, cgroup.events).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from typing import TextIO


def main() -> None:
    """See the module's docstring."""
    group, to_freeze, frozen_for = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends soon, and not before it has thawed
    with open(f"{group}/cgroup.events") as events, open(f"{group}/cgroup.freeze", "wb", buffering=0) as switch:
        _say("ready")
        if not os.read(0, 1):
            return
        held = False
        try:
            switch.write(b"1")
            if _freezes(events, time.monotonic() + to_freeze):
                _say("frozen")
                held = bool(select.select([0], [], [], frozen_for)[0])
            else:
                _say("not")
        finally:
            switch.write(b"0")
    _say("held" if held else "late")


def _freezes(events: TextIO, deadline: float) -> bool:
    """Wait until everything in the group stands still; whether it does."""
    poller = select.poll()
    poller.register(events, select.POLLPRI)
    while "frozen 1" not in events.read():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        poller.poll(left * 1000)
        events.seek(0)
    return True


def _say(word: str) -> None:
    os.write(1, word.encode() + b"\n")


if __name__ == "__main__":
    main()
