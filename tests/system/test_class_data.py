"""Archives on the disk: which start can use one, and that none outlives its release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clojarsd.core.class_data import ArchiveRecord, Jvm, archive_options, record_as_json
from clojarsd.core.errors import Failed, Refused
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import Role
from clojarsd.system.class_data import (
    Place,
    check_class_path,
    clear,
    find_jvm,
    install,
    maps_archive,
    prepare,
    quicker,
    remove_archive,
    stamps_of,
    sweep,
)
from tests.support.units import a_spec


class Disk:
    """A release with an archive, a JVM that has made it, and the launch of an instance of both."""

    def __init__(self, home: Path) -> None:
        self.releases = home / "releases"
        self.releases.mkdir()
        self.release = self.releases / "1.jar"
        self.release.write_text("classes")
        self.java = home / "jdk" / "bin" / "java"
        self.java.parent.mkdir(parents=True)
        self.java.write_text("#!/bin/sh\n")
        self.java.chmod(0o755)
        self.place = Place.of(self.releases, "1.jar")
        self.make()

    def make(self) -> None:
        prepare(self.place, ["java/lang/Object"], None)
        self.place.fresh.write_text("an archive")
        paths, jvm = stamps_of([self.release]), stamps_of([self.java])
        record = ArchiveRecord(str(self.release), paths, str(self.java), jvm, 0, 1.0, "2026-11-28T22:00:00.000Z")
        install(self.place, record, None)
        clear(self.place, None)

    def spec(self, *command: str, **changes: object) -> LaunchSpec:
        spec = a_spec(Role.BACKUP, command or (str(self.java), "-jar", str(self.release)))
        return replace(spec, **changes)  # type: ignore[arg-type]

    def quicker(self, spec: LaunchSpec | None = None) -> LaunchSpec | None:
        found = quicker(spec or self.spec(), self.releases, str(self.release))
        assert found is None or found[1] == str(self.place.archive)
        return None if found is None else found[0]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_a_start_gets_the_archive_of_its_release(disk: Disk) -> None:
    spec = disk.spec()
    found = disk.quicker(spec)
    assert found == replace(
        spec, command=(str(disk.java), *archive_options(str(disk.place.archive)), *spec.command[1:])
    )
    assert quicker(spec, disk.releases, str(disk.releases / "2.jar")) is None
    assert sorted(path.name for path in disk.place.archive.parent.iterdir()) == ["1.jar.jsa", "1.jar.json"]


def test_a_program_on_the_path_may_be_that_jvm_by_another_name(disk: Disk, tmp_path: Path) -> None:
    found = {"PATH": f"/nowhere:{tmp_path}/bin"}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").symlink_to(disk.java)
    assert disk.quicker(disk.spec("java", "-jar", "x", environment=found)) is not None
    (tmp_path / "bin" / "java").unlink()
    assert disk.quicker(disk.spec("java", "-jar", "x", environment=found)) is None, "there is none"
    (tmp_path / "bin" / "java").write_text("")
    (tmp_path / "bin" / "java").chmod(0o755)
    assert disk.quicker(disk.spec("java", "-jar", "x", environment=found)) is None, "it is another one"


def test_a_script_may_pass_the_options_on(disk: Disk) -> None:
    found = disk.quicker(disk.spec("/srv/start", "x"))
    assert found is not None
    assert found.command == ("/srv/start", "x")
    assert found.environment["CLOJARSD_JAVA_OPTIONS"] == " ".join(archive_options(str(disk.place.archive)))


def changed(path: Path) -> None:
    path.write_text(f"{path.read_text()}.")


def touched(path: Path) -> None:
    os.utime(path, (1, 1))


def gone(path: Path) -> None:
    path.unlink()


def turned_into_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def turned_into_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("release", changed),
        ("release", touched),
        ("release", gone),
        ("java", changed),
        ("java", touched),
        ("archive", changed),
        ("archive", gone),
        ("archive", turned_into_a_link),
        ("archive", turned_into_a_fifo),
        ("record", changed),
        ("record", gone),
        ("record", turned_into_a_link),
        ("record", turned_into_a_fifo),
    ],
)
def test_an_archive_that_may_not_fit_is_not_used(disk: Disk, what: str, change: Callable[[Path], None]) -> None:
    change(getattr(disk, what, None) or getattr(disk.place, what))
    assert disk.quicker() is None


def test_a_record_with_another_format_is_not_believed(disk: Disk) -> None:
    document = json.loads(disk.place.record.read_text())
    disk.place.record.write_text(json.dumps({**document, "format": 2}))
    assert disk.quicker() is None


def test_who_says_what_to_use_is_left_alone(disk: Disk, tmp_path: Path) -> None:
    assert disk.quicker(disk.spec(str(disk.java), "-Xshare:off", "x")) is None
    assert disk.quicker(disk.spec(imposed={"JAVA_TOOL_OPTIONS": "-Xshare:off"})) is None
    assert disk.quicker(disk.spec(chroot="/srv/root")) is None
    (tmp_path / "real").write_text("JAVA_TOOL_OPTIONS=-XX:SharedArchiveFile=/mine.jsa\n")
    (tmp_path / "environment").symlink_to("real")
    assert disk.quicker(disk.spec(environment_file=str(tmp_path / "environment"))) is None
    (tmp_path / "real").write_text("LANG=C.UTF-8\n")
    assert disk.quicker(disk.spec(environment_file=str(tmp_path / "environment"))) is not None


def test_an_archive_that_is_made_takes_the_place_of_the_one_before(disk: Disk) -> None:
    changed(disk.release)
    assert disk.quicker() is None
    disk.make()
    assert disk.quicker() is not None


def test_what_an_attempt_has_left_is_cleared_away(disk: Disk) -> None:
    prepare(disk.place, ["java/lang/Object"], None)
    disk.place.fresh.write_text("half an arch")
    clear(disk.place, None)
    assert sorted(path.name for path in disk.place.archive.parent.iterdir()) == ["1.jar.jsa", "1.jar.json"]
    assert disk.quicker() is not None, "the one before is untouched"


def test_archives_go_with_their_releases(disk: Disk) -> None:
    assert sweep(disk.releases, None) == ()
    disk.release.unlink()
    assert sweep(disk.releases, None) == ("1.jar",)
    assert list(disk.place.archive.parent.iterdir()) == []
    disk.release.write_text("classes")
    disk.make()
    remove_archive(disk.releases, "1.jar", None)
    assert list(disk.place.archive.parent.iterdir()) == []
    remove_archive(disk.releases, "never-there.jar", None)
    disk.place.archive.parent.rmdir()
    assert sweep(disk.releases, None) == ()
    remove_archive(disk.releases, "1.jar", None)


def test_a_release_with_a_long_name_has_a_place_too(disk: Disk) -> None:
    name = "ä" * 127
    place = Place.of(disk.releases, name)
    prepare(place, ["java/lang/Object"], None)
    assert place.classes.read_text() == "java/lang/Object\n"
    assert Place.of(disk.releases, name[:-1] + "b") != place


def test_a_directory_in_the_way_is_told_of(disk: Disk) -> None:
    disk.place.classes.mkdir()
    with pytest.raises(Failed, match=rf"^{disk.place.classes}: is a directory$"):
        prepare(disk.place, ["java/lang/Object"], None)


def test_a_class_path_must_be_jars_and_have_the_release(disk: Disk, tmp_path: Path) -> None:
    def jvm(class_path: str) -> Jvm:
        return Jvm(str(disk.java), class_path, str(disk.releases), ())

    release = str(disk.release)
    (tmp_path / "empty").mkdir()
    (disk.releases / "link.jar").symlink_to("1.jar")
    for good in (release, "1.jar", f"{tmp_path}/empty:1.jar:/not/there.jar", "link.jar"):
        check_class_path(jvm(good), release)
    with pytest.raises(Refused, match=rf"^its class path has directories \({tmp_path}\), and a JVM archives"):
        check_class_path(jvm(f"1.jar:{tmp_path}"), release)
    with pytest.raises(Refused, match=r"^its class path has nothing of its release .* \(/other\.jar\)$"):
        check_class_path(jvm("/other.jar"), release)
    with pytest.raises(Refused, match=r"\(it is empty\)$"):
        check_class_path(jvm(""), release)


def test_what_is_no_jvm_has_none_and_maps_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert find_jvm(process.pid) is None
        assert not maps_archive(process.pid, "/r/.cds/1.jar.jsa")
        process.kill()
    assert find_jvm(process.pid) is None


def test_a_record_can_be_read_back(disk: Disk) -> None:
    document = json.loads(disk.place.record.read_text())
    assert document["size"] == disk.place.archive.stat().st_size
    record = ArchiveRecord("", (), "", (), 0, 0.0, "")
    assert set(document) == set(record_as_json(record))
