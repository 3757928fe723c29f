"""The few lines that run in the child before exec: its log, its limits, its user, its directory.

Run by path with the bare interpreter (`python -I -S launcher.py`), so it imports nothing but the standard library. It
is a program of its own because code between fork and exec in a daemon with threads and an event loop is a trap.

Descriptors: 3 is a socket, on which it waits as long as the daemon likes, under the name `WAITING`: one message brings
the descriptor of a file with the launch, marshalled; the end of the stream means that none will come. 4 takes a
failure, marshalled too: `{"stage": NAME, "reason": TEXT, "taken": PORT}`, where NAME is a member of `LaunchStage` and
PORT is what somebody else listens on, or None. When exec succeeds, 4 is closed by the kernel with nothing written.

Nothing is imported after the start, since with another root directory there is nothing to import; save, before that and
only when it is needed, release_checksum beside this file.
"""

from __future__ import annotations

import errno
import grp
import marshal
import os
import pwd
import resource
import signal
import socket
import sys

TYPE_CHECKING = False  # as type checkers know it; importing typing and json would double the time to start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

SOCKET_FD = 3
FAILURE_FD = 4
JOURNAL = "/run/systemd/journal/stdout"
WAITING = "clojarsd-launch"
"""The name of the process, as ps(1) has it, once it is ready for its launch."""
LONGEST_REASON = 2000
"""Characters: the pipe takes them at once."""
LONGEST_FIRST_LINE = 256
"""Bytes of a script that the kernel looks at for its interpreter."""


def open_log(spec: dict[str, Any]) -> None:
    """Make stdout and stderr append to the instance's log, or go to the journal; or leave them the daemon's own."""
    to = spec.get("log_to", "file")
    if to == "inherit":
        return
    log = open_journal(spec["log_name"]) if to == "journal" else open_log_file(spec["log"])
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def open_log_file(path: str) -> int:
    """The file, opened so that rotation can take its head away; its directory is made again if somebody removed it."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o640)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        return os.open(path, flags, 0o640)


def open_journal(identifier: str) -> int:
    """A stream to systemd's journal: each line is an entry with this identifier.

    Source: the head that sd_journal_stream_fd(3) sends: identifier, unit, priority, level prefix, three forwards.
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.connect(JOURNAL)
        stream.shutdown(socket.SHUT_RD)
        stream.sendall(f"{identifier}\n\n6\n0\n0\n0\n0\n".encode())
    except OSError as error:
        stream.close()
        why = os.strerror(error.errno or 0).lower()
        raise OSError(f"no journal takes it at {JOURNAL}: {why}") from error
    return stream.detach()


def join_cgroup(spec: dict[str, Any]) -> None:
    """Move into the control group, before anything is done that it is to count."""
    if spec["cgroup_directory"] is not None:
        with open(f"{spec['cgroup_directory']}/cgroup.procs", "wb", buffering=0) as file:
            file.write(b"0")


def read_environment(spec: dict[str, Any]) -> None:
    """Add the environment file's lines and what is imposed to the environment, which is all that the command gets."""
    path = spec["environment_file"]
    if path is not None:
        with open(path, encoding="utf-8") as file:
            try:
                spec["environment"].update(parse_environment(file.read()))
            except UnicodeDecodeError as error:
                raise OSError(f"{path}: is not UTF-8 text") from error
            except ValueError as error:
                raise OSError(f"{path}: {error}") from error
    spec["environment"].update(spec["imposed"])
    if spec["main_variable"] is not None:
        spec["environment"][spec["main_variable"]] = str(os.getpid())


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
    nice, adjust = spec["nice"], spec["oom_score_adjust"]
    if os.getpriority(os.PRIO_PROCESS, 0) != nice:
        _wish("nice", nice, "CAP_SYS_NICE", lambda: os.setpriority(os.PRIO_PROCESS, 0, nice))
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        if int(file.read()) != adjust:
            _wish("oom_score_adjust", adjust, "CAP_SYS_RESOURCE", lambda: file.write(str(adjust).encode()))


def _wish(key: str, value: int, capability: str, act: Callable[[], object]) -> None:
    try:
        act()
    except PermissionError as error:
        if value != 0:
            raise _lacking(f"{key} {value}", capability) from error


def _lacking(what: str, capability: str) -> OSError:
    """Root of a container may lack it too, and root of a user namespace has it in there alone."""
    return OSError(f"{what}: needs the capability {capability}, which clojarsd does not have on this machine")


def set_limits(spec: dict[str, Any]) -> None:
    """Set soft and hard resource limits alike; as a plain user at most the hard limit there is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (spec["soft_nofile"], hard))
    for name, value in spec["limits"].items():
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None:
            raise OSError(f"{name} {value}: there is no such limit here")
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError) as error:
            hard = resource.getrlimit(number)[1]
            raise OSError(f"{name} {value}: above the hard limit {hard}") from error


def choose_cpus(spec: dict[str, Any]) -> None:
    """Run on the wished CPUs alone."""
    wished = set(spec["cpu_affinity"])
    if not wished:
        return
    may = os.sched_getaffinity(0)
    usable = f"clojarsd itself runs on {_numbers(may)}"
    try:
        os.sched_setaffinity(0, wished)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise OSError(f"none of the CPUs {_numbers(wished)} can be used: {usable}") from error
    if lacking := wished - os.sched_getaffinity(0):  # the kernel leaves out silently what it does not have
        raise OSError(f"CPU {_numbers(lacking)} cannot be used: {usable}")


def find_user(spec: dict[str, Any]) -> None:
    """Look the user up: the account's number, name and main group; None for whoever it is already."""
    user, group = spec["user"], spec["group"]
    spec["account"] = None
    if user is not None:
        account = _account(user)
        gid = _group_id(group) if group is not None else account.pw_gid
        if (account.pw_uid, gid) != (os.getuid(), os.getgid()):
            spec["account"] = account.pw_uid, account.pw_name, gid


def find_groups(spec: dict[str, Any]) -> None:
    """Look the groups up by their names: inside the root directory that comes next there may be none."""
    more = [_group_id(group) for group in spec["supplementary_groups"]]
    if spec["account"] is not None:
        _, name, gid = spec["account"]
        spec["groups"] = sorted({*os.getgrouplist(name, gid), *more})
    elif more:
        spec["groups"] = sorted({*os.getgroups(), *more})
    else:
        spec["groups"] = None


def read_release(spec: dict[str, Any]) -> None:
    """Find out whether what is to run is what was installed."""
    if spec["verify"]:
        sys.path.append(os.path.dirname(os.path.abspath(__file__)))
        import release_checksum  # type: ignore[import-not-found]  # a waiting launcher has no need of it

        spec["changed"] = release_checksum.changed(spec["verify"], spec["account"])


def refuse_changed_release(spec: dict[str, Any]) -> None:
    """Fail when it is not."""
    if spec.get("changed"):
        raise OSError(spec["changed"])


def change_root(spec: dict[str, Any]) -> None:
    """Shut the process up in its root directory."""
    if spec["chroot"] is not None:
        os.chroot(spec["chroot"])
        os.chdir("/")


def join_groups(spec: dict[str, Any]) -> None:
    """Take on the user's supplementary groups and those of the settings."""
    if spec["groups"] is not None and set(spec["groups"]) != set(os.getgroups()):
        try:
            os.setgroups(spec["groups"])
        except PermissionError as error:
            raise _lacking(f"groups {_numbers(set(spec['groups']))}", "CAP_SETGID") from error


def become_user(spec: dict[str, Any]) -> None:
    """Take on the user and the main group."""
    if spec["account"] is not None:
        uid, name, gid = spec["account"]
        try:
            os.setgid(gid)
            os.setuid(uid)
        except PermissionError as error:
            raise _lacking(f"user {name}", "CAP_SETUID or CAP_SETGID") from error


def enter_directory(spec: dict[str, Any]) -> None:
    """Set the working directory."""
    os.chdir(spec["directory"])


def set_umask(spec: dict[str, Any]) -> None:
    """Set which permissions new files do not get."""
    os.umask(spec["umask"])


def execute(spec: dict[str, Any]) -> NoReturn:
    """Become the command."""
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # the interpreter ignores these; a command must not inherit that
        signal.signal(ignored, signal.SIG_DFL)
    command, environment = spec["command"], spec["environment"]
    name, failure, hidden = command[0], None, []
    directories = [] if "/" in name else environment.get("PATH", os.defpath).split(os.pathsep)
    for path in [os.path.join(directory, name) for directory in directories] or [name]:
        try:
            os.execve(path, command, environment)
        except OSError as error:  # os.execvpe, which goes on as well, imports something
            if not directories or os.path.lexists(path):
                failure = failure or OSError(error.errno, f"{path}: {_why_not_executed(path, error)}")
            elif error.errno == errno.EACCES:
                hidden.append(os.path.dirname(path))
    if failure is not None:
        raise failure
    unseen = f" (cannot be looked into: {', '.join(hidden)})" if hidden else ""
    raise OSError(errno.ENOENT, f"{name}: no such command on PATH {os.pathsep.join(directories)}{unseen}")


def _why_not_executed(path: str, error: OSError) -> str:
    """The kernel says the same of a script and of the interpreter that its first line names."""
    why = os.strerror(error.errno or 0).lower()
    absent = error.errno in (errno.ENOENT, errno.ENOTDIR)
    if not os.path.exists(path):
        absence = "a link that leads nowhere" if os.path.islink(path) else "no such command"
        return absence if error.errno == errno.ENOENT else why
    interpreter = _interpreter_of(path)
    if interpreter is None:
        return "the interpreter or loader that it names does not exist" if absent else why
    shown = "".join(one if one.isprintable() else repr(one)[1:-1] for one in interpreter)
    if absent and not os.path.exists(interpreter):
        ending = " (its lines end with CR LF)" if interpreter.endswith("\r") else ""
        return f"its interpreter {shown} does not exist{ending}"
    is_to_blame = os.access(path, os.X_OK) and error.errno == errno.EACCES and not os.access(interpreter, os.X_OK)
    return f"its interpreter {shown}: {why}" if absent or is_to_blame else why


def _interpreter_of(path: str) -> str | None:
    """What the first line of a script names; None for what is no script, or cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(LONGEST_FIRST_LINE) or b""
    except OSError:
        return None
    if not head.startswith(b"#!"):
        return None
    words = head[2:].partition(b"\n")[0].strip(b" \t").replace(b"\t", b" ").split(b" ")
    return words[0].decode(errors="backslashreplace") or None


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
    ("CGROUP", join_cgroup),
    ("LOG", open_log),
    ("ENVIRONMENT", read_environment),
    ("PORTS", find_ports_free),
    ("LIMITS", set_limits),
    ("PRIORITY", set_priority),
    ("AFFINITY", choose_cpus),
    ("USER", find_user),
    ("GROUPS", find_groups),
    ("VERIFY", read_release),
    ("RELEASE", refuse_changed_release),
    ("CHROOT", change_root),
    ("GROUPS", join_groups),
    ("USER", become_user),
    ("DIRECTORY", enter_directory),
    ("UMASK", set_umask),
    ("EXECUTE", execute),
)


def reason_of(error: Exception) -> str:
    """What went wrong, for people: the path or the thing first, in lower case."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    if error.filename is not None:
        return f"{error.filename}: {os.strerror(error.errno).lower()}"
    return str(error.strerror)


def _numbers(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def wait_for_launch() -> dict[str, Any]:
    """The launch that the daemon sends; ends the process when none will come."""
    with open("/proc/self/comm", "wb", buffering=0) as name:
        name.write(WAITING.encode())
    with socket.socket(fileno=SOCKET_FD) as line:
        _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
    if not descriptors:
        os._exit(0)
    with open(descriptors[0], "rb") as file:
        spec: dict[str, Any] = marshal.load(file)
    return spec


def main() -> NoReturn:
    """Wait for the launch, carry its stages out, and say where it stopped."""
    os.set_inheritable(FAILURE_FD, False)
    os.closerange(FAILURE_FD + 1, os.sysconf("SC_OPEN_MAX"))  # what the daemon was started with is not the command's
    spec = wait_for_launch()
    for name, act in STAGES:
        try:
            act(spec)
        except Exception as error:  # the boundary of the launch: whatever it is, the daemon must be told
            failure = {"stage": name, "reason": reason_of(error)[:LONGEST_REASON], "taken": spec.get("taken")}
            os.write(FAILURE_FD, marshal.dumps(failure))
            sys.exit(127)
    raise AssertionError("the last stage does not return")


if __name__ == "__main__":
    main()
