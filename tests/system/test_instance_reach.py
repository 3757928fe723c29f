"""Which addresses are this host's, and the sockets of an instance at its address. The instance is this process."""

from __future__ import annotations

import os

import pytest

from clojarsd.core.errors import Failed
from clojarsd.core.names import Address, Backend, Role, UnixAddress
from clojarsd.system.instance_reach import InstanceReach
from tests.support.sockets import open_descriptors
from tests.support.steered import cookie, listening

REACH = InstanceReach(lambda role: [os.getpid()])


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (Address("127.0.0.1", 8001), None),
        (Address("127.9.9.9", 8001), None),
        (Address("::1", 8001), None),
        (Address("0.0.0.0", 8001), None),
        (Address("192.0.2.1", 8001), "is on another host (192.0.2.1)"),
        (Address("2001:db8::1", 8001), "is on another host (2001:db8::1)"),
        (UnixAddress("/run/app.sock"), "listens on a Unix socket, /run/app.sock"),
    ],
)
def test_an_address_of_this_host_is_in_reach_and_of_others_it_is_said_why_not(
    address: Backend, reason: str | None
) -> None:
    assert REACH.why_elsewhere(address) == reason


@pytest.mark.parametrize(
    ("host", "asked"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::1")]
)
def test_a_socket_that_listens_at_the_address_is_had_as_a_duplicate(host: str, asked: str) -> None:
    with listening(host) as one:
        (taken,) = REACH.listening(Role.PRIMARY, Address(asked, one.getsockname()[1]))
        with taken:
            assert taken.fileno() != one.fileno()
            assert cookie(taken) == cookie(one)


def test_where_nobody_of_the_instance_listens_it_is_said_and_nothing_stays_open() -> None:
    with listening("127.0.0.2") as one:
        before = open_descriptors()
        elsewhere = Address("127.0.0.1", one.getsockname()[1])
        with pytest.raises(Failed, match=rf"^none of its processes listens on {elsewhere}$"):
            REACH.listening(Role.PRIMARY, elsewhere)
        nobody = InstanceReach(lambda role: [])
        with pytest.raises(Failed, match=r"^none of its processes listens on "):
            nobody.listening(Role.PRIMARY, Address(*one.getsockname()))
        with pytest.raises(Failed, match=r"^it listens on a Unix socket, /run/app.sock$"):
            REACH.listening(Role.PRIMARY, UnixAddress("/run/app.sock"))
        assert open_descriptors() == before


def test_of_several_sockets_of_a_port_those_of_the_address_are_had() -> None:
    with listening("127.0.0.1") as one, listening("127.0.0.2", one.getsockname()[1]):
        (taken,) = REACH.listening(Role.PRIMARY, Address(*one.getsockname()))
        with taken:
            assert cookie(taken) == cookie(one)
