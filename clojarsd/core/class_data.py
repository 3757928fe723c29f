"""Class-data archives: what a JVM says of its classes, how an archive is made of that, and how a start uses it.

An archive holds classes as the JVM has them in memory after loading, so that a start maps them instead (class-data
sharing, CDS). It is bound to the files it was made from and to the JVM that has made it; a JVM that finds another path,
size or time does without.

Source: the options are those of java(1), "Application Class Data Sharing"; the commands those of jcmd(1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from clojarsd.core.codec import Unfit, decode, encode
from clojarsd.core.errors import Failed

FORMAT: Final = 1
OLDEST_JVM: Final = 11
"""The first version that both lists its classes by loader and archives those of applications without a licence."""
FEWEST_CLASSES: Final = 200
"""A JVM that has started has more, so that fewer mean that its list was not understood."""
OPTIONS_VARIABLE: Final = "CLOJARSD_JAVA_OPTIONS"
"""What a command that is no `java` itself finds the options in."""
DUMP_HEAP: Final = 512 * 1024**2
"""Bytes of heap that the making of an archive may use: it holds few objects, whatever the application holds."""

_LOADER = re.compile(r"^[ |]*\+-- (?P<loader>.+)$")
_CLASS = re.compile(r"^[ |]*(?:Classes: )?(?P<name>[^\s\[(/|+]\S*)$")
_SHARED_LOADERS = ("<bootstrap>", '"platform"', '"app"')
"""Whose classes an archive can hold; others may find a class of the same name somewhere else."""
_VERSION = re.compile(r"^JDK (?P<major>[0-9]+)\.", re.MULTILINE)
_FLAG = re.compile(r"^\s*\w+ (?P<name>\w+)\s+=\s+(?P<value>\S+)", re.MULTILINE)
_LAYOUT = ("UseCompressedOops", "UseCompressedClassPointers", "ObjectAlignmentInBytes", "UseCompactObjectHeaders")
"""Flags that decide how objects lie in memory: an archive of another layout is refused."""
_OWN_ARCHIVE = ("SharedArchiveFile", "-Xshare:", "ArchiveClassesAtExit", "AutoCreateSharedArchive", "-XX:AOT")
_WITH_VALUE = frozenset(
    {
        *("-cp", "-classpath", "--class-path", "-p", "--module-path", "--upgrade-module-path", "--limit-modules"),
        *("--add-modules", "--add-opens", "--add-exports", "--add-reads", "--patch-module", "--enable-native-access"),
    }
)
"""Options whose value is the next argument."""
_OPTION_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file as a JVM recognises it. mtime: nanoseconds since 1970."""

    path: str
    size: int
    mtime: int


@dataclass(frozen=True, slots=True)
class ArchiveRecord:
    """What an archive was made of, which decides whether a start uses it.

    Attributes:
        release: absolute path of the release.
        paths: the files of the class path.
        java: absolute path of the program that has made it.
        jvm: the files of that JVM.
        size: bytes of the archive.
        seconds: that it took.
        made_at: UTC.
    """

    release: str
    paths: tuple[Stamp, ...]
    java: str
    jvm: tuple[Stamp, ...]
    size: int
    seconds: float
    made_at: str
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Made:
    """An archive that was made. path: where it is; bytes: its size; seconds: that it took."""

    path: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Jvm:
    """A running JVM, as far as an archive for it needs to know.

    Attributes:
        java: absolute path of its program.
        class_path: as it was given to it; what the archive is checked against, word by word.
        directory: absolute path that relative names in the class path start from.
        options: those that an archive must be made with.
    """

    java: str
    class_path: str
    directory: str
    options: tuple[str, ...]

    @property
    def entries(self) -> tuple[PurePath, ...]:
        """The files and directories of the class path, absolute."""
        return tuple(PurePath(self.directory, entry) for entry in self.class_path.split(":") if entry)


def record_as_json(record: ArchiveRecord) -> dict[str, Any]:
    """The document that `record_from_json` reads."""
    document: dict[str, Any] = encode(record)
    return document


def record_from_json(document: object) -> ArchiveRecord | None:
    """The record that a document holds; None when it holds none, or one of another version."""
    try:
        record = decode(ArchiveRecord, document)
    except Unfit:
        return None
    return record if record.format == FORMAT else None


def major_version(text: str) -> int | None:
    """The version of a JVM from what it answers to `VM.version`: 17 of `JDK 17.0.15`; None where it does not say.

    Java 8 says `JDK 8.0_…`, and so has a version as well.
    """
    found = _VERSION.search(text)
    return int(found["major"]) if found else None


def property_of(text: str, name: str) -> str | None:
    """One of the properties that a JVM answers to `VM.system_properties`, in the form of java.util.Properties."""
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key == name:
            return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", lambda found: _unescaped(*found.groups()), value)
    return None


def _unescaped(code: str | None, character: str | None) -> str:
    return chr(int(code, 16)) if code is not None else character or ""


def layout_options(text: str) -> tuple[str, ...]:
    """The options by which objects lie as in the JVM that answers so to `VM.flags -all`, with a small heap."""
    flags = {found["name"]: found["value"] for found in _FLAG.finditer(text)}
    options = [f"-XX:MaxHeapSize={DUMP_HEAP}"]
    for name in _LAYOUT:
        value = flags.get(name)
        if value is not None and name == "UseCompactObjectHeaders":
            options.append("-XX:+UnlockExperimentalVMOptions")  # it was experimental in its first version
        if value in ("true", "false"):
            options.append(f"-XX:{'+' if value == 'true' else '-'}{name}")
        elif value is not None:
            options.append(f"-XX:{name}={value}")
    return tuple(options)


def kept_options(arguments: Sequence[str]) -> tuple[str, ...]:
    """Those of a JVM's arguments that an archive depends on; arguments of the application are not looked at.

    All others, such as agents, ports for debuggers and logs, are the instance's own.
    """
    kept, before = [], ""
    for argument in arguments:
        if (not argument.startswith("-") and before not in _WITH_VALUE) or argument in ("-jar", "-m", "--module"):
            break
        before = argument
        if argument == "--enable-preview" or argument.startswith("-Xbootclasspath/a:"):
            kept.append(argument)
    return tuple(kept)


def classes_in(text: str) -> tuple[str, ...]:
    """The classes that an archive can hold, as `java/lang/Object`, in the order in which they were loaded.

    Args:
        text: what a JVM answers to `VM.classloaders show-classes=true`: a tree of loaders with their classes below.

    Raises:
        Failed: that cannot be understood.
    """
    names: dict[str, None] = {}
    is_shared = False
    for line in text.splitlines():
        if loader := _LOADER.match(line):
            is_shared = loader["loader"].startswith(_SHARED_LOADERS)
        elif is_shared and (found := _CLASS.match(line)) and "/" not in found["name"]:
            names[found["name"].replace(".", "/")] = None
    if len(names) < FEWEST_CLASSES:
        raise Failed(f"its JVM names {len(names)} classes, and has more: its list of classes is not understood")
    return tuple(names)


def dump_command(jvm: Jvm, classes: str, archive: str) -> tuple[str, ...]:
    """The command that makes an archive of the classes that a file lists; it runs nothing of the application."""
    return (
        jvm.java,
        *jvm.options,
        "-Xshare:dump",
        f"-XX:SharedClassListFile={classes}",
        f"-XX:SharedArchiveFile={archive}",
        "-Xlog:disable",
        "-Xlog:all=error:stderr",
        "-cp",
        jvm.class_path,
    )


def trial_command(jvm: Jvm, archive: str) -> tuple[str, ...]:
    """The command that fails when the JVM does not take the archive, or one of the options with which it is used."""
    return (jvm.java, *jvm.options, *archive_options(archive), "-Xshare:on", "-cp", jvm.class_path, "-version")


def archive_options(archive: str) -> tuple[str, ...]:
    """The options of a start with the archive. With one that is refused the JVM says nothing and starts without.

    It looks at the checksums as well: one whose bytes have changed would be believed, and kill it.
    """
    return (f"-XX:SharedArchiveFile={archive}", "-Xshare:auto", "-XX:+VerifySharedSpaces", "-Xlog:cds*=off")


def is_java(command: Sequence[str]) -> bool:
    """Whether the program is a JVM's own, so that options can follow it."""
    return PurePath(command[0]).name == "java"


def with_archive(
    command: Sequence[str], environment: Mapping[str, str], archive: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The command and the environment of a start with the archive.

    A command that is no `java` finds the options in an environment variable of ours, and may pass them on: the JVM's
    own variables make it say so on stderr, also where a script asks it for nothing but its version.
    """
    options = archive_options(archive)
    if is_java(command):
        return (command[0], *options, *command[1:]), dict(environment)
    if any(" " in option for option in options):  # a shell would make several of it
        return tuple(command), dict(environment)
    return tuple(command), {**environment, OPTIONS_VARIABLE: " ".join(options)}


def has_archive(command: Sequence[str], environment: Mapping[str, str], file: str = "") -> bool:
    """Whether the start says already which archive it uses, or that it uses none.

    Args:
        file: what stands in the environment file.
    """
    words = [*command, *(environment.get(name, "") for name in _OPTION_VARIABLES), file]
    return any(mark in word for word in words for mark in _OWN_ARCHIVE)


def describe_made(role: str, made: Made, before: float | None, *, had_one: bool, is_used: bool) -> str:
    """The last sentence about an archive that was made.

    Args:
        before: seconds that the start-up of the instance took that runs now, or None; had_one: with an archive.
        is_used: whether starts use it.
    """
    told = [f"archive {made.path}: {made.bytes / 1e6:.0f} MB in {made.seconds:.1f} s"]
    if before is not None:
        told.append(f"start-up {'with the one before' if had_one else 'without it'} took {before:.2f} s")
    told.append(f"`clojarsctl restart {role}` starts with it" if is_used else "starts use it when deploy.cds is true")
    return "; ".join(told)


def unfit_entries(directories: Iterable[str]) -> str:
    """The sentence about a class path with directories."""
    return (
        f"its class path has directories ({', '.join(directories)}), and a JVM archives classes from jars alone;"
        " a release as one jar can have an archive"
    )
