"""Tags of a repository: which names can be one, what `git ls-remote` says of them, and what is near a wrong one.

Source: git-check-ref-format(1), git-ls-remote(1).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Final

MOST_NEAR: Final = 5
MOST_COMPARED: Final = 5000
"""Tags: comparing takes some 20 us for each."""
LONGEST_TAG: Final = 200
"""Characters: it becomes part of file names."""

_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_REF: Final = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})\t(refs/\S+)")
_OBJECT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PEELED: Final = "^{}"
_PASSWORD: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*@")


def problem_of_tag(tag: str) -> str | None:
    """Why nothing can be a tag of that name, for the middle of a sentence; None when it can."""
    if not tag:
        return "it is empty"
    if tag.startswith("-"):
        return "it begins with -"
    if len(tag) > LONGEST_TAG:
        return f"it is longer than {LONGEST_TAG} characters"
    if (found := _FORBIDDEN.search(tag)) is not None:
        return f"it contains {found[0]!r}"
    if tag == "@" or tag.endswith((".", "/")) or tag.startswith("/"):
        return "it is @, ends with . or /, or begins with /"
    parts = tag.split("/")
    if any(part.startswith(".") or part.endswith(".lock") for part in parts):
        return "a part of it begins with . or ends with .lock"
    return None


def parse_refs(output: str) -> dict[str, str]:
    """The object that each reference names, by the reference's full name, from what `git ls-remote` has written.

    Lines that say something else, such as warnings, are skipped.
    """
    found = (_REF.fullmatch(line) for line in output.splitlines())
    return {match[2]: match[1] for match in found if match is not None}


def commit_of_tag(refs: Mapping[str, str], tag: str) -> str | None:
    """What the tag names in the end: of an annotated one not itself. None when there is no such tag."""
    return refs.get(f"refs/tags/{tag}{_PEELED}", refs.get(f"refs/tags/{tag}"))


def last_object(output: str) -> str | None:
    """The name of the object in the last line that is nothing else; None when there is none."""
    return next((line for line in reversed(output.splitlines()) if _OBJECT.fullmatch(line)), None)


def tags_of(refs: Iterable[str]) -> list[str]:
    """The names of the tags among the references."""
    return [
        ref.removeprefix("refs/tags/") for ref in refs if ref.startswith("refs/tags/") and not ref.endswith(_PEELED)
    ]


def nearest_tags(tag: str, tags: Iterable[str]) -> list[str]:
    """The tags whose names are most like that one, the most similar first; at most five."""
    among = sorted(tags)[-MOST_COMPARED:]
    return difflib.get_close_matches(tag, among, n=MOST_NEAR, cutoff=0.0)


def describe_no_tag(tag: str, repository: str, *, is_branch: bool, tags: Iterable[str]) -> str:
    """That there is no such tag, with what there is, for the end of a sentence."""
    branch = f" ({tag} is a branch there; only tags are deployed)" if is_branch else ""
    near = nearest_tags(tag, tags)
    there_is = f"nearest: {', '.join(near)}" if near else "it has no tags at all"
    return f"{shown_repository(repository)} has no such tag{branch}; {there_is}"


def describe_move(tag: str, before: str, now: str) -> str | None:
    """That the tag names another commit than before; None when it does not.

    Args:
        before: the commit that was recorded for it.
    """
    return f"tag {tag} has moved: it named {before[:12]} and names {now[:12]} now" if before != now else None


def shown_repository(repository: str) -> str:
    """The repository for people: without a user's name and password."""
    return _PASSWORD.sub(r"\1", repository)


def local_path(repository: str) -> str | None:
    """The directory of a repository on this machine; None for one that is reached otherwise."""
    if repository.startswith("file://"):
        return "/" + repository.removeprefix("file://").lstrip("/")
    return repository if repository.startswith("/") else None
