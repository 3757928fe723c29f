"""The configuration changes while the pair runs, and what operators and instances may ask of the daemon besides."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clojarsd.system.sockets import free_ports
from tests.support.app import command
from tests.support.pair import CHECKOUT, Clients, Pair, connection, get
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

ME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path) as running:
        yield running


def rewrite(pair: Pair, old: str, new: str) -> None:
    """Change the configuration file in one place."""
    text = pair.config.read_text()
    assert old in text
    pair.config.write_text(text.replace(old, new))


def pids(pair: Pair) -> dict[str, int]:
    return {role: pair.pid(role) for role in ("primary", "backup")}


def environment_of(pid: int) -> dict[str, str]:
    return psutil.Process(pid).environ()


# Reload.


def test_a_reload_touches_only_what_has_changed(pair: Pair) -> None:
    before = pair.status()
    moved = free_ports(1)[0]
    with Clients(pair.http, 2, keep_alive=True) as clients:
        with socket.create_connection(("127.0.0.1", pair.line), PATIENCE) as line:
            line.sendall(b"one\n")
            line.recv(100)
            rewrite(pair, f'listen = "127.0.0.1:{pair.line}"', f'listen = "127.0.0.1:{moved}"')
            rewrite(pair, 'interval = "250ms"', 'interval = "300ms"')
            said = pair.done("config", "reload")
            line.sendall(b"two\n")
            assert line.recv(100).endswith(b"two\n"), "a connection that was there goes on"
        clients.await_answers(4)
    assert clients.failures == []
    assert clients.connections == 2
    assert said.splitlines() == [
        'checks[0].interval: "300ms" instead of "250ms"',
        f'frontends.line.listen: "127.0.0.1:{moved}" instead of "127.0.0.1:{pair.line}"',
    ]
    after = pair.status()
    for role in ("primary", "backup"):
        for key in ("pid", "incarnation", "since", "state", "eligible"):
            assert after["instances"][role][key] == before["instances"][role][key]
    with socket.create_connection(("127.0.0.1", moved), PATIENCE) as line:
        line.sendall(b"three\n")
        assert line.recv(100).endswith(b"three\n")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", pair.line), PATIENCE)
    [reloaded] = [event for event in pair.events() if event["event"] == "config-reloaded"]
    assert reloaded["by"] == ME
    pair.line = moved


def test_a_bad_configuration_is_refused_with_all_its_problems(pair: Pair) -> None:
    good = pair.config.read_text()
    before = pids(pair)
    rewrite(pair, 'stop_timeout = "10s"', 'stop_timeout = 5\nnice = "much"')
    refused = pair.ctl("config", "reload")
    assert refused.returncode == 3
    assert "app.stop_timeout: 5: " in refused.stderr
    assert 'app.nice: "much": ' in refused.stderr
    assert "nothing was changed" in refused.stderr
    pair.config.write_text(good)
    assert pair.done("config", "reload") == "nothing has changed\n"
    assert pids(pair) == before


def test_sighup_reloads_and_a_bad_file_is_only_logged(pair: Pair) -> None:
    assert pair.daemon is not None
    rewrite(pair, 'interval = "250ms"', 'interval = "400ms"')
    pair.daemon.send_signal(signal.SIGHUP)
    pair.until_true(lambda: "configuration_reloaded" in pair.daemon_log(), "the reload")
    assert 'interval = "400ms"' in pair.done("config", "show")
    rewrite(pair, 'interval = "400ms"', 'interval = "often"')
    pair.daemon.send_signal(signal.SIGHUP)
    pair.until_true(lambda: "configuration_not_reloaded" in pair.daemon_log(), "the refusal")
    assert 'interval = "400ms"' in pair.done("config", "show")
    assert pair.instance("primary")["eligible"]


def test_another_port_is_used_from_the_next_start_on_and_nobody_notices(pair: Pair) -> None:
    """Until then checks and clients go where the process listens."""
    moved = free_ports(1)[0]
    old = pair.backup[0]
    before = pair.pid("backup")
    with Clients(pair.http, 2) as clients:
        rewrite(pair, f"http = {old}", f"http = {moved}")
        said = pair.done("config", "reload")
        assert said == "restart backup to use it: instances.backup.ports.http\n"
        seen = pair.instance("backup")
        assert (seen["ports"]["http"], seen["eligible"], seen["pid"]) == (old, True, before)
        pair.done("restart", "backup")
        assert pair.instance("backup")["ports"]["http"] == moved
        with connection(moved) as direct:
            assert json.loads(get(direct, "/who"))["name"] == "backup"
        pair.done("stop", "primary")
        clients.await_answers(4)
        pair.done("start", "primary")
    assert clients.failures == []
    assert clients.answers[-1][1] in ("primary", "backup")


def test_a_restart_uses_the_file_as_it_is(pair: Pair) -> None:
    rewrite(pair, 'directory = "', 'environment = { COLOUR = "green" }\ndirectory = "')
    pair.done("restart", "backup")
    assert environment_of(pair.pid("backup"))["COLOUR"] == "green"
    assert "COLOUR" not in environment_of(pair.pid("primary"))


def test_a_restart_by_a_bad_file_is_refused_unless_forced(pair: Pair) -> None:
    before = pids(pair)
    rewrite(pair, 'stop_timeout = "10s"', "stop_timeout = 5")
    refused = pair.ctl("restart", "backup")
    assert refused.returncode == 3
    assert refused.stderr.startswith("cannot restart backup by the configuration as it is now: cannot reload: ")
    assert "app.stop_timeout: 5: " in refused.stderr
    assert "--force restarts by the one in use" in refused.stderr
    assert pids(pair) == before
    pair.done("restart", "backup", "--force")
    assert pair.pid("backup") != before["backup"]


def test_an_environment_for_one_start(pair: Pair) -> None:
    pair.done("restart", "backup", "--env", "COLOUR=green", "--env", "SHAPE=round")
    given = environment_of(pair.pid("backup"))
    assert (given["COLOUR"], given["SHAPE"]) == ("green", "round")
    os.kill(pair.pid("backup"), signal.SIGKILL)
    pair.until(lambda seen: seen["instances"]["backup"]["restarts"] == 1 and seen["instances"]["backup"]["eligible"])
    assert "COLOUR" not in environment_of(pair.pid("backup"))
    refused = pair.ctl("start", "backup", "--env", "COLOUR=red")
    assert refused.returncode == 3


# Hooks, signals and messages.


def test_hooks_write_to_the_log_of_their_instance(tmp_path: Path) -> None:
    hooks = "".join(
        f'{hook} = [["/bin/sh", "-c", "echo $CLOJARSD_HOOK of $CLOJARSD_ROLE; echo problem >&2"]]\n'
        for hook in ("pre_start", "post_start", "pre_stop", "post_stop")
    )
    with Pair(tmp_path, backup_extra=hooks) as pair:
        pair.done("restart", "backup")
        lines = (tmp_path / "log" / "backup.log").read_text().splitlines()
        told = [line for line in lines if line.endswith(" of backup")]
        names = ["pre_start", "post_start", "pre_stop", "post_stop", "pre_start", "post_start"]
        assert told == [f"{name} of backup" for name in names]
        assert lines.count("problem") == 6
        assert "pre_start of backup" in pair.done("logs", "backup")


@pytest.mark.parametrize("hook", ["pre_start", "post_start"])
def test_a_hook_that_fails_keeps_the_instance_down_and_status_says_why(tmp_path: Path, hook: str) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    script = f"! [ -e {broken} ] || exit 7"
    pair = Pair(tmp_path, backup_extra=f'{hook} = [["/bin/true"], ["/bin/sh", "-c", "{script}"]]\nrestart = "never"')
    try:
        pair.begin()
        seen = pair.until(lambda seen: seen["instances"]["backup"]["state"] == "failed")["instances"]["backup"]
        assert hook in seen["reason"]
        assert "exited with 7" in seen["reason"]
        assert seen["reason"] in " ".join(pair.done("status").split())
        broken.unlink()
        pair.done("start", "backup")
    finally:
        pair.end()


@pytest.mark.parametrize(
    ("steps", "by"),
    [
        ('["SIGTERM", "200ms", "SIGINT", "200ms", "SIGUSR1", "10s"]', signal.SIGUSR1),
        ('["SIGTERM", "200ms", "SIGINT", "200ms"]', signal.SIGKILL),
    ],
)
def test_a_stop_goes_from_signal_to_signal(tmp_path: Path, steps: str, by: signal.Signals) -> None:
    """The application is deaf to the first two."""
    with Pair(tmp_path, backup_extra=f"stop_signal = {steps}") as pair:
        with connection(pair.backup[0]) as direct:
            direct.request("POST", "/fault/ignore-term")
            direct.getresponse().read()
        pair.done("stop", "backup")
        seen = pair.instance("backup")
        assert (seen["state"], seen["last_exit"]["signal"]) == ("stopped", by)
        pair.done("start", "backup")


NOTIFIER = """
import os, socket, sys, threading, time
sys.argv = ["app.py", *sys.argv[1:]]
told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
told.connect(os.environ["NOTIFY_SOCKET"])

def tell():
    gate, silent = os.environ["GATE"], os.environ["GATE"] + ".silent"
    told.send(b"STATUS=warming up")
    while not os.path.exists(gate):
        time.sleep(0.02)
    told.send(b"READY=1\\nSTATUS=all is well")
    while True:
        if not os.path.exists(silent):
            told.send(b"WATCHDOG=1")
        time.sleep(0.1)

threading.Thread(target=tell, daemon=True).start()
sys.path.insert(0, "CHECKOUT")
import runpy
runpy.run_path("CHECKOUT/tests/support/app.py", run_name="__main__")
"""


def notifying(tmp_path: Path, *settings: str) -> Pair:
    """A pair whose instances say that they are ready when a file `gate` is there, and live until there is another."""
    script = tmp_path / "notifier.py"
    script.write_text(NOTIFIER.replace("CHECKOUT", str(CHECKOUT)))
    words = [sys.executable, str(script), *command()[4:]]
    words += ["--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}"]
    gate = f'environment = {{ GATE = "{tmp_path}/gate.{{role}}" }}'
    return Pair(tmp_path, command=words, app="\n".join(("notify = true", gate, *settings, "")))


def test_an_instance_that_notifies_is_ready_when_it_says_so(tmp_path: Path) -> None:
    """Its checks have passed long before."""
    pair = notifying(tmp_path)
    (tmp_path / "gate.primary").touch()
    try:
        pair.begin()
        seen = pair.until(
            lambda seen: seen["instances"]["primary"]["eligible"] and seen["instances"]["backup"]["health"] == "up"
        )["instances"]
        assert (seen["backup"]["state"], seen["backup"]["eligible"]) == ("starting", False)
        assert seen["backup"]["status_text"] == "warming up"
        assert seen["primary"]["status_text"] == "all is well"
        (tmp_path / "gate.backup").touch()
        pair.until(lambda seen: seen["instances"]["backup"]["eligible"])
        pair.done("daemon", "upgrade")
        seen = pair.status()["instances"]
        assert all(one["eligible"] and one["status_text"] == "all is well" for one in seen.values())
        pair.kill()
        pair.begin()
        seen = pair.status()["instances"]
        assert all(one["eligible"] and one["status_text"] == "all is well" for one in seen.values())
    finally:
        pair.end()


def test_an_instance_that_no_longer_says_that_it_lives_is_restarted_while_the_other_serves(tmp_path: Path) -> None:
    pair = notifying(tmp_path, 'watchdog = "2s"')
    for role in ("primary", "backup"):
        (tmp_path / f"gate.{role}").touch()
    with pair, Clients(pair.http, 2) as clients:
        before = pids(pair)
        (tmp_path / "gate.primary.silent").touch()
        pair.until(lambda seen: seen["instances"]["primary"]["incarnation"] == 2)
        (tmp_path / "gate.primary.silent").unlink()
        pair.until_active("primary")
        assert pair.pid("backup") == before["backup"]
        [hung] = [event for event in pair.events() if event["event"] == "instance-hung"]
        assert hung["message"] == "primary hangs: it has not said within 2 s that it is alive (watchdog)"
        [order] = [event for event in pair.events() if event["event"] == "order"]
        assert (order["by"], order["role"]) == ("clojarsd", "primary")
    assert clients.failures == []


def test_an_instance_that_uses_too_much_memory_is_restarted_while_the_other_serves(tmp_path: Path) -> None:
    with Pair(tmp_path, app='memory_max = "48MiB"\n') as pair, Clients(pair.http, 2) as clients:
        before = pids(pair)
        with connection(pair.primary[0]) as direct:
            direct.request("POST", "/fault/leak?mb=96")
            answer = direct.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
        pair.until(lambda seen: seen["instances"]["primary"]["incarnation"] == 2)
        pair.until_active("primary")
        assert pair.pid("backup") == before["backup"]
        [order] = [event for event in pair.events() if event["event"] == "order"]
        assert "its memory stayed above memory_max (" in order["message"]
        assert order["by"] == "clojarsd"
    assert clients.failures == []


# Waiting.


def test_waiting_for_what_will_be(pair: Pair) -> None:
    assert pair.done("wait", "all", "--for", "eligible")
    late = pair.ctl("wait", "backup", "--for", "stopped", "--timeout", "100ms")
    assert late.returncode == 1
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(pair.done("wait", "backup", "--for", "down")))
    waiting.start()
    pair.done("stop", "backup")
    waiting.join()
    assert found
    pair.done("start", "backup")
