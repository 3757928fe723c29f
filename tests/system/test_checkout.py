"""Fresh checkouts of tags out of real repositories, by git as a plain user."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clojarsd.core.changes import Changes
from clojarsd.core.errors import CommandFailed, Refused
from clojarsd.system.acting_as import Actor
from clojarsd.system.checkout import MIRROR, Checkouts, Resolved, clean, remove_tree
from clojarsd.system.git import Git
from tests.support.builds import GROUP, IS_ROOT, USER, Room, room_for_builds
from tests.support.real import unavailable
from tests.support.repositories import Repository
from tests.support.waiting import PATIENCE

ACTOR = Actor(USER, GROUP) if IS_ROOT else None
ID = "20261128-212345"


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with room_for_builds(tmp_path) as made:
        yield made


@pytest.fixture
def repository(room: Room) -> Repository:
    """It belongs to whom the tests run as, which is not the service user where that is root."""
    made = Repository(room.home / "repository")
    made.commit("first", a="one\n")
    made.tag("1.0.0")
    made.commit("second", a="two\n", b="more\n")
    made.tag("1.1.0", "-a", "-m", "annotated")
    return made


def checkouts(room: Room, repository: Repository | str) -> Checkouts:
    path = repository if isinstance(repository, str) else str(repository.path)
    return Checkouts(Git(room.builder(), path, "checkout", PATIENCE, room.heard.extend), room.home, ACTOR)


async def test_a_tag_is_resolved_to_its_commit(room: Room, repository: Repository) -> None:
    source = checkouts(room, repository)
    assert await source.resolve("1.0.0") == Resolved(repository.git("rev-parse", "1.0.0"))
    assert await source.resolve("1.1.0") == Resolved(repository.git("rev-parse", "1.1.0^{commit}"))


async def test_a_branch_of_the_same_name_is_another_thing(room: Room, repository: Repository) -> None:
    repository.git("branch", "1.0.0", "main")
    resolved = await checkouts(room, repository).resolve("1.0.0")
    assert resolved.commit == repository.git("rev-parse", "refs/tags/1.0.0")
    with pytest.raises(Refused) as refused:
        await checkouts(room, repository).resolve("main")
    assert str(refused.value) == (
        f"{repository.path} has no such tag (main is a branch there; only tags are deployed); nearest: 1.1.0, 1.0.0"
    )


async def test_a_tag_that_is_not_there_is_refused_with_the_nearest(room: Room, repository: Repository) -> None:
    with pytest.raises(Refused) as refused:
        await checkouts(room, repository).resolve("1.0.1")
    assert str(refused.value) == f"{repository.path} has no such tag; nearest: 1.0.0, 1.1.0"


async def test_what_cannot_be_a_tag_is_refused_before_git_sees_it(room: Room, repository: Repository) -> None:
    with pytest.raises(Refused) as refused:
        await checkouts(room, repository).resolve("--upload-pack=touch x")
    assert str(refused.value) == "no tag can be called '--upload-pack=touch x': it begins with -"
    assert not room.log.exists()


async def test_a_repository_that_is_not_there_is_refused_with_what_git_says(room: Room) -> None:
    with pytest.raises(Refused) as refused:
        await checkouts(room, "/nowhere/at/all").resolve("1.0.0")
    text = str(refused.value)
    assert text.startswith("/nowhere/at/all cannot be read: git ls-remote")
    assert "ended with code 128" in text
    assert "'/nowhere/at/all' does not appear to be a git repository" in text


async def test_a_repository_that_may_not_be_read_is_refused(room: Room, repository: Repository) -> None:
    if not IS_ROOT:
        unavailable("whom the tests run as may read it")
    repository.path.chmod(0o700)
    with pytest.raises(Refused, match="cannot be read"):
        await checkouts(room, repository).resolve("1.0.0")


async def test_a_repository_that_never_answers_is_given_up(room: Room) -> None:
    builder = room.builder(environment={"GIT_SSH_COMMAND": "sh -c 'sleep 60' --"})
    source = Checkouts(Git(builder, "ssh://me:secret@host/x.git", "checkout", 0.5), room.home, ACTOR)
    with pytest.raises(Refused) as refused:
        await source.resolve("1.0.0")
    assert "git ls-remote -- ssh://host/x.git" in str(refused.value)
    assert "took longer than 500ms and was ended" in str(refused.value)
    assert "secret" not in str(refused.value) + room.log.read_text()


async def test_a_password_is_asked_of_nobody(room: Room, repository: Repository) -> None:
    """ssh is told to ask nobody, and git too."""
    script = room.home / "ssh"
    script.write_text('#!/bin/sh\necho "asked with $*" >&2\nenv | grep PROMPT >&2\nexit 1\n')
    script.chmod(0o755)
    path = f"{room.home}:{os.environ['PATH']}"
    source = Checkouts(Git(room.builder(environment={"PATH": path}), "git@host:x.git", "checkout", PATIENCE), room.home)
    with pytest.raises(Refused, match="cannot be read"):
        await source.resolve("1.0.0")
    assert "asked with -o BatchMode=yes" in room.log.read_text()
    assert "GIT_TERMINAL_PROMPT=0" in room.log.read_text()


@pytest.mark.parametrize("tag", ["1.0.0", "1.1.0"])
async def test_a_checkout_is_exactly_the_tag(room: Room, repository: Repository, tag: str) -> None:
    source, directory = checkouts(room, repository), room.home / ID
    commit = (await source.resolve(tag)).commit
    await source.checkout(tag, commit, directory)
    assert (directory / "a.txt").read_text() == {"1.0.0": "one\n", "1.1.0": "two\n"}[tag]
    assert (directory / "b.txt").exists() == (tag == "1.1.0")
    assert (directory / ".git" / "HEAD").read_text().strip() == commit
    assert {directory.stat().st_uid, (directory / "a.txt").stat().st_uid} == {USER}
    assert re.findall("url = (.*)", (directory / ".git" / "config").read_text()) == [str(repository.path)]


async def test_the_mirror_makes_the_next_checkout_cheap_and_follows_the_repository(
    room: Room, repository: Repository
) -> None:
    """It is kept, gets new tags, and loses those that are gone; the working copy borrows its objects."""
    source = checkouts(room, repository)
    await source.checkout("1.0.0", (await source.resolve("1.0.0")).commit, room.home / "20261128-000001")
    inode = (room.home / MIRROR).stat().st_ino
    repository.git("tag", "-d", "1.1.0")
    third = repository.commit("third", a="three\n")
    repository.tag("1.2.0")
    await source.checkout("1.2.0", third, room.home / ID)
    assert (room.home / MIRROR).stat().st_ino == inode
    assert (room.home / ID / "a.txt").read_text() == "three\n"
    assert not list((room.home / ID / ".git" / "objects").glob("??/*"))
    with pytest.raises(Refused, match=r"tag 1\.1\.0 was removed from .*/repository meanwhile"):
        await source.checkout("1.1.0", third, room.home / "20261128-000003")


async def test_hooks_of_the_user_do_not_run(room: Room, repository: Repository) -> None:
    hooks = room.home / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {room.home}/hooked\n")
    (hooks / "post-checkout").chmod(0o755)
    (room.home / ".gitconfig").write_text(f"[core]\nhooksPath = {hooks}\n")
    source = checkouts(room, repository)
    await source.checkout("1.0.0", (await source.resolve("1.0.0")).commit, room.home / ID)
    assert not (room.home / "hooked").exists()


async def test_a_tag_that_moves_between_the_two_looks_is_refused(room: Room, repository: Repository) -> None:
    source = checkouts(room, repository)
    before = (await source.resolve("1.0.0")).commit
    repository.tag("1.0.0", "--force")
    now = repository.git("rev-parse", "1.0.0")
    with pytest.raises(Refused) as refused:
        await source.checkout("1.0.0", before, room.home / ID)
    assert str(refused.value) == f"tag 1.0.0 has moved: it named {before[:12]} and names {now[:12]} now"
    assert not (room.home / ID).exists()


async def test_a_tag_that_has_moved_since_it_was_deployed_is_told(room: Room, repository: Repository) -> None:
    source = checkouts(room, repository)
    now = repository.git("rev-parse", "1.0.0")
    assert await source.resolve("1.0.0", now) == Resolved(now)
    moved = await source.resolve("1.0.0", "f" * 40)
    assert moved == Resolved(now, f"tag 1.0.0 has moved: it named ffffffffffff and names {now[:12]} now")


async def test_a_tag_that_names_no_commit_is_refused(room: Room, repository: Repository) -> None:
    repository.git("tag", "tree", "HEAD^{tree}")
    source = checkouts(room, repository)
    resolved = await source.resolve("tree")
    with pytest.raises(Refused, match="tag tree names no commit"):
        await source.checkout("tree", resolved.commit, room.home / ID)


async def test_nothing_is_checked_out_over_something(room: Room, repository: Repository) -> None:
    source, directory = checkouts(room, repository), room.home / ID
    directory.symlink_to("elsewhere")
    with pytest.raises(Refused) as refused:
        await source.checkout("1.0.0", "f" * 40, directory)
    assert str(refused.value) == f"{directory} exists already"


@pytest.mark.parametrize("damage", ["head", "tree", "blob", "file", "another"])
async def test_a_mirror_that_cannot_be_used_is_made_anew(room: Room, repository: Repository, damage: str) -> None:
    """Broken, with objects that only a checkout misses, no directory at all, or of another repository."""
    source, mirror = checkouts(room, repository), room.home / MIRROR
    commit = (await source.resolve("1.0.0")).commit
    await source.checkout("1.0.0", commit, room.home / "20261128-000001")
    if damage == "head":
        (mirror / "HEAD").unlink()
    elif damage in ("tree", "blob"):
        lost = repository.git("rev-parse", {"tree": "1.0.0^{tree}", "blob": "1.0.0:a.txt"}[damage])
        (mirror / "objects" / lost[:2] / lost[2:]).unlink()
    elif damage == "file":
        shutil.rmtree(mirror)
        mirror.write_text("not a mirror")
    else:
        other = Repository(room.home / "other")
        commit = other.commit("of another", a="other\n")
        other.tag("1.0.0")
        source = checkouts(room, other)
    await source.checkout("1.0.0", commit, room.home / ID)
    assert (room.home / ID / "a.txt").read_text() == ("other\n" if damage == "another" else "one\n")


async def test_a_mirror_stays_when_the_repository_cannot_be_read(room: Room, repository: Repository) -> None:
    """It is the memory of what was; it goes only when another one is complete."""
    source = checkouts(room, repository)
    commit = (await source.resolve("1.0.0")).commit
    await source.checkout("1.0.0", commit, room.home / "20261128-000001")
    inode = (room.home / MIRROR).stat().st_ino
    (repository.path / ".git").rename(repository.path / "away")
    with pytest.raises(CommandFailed) as failed:
        await source.checkout("1.0.0", commit, room.home / ID)
    assert "does not appear to be a git repository" in str(failed.value)
    assert any("does not appear to be a git repository" in line for line in failed.value.last_lines)
    assert (room.home / MIRROR).stat().st_ino == inode


async def test_submodules_come_too(room: Room, repository: Repository) -> None:
    """By a relative address, which is relative to the repository and not to the mirror."""
    part = Repository(room.home / "part")
    inner = part.commit("part", p="part\n")
    (repository.path / ".gitmodules").write_text('[submodule "sub"]\npath = sub\nurl = ../part\n')
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{inner},sub")
    if IS_ROOT:  # of the service user: the trust is for the repository alone
        for inside, directories, files in os.walk(part.path):
            for name in (".", *directories, *files):
                os.chown(os.path.join(inside, name), USER, GROUP)
    repository.git("add", ".gitmodules")
    repository.git("commit", "--quiet", "-m", "with a part")
    commit = repository.git("rev-parse", "HEAD")
    repository.tag("2.0.0")
    await checkouts(room, repository).checkout("2.0.0", commit, room.home / ID)
    assert (room.home / ID / "sub" / "p.txt").read_text() == "part\n"


async def test_what_lies_between_two_tags(room: Room, repository: Repository) -> None:
    source = checkouts(room, repository)
    old, new = (await source.resolve("1.0.0")).commit, (await source.resolve("1.1.0")).commit
    assert await source.changes(old, new) is None  # there is no mirror yet
    await source.checkout("1.1.0", new, room.home / ID)
    assert await source.changes(old, new) == Changes(1, 0, 2, 2, 1, ("second",))
    assert await source.changes(new, old) == Changes(0, 1, 2, 1, 2, ())
    assert await source.changes("f" * 40, new) is None


async def test_old_checkouts_are_removed_and_nothing_else(room: Room, tmp_path: Path) -> None:
    """Also with directories that may not be written to, as build tools leave them, and links that lead out."""
    old, kept = room.home / "20261127-000000", room.home / ID
    inner = old / "target" / "cache"
    for made in (inner, kept, room.home / MIRROR, room.home / "20261127-notes"):
        made.mkdir(parents=True)
    (inner / "file").write_text("")
    (room.home / "target").mkdir()
    (room.home / "target" / "safe").write_text("")
    (old / "out").symlink_to(room.home / "target")
    (room.home / "20261126-000000").symlink_to(room.home / "target")
    for made in (inner, inner.parent, old):
        os.chown(made, USER, GROUP)
        made.chmod(0o000 if made == inner else 0o555)
    assert await clean(room.home, [ID], ACTOR) == ["20261127-000000"]
    left = sorted(entry.name for entry in room.home.iterdir())
    assert left == ["20261126-000000", "20261127-notes", ID, MIRROR, "target"]
    assert (room.home / "target" / "safe").exists()


async def test_what_belongs_to_somebody_else_is_not_removed(room: Room, tmp_path: Path) -> None:
    if not IS_ROOT:
        unavailable("whom the tests run as is the service user")
    (room.home / "20261127-000000" / "of-root").mkdir(parents=True)
    with pytest.raises(PermissionError):
        await clean(room.home, [], ACTOR)
    assert (room.home / "20261127-000000" / "of-root").exists()


def test_removing_what_is_not_there_or_no_directory(tmp_path: Path) -> None:
    remove_tree(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    remove_tree(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
