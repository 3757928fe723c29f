"""The demo's Python application with a life of its own by argument: what stands in for the JVM in scenario tests.

It serves what `demo/app.py` serves, faults included, and besides can start late or never, be deaf to SIGTERM, leave
children behind, and write down the world it was launched into. What changes while it runs is switched by files that
the test makes and removes. `command` gives its command line; `--ready-file` or `--ready-fd` says when it serves.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs by path, from any directory

from demo.app import App, end_on_signals, options, say, serve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import NoReturn

    from demo.app import Connection, Request

COLD = " (cold)"
"""How the name ends that is given in answers to the first requests of those that are to be slow."""
LOOK_AGAIN = 0.005
"""Seconds between two looks at a file that somebody else makes or removes."""


def command(*extra: str | Path | int) -> list[str]:
    """The command line that runs this application; without the site module it serves 10 ms earlier."""
    return [sys.executable, "-S", "-E", __file__, *map(str, extra)]


class StandIn(App):
    """The application, whose health two files decide: 503 while one exists, no answer while the other does.

    Its first answers may be slow, and say so by its name; they are those to one client that asks one after the other.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args.name, args.heap)
        self._unhealthy_while: Path | None = args.unhealthy_while
        self._hang_while: Path | None = args.hang_while
        self._is_deaf: bool = args.ignore_term
        self._cold: int = args.cold
        self._cold_ms: int = args.cold_ms
        self._asked: Path | None = args.asked
        self._failing_while: Path | None = args.fail_while

    def _respond(self, request: Request, connection: Connection) -> None:
        if request.path == "/health":
            super()._respond(request, connection)
        else:
            self._respond_to_client(request, connection)

    def _respond_to_client(self, request: Request, connection: Connection) -> None:
        if self._asked is not None:
            with self._asked.open("a") as file:
                file.write(f"{self.name} {os.getpid()} {request.path}\n")
        if exists(self._failing_while):
            connection.answer(request, 503, "failing\n")
            return
        if self._cold > 0:
            time.sleep(self._cold_ms / 1000)
            self.name = f"{self.name.removesuffix(COLD)}{COLD}"
        super()._respond(request, connection)
        self.name = self.name.removesuffix(COLD)
        self._cold -= 1

    def health(self) -> tuple[int, str]:
        while exists(self._hang_while):
            time.sleep(LOOK_AGAIN)
        return (503, "unhealthy\n") if exists(self._unhealthy_while) else super().health()

    def end_by(self, signum: int) -> None:
        if not self._is_deaf:
            super().end_by(signum)


def exists(path: Path | None) -> bool:
    """Whether the option was given and its file is there."""
    return path is not None and path.exists()


def world(children: dict[str, int]) -> dict[str, object]:
    """What this process was launched into, and the pids of the children it left.

    `status` holds the lines of /proc/self/status as they stand. `blocked` and `ignored` are lists of signal numbers;
    SIGPIPE and SIGXFSZ are always ignored, because Python asks for that before we can look.
    """
    status = dict(line.partition(":\t")[::2] for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "pgid": os.getpgrp(),
        "sid": os.getsid(0),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": sorted(os.getgroups()),
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "umask": int(status["Umask"], 8),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text()),
        "limits": {
            key.removeprefix("RLIMIT_").lower(): list(resource.getrlimit(number))
            for key, number in vars(resource).items()
            if key.startswith("RLIMIT_")
        },
        "descriptors": descriptors(),
        "blocked": signals(status["SigBlk"]),
        "ignored": signals(status["SigIgn"]),
        "status": status,
        "children": children,
    }


def descriptors() -> dict[int, str]:
    """What each open descriptor refers to, as /proc names it."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue  # the one that the listing itself was read through
    return found


def signals(mask: str) -> list[int]:
    """The signal numbers in a mask of /proc/PID/status."""
    bits = int(mask, 16)
    return [number for number in range(1, 65) if bits >> (number - 1) & 1]


def blocked(process: Path) -> set[int]:
    """The signals that a process or thread, by its directory in /proc, does not take."""
    [mask] = [line for line in (process / "status").read_text().splitlines() if line.startswith("SigBlk:")]
    return set(signals(mask.split()[1]))


def spawn_child() -> int:
    """Start a child in our process group that outlives us; what we ignore, it ignores. Returns its pid."""
    return os.posix_spawnp("sleep", ["sleep", "600"], os.environ)


def daemonize_child() -> int:
    """Start a grandchild in a session of its own whose parent ends at once. Returns its pid."""
    reader, writer = os.pipe()
    middle = os.fork()
    if not middle:
        os.setsid()
        os.write(writer, b"%d" % spawn_child())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as told:
        pid = int(told.read())
    os.waitpid(middle, 0)
    return pid


def leave_listeners() -> None:
    """Start a grandchild in a session of its own that has the ports we listen on open and outlives us."""
    for descriptor, name in descriptors().items():
        if name.startswith("socket:"):
            with socket.socket(fileno=os.dup(descriptor)) as found:
                if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    os.set_inheritable(descriptor, True)
    os.waitpid(os.posix_spawnp("setsid", ["setsid", "--fork", "sleep", "600"], os.environ), 0)


def write_whole(path: Path, text: str) -> None:
    """Make the file appear with all of its text at once."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.rename(path)


def arguments() -> Namespace:
    """The command line: that of the demo, and what only tests want."""
    parser = options()
    add = parser.add_argument
    add("--ready-file", type=Path, help="written, with the ready line's pid, when both ports are served")
    add("--ready-fd", type=int, help="gets a newline when both ports are served, and is closed")
    add("--launches", type=Path, help="gets a line with our pid at once: one for each launch")
    add("--report", type=Path, help="gets the world we were launched into, as JSON, before we serve")
    add("--print-lines", type=int, default=0, help="so many numbered lines to stdout, then as many to stderr")
    add("--spawn-child", action="store_true", help="start a child in our process group; it outlives us")
    add("--daemonize-child", action="store_true", help="start a child in a session of its own")
    add("--leave-listeners", action="store_true", help="a grandchild in a session of its own has our ports, for ever")
    add("--ignore-term", action="store_true", help="live on after SIGTERM; so do the children we start")
    add("--exit-at-once", type=int, metavar="CODE", help="do not serve, exit")
    add("--exit-while", type=Path, metavar="PATH", help="... but only while this file exists")
    add("--wait-for", type=Path, metavar="PATH", help="do not listen before this file exists")
    add("--start-delay", type=int, default=0, metavar="MS", help="do not listen before so many milliseconds")
    add("--unhealthy-while", type=Path, metavar="PATH", help="/health answers 503 while this file exists")
    add("--hang-while", type=Path, metavar="PATH", help="/health does not answer while this file exists")
    add("--asked", type=Path, help="gets a line with name, pid and path of each request, but those for /health")
    add("--fail-while", type=Path, metavar="PATH", help="all but /health answers 503 while this file exists")
    add("--cold", type=int, default=0, metavar="N", help="the first N requests, but those for /health, are slow")
    add("--cold-ms", type=int, default=20, metavar="MS", help="... by so many milliseconds")
    return parser.parse_args()


def announce(args: Namespace) -> None:
    """Tell the test that both ports are served."""
    if args.leave_listeners:
        leave_listeners()
    if args.ready_file is not None:
        write_whole(args.ready_file, f"{os.getpid()}\n")
    if args.ready_fd is not None:
        os.write(args.ready_fd, b"\n")
        os.close(args.ready_fd)


def main() -> NoReturn:
    """Go through one launch as the command line describes it."""
    args = arguments()
    if args.launches is not None:
        with args.launches.open("a") as file:
            file.write(f"{os.getpid()}\n")
    before = world({}) if args.report is not None else {}
    app = StandIn(args)
    end_on_signals(app)
    if args.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which children inherit, and a handler would not be
    children = {}
    if args.spawn_child:
        children["spawned"] = spawn_child()
    if args.daemonize_child:
        children["daemonized"] = daemonize_child()
    if args.report is not None:
        write_whole(args.report, json.dumps({**before, "children": children}))
    for number in range(1, args.print_lines + 1):
        say(f"line {number}")
    for number in range(1, args.print_lines + 1):
        say(f"error line {number}", 2)
    if args.exit_at_once is not None and (args.exit_while is None or exists(args.exit_while)):
        sys.exit(args.exit_at_once)
    time.sleep(args.start_delay / 1000)
    while args.wait_for is not None and not exists(args.wait_for):
        time.sleep(LOOK_AGAIN)
    serve(app, args.host, args.port, args.line_port, lambda: announce(args))


if __name__ == "__main__":
    main()
