"""What a deploy needs before it begins: room on the disks, and tools. Facts in, one sentence a problem out."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from clojarsd.core.memory import memory_text

RELEASES_OF_ROOM: Final = 3
"""A release is built, copied beside, and there may be a failed one: so many times its size must be free."""
RECORDS_OF_ROOM: Final = 64 * 1024**2
"""Bytes for what clojarsd itself writes: journal, history, log of the build."""
INODES: Final = 2000


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that some of the directories are on.

    Attributes:
        directories: what they are for, and their paths.
        free: bytes that a plain user may still write, None where that cannot be known.
        inodes: how many files it may still make; None where they are not counted.
    """

    directories: Mapping[str, str]
    free: int | None
    inodes: int | None


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that commands begin with.

    Attributes:
        word: as the commands name it.
        steps: whose commands those are.
        path: where it is looked up, unless it has a slash.
    """

    word: str
    steps: tuple[str, ...]
    path: str


class Found(enum.Enum):
    """What a look for a tool has found."""

    TOOL = "tool"
    NOTHING = "nothing"
    DIRECTORY = "directory"
    NOT_EXECUTABLE = "not executable"


def tools_of(commands: Iterable[tuple[str, Sequence[str], str]]) -> tuple[Tool, ...]:
    """The tools that the commands need, each once. What a checkout brings itself (`./gradlew`) is not among them.

    Args:
        commands: of each the step, its words and the PATH that it gets.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for step, command, path in commands:
        if command and (command[0].startswith("/") or "/" not in command[0]):
            steps = found.setdefault((command[0], path), [])
            if step not in steps:
                steps.append(step)
    return tuple(Tool(word, tuple(steps), path) for (word, path), steps in found.items())


def tool_problem(tool: Tool, found: Found, at: str, user: str) -> str | None:
    """What is wrong with the tool, or None.

    Args:
        at: where that was found.
        user: who is to run it.
    """
    who = ", ".join(tool.steps)
    if found is Found.TOOL:
        return None
    if found is Found.DIRECTORY:
        return f"{who}: {at} is a directory, not a command"
    if found is Found.NOT_EXECUTABLE:
        return f"{who}: {at} may not be executed by {user}"
    where = "does not exist" if "/" in tool.word else f"is not on the PATH of {user} ({tool.path})"
    return f"{who}: {tool.word} {where}"


def disk_problems(disks: Iterable[Disk], min_free: int, release_size: int) -> list[str]:
    """Where there is too little room.

    Args:
        min_free: bytes that must be free by the settings.
        release_size: bytes of the current release; 0 when there is none.
    """
    problems = []
    for disk in disks:
        is_work = not disk.directories.keys().isdisjoint(("work_dir", "releases"))
        need, why = min_free, "min_free"
        if RELEASES_OF_ROOM * release_size > need:
            need, why = RELEASES_OF_ROOM * release_size, f"{RELEASES_OF_ROOM} times the current release"
        if not is_work and need > RECORDS_OF_ROOM:
            need, why = RECORDS_OF_ROOM, "for journal and logs"
        where = ", ".join(f"{name} {path}" for name, path in disk.directories.items())
        if disk.free is not None and disk.free < need:
            problems.append(
                f"too little room in {where}: {memory_text(disk.free)} free, {memory_text(need)} needed ({why})"
            )
        if disk.inodes is not None and disk.inodes < INODES:
            problems.append(f"too few inodes in {where}: {disk.inodes} free, {INODES} needed")
    return problems
