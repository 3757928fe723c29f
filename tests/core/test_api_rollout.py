"""What may be asked about releases, and what is said of a body that asks otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clojarsd.core.api_rollout import (
    LONGEST_TAG,
    DeployOrder,
    RollbackOrder,
    left_line,
    parse_deploy,
    parse_rollback,
    rollout_failed_line,
    waiting_line,
    why_no_tag,
)

EXCLUDED = "yes and promote = false exclude each other: one asks nobody, the other stops before asking"


def body(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.mark.parametrize(
    ("value", "order"),
    [
        ({"tag": "1.2.0"}, DeployOrder("1.2.0")),
        ({"tag": "release/2026-11", "promote": False}, DeployOrder("release/2026-11", promote=False)),
        ({"tag": "1", "artifact": None, "yes": True}, DeployOrder("1", yes=True)),
        ({"artifact": "/tmp/a b.jar", "skip_tests": True}, DeployOrder(artifact="/tmp/a b.jar", skip_tests=True)),
        ({"tag": "1", "force": True}, DeployOrder("1", force=True)),
    ],
)
def test_deploys(value: Any, order: DeployOrder) -> None:
    assert parse_deploy(body(value)) == order


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "a deploy has either a tag or an artifact"),
        ({}, "a deploy has either a tag or an artifact"),
        ({"tag": "1", "artifact": "/x"}, "a deploy has either a tag or an artifact"),
        ({"tag": ""}, 'tag is "", not the name of a tag'),
        ({"tag": 12}, "tag is 12, not the name of a tag"),
        ({"tag": "-f"}, '"-f" is not the name of a tag that git would take'),
        ({"artifact": "x.jar"}, 'artifact is "x.jar", not an absolute path'),
        ({"artifact": ["/x"]}, 'artifact is ["/x"], not an absolute path'),
        ({"artifact": "/x\0"}, 'artifact is "/x\\u0000", not an absolute path'),
        ({"tag": "1", "yes": 1}, "yes is 1, not true or false"),
        ({"tag": "1", "yes": True, "promote": False}, EXCLUDED),
        (
            {"tag": "1", "when": "now"},
            "when is not an option of it (tag, artifact, yes, promote, skip_tests, force)",
        ),
        (b"{", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[]", 'the body is not a JSON object such as {"tag": "1.2.0"}'),
    ],
)
def test_no_deploys(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_deploy(body(value))
    assert str(caught.value) == why


@pytest.mark.parametrize(
    ("value", "order"),
    [
        (b" ", RollbackOrder()),
        ({}, RollbackOrder()),
        ({"release": "app.jar", "promote": False}, RollbackOrder("app.jar", promote=False)),
        ({"release": None, "yes": True}, RollbackOrder(yes=True)),
    ],
)
def test_rollbacks(value: Any, order: RollbackOrder) -> None:
    assert parse_rollback(body(value)) == order


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"release": ""}, 'release is "", not the name of a release'),
        ({"release": 1}, "release is 1, not the name of a release"),
        ({"tag": "1"}, "tag is not an option of it (release, yes, promote)"),
        ({"yes": True, "promote": False}, EXCLUDED),
        (b"1", 'the body is not a JSON object such as {"release": "app-1.2.0.jar"}'),
    ],
)
def test_no_rollbacks(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_rollback(body(value))
    assert str(caught.value) == why


@pytest.mark.parametrize("tag", ["1.2.0", "v1", "release/1", "a@b", "1.2.0+build", "x" * LONGEST_TAG, "ü"])
def test_tags(tag: str) -> None:
    assert why_no_tag(tag) is None


@pytest.mark.parametrize(
    "tag",
    [
        *("../x", "-x", "/x", ".x", "x/", "x.", "x.lock", "x..y", "x y", "x~1", "x^", "x:y", "x?", "x*", "x[", "x\\y"),
        *("x@{1}", "@", "x//y", "x\0", "x\n", "x\x7f", "x" * (LONGEST_TAG + 1)),
    ],
)
def test_no_tags(tag: str) -> None:
    assert why_no_tag(tag) == f"{json.dumps(tag)} is not the name of a tag that git would take"


def test_last_lines() -> None:
    assert waiting_line("it waits") == {"result": "waiting", "message": "it waits"}
    told = "clojarsd is ending; the next clojarsd takes it up"
    assert left_line("clojarsd is ending") == {"result": "left", "message": told}
    assert rollout_failed_line("no", ("a", "b")) == {
        "result": "failed",
        "error": {"kind": "failed", "message": "no", "output": ["a", "b"]},
    }
