"""A machine that runs eBPF as the kernel would, as far as our programs go, and refuses what the verifier refuses.

It knows nothing of what a program is for: maps are given by descriptor, and whether a socket fits by a function.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from clojarsd.core.bpf_assembly import ByteOrder

STACK: Final = 512
MOST_STEPS: Final = 10_000
MASK: Final = (1 << 64) - 1


class Broken(AssertionError):
    """The program does what the verifier would have refused."""


@dataclass(frozen=True)
class Pointer:
    """Into the facts of the lookup (`ctx`), the stack, or a value of a map."""

    to: str
    at: int
    value: bytearray | None = None


@dataclass(frozen=True)
class MapPointer:
    descriptor: int


@dataclass(frozen=True)
class Socket:
    """A socket that the program holds a reference to; each lookup gives another one."""

    name: object
    reference: int


Value = int | Pointer | MapPointer | Socket | None


@dataclass
class Machine:
    """One run. Attributes: facts: the words that may be read, by offset; maps: of bytes, or of sockets by bytes.

    assign: what bpf_sk_assign says of a socket, 0 or a negative error.
    chance: what bpf_get_prandom_u32 says.
    """

    program: bytes
    byte_order: ByteOrder
    facts: Mapping[int, int]
    values: Mapping[int, dict[bytes, bytearray]]
    sockets: Mapping[int, Mapping[bytes, object]]
    key_sizes: Mapping[int, int]
    assign: Callable[[object], int]
    chance: int = 0
    assigned: object = None
    steps: int = 0
    _registers: list[Value] = field(default_factory=lambda: [None] * 11)
    _stack: dict[int, int] = field(default_factory=dict)
    _held: set[int] = field(default_factory=set)
    _references: int = 0

    def run(self) -> int:
        """What the program says. Raises Broken."""
        self._registers[1] = Pointer("ctx", 0)
        self._registers[10] = Pointer("stack", 0)
        at = 0
        while True:
            self.steps += 1
            if self.steps > MOST_STEPS or not 0 <= at < len(self.program) // 8:
                raise Broken(f"runs away to {at}")
            code, target, source, offset, number = self._decode(at)
            at += 1
            if code == 0x95:
                if self._held:
                    raise Broken(f"{len(self._held)} references are not released")
                return self._number(0)
            at += self._step(code, target, source, offset, number)

    def _decode(self, at: int) -> tuple[int, int, int, int, int]:
        mark = "<" if self.byte_order == "little" else ">"
        code, registers, offset, number = struct.unpack_from(f"{mark}BBhi", self.program, at * 8)
        low, high = registers & 15, registers >> 4
        return (code, low, high, offset, number) if mark == "<" else (code, high, low, offset, number)

    def _step(self, code: int, target: int, source: int, offset: int, number: int) -> int:
        """Run one instruction; how many of the next ones are left out."""
        kind = code & 7
        if code == 0x18:
            self._set(target, MapPointer(number) if source == 1 else number)
            return 1
        if code == 0x85:
            self._call(number)
        elif kind == 7:
            self._set(target, self._arithmetic(code, target, self._registers[source] if code & 8 else number))
        elif kind == 5:
            return offset if self._jumps(code, target, source, number) else 0
        elif kind == 1:
            self._set(target, self._load(self._registers[source], offset, 8 if code & 0x18 else 4))
        elif code == 0xDB:
            self._add(self._registers[target], offset, self._number(source))
        elif kind in (2, 3) and code & 0xE0 == 0x60:
            stored = number if kind == 2 else self._number(source)
            self._store(self._registers[target], offset, 8 if code & 0x18 else 4, stored & MASK)
        else:
            raise Broken(f"no instruction {code:#x}")
        return 0

    def _arithmetic(self, code: int, target: int, other: Value) -> Value:
        operation, own = code & 0xF0, self._registers[target]
        if other is None:
            raise Broken("reads a register that was never set")
        if operation == 0xB0:
            return other
        if not isinstance(other, int):
            raise Broken("calculates with a pointer")
        if operation == 0x00 and isinstance(own, Pointer) and own.to == "stack":
            return Pointer("stack", own.at + other)
        if not isinstance(own, int):
            raise Broken("calculates with a pointer, or with what was never set")
        calculated = {
            0x00: own + other,
            0x20: own * other,
            0x40: own | other,
            0x50: own & other,
            0x60: own << (other & 63),
            0x70: own >> (other & 63),
        }
        return calculated[operation] & MASK

    def _jumps(self, code: int, target: int, source: int, number: int) -> bool:
        if code == 0x05:
            return True
        own = self._registers[target]
        if own is None:
            raise Broken("asks for a register that was never set")
        if not isinstance(own, int):
            if number != 0 or code not in (0x15, 0x55):
                raise Broken("compares a pointer")
            return code == 0x55
        if code == 0x3D:
            return own >= self._number(source)
        return {0x15: own == number, 0x55: own != number, 0x25: own > number}[code]

    def _load(self, base: Value, offset: int, size: int) -> int:
        if not isinstance(base, Pointer):
            raise Broken("reads from where there is nothing")
        if base.to == "ctx":
            if size != 4 or base.at + offset not in self.facts:
                raise Broken(f"reads {size} bytes of the facts at {base.at + offset}")
            return self.facts[base.at + offset]
        return int.from_bytes(self._bytes(base, base.at + offset, size), self.byte_order)

    def _bytes(self, base: Pointer, at: int, size: int) -> bytes:
        if base.to == "stack":
            if not -STACK <= at <= -size or any(at + part not in self._stack for part in range(size)):
                raise Broken(f"reads {size} bytes of the stack at {at}, which were never set")
            return bytes(self._stack[at + part] for part in range(size))
        assert base.value is not None
        if not 0 <= at <= len(base.value) - size:
            raise Broken("reads beyond a value")
        return bytes(base.value[at : at + size])

    def _store(self, base: Value, offset: int, size: int, stored: int) -> None:
        if not isinstance(base, Pointer) or base.to != "stack":
            raise Broken("writes to where it may not")
        at = base.at + offset
        if not -STACK <= at <= -size or at % size:
            raise Broken(f"writes {size} bytes to the stack at {at}")
        for part, byte in enumerate((stored & ((1 << size * 8) - 1)).to_bytes(size, self.byte_order)):
            self._stack[at + part] = byte

    def _add(self, base: Value, offset: int, number: int) -> None:
        if not isinstance(base, Pointer) or base.value is None or base.at + offset + 8 > len(base.value):
            raise Broken("adds to what is no value of a map")
        sum_ = (int.from_bytes(base.value[offset : offset + 8], self.byte_order) + number) & MASK
        base.value[offset : offset + 8] = sum_.to_bytes(8, self.byte_order)

    def _call(self, helper: int) -> None:
        arguments = self._registers[1:6]
        self._registers[1:6] = [None] * 5
        self._registers[0] = _HELPERS[helper](self, arguments)

    def _look_up(self, arguments: list[Value]) -> Value:
        of, key = arguments[:2]
        if not isinstance(of, MapPointer) or not isinstance(key, Pointer):
            raise Broken("looks up in what is no map")
        wanted = self._bytes(key, key.at, self.key_sizes[of.descriptor])
        if of.descriptor in self.values:
            found = self.values[of.descriptor].get(wanted)
            return 0 if found is None else Pointer("value", 0, found)
        name = self.sockets[of.descriptor].get(wanted)
        if name is None:
            return 0
        self._references += 1
        self._held.add(self._references)
        return Socket(name, self._references)

    def _random(self, arguments: list[Value]) -> int:
        return self.chance

    def _assign(self, arguments: list[Value]) -> int:
        context, socket, flags = arguments[:3]
        if context != Pointer("ctx", 0) or flags != 0 or not isinstance(socket, Socket):
            raise Broken("assigns what is no socket")
        if socket.reference not in self._held:
            raise Broken("assigns a socket that was released")
        said = self.assign(socket.name)
        if said == 0:
            self.assigned = socket.name
        return said & MASK

    def _release(self, arguments: list[Value]) -> int:
        socket = arguments[0]
        if not isinstance(socket, Socket) or socket.reference not in self._held:
            raise Broken("releases what it does not hold")
        self._held.remove(socket.reference)
        return 0

    def _number(self, register: int) -> int:
        value = self._registers[register]
        if not isinstance(value, int):
            raise Broken(f"register {register} is no number")
        return value

    def _set(self, register: int, value: Value) -> None:
        if register == 10 or value is None:
            raise Broken("sets the frame, or from a register that was never set")
        self._registers[register] = value & MASK if isinstance(value, int) else value


_HELPERS: Final[Mapping[int, Callable[[Machine, list[Value]], Value]]] = {
    1: Machine._look_up,
    7: Machine._random,
    86: Machine._release,
    124: Machine._assign,
}
