"""bpf(2) of this machine's kernel."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from clojarsd.core.bpf_assembly import Assembler, Register
from clojarsd.system import bpf
from clojarsd.system.bpf import BYTE_ORDER, MapKind, MapShape
from tests.support.namespaces import BPF_FS, apart, new_network
from tests.support.steered import listening

ARRAY = MapShape(MapKind.ARRAY, 4, 8, 3)
HASH = MapShape(MapKind.HASH, 24, 4, 2)
SOCKETS = MapShape(MapKind.SOCKETS, 4, 8, 2)


@contextmanager
def made(shape: MapShape) -> Iterator[int]:
    descriptor = bpf.create_map(shape, "clojarsd_test")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def says(number: int) -> bytes:
    asm = Assembler()
    asm.move(Register.R0, number)
    asm.leave()
    return asm.assemble(BYTE_ORDER)


@apart
def test_a_map_is_what_it_was_made_as_and_its_descriptor_is_closed_on_exec() -> None:
    for shape in (ARRAY, HASH, SOCKETS):
        with made(shape) as descriptor:
            assert bpf.shape_of(descriptor) == shape
            assert not os.get_inheritable(descriptor)


@apart
def test_values_are_found_replaced_and_deleted() -> None:
    with made(HASH) as descriptor:
        key = bytes(range(24))
        assert bpf.look_up(descriptor, key, 4) is None
        for value in (b"1234", b"5678"):
            bpf.update(descriptor, key, value)
            assert bpf.look_up(descriptor, key, 4) == value
        assert bpf.delete(descriptor, key)
        assert not bpf.delete(descriptor, key)
        assert bpf.look_up(descriptor, key, 4) is None


@apart
def test_a_map_that_is_full_says_so() -> None:
    with made(HASH) as descriptor:
        for number in range(2):
            bpf.update(descriptor, bytes([number]) * 24, b"1234")
        with pytest.raises(OSError, match=os.strerror(errno.E2BIG)):
            bpf.update(descriptor, b"x" * 24, b"1234")


@apart
def test_a_listening_socket_is_known_by_its_cookie_and_leaves_when_it_is_closed() -> None:
    key = (1).to_bytes(4, BYTE_ORDER)
    with made(SOCKETS) as descriptor, listening() as one:
        assert not bpf.delete(descriptor, key)
        bpf.update(descriptor, key, one.fileno().to_bytes(8, BYTE_ORDER))
        cookie = one.getsockopt(socket.SOL_SOCKET, 57, 8)
        assert bpf.look_up(descriptor, key, 8) == cookie
        one.close()
        assert bpf.look_up(descriptor, key, 8) is None


@apart
def test_what_is_pinned_is_the_same_object_for_whoever_opens_it() -> None:
    with made(ARRAY) as descriptor:
        bpf.pin(descriptor, BPF_FS / "numbers")
        bpf.update(descriptor, bytes(4), b"12345678")
    again = bpf.get_pinned(BPF_FS / "numbers")
    try:
        assert bpf.look_up(again, bytes(4), 8) == b"12345678"
    finally:
        os.close(again)
    with pytest.raises(FileNotFoundError):
        bpf.get_pinned(BPF_FS / "nothing")


@apart
def test_a_link_runs_a_program_until_it_is_replaced_or_detached() -> None:
    """A program that says SK_DROP refuses connections; one that says SK_PASS does not."""
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    with listening() as one:
        address = one.getsockname()
        drops, passes = (bpf.load_lookup_program(says(number), "clojarsd_test") for number in (0, 1))
        link = bpf.attach_lookup(drops, namespace)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        inode = os.fstat(namespace).st_ino
        seen = bpf.link_of(link)
        assert (seen.kind, seen.namespace, seen.attach) == (bpf.NETNS_LINK, inode, bpf.SK_LOOKUP_ATTACH)
        bpf.replace_program(link, passes)
        socket.create_connection(address).close()
        assert bpf.link_of(link).program != seen.program
        bpf.replace_program(link, drops)
        bpf.detach(link)
        socket.create_connection(address).close()
        assert bpf.link_of(link).namespace == 0
        for descriptor in (namespace, drops, passes, link):
            os.close(descriptor)


@apart
def test_a_link_of_another_network_namespace_says_so() -> None:
    program = bpf.load_lookup_program(says(1), "clojarsd_test")
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    link = bpf.attach_lookup(program, namespace)
    new_network()
    assert bpf.link_of(link).namespace == os.fstat(namespace).st_ino
    assert bpf.link_of(link).namespace != os.stat("/proc/self/ns/net").st_ino
    for descriptor in (namespace, program, link):
        os.close(descriptor)


@apart
def test_a_program_that_the_verifier_refuses_comes_back_with_what_it_says() -> None:
    asm = Assembler()
    asm.move(Register.R0, Register.R5)
    asm.leave()
    with pytest.raises(PermissionError) as refused:
        bpf.load_lookup_program(asm.assemble(BYTE_ORDER), "clojarsd_test")
    (note,) = refused.value.__notes__
    assert note.startswith("the verifier says:\n")
    assert "R5 !read_ok" in note
