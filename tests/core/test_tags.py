"""Names of tags, and what git says of them."""

from __future__ import annotations

import pytest

from clojarsd.core import tags

A, B, C = "a" * 40, "b" * 40, "c" * 64
ANSWER = f"warning: something\n{A}\trefs/tags/v1\n{B}\trefs/tags/v1^{{}}\n{C}\trefs/tags/v2\n{A}\trefs/heads/v3\n"


@pytest.mark.parametrize("tag", ["v1", "1.0.0", "release/2026-11-28", "a@b", "ünï", "x-", "HEAD"])
def test_what_can_be_a_tag(tag: str) -> None:
    assert tags.problem_of_tag(tag) is None


@pytest.mark.parametrize(
    ("tag", "problem"),
    [
        ("", "it is empty"),
        ("-d", "it begins with -"),
        ("--upload-pack=x", "it begins with -"),
        ("x" * 201, "it is longer than 200 characters"),
        ("a b", "it contains ' '"),
        ("a..b", "it contains '..'"),
        ("a\nb", "it contains '\\n'"),
        ("a^{}", "it contains '^'"),
        ("v*", "it contains '*'"),
        ("a@{1}", "it contains '@{'"),
        ("a//b", "it contains '//'"),
        ("@", "it is @, ends with . or /, or begins with /"),
        ("a.", "it is @, ends with . or /, or begins with /"),
        ("/a", "it is @, ends with . or /, or begins with /"),
        ("a/", "it is @, ends with . or /, or begins with /"),
        (".a", "a part of it begins with . or ends with .lock"),
        ("a/.b", "a part of it begins with . or ends with .lock"),
        ("a.lock/b", "a part of it begins with . or ends with .lock"),
    ],
)
def test_what_cannot_be_a_tag(tag: str, problem: str) -> None:
    assert tags.problem_of_tag(tag) == problem


def test_what_a_tag_names_in_the_end() -> None:
    refs = tags.parse_refs(ANSWER)
    assert tags.commit_of_tag(refs, "v1") == B
    assert tags.commit_of_tag(refs, "v2") == C
    assert tags.commit_of_tag(refs, "v3") is None
    assert tags.tags_of(refs) == ["v1", "v2"]


def test_the_last_line_that_names_an_object_counts() -> None:
    assert tags.last_object(f"{A}\nwarning: x\n{B}\nhint\n") == B
    assert tags.last_object("fatal: no\n") is None


def test_the_nearest_tags_come_first() -> None:
    among = ["0.9.0", "1.0.0", "1.0.1", "1.1.0", "2.0.0", "nightly", "1.0.0-rc1"]
    near = tags.nearest_tags("1.0.2", among)
    assert near[:2] == ["1.0.1", "1.0.0"]
    assert len(near) == 5
    assert tags.nearest_tags("x", []) == []


def test_that_there_is_no_such_tag_is_told_with_what_there_is() -> None:
    text = tags.describe_no_tag("v9", "https://me:secret@host/x.git", is_branch=False, tags=["v8", "v1"])
    assert text == "https://host/x.git has no such tag; nearest: v8, v1"
    text = tags.describe_no_tag("main", "/r", is_branch=True, tags=[])
    assert text == ("/r has no such tag (main is a branch there; only tags are deployed); it has no tags at all")


def test_a_tag_that_moved_is_told_with_both_commits() -> None:
    assert tags.describe_move("v1", A, A) is None
    assert tags.describe_move("v1", A, B) == "tag v1 has moved: it named aaaaaaaaaaaa and names bbbbbbbbbbbb now"


@pytest.mark.parametrize(
    ("repository", "shown", "local"),
    [
        ("/srv/x.git", "/srv/x.git", "/srv/x.git"),
        ("file:///srv/x", "file:///srv/x", "/srv/x"),
        ("https://user:word@host/x", "https://host/x", None),
        ("ssh://git@host/x", "ssh://host/x", None),
        ("git@host:x/y.git", "git@host:x/y.git", None),
    ],
)
def test_where_a_repository_is(repository: str, shown: str, local: str | None) -> None:
    assert tags.shown_repository(repository) == shown
    assert tags.local_path(repository) == local
