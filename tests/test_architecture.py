"""Imports point one way, and decisions do no I/O."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "clojarsd"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = ("core", "system", "runtime", "daemon", "__main__")
"""From the inside out: a module may import its own layer's or an inner one's; `ctl` may import `core` alone."""
IMPURE = {"asyncio", "os", "socket", "time", "random", "structlog", "subprocess", "threading", "select"}
TOP = {
    "parts": "daemon",
    "traffic_parts": "daemon",
    "notify_parts": "daemon",
    "rollout_parts": "daemon",
    "jvm_parts": "daemon",
    "commands": "__main__",
    "demo": "__main__",
    "relay_process": "__main__",
    "__init__": "core",
}
"""Modules beside `daemon.py` and the layer they belong to."""


def layer_of(parts: tuple[str, ...]) -> str:
    """The layer of a module named by its path below the package, without `.py`."""
    head = parts[0]
    return TOP.get(head, head)


def imports_of(path: Path) -> set[str]:
    """Every module that the file imports, dotted, wherever in the file the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "clojarsd")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_inward(path: Path) -> None:
    here = layer_of(path.relative_to(PACKAGE).with_suffix("").parts)
    for name in imports_of(path):
        if not name.startswith("clojarsd."):
            continue
        there = layer_of(tuple(name.split(".")[1:]))
        if here == "ctl" or there == "ctl":
            assert here == "ctl", f"{path} imports {name}"
            assert there in {"core", "ctl"}, f"{path} imports {name}"
        else:
            assert LAYERS.index(there) <= LAYERS.index(here), f"{path} imports {name}"


@pytest.mark.parametrize("path", [path for path in MODULES if "core" in path.parts], ids=lambda path: path.name)
def test_core_does_no_io(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports_of(path)}
    assert not tops & IMPURE, f"{path} imports {tops & IMPURE}"
    assert "async def" not in path.read_text()


def test_folders_are_two_deep() -> None:
    assert all(len(path.relative_to(PACKAGE).parts) <= 2 for path in MODULES)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "split it by idea"
