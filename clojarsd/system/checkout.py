"""A fresh checkout of exactly one tag, made fast by a mirror of the repository that is kept.

All of it is done by git as the service user, to whom the directories belong. The mirror is a cache: one that is broken,
or of another repository, is made anew beside and takes the old one's place when it is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from clojarsd.core.changes import MOST_SUBJECTS, Changes, read_changes
from clojarsd.core.command_output import clean_lines
from clojarsd.core.errors import CommandFailed, Refused, reason_of
from clojarsd.core.tags import (
    commit_of_tag,
    describe_move,
    describe_no_tag,
    last_object,
    parse_refs,
    problem_of_tag,
    shown_repository,
    tags_of,
)
from clojarsd.system.acting_as import Actor, acting_as
from clojarsd.system.git import Git, failed

T = TypeVar("T")

MIRROR: Final = "mirror.git"
_NEW_MIRROR: Final = "mirror.new"
_FETCHED: Final = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_CHECKOUT: Final = re.compile(r"\d{8}-\d{6}(?:-\d+)?")
"""What directories of checkouts are called: like their rollouts."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a tag names.

    Attributes:
        commit: its full name.
        moved: that the tag named another commit before, as a sentence; None when it did not, or that is not known.
    """

    commit: str
    moved: str | None = None


@dataclass(frozen=True, slots=True)
class Checkouts:
    """Makes checkouts of one repository, one at a time.

    Attributes:
        work_dir: where mirror and checkouts are; it exists, and belongs to the service user.
        actor: the service user, for what is done without git; None: this process is that user.
    """

    git: Git
    work_dir: Path
    actor: Actor | None = None

    async def resolve(self, tag: str, known_commit: str | None = None) -> Resolved:
        """What the tag names in the repository now.

        Args:
            known_commit: what it named when it was deployed before.

        Raises:
            Refused: nothing can be a tag of that name, there is none, or the repository cannot be read: the reason.
        """
        if (problem := problem_of_tag(tag)) is not None:
            raise Refused(f"no tag can be called {tag!r}: {problem}")
        wanted = (f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}", f"refs/heads/{tag}")
        refs = await self._remote_refs(*wanted)
        commit = commit_of_tag(refs, tag)
        if commit is None:
            tags = tags_of(await self._remote_refs("refs/tags/*"))
            is_branch = f"refs/heads/{tag}" in refs
            raise Refused(describe_no_tag(tag, self.git.repository, is_branch=is_branch, tags=tags))
        return Resolved(commit, describe_move(tag, known_commit, commit) if known_commit is not None else None)

    async def checkout(self, tag: str, commit: str, directory: Path) -> None:
        """Make the directory, with the files of the commit, which the tag must still name.

        What is left of it after a failure is for `clean` to remove.

        Args:
            commit: as `resolve` has given it.
            directory: in `work_dir`, and called like the rollout.

        Raises:
            Refused: the directory exists already, or the tag has moved or gone since.
            CommandFailed: git did not succeed.
        """
        if await asyncio.to_thread(os.path.lexists, directory):
            raise Refused(f"{directory} exists already")
        await self._refresh()
        await self._see_that_it_stays(tag, commit)
        try:
            await self._copy(commit, directory)
        except CommandFailed:  # an object may be broken that only a checkout reads
            await self._remove(directory.name)
            await self._make_mirror()
            await self._copy(commit, directory)
        await self._add_submodules(directory)
        head = last_object(await self.git.do(directory, "rev-parse", "HEAD"))
        if head != commit:
            raise CommandFailed(f"{directory} is at {head}, not at {commit[:12]}")

    async def changes(self, old: str, new: str) -> Changes | None:
        """What lies between two commits; None when the mirror does not have both, or there is no mirror."""
        mirror = self.work_dir / MIRROR
        counts = await self.git.ask(mirror, "rev-list", "--left-right", "--count", f"{old}...{new}")
        if counts.failure is not None:
            return None
        statistics = await self.git.ask(mirror, "diff", "--shortstat", old, new)
        newest = ("log", f"--max-count={MOST_SUBJECTS}", "--no-decorate", "--format=%s", f"{old}..{new}")
        subjects = await self.git.ask(mirror, *newest)
        return read_changes(counts.output, statistics.output, clean_lines(subjects.output))

    async def _remote_refs(self, *patterns: str) -> dict[str, str]:
        repository = self.git.repository
        outcome = await self.git.ask(self.work_dir, "ls-remote", *self.git.serving(), "--", repository, *patterns)
        if outcome.failure is not None:
            raise Refused(f"{shown_repository(repository)} cannot be read: {failed(outcome)}")
        return parse_refs(outcome.output)

    async def _refresh(self) -> None:
        """Bring the mirror up to date, made anew if it cannot be brought so."""
        mirror = self.work_dir / MIRROR
        if mirror.is_dir():
            owner = await self.git.ask(mirror, "config", "--local", "--get", "remote.origin.url")
            if owner.failure is None and owner.output.splitlines()[-1:] == [self.git.repository]:
                with contextlib.suppress(CommandFailed):
                    await self.git.do(mirror, *self._fetch())
                    return
        await self._make_mirror()

    def _fetch(self) -> tuple[str, ...]:
        return ("fetch", "--quiet", "--prune", "--force", "--no-tags", *self.git.serving(), "origin", *_FETCHED)

    async def _make_mirror(self) -> None:
        """Make the mirror anew; the old one stays until the new one is complete."""
        new = self.work_dir / _NEW_MIRROR
        await self._remove(_NEW_MIRROR)
        await self.git.do(self.work_dir, "init", "--quiet", "--bare", "--template=", _NEW_MIRROR)
        await self.git.do(new, "config", "remote.origin.url", self.git.repository)
        await self.git.do(new, *self._fetch())
        await self._remove(MIRROR)
        await self._act(os.rename, new, self.work_dir / MIRROR)

    async def _see_that_it_stays(self, tag: str, commit: str) -> None:
        seen = await self.git.ask(self.work_dir / MIRROR, "rev-parse", "--verify", f"refs/tags/{tag}^{{commit}}")
        now = last_object(seen.output)
        if seen.failure is not None or now is None:
            there = await self.git.ask(self.work_dir / MIRROR, "rev-parse", "--verify", f"refs/tags/{tag}")
            gone = f"tag {tag} was removed from {shown_repository(self.git.repository)} meanwhile"
            why = gone if there.failure is not None else f"tag {tag} names no commit"
            raise Refused(why)
        if (moved := describe_move(tag, commit, now)) is not None:
            raise Refused(moved)

    async def _copy(self, commit: str, directory: Path) -> None:
        """A working copy that borrows the mirror's objects. Raises CommandFailed.

        git says success also where it could not read an object (seen with 2.39), so what it has made is looked at.
        """
        source, name = str(self.work_dir / MIRROR), directory.name
        clone = ("clone", "--quiet", "--shared", "--no-checkout", "--template=", "--", source, name)
        await self.git.do(self.work_dir, *clone)
        await self.git.do(directory, "checkout", "--quiet", "--detach", commit)
        await self.git.do(directory, "diff-index", "--cached", "--quiet", "HEAD", "--")
        absent = (await self.git.do(directory, "ls-files", "--deleted")).splitlines()
        if absent:
            raise CommandFailed(f"git checkout has not written {absent[0]} ({len(absent)} in all)")
        await self.git.do(directory, "config", "remote.origin.url", self.git.repository)

    async def _add_submodules(self, directory: Path) -> None:
        if (directory / ".gitmodules").is_file():
            await self.git.do(directory, "submodule", "update", "--init", "--recursive", "--quiet")

    async def _remove(self, name: str) -> None:
        await self._act(remove_tree, self.work_dir / name)

    async def _act(self, act: Callable[..., object], *arguments: object) -> None:
        """Act on files as the service user. Raises CommandFailed."""
        try:
            await _in_thread(self.actor, act, *arguments)
        except OSError as error:
            raise CommandFailed(f"cannot prepare {self.work_dir}: {error.filename}: {reason_of(error)}") from error


async def clean(work_dir: Path, keep: Collection[str], actor: Actor | None = None) -> list[str]:
    """Remove the checkouts of earlier rollouts; what is called otherwise stays. The names of what was removed.

    Args:
        keep: names, ids of rollouts, that stay.
        actor: the service user, see `Checkouts`.

    Raises:
        OSError: something cannot be removed.
    """
    return await _in_thread(actor, _clean, work_dir, keep)


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, also where directories may not be written to; nothing if it is absent.

    For a thread. Links are removed, not followed.

    Raises:
        OSError: it cannot be removed, even so.
    """
    if os.path.islink(path) or not os.path.isdir(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        os.chmod(path, 0o700)
        for inside, directories, _ in os.walk(path):
            for name in directories:
                if not os.path.islink(found := os.path.join(inside, name)):
                    os.chmod(found, 0o700)
        shutil.rmtree(path)


async def _in_thread(actor: Actor | None, act: Callable[..., T], *arguments: object) -> T:
    """What the act returns or raises, carried out as that user in a thread."""

    def carry_out() -> T:
        with acting_as(actor):
            return act(*arguments)

    return await asyncio.to_thread(carry_out)


def _clean(work_dir: Path, keep: Collection[str]) -> list[str]:
    with os.scandir(work_dir) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    removed = [name for name in names if name not in keep and (name == _NEW_MIRROR or _CHECKOUT.fullmatch(name))]
    for name in removed:
        remove_tree(work_dir / name)
    return removed
