"""The Clojure application of demo/clojure: that it builds, serves and stores, and that its bad releases are bad."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import scp
from bench.proxies import NotThere
from tests.support import clojure_app, nailgun_client
from tests.support.clojure_app import MAKE_REPOSITORY, SOURCE, Application
from tests.support.nailgun_client import Nail, NailgunEnded
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.real]
NOBODY = "65534"


def git(repository: Path, *words: str) -> str:
    command = ["git", "-c", "safe.directory=*", "-C", str(repository), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def make_repository(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(MAKE_REPOSITORY), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def release() -> Path:
    return clojure_app.uberjar("1.2.0")


@pytest.fixture
def app(release: Path, tmp_path: Path) -> Iterator[Application]:
    with Application(release, tmp_path, "--role", "primary") as application:
        yield application


@pytest.fixture
def checkout() -> Iterator[Callable[[str], Path]]:
    """A checkout of a tag that belongs to a user without privileges, where that user can go: pytest's is its own."""
    with tempfile.TemporaryDirectory(prefix="clojars-") as directory:

        def make(tag: str) -> Path:
            made = clojure_app.check_out(clojure_app.repository(), tag, Path(directory) / "checkout")
            (made.parent / "home").mkdir()
            if os.geteuid() == 0:
                for path in (made.parent, *made.parent.rglob("*")):
                    os.chown(path, int(NOBODY), int(NOBODY), follow_symlinks=False)
            return made

        yield make


def alone() -> list[str]:
    """What runs a command as a user without privileges, in a network without any interface."""
    become = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    whole = [*become, "unshare", "-r", "-n"] if os.geteuid() == 0 else ["unshare", "-r", "-n"]
    if subprocess.run([*whole, "true"], capture_output=True, check=False).returncode:
        unavailable("this machine lets no plain user have a network namespace")
    return whole


# --- The repository


def test_the_repository_is_the_same_wherever_it_is_made(tmp_path: Path) -> None:
    for name in ("one", "two"):
        made = make_repository(tmp_path / name)
        assert made.returncode == 0, made.stderr
    one, two = (git(tmp_path / name / "clojars-web", "show-ref") for name in ("one", "two"))
    assert one == two
    assert {line.split()[1] for line in one.splitlines()} >= {f"refs/tags/{tag}" for tag in clojure_app.GOOD}


def test_a_branch_has_the_name_of_a_tag_and_another_commit() -> None:
    repository = clojure_app.repository()
    assert git(repository, "rev-parse", "refs/heads/1.1.0") != git(repository, "rev-parse", "refs/tags/1.1.0")


def test_one_tag_is_annotated_and_another_names_the_same_commit() -> None:
    repository = clojure_app.repository()
    assert git(repository, "cat-file", "-t", "refs/tags/1.2.0") == "tag"
    assert git(repository, "cat-file", "-t", "refs/tags/1.1.0") == "commit"
    same = git(repository, "rev-parse", "refs/tags/1.2.0^{commit}")
    assert git(repository, "rev-parse", "refs/tags/release/1.2.0") == same


@pytest.mark.parametrize("tag", ["1.1.0", "1.2.0"])
def test_a_tag_can_be_moved(tmp_path: Path, tag: str) -> None:
    make_repository(tmp_path)
    repository = tmp_path / "clojars-web"
    before = git(repository, "rev-parse", f"refs/tags/{tag}^{{commit}}")
    kind = git(repository, "cat-file", "-t", f"refs/tags/{tag}")
    for _ in range(2):
        moved = make_repository(tmp_path, "--move-tag", tag)
        assert moved.returncode == 0, moved.stderr
    assert git(repository, "rev-parse", f"refs/tags/{tag}~2") == before
    assert git(repository, "cat-file", "-t", f"refs/tags/{tag}") == kind
    assert f'"{tag}-moved"' in git(repository, "show", f"{tag if kind == 'tag' else f'refs/tags/{tag}'}:project.clj")


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    make_repository(tmp_path)
    again = make_repository(tmp_path)
    assert again.returncode == 1
    assert again.stderr == f"make-repository: cannot make {tmp_path}/clojars-web: it is there already\n"


def test_a_tag_that_is_not_there_is_not_moved(tmp_path: Path) -> None:
    make_repository(tmp_path)
    moved = make_repository(tmp_path, "--move-tag", "9.9.9")
    assert moved.returncode == 1
    assert "refs/tags/9.9.9" in moved.stderr


def test_the_configuration_as_it_stands_is_good() -> None:
    check([SOURCE / "clojarsd.toml"])


def test_a_configuration_for_a_directory_is_good(tmp_path: Path) -> None:
    made = make_repository(tmp_path, "--config")
    assert made.returncode == 0, made.stderr
    check([tmp_path / "clojarsd.toml"])
    text = (tmp_path / "clojarsd.toml").read_text()
    assert "/srv/clojars" not in text
    settings = tomllib.loads(text)
    ports = [port for role in settings["instances"].values() for port in role["ports"].values()]
    ports += [int(front["listen"].split(":")[1]) for front in settings["frontends"].values()]
    assert len(set(ports)) == 6
    assert min(ports) >= 10_000, "those of the text as it stands are not left"
    assert settings["service"]["user"] == str(os.geteuid())


def check(files: list[Path]) -> None:
    for file in files:
        command = [sys.executable, "-m", "clojarsd", "check", "-c", str(file)]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


# --- Builds


def test_it_is_tested_and_built_by_a_plain_user_without_a_network(checkout: Callable[[str], Path]) -> None:
    made, prefix = checkout("1.0.0"), alone()
    tested = clojure_app.lein(made, "test", prefix=prefix)
    assert tested.returncode == 0, tested.stdout
    assert "0 failures, 0 errors" in tested.stdout
    built = clojure_app.lein(made, "uberjar", prefix=prefix)
    assert built.returncode == 0, built.stdout
    assert [jar.name for jar in made.glob("target/*-standalone.jar")] == ["clojars-web-1.0.0-standalone.jar"]


@pytest.mark.parametrize("tag", [*clojure_app.GOOD, "1.2.0-rebuilt"])
def test_a_good_release_says_its_version(tag: str, tmp_path: Path) -> None:
    jar = clojure_app.uberjar(tag)
    version = tag.removesuffix("-rebuilt")
    assert jar.name == f"clojars-web-{version}-standalone.jar"
    with Application(jar, tmp_path) as app:
        assert app.page("/version") == f"{version}\n"
        assert smoke(app, jar).returncode == 0


def smoke(app: Application, jar: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SOURCE / "smoke"), str(app.http), str(jar)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- Releases that build and are bad all the same


def test_bad_exits_serves_for_a_while_and_ends(tmp_path: Path) -> None:
    with Application(clojure_app.uberjar("bad-exits"), tmp_path) as app:
        assert app.process is not None
        assert app.process.wait(PATIENCE) == 1
        assert "giving up" in app.log()


def test_bad_unhealthy_listens_and_says_so(tmp_path: Path) -> None:
    app = Application(clojure_app.uberjar("bad-unhealthy"), tmp_path).start()
    try:
        until(lambda: app.health() is not None, app)
        assert app.health() == 500
        assert app.page("/version") == "1.2.0-bad-unhealthy\n"
    finally:
        app.kill()


def test_bad_smoke_is_healthy_and_fails_the_smoke_test(tmp_path: Path) -> None:
    jar = clojure_app.uberjar("bad-smoke")
    with Application(jar, tmp_path) as app:
        failed = smoke(app, jar)
        assert failed.returncode == 1
        assert failed.stderr.startswith("smoke: /version says ['<!DOCTYPE html>']")


def test_bad_slow_start_lives_and_does_not_listen(tmp_path: Path) -> None:
    app = Application(clojure_app.uberjar("bad-slow-start"), tmp_path).start()
    try:
        until(lambda: "waiting for a lock" in app.log(), app)
        assert app.health() is None
        assert app.process is not None
        assert app.process.poll() is None
    finally:
        app.kill()


def until(fact: Callable[[], bool], app: Application) -> None:
    deadline = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < deadline, app.log()
        time.sleep(0.02)


# --- Pages


def test_the_front_page_says_who_answers(app: Application, release: Path) -> None:
    page = app.page("/")
    for name, text in [("version", "1.2.0"), ("release", release.name), ("role", "primary"), ("files", "0")]:
        assert f'<dd id="{name}">{text}</dd>' in page
    assert app.page("/health") == "1.2.0\n"


def test_it_ends_when_it_is_told_to_and_answers_what_it_has_begun(app: Application) -> None:
    nailgun_client.upload(app.nailgun, "large.bin", os.urandom(8_000_000))
    opened = http.client.HTTPConnection("127.0.0.1", app.http, timeout=PATIENCE)
    opened.request("GET", "/repo/large.bin")
    answer = opened.getresponse()
    assert len(answer.read(1)) == 1
    assert app.process is not None
    app.process.send_signal(signal.SIGTERM)
    until(lambda: app.health() is None, app)
    assert len(answer.read()) == 7_999_999
    opened.close()
    assert app.process.wait(PATIENCE) == 143


def test_an_upload_that_has_begun_is_stored_though_it_is_told_to_end(app: Application) -> None:
    with Nail(app.nailgun, "clojars.scp", ["-t"]) as nail:
        nailgun_client.acknowledged(nail)
        nail.write(b"C0644 5 late.jar\n")
        nailgun_client.acknowledged(nail)
        assert app.process is not None
        app.process.send_signal(signal.SIGTERM)
        until(lambda: app.health() is None, app)
        nail.write(b"hello\0")
        nailgun_client.acknowledged(nail)
        assert nail.end() == 0
    assert app.process.wait(PATIENCE) == 143
    assert app.stored() == {"late.jar": b"hello"}


@pytest.mark.parametrize("taken", ["http", "nailgun"])
def test_it_does_not_live_without_one_of_its_ports(app: Application, release: Path, tmp_path: Path, taken: str) -> None:
    (home := tmp_path / "second").mkdir()
    second = Application(release, home)
    setattr(second, taken, getattr(app, taken))
    second.start()
    try:
        assert second.process is not None
        assert second.process.wait(PATIENCE) == 1, second.log()
        assert f"on 127.0.0.1:{getattr(app, taken)}" in second.log()
    finally:
        second.kill()


# --- Uploads


def test_a_file_is_there_when_it_is_acknowledged_and_not_before(app: Application) -> None:
    with Nail(app.nailgun, "clojars.scp", ["-t"]) as nail:
        nailgun_client.acknowledged(nail)
        nail.write(b"C0644 10 a.jar\n")
        nailgun_client.acknowledged(nail)
        nail.write(b"01234")
        until(lambda: any(path.stat().st_size for path in (app.repository / ".incoming").iterdir()), app)
        assert app.stored() == {}
        nail.write(b"56789\0")
        nailgun_client.acknowledged(nail)
        assert app.stored() == {"a.jar": b"0123456789"}
        assert app.page("/repo/a.jar") == "0123456789"
        assert nail.end() == 0


def test_a_client_that_is_cut_leaves_nothing(app: Application) -> None:
    with Nail(app.nailgun, "clojars.scp", ["-t"]) as nail:
        nailgun_client.acknowledged(nail)
        nail.write(b"C0644 10 a.jar\n")
        nailgun_client.acknowledged(nail)
        nail.write(b"01234")
    until(lambda: "an upload was cut" in app.log(), app)
    assert list(app.repository.rglob("*")) == [app.repository / ".incoming"]


def test_no_partial_file_is_seen_when_the_application_is_killed(
    app: Application, release: Path, tmp_path: Path
) -> None:
    """Many clients send while it dies: what was acknowledged is there whole, and nothing else is."""
    content = bytes(range(256)) * 400
    acknowledged: list[str] = []

    def send(number: int) -> None:
        for turn in range(10_000):
            name = f"{number}-{turn}.bin"
            try:
                nailgun_client.upload(app.nailgun, name, content)
            except (OSError, NailgunEnded):
                return
            acknowledged.append(name)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for sender in senders:
        sender.start()
    until(lambda: len(acknowledged) >= 20, app)
    app.kill()
    for sender in senders:
        sender.join()
    stored = app.stored()
    assert set(stored) >= set(acknowledged)
    assert set(stored.values()) == {content}


def test_only_the_one_program_can_be_run(app: Application) -> None:
    for command in ("ng-stop", "clojure.main", "clojars.main", "java.lang.String"):
        with Nail(app.nailgun, command) as nail:
            assert nail.end() != 0
    assert app.health() == 200


@pytest.mark.parametrize("name", ["../x", "..", "a/b", "/etc/x", ".hidden", "a b", "-t", ""])
def test_a_hostile_name_is_refused(app: Application, name: str) -> None:
    with pytest.raises(NailgunEnded, match="cannot store"):
        nailgun_client.upload(app.nailgun, name, b"x")
    with pytest.raises(NailgunEnded, match="cannot store"):
        nailgun_client.upload(app.nailgun, "x", b"x", directory="../x")
    assert app.stored() == {}


# --- Uploads by scp, through sshd and nailgun's own client


@pytest.fixture
def sshd(app: Application, tmp_path: Path) -> Iterator[scp.Sshd]:
    """A private sshd that hands logins over to the application."""
    (home := tmp_path / "sshd").mkdir()
    with ExitStack() as stack:
        try:
            serving = stack.enter_context(scp.serving(home, {"app": f"{SOURCE / 'receive'} {app.nailgun}"}))
        except NotThere as reason:
            unavailable(f"scp: {reason}")
        yield serving


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_scp_brings_a_file(app: Application, sshd: scp.Sshd, tmp_path: Path) -> None:
    """A small one: the way that is quick is that by the frontend of a pair."""
    (file := tmp_path / "a.jar").write_bytes(os.urandom(50_000))
    sent = run(sshd.command("app", file, "127.0.0.1:"))
    assert (sent.returncode, sent.stderr) == (0, ""), app.log()
    assert app.stored() == {"a.jar": file.read_bytes()}


def test_scp_brings_a_tree(app: Application, sshd: scp.Sshd, tmp_path: Path) -> None:
    for name in ("org/x/1/x-1.jar", "org/x/1/x-1.pom", "org/y.txt"):
        (file := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    os.utime(tmp_path / "org/y.txt", (1_000_000_000, 1_000_000_000))
    for _ in range(2):  # what is there already may come again
        sent = run(sshd.command("app", "-r", "-p", tmp_path / "org", "127.0.0.1:."))
        assert (sent.returncode, sent.stderr) == (0, ""), app.log()
    assert {path: text.decode() for path, text in app.stored().items()} == {
        path: path for path in ("org/x/1/x-1.jar", "org/x/1/x-1.pom", "org/y.txt")
    }
    assert (app.repository / "org/y.txt").stat().st_mtime == 1_000_000_000


def test_scp_says_what_is_refused(app: Application, sshd: scp.Sshd, tmp_path: Path) -> None:
    (hidden := tmp_path / ".hidden").write_text("x")
    (plain := tmp_path / "plain.jar").write_text("y")
    sent = run(sshd.command("app", hidden, plain, "127.0.0.1:"))
    assert sent.returncode == 1
    assert 'clojars: cannot store ".hidden": names are of letters' in sent.stderr
    assert app.stored() == {"plain.jar": b"y"}, "the next one is stored all the same"
    outside = run(sshd.command("app", plain, "127.0.0.1:../../x"))
    assert outside.returncode == 1
    assert 'clojars: cannot store anything in "../../x": it leads out of the repository' in outside.stderr
    fetched = run(sshd.command("app", "127.0.0.1:plain.jar", tmp_path / "fetched"))
    assert fetched.returncode == 1
    assert "clojars: cannot do" in fetched.stderr
