"""Every way in which one key can be wrong, word for word, and that all of them are told at once."""

from __future__ import annotations

import signal

import pytest

from clojarsd.core.errors import BadSettings
from clojarsd.core.quantities import DURATION_HINT, SIZE_HINT
from clojarsd.core.settings import parse_settings
from clojarsd.core.stopping import SIGNALS

APP = {"command": '["serve"]'}
PAIR = {"instances.primary": {"ports": "{ http = 8001 }"}, "instances.backup": {"ports": "{ http = 8002 }"}}


def document(**tables: dict[str, str]) -> str:
    """A valid configuration with these keys of these tables instead; `__` in a table's name is a dot."""
    all_tables: dict[str, dict[str, str]] = {"app": APP, **PAIR}
    for name, keys in tables.items():
        dotted = name.replace("__", ".")
        all_tables[dotted] = {**all_tables.get(dotted, {}), **keys}
    arrays = {"checks", "hooks"}
    text = ""
    for name, keys in all_tables.items():
        text += f"[[{name}]]\n" if name in arrays else f"[{name}]\n"
        text += "".join(f"{key} = {value}\n" for key, value in keys.items())
    return text


def problems(text: str) -> list[str]:
    """The problems of `text`, without the file's name in front."""
    try:
        parse_settings(text, "x.toml")
    except BadSettings as bad:
        told = bad.problems
    else:
        told = ()
    assert all(problem.startswith("x.toml: ") for problem in told)
    return [problem.removeprefix("x.toml: ") for problem in told]


ADDRESS = '"HOST:PORT", such as "127.0.0.1:8080", "0.0.0.0:80" or "[::]:8700"'
SIGNAL_NAMES = "SIGHUP, SIGINT, SIGQUIT, SIGABRT, SIGKILL, SIGUSR1, SIGUSR2, SIGTERM, SIGWINCH"
STEPS = 'a signal, or signals with the time to wait after each, ["SIGQUIT", "10s", "SIGTERM", "20s"]'
LIMIT_NAMES = (
    "as, core, cpu, data, fsize, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending, stack"
)
CGROUP_FILE = "CONTROLLER.FILE, such as memory.max, cpu.max, cpu.weight, pids.max, io.weight"
HOST_HINT = "an IPv4 or IPv6 address without brackets, or a host name"

APP_VALUES = [
    ("command", '"serve"', 'is not an argument list (such as ["java", "-jar", "app.jar"])'),
    ("command", '[""]', "names no program (its first word is empty)"),
    ("directory", '"home"', "is not an absolute path (it begins with /)"),
    ("directory", '"/home/../etc"', "holds .. (an absolute path without it)"),
    ("directory", "1", "is not text (text stands in quotes)"),
    ("environment_file", '"env"', "is not an absolute path (it begins with /)"),
    ("pre_start", "1", 'is not a list of commands (each a list, such as [["touch", "/tmp/here"]])'),
    ("start_timeout", "120", f"a duration needs a unit ({DURATION_HINT})"),
    ("start_timeout", '"0s"', "must be longer than zero"),
    ("stop_timeout", '"soon"', f"is not a duration ({DURATION_HINT})"),
    ("stop_signal", '"TERM"', f"TERM is not a signal ({SIGNAL_NAMES})"),
    ("stop_signal", '""', f'"" is not a signal ({SIGNAL_NAMES})'),
    ("stop_signal", "15", f"is not a way to stop ({STEPS})"),
    ("stop_signal", "[]", f"is empty ({STEPS})"),
    ("stop_signal", '["10s", "SIGTERM"]', f"10s does not follow a signal ({STEPS})"),
    ("stop_signal", '["SIGTERM", "1s", "1s"]', f"1s does not follow a signal ({STEPS})"),
    ("stop_signal", '["SIGTERM", "SIGINT"]', f"SIGINT follows a signal without a time to wait between them ({STEPS})"),
    ("stop_signal", '["SIGTERM", "0s"]', "must be longer than zero"),
    ("stop_signal", '["SIGTERM", "1x"]', f"is not a duration ({DURATION_HINT})"),
    (
        "reload_signal",
        '"SIGKILL"',
        "is not a signal that can ask for a reload (SIGHUP, SIGINT, SIGABRT, SIGUSR1, SIGUSR2, SIGTERM, SIGWINCH)",
    ),
    ("restart", '"sometimes"', "is not one of the choices (always, on-failure, never)"),
    ("restart", "true", "is not one of the choices (always, on-failure, never)"),
    ("restart_limit", "10", 'is not a table (such as { count = 10, within = "120s" })'),
    ("success_codes", "0", "is not a list of exit codes (such as [0, 143])"),
    ("umask", "22", 'is not a umask (octal text from "000" to "777", such as "022")'),
    ("umask", '"1777"', 'is not a umask (octal text from "000" to "777", such as "022")'),
    ("umask", '"8"', 'is not a umask (octal text from "000" to "777", such as "022")'),
    ("nice", "20", "is out of range (-20 to 19)"),
    ("nice", "true", "is not a whole number (-20 to 19)"),
    ("oom_score_adjust", "-1001", "is out of range (-1000 to 1000)"),
    ("limits", "1", "is not a table (such as { nofile = 65536 })"),
    ("notify", "1", "is not a truth value (true or false, without quotes)"),
    ("watchdog", "30", f"a duration needs a unit ({DURATION_HINT})"),
    ("watchdog", '"0s"', "must be longer than zero"),
    ("memory_max", "1", f"a size needs a unit ({SIZE_HINT})"),
    ("memory_max", '"1MiB"', 'is too little for any instance (at least 16MiB, or "unlimited")'),
    ("cpu_affinity", "0", "is not a list of CPU numbers (such as [0, 1])"),
    ("cpu_affinity", "[0, 1, 0]", "names 0 twice (each once)"),
    ("chroot", '"srv"', "is not an absolute path (it begins with /)"),
    ("chroot", '"/srv/../etc"', "holds .. (an absolute path without it)"),
    ("supplementary_groups", '"adm"', 'is not a list of groups (such as ["ssl-cert", "adm"])'),
    ("supplementary_groups", '["adm", "adm"]', "names adm twice (each once)"),
    ("cgroup", "1", 'is not a table (such as { "memory.max" = "2GiB", "pids.max" = 4096 })'),
    ("log", '"syslog"', "is not one of the choices (file, journal, inherit)"),
    ("log_max_size", "67108864", f"a size needs a unit ({SIZE_HINT})"),
    ("log_max_size", '"0B"', "must be larger than zero"),
    ("log_max_size", '"64M"', "M is not a unit of size (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)"),
    ("log_keep", "-1", "is out of range (0 to 1000)"),
]

PLACED = [
    (
        document(instances__primary={"sockets": '["/a"]'}),
        'instances.primary.sockets: ["/a"]: is not a table (such as { http = "/run/app/http.sock" })',
    ),
    (
        document(instances__primary={"sockets": '{ web = "a.sock" }'}),
        'instances.primary.sockets.web: "a.sock": is not an absolute path (it begins with /)',
    ),
    (
        document(instances__primary={"sockets": f'{{ web = "/{"a" * 107}" }}'}),
        f'instances.primary.sockets.web: "/{"a" * 95}...: is too long for a Unix socket (at most 107 bytes)',
    ),
    (document(instances__primary={"resolve": '"0s"'}), 'instances.primary.resolve: "0s": must be longer than zero'),
    *(
        (
            document(frontends__http={"listen": '"127.0.0.1:1"', "port": '"http"', "source": text}),
            f"frontends.http.source: {text}: is not an address of this host"
            ' (an IPv4 or IPv6 address without brackets, or "" for any)',
        )
        for text in ('"localhost"', '"127.0.0.1:0"', "1")
    ),
    (
        document(frontends__http={"listen": '"127.0.0.1:1"', "port": '"http"', "idle_timeout": '"0s"'}),
        'frontends.http.idle_timeout: "0s": must be longer than zero',
    ),
    (document(app={"command": '["serve", 1]'}), "app.command[1]: 1: is not text (text stands in quotes)"),
    (
        document(app={"command": r'["a\u0000b"]'}),
        r'app.command[0]: "a\u0000b": holds a NUL character, which no program can be given',
    ),
    (document(app={"environment": "{ A = 1 }"}), 'app.environment.A: "***": is not text (text stands in quotes)'),
    (
        document(instances__backup={"environment": '"TOKEN=secret"'}),
        'instances.backup.environment: "***": is not a table (such as { LANG = "C.UTF-8" })',
    ),
    (
        document(app={"environment": r'{ A = "secret\u0000" }'}),
        'app.environment.A: "***": holds a NUL character, which no program can be given',
    ),
    (
        document(app={"environment": '{ "a b" = "1" }'}),
        'app.environment."a b": "a b": is not a name of a variable (letters, digits and _)',
    ),
    (
        document(app={"pre_start": '["echo"]'}),
        'app.pre_start[0]: "echo": is not an argument list (such as ["java", "-jar", "app.jar"])',
    ),
    (document(app={"post_stop": "[[]]"}), 'app.post_stop[0]: []: is empty (an argument list, such as ["true"])'),
    (document(app={"restart_limit": "{ count = 0 }"}), "app.restart_limit.count: 0: is out of range (1 to 1000000)"),
    (
        document(app={"restart_limit": "{ cuont = 1 }"}),
        "app.restart_limit.cuont: unknown key, did you mean count? (allowed: count, within)",
    ),
    (document(app={"cpu_affinity": "[0, -1]"}), "app.cpu_affinity[1]: -1: is out of range (0 to 8191)"),
    (document(app={"cpu_affinity": '["0"]'}), 'app.cpu_affinity[0]: "0": is not a whole number (0 to 8191)'),
    (
        document(app={"supplementary_groups": '["@adm"]'}),
        'app.supplementary_groups[0]: "@adm": is not the name of a user or group',
    ),
    *(
        (
            document(app={"cgroup": f"{{ {key} = 1 }}"}),
            f'app.cgroup.{key}: "{key.strip(chr(34))}": {wrong} ({CGROUP_FILE})',
        )
        for key, wrong in [
            ('"cgroup.procs"', "is a file by which groups themselves are run, which clojarsd does"),
            ("memory", "is not a file of a control group"),
            ('"../memory.max"', "is not a file of a control group"),
            ('"memory.max/x"', "is not a file of a control group"),
            ('"memory."', "is not a file of a control group"),
        ]
    ),
    *(
        (
            document(app={"cgroup": f'{{ "pids.max" = {value} }}'}),
            f'app.cgroup."pids.max": {value}: is not a value for a control group '
            '(a whole number from 0, or text, such as "2GiB" or "max")',
        )
        for value in ("-1", "true", '""', "[1]")
    ),
    (
        document(app={"cgroup": r'{ "io.max" = "8:0 rbps=1\n8:1 rbps=1" }'}),
        r'app.cgroup."io.max": "8:0 rbps=1\n8:1 rbps=1": "8:0 rbps=1\n8:1 rbps=1" is more than a line of plain text '
        "(one line)",
    ),
    (document(app={"success_codes": "[0, 256]"}), "app.success_codes[1]: 256: is out of range (0 to 255)"),
    (
        document(app={"limits": "{ nofiles = 1 }"}),
        f'app.limits.nofiles: "nofiles": is not a resource of setrlimit ({LIMIT_NAMES})',
    ),
    *(
        (
            document(app={"limits": f"{{ core = {value} }}"}),
            f'app.limits.core: {value}: is not a limit (a whole number from 0, or "unlimited")',
        )
        for value in ("-1", "true", '"1"', "9223372036854775808")
    ),
    (
        document(service={"name": '"my app"'}),
        'service.name: "my app": is not a name (letters, digits, _, . and -, no spaces)',
    ),
    (document(service={"user": '"a:b"'}), 'service.user: "a:b": is not the name of a user or group'),
    (
        document(instances__primary={"host": '"[::1]"'}),
        f'instances.primary.host: "[::1]": "[::1]" is not a host ({HOST_HINT})',
    ),
    (document(instances__primary={"host": "1"}), f"instances.primary.host: 1: 1 is not a host ({HOST_HINT})"),
    (
        document(instances__primary={"ports": "{ http = 0 }"}),
        "instances.primary.ports.http: 0: is not a port (1 to 65535)",
    ),
    (
        document(instances__primary={"ports": '{ http = "8001" }'}),
        'instances.primary.ports.http: "8001": is not a port (1 to 65535, without quotes)',
    ),
    (
        document(instances__primary={"ports": "{ HTTP = 1 }"}),
        'instances.primary.ports.HTTP: "HTTP": is not a name (lower-case letters, digits, _ and -, a letter first)',
    ),
    (
        document(instances__primary={"ports": "{}"}),
        "instances.primary.ports: {}: is empty (at least one port, such as { http = 8001 })",
    ),
    (
        document(instances__primary={"ports": "[8001]"}),
        "instances.primary.ports: [8001]: is not a table (such as { http = 8001, nailgun = 8101 })",
    ),
    (
        document(checks={"kind": '"http"', "port": '"http"', "path": '"health"'}),
        'checks[0].path: "health": is not a path to ask for (it begins with / and holds no spaces, '
        'such as "/search?q=ring")',
    ),
    (
        document(checks={"kind": '"http"', "port": '"http"', "status": "[]"}),
        "checks[0].status: []: is empty (at least one HTTP status, such as [200])",
    ),
    (
        document(checks={"kind": '"http"', "port": '"http"', "status": "200"}),
        "checks[0].status: 200: is not a list of HTTP statuses (such as [200])",
    ),
    (document(checks={"port": '"http"'}), "checks[0].kind: missing (tcp, http, nailgun, exec)"),
    (
        document(stall={"enabled": '"yes"'}),
        'stall.enabled: "yes": is not a truth value (true or false, without quotes)',
    ),
    (document(hang={"restart_after": '"0s"'}), 'hang.restart_after: "0s": must be longer than zero'),
    (document(hang={"restart_after": "1"}), f"hang.restart_after: 1: a duration needs a unit ({DURATION_HINT})"),
    (
        document(warmup={"requests": '"/"'}),
        'warmup.requests: "/": is not a list of paths (such as ["/", "/search?q=ring"])',
    ),
    (
        document(frontends__http={"port": '"http"'}),
        'frontends.http.listen: missing (where clients connect, such as "127.0.0.1:8080")',
    ),
    (
        document(frontends__http={"listen": '"127.0.0.1:0"'}),
        "frontends.http.port: missing (the name of a port of the instances, such as http)",
    ),
    (
        document(deploy={"releases": '"/b"', "share": "51"}),
        "deploy.share: 51: is out of range (0 to 50)",
    ),
    (
        document(deploy={"repository": '"/r"', "releases": '"/b"'}),
        "deploy.work_dir: missing (the directory in which releases are built; without `repository` there is none)",
    ),
    *(
        (
            document(deploy={"repository": '"/r"', "work_dir": '"/a"', "releases": '"/b"', key: value}),
            f"deploy.{key}: {value}: {wrong}",
        )
        for key, value, wrong in [
            ("current", '"a/b"', "is not a file name (no /)"),
            ("current", '""', "is not a file name (no /)"),
            ("current", '".."', "is not a file name (no /)"),
            ("artifact", '"/x.jar"', "is not a pattern below the checkout (no / at its start, no ..)"),
            ("artifact", '"a/../x.jar"', "is not a pattern below the checkout (no / at its start, no ..)"),
            ("artifact", '""', "is not a pattern below the checkout (no / at its start, no ..)"),
            ("build", "[]", 'is empty (an argument list, such as ["true"])'),
        ]
    ),
    (
        document(control={"operators": '"root"'}),
        'control.operators: "root": is not a list of users and groups (such as ["root", "@adm"])',
    ),
    (
        document(control={"viewers": '["@"]'}),
        'control.viewers[0]: "@": is neither a user nor a group ("root", "@adm")',
    ),
    (document(admin={"listen": "9180"}), f"admin.listen: 9180: is not an address ({ADDRESS})"),
    (
        document(hooks={"on": "[]", "exec": '["x"]'}),
        'hooks[0].on: []: is empty (at least one event, such as ["failover"])',
    ),
    (
        document(hooks={"on": '["oom"]', "exec": "[]"}),
        'hooks[0].exec: []: is empty (an argument list, such as ["true"])',
    ),
]

LISTENS = [
    ('"127.0.0.1:70000"', "70000 is not a port (1 to 65535)"),
    ('"127.0.0.1:-1"', "-1 is not a port (1 to 65535)"),
    ('"127.0.0.1:"', '"" is not a port (1 to 65535)'),
    ('"127.0.0.1:1000000"', "1000000 is not a port (1 to 65535)"),
    ('"localhost:http"', "http is not a port (1 to 65535)"),
    ('":8080"', f"is not an address ({ADDRESS})"),
    ('"127.0.0.1"', f"is not an address ({ADDRESS})"),
    ("8080", f"is not an address ({ADDRESS})"),
    ('"::1:8080"', f"an IPv6 address stands in brackets, and nothing else does ({ADDRESS})"),
    ('"[127.0.0.1]:8080"', f"an IPv6 address stands in brackets, and nothing else does ({ADDRESS})"),
    ('"127.0.0.256:80"', f'"127.0.0.256" is not a host ({HOST_HINT})'),
    ('"*:80"', f'"*" is not a host ({HOST_HINT})'),
    ('"a b:80"', f'"a b" is not a host ({HOST_HINT})'),
    ('"[::g]:80"', f'"::g" is not a host ({HOST_HINT})'),
    ("[]", f"is empty (at least one address, {ADDRESS})"),
    ('["127.0.0.1:80", "127.0.0.1:70000"]', '"127.0.0.1:70000": 70000 is not a port (1 to 65535)'),
    ("[80]", f"80: is not an address ({ADDRESS})"),
]

SHAPES = [
    ("service = 1", "service: 1: is not a table"),
    ("instances = 1", "instances: 1: is not a table (of primary and backup)"),
    ("frontends = []", "frontends: []: is not a table (of tables, [frontends.NAME])"),
    ("frontends.http = true", "frontends.http: true: is not a table"),
    (
        'frontends."HTTP 1" = {}',
        'frontends."HTTP 1": is not a name of a frontend (lower-case letters, digits, _ and -, a letter first)',
    ),
    ("checks = {}", "checks: {}: is not an array of tables (each begins with [[checks]])"),
    ("hooks = [1]", "hooks[0]: 1: is not a table"),
    (
        "instances.primry = {}",
        "instances.primry: unknown key, did you mean primary? (allowed: primary, backup)",
    ),
    (
        "frontend = {}",
        "frontend: unknown key, did you mean frontends? (allowed: service, app, instances, checks, stall, hang, "
        "warmup, frontends, deploy, control, admin, hooks)",
    ),
    (
        "stall.x = 1979-05-27T07:32:00Z",
        "stall.x: unknown key (allowed: enabled, sample, after)",
    ),
    ("stall.after = 1979-05-27", f"stall.after: 1979-05-27: is not a duration ({DURATION_HINT})"),
    ("stall.after = { a = [1.5, nan] }", f"stall.after: {{ a = [1.5, nan] }}: is not a duration ({DURATION_HINT})"),
]


@pytest.mark.parametrize(("key", "value", "wrong"), APP_VALUES)
def test_wrong_values_of_app_and_of_one_instance(key: str, value: str, wrong: str) -> None:
    assert problems(document(app={key: value}, instances__backup={"command": '["own"]'})) == [
        f"app.{key}: {value}: {wrong}"
    ]
    assert problems(document(instances__backup={key: value})) == [f"instances.backup.{key}: {value}: {wrong}"]


@pytest.mark.parametrize(("text", "problem"), PLACED)
def test_wrong_values_elsewhere(text: str, problem: str) -> None:
    assert problems(text) == [problem]


@pytest.mark.parametrize(("value", "wrong"), LISTENS)
def test_wrong_addresses(value: str, wrong: str) -> None:
    text = document(frontends__http={"listen": value, "port": '"http"'})
    assert problems(text) == [f"frontends.http.listen: {value}: {wrong}"]


@pytest.mark.parametrize(("line", "problem"), SHAPES)
def test_wrong_shapes(line: str, problem: str) -> None:
    text = line + "\n" + ('[app]\ncommand = ["serve"]' if line.startswith("instances = ") else document())
    assert problems(text) == [problem]


def test_events_that_do_not_exist_are_refused_with_those_that_do() -> None:
    (problem,) = problems(document(hooks={"on": '["deploy-*", "fail-over"]', "exec": '["x"]'}))
    assert problem.startswith('hooks[0].on[1]: "fail-over": matches no event (instance-started, instance-ready, ')
    assert problem.endswith("daemon-adopted; * stands for anything)")


def test_all_problems_are_told_at_once_and_none_twice() -> None:
    text = """
colour = "red"
[service]
nmae = "x"
[app]
comand = ["serve"]
restart_delay = "100"
restart_max_delay = "500ms"
[instances.primary]
ports = { http = 80, x = 99999 }
[instances.backup]
command = ["own", "{role}", "{rolle}"]
ports = { http = 8002 }
[[checks]]
kind = "ping"
[[checks]]
kind = "tcp"
port = "htp"
rise = 0
[frontends.http]
listen = "127.0.0.1:8002"
port = "http"
hold = 30
"""
    seen = problems(text)
    assert [problem.split(": ")[0] for problem in seen] == [
        "colour",
        "service.nmae",
        "app.restart_delay",
        "app.comand",
        "instances.primary.ports.x",
        "checks[0].kind",
        "checks[1].rise",
        "frontends.http.hold",
        "frontends.http.listen",
        "instances.backup.command",
    ]
    assert seen[-2] == (
        'frontends.http.listen: "127.0.0.1:8002": 127.0.0.1:8002 is taken by instances.backup.ports.http, '
        "127.0.0.1:8002 (a port or host of its own)"
    )


def test_empty_file_names_what_is_missing() -> None:
    missing = "missing (a table with the ports of this instance)"
    instances = [f"instances.primary: {missing}", f"instances.backup: {missing}"]
    command = 'app.command: missing (the argument list that starts an instance, such as ["java"])'
    assert problems("") == [*instances, command]
    assert problems("[app]\ncommand = []") == [*instances, command]
    assert problems("instances = 1") == ["instances: 1: is not a table (of primary and backup)", command]
    assert problems("[instances.primary]\n[instances.backup]\nports = { http = 1 }") == [
        "instances.primary.ports: missing (the ports of this instance, such as { http = 8001, nailgun = 8101 })",
        command,
    ]


def test_command_that_an_unreadable_instance_gives_is_not_missing() -> None:
    text = '[instances.primary]\ncommand = ["x"]\nports = 1\n[instances.backup]\ncommand = ["x"]\nports = 2'
    assert [problem.split(": ")[0] for problem in problems(text)] == [
        "instances.primary.ports",
        "instances.backup.ports",
    ]
    assert problems("app = 1\n" + text.replace('command = ["x"]\n', ""))[0] == "app: 1: is not a table"


def test_long_values_are_cut() -> None:
    (problem,) = problems(document(app={"directory": f'"{"x" * 200}"'}))
    assert problem == f'app.directory: "{"x" * 96}...: is not an absolute path (it begins with /)'


def test_signals_have_their_numbers() -> None:
    assert {name: signal.Signals[name].value for name in SIGNALS} == SIGNALS
