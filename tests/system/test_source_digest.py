"""The digest of a program's source changes with what it runs, and with nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clojarsd.system import source_digest as module
from clojarsd.system.source_digest import digest_of


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in which `a` imports `b.c`, which imports `b.d` within a function; `e` stands alone."""
    root = tmp_path / "clojarsd"
    (root / "b").mkdir(parents=True)
    (root / "a.py").write_text("import clojarsd.b.c\n")
    (root / "b" / "c.py").write_text("def x():\n    from clojarsd.b import other, d\n")
    (root / "b" / "d.py").write_text("import clojarsd.a\n")
    (root / "e.py").write_text("")
    monkeypatch.setattr(module, "PACKAGE", root)
    return root


@pytest.mark.parametrize("path", ["a.py", "b/c.py", "b/d.py"])
def test_it_changes_with_each_module_that_is_run(package: Path, path: str) -> None:
    before = digest_of("clojarsd.a")
    with (package / path).open("a") as file:
        file.write("# new\n")
    assert digest_of("clojarsd.a") != before


def test_it_does_not_change_with_others(package: Path) -> None:
    before = digest_of("clojarsd.a")
    (package / "e.py").write_text("# new\n")
    assert digest_of("clojarsd.a") == before


def test_it_covers_all_of_ours_that_the_relay_process_imports() -> None:
    program = "import sys, clojarsd.relay_process; print(*[m for m in sys.modules if m.startswith('clojarsd.')])"
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    files = {name for name in imported if (module._path_of(name)) is not None}
    covered: set[str] = set()
    wanted = ["clojarsd.relay_process"]
    while wanted:
        name = wanted.pop()
        path = module._path_of(name)
        if path is not None and name not in covered:
            covered.add(name)
            wanted += module._named_in(path.read_text())
    assert files <= covered
    assert len(files) > 20


def test_the_relay_process_does_without_what_takes_much_memory() -> None:
    program = "import sys, clojarsd.relay_process; print(*[m for m in sys.modules if sys.modules[m]])"
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    too_much = {"ssl", "rich", "uvloop", "psutil", "pydantic", "aiohttp", "click", "sqlite3"}
    assert not too_much & set(imported)
