"""Capabilities that a plain user's service was given, and that its children are not to have.

systemd's AmbientCapabilities= pass on with every exec, to instances as well. Lowered, they stay with this process and
with nobody that it starts; before it executes new code in its own place they have to be raised again.

Source: capabilities(7), "Ambient"; prctl(2), PR_CAP_AMBIENT.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import Final

from clojarsd.core.steering_reasons import CAP_BPF, CAP_NET_ADMIN

CAP_SYS_PTRACE: Final = 19
STEERING: Final = (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_PTRACE)
"""What steering needs, and an instance does not: whoever has these could steer its clients to itself."""
_PR_CAP_AMBIENT: Final = 47
_IS_SET, _RAISE, _LOWER = 1, 2, 3
_libc = ctypes.CDLL(None, use_errno=True)


def lower_ambient(capabilities: Iterable[int] = STEERING) -> frozenset[int]:
    """Keep these from what this process starts from now on; those that were ambient, for `raise_ambient`."""
    lowered = frozenset(one for one in capabilities if _ambient(_IS_SET, one) == 1)
    for one in lowered:
        _ambient(_LOWER, one)
    return lowered


def raise_ambient(capabilities: Iterable[int]) -> None:
    """Let what this process executes have these again. Raises OSError: it does not have them itself."""
    for one in capabilities:
        if _ambient(_RAISE, one) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _ambient(act: int, capability: int) -> int:
    arguments = (ctypes.c_ulong(one) for one in (act, capability, 0, 0))
    result: int = _libc.prctl(_PR_CAP_AMBIENT, *arguments)
    return result
