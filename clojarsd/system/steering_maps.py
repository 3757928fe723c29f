"""The maps of a daemon's steering: pinned, and recognised by the next daemon that opens them.

`names` has the name of the frontend at each index, and last of all the version of the layout. A set of maps that is not
exactly of this layout is replaced by a new one: the program goes on with the old ones until it is replaced itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Final, Self

from clojarsd.core.names import Role
from clojarsd.core.steering import (
    COUNTERS_EACH,
    IPV4,
    IPV6,
    MOST_FRONTENDS,
    PART_AT,
    SOCKETS_EACH,
    Maps,
    counter_place,
    order_word,
    roles_of_word,
    socket_place,
)
from clojarsd.system import bpf
from clojarsd.system.bpf import MapKind, MapShape
from clojarsd.system.steering_directory import SteeringDirectory

ORDER: Final = "order"
SOCKETS: Final = "sockets"
COUNTERS: Final = "counters"
NAMES: Final = "names"

LAYOUT: Final = b"clojarsd steering, layout 1"
LONGEST_NAME: Final = 255
"""Bytes of the name of a frontend."""
_LAYOUT_AT: Final = MOST_FRONTENDS
_NAME_SIZE: Final = LONGEST_NAME + 1
_WORD: Final = 4
_LONG: Final = 8

SHAPES: Final[Mapping[str, MapShape]] = {
    ORDER: MapShape(MapKind.ARRAY, _WORD, _WORD, MOST_FRONTENDS),
    SOCKETS: MapShape(MapKind.SOCKETS, _WORD, _LONG, MOST_FRONTENDS * SOCKETS_EACH),
    COUNTERS: MapShape(MapKind.ARRAY, _WORD, _LONG, MOST_FRONTENDS * COUNTERS_EACH),
    NAMES: MapShape(MapKind.ARRAY, _WORD, _NAME_SIZE, MOST_FRONTENDS + 1),
}
"""In the order in which they are pinned: the one that has the version comes last."""


class SteeringMaps:
    """The maps, by what stands in them. KernelSteering makes and closes them."""

    def __init__(self, descriptors: Mapping[str, int]) -> None:
        self._descriptors = dict(descriptors)

    @classmethod
    def inherit(cls, directory: SteeringDirectory) -> Self | None:
        """The maps that another daemon has left there; None where they are not all of this layout."""
        maps = cls({})
        with contextlib.suppress(OSError):
            for name, shape in SHAPES.items():
                descriptor = directory.pinned(name)
                if descriptor is None:
                    break
                maps._descriptors[name] = descriptor
                if bpf.shape_of(descriptor) != shape:
                    break
            else:
                if maps._name_at(_LAYOUT_AT) == LAYOUT:
                    return maps
        maps.close()
        return None

    @classmethod
    def make(cls) -> Self:
        """New ones, in which nobody gets connections. Raises OSError."""
        maps = cls({})
        try:
            for name, shape in SHAPES.items():
                maps._descriptors[name] = bpf.create_map(shape, f"clojarsd_{name}"[:15])
            for index in range(MOST_FRONTENDS):
                maps.set_order(index, ())
            maps._set_name(_LAYOUT_AT, LAYOUT)
        except BaseException:
            maps.close()
            raise
        return maps

    def pin(self, directory: SteeringDirectory) -> None:
        """Let a next daemon find them, in place of what is pinned there. Raises OSError."""
        for name in SHAPES:
            directory.pin(self._descriptors[name], name)

    def close(self) -> None:
        """Close the descriptors; the maps live on while they are pinned, or a program has them."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def for_program(self, addresses: int) -> Maps:
        """What a program needs, with a map of addresses."""
        return Maps(addresses, *(self._descriptors[name] for name in (ORDER, SOCKETS, COUNTERS)))

    def names(self) -> dict[str, int]:
        """The frontends that have an index. Raises OSError."""
        found = {index: self._name_at(index) for index in range(MOST_FRONTENDS)}
        return {name.decode(errors="replace"): index for index, name in found.items() if name}

    def begin(self, index: int, name: str) -> None:
        """Give the index to a frontend of which nothing is known. Raises OSError."""
        self._clear(index)
        self._set_name(index, name.encode())

    def end(self, index: int) -> None:
        """Take the index back. Raises OSError."""
        self._clear(index)
        self._set_name(index, b"")

    def order(self, index: int) -> tuple[Role, ...]:
        """The roles that are tried, first to last."""
        return roles_of_word(int.from_bytes(self._value(ORDER, index, _WORD), bpf.BYTE_ORDER))

    def part(self, index: int) -> int:
        """For how many of `WHOLE` connections they are tried in the reverse order."""
        return int.from_bytes(self._value(ORDER, index, _WORD), bpf.BYTE_ORDER) >> PART_AT

    def set_order(self, index: int, order: Iterable[Role], part: int = 0) -> None:
        """Let connections that come from now on try these roles, and `part` of `WHOLE` of them in the reverse order."""
        word = order_word(tuple(order), part).to_bytes(_WORD, bpf.BYTE_ORDER)
        bpf.update(self._descriptors[ORDER], _key(index), word)

    def cookie(self, index: int, role: Role, family: int) -> int | None:
        """SO_COOKIE of the listening socket that clients of the family reach; None: there is none."""
        value = bpf.look_up(self._descriptors[SOCKETS], _key(socket_place(index, role, family)), _LONG)
        return None if value is None else int.from_bytes(value, bpf.BYTE_ORDER)

    def set_socket(self, index: int, role: Role, family: int, descriptor: int) -> None:
        """Let clients of the family reach this listening socket, in place of the one before, at one instant."""
        value = descriptor.to_bytes(_LONG, bpf.BYTE_ORDER)
        bpf.update(self._descriptors[SOCKETS], _key(socket_place(index, role, family)), value)

    def drop_socket(self, index: int, role: Role, family: int) -> None:
        """Let clients of the family reach none, if they do."""
        bpf.delete(self._descriptors[SOCKETS], _key(socket_place(index, role, family)))

    def counter(self, index: int, role: Role | None) -> int:
        """How many lookups a role got; None: how many fell through."""
        return int.from_bytes(self._value(COUNTERS, counter_place(index, role), _LONG), bpf.BYTE_ORDER)

    def _clear(self, index: int) -> None:
        self.set_order(index, ())
        for role in Role:
            for family in (IPV4, IPV6):
                self.drop_socket(index, role, family)
        for counted in (*Role, None):
            bpf.update(self._descriptors[COUNTERS], _key(counter_place(index, counted)), bytes(_LONG))

    def _name_at(self, index: int) -> bytes:
        return self._value(NAMES, index, _NAME_SIZE).rstrip(b"\0")

    def _set_name(self, index: int, name: bytes) -> None:
        bpf.update(self._descriptors[NAMES], _key(index), name.ljust(_NAME_SIZE, b"\0"))

    def _value(self, map_name: str, place: int, size: int) -> bytes:
        value = bpf.look_up(self._descriptors[map_name], _key(place), size)
        assert value is not None, "an array has every index"
        return value


def _key(place: int) -> bytes:
    return place.to_bytes(_WORD, bpf.BYTE_ORDER)
