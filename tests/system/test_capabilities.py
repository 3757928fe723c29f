from __future__ import annotations

import subprocess
from pathlib import Path

from clojarsd.core.steering_reasons import CAP_BPF, CAP_NET_ADMIN
from clojarsd.system.capabilities import lower_ambient, raise_ambient
from tests.support.namespaces import apart, become, in_child

BOTH = 1 << CAP_BPF | 1 << CAP_NET_ADMIN
CAP_NET_BIND_SERVICE = 10


def of_a_child() -> int:
    """The effective capabilities of a program that this process starts, as bits."""
    return effective(subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout)


def effective(status: str) -> int:
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)


@apart
def test_lowered_capabilities_stay_here_and_reach_nobody_that_is_started() -> None:
    def look() -> None:
        become(65534, CAP_BPF, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE)
        raise_ambient([CAP_BPF, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE])
        assert of_a_child() == BOTH | 1 << CAP_NET_BIND_SERVICE
        assert lower_ambient() == {CAP_BPF, CAP_NET_ADMIN}
        assert of_a_child() == 1 << CAP_NET_BIND_SERVICE, "an instance may still bind a low port"
        assert effective(Path("/proc/self/status").read_text()) & BOTH == BOTH
        assert lower_ambient() == frozenset()
        raise_ambient([CAP_BPF, CAP_NET_ADMIN])
        assert of_a_child() & BOTH == BOTH

    in_child(look)


@apart
def test_root_has_nothing_to_lower() -> None:
    assert lower_ambient() == frozenset()
