from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Address, Role
from clojarsd.runtime.listeners import Listeners
from clojarsd.system.sockets import free_ports
from tests.support.fronts import make_plan


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    with closing(Listeners()) as opened:
        yield opened


def plans(**listen: tuple[Address, ...]) -> dict[str, FrontendPlan]:
    backends = {role: Address("127.0.0.1", 1) for role in Role}
    return {name: make_plan(backends, name=name, listen=addresses) for name, addresses in listen.items()}


def test_an_address_may_go_to_another_frontend_that_also_listens_on_the_ports_ipv4_side(listeners: Listeners) -> None:
    """An IPv6 address that is no wildcard has no IPv4 side, so its socket is the right one in either company."""
    one, other = free_ports(2)
    listeners.change(plans(six=(Address("::1", one),), both=(Address("127.0.0.1", other),)))
    [socket] = listeners.of("six")
    wanted = plans(six=(Address("::1", other),), both=(Address("127.0.0.1", one), Address("::1", one)))
    assert listeners.change(wanted) == {"six", "both"}
    assert listeners.of("both")[1] is socket
