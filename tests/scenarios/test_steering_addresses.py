"""Which clients a steered frontend gets to the instances by itself, and which by way of the relay process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.test_pair import JAVA
from tests.support.app import command as app_command
from tests.support.namespaces import apart, new_network
from tests.support.pair import Pair
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

WORDS = ("--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}")


def at(host: str) -> str:
    """Settings of an instance that listens there."""
    command = json.dumps(app_command(*WORDS, "--host", host))
    return f'host = "{host}"\ncommand = {command}\n'


@contextlib.contextmanager
def listening_at(home: Path, *listen: str, primary: str = "127.0.0.1", backup: str = "127.0.0.1") -> Iterator[Pair]:
    """A pair whose frontend http listens there, `{http}` being its port."""
    with Pair(home, mode="auto", listen=listen, primary_extra=at(primary), backup_extra=at(backup)) as pair:
        yield pair


class Answer:
    """What a client got: from whom, and from which process directly."""

    def __init__(self, pair: Pair, host: str) -> None:
        opened = http.client.HTTPConnection(host, pair.http, timeout=PATIENCE)
        with contextlib.closing(opened):
            opened.request("GET", "/who")
            self.name = json.loads(opened.getresponse().read())["name"]
            relay = pair.status()["daemon"]["relay_pid"]
            self.is_relayed = any(inode in _inodes(relay) for inode in _inodes_to(opened))


def _inodes(pid: int) -> set[str]:
    links = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(os.readlink(path))
    return links


def _inodes_to(opened: http.client.HTTPConnection) -> Iterator[str]:
    """The sockets at the other end of the connection."""
    port = opened.sock.getsockname()[1]
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if int(words[2].rpartition(":")[2], 16) == port:
                yield f"socket:[{words[9]}]"


def frontend(pair: Pair) -> dict[str, Any]:
    found = pair.status()["frontends"]["http"]
    assert isinstance(found, dict)
    return found


def assert_all(pair: Pair, hosts: Sequence[str], *, relayed: Sequence[str] = ()) -> None:
    """Clients of each address are answered by the primary, those of `relayed` by way of the relay process."""
    family = {"IPv6" if ":" in host else "IPv4" for host in relayed}
    why = f"{family.pop()} clients are relayed: primary does not listen for them" if family else None
    mode = "steer" if hosts else "relay"
    assert (frontend(pair)["mode"], frontend(pair)["mode_reason"]) == (mode, why), pair.daemon_log()
    for host in (*hosts, *relayed):
        answer = Answer(pair, host)
        assert (host, answer.name, answer.is_relayed) == (host, "primary", host in relayed)


@apart
def test_an_ipv6_frontend_of_ipv6_instances(tmp_path: Path) -> None:
    with listening_at(tmp_path, "[::1]:{http}", primary="::1", backup="::1") as pair:
        assert_all(pair, ["::1"])


@apart
def test_ipv4_clients_of_instances_that_take_ipv6_alone_are_relayed(tmp_path: Path) -> None:
    with listening_at(tmp_path, "[::]:{http}", primary="::", backup="::") as pair:
        assert_all(pair, ["::1"], relayed=["127.0.0.1", "127.0.0.7"])


@pytest.mark.real
@apart
def test_a_frontend_that_takes_both_families_of_jvms_that_do(tmp_path: Path) -> None:
    """A JVM that listens everywhere takes IPv4 on its one socket, too."""
    if shutil.which("java") is None:
        unavailable("there is no java on this machine")
    with Pair(
        tmp_path,
        mode="auto",
        listen=["[::]:{http}"],
        command=[*JAVA, "--host", "::"],
        primary_extra='host = "::"\n',
        backup_extra='host = "::"\n',
    ) as pair:
        assert_all(pair, ["::1", "127.0.0.1", "127.0.0.7"])


@apart
@pytest.mark.parametrize("listen", ["[::]:{http}", "[::1]:{http}"])
def test_ipv6_clients_of_ipv4_instances_are_relayed(tmp_path: Path, listen: str) -> None:
    with listening_at(tmp_path, listen) as pair:
        assert_all(pair, ["127.0.0.1"] if "::]" in listen else [], relayed=["::1"])


@apart
def test_two_addresses(tmp_path: Path) -> None:
    with listening_at(tmp_path, "127.0.0.1:{http}", "127.0.0.9:{http}", "[::1]:{http}") as pair:
        assert_all(pair, ["127.0.0.1", "127.0.0.9"], relayed=["::1"])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", pair.http), PATIENCE)


@apart
def test_instances_at_other_addresses_of_this_host(tmp_path: Path) -> None:
    with listening_at(tmp_path, "127.0.0.1:{http}", primary="127.0.0.2", backup="127.0.0.3") as pair:
        assert_all(pair, ["127.0.0.1"])
        pair.done("stop", "primary", "--force")
        answer = Answer(pair, "127.0.0.1")
        assert (answer.name, answer.is_relayed) == ("backup", False)


@apart
def test_an_address_that_somebody_else_has_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """No daemon, no pins, and no mount either."""
    pair = Pair(tmp_path, mode="auto")
    with socket.create_server(("127.0.0.1", pair.http)):
        pair.write_config()
        said = subprocess.run(
            [*pair.program, "-c", str(pair.config)], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    assert said.returncode == 1
    assert f"cannot listen on 127.0.0.1:{pair.http} for frontend http: address already in use" in said.stderr
    assert not [path for path in Path("/sys/fs/bpf").iterdir() if "." not in path.name]


@apart
def test_the_same_address_in_another_network_namespace_is_another_address(tmp_path: Path) -> None:
    """A daemon there has a program of its own, which sees no client of ours."""
    with listening_at(tmp_path, "127.0.0.1:{http}") as pair:
        assert_all(pair, ["127.0.0.1"])
        before = frontend(pair)["accepted_total"]["primary"]
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                new_network()
                with socket.create_server(("127.0.0.1", pair.http)) as own:
                    socket.create_connection(("127.0.0.1", pair.http), PATIENCE)
                    own.settimeout(PATIENCE)
                    own.accept()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert frontend(pair)["accepted_total"]["primary"] == before


@apart
def test_an_instance_in_another_network_namespace_gets_nobody(tmp_path: Path) -> None:
    """It is up as far as its notifications say, and cannot be reached by anybody here."""
    inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    command = json.dumps([*inside, *app_command(*WORDS)])
    forwarder = json.dumps(app_command(*WORDS))
    pair = Pair(tmp_path, mode="auto", primary_extra=f"command = {command}\n", backup_extra=f"command = {forwarder}\n")
    try:
        pair.begin()
        pair.until(lambda seen: seen["instances"]["backup"]["eligible"])
        seen = pair.until_active("backup")
        assert not seen["instances"]["primary"]["eligible"], "its check asks where clients ask"
        answer = Answer(pair, "127.0.0.1")
        assert (answer.name, answer.is_relayed) == ("backup", False)
    finally:
        pair.end()
