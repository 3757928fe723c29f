"""A small assembler for eBPF: named instructions and labels in, the bytes that the kernel loads out.

Pure, and for either byte order: registers share a byte whose halves change places; offsets and numbers are the
machine's.

Source: Documentation/bpf/standardization/instruction-set.rst of Linux.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, replace
from typing import Final, Literal

ByteOrder = Literal["little", "big"]

FARTHEST_JUMP: Final = 32767
"""Instructions; the offset of a jump is a signed number of 16 bits."""


class Register(enum.IntEnum):
    """R0 is a call's result, R1 to R5 are its arguments and lost by it, R6 to R9 are kept, FRAME is the stack's top."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    FRAME = 10


class Width(enum.IntEnum):
    """How much of memory an instruction moves."""

    WORD = 0x00
    """4 bytes"""
    DOUBLE = 0x18
    """8 bytes"""


class Helper(enum.IntEnum):
    """The kernel's functions that are called here."""

    MAP_LOOKUP = 1
    RANDOM = 7
    SOCKET_RELEASE = 86
    SOCKET_ASSIGN = 124


@dataclass(frozen=True, slots=True)
class Instruction:
    """Eight bytes of a program. `label` is where it jumps to, until that is known as `offset`."""

    code: int
    target: int = 0
    source: int = 0
    offset: int = 0
    number: int = 0
    label: str | None = None

    def encode(self, byte_order: ByteOrder) -> bytes:
        """The bytes, as a machine of that order wants them."""
        if byte_order == "little":
            return struct.pack("<BBhi", self.code, self.source << 4 | self.target, self.offset, self.number)
        return struct.pack(">BBhi", self.code, self.target << 4 | self.source, self.offset, self.number)


class Assembler:
    """A program that grows by one instruction with each call."""

    def __init__(self) -> None:
        self._instructions: list[Instruction] = []
        self._labels: dict[str, int] = {}

    def assemble(self, byte_order: ByteOrder) -> bytes:
        """The program.

        Raises:
            ValueError: a jump leads to no label, or farther than it can.
        """
        return b"".join(
            self._placed(instruction, place).encode(byte_order) for place, instruction in enumerate(self._instructions)
        )

    def _placed(self, instruction: Instruction, place: int) -> Instruction:
        if instruction.label is None:
            return instruction
        if instruction.label not in self._labels:
            raise ValueError(f"no label {instruction.label}")
        offset = self._labels[instruction.label] - place - 1
        if abs(offset) > FARTHEST_JUMP:
            raise ValueError(f"label {instruction.label} is {offset} instructions away (at most {FARTHEST_JUMP})")
        return replace(instruction, offset=offset)

    def label(self, name: str) -> None:
        """The next instruction is what jumps to this name reach. Raises ValueError: the name is taken."""
        if name in self._labels:
            raise ValueError(f"label {name} is there twice")
        self._labels[name] = len(self._instructions)

    def move(self, target: Register, source: Register | int) -> None:
        """Target becomes source."""
        self._arithmetic(0xB0, target, source)

    def add(self, target: Register, source: Register | int) -> None:
        """Target grows by source."""
        self._arithmetic(0x00, target, source)

    def multiply(self, target: Register, source: Register | int) -> None:
        """Target is multiplied by source."""
        self._arithmetic(0x20, target, source)

    def bits_and(self, target: Register, source: Register | int) -> None:
        """Target keeps the bits that source has too."""
        self._arithmetic(0x50, target, source)

    def bits_or(self, target: Register, source: Register | int) -> None:
        """Target gets the bits of source besides its own."""
        self._arithmetic(0x40, target, source)

    def shift_left(self, target: Register, bits: int) -> None:
        """Target is moved up by that many bits."""
        self._arithmetic(0x60, target, bits)

    def shift_right(self, target: Register, bits: int) -> None:
        """Target is moved down by that many bits; zeros come in."""
        self._arithmetic(0x70, target, bits)

    def load(self, target: Register, base: Register, offset: int, width: Width = Width.WORD) -> None:
        """Target becomes what is in memory at base + offset."""
        self._add(0x61 | width, target, base, offset)

    def store(self, base: Register, offset: int, source: Register | int, width: Width = Width.WORD) -> None:
        """Memory at base + offset becomes source."""
        if isinstance(source, Register):
            self._add(0x63 | width, base, source, offset)
        else:
            self._add(0x62 | width, base, offset=offset, number=source)

    def add_atomically(self, base: Register, offset: int, source: Register) -> None:
        """The 8 bytes in memory at base + offset grow by source, also when other processors do the same."""
        self._add(0xC3 | Width.DOUBLE, base, source, offset)

    def load_map(self, target: Register, descriptor: int) -> None:
        """Target becomes the map of which the loading process has this descriptor. Takes the place of two."""
        self._add(0x18, target, 1, number=descriptor)
        self._add(0x00)

    def jump(self, label: str) -> None:
        """Go on at the label."""
        self._add(0x05, label=label)

    def jump_if_equal(self, one: Register, other: int, label: str) -> None:
        """Go on at the label if the register is that number."""
        self._add(0x15, one, number=other, label=label)

    def jump_unless_equal(self, one: Register, other: int, label: str) -> None:
        """Go on at the label if the register is another number."""
        self._add(0x55, one, number=other, label=label)

    def jump_if_above(self, one: Register, other: int, label: str) -> None:
        """Go on at the label if the register, without a sign, is more than that number."""
        self._add(0x25, one, number=other, label=label)

    def jump_unless_below(self, one: Register, other: Register, label: str) -> None:
        """Go on at the label if the one register, without a sign, is at least the other."""
        self._add(0x3D, one, other, label=label)

    def call(self, helper: Helper) -> None:
        """R0 becomes what the kernel's function says of R1 to R5."""
        self._add(0x85, number=helper)

    def leave(self) -> None:
        """The program ends; its answer is R0."""
        self._add(0x95)

    def _arithmetic(self, operation: int, target: Register, source: Register | int) -> None:
        if isinstance(source, Register):
            self._add(operation | 0x0F, target, source)
        else:
            self._add(operation | 0x07, target, number=source)

    def _add(
        self, code: int, target: int = 0, source: int = 0, offset: int = 0, number: int = 0, label: str | None = None
    ) -> None:
        self._instructions.append(Instruction(code, target, source, offset, number, label))
