"""What lies between two commits, in words: for the question whether a release may be promoted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MOST_SUBJECTS: Final = 10

_STATISTICS: Final = re.compile(
    r"^ (\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a step from one commit to another brings.

    Attributes:
        commits: that the new one has and the old one has not.
        lost: commits that the old one has and the new one has not; not 0 when it is a step back or aside.
        files: that differ.
        subjects: the first lines of the latest of `commits`, at most 10.
    """

    commits: int
    lost: int
    files: int
    insertions: int
    deletions: int
    subjects: tuple[str, ...]

    def text(self, old: str, new: str) -> str:
        """The comparison in lines: one that counts, then one for each subject.

        Args:
            old, new: what the commits are called, such as their tags.
        """
        back = f", {_count(self.lost, 'commit')} taken back" if self.lost else ""
        added, removed = _count(self.insertions, "line"), self.deletions
        what = (
            f"{_count(self.files, 'file')} changed, {added} added, {removed} removed"
            if self.files
            else "no file differs"
        )
        lines = [f"{old} -> {new}: {_count(self.commits, 'commit')}{back}; {what}"]
        lines += [f"  {subject}" for subject in self.subjects]
        if (more := self.commits - len(self.subjects)) > 0:
            lines.append(f"  … and {more} more")
        return "\n".join(lines)


def read_changes(counts: str, statistics: str, subjects: Sequence[str]) -> Changes | None:
    """The changes from what git has written; None when it says something else.

    Args:
        counts: of `git rev-list --left-right --count OLD...NEW`.
        statistics: of `git diff --shortstat OLD NEW`; it is empty when nothing differs.
        subjects: of `git log --format=%s OLD..NEW`.
    """
    match = re.search(r"^(\d+)\t(\d+)$", counts, re.MULTILINE)
    if match is None:
        return None
    differs = _STATISTICS.search(statistics)
    files, insertions, deletions = (int(number or 0) for number in differs.groups()) if differs else (0, 0, 0)
    return Changes(int(match[2]), int(match[1]), files, insertions, deletions, tuple(subjects[:MOST_SUBJECTS]))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
