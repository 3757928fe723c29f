"""Class-data archives of real JVMs, made by the real daemon: starts use them, and a spoilt one keeps none away."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.jars import build_jar, other_java, pair_of_jars, put_release
from tests.support.pair import CLOJARSCTL, Clients, Pair
from tests.support.real import unavailable

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.fixture(scope="module")
def jar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_jar(tmp_path_factory.mktemp("jar"))


@pytest.fixture
def pair(tmp_path: Path, jar: Path) -> Iterator[Pair]:
    with pair_of_jars(tmp_path, jar) as running:
        yield running


def archive(pair: Pair, name: str = "1.jar") -> Path:
    return pair.home / "releases" / ".cds" / f"{name}.jsa"


def restarted(pair: Pair, role: str = "backup") -> dict[str, Any]:
    """The instance, after a restart by order."""
    pair.done("restart", role)
    return pair.instance(role)


def options(pair: Pair, role: str = "backup") -> list[str]:
    return Path(f"/proc/{pair.pid(role)}/cmdline").read_text().split("\0")


def test_an_archive_is_made_of_an_instance_that_serves_on_and_the_next_start_uses_it(pair: Pair) -> None:
    before = pair.instance("backup")
    assert before["cds"] is False
    assert before["start_seconds"] > 0
    with Clients(pair.http) as clients:
        finished = pair.ctl("jvm", "cds", "backup")
    assert clients.failures == []
    assert finished.returncode == 0, finished.stderr
    size = archive(pair).stat().st_size / 1e6
    told = finished.stdout.strip()
    assert told.startswith(f"archive {archive(pair)}: {size:.0f} MB in ")
    took = re.search(r"; start-up without it took ([0-9.]+) s; `clojarsctl restart backup` starts with it$", told)
    assert took is not None, told
    assert float(took[1]) == pytest.approx(before["start_seconds"], abs=0.006)
    assert "classes loaded" in finished.stderr
    assert pair.instance("backup")["pid"] == before["pid"]
    assert sorted(path.name for path in archive(pair).parent.iterdir()) == ["1.jar.jsa", "1.jar.json"]
    assert restarted(pair)["cds"] is True
    assert options(pair)[1:5] == [
        f"-XX:SharedArchiveFile={archive(pair)}",
        "-Xshare:auto",
        "-XX:+VerifySharedSpaces",
        "-Xlog:cds*=off",
    ]
    ready = [one["detail"] for one in pair.events() if one["event"] == "instance-ready" and one["role"] == "backup"]
    assert [one["cds"] for one in ready] == [False, True]
    assert all(one["start_seconds"] > 0 for one in ready)


def test_one_archive_is_for_both_and_a_release_has_its_own(pair: Pair, jar: Path) -> None:
    pair.done("jvm", "cds", "clojars" if pair.instance("primary")["name"] == "clojars" else "primary")
    assert restarted(pair)["cds"] is True
    put_release(pair.home / "releases", jar, "2.jar")
    assert restarted(pair)["cds"] is False
    pair.done("jvm", "cds", "backup")
    assert restarted(pair)["cds"] is True
    assert archive(pair).exists()
    (pair.home / "releases" / "1.jar").unlink()
    again = pair.done("jvm", "cds", "backup")
    assert "start-up with the one before took" in again
    assert not archive(pair).exists(), "what belongs to no release is removed"


@pytest.mark.parametrize(
    "option", ["-XX:+UseSerialGC", "-XX:+UseParallelGC", "-XX:+UseZGC", "-XX:-UseCompressedOops", "-Xmx3g"]
)
def test_an_archive_fits_the_way_in_which_the_instance_keeps_its_objects(
    tmp_path: Path, jar: Path, option: str
) -> None:
    words = ("-jar", "{release}", "--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}")
    with pair_of_jars(tmp_path, jar, command=("java", option, *words)) as pair:
        pair.done("jvm", "cds", "backup")
        assert restarted(pair)["cds"] is True


def test_without_the_setting_an_archive_is_made_and_not_used(tmp_path: Path, jar: Path) -> None:
    with pair_of_jars(tmp_path, jar, cds=False) as pair:
        assert pair.done("jvm", "cds", "backup").endswith("; starts use it when deploy.cds is true\n")
        assert restarted(pair)["cds"] is False
        assert "-Xshare:auto" not in options(pair)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def shortened_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def some_bytes_changed(path: Path) -> None:
    """The kind that a JVM believes, and dies of, unless it looks at the checksums."""
    content, dice = bytearray(path.read_bytes()), random.Random(2)
    for _ in range(2000):
        content[dice.randrange(8192, len(content))] ^= 0xFF
    path.write_bytes(content)


def a_hole(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 3)
        file.write(bytes(2_000_000))


def gone(path: Path) -> None:
    path.unlink()


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def nonsense_record(path: Path) -> None:
    path.with_suffix(".json").write_text('{"format": 1, "release": [')


def fifo_record(path: Path) -> None:
    path.with_suffix(".json").unlink()
    os.mkfifo(path.with_suffix(".json"))


def jar_replaced(path: Path) -> None:
    """By one with other bytes, which nobody should do."""
    release = path.parents[1] / "1.jar"
    copy = release.with_name("copy.jar")
    shutil.copy(release, copy)
    subprocess.run(["jar", "--update", "--file", str(copy), "-C", str(path.parents[2]), "clojarsd.toml"], check=True)
    copy.rename(release)


def jar_touched(path: Path) -> None:
    os.utime(path.parents[1] / "1.jar")


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        shortened_to_nothing,
        garbage,
        some_bytes_changed,
        a_hole,
        gone,
        a_directory,
        a_fifo,
        nonsense_record,
        fifo_record,
        jar_replaced,
        jar_touched,
    ],
)
def test_an_archive_that_is_spoilt_is_not_used_and_keeps_nothing_from_starting(
    pair: Pair, spoil: Callable[[Path], None]
) -> None:
    pair.done("jvm", "cds", "backup")
    spoil(archive(pair))
    seen = restarted(pair)
    assert (seen["eligible"], seen["cds"], seen["restarts"]) == (True, False, 0)
    log = (pair.home / "log" / "backup.log").read_text()
    assert "archive" not in log.lower(), "and the JVM says nothing of it"
    assert not list(pair.home.glob("hs_err*"))
    for path in (archive(pair), archive(pair).with_suffix(".json")):
        if path.is_dir():
            path.rmdir()
    assert restarted(pair, "primary")["eligible"]
    pair.done("jvm", "cds", "backup")
    assert restarted(pair)["cds"] is True, "and another one is made in its place"


def test_another_jvm_does_without_the_archive_and_gets_one_of_its_own(pair: Pair) -> None:
    other = other_java()
    if other is None:
        unavailable("there is no second JDK on this machine")
    pair.done("jvm", "cds", "backup")
    assert restarted(pair)["cds"] is True
    pair.command = [other or "", *pair.command[1:]]
    pair.write_config()
    seen = restarted(pair)
    assert (seen["eligible"], seen["cds"]) == (True, False)
    assert "-Xshare:auto" not in options(pair)
    pair.done("jvm", "cds", "backup")
    assert restarted(pair)["cds"] is True


def test_an_archive_of_another_jvm_under_a_record_that_lies_is_refused_by_the_jvm(pair: Pair, tmp_path: Path) -> None:
    other = other_java()
    if other is None:
        unavailable("there is no second JDK on this machine")
    pair.done("jvm", "cds", "backup")
    foreign = tmp_path / "foreign.jsa"
    dump = [other or "", "-Xshare:dump", f"-XX:SharedArchiveFile={foreign}", "-Xlog:disable"]
    subprocess.run(dump, check=True, capture_output=True)
    shutil.copy(foreign, archive(pair))
    record = json.loads(archive(pair).with_suffix(".json").read_text())
    archive(pair).with_suffix(".json").write_text(json.dumps({**record, "size": foreign.stat().st_size}))
    seen = restarted(pair)
    assert (seen["eligible"], seen["cds"], seen["restarts"]) == (True, False, 0)
    assert f"-XX:SharedArchiveFile={archive(pair)}" in options(pair), "it was given"
    assert "class_data_not_used" in pair.daemon_log()


def test_what_the_command_says_itself_about_archives_is_left_alone(tmp_path: Path, jar: Path) -> None:
    with pair_of_jars(tmp_path, jar, app='environment = { JAVA_TOOL_OPTIONS = "-Xshare:off" }') as pair:
        refused = pair.ctl("jvm", "cds", "backup")
        assert refused.returncode == 0, "it can be made"
        assert restarted(pair)["cds"] is False
        assert "-Xshare:auto" not in options(pair)


SCRIPT = """#!/bin/sh
java -version 2> "$1.version"
exec java $CLOJARSD_JAVA_OPTIONS -Xmx64m -jar "$@"
"""


def test_a_script_finds_the_options_in_a_variable_of_its_own(tmp_path: Path, jar: Path) -> None:
    script = tmp_path / "start-app"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    command = (str(script), "{release}", "--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}")
    with pair_of_jars(tmp_path, jar, command=command) as pair:
        pair.done("jvm", "cds", "backup")
        assert restarted(pair)["cds"] is True
        said = (pair.home / "releases" / "1.jar.version").read_text().splitlines()
        assert "version" in said[0], "a JVM's own variable would have put a line before"


def test_what_cannot_be_archived_is_refused_with_a_sentence(tmp_path: Path, jar: Path) -> None:
    classes = jar.parent / "classes"
    words = ("--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}")
    with pair_of_jars(tmp_path, jar, command=("java", "-cp", f"{{release}}:{classes}", "App", *words)) as pair:
        failed = pair.ctl("jvm", "cds", "backup")
        assert failed.returncode == 1
        why = f"its class path has directories ({classes}), and a JVM archives classes from jars alone"
        assert why in failed.stderr
        pair.done("stop", "backup")
        refused = pair.ctl("jvm", "cds", "backup")
        assert refused.returncode == 3
        assert refused.stderr.startswith("cannot make a class-data archive of backup: it is stopped")


def test_a_directory_of_jars_can_be_a_release(tmp_path: Path, jar: Path) -> None:
    words = ("--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}")
    pair = pair_of_jars(tmp_path, jar, command=("java", "-cp", "{release}/lib/*", "App", *words))
    (tmp_path / "releases" / "dir" / "lib").mkdir(parents=True)
    shutil.copy(jar, tmp_path / "releases" / "dir" / "lib")
    (tmp_path / "releases" / "next").symlink_to("dir")
    (tmp_path / "releases" / "next").rename(tmp_path / "releases" / "current.jar")
    with pair:
        pair.done("jvm", "cds", "backup")
        assert restarted(pair)["cds"] is True
        assert archive(pair, "dir").exists()


def test_a_crash_is_followed_by_a_start_with_nothing_added(pair: Pair) -> None:
    """So that an archive which a JVM dies of can cost one start."""
    pair.done("jvm", "cds", "backup")
    assert restarted(pair)["cds"] is True
    os.kill(pair.pid("backup"), 9)
    pair.until(lambda seen: seen["instances"]["backup"]["restarts"] == 1)
    seen = pair.until(lambda seen: seen["instances"]["backup"]["eligible"])
    assert seen["instances"]["backup"]["cds"] is False
    assert restarted(pair)["cds"] is True


def test_what_a_start_took_is_known_to_the_next_daemon(pair: Pair) -> None:
    pair.done("jvm", "cds", "backup")
    before = restarted(pair)
    pair.done("daemon", "upgrade")
    after = pair.instance("backup")
    assert (after["start_seconds"], after["cds"]) == (before["start_seconds"], True)


def test_a_deploy_makes_the_archive_on_the_backup_and_the_primary_starts_with_it(pair: Pair, tmp_path: Path) -> None:
    pair.done("jvm", "cds", "backup")
    first = archive(pair)
    releases = []
    for name in ("a", "b"):
        jar = tmp_path / f"{name}.jar"
        shutil.copy(pair.home / "releases" / "1.jar" if name == "a" else tmp_path / "a.jar", jar)
        (tmp_path / name).write_text(name)
        subprocess.run(["jar", "--update", "--file", str(jar), "-C", str(tmp_path), name], check=True)
        finished = pair.ctl("deploy", "--artifact", str(jar), "--yes")
        assert finished.returncode == 0, finished.stderr
        releases.append(pair.instance("primary")["release"])
        assert f"archive {archive(pair, releases[-1])}: " in finished.stderr
        assert "; start-up without it took " in finished.stderr
        assert pair.instance("primary")["cds"] is True
        assert pair.instance("backup")["cds"] is False, "it has made it"
    assert releases == ["a.jar", "b.jar"]
    assert not (pair.home / "releases" / "1.jar").exists()
    assert not first.exists(), "an archive goes with its release"
    assert archive(pair, "a.jar").exists(), "the way back is as fast"
    finished = pair.ctl("rollback", "--yes")
    assert finished.returncode == 0, finished.stderr
    assert [pair.instance(role)["cds"] for role in ("primary", "backup")] == [True, True]


def dumping(pair: Pair) -> list[psutil.Process]:
    """The JVMs that make an archive just now."""
    fresh = str(archive(pair).parent)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if "-Xshare:dump" in words and any(word.startswith(f"-XX:SharedArchiveFile={fresh}/") for word in words):
                found.append(process)
    return found


@pytest.mark.parametrize("by_deploy", [True, False])
def test_a_daemon_that_dies_while_an_archive_is_made_is_followed_by_one_that_makes_it(
    pair: Pair, tmp_path: Path, by_deploy: bool
) -> None:
    other = tmp_path / "other.jar"
    shutil.copy(pair.home / "releases" / "1.jar", other)
    words = ("deploy", "--artifact", str(other), "--yes") if by_deploy else ("jvm", "cds", "backup")
    order = subprocess.Popen([CLOJARSCTL, "--socket", pair.socket, *words], stderr=subprocess.DEVNULL)
    found: list[psutil.Process] = []

    def has_begun() -> bool:
        found[:] = dumping(pair)
        return bool(found)

    pair.until_true(has_begun, "the dump", pair.daemon_log)
    found[0].suspend()
    pair.kill()
    assert order.wait() == 4
    pair.begin()
    if by_deploy:
        pair.until(lambda seen: seen["rollout"] is None)
        assert pair.ask("GET", "/v1/rollout")["last_rollout"]["outcome"] == "done", pair.daemon_log()
        assert pair.instance("primary")["cds"] is True
    else:
        pair.done("jvm", "cds", "backup")
        assert restarted(pair)["cds"] is True
    assert not found[0].is_running() or found[0].status() == psutil.STATUS_ZOMBIE
    name = "other.jar" if by_deploy else "1.jar"
    assert sorted(path.name for path in archive(pair).parent.iterdir()) == [f"{name}.jsa", f"{name}.json"]


def test_a_deploy_goes_on_without_an_archive(tmp_path: Path, jar: Path) -> None:
    classes = jar.parent / "classes"
    words = ("--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}")
    with pair_of_jars(tmp_path, jar, command=("java", "-cp", f"{{release}}:{classes}", "App", *words)) as pair:
        other = tmp_path / "other.jar"
        shutil.copy(jar, other)
        subprocess.run(["jar", "--update", "--file", str(other), "-C", str(tmp_path), "clojarsd.toml"], check=True)
        finished = pair.ctl("deploy", "--artifact", str(other), "--yes")
        assert finished.returncode == 0, finished.stderr
        assert (
            "no class-data archive: cannot make a class-data archive of backup: its class path has" in finished.stderr
        )


NOBODY = 65534


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A directory that everybody may pass by."""
    if os.geteuid() != 0:
        unavailable("only root can become another user")
    path = Path(tempfile.mkdtemp(prefix="clojarsd-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_the_archive_belongs_to_the_service_user_and_no_link_leads_root_elsewhere(open_home: Path, jar: Path) -> None:
    pair = pair_of_jars(open_home, jar)
    pair.user = NOBODY
    releases = open_home / "releases"
    for path in (releases, *releases.iterdir()):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    secret = open_home / "secret"
    secret.mkdir(mode=0o700)
    (releases / ".cds").symlink_to(secret)
    with pair:
        failed = pair.ctl("jvm", "cds", "backup")
        assert failed.returncode == 1
        assert "permission denied; backup starts without it, as before" in failed.stderr
        assert list(secret.iterdir()) == []
        (releases / ".cds").unlink()
        pair.done("jvm", "cds", "backup")
        for path in (releases / ".cds", archive(pair), archive(pair).with_suffix(".json")):
            assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)
        assert restarted(pair)["cds"] is True
