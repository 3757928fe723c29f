"""The shipped file and the reference name every key, and state the defaults that the code has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from clojarsd.core.settings import TABLES, AppTable, RestartLimit, parse_settings

REPOSITORY = Path(__file__).parents[2]
SHIPPED = (REPOSITORY / "etc/clojarsd.toml").read_text()
REFERENCE = (REPOSITORY / "docs/configuration.md").read_text()
EVERY_KEY = [
    (table, key)
    for table, model in TABLES.items()
    for key in model.model_fields
    if table != "instances" or key not in AppTable.model_fields
]
EXAMPLES: dict[str, dict[str, object]] = {
    "instances": {"ports": {"x": 1}},
    "checks": {"kind": "tcp"},
    "frontends": {"listen": "127.0.0.1:1", "port": "x"},
    "deploy": {"repository": "x", "work_dir": "/w", "releases": "/r"},
    "hooks": {"on": ["*"], "exec": ["x"]},
}
"""What each table needs to be read at all."""
DERIVED = {("instances", "name"), ("control", "socket"), ("control", "operators"), ("app", "environment_file")}
"""Keys whose default depends on other keys, or is nothing at all: stated in words."""
UNSET = {("checks", "port"), ("checks", "command"), ("app", "command"), ("deploy", "work_dir")}
"""Keys that are required in some cases, and have no default in the others."""


def value_of(table: str, key: str, text: str) -> object:
    """What the value that `text` writes becomes as that key."""
    given = {**EXAMPLES.get(table, {}), **tomllib.loads(f"{key} = {text}")}
    return getattr(TABLES[table].model_validate(given), key)


def holds(table: str, key: str, text: str) -> bool:
    """Whether `text` writes the default of that key."""
    return bool(value_of(table, key, text) == TABLES[table].model_fields[key].default)


def section(table: str) -> list[str]:
    """The lines of the shipped file that belong to the table."""
    lines: list[str] = []
    here = ""
    for line in SHIPPED.splitlines():
        header = re.match(r"\[+([a-z]+)", line)
        here = header[1] if header else here
        if here == table:
            lines.append(line)
    return lines


def comment_on(table: str, key: str) -> str:
    """The comment above a key, on one line."""
    lines = section(table)
    at = next(number for number, line in enumerate(lines) if re.match(rf"(# )?{key} *= ", line))
    start = at
    while lines[start - 1].startswith("#"):
        start -= 1
    return " ".join(line.removeprefix("# ") for line in lines[start:at])


@pytest.mark.parametrize(("table", "key"), EVERY_KEY)
def test_shipped_file_comments_on_every_key_and_states_its_default(table: str, key: str) -> None:
    comment = comment_on(table, key)
    field = TABLES[table].model_fields[key]
    stated = re.search(r"Default: (.+?)(?=$)", comment)
    if field.is_required() or (table, key) in UNSET:
        assert stated is None
        assert "Required" in comment or (table, key) == ("checks", "command")
    elif (table, key) in DERIVED:
        assert stated is not None
        assert field.default is None
    else:
        assert stated is not None
        assert holds(table, key, stated[1])


@pytest.mark.parametrize(("table", "key"), EVERY_KEY)
def test_reference_has_a_row_for_every_key_with_its_default(table: str, key: str) -> None:
    (part,) = re.findall(rf"^### `\[+{table}[].].*?(?=^### |^## |\Z)", REFERENCE, re.M | re.S)
    (row,) = re.findall(rf"^\| `{key}` \| .* \|$", part, re.M)
    _, kind, default, meaning = row.removesuffix(" |").split(" | ")
    assert kind
    assert meaning
    field = TABLES[table].model_fields[key]
    if field.is_required() or (table, key) in UNSET:
        assert default.startswith("required")
    elif (table, key) in DERIVED:
        assert field.default is None
    else:
        assert holds(table, key, default.strip("`"))


def test_reference_has_no_rows_for_keys_that_do_not_exist() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", REFERENCE, re.M)
    assert sorted(rows) == sorted(key for _, key in EVERY_KEY)


def test_nested_keys_are_shown() -> None:
    for key in RestartLimit.model_fields:
        assert key in SHIPPED
        assert key in REFERENCE


def test_shipped_file_is_valid_and_says_which_keys_are_not_yet_acted_on() -> None:
    settings = parse_settings(SHIPPED, "etc/clojarsd.toml")
    assert {str(role.value): instance.name for role, instance in settings.instances.items()} == {
        "primary": "clojars",
        "backup": "clojars-backup",
    }
    assert not any("not yet" in comment_on("app", key).lower() for key in AppTable.model_fields)
    for table in ("admin", "hooks"):
        before = re.search(rf"\n\n((?:#.*\n)+)\[+{table}\]", SHIPPED)
        assert before is not None
        assert "Not yet" in before[1]


def test_every_line_of_the_shipped_file_fits() -> None:
    assert max(len(line) for line in SHIPPED.splitlines()) <= 120
