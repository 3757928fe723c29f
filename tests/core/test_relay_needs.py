"""Why a frontend is relayed, in a phrase."""

from __future__ import annotations

from typing import Any

import pytest

from clojarsd.core.names import Address, Backend, Role, UnixAddress
from clojarsd.core.relay_needs import why_relayed
from clojarsd.core.settings import FrontendSettings

TCP: dict[Role, Backend] = {role: Address("127.0.0.1", 8001) for role in Role}


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({}, None),
        ({"half_closed_timeout": "1m", "source": "", "idle_timeout": "never"}, None),
        ({"proxy_protocol": True}, "proxy_protocol needs the relay"),
        ({"idle_timeout": "1h", "source": "::1"}, "source, idle_timeout need the relay"),
        ({"access_log": True, "quickack": True}, "quickack, access_log need the relay"),
        ({"max_connections": 5}, "max_connections needs the relay"),
    ],
)
def test_keys_that_only_the_relay_acts_on(keys: dict[str, Any], why: str | None) -> None:
    frontend = FrontendSettings.model_validate({"listen": "127.0.0.1:1", "port": "http", **keys})
    assert why_relayed(frontend, TCP) == why


def test_a_unix_socket_comes_first() -> None:
    frontend = FrontendSettings.model_validate({"listen": "127.0.0.1:1", "port": "http", "proxy_protocol": True})
    backends = {**TCP, Role.BACKUP: UnixAddress("/run/b.sock")}
    assert why_relayed(frontend, backends) == "backup listens on a Unix socket, /run/b.sock"
