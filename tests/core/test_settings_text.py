"""Text that is not TOML, and any value at any place: whatever comes, people read our words, a line for each problem."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.core.test_settings_problems import problems


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a = 1\nb = \n", "line 2, column 5: is not TOML: invalid value"),
        ("a = 1\na = 2\n", "line 2, column 6: is not TOML: cannot overwrite a value"),
        ("a = [1,\n", "line 2, column 1: is not TOML: invalid value before the end of the file"),
        ("a = " + "[" * 5000, "is not TOML: it is nested too deeply"),
    ],
)
def test_what_is_not_toml_is_placed(text: str, wrong: str) -> None:
    assert problems(text) == [wrong]


def test_number_of_thousands_of_digits_is_refused() -> None:
    (problem,) = problems("a = " + "9" * 5000)
    assert problem == "is not TOML: a number has too many digits"


PYDANTIC = re.compile(r"pydantic|Input should|Value error|Extra inputs|type=|errors\.pydantic")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def quoted(key: str) -> str:
    """A dotted key, quoted where it must be."""
    return key if key.isprintable() else toml(key)


def toml(value: object) -> str:
    """`value` as TOML, None as an empty list."""
    if value is None:
        return "[]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(one):08x}" for one in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(one)}" for key, one in value.items()) + "}"
    return str(value)


KEYS = [
    *("app.command", "app.environment", "app.pre_start", "app.stop_signal", "app.restart_limit", "app.success_codes"),
    *("app.umask", "app.nice", "app.limits", "app.log", "app.log_max_size", "service.name", "service.state_dir"),
    *("frontends", "frontends.http.listen", "frontends.http.port", "checks", "hooks", "instances.primary.ports"),
    *("instances", "instances.backup", "warmup.requests", "hang.restart_after", "control.operators", "admin", "deploy"),
]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(KEYS), VALUES)
@example("app.stop_signal", "a\nb")
@example("frontends", {"http": {"listen": "a:b\nc", "port": "a\nb"}})
@example("frontends", {"http": {"listen": ["a\n:1"], "a\nb": 1}})
@example("frontends", {"a\nb": 1})
@example("app.environment", {"a\nb": ""})
@example("a\nb", "a\nb")
@example("checks", [{}])
@example("hooks", [{"on": [1]}])
def test_no_value_at_any_place_brings_anything_but_our_words(key: str, value: object) -> None:
    text = f"{quoted(key)} = {toml(value)}\n"
    for problem in problems(text):
        assert PYDANTIC.search(problem) is None, problem
        assert "\n" not in problem
