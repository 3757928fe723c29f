"""Releases are never changed, whole or not there, and the link names one or the other."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed, Refused
from clojarsd.core.releases import ReleaseKind
from clojarsd.system import releases as module
from clojarsd.system.acting_as import Actor
from clojarsd.system.releases import Current, Installed, ReleaseStore
from tests.support.namespaces import apart
from tests.support.real import unavailable
from tests.support.small_disks import fill, mount_small

CHECKOUT = Path(__file__).parents[2]
LINK = "current.jar"
UID = 12345


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    store = ReleaseStore(tmp_path / "releases", LINK, None)
    store.prepare()
    return store


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    path = tmp_path / "app.jar"
    path.write_bytes(random.Random(1).randbytes(2_500_000))
    return path


def make_tree(root: Path) -> Path:
    """A release as a directory, with everything that may be in one."""
    (root / "lib" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o700)
    (root / "lib.txt").write_text("sorts between lib and what is in it, as text")
    (root / "lib" / "a.jar").write_bytes(b"a" * 3_000_000)
    (root / "lib" / "deep" / os.fsdecode(b"not utf-8 \xff")).write_text("")
    (root / "lib" / "up").symlink_to("../run")
    (root / "lib" / "nowhere").symlink_to("deep/missing")
    return root


def entries(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


# Bringing one in.


def test_a_file_is_copied_read_only_and_its_checksum_is_that_of_sha256sum(store: ReleaseStore, artefact: Path) -> None:
    installed = store.install(artefact, "app-1.jar")
    expected = "sha256:" + hashlib.sha256(artefact.read_bytes()).hexdigest()
    assert installed == Installed(expected, 2_500_000, ReleaseKind.FILE)
    place = store.directory / "app-1.jar"
    assert place.read_bytes() == artefact.read_bytes()
    assert stat.S_IMODE(place.stat().st_mode) == 0o444
    assert entries(store.directory) == ["app-1.jar"]
    assert store.checksum("app-1.jar") == store.checksum_of(artefact) == expected
    store.verify("app-1.jar", expected)


def test_a_program_stays_one(store: ReleaseStore, artefact: Path) -> None:
    artefact.chmod(0o4750)
    store.install(artefact, "app-1")
    assert stat.S_IMODE((store.directory / "app-1").stat().st_mode) == 0o555


def test_a_directory_is_copied_with_all_that_is_in_it(store: ReleaseStore, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "app")
    installed = store.install(source, "app-1")
    place = store.directory / "app-1"
    assert installed.kind is ReleaseKind.DIRECTORY
    assert installed.size == 3_000_000 + 10 + 44
    assert subprocess.run(["diff", "-r", "--no-dereference", source, place], check=False).returncode == 0
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in place.rglob("*") if not path.is_symlink()}
    assert {name: mode for name, mode in modes.items() if mode != 0o555} == {
        "lib.txt": 0o444,
        "a.jar": 0o444,
        os.fsdecode(b"not utf-8 \xff"): 0o444,
    }
    assert stat.S_IMODE(place.stat().st_mode) == 0o555
    assert store.checksum("app-1") == store.checksum_of(source) == installed.checksum
    assert entries(store.directory) == ["app-1"]


def test_the_checksum_of_a_directory_is_what_the_document_says(store: ReleaseStore, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "app")

    def of(content: bytes) -> bytes:
        return hashlib.sha256(content).hexdigest().encode()

    said = b"".join(
        [
            b"release directory 1\0",
            b"dempty\0",
            b"dlib\0",
            b"f" + of(b"a" * 3_000_000) + b"lib/a.jar\0",
            b"dlib/deep\0",
            b"f" + of(b"") + b"lib/deep/not utf-8 \xff\0",
            b"l" + of(b"deep/missing") + b"lib/nowhere\0",
            b"l" + of(b"../run") + b"lib/up\0",
            b"f" + of((source / "lib.txt").read_bytes()) + b"lib.txt\0",
            b"x" + of(b"#!/bin/sh\n") + b"run\0",
        ]
    )
    assert store.checksum_of(source) == "sha256:" + hashlib.sha256(said).hexdigest()


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte": lambda root: (root / "lib.txt").write_text("sorts between lib and what is in it, as tex!"),
    "a name": lambda root: (root / "lib.txt").rename(root / "lib.text"),
    "a program": lambda root: (root / "run").chmod(0o600),
    "a target": lambda root: relink(root / "lib" / "up", "../lib.txt"),
    "a directory more": lambda root: (root / "new").mkdir(),
    "a file less": lambda root: (root / "lib.txt").unlink(),
    "a link that was a file": lambda root: relink(root / "run", "lib.txt"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_any_change_of_a_directory_changes_its_checksum(
    store: ReleaseStore, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    source = make_tree(tmp_path / "app")
    before = store.checksum_of(source)
    for path in (source, source / "run", source / "lib.txt"):
        os.utime(path, (1, 1))
        path.chmod(path.stat().st_mode | 0o044)
    assert store.checksum_of(source) == before, "neither times nor the rights of others count"
    change(source)
    assert store.checksum_of(source) != before


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # the whole path may be too long for one
        made.bind(path.name)
        os.chdir(here)


def _link_by_another(path: Path) -> None:
    (path.parent / "to-root").symlink_to("..")
    path.symlink_to("to-root/../x")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "{} is a pipe, which cannot be part of a release"),
        (_socket, "{} is a socket, which cannot be part of a release"),
        (lambda path: path.symlink_to("/etc"), "{} is a symbolic link that leads out of the release, to /etc"),
        (lambda path: path.symlink_to("../.."), "{} is a symbolic link that leads out of the release, to ../.."),
        (
            _link_by_another,
            "{} is a symbolic link that leads out of the release, to to-root/../x",
        ),
    ],
    ids=["pipe", "socket", "absolute", "above", "above by way of another"],
)
def test_what_cannot_be_part_of_a_release_is_refused(
    store: ReleaseStore, tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    source = tmp_path / "app"
    (source / "sub").mkdir(parents=True)
    odd = source / "sub" / "odd"
    make(odd)
    for act in (lambda: store.install(source, "app-1"), lambda: store.checksum_of(source)):
        with pytest.raises(Refused) as refused:
            act()
        assert str(refused.value) == why.format(odd)
    assert entries(store.directory) == []


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.symlink_to("elsewhere"), "{} is a symbolic link; a release is a file or a directory"),
        (os.mkfifo, "{} is a pipe; a release is a file or a directory"),
    ],
)
def test_an_artefact_is_a_file_or_a_directory(
    store: ReleaseStore, tmp_path: Path, make: Callable[[Path], None], why: str
) -> None:
    make(tmp_path / "odd")
    with pytest.raises(Refused) as refused:
        store.install(tmp_path / "odd", "app-1")
    assert str(refused.value) == why.format(tmp_path / "odd")


def test_an_artefact_that_is_not_there_is_told(store: ReleaseStore, tmp_path: Path) -> None:
    with pytest.raises(Failed) as failed:
        store.install(tmp_path / "none.jar", "app-1.jar")
    assert str(failed.value) == f"cannot install app-1.jar: {tmp_path}/none.jar: no such file or directory"


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\0b", LINK])
def test_a_name_that_no_release_can_have_is_refused(store: ReleaseStore, artefact: Path, name: str) -> None:
    for act in (lambda: store.install(artefact, name), lambda: store.switch(name), lambda: store.remove(name)):
        with pytest.raises(Refused) as refused:
            act()
        assert str(refused.value) == f"{name!r} cannot be the name of a release in {store.directory}"


class WithoutNoReplace:
    """A C library on a file system that cannot rename without replacing, as NFS."""

    def renameat2(self, *_: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1


@pytest.mark.parametrize("is_able", [True, False], ids=["renameat2", "without"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_has_the_name_is_never_replaced(
    store: ReleaseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_able: bool
) -> None:
    if not is_able:
        monkeypatch.setattr(module, "_libc", WithoutNoReplace())
    source = tmp_path / "app"
    if kind == "file":
        source.write_text("new")
    else:
        make_tree(source)
    store.install(source, "fresh")
    occupants: dict[str, Callable[[Path], object]] = {
        "file": lambda path: path.write_text("old"),
        "directory": Path.mkdir,
    }
    for name, occupy in occupants.items():
        occupy(store.directory / name)
        before = store.checksum(name)
        with pytest.raises(Refused) as refused:
            store.install(source, name)
        assert str(refused.value) == (
            f"cannot install {name}: {store.directory} has another release of that name"
            f" ({before[:15]}… instead of {store.checksum_of(source)[:15]}…); it was left as it is"
        )
        assert store.checksum(name) == before
    assert entries(store.directory) == ["directory", "file", "fresh"]
    store.verify("fresh", store.checksum_of(source))


def test_the_same_release_is_installed_once(store: ReleaseStore, artefact: Path) -> None:
    first = store.install(artefact, "app-1.jar")
    inode = (store.directory / "app-1.jar").stat().st_ino
    second = store.install(artefact, "app-1.jar")
    assert (second.checksum, second.was_there, first.was_there) == (first.checksum, True, False)
    assert (store.directory / "app-1.jar").stat().st_ino == inode
    assert entries(store.directory) == ["app-1.jar"]


def test_everything_is_on_the_disk_before_it_gets_its_name_and_the_name_is_too(
    store: ReleaseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "app"
    (source / "lib").mkdir(parents=True)
    (source / "lib" / "a.jar").write_text("a")
    acts: list[str] = []
    fsync, rename = os.fsync, module._rename_to_new

    def see_fsync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        acts.append(f"fsync {path.relative_to(store.directory)}")
        fsync(fd)

    def see_rename(old: Path, new: Path) -> bool:
        acts.append(f"rename {new.name}")
        return rename(old, new)

    monkeypatch.setattr(os, "fsync", see_fsync)
    monkeypatch.setattr(module, "_rename_to_new", see_rename)
    store.install(source, "app-1")
    incoming = acts[-3].removeprefix("fsync ")
    assert incoming.startswith(".incoming-")
    assert acts == [
        f"fsync {incoming}/lib/a.jar",
        f"fsync {incoming}/lib",
        f"fsync {incoming}",
        "rename app-1",
        "fsync .",
    ]


def test_what_was_cut_is_taken_away_by_the_next(store: ReleaseStore, artefact: Path) -> None:
    for left in (".incoming-0123", ".outgoing-4567"):
        make_tree(store.directory / left)
        (store.directory / left / "lib").chmod(0o555)
        (store.directory / left).chmod(0o555)
    (store.directory / ".link-89ab").symlink_to("app-0.jar")
    (store.directory / ".kept").write_text("somebody else's")
    store.install(artefact, "app-1.jar")
    assert entries(store.directory) == [".kept", "app-1.jar"]
    (store.directory / ".incoming-0123").write_text("")
    store.tidy()
    assert entries(store.directory) == [".kept", "app-1.jar"]


# The link.


def test_the_link_is_relative_and_replaced_by_a_rename(store: ReleaseStore, artefact: Path) -> None:
    assert store.current() == Current()
    for name in ("app-1.jar", "app-2.jar", "app-2.jar"):
        store.install(artefact, name)
        store.switch(name)
        assert os.readlink(store.directory / LINK) == name
        assert store.current() == Current(name)
    assert entries(store.directory) == ["app-1.jar", "app-2.jar", LINK]


def test_the_new_link_is_on_the_disk_when_switch_returns(
    store: ReleaseStore, artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(artefact, "app-1.jar")
    acts: list[str] = []
    fsync, rename = os.fsync, os.rename

    def see_fsync(fd: int) -> None:
        acts.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    def see_rename(old: Path, new: Path) -> None:
        acts.append(f"rename to {new.name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", see_fsync)
    monkeypatch.setattr(os, "rename", see_rename)
    store.switch("app-1.jar")
    assert acts == [f"rename to {LINK}", "fsync releases"]


def test_a_switch_that_fails_leaves_the_link_as_it_was(
    store: ReleaseStore, artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(artefact, "app-1.jar")
    store.install(artefact, "app-2.jar")
    store.switch("app-1.jar")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", fail)
        with pytest.raises(Failed) as failed:
            store.switch("app-2.jar")
    assert str(failed.value) == f"cannot switch {store.directory}/{LINK} to app-2.jar: input/output error"
    assert store.current() == Current("app-1.jar")
    assert entries(store.directory) == ["app-1.jar", "app-2.jar", LINK]


@pytest.mark.parametrize(
    ("make", "what"),
    [(Path.mkdir, "a directory"), (lambda path: path.write_text("a jar"), "a file")],
    ids=["directory", "file"],
)
def test_what_should_be_the_link_and_is_not_is_left(
    store: ReleaseStore, artefact: Path, make: Callable[[Path], object], what: str
) -> None:
    store.install(artefact, "app-1.jar")
    make(store.directory / LINK)
    acts: list[Callable[[], None]] = [lambda: store.switch("app-1.jar"), store.unlink_current]
    for act in acts:
        with pytest.raises(Refused) as refused:
            act()
        assert str(refused.value) == (
            f"{store.directory}/{LINK} is no link, but {what}; it was left as it is: move it away"
        )
    assert store.current() == Current(problem=f"{store.directory}/{LINK} is no link, but {what}")
    assert list(store.present()) == ["app-1.jar"]


def test_the_link_never_names_what_is_not_there(store: ReleaseStore) -> None:
    (store.directory / "odd").symlink_to("elsewhere")
    for name in ("app-1.jar", "odd"):
        with pytest.raises(Refused) as refused:
            store.switch(name)
        assert str(refused.value) == (
            f"cannot switch {store.directory}/{LINK} to {name}: there is no such release in {store.directory}"
        )


def test_a_link_that_somebody_else_has_made_is_told(store: ReleaseStore, artefact: Path) -> None:
    link = store.directory / LINK
    link.symlink_to("gone.jar")
    assert store.current() == Current("gone.jar", f"{link} names gone.jar, which is not there")
    link.unlink()
    link.symlink_to(artefact)
    assert store.current() == Current("app.jar", f"{link} leads out of {store.directory}, to {artefact}")
    link.unlink()
    store.install(artefact, "app-1.jar")
    link.symlink_to(store.directory / "app-1.jar")
    assert store.current() == Current("app-1.jar")


def test_the_link_can_be_taken_away(store: ReleaseStore, artefact: Path) -> None:
    store.install(artefact, "app-1.jar")
    store.switch("app-1.jar")
    for _ in range(2):
        store.unlink_current()
        assert store.current() == Current()


# Taking one away, and what there is.


def test_a_release_is_taken_away_with_all_that_is_in_it(store: ReleaseStore, artefact: Path, tmp_path: Path) -> None:
    store.install(artefact, "app-1.jar")
    store.install(make_tree(tmp_path / "app"), "app-2")
    assert store.present() == {"app-1.jar": ReleaseKind.FILE, "app-2": ReleaseKind.DIRECTORY}
    for name in ("app-1.jar", "app-2", "app-2"):
        store.remove(name)
    assert entries(store.directory) == []


def test_the_current_release_is_not_taken_away(store: ReleaseStore, artefact: Path) -> None:
    store.install(artefact, "app-1.jar")
    store.switch("app-1.jar")
    with pytest.raises(Refused, match=r"^cannot remove the release app-1\.jar: it is the current one$"):
        store.remove("app-1.jar")
    assert store.current() == Current("app-1.jar")


def test_what_is_no_release_is_not_listed_but_has_its_name(store: ReleaseStore, artefact: Path) -> None:
    store.install(artefact, "app-1.jar")
    store.switch("app-1.jar")
    (store.directory / "odd").symlink_to("app-1.jar")
    (store.directory / ".hidden").write_text("")
    assert list(store.present()) == ["app-1.jar"]
    assert store.taken() == {"app-1.jar", "odd", LINK}
    shutil.rmtree(store.directory)
    assert (store.present(), store.taken(), store.current()) == ({}, frozenset(), Current())


def test_a_release_that_has_changed_is_told(store: ReleaseStore, artefact: Path) -> None:
    checksum = store.install(artefact, "app-1.jar").checksum
    place = store.directory / "app-1.jar"
    place.chmod(0o600)
    place.write_text("other")
    with pytest.raises(Failed) as failed:
        store.verify("app-1.jar", checksum)
    assert str(failed.value) == (
        f"{place} is not what was installed: its checksum is {store.checksum('app-1.jar')[:15]}… instead of"
        f" {checksum[:15]}…; deploy it again, or go back with `clojarsctl rollback`"
    )
    with pytest.raises(Failed, match=r"app-2\.jar: no such file or directory$"):
        store.verify("app-2.jar", checksum)


# As somebody else.


@pytest.fixture
def foreign(tmp_path: Path) -> ReleaseStore:
    """A directory of releases that belongs to another user."""
    if os.geteuid() != 0:
        unavailable("not root, who alone can act as others")
    for above in (tmp_path, *tmp_path.parents):
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, UID, UID)
    store = ReleaseStore(home / "some" / "releases", LINK, Actor(UID, UID))
    store.prepare()
    return store


def test_everything_belongs_to_the_service_user(foreign: ReleaseStore, artefact: Path, tmp_path: Path) -> None:
    foreign.install(artefact, "app-1.jar")
    source = make_tree(tmp_path / "app")
    (source / "run").chmod(0o755)
    foreign.install(source, "app-2")
    foreign.switch("app-1.jar")
    made = [foreign.directory.parent, foreign.directory, *foreign.directory.rglob("*")]
    assert len(made) > 10
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in made} == {(UID, UID)}
    foreign.remove("app-2")
    assert entries(foreign.directory) == ["app-1.jar", LINK]


def test_what_the_service_user_may_not_do_is_not_done(foreign: ReleaseStore, artefact: Path) -> None:
    artefact.chmod(0o600)
    with pytest.raises(Failed, match=rf"^cannot install app-1\.jar: {artefact}: permission denied$"):
        foreign.install(artefact, "app-1.jar")
    artefact.chmod(0o644)
    os.chown(foreign.directory, 0, 0)
    with pytest.raises(Failed, match=r"^cannot install app-1\.jar: .*: permission denied$"):
        foreign.install(artefact, "app-1.jar")
    assert entries(foreign.directory) == []


# Cut at any moment, and disks that are full.

WORKER = """
import itertools, os, sys
from pathlib import Path
from clojarsd.system.releases import ReleaseStore

store = ReleaseStore(Path(sys.argv[1]), "current.jar", None)
sources = [Path(path) for path in sys.argv[2:]]
known = set(store.present())
for number in itertools.count(len(known)):
    for source in sources:
        name = f"{source.name}-{os.getpid()}-{number}"
        store.install(source, name)
        store.switch(name)
        os.write(1, b".")
        for old in list(store.present()):
            if old != name:
                store.remove(old)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_link_names_a_whole_release(store: ReleaseStore, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    jar, tree = tmp_path / "jar", make_tree(tmp_path / "tree")
    jar.write_bytes(b"jar" * 1_000_000)
    checksums = {source.name: store.checksum_of(source) for source in (jar, tree)}
    for _ in range(25):
        command = [sys.executable, "-c", WORKER, str(store.directory), str(jar), str(tree)]
        with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            worker.stdout.read(1)
            for _ in range(moments.randrange(40)):
                os.sched_yield()
                store.taken()
            worker.send_signal(signal.SIGKILL)
        current = store.current()
        assert current.problem is None
        assert current.name is not None
        for name in store.present():
            assert store.checksum(name) == checksums[name.partition("-")[0]]
        store.tidy()
        assert not [name for name in entries(store.directory) if name.startswith(".")]


@pytest.mark.real
@pytest.mark.parametrize(("kind", "size"), [("tmpfs", 6_000_000), ("ext4", 8_000_000)])
@apart(bpf_fs=False)
def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path, kind: str, size: int) -> None:
    disk, jar, tree = tmp_path / "disk", tmp_path / "jar", make_tree(tmp_path / "tree")
    disk.mkdir()
    mount_small(disk, size, kind)
    jar.write_bytes(b"jar" * 500_000)
    store = ReleaseStore(disk / "releases", LINK, None)
    store.prepare()
    store.install(jar, "app-1.jar")
    store.switch("app-1.jar")
    huge = Path("/proc/kallsyms")  # says that it is empty, so that nobody can know before
    for _ in range(2):
        with pytest.raises(Failed, match=r"^cannot install huge: no space left on device$"):
            store.install(huge, "huge")
    assert entries(store.directory) == ["app-1.jar", LINK]
    ballast = fill(disk)
    for source, needs in ((jar, r"1\.5 MB"), (tree, r"3\.\d MB")):
        with pytest.raises(Failed) as failed:
            store.install(source, "app-2")
        assert failed.match(
            rf"^cannot install app-2: it takes {needs} and {store.directory} has 0\.\d MB free:"
            r" remove what is not needed there$"
        )
    assert entries(store.directory) == ["app-1.jar", LINK]
    assert store.current() == Current("app-1.jar")
    store.verify("app-1.jar", store.checksum_of(jar))
    ballast.unlink()
    store.install(tree, "app-2")
    ballast = fill(disk)
    store.switch("app-2")  # a short link needs no block of its own
    assert store.current() == Current("app-2")
    store.remove("app-1.jar")
    assert entries(store.directory) == ["app-2", LINK]
