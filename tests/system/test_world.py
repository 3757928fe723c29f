"""What this machine and this user make of the daemon."""

from __future__ import annotations

import json
import os
import pwd
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from clojarsd.core.errors import Failed, LaunchFailed
from clojarsd.core.names import LaunchStage
from clojarsd.core.settings import Settings, parse_settings
from clojarsd.system.confinement import Account
from clojarsd.system.world import (
    account_of,
    foreign_sources,
    look_at_world,
    make_directories,
    missing_accounts,
    resolve_release,
)
from tests.core.test_settings_problems import document
from tests.support.pair import CHECKOUT
from tests.support.real import root_only
from tests.support.waiting import PATIENCE

ME = pwd.getpwuid(os.geteuid())
NOBODY = pwd.getpwnam("nobody")
LOOK = """
import json, resource, sys
from clojarsd.core.errors import Failed
from clojarsd.system.world import look_at_world
before = resource.getrlimit(resource.RLIMIT_NOFILE)
try:
    seen = look_at_world(sys.argv[1])
except Failed as failed:
    sys.exit(str(failed))
after = resource.getrlimit(resource.RLIMIT_NOFILE)
print(json.dumps([seen.becomes_user, dict(seen.environment), seen.soft_nofile, before, after]))
"""


def look(user: str, uid: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a process of that user sees: it raises its own limit, and may be somebody else."""
    return subprocess.run(
        [sys.executable, "-c", LOOK, user],
        capture_output=True,
        text=True,
        cwd="/",
        env={"PYTHONPATH": str(CHECKOUT), **environment},
        timeout=PATIENCE,
        check=False,
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    )


@pytest.mark.slow
@pytest.mark.parametrize("by", ["name", "number"])
def test_the_environment_is_the_users_and_little_is_inherited(by: str) -> None:
    user = ME.pw_name if by == "name" else str(ME.pw_uid)
    done = look(user, LANG="de_DE.UTF-8", TZ="UTC", SECRET="x", HOME="/elsewhere", USER="eve")
    assert done.returncode == 0, done.stderr
    becomes, environment, soft, before, after = json.loads(done.stdout)
    assert environment == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "de_DE.UTF-8",
        "TZ": "UTC",
        "HOME": ME.pw_dir,
        "USER": ME.pw_name,
        "LOGNAME": ME.pw_name,
        "SHELL": ME.pw_shell or "/bin/sh",
    }
    assert becomes == (os.geteuid() == 0)
    assert (soft, after) == (before[0], [before[1], before[1]])


@pytest.mark.slow
@root_only
def test_root_becomes_another_user() -> None:
    becomes, environment, *_ = json.loads(look("nobody", PATH="/opt/bin").stdout)
    assert becomes is True
    assert (environment["USER"], environment["HOME"], environment["PATH"]) == ("nobody", NOBODY.pw_dir, "/opt/bin")


@pytest.mark.slow
@root_only
def test_a_plain_user_is_itself_and_nobody_else(tmp_path: Path) -> None:
    if subprocess.run(["test", "-r", str(CHECKOUT / "clojarsd")], user=NOBODY.pw_uid, check=False).returncode:
        pytest.skip("this checkout is not readable for plain users")
    becomes, environment, *_ = json.loads(look("nobody", NOBODY.pw_uid).stdout)
    assert (becomes, environment["USER"]) == (False, "nobody")
    refused = look("root", NOBODY.pw_uid)
    assert refused.stderr == (
        "cannot run instances as root: that needs root, and this is nobody; nothing was started;"
        " start clojarsd as root, or set service.user to nobody\n"
    )


@pytest.mark.slow
@root_only
def test_a_user_without_an_account_is_named_by_its_number() -> None:
    if subprocess.run(["test", "-r", str(CHECKOUT / "clojarsd")], user=54321, check=False).returncode:
        pytest.skip("this checkout is not readable for plain users")
    assert "that needs root, and this is 54321; nothing was started" in look("root", 54321).stderr


@pytest.mark.parametrize("user", ["no-such-user", "54321", "99999999999999999999", "²", ""])
def test_an_unknown_user_is_a_sentence(user: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(Failed) as caught:
        look_at_world(user)
    assert str(caught.value) == (
        f"cannot run instances as {user}: no such user on this machine; nothing was started; set service.user"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def settings_with(service: dict[str, str], app: dict[str, str], control: dict[str, str]) -> Settings:
    return parse_settings(document(service=service, app=app, control=control), "x.toml")


def test_accounts_that_this_machine_has_not_are_told() -> None:
    """Each by its key, with what it means here; the service's user, who is an operator by default, once."""
    settings = settings_with(
        {"user": '"nosuchuser"', "group": '"nosuchgrp"'},
        {"supplementary_groups": '["nosuchgrp", "daemon", "4321"]'},
        {"viewers": '["@nosuchgrp", "nosuchuser2", "root", "@daemon"]'},
    )
    here = "on this machine"
    assert missing_accounts(settings) == [
        f"service.user: nosuchuser: no such user {here}; clojarsd cannot start here",
        f"service.group: nosuchgrp: no such group {here}; no instance can start here",
        f"instances.primary.supplementary_groups: nosuchgrp: no such group {here}; primary cannot start here",
        f"instances.backup.supplementary_groups: nosuchgrp: no such group {here}; backup cannot start here",
        f"control.viewers: @nosuchgrp: no such group {here}; it lets nobody in here",
        f"control.viewers: nosuchuser2: no such user {here}; it lets nobody in here",
    ]


def test_a_source_that_is_no_address_of_this_machine_is_told() -> None:
    """192.0.2.0/24 is nobody's: RFC 5737."""
    sources = {"away": "192.0.2.7", "home": "127.0.0.9", "any": ""}
    text = document() + "".join(
        f'[frontends.{name}]\nlisten = "127.0.0.1:{port}"\nport = "http"\nsource = "{source}"\n'
        for port, (name, source) in enumerate(sources.items(), 9001)
    )
    [away] = foreign_sources(parse_settings(text, "x.toml"))
    assert away == (
        "frontends.away.source: 192.0.2.7: cannot assign requested address;"
        " no instance can be connected to from there, so clients of this frontend wait"
    )


def test_of_accounts_that_are_there_nothing_is_told() -> None:
    service = {"user": f'"{ME.pw_name}"', "group": '"daemon"'}
    settings = settings_with(service, {"supplementary_groups": '["daemon", "4321"]'}, {"viewers": '["@daemon"]'})
    assert missing_accounts(settings) == []
    by_number = settings_with({"user": f'"{ME.pw_uid}"', "group": '"4321"'}, {}, {"viewers": '["root"]'})
    assert missing_accounts(by_number) == []


def test_missing_directories_are_made_and_others_are_said(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o700)
    (tmp_path / "file").write_text("")
    wanted = [tmp_path / "there", tmp_path / "a" / "b", tmp_path / "file", tmp_path / "file" / "below"]
    with structlog.testing.capture_logs() as logs:
        make_directories(wanted)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o700
    assert [(line["event"], line["path"], line["reason"]) for line in logs] == [
        ("directory_missing", str(tmp_path / "file"), "file exists"),
        ("directory_missing", str(tmp_path / "file" / "below"), "not a directory"),
    ]


def test_the_release_is_what_the_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "1.jar").write_text("")
    (tmp_path / "current.jar").symlink_to("1.jar")
    assert resolve_release(tmp_path / "current.jar") == (tmp_path / "1.jar").resolve()
    (tmp_path / "2.jar").write_text("")
    (tmp_path / "new").symlink_to("2.jar")
    (tmp_path / "new").rename(tmp_path / "current.jar")
    assert resolve_release(tmp_path / "current.jar").name == "2.jar"


@pytest.mark.parametrize(
    ("target", "stage", "reason"),
    [
        (None, LaunchStage.RELEASE, "no release: clojarsctl deploy TAG"),
        (
            "absent.jar",
            LaunchStage.RELEASE,
            "the current release absent.jar is missing: clojarsctl rollback, or clojarsctl deploy TAG",
        ),
        ("current.jar", LaunchStage.LINK, "{current}: too many levels of symbolic links"),
        (
            "file/below",
            LaunchStage.RELEASE,
            "the current release below is missing: clojarsctl rollback, or clojarsctl deploy TAG",
        ),
    ],
)
def test_a_link_that_leads_nowhere_fails_the_launch(
    tmp_path: Path, target: str | None, stage: LaunchStage, reason: str
) -> None:
    current = tmp_path / "current.jar"
    (tmp_path / "file").write_text("")
    if target is not None:
        current.symlink_to(target)
    with pytest.raises(LaunchFailed) as caught:
        resolve_release(current)
    assert (caught.value.stage, caught.value.reason) == (stage, reason.format(current=current))


@root_only
@pytest.mark.slow
def test_a_number_without_an_account_can_run_as_itself() -> None:
    """As in containers that are started with any number; another number is nobody."""
    seen = look("54321", uid=54321, HOME="/somewhere")
    assert seen.returncode == 0, seen.stderr
    becomes_user, environment, *_ = json.loads(seen.stdout)
    assert not becomes_user
    assert (environment["HOME"], environment["USER"], environment["SHELL"]) == ("/somewhere", "54321", "/bin/sh")
    refused = look("54322", uid=54321)
    assert refused.stderr.strip() == (
        "cannot run instances as 54322: no such user on this machine; nothing was started; set service.user"
    )


@pytest.mark.parametrize(
    ("user", "group", "account"),
    [
        ("nobody", "65533", Account(NOBODY.pw_uid, 65533)),
        (str(NOBODY.pw_uid), "no-such-group", Account(NOBODY.pw_uid, NOBODY.pw_gid)),
        ("nobody", None, Account(NOBODY.pw_uid, NOBODY.pw_gid)),
        ("root", "65533", None),
    ],
)
def test_processes_of_root_that_need_not_be_root_become_the_services_user(
    user: str, group: str | None, account: Account | None
) -> None:
    assert account_of(user, group) == (account if os.geteuid() == 0 else None)


def test_a_user_that_is_not_there_is_told_to_root() -> None:
    if os.geteuid() == 0:
        with pytest.raises(Failed, match="no such user on this machine"):
            account_of("no-such-user", None)
    else:
        assert account_of("no-such-user", None) is None
