"""Headers of the PROXY protocol, byte by byte."""

from __future__ import annotations

import pytest

from clojarsd.core.names import Address
from clojarsd.core.proxy_protocol import LOCAL, OF_UNKNOWN_CLIENT, header
from tests.support.proxy_headers import Header, parse_header


def test_a_header_for_ipv4_is_what_the_specification_says() -> None:
    assert header(Address("192.0.2.7", 0x1234), Address("198.51.100.9", 443)) == bytes.fromhex(
        "0d0a0d0a000d0a515549540a"  # signature
        "21 11 000c"  # version 2 and PROXY, TCP over IPv4, 12 bytes
        "c0000207 c6336409 1234 01bb"
    )


def test_a_header_for_ipv6_is_what_the_specification_says() -> None:
    assert header(Address("2001:db8::1", 1), Address("2001:db8::2", 65535)) == bytes.fromhex(
        "0d0a0d0a000d0a515549540a"
        "21 21 0024"  # TCP over IPv6, 36 bytes
        "20010db8000000000000000000000001 20010db8000000000000000000000002 0001 ffff"
    )


def test_what_is_no_client_says_so() -> None:
    assert bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000") == LOCAL
    assert parse_header(LOCAL) == (Header("LOCAL", "UNSPEC", None, None), b"")


def test_a_client_without_an_address_is_announced_as_one() -> None:
    assert bytes.fromhex("0d0a0d0a000d0a515549540a 21 00 0000") == OF_UNKNOWN_CLIENT
    assert parse_header(OF_UNKNOWN_CLIENT) == (Header("PROXY", "UNSPEC", None, None), b"")


@pytest.mark.parametrize(
    ("source", "destination", "family", "seen"),
    [
        ("127.0.0.1", "127.0.0.1", "TCP4", ("127.0.0.1", "127.0.0.1")),
        ("::1", "::1", "TCP6", ("::1", "::1")),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", "TCP4", ("10.0.0.1", "10.0.0.2")),
        ("::ffff:10.0.0.1", "10.0.0.2", "TCP4", ("10.0.0.1", "10.0.0.2")),
        ("10.0.0.1", "2001:db8::2", "TCP6", ("::ffff:10.0.0.1", "2001:db8::2")),
        ("::ffff:10.0.0.1", "2001:db8::2", "TCP6", ("::ffff:10.0.0.1", "2001:db8::2")),
        ("fe80::1%eth0", "fe80::2%3", "TCP6", ("fe80::1", "fe80::2")),
    ],
)
def test_each_kind_of_address_is_read_back(source: str, destination: str, family: str, seen: tuple[str, str]) -> None:
    parsed, rest = parse_header(header(Address(source, 1025), Address(destination, 8080)) + b"GET /")
    assert parsed == Header("PROXY", family, (seen[0], 1025), (seen[1], 8080))
    assert rest == b"GET /"


def test_a_name_is_no_address() -> None:
    with pytest.raises(ValueError, match="localhost"):
        header(Address("localhost", 1), Address("127.0.0.1", 1))
