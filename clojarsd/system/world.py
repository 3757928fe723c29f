"""What this machine and this user make of the daemon: accounts, limits, directories, the current release."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import resource
import socket
from collections.abc import Iterable
from pathlib import Path

import structlog

from clojarsd.core.errors import Failed, LaunchFailed, reason_of
from clojarsd.core.launch import World
from clojarsd.core.names import LaunchStage
from clojarsd.core.settings import Settings
from clojarsd.system.confinement import Account

log = structlog.get_logger()

_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def look_at_world(user: str) -> World:
    """The world of launches as `user`; raises the daemon's own soft limit of descriptors to the hard one on the way.

    Raises:
        Failed: there is no such user, or the daemon may not become it.
    """
    me = os.geteuid()
    account = _account(user, me)
    if me not in (0, account.pw_uid):
        name = _name_of(me)
        raise Failed(
            f"cannot run instances as {user}: that needs root, and this is {name}; nothing was started;"
            f" start clojarsd as root, or set service.user to {name}"
        )
    environment = {"PATH": _DEFAULT_PATH, "LANG": "C.UTF-8"}
    environment |= {key: os.environ[key] for key in _INHERITED if key in os.environ}
    environment |= {
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh",
    }
    return World(environment, becomes_user=me == 0, soft_nofile=_raise_descriptor_limit(), uid=account.pw_uid)


def _account(user: str, me: int) -> pwd.struct_passwd:
    """The account of a name or number; the number of this very process needs none, as in containers."""
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        if user != str(me):
            raise Failed(
                f"cannot run instances as {user}: no such user on this machine; nothing was started; set service.user"
            ) from None
    return pwd.struct_passwd((user, "x", me, os.getegid(), "", os.environ.get("HOME", "/"), "/bin/sh"))


def account_of(user: str, group: str | None) -> Account | None:
    """Whom processes of ours become that need not be root; None: they stay who we are.

    A group that is not there is the user's own instead: no instance starts then, but clients can be told so.

    Raises:
        Failed: there is no such user.
    """
    me = os.geteuid()
    if me != 0:
        return None
    account, gid = _account(user, me), None
    if group is not None:
        with contextlib.suppress(KeyError):
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    return Account(account.pw_uid, account.pw_gid if gid is None else gid) if account.pw_uid != 0 else None


def missing_accounts(settings: Settings) -> list[str]:
    """A sentence for each user and group of the settings that this machine has not, and what that means. Blocks.

    The settings may be meant for another machine, so none of this is wrong in itself. Numbers need no account, but for
    that of `service.user`.
    """
    service, told = settings.service, list[str]()
    if not _is_user(service.user):
        told.append(f"service.user: {service.user}: no such user on this machine; clojarsd cannot start here")
    if service.group is not None and not _is_group(service.group):
        told.append(f"service.group: {service.group}: no such group on this machine; no instance can start here")
    for role, instance in settings.instances.items():
        told += [
            f"instances.{role.value}.supplementary_groups: {group}: no such group on this machine;"
            f" {role.value} cannot start here"
            for group in instance.supplementary_groups
            if not _is_group(group)
        ]
    for key, callers in (("operators", settings.control.operators), ("viewers", settings.control.viewers)):
        for caller in callers:
            kind, is_there = ("group", _is_group) if caller.startswith("@") else ("user", _is_user)
            if caller != service.user and not is_there(caller.removeprefix("@")):
                told.append(f"control.{key}: {caller}: no such {kind} on this machine; it lets nobody in here")
    return told


def foreign_sources(settings: Settings) -> list[str]:
    """A sentence for each `source` of a frontend that is no address of this machine now. It may become one later."""
    told = []
    for name, frontend in settings.frontends.items():
        if frontend.source:
            try:
                with socket.socket(socket.AF_INET6 if ":" in frontend.source else socket.AF_INET) as trial:
                    trial.bind((frontend.source, 0))
            except OSError as error:
                told.append(
                    f"frontends.{name}.source: {frontend.source}: {reason_of(error)};"
                    " no instance can be connected to from there, so clients of this frontend wait"
                )
    return told


def _is_user(user: str) -> bool:
    try:
        _account(user, os.geteuid())
    except Failed:
        return False
    return True


def _is_group(group: str) -> bool:
    try:
        grp.getgrnam(group)
    except KeyError:
        return group.isdecimal()
    return True


def make_directories(paths: Iterable[Path]) -> None:
    """Make what is missing. One that cannot be made is logged: what needs it says so when its time comes."""
    for path in paths:
        try:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            log.warning("directory_missing", path=str(path), reason=reason_of(error))


def resolve_release(current: Path) -> Path:
    """The release that the link names.

    Raises:
        LaunchFailed: there is no such link, or it leads nowhere: the stage is RELEASE, and the reason what an operator
            must do. Or it cannot be read, which may be over soon: the stage is LINK.
    """
    try:
        return Path(os.path.realpath(current, strict=True))  # Path.resolve makes a loop of links a RuntimeError
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LaunchFailed(LaunchStage.RELEASE, _what_is_missing(current)) from error
    except OSError as error:
        raise LaunchFailed(LaunchStage.LINK, f"{current}: {reason_of(error)}") from error


def _what_is_missing(current: Path) -> str:
    try:
        release = os.path.basename(os.readlink(current))
    except OSError:
        return "no release: clojarsctl deploy TAG"
    return f"the current release {release} is missing: clojarsctl rollback, or clojarsctl deploy TAG"


def _raise_descriptor_limit() -> int:
    """The soft limit of descriptors before it was raised; launched processes get it back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
