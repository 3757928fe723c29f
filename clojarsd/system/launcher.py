"""The few lines that run in the child before exec: its log, its limits, its user, its directory.

Run by path with the bare interpreter (`python -I -S launcher.py`), so it imports nothing but the standard library. It
is a program of its own because code between fork and exec in a daemon with threads and an event loop is a trap.

Descriptors: 3 holds the launch as JSON; 4 takes a failure as JSON, `{"stage": NAME, "reason": TEXT, "taken": PORT}`,
where NAME is a member of `LaunchStage` and PORT is what somebody else listens on, or null. When exec succeeds, 4 is
closed by the kernel with nothing written.
"""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

SPEC_FD = 3
FAILURE_FD = 4
LONGEST_REASON = 2000
"""Characters: the pipe takes them at once."""


def open_log(spec: dict[str, Any]) -> None:
    """Make stdout and stderr append to the instance's log."""
    log = os.open(spec["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY, 0o640)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def read_environment(spec: dict[str, Any]) -> None:
    """Add the environment file's lines to the environment, which is all that the command gets."""
    if spec["environment_file"] is not None:
        with open(spec["environment_file"], encoding="utf-8") as file:
            spec["environment"].update(parse_environment(file.read()))


def parse_environment(text: str) -> dict[str, str]:
    """The variables of KEY=VALUE lines; empty lines and `#` comments are skipped, one pair of quotes is taken off.

    Raises:
        ValueError: a line is something else; says which.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip().removeprefix("export ").strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"line {number} is not KEY=VALUE")  # and may hold a secret
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[key] = value
    return found


def find_ports_free(spec: dict[str, Any]) -> None:
    """Fail when somebody else listens on a port of this instance."""
    for name, (host, port) in spec["ports"].items():
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, port))
            except OSError as error:
                spec["taken"] = port if error.errno == errno.EADDRINUSE else None
                raise OSError(error.errno, f"port {port} ({name}): {os.strerror(error.errno or 0).lower()}") from error


def set_priority(spec: dict[str, Any]) -> None:
    """Set the nice value, and how gladly the kernel ends the process when memory runs out.

    The defaults, 0, are no wish: where a plain user may not go back to them, what is inherited stays.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) != spec["nice"]:
        _wish(spec["nice"], lambda: os.setpriority(os.PRIO_PROCESS, 0, spec["nice"]))
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        if int(file.read()) != spec["oom_score_adjust"]:
            _wish(spec["oom_score_adjust"], lambda: file.write(str(spec["oom_score_adjust"]).encode()))


def _wish(value: int, act: Callable[[], object]) -> None:
    try:
        act()
    except PermissionError as error:
        if value != 0:
            raise OSError(f"{value} is not allowed to a plain user here") from error


def set_limits(spec: dict[str, Any]) -> None:
    """Set soft and hard resource limits alike; as a plain user at most the hard limit there is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (spec["soft_nofile"], hard))
    for name, value in spec["limits"].items():
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError) as error:
            hard = resource.getrlimit(number)[1]
            raise OSError(f"{name} {value}: above the hard limit {hard}") from error


def become_user(spec: dict[str, Any]) -> None:
    """Take on the user, the group and the user's supplementary groups."""
    user, group = spec["user"], spec["group"]
    if user is None:
        return
    account = _account(user)
    gid = _group_id(group) if group is not None else account.pw_gid
    if (account.pw_uid, gid) == (os.getuid(), os.getgid()):
        return
    os.setgroups(os.getgrouplist(account.pw_name, gid))
    os.setgid(gid)
    os.setuid(account.pw_uid)


def enter_directory(spec: dict[str, Any]) -> None:
    """Set the working directory and the umask."""
    os.umask(spec["umask"])
    os.chdir(spec["directory"])


def execute(spec: dict[str, Any]) -> NoReturn:
    """Become the command."""
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # the interpreter ignores these; a command must not inherit that
        signal.signal(ignored, signal.SIG_DFL)
    command, environment = spec["command"], spec["environment"]
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError as error:
        where = "" if "/" in command[0] else f" on PATH {environment.get('PATH', os.defpath)}"
        raise OSError(error.errno, f"{command[0]}: no such command{where}") from error
    except OSError as error:
        raise OSError(error.errno, f"{command[0]}: {os.strerror(error.errno or 0).lower()}") from error


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        raise OSError(f"no user {user} on this machine") from None


def _group_id(group: str) -> int:
    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise OSError(f"no group {group} on this machine") from None


STAGES: tuple[tuple[str, Callable[[dict[str, Any]], None]], ...] = (
    ("LOG", open_log),
    ("ENVIRONMENT", read_environment),
    ("PORTS", find_ports_free),
    ("PRIORITY", set_priority),
    ("LIMITS", set_limits),
    ("USER", become_user),
    ("DIRECTORY", enter_directory),
    ("EXECUTE", execute),
)


def reason_of(error: Exception) -> str:
    """What went wrong, for people: the path or the thing first, in lower case."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    if error.filename is not None:
        return f"{error.filename}: {os.strerror(error.errno).lower()}"
    return str(error.strerror)


def main() -> NoReturn:
    """Read the launch, carry its stages out, and say where it stopped."""
    os.set_inheritable(FAILURE_FD, False)
    os.closerange(FAILURE_FD + 1, os.sysconf("SC_OPEN_MAX"))  # what the daemon was started with is not the command's
    with open(SPEC_FD, encoding="utf-8") as file:
        spec = json.load(file)
    for name, act in STAGES:
        try:
            act(spec)
        except Exception as error:  # the boundary of the launch: whatever it is, the daemon must be told
            failure = {"stage": name, "reason": reason_of(error)[:LONGEST_REASON], "taken": spec.get("taken")}
            os.write(FAILURE_FD, json.dumps(failure).encode())
            sys.exit(127)
    raise AssertionError("the last stage does not return")


if __name__ == "__main__":
    main()
