"""Addresses as sockets give them."""

from __future__ import annotations

from typing import Any

import pytest

from clojarsd.core.names import Address


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (("127.0.0.1", 80), Address("127.0.0.1", 80)),
        (("::ffff:127.0.0.1", 80, 0, 0), Address("127.0.0.1", 80)),
        (("::1", 80, 0, 0), Address("::1", 80)),
        (("fe80::ffff:1", 80, 0, 2), Address("fe80::ffff:1", 80)),
    ],
)
def test_both_ends_of_a_connection_name_it_alike_whatever_their_sockets_are(
    name: tuple[Any, ...], address: Address
) -> None:
    assert Address.of_socket(name) == address
