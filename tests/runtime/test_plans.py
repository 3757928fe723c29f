"""Every key of the settings that shapes a unit, its checks or a frontend reaches it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core.errors import Failed, LaunchFailed
from clojarsd.core.health import Result
from clojarsd.core.identity import InstanceMark
from clojarsd.core.launch import World
from clojarsd.core.names import Address, Backend, HookName, Incarnation, LaunchStage, Role, UnixAddress
from clojarsd.core.restart import RestartPolicy, RestartWhen
from clojarsd.core.rollout_facts import HeldBack
from clojarsd.core.saved import InForce
from clojarsd.core.settings import InstanceSettings, parse_settings
from clojarsd.core.settings_types import LogTo
from clojarsd.core.unit import UnitPolicy
from clojarsd.runtime.plans import HOOK_SLACK, Plans
from clojarsd.system.hook_command import hook_spec
from clojarsd.system.probe import Prober

P, B = Role.PRIMARY, Role.BACKUP
THIRD = Incarnation(3)
WORLD = World({"PATH": "/usr/bin:/bin", "HOME": "/h"}, becomes_user=True, soft_nofile=1024)

LEAST = """
[app]
command = ["serve"]
[instances.primary]
ports = { http = 8001 }
[instances.backup]
ports = { http = 8002 }
"""
RICH = """
[service]
name = "demo"
user = "web"
group = "staff"
runtime_dir = "/run/demo"
state_dir = "/var/lib/demo"
log_dir = "/var/log/demo"
[app]
command = ["serve", "{release}", "{port.http}", "{role}", "{name}"]
directory = "/home/web"
environment = { WHERE = "{current}", STATE = "{state_dir}", COLOUR = "red" }
environment_file = "/etc/default/web"
pre_start = [["pre", "{release}", "{port.http}"], ["pre2", "{log_dir}"]]
post_start = [["post", "{port.nailgun}"]]
pre_stop = [["stop", "{port.http}"]]
post_stop = [["gone", "{name}"], ["gone2"], ["gone3"]]
start_timeout = "40s"
stop_timeout = "7s"
stop_signal = ["SIGQUIT", "3s", "SIGTERM"]
reload_signal = "SIGUSR1"
restart = "always"
restart_delay = "2s"
restart_max_delay = "20s"
restart_reset = "50s"
restart_limit = { count = 4, within = "90s" }
success_codes = [0, 5]
umask = "027"
nice = 5
oom_score_adjust = 100
limits = { nofile = 4096 }
notify = true
watchdog = "1500ms"
cpu_affinity = [0, 1]
chroot = "/jail"
supplementary_groups = ["audio"]
cgroup = { "memory.max" = "2GiB" }
log = "journal"
[instances.primary]
name = "first"
ports = { http = 8001, nailgun = 8101 }
environment = { COLOUR = "blue" }
[instances.backup]
host = "::1"
ports = { http = 8002, nailgun = 8102 }
notify = false
watchdog = "never"
stop_timeout = "9s"
pre_stop = []
[[checks]]
kind = "http"
port = "http"
path = "/up"
interval = "3s"
timeout = "2s"
rise = 4
fall = 5
[[checks]]
kind = "nailgun"
port = "nailgun"
[frontends.http]
listen = ["127.0.0.1:8080", "[::1]:8080"]
port = "http"
connect_timeout = "4s"
hold = "11s"
hold_connections = 12
drain = "13s"
drain_idle = "1s"
failback = "14s"
on_down = "cut"
on_up = "move"
proxy_protocol = true
idle_timeout = "2h"
half_closed_timeout = "never"
access_log = true
[frontends.nailgun]
listen = "127.0.0.1:8700"
port = "nailgun"
mode = "relay"
quickack = true
drain = "15s"
failback = "6s"
[deploy]
repository = "/repo"
work_dir = "/builds"
releases = "RELEASES"
current = "current.jar"
"""


class FakeProber(Prober):
    """Asks nobody, and remembers who would have been asked. `failing`: ports of which nothing is heard."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Address]] = []
        self.asked_paths: list[tuple[str, str]] = []
        self.announced: list[bool] = []
        self.hosts: list[str | None] = []
        self.failing: set[int] = set()

    async def http(self, check: Any, address: Backend, *, announced: bool = False, host: str | None = None) -> Result:
        self.hosts.append(host)
        return self._answer("http", address, announced)

    async def tcp(self, check: Any, address: Backend, *, announced: bool = False) -> Result:
        return self._answer("tcp", address, announced)

    def _answer(self, kind: str, address: Backend, announced: bool) -> Result:
        self.announced.append(announced)
        if isinstance(address, UnixAddress):
            self.asked_paths.append((kind, address.path))
            return Result(True, f"{kind} {address}", 0.001)
        self.asked.append((kind, address))
        return Result(address.port not in self.failing, f"{kind} {address}", 0.001)


def plans_of(text: str) -> Plans:
    return Plans(parse_settings(text, "x"), WORLD, FakeProber())


@pytest.fixture
def plans(tmp_path: Path) -> Plans:
    """By all keys, with a release that the link names."""
    return plans_with(tmp_path, RICH)


def plans_that_get(word: str, directory: Path) -> Plans:
    """By few keys, with a release that the link names."""
    least = LEAST.replace('["serve"]', f'["serve", "{word}"]')
    return plans_with(directory, least + RICH[RICH.index("[deploy]") :])


def plans_with(directory: Path, text: str) -> Plans:
    (directory / "1.jar").touch()
    (directory / "current.jar").symlink_to("1.jar")
    return plans_of(text.replace("RELEASES", str(directory)))


async def asked(plans: Plans, in_force: InForce, role: Role = P) -> list[tuple[str, int]]:
    """Where the checks of such a process ask, each after the other, and that each says what it has seen."""
    assert isinstance(plans.prober, FakeProber)
    plans.prober.asked.clear()
    for check in plans.checks(role, in_force):
        assert (await check.ask()).text
    return [(kind, address.port) for kind, address in plans.prober.asked]


# The life of a unit.


def test_every_key_about_its_life_is_in_the_policy(plans: Plans) -> None:
    restart = RestartPolicy(RestartWhen.ALWAYS, 2.0, 20.0, 50.0, 4, 90.0)
    hooks = {
        HookName.PRE_START: 2 * 40.0 + HOOK_SLACK,
        HookName.POST_START: 40.0 + HOOK_SLACK,
        HookName.PRE_STOP: 7.0 + HOOK_SLACK,
        HookName.POST_STOP: 3 * 7.0 + HOOK_SLACK,
    }
    steps = ((3, 3.0), (15, 7.0))
    assert plans.unit(P).policy == UnitPolicy(40.0, 15.0, steps, frozenset({0, 5}), restart, 10, hooks)
    backup = plans.unit(B).policy
    assert backup.stop_steps == ((3, 3.0), (15, 9.0))
    assert HookName.PRE_STOP not in backup.hooks
    assert backup.hooks[HookName.POST_STOP] == 3 * 9.0 + HOOK_SLACK


def test_without_frontends_and_hooks_nothing_is_waited_for() -> None:
    plans = plans_of(LEAST)
    policy = plans.unit(P).policy
    assert (policy.drain_timeout, policy.hooks) == (0.0, {})
    assert (plans.longest_drain, plans.longest_failback(0), plans.longest_stop) == (0.0, 0.0, 60.0)


def test_a_unit_has_its_name_and_what_its_process_is_bound_to(plans: Plans) -> None:
    unit = plans.unit(P)
    assert unit.name == "first"
    assert unit.in_force == plans.in_force(P)
    assert unit.in_force == InForce(
        "127.0.0.1", {"http": 8001, "nailgun": 8101}, notify=True, watchdog=1.5, log=LogTo.JOURNAL, cgroup=True
    )
    other = InForce("::1", {"http": 8002, "nailgun": 8102}, log=LogTo.JOURNAL, cgroup=True)
    assert (plans.unit(B).name, plans.unit(B).in_force) == ("demo-backup", other)


def test_what_a_process_is_bound_to_is_every_key_that_waits_for_a_start() -> None:
    """As `settings_in_force` needs it; a new field must not be forgotten here."""
    assert {field.name for field in fields(InForce)} == {
        *("host", "ports", "sockets", "notify", "watchdog", "log", "cgroup")
    }
    assert {field.name for field in fields(InForce)} <= set(InstanceSettings.model_fields)


def test_the_longest_times_are_sums_over_both_instances(plans: Plans) -> None:
    primary = 15.0 + (3.0 + 7.0) + (7.0 + HOOK_SLACK) + (21.0 + HOOK_SLACK)
    backup = 15.0 + (3.0 + 9.0) + (27.0 + HOOK_SLACK)
    assert (plans.longest_drain, plans.longest_failback(1)) == (15.0, 14.0)
    assert plans.longest_stop == primary + backup


# Launches.


def test_every_key_about_its_process_is_in_the_launch(plans: Plans, tmp_path: Path) -> None:
    planned = plans.unit(P).launch(THIRD, {})
    release = str(tmp_path / "1.jar")
    assert (planned.release, planned.in_force) == ("1.jar", plans.in_force(P))
    spec = planned.spec
    assert spec.command == ("serve", release, "8001", "primary", "first")
    assert spec.environment == {
        **WORLD.environment,
        "WHERE": str(tmp_path / "current.jar"),
        "STATE": "/var/lib/demo",
        "COLOUR": "blue",
    }
    assert spec.imposed == {"NOTIFY_SOCKET": "/run/demo/notify-primary.sock", "WATCHDOG_USEC": "1500000"}
    assert spec.mark == InstanceMark("/var/lib/demo", P, THIRD)
    assert (spec.directory, spec.environment_file, spec.log) == (
        "/home/web",
        "/etc/default/web",
        "/var/log/demo/primary.log",
    )
    assert spec.ports == {"http": Address("127.0.0.1", 8001), "nailgun": Address("127.0.0.1", 8101)}
    assert (spec.user, spec.group, spec.supplementary_groups) == ("web", "staff", ("audio",))
    assert (spec.umask, spec.nice, spec.oom_score_adjust) == (0o027, 5, 100)
    assert (spec.limits, spec.soft_nofile) == ({"nofile": 4096}, 1024)
    assert (spec.cpu_affinity, spec.chroot, spec.cgroup) == ((0, 1), "/jail", {"memory.max": str(2 * 1024**3)})


def test_an_instance_that_does_not_notify_is_told_of_neither_socket_nor_watchdog(plans: Plans) -> None:
    assert plans.unit(B).launch(THIRD, {}).spec.imposed == {}
    assert plans.notify_socket(B) == Path("/run/demo/notify-backup.sock")


def test_the_environment_of_one_start_wins_and_lasts_for_one(plans: Plans) -> None:
    """It also wins over the environment file, which is read later."""
    given = {"COLOUR": "green", "WATCHDOG_USEC": "1"}
    spec = plans.unit(P).launch(THIRD, given).spec
    assert spec.imposed["COLOUR"] == "green"
    assert spec.imposed["WATCHDOG_USEC"] == "1500000", "what the daemon acts by"
    assert given == {"COLOUR": "green", "WATCHDOG_USEC": "1"}
    assert "COLOUR" not in plans.unit(P).launch(THIRD, {}).spec.imposed


def test_each_launch_is_of_the_release_that_the_link_names_then(plans: Plans, tmp_path: Path) -> None:
    unit = plans.unit(P)
    assert (unit.launch(THIRD, {}).release, plans.current_release()) == ("1.jar", "1.jar")
    (tmp_path / "2.jar").touch()
    (tmp_path / "current.jar").unlink()
    (tmp_path / "current.jar").symlink_to("2.jar")
    planned = unit.launch(THIRD, {})
    assert (planned.release, planned.spec.command[1]) == ("2.jar", str(tmp_path / "2.jar"))
    assert unit.hooks[HookName.PRE_START].commands()[0][1] == str(tmp_path / "2.jar")
    assert plans.current_release() == "2.jar"


def test_a_link_that_leads_nowhere_fails_the_launches_that_need_it(plans: Plans, tmp_path: Path) -> None:
    (tmp_path / "1.jar").unlink()
    unit = plans.unit(P)
    for attempt in (lambda: unit.launch(THIRD, {}), unit.hooks[HookName.PRE_START].commands):
        with pytest.raises(LaunchFailed) as failed:
            attempt()
        assert failed.value.stage is LaunchStage.RELEASE
        assert failed.value.reason.startswith("the current release 1.jar is missing: ")
    assert unit.lacking() == failed.value.reason
    assert unit.hooks[HookName.PRE_STOP].commands() == (("stop", "8001"),), "which needs none"
    assert plans.current_release() is None


def test_a_release_that_was_installed_is_verified_at_each_launch(plans: Plans, tmp_path: Path) -> None:
    assert plans.unit(P).launch(THIRD, {}).spec.verify == (), "nothing is known of it"
    knowing = replace(plans, checksum_of={"1.jar": "sha256:1", "2.jar": "sha256:2"}.get)
    release = str(tmp_path / "1.jar")
    assert knowing.unit(P).launch(THIRD, {}).spec.verify == ((release, "sha256:1"),)
    assert hook_spec(knowing.unit(P).launch(THIRD, {}).spec, ("true",)).verify == ()


HELD = HeldBack("0.jar", "deploy of 2 is under way")
STUCK = HeldBack("0.jar", "deploy of 2 could not be taken back", only_from="1.jar")


@pytest.mark.parametrize("word", ["{release}", "{current}"])
@pytest.mark.parametrize("held", [HELD, STUCK])
def test_an_instance_that_is_held_back_gets_what_was_there_before(tmp_path: Path, word: str, held: HeldBack) -> None:
    (tmp_path / "0.jar").touch()
    plans = replace(plans_that_get(word, tmp_path), held_back={P: held}.get, checksum_of={"0.jar": "sha256:0"}.get)
    former = str(tmp_path / "0.jar")
    planned = plans.unit(P).launch(THIRD, {})
    assert (planned.release, planned.spec.command[1], planned.spec.verify) == (
        "0.jar",
        former,
        ((former, "sha256:0"),),
    )
    other = plans.unit(B).launch(THIRD, {})
    assert (other.release, other.spec.command[1]) == (
        "1.jar",
        str(tmp_path / {"{release}": "1.jar", "{current}": "current.jar"}[word]),
    )


def test_what_a_rollout_has_left_holds_only_while_the_link_names_it(tmp_path: Path) -> None:
    for name in ("0.jar", "2.jar"):
        (tmp_path / name).touch()
    plans = replace(plans_that_get("{release}", tmp_path), held_back={P: STUCK}.get)
    (tmp_path / "current.jar").unlink()
    (tmp_path / "current.jar").symlink_to("2.jar")
    assert plans.unit(P).launch(THIRD, {}).release == "2.jar"


@pytest.mark.parametrize("word", ["{release}", "{current}"])
def test_an_instance_that_is_held_back_from_the_first_release_waits(tmp_path: Path, word: str) -> None:
    plans = replace(plans_that_get(word, tmp_path), held_back={P: replace(HELD, release=None)}.get)
    assert plans.unit(P).lacking() == "no release that is approved: deploy of 2 is under way"
    assert plans.unit(B).lacking() is None


def test_an_instance_that_gets_the_link_needs_what_it_names(tmp_path: Path) -> None:
    plans = plans_that_get("{current}", tmp_path)
    (tmp_path / "current.jar").unlink()
    assert plans.unit(P).lacking() == "no release: clojarsctl deploy TAG"


def test_a_file_elsewhere_with_the_name_of_a_release_is_none(plans: Plans, tmp_path: Path) -> None:
    knowing = replace(plans, checksum_of={"1.jar": "sha256:1"}.get)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jar").write_text("")
    (tmp_path / "current.jar").unlink()
    (tmp_path / "current.jar").symlink_to("elsewhere/1.jar")
    planned = knowing.unit(P).launch(THIRD, {})
    assert (planned.release, planned.spec.verify) == ("1.jar", ())


def test_a_release_that_cannot_be_read_now_is_not_lacking(plans: Plans, tmp_path: Path) -> None:
    """It may be readable soon: the launch fails, and is tried again."""
    (tmp_path / "current.jar").unlink()
    assert plans.unit(P).lacking() == "no release: clojarsctl deploy TAG"
    (tmp_path / "current.jar").symlink_to("current.jar")
    assert plans.unit(P).lacking() is None
    with pytest.raises(LaunchFailed) as failed:
        plans.unit(P).launch(THIRD, {})
    assert failed.value.stage is LaunchStage.LINK


@pytest.mark.parametrize("hook", ["pre_start", "post_start", "pre_stop", "post_stop"])
def test_a_start_needs_the_release_of_the_hooks_without_which_it_fails(hook: str, tmp_path: Path) -> None:
    text = LEAST.replace('command = ["serve"]', f'command = ["serve"]\n{hook} = [["unpack", "{{release}}"]]')
    plans = plans_of(text + RICH[RICH.index("[deploy]") :].replace("RELEASES", str(tmp_path)))
    needs = hook in ("pre_start", "post_start")
    assert (plans.unit(P).lacking() is not None) == needs


def test_a_launch_without_a_release_names_none() -> None:
    plans = plans_of(LEAST)
    assert plans.unit(P).lacking() is None
    assert (plans.unit(P).launch(THIRD, {}).release, plans.current_release()) == (None, None)


# Hooks.


def test_commands_of_hooks_have_every_placeholder_replaced(plans: Plans, tmp_path: Path) -> None:
    hooks = plans.unit(P).hooks
    assert {hook.value: plan.commands() for hook, plan in hooks.items()} == {
        "pre_start": (("pre", str(tmp_path / "1.jar"), "8001"), ("pre2", "/var/log/demo")),
        "post_start": (("post", "8101"),),
        "pre_stop": (("stop", "8001"),),
        "post_stop": (("gone", "first"), ("gone2",), ("gone3",)),
    }
    assert {hook.value: plan.timeout for hook, plan in hooks.items()} == {
        "pre_start": 40.0,
        "post_start": 40.0,
        "pre_stop": 7.0,
        "post_stop": 7.0,
    }
    assert set(plans.unit(B).hooks) == set(HookName) - {HookName.PRE_STOP}


def test_hooks_of_a_process_get_the_ports_that_it_was_launched_with(plans: Plans) -> None:
    """A port that has come since is that of the settings; the next process, and so pre_start, gets only those."""
    hooks = plans.unit(P, lambda: InForce("127.0.0.1", {"http": 7001})).hooks
    assert hooks[HookName.PRE_STOP].commands() == (("stop", "7001"),)
    assert hooks[HookName.POST_START].commands() == (("post", "8101"),)
    assert hooks[HookName.PRE_START].commands()[0][2] == "8001"


# Checks.


async def test_checks_are_asked_as_the_settings_say(plans: Plans) -> None:
    """Those that this version can make."""
    (check,) = plans.checks(P, plans.in_force(P))
    assert (check.kind, check.interval, check.rise, check.fall) == ("http", 3.0, 4, 5)
    assert await asked(plans, plans.in_force(P)) == [("http", 8001)]
    assert await asked(plans, plans.in_force(B), B) == [("http", 8002)]
    assert plans.unit(P).kinds == ("http",)


async def test_a_check_is_the_same_while_it_asks_the_same(plans: Plans) -> None:
    """However often, how long and with which numbers; so a reload keeps what is known of it."""
    identity = plans.unit(P).checks
    settings = plans.settings

    def other(**keys: object) -> tuple[str, ...]:
        checks = (settings.checks[0].model_copy(update=keys), settings.checks[1])
        return replace(plans, settings=settings.model_copy(update={"checks": checks})).unit(P).checks

    for same in ({"interval": 9.0}, {"timeout": 9.0}, {"rise": 9}, {"fall": 9}):
        assert other(**same) == identity
    for changed in ({"path": "/other"}, {"status": (204,)}, {"port": "nailgun"}):
        assert other(**changed) != identity


async def test_without_a_check_that_can_be_made_each_port_for_clients_is_asked(plans: Plans) -> None:
    checks = plans.settings.checks[1:]
    only_nailgun = replace(plans, settings=plans.settings.model_copy(update={"checks": checks}))
    assert await asked(only_nailgun, plans.in_force(P)) == [("tcp", 8001), ("tcp", 8101)]
    assert only_nailgun.unit(P).kinds == ("tcp", "tcp")


async def test_without_frontends_either_every_port_is_asked(plans: Plans) -> None:
    update = {"checks": plans.settings.checks[1:], "frontends": {}}
    bare = replace(plans, settings=plans.settings.model_copy(update=update))
    assert await asked(bare, plans.in_force(P)) == [("tcp", 8001), ("tcp", 8101)]
    assert bare.unit(P).kinds == ("tcp", "tcp")


TWO = LEAST.replace("8001", "8001, web = 9001").replace("8002", "8002, web = 9002") + (
    '[[checks]]\nkind = "http"\nport = "web"\n[[checks]]\nkind = "tcp"\nport = "http"\n'
)


@pytest.mark.parametrize(
    ("in_force", "expected"),
    [
        (InForce("127.0.0.1", {"http": 8001, "web": 9001}), [("http", 9001), ("tcp", 8001)]),
        (InForce("127.0.0.1", {"http": 71, "web": 91}), [("http", 91), ("tcp", 71)]),
        (InForce("127.0.0.1", {"http": 71}), [("tcp", 71)]),
        (InForce("127.0.0.1", {"other": 9001}), [("http", 9001)]),
        (InForce("127.0.0.1", {"a": 71, "b": 72}), [("tcp", 71), ("tcp", 72)] * 2),
    ],
    ids=["launched so", "other numbers", "without one port", "a renamed port", "without any"],
)
async def test_a_process_is_asked_what_it_can_be_asked(in_force: InForce, expected: list[tuple[str, int]]) -> None:
    """The checks are as many as those of the unit, in the same order, whatever the process was launched with."""
    plans = plans_of(TWO)
    assert await asked(plans, in_force) == expected
    checks = plans.checks(P, in_force)
    assert tuple(check.kind for check in checks) == plans.unit(P).kinds
    assert len(checks) == len(plans.unit(P).checks)


async def test_a_port_that_is_silent_fails_the_checks_that_cannot_be_made() -> None:
    plans = plans_of(TWO)
    assert isinstance(plans.prober, FakeProber)
    plans.prober.failing.add(71)
    first, _ = plans.checks(P, InForce("127.0.0.1", {"a": 71, "b": 72}))
    result = await first.ask()
    assert (result.passed, result.text) == (False, "tcp 127.0.0.1:71")
    assert plans.prober.asked == [("tcp", Address("127.0.0.1", 71))]


async def test_a_check_that_waits_for_the_next_process_says_so() -> None:
    first, _ = plans_of(TWO).checks(P, InForce("127.0.0.1", {"http": 71}))
    assert await first.ask() == Result(True, "asked from the next start on", 0.0)


# Frontends.


def test_every_key_of_a_frontend_is_in_its_plan(plans: Plans) -> None:
    both = {role: plans.in_force(role) for role in Role}
    seen = plans.frontends(both)
    assert list(seen) == ["http", "nailgun"]
    http, nailgun = seen["http"], seen["nailgun"]
    assert (http.name, http.listen) == ("http", (Address("127.0.0.1", 8080), Address("::1", 8080)))
    assert http.backends == {P: Address("127.0.0.1", 8001), B: Address("::1", 8002)}
    assert (http.connect_timeout, http.hold, http.hold_connections) == (4.0, 11.0, 12)
    assert (http.drain, http.drain_idle, http.failback) == (13.0, 1.0, 14.0)
    assert (http.movable, http.quickack) == (True, False)
    assert (http.mode, http.mode_reason) == ("auto", None)
    assert (http.cuts_on_down, http.moves_on_up) == (True, True)
    assert (nailgun.cuts_on_down, nailgun.moves_on_up) == (False, False)
    assert http.needs_relay == ("proxy_protocol", "idle_timeout", "access_log")
    assert (nailgun.mode, nailgun.needs_relay) == ("relay", ("quickack",))
    assert (http.proxy_protocol, http.access_log) == (True, True)
    assert (http.idle_timeout, http.half_closed_timeout) == (7200.0, None)
    assert (nailgun.proxy_protocol, nailgun.idle_timeout, nailgun.half_closed_timeout) == (False, None, 3600)
    assert (http.source, nailgun.access_log, http.others) == (None, False, {})
    assert nailgun.backends == {P: Address("127.0.0.1", 8101), B: Address("::1", 8102)}
    assert (nailgun.movable, nailgun.quickack, nailgun.mode_reason) == (False, True, None)


@pytest.mark.parametrize(
    ("in_force", "backend"),
    [
        (InForce("127.0.0.1", {"http": 71, "nailgun": 72}), Address("127.0.0.1", 71)),
        (InForce("127.0.0.2", {"http": 8001}), Address("127.0.0.2", 8001)),
        (InForce("127.0.0.1", {"old": 71}), Address("127.0.0.1", 8001)),
        (InForce("127.0.0.1", {"old": 8001}), Address("127.0.0.1", 8001)),
    ],
    ids=["another number", "another host", "no such port", "a renamed port"],
)
def test_a_frontend_stands_before_the_process_there_is(plans: Plans, in_force: InForce, backend: Address) -> None:
    seen = plans.frontends({P: in_force, B: plans.in_force(B)})["http"]
    assert seen.backends == {P: backend, B: Address("::1", 8002)}


def test_a_host_by_name_is_looked_up_and_one_that_is_not_there_is_said(plans: Plans) -> None:
    both = {role: plans.in_force(role) for role in Role}
    seen = plans.frontends({**both, P: replace(both[P], host="localhost")})
    assert seen["http"].backends[P] == Address("127.0.0.1", 8001)
    impossible = 64 * "x"  # longer than a label may be, so that no name server is asked
    with pytest.raises(Failed, match=f"^cannot find the host of {impossible}:8001: "):
        plans.frontends({**both, P: replace(both[P], host=impossible)})


ON_SOCKETS = """
[app]
command = ["serve", "{socket.http}"]
pre_stop = [["tell", "{socket.http}"]]
[instances.primary]
ports = {}
sockets = { http = "/run/a.sock" }
[instances.backup]
ports = { http = 8002 }
sockets = { extra = "/run/b.sock" }
[frontends.http]
listen = "127.0.0.1:8080"
port = "http"
source = "127.0.0.2"
proxy_protocol = true
"""


def test_a_frontend_may_stand_before_a_unix_socket_and_a_port() -> None:
    plans = plans_of(ON_SOCKETS.replace("{socket.http}", "x"))
    seen = plans.frontends({role: plans.in_force(role) for role in Role})["http"]
    assert seen.backends == {P: UnixAddress("/run/a.sock"), B: Address("127.0.0.1", 8002)}
    assert (seen.source, seen.others) == ("127.0.0.2", {})


def test_an_instance_is_told_its_socket_and_its_hooks_that_of_its_process() -> None:
    text = ON_SOCKETS.replace("ports = { http = 8002 }\nsockets = { extra", "ports = {}\nsockets = { http")
    plans = plans_of(text.replace('source = "127.0.0.2"', ""))
    spec = plans.unit(P).launch(THIRD, {}).spec
    assert (spec.command, spec.ports) == (("serve", "/run/a.sock"), {})
    bound = InForce("127.0.0.1", {}, sockets={"http": "/run/before.sock"})
    assert plans.unit(P, lambda: bound).hooks[HookName.PRE_STOP].commands() == (("tell", "/run/before.sock"),)


async def test_sockets_are_checked_and_told_that_a_check_is_no_client() -> None:
    plans = plans_of(ON_SOCKETS.replace("{socket.http}", "x"))
    (check,) = plans.checks(P, plans.in_force(P))
    assert (await check.ask()).passed
    (check,) = plans.checks(B, plans.in_force(B))
    assert (await check.ask()).passed
    assert isinstance(plans.prober, FakeProber)
    assert plans.prober.asked_paths == [("tcp", "/run/a.sock")]
    assert plans.prober.asked == [("tcp", Address("127.0.0.1", 8002))]
    assert plans.prober.announced == [True, True]


NEVER = 'host = "a.example"\nresolve = "never"'


@pytest.mark.parametrize(
    ("primary", "backup", "hosts", "pause"),
    [
        ("", "", set(), None),
        ('host = "a.example"', "", {"a.example"}, 30.0),
        (NEVER, 'host = "b.example"\nresolve = "5s"', {"a.example", "b.example"}, 5.0),
        (NEVER, 'host = "::1"\nresolve = "5s"', {"a.example"}, None),
    ],
)
def test_names_are_looked_up_as_often_as_the_settings_say(
    primary: str, backup: str, hosts: set[str], pause: float | None
) -> None:
    text = LEAST.replace("[instances.primary]", f"[instances.primary]\n{primary}")
    plans = plans_of(text.replace("[instances.backup]", f"[instances.backup]\n{backup}"))
    assert plans.named_hosts({role: plans.in_force(role) for role in Role}) == (frozenset(hosts), pause)


async def test_checks_go_where_a_name_led_last_and_try_each_address() -> None:
    """A name service that fails takes no instance down."""
    plans = plans_of(NAMED)
    plans.names._found["a.example"] = ("127.0.0.2", "127.0.0.3")
    assert isinstance(plans.prober, FakeProber)
    http, tcp = plans.checks(P, plans.in_force(P))
    assert (await http.ask()).passed
    assert (await tcp.ask()).passed
    plans.prober.failing.add(8001)
    assert not (await http.ask()).passed
    first, second = Address("127.0.0.2", 8001), Address("127.0.0.3", 8001)
    assert plans.prober.asked == [("http", first), ("tcp", first), ("http", first), ("http", second)]
    assert plans.prober.hosts == ["a.example:8001"] * 3


async def test_a_check_looks_a_name_up_itself_that_was_never_found() -> None:
    plans = plans_of(NAMED)
    assert isinstance(plans.prober, FakeProber)
    http, _ = plans.checks(P, plans.in_force(P))
    assert (await http.ask()).passed
    assert plans.prober.asked == [("http", Address("a.example", 8001))]
    assert plans.prober.hosts == [None]


NAMED = f"""{LEAST.replace("[instances.primary]", "[instances.primary]" + chr(10) + 'host = "a.example"')}
[[checks]]
kind = "http"
port = "http"
[[checks]]
kind = "tcp"
port = "http"
"""
