"""The kinds of value that say in what surroundings a process runs: CPUs, memory, groups, control groups.

Each does its own checking and raises ValueError in our words, as those of `settings_types` do.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, BeforeValidator

from clojarsd.core.quantities import longer_than_zero, parse_duration, parse_size, size_text
from clojarsd.core.settings_problems import word_text
from clojarsd.core.settings_types import Account, Read, a_list, a_table, parse_path, whole_number

H = TypeVar("H", bound=Hashable)

NEVER: Final = "never"
"""What stands for a duration that does not end: None."""
NO_MEMORY_LIMIT: Final = "unlimited"
"""What stands for a size that is not limited: None."""
NO_CHROOT: Final = Path("/")
"""The root directory that every process has, so that an instance can take back what `[app]` gives."""

_LEAST_MEMORY: Final = 16 * 1024**2
_MOST_CPUS: Final = 8192
"""NR_CPUS of the largest kernels."""
_CGROUP_FILE: Final = re.compile(r"[a-z][a-z0-9_]*(?:\.[A-Za-z0-9_]+)+")
_CGROUP_HINT: Final = "CONTROLLER.FILE, such as memory.max, cpu.max, cpu.weight, pids.max, io.weight"


def _or_never(value: object) -> float | None:
    return None if value == NEVER else longer_than_zero(parse_duration(value))


def _memory(value: object) -> int | None:
    if value == NO_MEMORY_LIMIT:
        return None
    size = parse_size(value)
    if size < _LEAST_MEMORY:
        raise ValueError(
            f'is too little for any instance (at least {size_text(_LEAST_MEMORY)}, or "{NO_MEMORY_LIMIT}")'
        )
    return size


def _chroot(value: object) -> Path | None:
    path = parse_path(value)
    return None if path == NO_CHROOT else path


def _no_doubles(values: tuple[H, ...]) -> tuple[H, ...]:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"names {value} twice (each once)")
    return values


def _cgroup_file(value: object) -> str:
    text = str(value)
    if text.startswith("cgroup."):
        raise ValueError(f"is a file by which groups themselves are run, which clojarsd does ({_CGROUP_HINT})")
    if _CGROUP_FILE.fullmatch(text) is None:
        raise ValueError(f"is not a file of a control group ({_CGROUP_HINT})")
    return text


def _cgroup_value(value: object) -> str:
    """What is written into the file: a size becomes its bytes, because the kernel does not know `2GiB`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if not isinstance(value, str) or not value:
        raise ValueError('is not a value for a control group (a whole number from 0, or text, such as "2GiB" or "max")')
    if not value.isprintable():
        raise ValueError(f"{word_text(value)} is more than a line of plain text (one line)")
    try:
        return str(parse_size(value))
    except ValueError:
        return value


Watchdog = Annotated[float | None, Read(_or_never)]
RestartAfter = Watchdog
DurationOrNever = Watchdog
MemoryMax = Annotated[int | None, Read(_memory)]
RelayWorkers = Annotated[int, whole_number(1, 16)]
Chroot = Annotated[Path | None, Read(_chroot)]
CpuNumbers = Annotated[
    tuple[Annotated[int, whole_number(0, _MOST_CPUS - 1)], ...],
    BeforeValidator(a_list("a list of CPU numbers (such as [0, 1])")),
    AfterValidator(_no_doubles),
]
Groups = Annotated[
    tuple[Account, ...],
    BeforeValidator(a_list('a list of groups (such as ["ssl-cert", "adm"])')),
    AfterValidator(_no_doubles),
]
CgroupFiles = Annotated[
    Mapping[Annotated[str, Read(_cgroup_file)], Annotated[str, Read(_cgroup_value)]],
    BeforeValidator(a_table('{ "memory.max" = "2GiB", "pids.max" = 4096 }')),
]
