"""The recipes of docs/deploy-recipes.md: project and commands out of the document, from a tag to a jar that runs."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clojarsd.system.acting_as import Actor
from clojarsd.system.artifact import find_artifact
from clojarsd.system.build_command import CommandOutcome
from clojarsd.system.checkout import Checkouts
from clojarsd.system.git import Git
from clojarsd.system.rollout_family import find_rollout
from tests.support.builds import GROUP, IS_ROOT, USER, Room, room_for_builds
from tests.support.real import unavailable
from tests.support.repositories import Repository
from tests.support.waiting import PATIENCE, until

TEXT = (Path(__file__).parent.parent.parent / "docs" / "deploy-recipes.md").read_text()
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
FILE = re.compile(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAVEN_PLUGINS = ("compiler", "resources", "jar", "surefire")
REPOSITORY = Path("/usr/share/maven-repo")

pytestmark = [pytest.mark.slow, pytest.mark.real]


@dataclass(frozen=True)
class Recipe:
    """files: of the project, by path; tables: each `[deploy]` of the section."""

    files: dict[str, str]
    tables: list[dict[str, Any]]


def recipes() -> dict[str, Recipe]:
    parts = SECTION.split(TEXT)[1:]
    return {
        title: Recipe(dict(FILE.findall(text)), [tomllib.loads(found)["deploy"] for found in TOML.findall(text)])
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


ALL = recipes()
PLAIN_CLOJURE = "Clojure without any build tool"
TOOLS = "Clojure's own tools: `clj -T:build`"
RUN = {"Leiningen": "lein", PLAIN_CLOJURE: "java", "Maven": "mvn", "A script of your own": "javac"}
"""What the recipes need that run here."""


def project_of(title: str) -> dict[str, str]:
    return ALL[TOOLS if title == PLAIN_CLOJURE else title].files


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with room_for_builds(tmp_path) as made:
        yield made


def see_that_it_can_run(title: str) -> None:
    if shutil.which(RUN[title]) is None:
        unavailable(f"there is no {RUN[title]} here")
    if title == "Maven" and not all(
        (REPOSITORY / "org/apache/maven/plugins" / f"maven-{name}-plugin").is_dir() for name in MAVEN_PLUGINS
    ):
        unavailable("Debian's packages of Maven plugins are not here")
    if title == PLAIN_CLOJURE and not Path("/usr/share/java/clojure.jar").exists():
        unavailable("there is no libclojure-java here")


async def check_out(room: Room, files: dict[str, str]) -> Path:
    repository = Repository(room.home / "repository")
    for name, text in files.items():
        (repository.path / name).parent.mkdir(parents=True, exist_ok=True)
        (repository.path / name).write_text(text)
    commit = repository.commit("all of it")
    repository.tag("1.0.0")
    directory = room.home / "20261128-212345"
    git = Git(room.builder(), str(repository.path), "checkout", PATIENCE)
    await Checkouts(git, room.home, Actor(USER, GROUP) if IS_ROOT else None).checkout("1.0.0", commit, directory)
    return directory


async def step(room: Room, table: dict[str, Any], name: str, directory: Path) -> CommandOutcome:
    builder = room.builder(environment=table.get("environment", {}))
    return await builder.run(name, table[name], directory, timeout=6 * PATIENCE)


@pytest.mark.parametrize("title", RUN)
async def test_a_recipe_makes_a_jar_that_runs(room: Room, title: str) -> None:
    see_that_it_can_run(title)
    table = ALL[title].tables[-1]
    directory = await check_out(room, project_of(title))
    for name in ("test", "build"):
        outcome = await step(room, table, name, directory)
        assert outcome.failure is None, outcome
    jar = find_artifact(directory, table["artifact"])
    ran = subprocess.run(["java", "-jar", jar], capture_output=True, text=True, check=True)
    assert ran.stdout == "hello\n"


@pytest.mark.parametrize("title", RUN)
async def test_a_test_that_fails_fails_the_step(room: Room, title: str) -> None:
    see_that_it_can_run(title)
    broken = {
        name: text.replace('"hello"', '"goodbye"', 1) if "ain." in name else text
        for name, text in project_of(title).items()
    }
    outcome = await step(room, ALL[title].tables[-1], "test", await check_out(room, broken))
    assert outcome.failure is not None
    assert "ended with code 1 after" in outcome.failure
    assert outcome.last_lines


async def test_a_build_that_is_cancelled_leaves_no_jvm(room: Room) -> None:
    """lein is a script that starts one JVM, which starts another."""
    see_that_it_can_run("Leiningen")
    directory = await check_out(room, ALL["Leiningen"].files)
    builder = room.builder()
    running = asyncio.ensure_future(builder.run("build", ("lein", "uberjar"), directory, timeout=6 * PATIENCE))

    def jvms() -> list[int]:
        found = find_rollout(room.state_dir, None, {0, USER})
        return [stat.pid for stat in found if stat.name.startswith("java")]

    await until(lambda: len(jvms()) >= 2, "both JVMs")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert find_rollout(room.state_dir, None, {0, USER}) == []


def test_the_tables_of_other_recipes_are_complete() -> None:
    """They are read as they stand; every recipe has the three keys, and every command is a list of words."""
    assert {title for title, recipe in ALL.items() if recipe.tables} == {*RUN, TOOLS}
    for recipe in ALL.values():
        for table in recipe.tables:
            assert {"test", "build", "artifact"} <= table.keys()
            assert all(isinstance(word, str) for name in ("test", "build") for word in table[name])


def test_deps_edn_can_be_read_and_names_what_the_project_has() -> None:
    """As far as the recipe for tools.deps is tested; `test_a_recipe_makes_a_jar_that_runs` calls its functions."""
    see_that_it_can_run(PLAIN_CLOJURE)
    environment = ALL[PLAIN_CLOJURE].tables[0]["environment"]
    script = (
        "(let [{:keys [test build]} (:aliases (clojure.edn/read-string (slurp *in*)))] (prn (:exec-fn test) build))"
    )
    read = subprocess.run(
        ["java", "clojure.main", "-e", f"(require 'clojure.edn) {script}"],
        input=ALL[TOOLS].files["deps.edn"],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert read.stdout.splitlines()[-1] == 'app.main-test/run {:paths ["." "src"], :ns-default build}'
    assert "(defn run [_]" in ALL[TOOLS].files["test/app/main_test.clj"]
    assert "(defn uber [_]" in ALL[TOOLS].files["build.clj"]
