"""Steering in the kernel: the sk_lookup program as bytes, and what stands in its maps.

::

    family, port, local address --addresses--> index of the frontend
    index --order--> the role that is tried first, the role that is tried second; for a part of the connections the
                     other way round, by chance (docs/decisions/0015-shares.md)
    index, role, family --sockets--> the listening socket of the instance, which gets the connection
    neither has one: the lookup goes on as without us --> the listener of the relay process

The program is always the same but for its maps. Addresses are a hash map of their own for each program, so that neither
the time of a lookup, nor what the verifier has to look at, nor the length of jumps depends on how many there are; and a
new set of frontends takes effect with the one act that replaces the program.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from clojarsd.core.bpf_assembly import Assembler, ByteOrder, Helper, Register, Width
from clojarsd.core.errors import CannotSteer
from clojarsd.core.names import Address, Role
from clojarsd.core.spreading import WHOLE

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FRAME = Register

IPV4: Final = 2
IPV6: Final = 10
TCP: Final = 6

MOST_FRONTENDS: Final = 256
"""Places in the maps; a set of frontends and the one that it replaces must fit in together."""
ADDRESS_SIZE: Final = 24
"""Bytes of a key of `addresses`: family and port, 4 bytes each in the machine's order; address, 16 in the net's."""
NOBODY: Final = 0xFF
"""In an order: no role."""
ROLES: Final = (Role.PRIMARY, Role.BACKUP)
"""A role's number is its place in here."""
SOCKETS_EACH: Final = 4
"""Places of a frontend in `sockets`: two roles, two families."""
COUNTERS_EACH: Final = 3
"""Places of a frontend in `counters`: primary, backup, fallen through."""

FAMILY_AT: Final = 8
PROTOCOL_AT: Final = 12
LOCAL_IPV4_AT: Final = 40
LOCAL_IPV6_AT: Final = 44
LOCAL_PORT_AT: Final = 60
"""Offsets in struct bpf_sk_lookup (linux/bpf.h). Addresses are in the net's order, the port in the machine's."""

_KEY: Final = -ADDRESS_SIZE
_PORT: Final = _KEY + 4
_ADDRESS: Final = _KEY + 8
_INDEX: Final = -28
_PLACE: Final = -32
_REFUSAL: Final = -40
"""What is where on the program's stack."""

PART_AT: Final = 16
"""The bit of an order from which on the part of connections stands that goes the other way round."""

FELL_THROUGH: Final = 2
_PASS: Final = 1
"""SK_PASS: take the socket that was assigned, else look further."""


@dataclass(frozen=True, slots=True)
class Steered:
    """A frontend as the program sees it.

    Attributes:
        listen: addresses with numeric hosts. `0.0.0.0` is every IPv4 address; `::` every IPv6 address, and every IPv4
            address too unless this frontend has an IPv4 address with the same port. `::ffff:1.2.3.4` is 1.2.3.4.
    """

    name: str
    listen: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Maps:
    """Descriptors of the maps that a program uses."""

    addresses: int
    order: int
    sockets: int
    counters: int


def address_keys(indexed: Mapping[int, Steered], byte_order: ByteOrder) -> dict[bytes, int]:
    """What stands in `addresses`: keys to the indexes of the frontends.

    An exact address goes before a wildcard, as with sockets. An IPv4 wildcard that is only implied by `::` yields to
    another frontend's `0.0.0.0`.

    Raises:
        CannotSteer: two frontends have the same address.
    """
    named: dict[bytes, int] = {}
    implied: dict[bytes, int] = {}
    for index, frontend in indexed.items():
        for address in frontend.listen:
            host = ipaddress.ip_address(as_kernel_says(address).host)
            key = _key(host, address.port, byte_order)
            if named.setdefault(key, index) != index:
                other = indexed[named[key]].name
                raise CannotSteer(f"cannot steer {address} of frontend {frontend.name}: frontend {other} has it too")
            if host == ipaddress.IPv6Address(0) and not _has_ipv4(frontend, address.port):
                implied.setdefault(_key(ipaddress.IPv4Address(0), address.port, byte_order), index)
    return implied | named


def client_families(frontend: Steered) -> frozenset[int]:
    """The families of the frontend's clients."""
    keys = address_keys({0: frontend}, "little")
    return frozenset(int.from_bytes(key[:4], "little") for key in keys)


def as_kernel_says(address: Address) -> Address:
    """A numeric address as connections have it: an IPv4 one that is written as an IPv6 one is IPv4."""
    host = ipaddress.ip_address(address.host)
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return Address(str(mapped), address.port) if mapped is not None else address


def _has_ipv4(frontend: Steered, port: int) -> bool:
    return any(":" not in other.host for other in frontend.listen if other.port == port)


def _key(host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, byte_order: ByteOrder) -> bytes:
    family = IPV4 if host.version == 4 else IPV6
    return struct.pack("<II16s" if byte_order == "little" else ">II16s", family, port, host.packed)


def order_word(order: Sequence[Role], part: int = 0) -> int:
    """The word in `order` for these roles, first to last; empty: nobody gets connections.

    Args:
        part: for so many of `WHOLE` connections the roles are tried the other way round; below `WHOLE`.
    """
    numbers = [ROLES.index(role) for role in dict.fromkeys(order)] + [NOBODY, NOBODY]
    return numbers[0] | numbers[1] << 8 | part << PART_AT


def roles_of_word(word: int) -> tuple[Role, ...]:
    """The roles that a word in `order` names, first to last."""
    return tuple(ROLES[number] for number in (word & 0xFF, word >> 8 & 0xFF) if number < len(ROLES))


def socket_place(index: int, role: Role, family: int) -> int:
    """Where in `sockets` the instance's listener for clients of this family is."""
    return index * SOCKETS_EACH + ROLES.index(role) * 2 + (family == IPV6)


def counter_place(index: int, role: Role | None) -> int:
    """Where in `counters` the connections are counted that a role got, or for None those that fell through."""
    return index * COUNTERS_EACH + (FELL_THROUGH if role is None else ROLES.index(role))


def program(maps: Maps, byte_order: ByteOrder) -> bytes:
    """The sk_lookup program on these maps.

    It says SK_PASS always: what it does not steer is looked up as if it were not there. R6 is the lookup (struct
    bpf_sk_lookup), R7 a socket, the frontend's index or a part, R8 the frontend's order, R9 the role that is tried.
    """
    asm = Assembler()
    _find_frontend(asm, maps)
    asm.load_map(R1, maps.order)
    asm.move(R2, FRAME)
    asm.add(R2, _INDEX)  # by its index
    asm.call(Helper.MAP_LOOKUP)
    asm.jump_if_equal(R0, 0, "leave")  # cannot be: the map has every index; the verifier wants it asked
    asm.load(R8, R0, 0)  # the order of this moment, for both attempts
    _turn_round(asm)
    _try_role(asm, maps, 0, otherwise="second")
    asm.label("second")
    _try_role(asm, maps, 8, otherwise="nobody")
    asm.label("nobody")
    asm.move(R9, FELL_THROUGH)  # counts like a third role
    asm.label("count")
    asm.load(R1, FRAME, _INDEX)
    asm.multiply(R1, COUNTERS_EACH)
    asm.add(R1, R9)
    asm.store(FRAME, _PLACE, R1)  # counter_place of the frontend and R9
    asm.load_map(R1, maps.counters)
    asm.move(R2, FRAME)
    asm.add(R2, _PLACE)
    asm.call(Helper.MAP_LOOKUP)
    asm.jump_if_equal(R0, 0, "leave")  # cannot be, as above
    asm.move(R1, 1)
    asm.add_atomically(R0, 0, R1)  # other processors count as well
    asm.label("leave")
    asm.move(R0, _PASS)
    asm.leave()
    return asm.assemble(byte_order)


def _find_frontend(asm: Assembler, maps: Maps) -> None:
    """The index of the frontend to `_INDEX` on the stack; leaves where no frontend has the address."""
    asm.move(R6, R1)  # calls lose R1
    asm.load(R1, R6, PROTOCOL_AT)
    asm.jump_unless_equal(R1, TCP, "leave")  # UDP comes here as well
    asm.load(R3, R6, FAMILY_AT)
    asm.store(FRAME, _KEY, R3)  # the key begins with the family
    asm.load(R1, R6, LOCAL_PORT_AT)
    asm.store(FRAME, _PORT, R1)  # then the port
    asm.store(FRAME, _ADDRESS, 0, Width.DOUBLE)  # then 16 bytes of address, of which IPv4 fills 4
    asm.store(FRAME, _ADDRESS + 8, 0, Width.DOUBLE)
    asm.jump_if_equal(R3, IPV6, "ipv6")
    asm.load(R1, R6, LOCAL_IPV4_AT)  # IPv4; a family that is neither has no key that begins with it
    asm.store(FRAME, _ADDRESS, R1)  # in the net's order, as in the key
    asm.jump("find")
    asm.label("ipv6")
    for part in range(0, 16, 4):  # the kernel gives it away by words only
        asm.load(R1, R6, LOCAL_IPV6_AT + part)
        asm.store(FRAME, _ADDRESS + part, R1)
    asm.label("find")
    asm.load_map(R1, maps.addresses)
    asm.move(R2, FRAME)
    asm.add(R2, _KEY)
    asm.call(Helper.MAP_LOOKUP)
    asm.jump_unless_equal(R0, 0, "found")  # somebody listens on this very address
    asm.store(FRAME, _ADDRESS, 0, Width.DOUBLE)  # else the wildcard of the family, which is all zeros
    asm.store(FRAME, _ADDRESS + 8, 0, Width.DOUBLE)
    asm.load_map(R1, maps.addresses)
    asm.move(R2, FRAME)
    asm.add(R2, _KEY)
    asm.call(Helper.MAP_LOOKUP)
    asm.jump_if_equal(R0, 0, "leave")  # not our port
    asm.label("found")
    asm.load(R7, R0, 0)
    asm.store(FRAME, _INDEX, R7)  # as a key of its own, and for counting


def _turn_round(asm: Assembler) -> None:
    """For the part of connections that R8 says, exchange the two roles in it; whose turn it is, chance decides."""
    asm.move(R7, R8)
    asm.shift_right(R7, PART_AT)  # its upper half is 0: it was loaded as a word
    asm.jump_if_equal(R7, 0, "first")  # nobody has ordered a share: that is all that it costs
    asm.call(Helper.RANDOM)
    asm.bits_and(R0, WHOLE - 1)
    asm.jump_unless_below(R0, R7, "first")
    asm.move(R1, R8)
    asm.shift_right(R1, 8)
    asm.bits_and(R1, 0xFF)
    asm.shift_left(R8, 8)  # what stands above the second role is not looked at
    asm.bits_or(R8, R1)
    asm.label("first")


def _try_role(asm: Assembler, maps: Maps, bits: int, otherwise: str) -> None:
    """Give the connection to the role that stands at that bit of R8 and count it; go on otherwise if it cannot be."""
    asm.move(R9, R8)
    asm.shift_right(R9, bits)
    asm.bits_and(R9, 0xFF)  # the role
    asm.jump_if_above(R9, len(ROLES) - 1, otherwise)  # NOBODY
    asm.load(R1, FRAME, _INDEX)
    asm.shift_left(R1, 1)
    asm.add(R1, R9)
    asm.shift_left(R1, 1)  # socket_place of the frontend, the role and IPv4
    asm.load(R2, R6, FAMILY_AT)
    asm.jump_unless_equal(R2, IPV6, f"place at {bits}")
    asm.bits_or(R1, 1)  # and of IPv6
    asm.label(f"place at {bits}")
    asm.store(FRAME, _PLACE, R1)
    asm.load_map(R1, maps.sockets)
    asm.move(R2, FRAME)
    asm.add(R2, _PLACE)
    asm.call(Helper.MAP_LOOKUP)
    asm.jump_if_equal(R0, 0, otherwise)  # never put in, or closed since
    asm.move(R7, R0)  # a reference that is ours to release
    asm.move(R1, R6)
    asm.move(R2, R7)
    asm.move(R3, 0)  # leave a choice alone that another program has made
    asm.call(Helper.SOCKET_ASSIGN)
    asm.store(FRAME, _REFUSAL, R0, Width.DOUBLE)  # 0, or why the socket does not fit
    asm.move(R1, R7)
    asm.call(Helper.SOCKET_RELEASE)  # the lookup has its own
    asm.load(R1, FRAME, _REFUSAL, Width.DOUBLE)
    asm.jump_if_equal(R1, 0, "count")  # else on to what follows, which is `otherwise`
