"""Whose client it is that came out of an accept queue."""

from __future__ import annotations

from typing import Any

import pytest

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Address, Role
from clojarsd.core.rescue import frontend_of

P, B = Role.PRIMARY, Role.BACKUP


def plan(name: str, *listen: Address, port: int = 8001) -> FrontendPlan:
    values: dict[str, Any] = dict.fromkeys(("connect_timeout", "hold", "drain", "drain_idle", "failback"), 1.0)
    backends = {P: Address("127.0.0.1", port), B: Address("127.0.0.1", port + 1)}
    return FrontendPlan(name, listen, backends, False, None, False, hold_connections=1, **values)


HTTP = plan("http", Address("127.0.0.1", 8080))
OTHER = plan("other", Address("127.0.0.2", 8080), Address("::1", 8080))
LINE = plan("line", Address("::", 8700), port=8101)
ALL4 = plan("all4", Address("0.0.0.0", 9000), port=8201)
NAMED = plan("named", Address("localhost", 9100), port=8301)
PLANS = [HTTP, OTHER, LINE, ALL4, NAMED]


@pytest.mark.parametrize(
    ("local", "name"),
    [
        (Address("127.0.0.1", 8080), "http"),
        (Address("127.0.0.2", 8080), "other"),
        (Address("::1", 8080), "other"),
        (Address("10.0.0.1", 8700), "line"),
        (Address("fe80::1", 8700), "line"),
        (Address("10.0.0.1", 9000), "all4"),
        (Address("fe80::1", 9000), None),
        (Address("127.0.0.1", 9100), "named"),
        (Address("127.0.0.1", 8001), "http"),  # two frontends have this port: the first
        (Address("127.0.0.1", 8101), "line"),
        (Address("127.0.0.1", 8002), None),  # that is the other instance's
        (Address("127.0.0.3", 8080), None),
    ],
)
def test_it_is_the_one_whose_address_was_asked_for_or_the_first_of_the_port(local: Address, name: str | None) -> None:
    assert frontend_of(local, P, PLANS) == name


def test_each_instance_has_its_own_ports() -> None:
    assert frontend_of(Address("127.0.0.1", 8002), B, PLANS) == "http"
