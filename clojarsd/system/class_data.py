"""Class-data archives on the disk: which JVM to make one for, where it lies, and whether a start can use it.

Archives lie in `.cds` in the directory of releases, `NAME.jsa` with its record `NAME.json`. That directory belongs to
the service user, so what is done in it is done as that user; a start only looks, and the path of an archive comes from
the name of the release alone, never from a record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from clojarsd.core.class_data import (
    OLDEST_JVM,
    ArchiveRecord,
    Jvm,
    Stamp,
    classes_in,
    has_archive,
    is_java,
    kept_options,
    layout_options,
    major_version,
    property_of,
    record_as_json,
    record_from_json,
    unfit_entries,
    with_archive,
)
from clojarsd.core.errors import Failed, Refused, reason_of
from clojarsd.core.launch import LaunchSpec
from clojarsd.system.acting_as import Actor, acting_as
from clojarsd.system.family import descendants_of
from clojarsd.system.jvm_attach import ask_jvm

DIRECTORY: Final = ".cds"
LARGEST_RECORD: Final = 1024**2
"""Bytes."""
_LONGEST_NAME: Final = 200
"""Bytes of the name of a release that still leave room for what is put behind it."""
_JVM_FILES: Final = ("lib/server/libjvm.so", "lib/modules")
"""What an archive depends on, below the directory of a JVM."""


# The JVM that runs.


def find_jvm(pid: int) -> int | None:
    """The process that the JVM of an instance is: the instance's own, or one that a script has started. Blocks."""
    others = (number for number, _ in sorted(descendants_of(pid)))
    return next((number for number in (pid, *others) if maps(number, "/libjvm.so")), None)


def maps(pid: int, ending: str) -> bool:
    """Whether the process has mapped a file whose path ends so; False when that cannot be seen."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as lines:
            return any(line.rstrip("\n").endswith(ending) for line in lines)
    except OSError:
        return False


def maps_archive(pid: int, archive: str) -> bool:
    """Whether the JVM of an instance uses the archive; False when that cannot be seen."""
    try:
        found = find_jvm(pid)
    except OSError:
        return False
    return found is not None and maps(found, archive)


def look_at_jvm(pid: int, timeout: float) -> Jvm:
    """What an archive for the JVM needs to know. Blocks.

    Raises:
        Refused: an archive for it cannot be made.
        Failed: it cannot be asked.
    """
    version = major_version(ask_jvm(pid, "VM.version", timeout))
    if version is None or version < OLDEST_JVM:
        raise Refused(f"its JVM is too old (Java {version or 'unknown'}): archives need Java {OLDEST_JVM} or later")
    class_path = property_of(ask_jvm(pid, "VM.system_properties", timeout), "java.class.path") or ""
    try:
        java = os.readlink(f"/proc/{pid}/exe")
        directory = os.readlink(f"/proc/{pid}/cwd")
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:]
    except OSError as error:
        raise Failed(f"its JVM (process {pid}) cannot be looked at: {reason_of(error)}") from error
    if not os.path.isfile(java):  # its package was replaced
        raise Refused(f"its JVM is not on the disk any more ({java}): it must be restarted first")
    flags = layout_options(ask_jvm(pid, "VM.flags -all", timeout))
    return Jvm(java, class_path, directory, (*flags, *kept_options([os.fsdecode(word) for word in words])))


def classes_of(pid: int, timeout: float) -> tuple[str, ...]:
    """The classes that the JVM has loaded and that an archive can hold. Blocks. Raises Failed."""
    return classes_in(ask_jvm(pid, "VM.classloaders show-classes=true", timeout))


def check_class_path(jvm: Jvm, release: str) -> None:
    """Look whether an archive can be made of that class path and belongs to that release. Raises Refused."""
    directories = [str(entry) for entry in jvm.entries if os.path.isdir(entry) and os.listdir(entry)]
    if directories:
        raise Refused(unfit_entries(directories))
    inside = [entry for entry in jvm.entries if f"{os.path.realpath(entry)}/".startswith(f"{release}/")]
    if not inside:
        raise Refused(f"its class path has nothing of its release {release} ({jvm.class_path or 'it is empty'})")


def stamps_of(paths: Sequence[str | os.PathLike[str]]) -> tuple[Stamp, ...]:
    """The files as a JVM recognises them; those that are not there are left out, as it does."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            seen = os.stat(path)
            found.append(Stamp(os.fspath(path), seen.st_size, seen.st_mtime_ns))
    return tuple(found)


def jvm_files(java: str) -> tuple[str, ...]:
    """The files of the JVM whose program that is."""
    home = Path(java).parent.parent
    return (java, *(str(home / name) for name in _JVM_FILES))


# The archives.


@dataclass(frozen=True, slots=True)
class Place:
    """Where the archive of one release lies.

    Attributes:
        classes, fresh: the list of classes and the archive while it is made.
    """

    archive: Path
    record: Path
    classes: Path
    fresh: Path

    @classmethod
    def of(cls, releases: Path, release: str) -> Place:
        """The place for the release of that name."""
        name = release
        if len(os.fsencode(name)) > _LONGEST_NAME:
            name = hashlib.sha256(os.fsencode(name)).hexdigest()
        directory = releases / DIRECTORY
        return cls(*(directory / f"{name}.{ending}" for ending in ("jsa", "json", "classes", "new")))


@contextlib.contextmanager
def _acting_in(place: Place, actor: Actor | None) -> Iterator[None]:
    """Act as the service user in the directory of archives. Raises Failed."""
    try:
        with acting_as(actor):
            yield
    except OSError as error:
        raise Failed(f"{error.filename or place.archive.parent}: {reason_of(error)}") from error


def prepare(place: Place, classes: Sequence[str], actor: Actor | None) -> None:
    """Write the list of classes, and clear away what an earlier attempt has left. Blocks. Raises Failed."""
    with _acting_in(place, actor):
        place.archive.parent.mkdir(mode=0o755, exist_ok=True)
        place.fresh.unlink(missing_ok=True)
        _write(place.classes, "".join(f"{name}\n" for name in classes))


def install(place: Place, record: ArchiveRecord, actor: Actor | None) -> None:
    """Put the archive that was made in place of the one before, with its record. Blocks. Raises Failed.

    Until the last rename there is no record, and so no archive that a start would use.
    """
    with _acting_in(place, actor):
        _flush(place.fresh)
        text = json.dumps(record_as_json(replace(record, size=place.fresh.stat().st_size)))
        place.record.unlink(missing_ok=True)
        place.fresh.rename(place.archive)
        _write(place.fresh, text)
        _flush(place.fresh)
        place.fresh.rename(place.record)
        _flush(place.archive.parent, os.O_DIRECTORY)


def clear(place: Place, actor: Actor | None) -> None:
    """Remove what was only needed, or is left of an attempt that failed. Blocks. Raises Failed."""
    with _acting_in(place, actor):
        for path in (place.classes, place.fresh):
            path.unlink(missing_ok=True)


def remove_archive(releases: Path, release: str, actor: Actor | None) -> None:
    """Remove the archive of a release that is removed. Blocks. Raises Failed."""
    place = Place.of(releases, release)
    with _acting_in(place, actor):
        for path in (place.record, place.archive):
            with contextlib.suppress(NotADirectoryError):
                path.unlink(missing_ok=True)


def sweep(releases: Path, actor: Actor | None) -> tuple[str, ...]:
    """Remove the archives of releases that are no more; the names of those. Blocks. Raises Failed."""
    directory, swept = releases / DIRECTORY, []
    with _acting_in(Place.of(releases, "x"), actor):
        names = os.listdir(directory) if directory.is_dir() else []
        for name in names:
            record = _read(directory / name) if name.endswith(".json") else None
            if record is not None and not os.path.lexists(record.release):
                (directory / name).unlink()
                (directory / f"{name.removesuffix('.json')}.jsa").unlink(missing_ok=True)
                swept.append(os.path.basename(record.release))
    return tuple(swept)


def quicker(spec: LaunchSpec, releases: Path, release: str) -> tuple[LaunchSpec, str] | None:
    """The launch with the archive of its release, and the archive; None where none fits, or it says what it uses.

    Args:
        release: absolute path of the release, with no link in it.
    """
    if spec.chroot is not None:
        return None
    place = Place.of(releases, os.path.basename(release))
    record = _read(place.record)
    if record is None or not _fits(record, place, release):
        return None
    if is_java(spec.command) and _program(spec) != record.java:
        return None
    environment = {**spec.environment, **spec.imposed}
    if has_archive(spec.command, environment, _text_of(spec.environment_file)):
        return None
    command, changed = with_archive(spec.command, spec.environment, str(place.archive))
    return replace(spec, command=command, environment=changed), str(place.archive)


def _fits(record: ArchiveRecord, place: Place, release: str) -> bool:
    """Whether the archive is the one that was made, of what is there now. A JVM that finds out does without any."""
    try:
        seen = place.archive.lstat()
    except OSError:
        return False
    is_whole = stat.S_ISREG(seen.st_mode) and seen.st_size == record.size
    paths = [*record.paths, *record.jvm]
    return is_whole and record.release == release and stamps_of([one.path for one in paths]) == tuple(paths)


def _program(spec: LaunchSpec) -> str | None:
    """The program that the launch runs, with no link in its path."""
    search: Mapping[str, str] = spec.environment
    found = shutil.which(spec.command[0], path=search.get("PATH", os.defpath))
    return os.path.realpath(found) if found is not None else None


def _read(path: Path) -> ArchiveRecord | None:
    text = _text_of(path, os.O_NOFOLLOW)
    try:
        return record_from_json(json.loads(text)) if text else None
    except (ValueError, RecursionError):
        return None


def _text_of(path: str | Path | None, flags: int = 0) -> str:
    """What stands in a small ordinary file; nothing where there is no such file. Never waits, whatever is there."""
    if path is None:
        return ""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except OSError:
        return ""
    with open(opened, "rb") as file:
        is_file = stat.S_ISREG(os.fstat(opened).st_mode)
        return file.read(LARGEST_RECORD).decode(errors="replace") if is_file else ""


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(opened, "w", encoding="utf-8") as file:
        file.write(text)


def _flush(path: Path, flags: int = 0) -> None:
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
