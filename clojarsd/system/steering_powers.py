"""What this process may do of what steering needs."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from clojarsd.core.steering_reasons import UNLIMITED_KERNEL, Powers


def powers_of_this_process() -> Powers:
    """What this process may do, and on which kernel."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memlock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return Powers(os.uname().release, os.geteuid(), int(status["CapEff"], 16), memlock)


@contextlib.contextmanager
def room_in_memory(powers: Powers) -> Iterator[None]:
    """Where maps count against RLIMIT_MEMLOCK, as much of it as may be had, until the context is left."""
    if powers.kernel >= UNLIMITED_KERNEL:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for most in (resource.RLIM_INFINITY, before[1]):  # beyond the hard limit with CAP_SYS_RESOURCE alone
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
            break
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
