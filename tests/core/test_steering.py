"""The assembled program in a machine of our own, against a model that says the same in three lines."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from clojarsd.core.bpf_assembly import ByteOrder
from clojarsd.core.errors import CannotSteer
from clojarsd.core.names import Address, Role
from clojarsd.core.steering import (
    ADDRESS_SIZE,
    COUNTERS_EACH,
    FAMILY_AT,
    IPV4,
    IPV6,
    LOCAL_IPV4_AT,
    LOCAL_IPV6_AT,
    LOCAL_PORT_AT,
    PART_AT,
    PROTOCOL_AT,
    TCP,
    Maps,
    Steered,
    address_keys,
    client_families,
    counter_place,
    order_word,
    program,
    roles_of_word,
    socket_place,
)
from tests.support.ebpf import Broken, Machine

P, B = Role.PRIMARY, Role.BACKUP
ORDERS: tuple[tuple[Role, ...], ...] = ((), (P,), (B,), (P, B), (B, P))
BYTE_ORDERS: tuple[ByteOrder, ...] = ("little", "big")
UDP = 17
MAPS = Maps(addresses=11, order=12, sockets=13, counters=14)
KEY_SIZES = {11: ADDRESS_SIZE, 12: 4, 13: 4, 14: 4}
EAFNOSUPPORT = -97


@dataclass(frozen=True)
class Packet:
    """What comes in: the local address that the client has asked for."""

    host: str
    port: int
    protocol: int = TCP

    @property
    def family(self) -> int:
        return IPV4 if ":" not in self.host else IPV6

    def facts(self, byte_order: ByteOrder) -> dict[int, int]:
        """The words of struct bpf_sk_lookup, as a load gives them."""
        packed = ipaddress.ip_address(self.host).packed
        words = [int.from_bytes(packed[at : at + 4], byte_order) for at in range(0, len(packed), 4)]
        facts = {FAMILY_AT: self.family, PROTOCOL_AT: self.protocol, LOCAL_PORT_AT: self.port, LOCAL_IPV4_AT: 0}
        facts |= {LOCAL_IPV6_AT + at: 0 for at in range(0, 16, 4)}
        start = LOCAL_IPV4_AT if self.family == IPV4 else LOCAL_IPV6_AT
        return facts | {start + 4 * place: word for place, word in enumerate(words)}


Place = tuple[int, Role, int]
"""The index of a frontend, a role and a family."""


def model(frontends: Sequence[Steered], packet: Packet, orders: Sequence[Sequence[Role]], fit: set[Place]) -> object:
    """Whom the packet reaches: a place, the frontend that it falls through, or None for somebody else's packet."""
    index = whose(frontends, packet) if packet.protocol == TCP else None
    reached: list[object] = [place for role in orders[index or 0] if (place := (index, role, packet.family)) in fit]
    return None if index is None else (reached or [index])[0]


def whose(frontends: Sequence[Steered], packet: Packet) -> int | None:
    """The frontend with the packet's address; else with its wildcard; else with `::` and no IPv4 address beside it."""
    wildcard = Address("0.0.0.0" if packet.family == IPV4 else "::", packet.port)
    mapped = Address(f"::ffff:{packet.host}", packet.port)
    for wanted in ({Address(packet.host, packet.port), mapped}, {wildcard}):
        for index, frontend in enumerate(frontends):
            if wanted & set(frontend.listen):
                return index
    for index, frontend in enumerate(frontends):
        beside = any(other.port == packet.port and ":" not in other.host for other in frontend.listen)
        if packet.family == IPV4 and Address("::", packet.port) in frontend.listen and not beside:
            return index
    return None


def run(
    frontends: Sequence[Steered],
    packet: Packet,
    orders: Sequence[Sequence[Role]],
    sockets: set[Place],
    refused: set[Place],
    byte_order: ByteOrder,
    part: int = 0,
    chance: int = 0,
) -> object:
    """The same by the program; it must have counted what it did, once.

    Args:
        part: of every order.
        chance: what the kernel's random numbers are.
    """

    def word(number: int, size: int = 4) -> bytes:
        return number.to_bytes(size, byte_order)

    indexed = dict(enumerate(frontends))
    counters = {word(place): bytearray(8) for place in range(len(frontends) * COUNTERS_EACH)}
    machine = Machine(
        program(MAPS, byte_order),
        byte_order,
        packet.facts(byte_order),
        values={
            11: {key: bytearray(word(index)) for key, index in address_keys(indexed, byte_order).items()},
            12: {word(index): bytearray(word(order_word(order, part))) for index, order in enumerate(orders)},
            14: counters,
        },
        sockets={13: {word(socket_place(*place)): place for place in sockets}},
        key_sizes=KEY_SIZES,
        assign=lambda place: EAFNOSUPPORT if place in refused else 0,
        chance=chance,
    )
    assert machine.run() == 1, "SK_PASS, whatever happens"
    counted = [int.from_bytes(key, byte_order) for key, value in counters.items() if int.from_bytes(value, byte_order)]
    if not counted:
        assert machine.assigned is None
        return None
    (place,) = counted
    assert int.from_bytes(counters[word(place)], byte_order) == 1
    if machine.assigned is None:
        assert place % COUNTERS_EACH == counter_place(0, None)
        return place // COUNTERS_EACH
    assert isinstance(machine.assigned, tuple)
    assert place == counter_place(*machine.assigned[:2])
    return machine.assigned


PAIR = (Steered("http", (Address("::", 80),)), Steered("line", (Address("127.0.0.1", 8700), Address("::1", 8700))))
PLACES = [(index, role, family) for index in (0, 1) for role in (P, B) for family in (IPV4, IPV6)]


@pytest.mark.parametrize("byte_order", BYTE_ORDERS)
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: " ".join(role.value for role in order) or "nobody")
def test_a_connection_reaches_the_first_role_of_the_order_whose_socket_is_there_and_fits(
    byte_order: ByteOrder, order: tuple[Role, ...]
) -> None:
    """For each set of sockets that are there, and of those that the kernel refuses; the other frontend has all."""
    for packet, index in ((Packet("10.1.2.3", 80), 0), (Packet("::1", 8700), 1)):
        own = [place for place in PLACES if place[0] == index]
        others = {place for place in PLACES if place[0] != index}
        orders: list[Sequence[Role]] = [(B, P), (B, P)]
        orders[index] = order
        for states in itertools.product(("none", "fits", "refused"), repeat=len(own)):
            fit, refused = (
                {place for place, seen in zip(own, states, strict=True) if seen == state}
                for state in ("fits", "refused")
            )
            said = run(PAIR, packet, orders, fit | refused | others, refused, byte_order)
            assert said == model(PAIR, packet, orders, fit | others), (packet, states)


@pytest.mark.parametrize("byte_order", BYTE_ORDERS)
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: " ".join(role.value for role in order) or "nobody")
@pytest.mark.parametrize("part", [0, 1, 3277, 32768])
def test_a_part_of_the_connections_tries_the_roles_the_other_way_round(
    part: int, order: tuple[Role, ...], byte_order: ByteOrder
) -> None:
    """Those for whom chance says so, whatever else stands in its number; and who cannot be reached is passed over."""
    packet, everybody = Packet("10.1.2.3", 80), {place for place in PLACES if place[0] == 0}
    for high, low in itertools.product((0, 0xFFFF), (0, max(part - 1, 0), part, 0xFFFF)):
        turned = tuple(reversed(order)) if low < part else order
        for fit in (everybody, everybody - {(0, P, IPV4)}, everybody - {(0, B, IPV4)}, set[Place]()):
            said = run(PAIR, packet, [order, ()], fit, set(), byte_order, part, high << 16 | low)
            assert said == model(PAIR, packet, [turned, ()], fit), (high, low, fit)


@pytest.mark.parametrize("byte_order", BYTE_ORDERS)
def test_nobody_in_an_order_is_nobody_and_no_role_of_a_frontend_far_away(byte_order: ByteOrder) -> None:
    frontends = [PAIR[0], *(Steered(f"f{index}", ()) for index in range(1, 256))]
    sockets = {(index, role, family) for index in range(1, 256) for role in (P, B) for family in (IPV4, IPV6)}
    for order in ORDERS:
        assert run(frontends, Packet("127.0.0.1", 80), [order] * 256, sockets, set(), byte_order) == 0


LISTENS: Mapping[str, tuple[tuple[Address, ...], ...]] = {
    "one address": ((Address("127.0.0.1", 80),),),
    "an address each": ((Address("127.0.0.1", 80),), (Address("127.0.0.2", 80), Address("127.0.0.1", 81))),
    "IPv4 wildcard": ((Address("0.0.0.0", 80),),),
    "IPv6 wildcard, which takes IPv4": ((Address("::", 80),),),
    "IPv6 wildcard beside an IPv4 address": ((Address("::", 80), Address("127.0.0.1", 80)),),
    "IPv6 wildcard beside an IPv4 address of another port": ((Address("::", 80), Address("127.0.0.1", 81)),),
    "IPv6 wildcard beside an IPv4 wildcard": ((Address("::", 80), Address("0.0.0.0", 80)),),
    "IPv6 wildcard, and the IPv4 wildcard is another's": ((Address("::", 80),), (Address("0.0.0.0", 80),)),
    "IPv6 wildcard, and an IPv4 address is another's": ((Address("::", 80),), (Address("127.0.0.1", 80),)),
    "IPv6 addresses": ((Address("::1", 80),), (Address("2001:db8::1", 80),)),
    "an IPv6 address and an IPv6 wildcard": ((Address("::1", 80),), (Address("::", 80),)),
    "an IPv4 address as IPv6": ((Address("::ffff:127.0.0.1", 80),), (Address("::", 80),)),
    "nothing": (),
}


@pytest.mark.parametrize("byte_order", BYTE_ORDERS)
@pytest.mark.parametrize("listens", LISTENS.values(), ids=LISTENS.keys())
def test_a_packet_belongs_to_the_frontend_that_listens_there(
    listens: tuple[tuple[Address, ...], ...], byte_order: ByteOrder
) -> None:
    frontends = [Steered(f"f{index}", listen) for index, listen in enumerate(listens)]
    sockets = {(index, B, family) for index in range(len(frontends)) for family in (IPV4, IPV6)}
    hosts = ("127.0.0.1", "127.0.0.2", "1.0.0.127", "::1", "2001:db8::1", "2001:db8::100:0")
    for host, port, protocol in itertools.product(hosts, (80, 81, 20480), (TCP, UDP)):
        packet = Packet(host, port, protocol)
        orders = [(P, B)] * max(1, len(frontends))
        assert run(frontends, packet, orders, sockets, set(), byte_order) == model(frontends, packet, orders, sockets)


@pytest.mark.parametrize("listens", LISTENS.values(), ids=LISTENS.keys())
def test_the_families_of_a_frontends_clients_are_those_of_the_packets_that_belong_to_it(
    listens: tuple[tuple[Address, ...], ...],
) -> None:
    hosts = ("127.0.0.1", "127.0.0.2", "::1", "2001:db8::1")
    for frontend in (Steered("f", listen) for listen in listens):
        packets = [Packet(host, port) for host, port in itertools.product(hosts, (80, 81))]
        assert client_families(frontend) == {one.family for one in packets if whose([frontend], one) == 0}


@pytest.mark.parametrize("byte_order", BYTE_ORDERS)
def test_a_packet_of_an_unknown_family_is_left_alone(byte_order: ByteOrder) -> None:
    packet = Packet("127.0.0.1", 80)
    machine = Machine(
        program(MAPS, byte_order),
        byte_order,
        packet.facts(byte_order) | {FAMILY_AT: 1},
        values={11: {}, 12: {}, 14: {}},
        sockets={13: {}},
        key_sizes=KEY_SIZES,
        assign=lambda _: 0,
    )
    assert machine.run() == 1


def test_the_program_does_not_grow_with_the_frontends() -> None:
    """Neither the verifier nor a jump can run out of room: addresses stand in a map."""
    many = {
        index: Steered(str(index), tuple(Address(f"10.{index}.0.{n}", 80) for n in range(256))) for index in range(256)
    }
    assert len(address_keys(many, "little")) == 65536
    assert len(program(MAPS, "little")) // 8 < 128


@pytest.mark.parametrize("without", [86, 124])
def test_the_machine_notices_a_reference_that_is_kept_and_a_socket_that_is_no_more(without: int) -> None:
    """Without the release, or with a release in place of the assignment, the program is refused."""
    text = bytearray(program(MAPS, "little"))
    for at in range(0, len(text), 8):
        if text[at] == 0x85 and int.from_bytes(text[at + 4 : at + 8], "little") == without:
            text[at : at + 8] = b"\xb7" + bytes(7) if without == 86 else b"\x85\0\0\0" + (86).to_bytes(4, "little")
    machine = Machine(
        bytes(text),
        "little",
        Packet("127.0.0.1", 80).facts("little"),
        values={
            11: {key: bytearray(4) for key in address_keys({0: Steered("f", (Address("0.0.0.0", 80),))}, "little")},
            12: {bytes(4): bytearray(order_word((P,)).to_bytes(4, "little"))},
            14: {place.to_bytes(4, "little"): bytearray(8) for place in range(3)},
        },
        sockets={13: {bytes(4): "primary"}},
        key_sizes=KEY_SIZES,
        assign=lambda _: 0,
    )
    with pytest.raises(Broken):
        machine.run()


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_read_as_it_was_written(order: tuple[Role, ...]) -> None:
    assert roles_of_word(order_word(order)) == order
    assert roles_of_word(order_word(order, 32768)) == order
    assert order_word(order, 32768) >> PART_AT == 32768


def test_a_role_that_is_named_twice_is_tried_once() -> None:
    assert roles_of_word(order_word((B, B, P))) == (B, P)


def test_an_address_of_two_frontends_is_refused() -> None:
    frontends = {3: Steered("http", (Address("127.0.0.1", 80),)), 5: Steered("line", (Address("::ffff:7f00:1", 80),))}
    with pytest.raises(CannotSteer) as refused:
        address_keys(frontends, "little")
    assert str(refused.value) == "cannot steer [::ffff:7f00:1]:80 of frontend line: frontend http has it too"
