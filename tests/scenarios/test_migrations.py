"""The gate for migrations that the guide shows: when it runs, what it finds, and that nothing runs on the way back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from clojarsd.core.settings import parse_settings
from tests.scenarios.test_first_release import SCRIPT, pair_of_releases, switch
from tests.support.pair import CHECKOUT, Pair

pytestmark = pytest.mark.slow

GUIDE = (CHECKOUT / "docs" / "deploy.md").read_text()
LEAST = """
[instances.primary]
ports = { http = 8001 }
[instances.backup]
ports = { http = 8002 }
"""


def blocks(kind: str) -> list[str]:
    """The examples of that kind in the guide."""
    return re.findall(rf"^```{kind}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def test_the_examples_of_the_guide_are_a_configuration() -> None:
    begin, gates = blocks("toml")
    settings = parse_settings(begin + gates.replace("[deploy]\n", "") + LEAST, "docs/deploy.md")
    assert settings.deploy is not None
    assert settings.deploy.before_switch == (("/usr/local/bin/migrate", "{release}"),)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A pair whose `migrate` is the guide's, with a Java that writes down what it is asked."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "migrate").write_text(blocks("sh")[0])
    (tools / "java").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/database\n')
    (tools / "smoke").write_text('#!/bin/sh\n! grep -q bad "$1"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    more = f"""soak = "0s"
before_switch = [["{tools}/migrate", "{{release}}"]]
smoke = ["{tools}/smoke", "{{release}}"]
environment = {{ PATH = "{tools}:/usr/bin:/bin" }}
"""
    running = pair_of_releases(tmp_path)
    running.backup_extra += more
    switch(running, "0.py")
    with running:
        yield running


def deploy(pair: Pair, name: str, comment: str = "") -> tuple[int, str]:
    artifact = pair.home / name
    artifact.write_text(f"# {comment}\n{SCRIPT}")
    finished = pair.ctl("deploy", "--artifact", str(artifact), "--yes")
    return finished.returncode, finished.stderr


def test_the_database_is_expanded_before_anybody_runs_the_release_and_never_taken_back(pair: Pair) -> None:
    database, releases = pair.home / "database", pair.home / "releases"
    code, said = deploy(pair, "1.py")
    assert code == 0, said
    assert database.read_text().splitlines() == [f"-cp {releases}/1.py clojars.migrate expand"]
    code, said = deploy(pair, "2.py", "bad")
    assert code == 1
    assert "running smoke" in said
    assert "are back at 1.py" in said
    assert database.read_text().splitlines()[1:] == [f"-cp {releases}/2.py clojars.migrate expand"]
    assert [one["release"] for one in pair.status()["instances"].values()] == ["1.py", "1.py"]
    back = pair.ctl("rollback", "--yes")
    assert back.returncode == 0, back.stderr
    assert "rollback: the database stays as it is" in back.stderr
    assert len(database.read_text().splitlines()) == 2
    assert [one["release"] for one in pair.status()["instances"].values()] == ["0.py", "0.py"]
