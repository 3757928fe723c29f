"""The command `clojarsd` as a process: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from clojarsd.core.saved import as_json
from tests.support.pair import CHECKOUT
from tests.support.saved import a_pair
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

GOOD = """
[app]
command = ["serve"]
[instances.primary]
ports = { http = 8001 }
[instances.backup]
ports = { http = 8002 }
"""
BAD = """
[app]
command = ["serve"]
restart = "sometimes"
stop_timeout = 5
[instances.primary]
ports = { http = 8001 }
[instances.backup]
ports = { http = 8001 }
"""


def clojarsd(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clojarsd", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.toml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.toml"
    path.write_text(BAD)
    return path


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_good_configuration_is_said_to_be_so(good: Path, order: str) -> None:
    done = clojarsd("-c", good, "check") if order == "before" else clojarsd("check", "-c", good)
    assert (done.returncode, done.stdout) == (0, f"{good}: good\n")
    assert all(line.startswith(f"{good}: ") for line in done.stderr.splitlines()), "only what has no effect yet"


def test_the_nearer_option_counts(good: Path, bad: Path) -> None:
    assert clojarsd("-c", bad, "check", "-c", good).returncode == 0


@pytest.mark.parametrize("words", [("check", "-c"), ("-c",), ("--config",)])
def test_a_bad_configuration_is_refused_with_every_problem(bad: Path, words: tuple[str, ...]) -> None:
    """Whether it is only checked or was to be run."""
    done = clojarsd(*words, bad)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{bad}: ") for line in lines)
    for key in ("app.restart: ", "app.stop_timeout: 5: a duration needs a unit", "instances.backup.ports.http: 8001: "):
        assert any(line.startswith(f"{bad}: {key}") for line in lines), done.stderr


def test_a_missing_configuration_is_one_line(tmp_path: Path) -> None:
    done = clojarsd("check", "-c", tmp_path / "x.toml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path}/x.toml: no such file (clojarsd -c FILE names another)\n"


def test_a_state_that_could_be_taken_over_is_said_to_be_so_last(good: Path, tmp_path: Path) -> None:
    """That line is what a daemon that is to be replaced looks for."""
    state = tmp_path / "state.json"
    state.write_text(json.dumps(as_json(a_pair())))
    done = clojarsd("check", "-c", good, "--take-over", state)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [f"{good}: good", f"can take over: {version('clojarsd')}"],
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"format": 99}', "it has format 99, and this version knows 1"),
        ('{"format": 1, "ser', "state.json"),
    ],
)
def test_a_state_that_could_not_be_taken_over_is_one_sentence(
    good: Path, tmp_path: Path, text: str, sentence: str
) -> None:
    state = tmp_path / "state.json"
    state.write_text(text)
    done = clojarsd("check", "-c", good, "--take-over", state)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("clojarsd: ")
    assert sentence in line
    assert state.read_text() == text


def test_the_shipped_configuration_is_good() -> None:
    assert clojarsd("check", "-c", CHECKOUT / "etc/clojarsd.toml").returncode == 0


def test_a_group_that_this_machine_has_not_is_told_and_the_configuration_is_good(good: Path) -> None:
    """It may be meant for another machine."""
    good.write_text(good.read_text().replace("[app]\n", '[app]\nsupplementary_groups = ["nosuchgrp"]\n'))
    done = clojarsd("check", "-c", good)
    assert (done.returncode, done.stdout) == (0, f"{good}: good\n")
    sentence = "supplementary_groups: nosuchgrp: no such group on this machine; primary cannot start here"
    assert f"{good}: instances.primary.{sentence}" in done.stderr.splitlines()


def test_a_daemon_that_cannot_begin_says_so_in_one_sentence(good: Path, tmp_path: Path) -> None:
    good.write_text(GOOD + '[service]\nuser = "no-such-user"\n')
    done = clojarsd("-c", good)
    assert done.returncode == 1
    assert done.stderr == (
        "clojarsd: cannot run instances as no-such-user: no such user on this machine; nothing was started;"
        " set service.user\n"
    )


def test_help_names_every_command() -> None:
    done = clojarsd("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: clojarsd [OPTIONS] ")
    for word in ("check", "demo", "-c, --config", "/etc/clojarsd.toml", "clojarsctl"):
        assert word in done.stdout


def test_the_version() -> None:
    done = clojarsd("--version")
    assert (done.returncode, done.stdout) == (0, f"clojarsd, version {version('clojarsd')}\n")


@pytest.mark.parametrize("words", [("--frob",), ("frob",), ("check", "--frob"), ("demo", "x")])
def test_what_is_not_understood_is_usage(words: tuple[str, ...]) -> None:
    done = clojarsd(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: clojarsd ")


def test_an_option_without_its_value_is_usage() -> None:
    done = clojarsd("-c")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "Error: Option '-c' requires an argument.\n")


def test_the_daemon_is_without_what_it_never_draws() -> None:
    """structlog imports rich where it can be had: memory that a daemon keeps for ever."""
    program = (
        "import sys, click\n"
        "sys.argv = ['clojarsd', '--help']\n"
        "from clojarsd.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "import clojarsd.daemon\n"
        "print(sorted(name for name in ('rich.console', 'pygments') if name in sys.modules))\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
