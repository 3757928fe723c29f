from __future__ import annotations

import os
import resource
from dataclasses import replace

from clojarsd.core.steering_reasons import CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, Powers
from clojarsd.system.steering_powers import powers_of_this_process, room_in_memory
from tests.support.namespaces import apart, become, in_child

LITTLE, MORE = 65536, 8 * 65536
CAP_SYS_RESOURCE = 24


def memlock() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)


def old_kernel() -> Powers:
    return replace(powers_of_this_process(), release="5.10.0")


@apart
def test_before_linux_5_11_there_is_as_much_room_for_maps_as_may_be_had_while_they_are_made() -> None:
    """Any amount with CAP_SYS_RESOURCE; else what the hard limit allows, also for a root that may mount."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (LITTLE, MORE))
    may_more = powers_of_this_process().capabilities >> CAP_SYS_RESOURCE & 1
    most = resource.RLIM_INFINITY if may_more else MORE
    with room_in_memory(old_kernel()):
        assert memlock() == (most, most)
    assert memlock() == (LITTLE, MORE)

    def without() -> None:
        become(65534, CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN)
        with room_in_memory(old_kernel()):
            assert memlock() == (MORE, MORE)
        assert memlock() == (LITTLE, MORE)

    in_child(without)


@apart
def test_later_kernels_count_maps_elsewhere() -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (LITTLE, MORE))
    with room_in_memory(replace(old_kernel(), release="5.11.0")):
        assert memlock() == (LITTLE, MORE)


@apart
def test_what_this_process_may_do_is_what_the_kernel_says() -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (LITTLE, MORE))
    become(65534, CAP_BPF)
    seen = powers_of_this_process()
    assert (seen.user, seen.capabilities, seen.memlock) == (65534, 1 << CAP_BPF, LITTLE)
    assert seen.release == os.uname().release
