"""A pair that is deployed to: a git repository with good and bad releases, steps that can be held up, and clients.

The application is that of demo/app.py, built by a shell script into one file that says its version with its name. As
root the pair runs as another user, who owns repository, builds and releases, as on a real machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from clojarsd.core.history import stamp
from clojarsd.core.identity import ROLLOUT, RolloutMark
from clojarsd.core.releases import (
    BecameCurrent,
    ProvedGood,
    ReleaseRecord,
    WasInstalled,
    record_as_json,
)
from clojarsd.system.acting_as import actor_of
from clojarsd.system.record_log import RecordLog
from clojarsd.system.releases import ReleaseStore
from clojarsd.system.sockets import free_ports
from tests.support.pair import CHECKOUT, CLOJARSCTL, Clients, Failure, Pair, connection, get
from tests.support.repositories import Repository
from tests.support.waiting import PATIENCE

NOBODY = 65534
LINK = "app-current.py"
PYTHON = str(Path(sys.executable).resolve())

MAIN = """
def main():
    import atexit
    parser = options()
    parser.add_argument("--role")
    parser.add_argument("--home")
    args = parser.parse_args()
    while os.path.exists(f"{args.home}/hold-{VERSION}-on-{args.role}") or FAULT == "deaf":
        time.sleep(0.02)
    app = App(f"{args.role} {VERSION}", args.heap)
    if FAULT == "unhealthy":
        app._unhealthy = True
    if FAULT in ("refuses", f"refuses on {args.role}"):
        sys.exit("this release does not start")
    if FAULT == "exits" or FAULT == f"exits on {args.role}":
        threading.Timer(AFTER, lambda: (say("giving up"), os._exit(1))).start()
    end_on_signals(app)
    serve(app, args.host, args.port, args.line_port)

if __name__ == "__main__":
    main()
"""

BUILD = """\
echo "building $(cat version) of $CLOJARSD_TAG"
mkdir -p target
out="target/app-$(cat version)-standalone.py"
case "$(cat fault)" in
build) echo "cannot compile" >&2; exit 1 ;;
no-artifact) exit 0 ;;
two-artifacts) echo >target/app-thin-standalone.py ;;
directory) out="target/app-$(cat version)-standalone/main.py"; mkdir "${out%/*}"; echo "some page" >"${out%/*}/page" ;;
esac
{
    sed '/^def main/,$d' app.py
    echo "VERSION = '$(cat version)'"
    echo "FAULT, AFTER = '$(cat fault)', 2.0"
    cat main.py
} >"$out"
"""

TEST = """\
echo "testing $(cat version)"
case "$(cat fault)" in tests) echo "1 failures, 0 errors"; exit 1 ;; esac
"""

STEP = """\
#!/bin/sh
# step NAME COMMAND...: what a test wants of this step of a rollout, then the command
home=@HOME@ name=$1
shift
echo "$name $CLOJARSD_ROLLOUT_KIND" >>"$home/own/ran"
while [ -e "$home/hold-$name" ]; do sleep 0.05; done
if [ -e "$home/fail-$name" ]; then echo "$name was told to fail"; exit 1; fi
exec "$@"
"""

AT_LEISURE = 0.05
"""Seconds between two looks where the fact stays."""
GATES = ("before_switch", "after_backup", "before_promote", "after_deploy")

DEPLOY = """
[deploy]
{repository}releases = "{home}/own/releases"
current = "{link}"
artifact = "target/*-standalone*"
test = ["{home}/step", "test", "/bin/sh", "test.sh"]
build = ["{home}/step", "build", "/bin/sh", "build.sh"]
{smoke}
{gates}
soak = "{soak}"
approval_timeout = "{approval_timeout}"
step_timeout = "30s"
{min_free}
keep = {keep}
{more}
[frontends.relayed]
listen = "127.0.0.1:{relayed}"
port = "http"
mode = "relay"
drain = "10s"
drain_idle = "500ms"
failback = "0s"
"""


class Traffic:
    """Clients of a site, from whom nothing is lost: some with new connections, some that keep theirs."""

    def __init__(self, *clients: Clients) -> None:
        self.clients = clients

    @property
    def failures(self) -> list[Failure]:
        return [failure for one in self.clients for failure in one.failures]

    def names(self) -> set[str]:
        """Who has answered so far: `primary 1.0.0`."""
        return {name for one in self.clients for _, name in one.answers}

    def more(self) -> None:
        """Return when each of them has got some more answers."""
        for one in self.clients:
            one.await_answers(3)


class Site:
    """The pair, its releases and its repository.

    Attributes:
        home: everybody may read it; `own` in it belongs to the service user.
    """

    def __init__(
        self,
        home: Path,
        *,
        mode: str = "relay",
        soak: str = "300ms",
        approval_timeout: str = "60s",
        keep: int = 5,
        has_repository: bool = True,
        is_directory: bool = False,
        app: str = "",
        more: str = "",
    ) -> None:
        self.home = home
        self.user = NOBODY if os.geteuid() == 0 else os.geteuid()
        self.own = home / "own"
        self.releases = self.own / "releases"
        self.work = self.own / "builds"
        for path in (self.own, self.releases, self.work):
            path.mkdir()
            os.chown(path, self.user, self.user if self.user == NOBODY else -1)
        (home / "step").write_text(STEP.replace("@HOME@", str(home)))
        (home / "step").chmod(0o755)
        self.repository = Repository(home / "origin")
        self.relayed = 0
        self.settings = {
            "repository": f'repository = "{home}/origin"\nwork_dir = "{home}/own/builds"\n' if has_repository else "",
            "home": home,
            "link": LINK,
            "gates": "".join(f'{gate} = [["{home}/step", "{gate}", "/bin/true"]]\n' for gate in GATES),
            "soak": soak,
            "approval_timeout": approval_timeout,
            "smoke": f'smoke = ["{home}/step", "smoke", "/bin/true"]',
            "keep": keep,
            "min_free": 'min_free = "1MiB"',
            "more": more,
        }
        program = "{release}/main.py" if is_directory else "{release}"
        command = [PYTHON, "-S", "-E", program, "--port", "{port.http}", "--line-port", "{port.line}"]
        self.pair = Pair(
            home,
            command=[*command, "--role", "{role}", "--home", str(home)],
            app=app,
            failback="0s",
            drain="1s",  # which a client that keeps its connection to a steered instance takes the whole of
            mode=mode,
            user=self.user,
        )
        self.write_settings()

    def write_settings(self, **changes: object) -> None:
        """Write the configuration, with other values of some settings from now on."""
        self.settings.update(changes)
        if not self.relayed:
            (self.relayed,) = free_ports(1)
        self.pair.backup_extra = DEPLOY.format(**self.settings, relayed=self.relayed)
        self.pair.write_config()

    # The repository.

    def commit(self, version: str, fault: str = "") -> str:
        """A commit of the application; its name."""
        app = (CHECKOUT / "demo" / "app.py").read_text()
        files = {"app.py": app, "main.py": MAIN, "build.sh": BUILD, "test.sh": TEST, "version": version, "fault": fault}
        for name, text in files.items():
            (self.repository.path / name).write_text(text)
        return self.repository.commit(f"version {version} {fault}".strip())

    def tag(self, tag: str, fault: str = "", version: str | None = None) -> str:
        """A tagged release; the name of its commit."""
        commit = self.commit(version or tag, fault)
        self.repository.tag(tag)
        return commit

    # Releases that were there before.

    def build(self, version: str, fault: str = "") -> Path:
        """The artefact of a version, built here and now, in a directory of its own."""
        path = self.home / f"built-{version}"
        path.mkdir()
        for name, text in (("main.py", MAIN), ("version", version), ("fault", fault)):
            (path / name).write_text(text)
        shutil.copy(CHECKOUT / "demo" / "app.py", path)
        subprocess.run(["/bin/sh", "-c", BUILD], cwd=path, check=True, stdout=subprocess.DEVNULL)
        return self.artefact(version)

    def artefact(self, version: str) -> Path:
        """What `build` has made."""
        (found,) = (self.home / f"built-{version}" / "target").iterdir()
        return found

    def bring(self, *versions: str, fault: str = "") -> None:
        """Have these versions as good releases, the last one as the current one; while no daemon runs."""
        state = self.home / "state"
        state.mkdir(exist_ok=True)
        store = ReleaseStore(self.releases, LINK, actor_of(str(self.user), None) if self.user == NOBODY else None)
        with RecordLog.open(state / "releases.jsonl", create=True) as log:
            for number, version in enumerate(versions, len(log.records())):
                artefact = self.build(version, fault)
                made = store.install(artefact, artefact.name)
                commit, name = self.tag(version, fault), artefact.name
                at, id = stamp(datetime.now(UTC)), f"20260101-{number:06}"
                store.switch(name)
                records: Sequence[ReleaseRecord] = (
                    WasInstalled(name, version, commit, made.checksum, made.kind, made.size, "ann", at, id),
                    BecameCurrent(name, at, "ann", id),
                    ProvedGood(name, at, id),
                )
                for record in records:
                    log.append(record_as_json(record))

    # Steps.

    def hold(self, *steps: str) -> None:
        """Let these steps wait, until `let_go`; `1.1.0-on-backup`: that release, when it starts there."""
        for step in steps:
            (self.home / f"hold-{step}").touch()

    def let_go(self, *steps: str) -> None:
        for step in steps:
            (self.home / f"hold-{step}").unlink()

    def fail(self, *steps: str) -> None:
        """Let these steps fail from now on."""
        for step in steps:
            (self.home / f"fail-{step}").touch()

    def ran(self) -> list[str]:
        """The commands that were run so far: `test deploy`."""
        try:
            return (self.own / "ran").read_text().splitlines()
        except FileNotFoundError:
            return []

    # What is.

    def until_step(self, step: str) -> dict[str, Any]:
        """The first status in which the rollout is at the step."""
        return self.pair.until(lambda seen: seen["rollout"] is not None and seen["rollout"]["step"] == step)

    def until_asked(self) -> dict[str, Any]:
        """The first status in which the rollout waits for an answer."""
        return self.pair.until(lambda seen: seen["rollout"] is not None and seen["rollout"]["question"] is not None)

    def until_command(self, line: str) -> None:
        """Return when the command has been run."""
        self.pair.until_true(lambda: line in self.ran(), line, self.pair.daemon_log)

    def begun(self, step: str) -> int:
        """How often the step was begun in the latest rollout, by its journal."""
        paths = sorted((self.home / "state" / "rollouts").glob("*.jsonl"))
        return paths[-1].read_text().count(f'"what":"begun","step":"{step}"')

    def until_over(self) -> dict[str, Any]:
        """How the rollout that is under way has ended."""
        self.pair.until(lambda seen: seen["rollout"] is None, AT_LEISURE)
        ended = self.pair.ask("GET", "/v1/rollout")["last_rollout"]
        assert isinstance(ended, dict)
        return ended

    def link(self) -> str | None:
        """What the link names."""
        try:
            return os.readlink(self.releases / LINK)
        except FileNotFoundError:
            return None

    def runs(self) -> tuple[str | None, str | None]:
        """What primary and backup run, each able to serve: by the status, and by their own word."""
        seen = self.pair.status()["instances"]
        found = []
        for role, port in (("primary", self.pair.primary[0]), ("backup", self.pair.backup[0])):
            assert seen[role]["eligible"], (seen[role], self.pair.daemon_log())
            with connection(port) as opened:
                name = json.loads(get(opened, "/who"))["name"]
            version = name.removeprefix(f"{role} ")
            assert seen[role]["release"] == release(version), (seen[role]["release"], name)
            found.append(version)
        return found[0], found[1]

    def listed(self) -> dict[str, dict[str, Any]]:
        """The releases that `clojarsctl releases` shows, by name."""
        return {one["name"]: one for one in self.pair.ask("GET", "/v1/releases")["releases"]}

    def commands(self) -> list[psutil.Process]:
        """What commands of rollouts have left running."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mark = RolloutMark.parse(process.environ().get(ROLLOUT, ""))
                if mark is not None and mark.state_dir == str(self.home / "state"):
                    found.append(process)
        return found

    def assert_runs(self, version: str) -> None:
        """The link names it, both run it and can serve, clients get the primary's answers, nothing is left over."""
        assert self.link() == release(version), self.pair.daemon_log()
        assert self.runs() == (version, version)
        self.pair.until_active("primary")
        for port in (self.pair.http, self.relayed):
            with connection(port) as opened:
                assert json.loads(get(opened, "/who"))["name"] == f"primary {version}"
        status = self.pair.status()
        assert status["rollout"] is None
        assert status["release"]["current"] == release(version)
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        """No command of a rollout runs, no checkout is there, nothing in the releases that is none."""
        assert self.commands() == []
        assert {path.name for path in self.work.iterdir()} <= {"mirror.git"}
        assert [path.name for path in self.releases.iterdir() if path.name.startswith(".")] == []

    # What operators and clients do.

    @contextlib.contextmanager
    def traffic(self, *, pause: float = 0.01) -> Iterator[Traffic]:
        """Clients for as long as the block lasts; none of their requests has failed in the end."""
        steered = self.pair.http if self.pair.mode != "relay" else None
        ports = (self.relayed,) if steered is None else (self.relayed, steered)
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(Clients(port, keep_alive=keep_alive, pause=pause, repeats=port == steered))
                for port in ports
                for keep_alive in (False, True)
            ]
            seen = Traffic(*clients)
            yield seen
            seen.more()
            assert seen.failures == [], self.pair.daemon_log()
        assert seen.failures == []

    def begin(self, *words: str, stdin: int = subprocess.DEVNULL) -> Watcher:
        """clojarsctl with these words, in the background."""
        return Watcher(self, words, stdin)

    @contextlib.contextmanager
    def running(self) -> Iterator[Pair]:
        """The daemon, with both instances able to serve, until the block ends; then nothing is left."""
        with self.pair:
            yield self.pair
        assert self.commands() == []


class Watcher:
    """clojarsctl as a process that somebody watches a rollout with."""

    def __init__(self, site: Site, words: Sequence[str], stdin: int) -> None:
        self._site = site
        self.process = subprocess.Popen(
            [str(CLOJARSCTL), "--socket", str(site.pair.socket), *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            start_new_session=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.said.append(text.rstrip("\n"))

    def until_said(self, text: str) -> None:
        """Return when stderr has a line with the text."""
        pair = self._site.pair
        pair.until_true(lambda: any(text in one for one in self.said), text, lambda: str(self.said))

    def end(self) -> subprocess.CompletedProcess[str]:
        """How it has ended by itself."""
        assert self.process.stdout is not None
        stdout = self.process.stdout.read()
        code = self.process.wait(PATIENCE)
        return self._over(code, stdout)

    def send(self, number: int) -> subprocess.CompletedProcess[str]:
        """Send it a signal; how it has ended then."""
        self.process.send_signal(number)
        return self.end()

    def _over(self, code: int, stdout: str) -> subprocess.CompletedProcess[str]:
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return subprocess.CompletedProcess(self.process.args, code, stdout, "\n".join(self.said))


def release(version: str) -> str:
    """The name of the release of a version."""
    return f"app-{version}-standalone.py"


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A directory that everybody may pass by; gone in the end."""
    path = Path(tempfile.mkdtemp(prefix="clojarsd-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)
