"""Which processes use a release is seen from what they have open, whatever it is called by now."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clojarsd.system.acting_as import Actor
from clojarsd.system.releases import ReleaseStore
from tests.support.namespaces import become, in_child
from tests.support.real import unavailable

ACTS = {
    "open": "kept = open(path)",
    "mapped": "file = open(path, 'rb'); kept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); file.close()",
    "where it is": "os.chdir(os.path.dirname(path))",
    "executed": "os.execv(path, [path, '-c', 'import os, time; os.write(1, b\"+\"); time.sleep(1000)'])",
}


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    """Two releases that are files, two that are directories, and the link to one."""
    store = ReleaseStore(tmp_path / "releases", "current.jar", None)
    store.prepare()
    source = tmp_path / "app"
    (source / "lib").mkdir(parents=True)
    (source / "lib" / "a.jar").write_text("a jar")
    for name in ("one.jar", "two.jar"):
        store.install(source / "lib" / "a.jar", name)
    for name in ("one", "two"):
        store.install(source, name)
    store.switch("one.jar")
    return store


@contextmanager
def a_process(path: Path, act: str) -> Iterator[int]:
    """One that has done it to the path, and sleeps; its number."""
    program = f"import mmap, os, sys, time; path = sys.argv[1]; {act}; os.write(1, b'+'); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, cwd="/") as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"+"
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("act", ["open", "mapped"])
@pytest.mark.parametrize(
    ("path", "name"), [("one.jar", "one.jar"), ("current.jar", "one.jar"), ("two/lib/a.jar", "two")]
)
def test_what_is_open_or_mapped_is_in_use(store: ReleaseStore, act: str, path: str, name: str) -> None:
    with a_process(store.directory / path, ACTS[act]) as pid:
        assert store.in_use() == {name: (pid,)}
        assert store.in_use([pid]) == {name: (pid,)}
        assert store.in_use([os.getpid()]) == {}
    assert store.in_use() == {}


def test_where_a_process_is_is_in_use(store: ReleaseStore) -> None:
    with a_process(store.directory / "two" / "lib" / "a.jar", ACTS["where it is"]) as pid:
        assert store.in_use() == {"two": (pid,)}


def test_what_is_executed_is_in_use(store: ReleaseStore, tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy(os.path.realpath(sys.executable), program)
    store.install(program, "program")
    with a_process(store.directory / "program", ACTS["executed"]) as pid:
        assert store.in_use() == {"program": (pid,)}


def test_several_processes_and_releases_are_told_apart(store: ReleaseStore) -> None:
    with (
        a_process(store.directory / "one.jar", ACTS["open"]) as first,
        a_process(store.directory / "one.jar", ACTS["mapped"]) as second,
        a_process(store.directory / "two.jar", ACTS["open"]) as third,
    ):
        assert store.in_use() == {"one.jar": tuple(sorted((first, second))), "two.jar": (third,)}


@pytest.mark.parametrize("act", ["open", "mapped"])
def test_what_was_removed_is_told_by_its_name(store: ReleaseStore, act: str) -> None:
    """An instance really runs it, whatever the directory says."""
    with a_process(store.directory / "two.jar", ACTS[act]) as pid:
        store.remove("two.jar")
        assert store.in_use([pid]) == {"two.jar": (pid,)}


def test_what_is_on_its_way_in_or_out_is_no_release(store: ReleaseStore, tmp_path: Path) -> None:
    (store.directory / ".incoming-0123").write_text("")
    with a_process(store.directory / ".incoming-0123", ACTS["open"]) as pid:
        assert store.in_use([pid]) == {}


@pytest.mark.parametrize("act", ["open", "mapped"])
def test_what_was_renamed_is_the_file_that_it_was(store: ReleaseStore, act: str) -> None:
    with a_process(store.directory / "two.jar", ACTS[act]) as pid:
        (store.directory / "two.jar").rename(store.directory / "renamed.jar")
        assert store.in_use([pid]) == {"renamed.jar": (pid,)}


def test_a_process_that_is_gone_uses_nothing(store: ReleaseStore) -> None:
    with a_process(store.directory / "two.jar", ACTS["open"]) as pid:
        pass
    assert store.in_use([pid]) == {}


def test_root_looks_into_processes_while_the_directory_is_somebody_elses(store: ReleaseStore) -> None:
    if os.geteuid() != 0:
        unavailable("not root, who alone can act as others")
    foreign = ReleaseStore(store.directory, "current.jar", Actor(65534, 65534))
    for above in (store.directory, *store.directory.parents):
        if not above.stat().st_mode & 0o005:
            above.chmod(above.stat().st_mode | 0o055)
    with a_process(store.directory / "two.jar", ACTS["open"]) as pid:
        assert foreign.in_use() == {"two.jar": (pid,)}

        def as_plain_user() -> None:
            become(65534)
            assert store.in_use() == {}, "what may not be looked into does not count"

        in_child(as_plain_user)
