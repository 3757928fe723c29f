"""bpf(2): maps, programs, links and their pins, each call once and without an opinion.

Descriptors are plain numbers, closed on exec; who gets one closes it. Every function raises OSError as the kernel says.

Source: bpf(2); include/uapi/linux/bpf.h of Linux (union bpf_attr, struct bpf_map_info, struct bpf_link_info).
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import platform
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clojarsd.core.bpf_assembly import ByteOrder

BYTE_ORDER: Final[ByteOrder] = sys.byteorder
_SYSCALLS: Final[Mapping[str, int]] = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "ppc64le": 361,
    "ppc64": 361,
    "s390x": 351,
}
"""The number of bpf(2), by machine, for programs of 64 bits."""
_NUMBER: Final = _SYSCALLS.get(platform.machine()) if sys.maxsize > 2**32 else None
_ON_MAP: Final = struct.Struct("=IxxxxQQQ")
"""What is asked of a map: its descriptor, where the key and the value are, flags."""

_MAP_CREATE: Final = 0
_MAP_LOOKUP: Final = 1
_MAP_UPDATE: Final = 2
_MAP_DELETE: Final = 3
_PROGRAM_LOAD: Final = 5
_PIN: Final = 6
_GET_PINNED: Final = 7
_GET_INFO: Final = 15
_LINK_CREATE: Final = 28
_LINK_UPDATE: Final = 29
_LINK_DETACH: Final = 34
"""Commands of bpf(2)."""

SK_LOOKUP_PROGRAM: Final = 30
SK_LOOKUP_ATTACH: Final = 36
NETNS_LINK: Final = 5
_LOG_SIZE: Final = 256 * 1024
_LICENSE: Final = b"none\0"
"""Nothing is called that only programs under the GPL may call."""

_libc = ctypes.CDLL(None, use_errno=True)


class MapKind(enum.IntEnum):
    """enum bpf_map_type."""

    HASH = 1
    ARRAY = 2
    SOCKETS = 15


@dataclass(frozen=True, slots=True)
class MapShape:
    """What a map is: sizes in bytes, and how many entries have room."""

    kind: int
    key_size: int
    value_size: int
    entries: int


@dataclass(frozen=True, slots=True)
class Link:
    """What a link is. Attributes: kind: enum bpf_link_type; of NETNS_LINK alone: namespace (inode; 0: gone), attach."""

    kind: int
    program: int
    namespace: int
    attach: int


def create_map(shape: MapShape, name: str) -> int:
    """The descriptor of a new map. `name` shows in bpftool: at most 15 letters, digits and underscores."""
    return _bpf(
        _MAP_CREATE,
        struct.pack("=7I16s", shape.kind, shape.key_size, shape.value_size, shape.entries, 0, 0, 0, name.encode()),
    )


def shape_of(descriptor: int) -> MapShape:
    """What the map is. Of something else than a map the answer is another shape than that of any map."""
    kind, _, key_size, value_size, entries = struct.unpack_from("=5I", _info(descriptor, 80))
    return MapShape(kind, key_size, value_size, entries)


def link_of(descriptor: int) -> Link:
    """What the link is."""
    kind, _, program, _, namespace, attach = struct.unpack_from("=6I", _info(descriptor, 32))
    return Link(kind, program, namespace, attach) if kind == NETNS_LINK else Link(kind, program, 0, 0)


def look_up(descriptor: int, key: bytes, value_size: int) -> bytes | None:
    """The value of the key, None if there is none. A map of sockets, with values of 8 bytes, gives SO_COOKIE."""
    try:
        return _on_map(_MAP_LOOKUP, descriptor, key, bytes(value_size))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def update(descriptor: int, key: bytes, value: bytes) -> None:
    """The key gets the value, whether it had one or not, at one instant. Of a map of sockets: a socket's descriptor."""
    _on_map(_MAP_UPDATE, descriptor, key, value)


def delete(descriptor: int, key: bytes) -> bool:
    """The key has no value any more. False: it had none."""
    try:
        _on_map(_MAP_DELETE, descriptor, key, b"")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):  # maps of sockets say EINVAL
            return False
        raise
    return True


def load_lookup_program(program: bytes, name: str) -> int:
    """The descriptor of an sk_lookup program. If the verifier refuses it, what it says is a note of the error."""
    try:
        return _load(program, name, None)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.E2BIG):
            raise
        log = ctypes.create_string_buffer(_LOG_SIZE)
        try:
            return _load(program, name, log)
        except OSError as again:
            said = log.value.decode(errors="replace").strip()
            if said:
                again.add_note(f"the verifier says:\n{said}")
            raise


def attach_lookup(program: int, namespace: int) -> int:
    """The descriptor of a new link: lookups in the network namespace of that descriptor run the program from now on."""
    return _bpf(_LINK_CREATE, struct.pack("=4I", program, namespace, SK_LOOKUP_ATTACH, 0))


def replace_program(link: int, program: int) -> None:
    """Lookups that begin from now on run this program instead: there is none that runs neither, or both."""
    _bpf(_LINK_UPDATE, struct.pack("=4I", link, program, 0, 0))


def detach(link: int) -> None:
    """No lookup runs the program any more, whoever has the link."""
    _bpf(_LINK_DETACH, struct.pack("=I", link))


def pin(descriptor: int, path: Path) -> None:
    """The path, in a BPF file system, keeps the object from now on."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_PIN, struct.pack("=QII", _at(text), descriptor, 0))


def get_pinned(path: Path) -> int:
    """A descriptor of what is pinned there."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_GET_PINNED, struct.pack("=QII", _at(text), 0, 0))


def _load(program: bytes, name: str, log: ctypes.Array[ctypes.c_char] | None) -> int:
    instructions = ctypes.create_string_buffer(program, len(program))
    license_text = ctypes.create_string_buffer(_LICENSE)
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        SK_LOOKUP_PROGRAM,
        len(program) // 8,
        _at(instructions),
        _at(license_text),
        0 if log is None else 1,
        0 if log is None else len(log),
        0 if log is None else _at(log),
        0,
        0,
        name.encode(),
        0,
        SK_LOOKUP_ATTACH,
    )
    return _bpf(_PROGRAM_LOAD, attributes)


def _info(descriptor: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    _bpf(_GET_INFO, struct.pack("=IIQ", descriptor, size, _at(buffer)))
    return buffer.raw


def _on_map(command: int, descriptor: int, key: bytes, value: bytes) -> bytes:
    """The value that the kernel leaves there. All in one buffer, because every planned move is one such call."""
    buffer = ctypes.create_string_buffer(_ON_MAP.size + len(key) + len(value))
    key_at = ctypes.addressof(buffer) + _ON_MAP.size
    has_value = command != _MAP_DELETE
    _ON_MAP.pack_into(buffer, 0, descriptor, key_at, key_at + len(key) if has_value else 0, 0)
    ctypes.memmove(key_at, key + value, len(key) + len(value))
    _call(command, buffer, _ON_MAP.size)
    return buffer.raw[_ON_MAP.size + len(key) :]


def _at(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def _bpf(command: int, attributes: bytes) -> int:
    return _call(command, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes))


def _call(command: int, attributes: ctypes.Array[ctypes.c_char], size: int) -> int:
    if _NUMBER is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result: int = _libc.syscall(_NUMBER, command, attributes, size)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
