"""The files around the code agree with each other: versions, lock, Makefile, unit, set-up."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
PINNED = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ]+)(?P<marker> ; .*?)? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


def locked() -> dict[str, Version]:
    """The version of each package in the lock."""
    found = [PINNED.match(line) for line in LOCK.splitlines()]
    return {match["name"]: Version(match["version"]) for match in found if match}


def wanted() -> list[Requirement]:
    """What the project asks for: to run, to be developed and to be built."""
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras, *PROJECT["build-system"]["requires"]]]


@pytest.mark.parametrize("requirement", wanted(), ids=str)
def test_the_lock_has_a_version_that_the_project_accepts(requirement: Requirement) -> None:
    version = locked().get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement.name} is not locked: run `make lock`"
    assert requirement.specifier.contains(version), f"{version} is locked: run `make lock`"


def test_every_locked_version_has_hashes() -> None:
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        assert PINNED.match(line) or HASH.match(line), line
        assert not line.endswith("\\") or HASH.match(following), f"{line} has no hash"


def test_the_lock_names_no_address() -> None:
    """Where packages come from is a matter of the machine that installs them."""
    assert "://" not in LOCK
    assert not [line for line in LOCK.splitlines() if line.startswith("-")]


@pytest.mark.parametrize("target", ["help", "demo", "test", "check", "lint", "bench", "lock", "clean"])
def test_the_makefile_has_the_target(target: str) -> None:
    asked = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr


@pytest.mark.parametrize("name", ["tools/setup", "tools/lock", "tools/install", ".ci/run"])
def test_a_script_can_be_run_and_is_well_formed(name: str) -> None:
    script = ROOT / name
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False).returncode == 0


def test_ci_requires_what_is_skipped_elsewhere() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert "export CLOJARSD_REQUIRE_REAL=1" in text
    assert "make --no-print-directory test" in text


def test_set_up_says_how_it_is_called() -> None:
    asked = subprocess.run(["bash", str(ROOT / "tools" / "setup")], capture_output=True, text=True, check=False)
    assert asked.returncode == 2
    assert "tools/setup demo|test|bench|lint" in asked.stderr


def test_the_changelog_tells_of_the_version() -> None:
    version = re.escape(PROJECT["project"]["version"])
    assert re.search(rf"^## \[?{version}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_readme_names_both_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text


def test_the_unit_makes_the_directories_of_the_default_configuration() -> None:
    """systemd makes and owns what etc/clojarsd.toml names."""
    service = tomllib.loads((ROOT / "etc" / "clojarsd.toml").read_text())["service"]
    unit = (ROOT / "systemd" / "clojarsd.service").read_text().splitlines()
    for key, setting, parent in [
        ("runtime_dir", "RuntimeDirectory", "/run"),
        ("state_dir", "StateDirectory", "/var/lib"),
        ("log_dir", "LogsDirectory", "/var/log"),
    ]:
        assert f"{setting}={Path(service[key]).relative_to(parent)}" in unit


def test_the_script_that_sweeps_after_a_stop_can_run() -> None:
    script = ROOT / "systemd" / "stop-post"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["/bin/sh", "-n", str(script)], capture_output=True, check=False).stderr == b""
