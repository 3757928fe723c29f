"""Why a frontend cannot be steered by the kernel, as far as the settings tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from clojarsd.core.names import Backend, Role, UnixAddress
from clojarsd.core.settings import FrontendSettings

_KEYS: Final = ("quickack", "max_connections", "proxy_protocol", "source", "idle_timeout", "access_log")
"""What only the relay does, and the settings ask for only if they give it."""


def why_relayed(frontend: FrontendSettings, backends: Mapping[Role, Backend]) -> str | None:
    """A phrase for `mode_reason`; None: nothing here is in the way.

    A host that is not this machine is, too; who knows the addresses of this machine must ask for that.
    """
    for role, backend in backends.items():
        if isinstance(backend, UnixAddress):
            return f"{role.value} listens on a Unix socket, {backend}"
    keys = [key for key in _KEYS if getattr(frontend, key)]
    if not keys:
        return None
    return f"{', '.join(keys)} {'needs' if len(keys) == 1 else 'need'} the relay"
