from __future__ import annotations

import pytest

from clojarsd.core.bpf_assembly import FARTHEST_JUMP, Assembler, Helper, Register, Width

R0, R1, R2 = Register.R0, Register.R1, Register.R2


def test_each_instruction_has_the_bytes_of_the_instruction_set() -> None:
    """As the kernel's tools show the same instructions."""
    asm = Assembler()
    asm.move(R1, R2)
    asm.move(R1, -1)
    asm.add(R1, 2)
    asm.multiply(R1, 3)
    asm.bits_and(R1, 0xFF)
    asm.bits_or(R1, R2)
    asm.shift_left(R1, 4)
    asm.shift_right(R1, 5)
    asm.load(R1, R2, 8)
    asm.load(R1, R2, 8, Width.DOUBLE)
    asm.store(Register.FRAME, -8, R1)
    asm.store(Register.FRAME, -8, 7, Width.DOUBLE)
    asm.add_atomically(R0, 0, R1)
    asm.load_map(R1, 17)
    asm.call(Helper.SOCKET_ASSIGN)
    asm.leave()
    lines = [asm.assemble("little")[at : at + 8].hex(" ") for at in range(0, 17 * 8, 8)]
    assert lines == [
        "bf 21 00 00 00 00 00 00",
        "b7 01 00 00 ff ff ff ff",
        "07 01 00 00 02 00 00 00",
        "27 01 00 00 03 00 00 00",
        "57 01 00 00 ff 00 00 00",
        "4f 21 00 00 00 00 00 00",
        "67 01 00 00 04 00 00 00",
        "77 01 00 00 05 00 00 00",
        "61 21 08 00 00 00 00 00",
        "79 21 08 00 00 00 00 00",
        "63 1a f8 ff 00 00 00 00",
        "7a 0a f8 ff 07 00 00 00",
        "db 10 00 00 00 00 00 00",
        "18 11 00 00 11 00 00 00",
        "00 00 00 00 00 00 00 00",
        "85 00 00 00 7c 00 00 00",
        "95 00 00 00 00 00 00 00",
    ]


def test_on_a_big_endian_machine_registers_and_numbers_change_their_halves() -> None:
    asm = Assembler()
    asm.load(R1, R2, 8)
    asm.move(R1, 0x01020304)
    assert asm.assemble("big").hex(" ") == "61 12 00 08 00 00 00 00 b7 10 00 00 01 02 03 04"


def test_a_jump_counts_from_the_instruction_behind_it_in_both_directions() -> None:
    asm = Assembler()
    asm.label("above")
    asm.jump_if_equal(R1, 1, "below")
    asm.jump_unless_equal(R1, 2, "above")
    asm.jump_if_above(R1, 3, "below")
    asm.jump_unless_below(R1, R2, "below")
    asm.jump("above")
    asm.label("below")
    asm.leave()
    lines = [asm.assemble("little")[at : at + 8].hex(" ") for at in range(0, 40, 8)]
    assert lines == [
        "15 01 04 00 01 00 00 00",
        "55 01 fe ff 02 00 00 00",
        "25 01 02 00 03 00 00 00",
        "3d 21 01 00 00 00 00 00",
        "05 00 fb ff 00 00 00 00",
    ]


def test_a_jump_to_nowhere_is_refused() -> None:
    asm = Assembler()
    asm.jump("nowhere")
    with pytest.raises(ValueError, match="no label nowhere"):
        asm.assemble("little")


def test_a_label_that_is_there_twice_is_refused() -> None:
    asm = Assembler()
    asm.label("here")
    with pytest.raises(ValueError, match="label here is there twice"):
        asm.label("here")


def test_a_jump_that_is_too_far_is_refused() -> None:
    asm = Assembler()
    asm.jump("far")
    for _ in range(FARTHEST_JUMP + 1):
        asm.move(R0, 0)
    asm.label("far")
    asm.leave()
    with pytest.raises(ValueError, match=r"label far is 32768 instructions away \(at most 32767\)"):
        asm.assemble("little")
