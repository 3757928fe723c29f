"""The daemon is killed at every write of a rollout, and the next one comes to a good end: clients see nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core.rollout_facts import Rollout
from clojarsd.runtime.rollout_journals import Journals
from tests.scenarios.test_deploy import BACKUP_IS_BACK, MODE, NOTHING_WAS_CHANGED, steered_here
from tests.scenarios.test_deploy_orders import until_at
from tests.support import cuts
from tests.support.cuts import Cutter
from tests.support.deploys import AT_LEISURE, Site, Traffic, place, release
from tests.support.real import unavailable

pytestmark = pytest.mark.slow

VERSIONS = ("1.0.0", "1.1.0", "1.2.0")


@pytest.fixture
def home() -> Iterator[Path]:
    with place() as path:
        yield path


class Killing:
    """A pair whose daemon is killed again and again, each time at another write of its logs."""

    def __init__(self, site: Site, cutter: Cutter, traffic: Traffic) -> None:
        self.site = site
        self.pair = site.pair
        self.cutter = cutter
        self.traffic = traffic
        self.current = VERSIONS[0]
        self.cuts = 0

    def next_version(self) -> str:
        """The one that is brought in next: the current one and the one before stay."""
        return VERSIONS[(VERSIONS.index(self.current) + 1) % len(VERSIONS)]

    def ends(self, at: int, *words: str, arm: Callable[[], None] | None = None) -> bool:
        """Have clojarsctl order this, and the daemon killed at that write of it; whether there was no such write.

        Of two cuts in a row at writes of one record the client dies in one, too.
        """
        if arm is None:
            self.cutter.arm(at)
        watcher = self.site.begin(*words)
        if arm is not None:
            arm()
        assert self.pair.daemon is not None
        self.pair.until_true(
            lambda: self.cutter.has_killed or watcher.process.poll() is not None,
            "the kill, or the end",
            self.told,
            AT_LEISURE,
        )
        if not self.cutter.has_killed:
            ended = watcher.end()
            assert ended.returncode == (0 if arm is None else 1), (ended.stderr, self.told())
            return True
        assert self.pair.daemon.wait() == -signal.SIGKILL
        if at // 2 % 2:
            watcher.send(signal.SIGKILL)
        else:
            assert watcher.end().returncode == 4
        self.cuts += 1
        return False

    def journal(self) -> str:
        """The journal of the latest rollout, as text; empty where there is none."""
        paths = sorted(
            (self.site.home / "state" / "rollouts").glob("*.jsonl"), key=lambda path: path.stat().st_ctime_ns
        )
        return paths[-1].read_bytes().rstrip(b"\0").decode() if paths else ""

    def taken_up(self) -> dict[str, Any] | None:
        """How the next daemon has ended what it found; None when it found nothing."""
        self.pair.begin()
        self.pair.until(lambda seen: seen["rollout"] is None, AT_LEISURE)
        self.pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()), AT_LEISURE)
        ended = self.pair.ask("GET", "/v1/rollout")["last_rollout"]
        assert ended is None or isinstance(ended, dict)
        return ended

    def goes_on(self, version: str, number: int) -> None:
        """The next daemon brings that version to its good end, unless the switch was still to come."""
        before, ended = self.journal(), self.taken_up()
        if '"step":"switch"' in before:
            assert ended is not None
            assert ended["outcome"] == "done", (number, ended, self.told())
            self.current = version
        elif '"what":"asked"' in before:
            assert ended is not None
            assert f"; {NOTHING_WAS_CHANGED}".replace("1.0.0", self.current) in ended["message"]
        self.check(self.current, number)

    def check(self, version: str, number: int) -> None:
        """That version is the current one, everywhere; nobody has lost anything so far."""
        self.site.assert_runs(version)
        assert self.traffic.failures == [], (number, self.told())

    def told(self) -> str:
        return "\n".join([*self.cutter.writes, self.journal(), self.pair.daemon_log()])


def counts(path: str, call: str, content: bytes) -> bool:
    """Every write of the journal and of the release log; where nothing is done between two of them, one is enough.

    Of a step that is before its beginning is written what is after the end of the one before.
    """
    nothing_between = (b'"what":"done"' if call == "fdatasync" else b'"what":"begun"') in content
    return path.endswith(".jsonl") and content.strip(b"\0") != b"" and not nothing_between


@contextmanager
def killing(
    home: Path, *, mode: str = "relay", has_repository: bool = True, smokes: bool = False, keep: int = 0
) -> Iterator[Killing]:
    """A pair that runs 1.0.0, under clients who lose nothing."""
    if not cuts.is_there():
        unavailable("the numbers of system calls are not known for this machine")
    site = Site(home, soak="100ms", keep=keep, mode=mode, has_repository=has_repository)
    site.write_settings(gates="", **({} if smokes else {"smoke": ""}))
    site.bring(VERSIONS[0])
    for version in VERSIONS[1:]:
        site.tag(version)
        site.build(version)
    site.artefact(VERSIONS[0])
    with ExitStack() as stack:
        cutter = stack.enter_context(Cutter(home, counts))
        site.pair.program = cutter.program
        stack.enter_context(site.running())
        traffic = stack.enter_context(site.traffic(pause=0.05))
        yield Killing(site, cutter, traffic)


def is_written(record: bytes, path: str, call: str, content: bytes) -> bool:
    """Whether such a record has been written, and is not safe yet."""
    return call == "fdatasync" and record in content


def has_run_twice(site: Site, step: str) -> bool:
    return site.ran()[-2:] == [f"{step} deploy"] * 2


def tear(path: Path, left: str) -> None:
    """Leave so much of the last record of a log, as a power loss does."""
    content = path.read_bytes()
    written = content.rstrip(b"\0")
    begin = written[:-1].rfind(b"\n") + 1
    length = len(written) - begin
    keep = {"nothing of it": 0, "a half": length // 2, "all but its end": length - 2, "noughts": 0}[left]
    reserve = bytes(len(content) - begin - keep) if left == "noughts" else b""
    path.write_bytes(written[: begin + keep] + reserve)


def parts(count: int) -> pytest.MarkDecorator:
    """The writes are shared by so many tests: every one is taken, by one of them."""
    return pytest.mark.parametrize(("part", "step"), [(part, count) for part in range(1, count + 1)])


# --- A good deploy


@parts(2)
def test_killed_while_it_builds_nothing_has_changed(home: Path, part: int, step: int) -> None:
    """The journal's beginning, checkout, tests, build and installation; the next daemon ends what is left of it."""
    with killing(home) as at:
        for number in range(part, 1000, step):
            assert not at.ends(number, "deploy", "1.1.0", "--yes")
            before = at.journal()
            if '"step":"switch"' in before:
                assert at.traffic.names() == {"primary 1.0.0"}
                break
            ended = at.taken_up()
            if '"what":"asked"' in before:
                assert ended is not None, (number, at.told())
                assert ended["message"].startswith("cannot deploy 1.1.0: "), number
                assert ": clojarsd ended during " in ended["message"], (number, ended)
                assert f"; {NOTHING_WAS_CHANGED}" in ended["message"], (number, ended)
            at.check("1.0.0", number)
            assert list(at.site.listed()) in ([release("1.0.0")], [release("1.1.0"), release("1.0.0")])
        assert at.cuts > 10 // step
        assert at.taken_up() is not None
        at.check("1.1.0", number)


@parts(3)
@steered_here
def test_killed_later_the_next_one_goes_on_to_the_good_end(home: Path, part: int, step: int) -> None:
    with killing(home, mode=MODE, has_repository=False) as at:
        for number in range(part, 1000, step):
            version = at.next_version()
            if at.ends(number, "deploy", "--artifact", str(at.site.artefact(version)), "--yes"):
                break
            at.goes_on(version, number)
            assert at.site.listed()[release(at.current)]["state"] == "good", (number, at.told())
        at.check(version, number)
        assert at.cuts >= 21 // step


COMMANDS = ("test", "build", "before_switch", "after_backup", "smoke", "before_promote", "after_deploy")


def test_a_command_that_runs_when_the_daemon_is_killed_is_ended_by_the_next_one(home: Path) -> None:
    """Until the switch nothing has changed; later the gate is run once more. In the end there is no such command."""
    site = Site(home, soak="100ms")
    site.bring("1.0.0")
    site.tag("1.1.0")
    with site.running() as pair, site.traffic() as traffic:
        for step in COMMANDS:
            watcher = until_at(site, step)
            (command, *_) = site.commands()
            pair.kill()
            assert watcher.end().returncode == 4
            assert command in site.commands()
            pair.begin()
            if COMMANDS.index(step) >= COMMANDS.index("after_backup"):
                pair.until_true(partial(has_run_twice, site, step), step, pair.daemon_log)
                assert command not in site.commands()
                assert pair.status()["rollout"]["step"] == step
                site.let_go(step)
            ended = site.until_over()
            assert command not in site.commands()
            if step in COMMANDS[:3]:
                site.let_go(step)
                assert ended["message"].startswith("cannot deploy 1.1.0: "), step
                assert f"clojarsd ended during {step}; {NOTHING_WAS_CHANGED}" in ended["message"], step
            else:
                assert ended["outcome"] == "done", (step, ended)
                pair.done("rollback", "1.0.0", "--yes")
            site.assert_runs("1.0.0")
        assert traffic.failures == []


def test_killed_while_the_answer_is_awaited_the_next_one_asks_until_the_same_instant(home: Path) -> None:
    site = Site(home, soak="100ms")
    site.bring("1.0.0")
    site.tag("1.1.0")
    with site.running() as pair, site.traffic():
        site.begin("deploy", "1.1.0", "--no-promote").end()
        until = site.until_asked()["rollout"]["question"]["until"]
        for _ in range(3):
            pair.kill()
            pair.begin()
            assert site.until_asked()["rollout"]["question"]["until"] == until
            assert site.runs() == ("1.0.0", "1.1.0")
        promoted = pair.ctl("promote")
        assert promoted.returncode == 0, promoted.stderr
        site.assert_runs("1.1.0")


@pytest.mark.parametrize("role", ["backup", "primary"])
def test_a_step_in_which_two_daemons_have_died_is_not_given_to_a_third(home: Path, role: str) -> None:
    with killing(home, has_repository=False) as at:
        at.cutter.counts = partial(is_written, f'"what":"begun","step":"{role}"'.encode())
        words = ("deploy", "--artifact", str(at.site.artefact("1.1.0")), "--yes")
        assert not at.ends(1, *words)
        at.cutter.arm(1)
        with suppress(AssertionError):  # it may die before it can be asked anything
            at.pair.begin()
        at.pair.until_true(lambda: at.cutter.has_killed and at.pair.daemon_ended(), "the second death", at.told)
        at.cutter.arm(None)
        ended = at.taken_up()
        assert ended is not None
        assert ended["outcome"] == "failed"
        assert f"restarting {role}: clojarsd ended twice during {role}; the link" in ended["message"]
        at.check("1.0.0", 0)
        at.pair.done(*words)
        at.check("1.1.0", 1)


# --- One that goes back


@parts(2)
def test_killed_on_its_way_back_it_comes_back(home: Path, part: int, step: int) -> None:
    with killing(home, has_repository=False, smokes=True) as at:
        at.site.fail("smoke")
        for number in range(part, 1000, step):
            at.site.hold("smoke")

            def begun(number: int = number) -> None:
                at.site.pair.until_true(lambda: at.site.ran()[-1:] == ["smoke deploy"], "smoke", at.told)
                (at.site.own / "ran").unlink()
                at.cutter.arm(number)
                at.site.let_go("smoke")

            has_ended = at.ends(number, "deploy", "--artifact", str(at.site.artefact("1.1.0")), "--yes", arm=begun)
            if has_ended:
                break
            before, ended = at.journal(), at.taken_up()
            assert ended is not None
            if '"what":"turned"' in before:
                assert ended["outcome"] == "failed", (number, ended, at.told())
                assert ": running smoke: " in ended["message"], (number, ended)
                assert f"; {BACKUP_IS_BACK}; whole log: " in ended["message"], (number, ended)
            at.check("1.0.0", number)
            assert at.site.listed()[release("1.1.0")]["state"] == "bad", (number, at.told())
        at.check("1.0.0", number)
        assert at.cuts >= 12 // step
        assert at.traffic.names() == {"primary 1.0.0"}


# --- A rollback


@parts(2)
def test_killed_in_a_rollback_the_next_one_goes_on_or_nothing_has_changed(home: Path, part: int, step: int) -> None:
    with killing(home, keep=5) as at:
        at.pair.done("deploy", "1.1.0", "--yes")
        at.current = "1.1.0"
        for number in range(part, 1000, step):
            version = "1.0.0" if at.current == "1.1.0" else "1.1.0"
            if at.ends(number, "rollback", version, "--yes"):
                break
            at.goes_on(version, number)
        at.check(version, number)
        assert at.cuts >= 18 // step


# --- Power loss: what was being written is there in part


def test_a_record_that_is_cut_at_any_byte_counts_or_does_not(home: Path, tmp_path: Path) -> None:
    """Of the journal of a whole deploy, each record in turn is the last one, and ends at each of its bytes.

    What is read then is what was read before the record, or with it; so what the next daemon does is what it does after
    a kill. That the real daemon takes such files is tested below.
    """
    site = Site(home, soak="0s", has_repository=False)
    site.write_settings(gates="")
    site.bring("1.0.0")
    artefact = site.build("1.1.0")
    with site.running() as pair:
        pair.done("deploy", "--artifact", str(artefact), "--yes")
    (path,) = (home / "state" / "rollouts").iterdir()
    lines = path.read_bytes().rstrip(b"\0").splitlines(keepends=True)
    assert len(lines) >= 18
    (copy := tmp_path / "rollouts").mkdir()
    before = None
    for number, line in enumerate(lines):
        head = b"".join(lines[:number])
        whole = told(copy / path.name, head + line)
        assert number == 0 or whole not in (None, before)
        for size in range(len(line)):
            tail = (b"", bytes(len(line) - size), bytes(4096))[size % 3]
            seen = told(copy / path.name, head + line[:size] + tail)
            assert seen in ((before, whole) if size == len(line) - 1 else (before,)), (number, size)
        before = whole
    assert before is not None
    assert before.outcome is not None


def told(path: Path, content: bytes) -> Rollout | None:
    """What a daemon takes up that finds this journal."""
    path.write_bytes(content)
    journals = Journals(path.parent, path.parent)
    try:
        return journals.load()
    finally:
        journals.close()


@pytest.mark.parametrize("left", ["nothing of it", "a half", "all but its end", "noughts"])
def test_after_a_power_loss_the_daemon_goes_on_from_what_is_whole(home: Path, left: str) -> None:
    """The last record of the journal, and that of the release log, are cut while nobody is there."""
    with killing(home, has_repository=False, keep=5) as at:
        words = ("deploy", "--artifact", str(at.site.artefact("1.1.0")), "--yes")
        for number, (record, comes_to) in enumerate(
            [
                (b'"what":"begun","step":"switch"', "1.0.0"),
                (b'"what":"begun","step":"primary"', "1.1.0"),
                (b'"what":"done","step":"good"', "1.1.0"),
            ]
        ):
            at.cutter.counts = partial(is_written, record)
            assert not at.ends(1, *words)
            journal = max((home / "state" / "rollouts").iterdir(), key=lambda path: path.stat().st_ctime_ns)
            assert record in journal.read_bytes()
            tear(journal, left)
            if record.endswith(b'"good"'):
                tear(home / "state" / "releases.jsonl", left)
            ended = at.taken_up()
            assert ended is not None, at.told()
            assert ended["outcome"] == ("failed" if comes_to == "1.0.0" else "done"), (record, ended, at.told())
            at.check(comes_to, number)
            assert at.site.listed()[release(comes_to)]["state"] == "good"
            if comes_to == "1.1.0":
                at.cutter.arm(None)
                at.pair.done("rollback", "1.0.0", "--yes")
