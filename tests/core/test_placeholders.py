"""What counts as a placeholder, and what stays as it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clojarsd.core.placeholders import expand, placeholders_in

VALUES = {"role": "backup", "port.http": "8002", "state_dir": "/var/lib/{role}"}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("{role}", "backup"),
        ("--port={port.http}/{role}", "--port=8002/backup"),
        ("{role}{role}", "backupbackup"),
        ("{{role}}", "{backup}"),
        ("{state_dir}", "/var/lib/{role}"),
    ],
)
def test_known_placeholders_become_their_values_once(text: str, expanded: str) -> None:
    assert expand(text, VALUES) == expanded


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{}",
            "${role}",
            "${HOME}",
            "{ role }",
            "{Role}",
            "{role",
            "role}",
            '{"role": 1}',
            "{a,b}",
            "{1..3}",
            "{3}",
        ),
        *("{role.}", "{.http}", "{port.http.x}", "{role!r}", "{0}", "%{role:x}", "{_role}"),
    ],
)
def test_other_braces_stay_as_they_are(text: str) -> None:
    assert placeholders_in(text) == ()
    assert expand(text, VALUES) == text


def test_unknown_placeholder_is_named_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"^unknown placeholder \{relase\} \(known: \{port\.http\}, \{role\}, .*\)$"):
        expand("x {relase}", VALUES)
    with pytest.raises(ValueError, match=r"unknown placeholder \{port\.ssh\}"):
        expand("{port.ssh}", VALUES)


def test_names_come_in_their_order() -> None:
    assert placeholders_in("{b} {a.1} ${c} {b}") == ("b", "a.1", "b")


@settings(deadline=None)
@given(st.text())
def test_what_has_no_placeholder_is_unchanged(text: str) -> None:
    if not placeholders_in(text):
        assert expand(text, {}) == text
