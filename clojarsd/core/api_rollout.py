"""What is asked and answered about releases on the control socket: the bodies of orders, and last lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from clojarsd.core.api import ErrorKind, error_body, object_in

LONGEST_TAG: Final = 200
_NO_TAG: Final = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|\.$|/$|^[-/.]|\.lock$")
_FLAGS: Final = ("yes", "promote", "skip_tests", "force")


@dataclass(frozen=True, slots=True)
class DeployOrder:
    """A release that is to be brought in. One of `tag` and `artifact` is given.

    Attributes:
        artifact: absolute path of a file or directory that is a release already.
        yes: nobody is asked: the gates decide.
        promote: whether the caller watches further than to the question.
        skip_tests: build without testing.
        force: also while not both instances can serve.
    """

    tag: str | None = None
    artifact: str | None = None
    yes: bool = False
    promote: bool = True
    skip_tests: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class RollbackOrder:
    """A former release that is to be brought back. release: its name or tag; None: the last good one before."""

    release: str | None = None
    yes: bool = False
    promote: bool = True


def parse_deploy(body: bytes) -> DeployOrder:
    """The order in the body of `POST /v1/deploys`.

    Raises:
        ValueError: it is no such body; the message is for people.
    """
    options = _options(body, ("tag", "artifact", *_FLAGS), '{"tag": "1.2.0"}')
    tag, artifact = options.get("tag"), options.get("artifact")
    if (tag is None) == (artifact is None):
        raise ValueError("a deploy has either a tag or an artifact")
    if tag is not None and (why := why_no_tag(tag)):
        raise ValueError(why)
    if artifact is not None and not (isinstance(artifact, str) and artifact.startswith("/") and "\0" not in artifact):
        raise ValueError(f"artifact is {json.dumps(artifact)}, not an absolute path")
    order = DeployOrder(**options)
    if order.yes and not order.promote:
        raise ValueError("yes and promote = false exclude each other: one asks nobody, the other stops before asking")
    return order


def parse_rollback(body: bytes) -> RollbackOrder:
    """The order in the body of `POST /v1/rollback`; an empty one asks for the last good release before.

    Raises:
        ValueError: it is no such body; the message is for people.
    """
    options = _options(body, ("release", "yes", "promote"), '{"release": "app-1.2.0.jar"}')
    release = options.get("release")
    if release is not None and not (isinstance(release, str) and release):
        raise ValueError(f"release is {json.dumps(release)}, not the name of a release")
    order = RollbackOrder(**options)
    if order.yes and not order.promote:
        raise ValueError("yes and promote = false exclude each other: one asks nobody, the other stops before asking")
    return order


def why_no_tag(tag: object) -> str | None:
    """Why that cannot be the name of a tag; None when it can.

    Source: git-check-ref-format(1).
    """
    if not isinstance(tag, str) or not tag:
        return f"tag is {json.dumps(tag)}, not the name of a tag"
    if len(tag) > LONGEST_TAG or _NO_TAG.search(tag) or tag == "@":
        return f"{json.dumps(tag)} is not the name of a tag that git would take"
    return None


def waiting_line(message: str) -> dict[str, Any]:
    """The last line for a caller that watches only to the question."""
    return {"result": "waiting", "message": message}


def left_line(why: str) -> dict[str, Any]:
    """The last line for a caller who watches a rollout that is not over when the daemon ends. why: it ends."""
    return {"result": "left", "message": f"{why}; the next clojarsd takes it up"}


def rollout_failed_line(message: str, output: Sequence[str]) -> dict[str, Any]:
    """The last line of a rollout that has not come to what was asked. output: the last lines of what has failed."""
    error = error_body(ErrorKind.FAILED, message)["error"]
    return {"result": "failed", "error": {**error, "output": list(output)}}


def _options(body: bytes, known: Sequence[str], example: str) -> Mapping[str, Any]:
    options = object_in(body, example)
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{key} is not an option of it ({', '.join(known)})")
        if key in _FLAGS and not isinstance(value, bool):
            raise ValueError(f"{key} is {json.dumps(value)}, not true or false")
    return options
