"""Rollouts that people answer, abort, watch, leave, and get in the way of."""

from __future__ import annotations

import json
import os
import pty
import pwd
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.test_deploy import BACKUP_IS_BACK, BOTH_ARE_BACK, MODE, NOTHING_WAS_CHANGED, events, steered_here
from tests.support.deploys import LINK, Site, Traffic, Watcher, place, release
from tests.support.pair import CHECKOUT, CLOJARSCTL, Pair
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

DONE = (
    "deploy of 1.1.0 is done and recorded as good: primary and backup run app-1.1.0-standalone.py"
    " instead of app-1.0.0-standalone.py\n"
)
USER = pwd.getpwuid(os.geteuid()).pw_name
SEE = "clojarsctl rollout -f shows it again; clojarsctl abort brings everything back"


@pytest.fixture
def home() -> Iterator[Path]:
    with place() as path:
        yield path


@contextmanager
def begun(home: Path, **settings: Any) -> Iterator[tuple[Site, Pair, Traffic]]:
    """A pair that runs 1.0.0, with 1.1.0 and 1.2.0 to be deployed, under clients who lose nothing."""
    site = Site(home, **settings)
    site.bring("1.0.0")
    site.tag("1.1.0")
    site.tag("1.2.0")
    with site.running() as pair, site.traffic() as traffic:
        yield site, pair, traffic


def asked(site: Site, *words: str) -> Watcher:
    """A deploy that waits for an answer, and who watches it."""
    watcher = site.begin("deploy", *(words or ("1.1.0",)))
    site.until_asked()
    return watcher


# --- The question


class Terminal:
    """clojarsctl at a terminal of its own."""

    def __init__(self, site: Site, *words: str) -> None:
        self._own, its = pty.openpty()
        command = ["setsid", "--ctty", str(CLOJARSCTL), "--socket", str(site.pair.socket), *words]
        self.process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, cwd=CHECKOUT)
        os.close(its)
        self.text = ""

    def until_said(self, text: str) -> None:
        while text not in self.text:
            self.text += os.read(self._own, 65536).decode()

    def type(self, text: str) -> None:
        os.write(self._own, f"{text}\n".encode())

    def end(self) -> int:
        try:
            while chunk := os.read(self._own, 65536):
                self.text += chunk.decode()
        except OSError:  # it has closed its side
            pass
        os.close(self._own)
        return self.process.wait(PATIENCE)


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_it_is_asked_at_a_terminal_and_the_answer_counts(home: Path, answer: str) -> None:
    with begun(home) as (site, pair, _):
        terminal = Terminal(site, "deploy", "1.1.0")
        terminal.until_said("promote it to the primary? yes or no:")
        host, port = "127.0.0.1", pair.backup[0]
        assert f"curl -i http://{host}:{port}/health\r\n" in terminal.text
        assert "1.0.0 -> 1.1.0: 1 commit; 1 file changed" in terminal.text
        assert site.runs() == ("1.0.0", "1.1.0")
        terminal.type("perhaps")
        terminal.until_said("perhaps\r\npromote it to the primary? yes or no:")
        terminal.type(answer)
        assert terminal.end() == (0 if answer == "yes" else 1), terminal.text
        if answer == "yes":
            assert f"{USER} has approved it" in terminal.text
            assert DONE.strip() in terminal.text
            site.assert_runs("1.1.0")
        else:
            assert BACKUP_IS_BACK in terminal.text
            site.assert_runs("1.0.0")
            assert site.listed()[release("1.1.0")]["state"] == "unproved", "nothing was wrong with it"


def test_nobody_answers_and_it_goes_back_in_time(home: Path) -> None:
    with begun(home, approval_timeout="1s") as (site, pair, _):
        ended = pair.ctl("deploy", "1.1.0")
        assert (ended.returncode, ended.stdout) == (1, "")
        message = ended.stderr.splitlines()[-1]
        assert message.startswith("deploy of 1.1.0 was given up while waiting for promote or abort: nobody answered ")
        assert f"; {BACKUP_IS_BACK}; whole log: " in message
        assert events(site, "deploy-aborted") == [message]
        assert len(events(site, "deploy-waiting")) == 1
        site.assert_runs("1.0.0")


def test_no_promote_leaves_the_question_to_others_and_status_shows_it(home: Path) -> None:
    with begun(home) as (site, pair, _):
        left = pair.ctl("deploy", "1.1.0", "--no-promote")
        assert left.returncode == 0
        assert left.stdout.startswith("it waits for `clojarsctl promote` or `clojarsctl abort` until ")
        seen = pair.status()["rollout"]
        assert (seen["state"], seen["step"], seen["tag"], seen["release"], seen["previous"]) == (
            *("waiting", "approve", "1.1.0"),
            *(release("1.1.0"), release("1.0.0")),
        )
        for verb in ("rollout", "status"):
            told = f"deploy of 1.1.0 by {seen['by']}: step 10 of 16, waiting for promote or abort,"
            assert told in pair.done(verb)
        warning = json.loads(pair.done("--json", "releases"))["warnings"]
        place = f"step 10 of 16 (waiting for promote or abort), since {seen['step_since']}"
        assert warning == [f"deploy of 1.1.0 by {seen['by']} is at {place}"]
        promoted = pair.ctl("promote")
        assert (promoted.returncode, promoted.stdout) == (0, DONE)
        site.assert_runs("1.1.0")
        again = pair.ctl("promote")
        assert (again.returncode, again.stderr) == (
            3,
            "cannot promote: no deploy or rollback is under way; nothing was done\n",
        )


def test_somebody_else_promotes_and_both_see_the_end(home: Path) -> None:
    with begun(home) as (site, pair, _):
        watcher = asked(site)
        promoted = pair.ctl("promote")
        assert (promoted.returncode, promoted.stdout) == (0, DONE)
        watched = watcher.end()
        assert (watched.returncode, watched.stdout) == (0, DONE)
        site.assert_runs("1.1.0")


# --- Aborts

BEFORE = ("test", "build", "before_switch")
AT_BACKUP = ("1.1.0-on-backup", "after_backup", "smoke", "approve", "before_promote")
AT_PRIMARY = ("1.1.0-on-primary", "after_deploy")


@pytest.mark.parametrize("steps", [(*BEFORE, *AT_BACKUP[:2]), (*AT_BACKUP[2:], *AT_PRIMARY)], ids=["early", "late"])
@steered_here
def test_an_abort_at_any_step_brings_everything_back(home: Path, steps: tuple[str, ...]) -> None:
    with begun(home, mode=MODE) as (site, pair, _):
        for step in steps:
            watcher = until_at(site, step)
            aborted = pair.ctl("abort")
            assert aborted.returncode == 0, (step, aborted.stderr)
            if step != "approve":
                site.let_go(step)
            ends = NOTHING_WAS_CHANGED if step in BEFORE else BOTH_ARE_BACK if step in AT_PRIMARY else BACKUP_IS_BACK
            assert aborted.stdout.startswith("deploy of 1.1.0 was given up while "), step
            assert f"; {ends}; whole log: " in aborted.stdout, step
            watched = watcher.end()
            assert (watched.returncode, watched.stderr.splitlines()[-1]) == (1, aborted.stdout.strip())
            site.assert_runs("1.0.0")
            assert [one["state"] for one in site.listed().values() if one["tag"] == "1.1.0"] in ([], ["unproved"])
        late = pair.ctl("abort")
        assert (late.returncode, late.stderr) == (
            3,
            "cannot abort: no deploy or rollback is under way; nothing was done\n",
        )


def test_an_abort_while_git_works_and_one_while_both_are_watched(home: Path) -> None:
    (home / "bin").mkdir()
    git = home / "bin" / "git"
    git.write_text(f'#!/bin/sh\n{home}/step git /bin/true\nPATH=${{PATH#*:}} exec git "$@"\n')
    git.chmod(0o755)
    path = f'environment = {{ PATH = "{home}/bin:{os.environ["PATH"]}" }}'
    with begun(home, soak="1500ms", more=path) as (site, pair, _):
        site.hold("git")
        watcher = site.begin("deploy", "1.1.0", "--yes")
        site.until_command("git ")  # which asks what the tag names
        site.let_go("git")
        site.until_step("checkout")
        site.hold("git")
        pair.until_true(lambda: site.commands() != [], "git", pair.daemon_log)
        aborted = pair.ctl("abort")
        assert aborted.returncode == 0, aborted.stderr
        assert f"while checking it out: aborted by {USER}; {NOTHING_WAS_CHANGED}" in aborted.stdout
        site.let_go("git")
        assert watcher.end().returncode == 1
        site.assert_runs("1.0.0")
        watcher = site.begin("deploy", "1.1.0", "--yes")
        site.until_step("soak")
        aborted = pair.ctl("abort")
        assert aborted.returncode == 0
        assert f"while watching both instances serve: aborted by {USER}; {BOTH_ARE_BACK}" in aborted.stdout
        assert watcher.end().returncode == 1
        site.assert_runs("1.0.0")


def test_a_build_that_somebody_kills_fails_as_a_whole(home: Path) -> None:
    with begun(home) as (site, _, __):
        watcher = until_at(site, "build")
        site.commands()[0].kill()
        ended = watcher.end()
        assert ended.returncode == 1
        message = ended.stderr.splitlines()[-1]
        assert message.startswith("cannot deploy 1.1.0: building it: ")
        assert "was killed by signal 9 after" in message
        assert f"; {NOTHING_WAS_CHANGED}" in message
        site.let_go("build")
        site.assert_runs("1.0.0")


def until_at(site: Site, step: str) -> Watcher:
    """A deploy of 1.1.0 that is held up at the step."""
    if step == "approve":
        return asked(site)
    site.hold(step)
    watcher = site.begin("deploy", "1.1.0", "--yes")
    if "-on-" in step:
        role = step.rpartition("-")[2]
        site.until_step(role)
        site.pair.until(lambda seen: seen["instances"][role]["state"] == "starting")
    else:
        site.pair.until_true(lambda: site.ran()[-1:] == [f"{step} deploy"], step, site.pair.daemon_log)
    return watcher


# --- Who watches, and who comes second


def test_ctrl_c_and_a_killed_client_end_the_watching_alone(home: Path) -> None:
    with begun(home) as (site, _, __):
        watcher = until_at(site, "build")
        stopped = watcher.send(signal.SIGINT)
        assert (stopped.returncode, stopped.stdout) == (130, "")
        assert stopped.stderr.splitlines()[-1] == f"stopped watching; it goes on: {SEE}"
        again = site.begin("rollout", "-f")
        again.until_said("building it")
        assert again.send(signal.SIGKILL).returncode == -signal.SIGKILL
        last = site.begin("rollout", "-f")
        last.until_said("building it")
        site.let_go("build")
        watched = last.end()
        assert (watched.returncode, watched.stdout) == (0, DONE)
        site.assert_runs("1.1.0")


def test_a_second_one_is_refused_with_who_does_what_since_when(home: Path) -> None:
    with begun(home) as (site, pair, _):
        watcher = until_at(site, "build")
        since = pair.status()["rollout"]["step_since"]
        user = pair.status()["rollout"]["by"]
        busy = f"deploy of 1.1.0 by {user} is at step 3 of 15 (building it), since {since}"
        for words, cannot in (
            (("deploy", "1.2.0"), "deploy 1.2.0"),
            (("deploy", "1.1.0", "--yes", "--force"), "deploy 1.1.0"),
            (("rollback",), "roll back"),
        ):
            refused = pair.ctl(*words)
            assert (refused.returncode, refused.stdout, refused.stderr) == (
                *(3, ""),
                f"cannot {cannot}: {busy}; nothing was done; clojarsctl rollout shows it\n",
            )
        refused = pair.ctl("promote")
        assert (refused.returncode, refused.stderr) == (
            3,
            f"cannot promote: {busy}, and waits for nobody; nothing was done\n",
        )
        site.let_go("build")
        assert watcher.end().returncode == 0
        site.assert_runs("1.1.0")
        assert site.ran().count("test deploy") == 1


def test_of_two_at_the_same_moment_one_is_done(home: Path) -> None:
    with begun(home) as (site, _, __):
        ended = [one.end() for one in [site.begin("deploy", f"1.{minor}.0", "--yes") for minor in (1, 2)]]
        assert sorted(one.returncode for one in ended) == [0, 3], [one.stderr for one in ended]
        (refused,) = [one for one in ended if one.returncode == 3]
        assert "nothing was done" in refused.stderr
        (done,) = [one for one in ended if one.returncode == 0]
        site.assert_runs(done.stdout.split()[2])


# --- Instances that are down, or go, or are told to


def test_while_one_is_down_it_is_refused_unless_forced(home: Path) -> None:
    """Nothing forces it while the backup is the only one that serves."""
    with begun(home) as (site, pair, _):
        first = "clojarsctl start primary, or clojarsctl rollback, comes first"
        for role, force, ends in (
            ("primary", (), first),
            ("primary", ("--force",), first),
            ("backup", (), "--force deploys all the same"),
        ):
            pair.done("stop", role)
            other = {"primary": "backup", "backup": "primary"}[role]
            pair.until_active(other)
            refused = pair.ctl("deploy", "1.1.0", "--yes", *force)
            assert (refused.returncode, refused.stdout) == (3, "")
            assert refused.stderr.startswith(
                f"cannot deploy 1.1.0: both instances must be able to serve, and {role} is stopped (stopped by "
            )
            assert refused.stderr.endswith(f"; {other} still serves; nothing was done; {ends}\n")
            if role == "primary":
                pair.done("start", role)
        assert site.ran() == []
        pair.done("deploy", "1.1.0", "--yes", "--force")
        site.assert_runs("1.1.0")


def test_a_primary_that_dies_while_the_answer_is_awaited_comes_back_with_what_it_ran(home: Path) -> None:
    site = Site(home)
    site.bring("1.0.0")
    site.tag("1.1.0")
    with site.running() as pair:  # what is inside it when it dies is lost, so nobody counts
        watcher = asked(site)
        os.kill(pair.pid("primary"), signal.SIGKILL)
        pair.until(lambda seen: seen["instances"]["primary"]["incarnation"] == 2)
        pair.until_active("primary")
        assert (site.runs(), site.link()) == (("1.0.0", "1.1.0"), release("1.1.0"))
        with site.traffic() as traffic:
            pair.done("restart", "primary")
            assert site.runs() == ("1.0.0", "1.1.0"), "an order does not bring it in either"
            pair.done("promote")
            site.assert_runs("1.1.0")
            assert watcher.end().returncode == 0
        assert traffic.failures == []


def test_a_backup_that_dies_while_the_answer_is_awaited_ends_the_question(home: Path) -> None:
    with begun(home) as (site, pair, traffic):
        watcher = asked(site)
        os.kill(pair.pid("backup"), signal.SIGKILL)
        ended = watcher.end()
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1].startswith(
            "cannot deploy 1.1.0: waiting for promote or abort: backup has fallen over: was killed by SIGKILL;"
            f" {BACKUP_IS_BACK}; whole log: "
        )
        site.assert_runs("1.0.0")
        assert traffic.names() == {"primary 1.0.0"}


def test_operators_may_restart_the_backup_while_they_look_at_it(home: Path) -> None:
    with begun(home) as (site, pair, _):
        watcher = until_at(site, "1.1.0-on-backup")
        pair.done("restart", "backup", "--no-wait")
        pair.until(lambda seen: seen["instances"]["backup"]["incarnation"] == 3)
        site.let_go("1.1.0-on-backup")
        assert watcher.end().returncode == 0
        site.assert_runs("1.1.0")
        pair.done("rollback", "--yes")
        watcher = asked(site)
        pair.done("restart", "backup")
        assert site.runs() == ("1.0.0", "1.1.0")
        pair.done("promote")
        assert watcher.end().returncode == 0
        site.assert_runs("1.1.0")


def test_a_backup_that_was_told_to_stop_is_not_what_the_primary_is_restarted_beside(home: Path) -> None:
    with begun(home) as (site, pair, _):
        for step, why in (
            ("approve", "restarting primary: backup cannot take over while primary is restarted"),
            ("1.1.0-on-backup", "restarting backup: backup was told to stop meanwhile"),
        ):
            watcher = until_at(site, step)
            pair.done("stop", "backup")
            if step == "approve":
                assert pair.ctl("promote").returncode == 1
            else:
                site.let_go(step)
            ended = watcher.end()
            assert ended.returncode == 1
            message = ended.stderr.splitlines()[-1]
            assert message.startswith(f"cannot deploy 1.1.0: {why}; {BACKUP_IS_BACK}; whole log: ")
            site.assert_runs("1.0.0")
        watcher = until_at(site, "1.1.0-on-primary")
        pair.done("stop", "backup")
        site.let_go("1.1.0-on-primary")
        ended = watcher.end()
        assert f"backup was told to stop meanwhile; {BOTH_ARE_BACK}; whole log: " in ended.stderr
        site.assert_runs("1.0.0")


def test_a_primary_that_was_told_to_stop_is_started_with_what_was_approved(home: Path) -> None:
    with begun(home) as (site, pair, _):
        watcher = asked(site)
        pair.done("stop", "primary")
        pair.done("promote")
        assert watcher.end().returncode == 0
        site.assert_runs("1.1.0")


# --- The link, and what it names


def test_a_link_that_somebody_changes_meanwhile_ends_it(home: Path) -> None:
    with begun(home) as (site, pair, _):
        watcher = asked(site)
        beside = site.releases / "beside"
        beside.symlink_to(release("1.0.0"))
        beside.rename(site.releases / LINK)
        assert pair.ctl("promote").returncode == 1
        ended = watcher.end()
        assert ended.returncode == 1
        assert (
            f"somebody has changed the link, which names {release('1.0.0')} now; {BACKUP_IS_BACK}; whole log: "
        ) in ended.stderr.splitlines()[-1]
        site.assert_runs("1.0.0")


def test_a_release_that_was_changed_is_not_brought_in_but_anew(home: Path) -> None:
    """Between its installation and the switch, and between the switch and the primary."""
    with begun(home) as (site, pair, _):
        damaged = site.releases / release("1.1.0")
        for step, ends in (("before_switch", None), ("approve", BOTH_ARE_BACK)):
            watcher = until_at(site, step)
            path = max(site.releases.glob("app-1.1.0-*"), key=lambda path: path.stat().st_ctime_ns)
            path.chmod(0o755)
            path.write_text(f"{path.read_text()}# changed\n")
            if step == "approve":
                assert pair.ctl("promote").returncode == 1
            else:
                site.let_go(step)
            ended = watcher.end()
            assert ended.returncode == 1
            assert f"{path} is not what was installed" in ended.stderr.splitlines()[-1]
            assert ends is None or ends in ended.stderr.splitlines()[-1]
            site.assert_runs("1.0.0")
        assert path != damaged, "what is there under the name of the artefact is not the release"
        done = pair.done("deploy", "1.1.0", "--yes")
        assert site.link() not in (damaged.name, path.name)
        assert f"primary and backup run {site.link()} instead of {release('1.0.0')}" in done


def test_a_former_release_that_was_changed_is_not_gone_back_to(home: Path) -> None:
    with begun(home) as (site, pair, _):
        pair.done("deploy", "1.1.0", "--yes")
        former = site.releases / release("1.0.0")
        former.chmod(0o755)
        former.write_text(f"{former.read_text()}# changed\n")
        for words in (("rollback",), ("rollback", "1.0.0", "--yes"), ("rollback", former.name)):
            refused = pair.ctl(*words)
            assert refused.returncode == 3
            assert refused.stderr.startswith(f"cannot roll back to {former.name}: {former} is not what was installed")
            assert refused.stderr.endswith("; nothing was done\n")
        site.assert_runs("1.1.0")


# --- Rollbacks


@steered_here
def test_a_rollback_brings_the_last_good_one_back_and_another_by_name_or_tag(home: Path) -> None:
    site = Site(home, mode=MODE)
    site.bring("1.0.0", "1.1.0", "1.2.0")
    with site.running() as pair, site.traffic() as traffic:
        done = pair.ctl("rollback", "--yes")
        assert (done.returncode, done.stdout) == (
            0,
            "rollback to app-1.1.0-standalone.py is done and recorded as good:"
            " primary and backup run app-1.1.0-standalone.py instead of app-1.2.0-standalone.py\n",
        )
        site.assert_runs("1.1.0")
        assert events(site, "rollback-finished") == [done.stdout.strip()]
        assert not {"test rollback", "build rollback"} & set(site.ran())
        assert [line.partition(" ")[0] for line in site.ran()] == [
            *("before_switch", "after_backup", "smoke", "before_promote", "after_deploy"),
        ]
        watcher = site.begin("rollback")
        site.until_asked()
        assert site.runs() == ("1.1.0", "1.0.0")
        pair.done("promote")
        assert watcher.end().returncode == 0
        site.assert_runs("1.0.0")
        pair.done("rollback", release("1.2.0"), "--yes")
        site.assert_runs("1.2.0")
        pair.done("rollback", "1.1.0", "--yes")
        site.assert_runs("1.1.0")
        refused = pair.ctl("rollback", "9.9.9", "--yes")
        assert refused.returncode == 3
        assert refused.stderr.startswith("cannot roll back to 9.9.9: there is no release 9.9.9: there are ")
        again = pair.ctl("rollback", "1.1.0", "--yes")
        assert (again.returncode, again.stderr) == (
            3,
            f"cannot roll back to {release('1.1.0')}: it is current, and both instances run it; nothing was done\n",
        )
        assert len(traffic.names()) > 4


def test_a_rollback_that_fails_stays_where_it_was(home: Path) -> None:
    site = Site(home)
    site.bring("1.0.0", "1.1.0")
    site.fail("smoke")
    with site.running() as pair, site.traffic() as traffic:
        failed = pair.ctl("rollback", "--yes")
        assert failed.returncode == 1
        message = failed.stderr.splitlines()[-1]
        assert message.startswith(f"cannot roll back to {release('1.0.0')}: running smoke: ")
        assert "the link and backup are back at app-1.1.0-standalone.py, the primary was not touched" in message
        site.assert_runs("1.1.0")
        none = pair.ctl("rollback", "--yes")
        assert (none.returncode, none.stderr) == (
            3,
            "cannot roll back: no good release is known before app-1.1.0-standalone.py;"
            " clojarsctl releases shows what there is; nothing was done\n",
        )
    assert traffic.names() == {"primary 1.1.0"}


@pytest.mark.parametrize("answer", ["--yes", "promote", "abort"])
def test_a_rollback_from_what_brings_the_primary_down_begins_with_the_primary(home: Path, answer: str) -> None:
    """The backup still serves, and cannot be restarted while nobody can take over."""
    site = Site(home, app='restart_limit = { count = 2, within = "60s" }')
    site.bring("1.0.0")
    site.bring("1.1.0", fault="refuses on primary")
    pair = site.pair.begin()
    try:
        pair.until(lambda seen: seen["instances"]["primary"]["state"] == "failed")
        pair.until_active("backup")
        with site.traffic() as traffic:
            if answer == "--yes":
                pair.done("rollback", "--yes")
            else:
                watcher = site.begin("rollback")
                site.until_asked()
                assert site.runs() == ("1.0.0", "1.0.0")
                assert pair.ctl(answer).returncode == (answer == "abort")
                assert watcher.end().returncode == (answer == "abort")
            if answer != "abort":
                site.assert_runs("1.0.0")
        started = [one["role"] for one in pair.events() if one["event"] == "instance-started"]
        assert started.count("backup") == (3 if answer == "abort" else 2)
        assert traffic.failures == []
        if answer == "abort":  # it is as bad as before, and says so
            assert site.link() == release("1.1.0")
            assert pair.instance("backup")["release"] == release("1.1.0")
            assert "not everything could be brought back" in pair.done("rollout")
    finally:
        pair.end()


# --- The daemon meanwhile


def test_a_reload_counts_for_the_next_deploy(home: Path) -> None:
    with begun(home) as (site, pair, _):
        watcher = asked(site)
        site.fail("smoke")
        site.write_settings(soak="200ms", gates="")
        pair.done("config", "reload")
        pair.done("promote")
        assert watcher.end().returncode == 0
        assert site.ran()[-2:] == ["before_promote deploy", "after_deploy deploy"]
        site.assert_runs("1.1.0")


def test_a_reload_does_not_move_the_link_meanwhile(home: Path) -> None:
    with begun(home) as (site, pair, _):
        watcher = asked(site)
        config = pair.write_config()
        config.write_text(config.read_text().replace(LINK, "other.py"))
        for words in (("config", "reload"), ("restart", "backup")):
            refused = pair.ctl(*words)
            assert refused.returncode == 3
            assert f"the link would be {site.releases / 'other.py'}, and deploy of 1.1.0 by " in refused.stderr
        pair.write_config()
        pair.done("promote")
        assert watcher.end().returncode == 0
        site.assert_runs("1.1.0")


def test_other_code_may_take_over_only_while_it_waits(home: Path) -> None:
    with begun(home) as (site, pair, _):
        watcher = site.begin("deploy", "1.1.0")
        site.hold("build")
        site.until_command("build deploy")
        refused = pair.ctl("daemon", "upgrade")
        assert refused.returncode == 3
        assert refused.stderr.startswith(
            "cannot upgrade: a rollout is under way: deploy of 1.1.0 is at step 3 of 16 (building it); "
        )
        site.let_go("build")
        until = site.until_asked()["rollout"]["question"]["until"]
        pair.done("daemon", "upgrade")
        left = watcher.end()
        assert (left.returncode, left.stdout) == (4, "")
        assert left.stderr.splitlines()[-1] == (f"clojarsd is being upgraded; the next clojarsd takes it up: {SEE}")
        assert site.until_asked()["rollout"]["question"]["until"] == until, "the deadline is the one it had"
        assert site.runs() == ("1.0.0", "1.1.0")
        pair.done("promote")
        site.assert_runs("1.1.0")


@pytest.mark.parametrize(
    ("step", "comes_to"),
    [("build", "1.0.0"), ("1.1.0-on-backup", "1.1.0"), ("approve", None), ("1.1.0-on-primary", "1.1.0")],
)
def test_the_daemon_is_stopped_and_the_next_one_takes_it_up(home: Path, step: str, comes_to: str | None) -> None:
    site = Site(home)
    site.bring("1.0.0")
    site.tag("1.1.0")
    with site.running() as pair:
        watcher = until_at(site, step)
        assert pair.daemon is not None
        pair.daemon.send_signal(signal.SIGTERM)
        assert pair.daemon.wait(PATIENCE) == 0
        left = watcher.end()
        assert left.returncode == 4
        assert left.stderr.splitlines()[-1].startswith("clojarsd is ending; the next clojarsd takes it up: ")
        assert (site.commands(), pair.processes()) == ([], [])
        if step != "approve":
            site.let_go(step)
        pair.begin()
        if comes_to is None:
            site.until_asked()
            assert (site.runs(), site.link()) == (("1.0.0", "1.1.0"), release("1.1.0"))
            with site.traffic():
                assert pair.ctl("abort").returncode == 0
            comes_to = "1.0.0"
        ended = site.until_over()
        pair.until(lambda seen: all(one["eligible"] for one in seen["instances"].values()))
        site.assert_runs(comes_to)
        if step == "build":
            assert ended["message"].startswith("cannot deploy 1.1.0: building it: clojarsd ended during build; ")
            assert f"; {NOTHING_WAS_CHANGED}; whole log: " in ended["message"]
