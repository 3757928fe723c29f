"""Deploys under a real systemd: as the service user, inside what the shipped unit allows, over deaths of the daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.systemd_sandbox import Sandbox
from tests.support.systemd_service import CONFIG, PREFIX, USER, Service, installed, settings, started

pytestmark = [pytest.mark.slow, pytest.mark.real]

DEPLOY = """
[deploy]
repository = "/srv/repository"
work_dir = "/home/{user}/builds"
releases = "/home/{user}/releases"
current = "current.py"
artifact = "made/*.py"
test = []
build = ["./build"]
after_backup = [["sh", "-c", "id -un > /home/{user}/seen; echo {{role}} {{release}} >> /home/{user}/seen"]]
soak = "200ms"
"""
BUILD = """#!/bin/sh -e
ps -o nice=,user:32= -p $$ > /home/{user}/builder
cat /proc/self/cgroup >> /home/{user}/builder
mkdir made
cp app.py made/app-$(cat version).py
while [ -e /home/{user}/hold ]; do sleep 0.05; done
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A machine with the service, and a repository of root's with two tags; nothing was deployed."""
    with installed(tmp_path_factory.mktemp("systemd")) as machine:
        machine.run("install", "-d", "-o", USER, "-g", USER, f"/home/{USER}")
        git = "git -C /srv/repository -c user.name=t -c user.email=t@t"
        script = f"""set -e
            mkdir -p /srv/repository
            cp /srv/app.py /srv/repository
            cat > /srv/repository/build <<'END'\n{BUILD.format(user=USER)}\nEND
            chmod 755 /srv/repository/build
            {git} init -q
            for version in 1.0 1.1; do
                echo $version > /srv/repository/version
                {git} add -A
                {git} commit -qm $version
                {git} tag $version
            done"""
        machine.run("sh", "-c", script)
        yield machine


@pytest.fixture
def service(machine: Sandbox) -> Iterator[Service]:
    """The service, running without a release."""
    machine.run("sh", "-c", f"rm -rf /home/{USER}/* /var/lib/clojarsd")
    text = settings().replace('"/srv/app.py"', '"{release}"')
    Service(machine).write_settings(text + DEPLOY.format(user=USER))
    with started(machine) as service:
        yield service


def as_user(service: Service, *words: str) -> Any:
    """What clojarsctl says to the service user."""
    return service.machine.call("runuser", "-u", USER, "--", f"{PREFIX}/bin/clojarsctl", *words)


def rollout(service: Service) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(service.ctl("--json", "rollout").stdout)
    return shown


def test_the_service_user_deploys_and_everything_made_is_theirs(service: Service) -> None:
    refused = as_user(service, "deploy", "1.0", "--yes")
    assert (refused.returncode, refused.stderr) == (3, f"{USER} may not give orders (operators: root)\n")
    text = service.machine.run("cat", CONFIG)
    service.write_settings(text.replace('operators = ["root"]', f'operators = ["root", "{USER}"]'))
    service.systemctl("reload", "clojarsd")
    done = as_user(service, "deploy", "1.0", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "deploy of 1.0 is done and recorded as good: primary and backup run app-1.0.py\n"
    owners = service.machine.run("sh", "-c", f"stat -c '%U %a %F' /home/{USER}/releases/*").splitlines()
    assert owners == [f"{USER} 444 regular file", f"{USER} 777 symbolic link"]
    niceness, *groups = service.machine.run("cat", f"/home/{USER}/builder").splitlines()
    assert niceness.split() == ["10", USER]
    assert any("/rollout-" in group for group in groups), groups
    seen = service.machine.run("cat", f"/home/{USER}/seen")
    assert seen == f"{USER}\nbackup /home/{USER}/releases/app-1.0.py\n"
    assert service.machine.call("sh", "-c", f"ls -d {service.group()}/rollout-*").stdout == ""


def test_a_service_that_is_stopped_during_a_build_leaves_nothing_and_says_so(service: Service) -> None:
    service.machine.run("touch", f"/home/{USER}/hold")
    service.machine.run("sh", "-c", f"{PREFIX}/bin/clojarsctl deploy 1.0 --yes > /run/deploy.out 2>&1 &")
    service.until(
        lambda: service.machine.call("test", "-e", f"/home/{USER}/builder").returncode, lambda code: code == 0
    )
    service.systemctl("stop", "clojarsd")
    assert service.processes_of_the_user() == []
    service.systemctl("start", "clojarsd")
    seen = service.until(lambda: rollout(service), lambda seen: seen["last_rollout"] is not None)
    assert seen["last_rollout"]["message"].startswith(
        "cannot deploy 1.0: building it: clojarsd ended during build; nothing was changed, nothing serves now;"
    )


def test_a_question_outlives_the_daemon(service: Service) -> None:
    assert service.ctl("deploy", "1.0", "--yes").returncode == 0
    asked = service.ctl("deploy", "1.1", "--no-promote")
    assert asked.returncode == 0, asked.stderr
    until = rollout(service)["rollout"]["question"]["until"]
    before = service.kill_daemon()
    status = service.when_another_daemon_serves(before)
    releases = {role: seen["release"] for role, seen in status["instances"].items()}
    assert releases == {"primary": "app-1.0.py", "backup": "app-1.1.py"}
    taken_up = service.until(lambda: rollout(service)["rollout"], lambda seen: seen["question"] is not None)
    assert taken_up["question"]["until"] == until
    promoted = service.ctl("promote")
    assert promoted.returncode == 0, promoted.stderr
    assert promoted.stdout == (
        "deploy of 1.1 is done and recorded as good: primary and backup run app-1.1.py instead of app-1.0.py\n"
    )


def test_an_unapproved_release_does_not_come_to_the_primary_by_a_restart_of_the_service(service: Service) -> None:
    assert service.ctl("deploy", "1.0", "--yes").returncode == 0
    assert service.ctl("deploy", "1.1", "--no-promote").returncode == 0
    service.systemctl("restart", "clojarsd")
    status = service.when_both_are_eligible()
    releases = {role: seen["release"] for role, seen in status["instances"].items()}
    assert releases == {"primary": "app-1.0.py", "backup": "app-1.1.py"}
    aborted = service.ctl("abort")
    assert aborted.returncode == 0, aborted.stderr
    status = service.when_both_are_eligible()
    assert {seen["release"] for seen in status["instances"].values()} == {"app-1.0.py"}
    assert service.machine.run("readlink", f"/home/{USER}/releases/current.py") == "app-1.0.py\n"
