"""Which source a process of ours runs: a digest over a module and all that it imports from this package."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
_NAME = re.compile(rf"\b{PACKAGE.name}(?:\.\w+)+")
_FROM = re.compile(rf"^\s*from ({PACKAGE.name}[\w.]*) import ([\w, ]+)", re.MULTILINE)


def digest_of(module: str) -> str:
    """The digest of the module's source as it stands on disk now, and of the modules of this package that it names.

    Every module that is imported is named. Names are searched for in the text: `ast.parse` fails now and then in
    Python 3.11 when the collector runs within it ("recursion depth mismatch").

    Args:
        module: a dotted name below `clojarsd`.

    Raises:
        OSError: a file of it cannot be read.
    """
    found: dict[str, bytes] = {}
    wanted = [module]
    while wanted:
        name = wanted.pop()
        path = _path_of(name)
        if name in found or path is None:
            continue
        found[name] = path.read_bytes()
        wanted += _named_in(found[name].decode())
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name} {len(found[name])}\n".encode() + found[name])
    return digest.hexdigest()[:16]


def _path_of(name: str) -> Path | None:
    """The file of a module of this package; None for what is none."""
    parts = name.split(".")
    path = PACKAGE.joinpath(*parts[1:]).with_suffix(".py")
    return path if parts[0] == PACKAGE.name and len(parts) > 1 and path.is_file() else None


def _named_in(text: str) -> list[str]:
    """The dotted names of this package in the text, also those that an import has put together."""
    names = _NAME.findall(text)
    for module, imported in _FROM.findall(text):
        names += [f"{module}.{name.split()[0]}" for name in imported.split(",") if name.strip()]
    return names
