from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from socket import create_server

import pytest

from clojarsd.core.errors import Failed
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


def test_an_address_that_is_our_own_in_another_way_is_refused_with_what_to_do(listeners: Listeners) -> None:
    """Whether a socket of the IPv6 wildcard takes IPv4 too cannot be changed, and no other can be beside it."""
    [port] = free_ports(1)
    both = Address("::", port)
    listeners.change(plans(web=(both,)))
    [socket] = listeners.of("web")
    with pytest.raises(Failed) as refused:
        listeners.change(plans(web=(Address("0.0.0.0", port), both)), 812)
    assert str(refused.value) == (
        f"cannot listen on 0.0.0.0:{port} for frontend web: address already in use by our own relay process 812,"
        f" for frontend web, which listens on [::]:{port}; reload once with nothing on port {port},"
        " and then with what is wanted"
    )
    assert listeners.of("web") == [socket], "all is as before"
    listeners.change(plans())
    assert listeners.change(plans(web=(Address("0.0.0.0", port), both))) == {"web"}


def test_a_stranger_beside_our_own_sockets_is_not_taken_for_us(listeners: Listeners) -> None:
    [port] = free_ports(1)
    with create_server(("0.0.0.0", port)):
        wanted = (Address("0.0.0.0", port), Address("::", port))
        alone = plans(web=(Address("::1", port),))
        listeners.change(alone)
        with pytest.raises(Failed) as refused:
            listeners.change(plans(web=wanted))
    assert f"address already in use by process {os.getpid()} " in str(refused.value)
