"""A reload reaches every part, or none: what is told to whom, in which order, and when."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core.errors import BadSettings, Failed, Refused
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.health import Result
from clojarsd.core.history import EventName
from clojarsd.core.launch import LaunchSpec, World
from clojarsd.core.names import Address, Backend, Health, HookName, Role, UnitState
from clojarsd.core.saved import InForce, SavedInstance
from clojarsd.core.settings import Settings
from clojarsd.core.unit_events import Restart, Start
from clojarsd.runtime import configuration
from clojarsd.runtime.configuration import Configuration
from clojarsd.runtime.health_watch import HealthWatch, PlannedCheck
from clojarsd.runtime.plans import Plans
from clojarsd.runtime.unit_parts import LaunchReports, Plan
from clojarsd.runtime.unit_runner import UnitRunner
from clojarsd.system.probe import Prober
from clojarsd.system.settings_file import read_settings
from clojarsd.system.world import foreign_sources
from tests.support.units import LONG, TERMED, FakeProcess, FakeWarmer, Units
from tests.support.waiting import PATIENCE, until

P, B = Role.PRIMARY, Role.BACKUP
WORLD = World({"PATH": "/usr/bin:/bin", "USER": "old"}, becomes_user=False, soft_nofile=1024)
FIRST = {
    "service": 'name = "demo"\nuser = "old"\n',
    "app": 'command = ["serve", "{port.http}"]\nenvironment = { ROLE = "{role}", TOKEN = "s3cr3t" }\n'
    'restart_delay = "1h"\nrestart_max_delay = "1h"\nstart_timeout = "1h"\nstop_timeout = "1h"\n',
    "instances.primary": "ports = { http = 8001 }\n",
    "instances.backup": "ports = { http = 8002 }\n",
    "frontends.http": 'listen = "127.0.0.1:8080"\nport = "http"\n',
    "checks": 'kind = "tcp"\nport = "http"\ninterval = "20ms"\n',
}


def text(**other: str) -> str:
    """The first configuration with these tables instead; `__` in a name is a dot."""
    tables = {**FIRST, **{name.replace("__", "."): table for name, table in other.items()}}
    return "".join(
        f"[[{name}]]\n{table}" if name == "checks" else f"[{name}]\n{table}" for name, table in tables.items()
    )


class FakeFrontends:
    """Has what it was told last. `refusal`: why it cannot; `gate`: what it waits for first."""

    def __init__(self, deeds: list[str]) -> None:
        self.plans: dict[str, FrontendPlan] = {}
        self.told: list[dict[str, FrontendPlan]] = []
        self.refusal: Failed | None = None
        self.gate: asyncio.Event | None = None
        self.waiting = 0
        self.workers: int | None = None
        self._deeds = deeds

    async def configure(self, plans: Iterable[FrontendPlan], workers: int | None = None) -> None:
        wanted = {plan.name: plan for plan in plans}
        self.workers = workers
        if self.gate is not None:
            self.waiting += 1
            await self.gate.wait()
            self.waiting -= 1
        if self.refusal is not None:
            raise self.refusal
        self._deeds.append("frontends")
        self.told.append(wanted)
        self.plans = wanted

    def backend(self, role: Role, name: str = "http") -> int:
        backend = self.plans[name].backends[role]
        assert isinstance(backend, Address)
        return backend.port


class FakeProber(Prober):
    """Asks nobody, and remembers who would have been asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Address]] = []
        self.failing: set[int] = set()

    async def http(self, check: Any, address: Backend, *, announced: bool = False, host: str | None = None) -> Result:
        return self._answer("http", address)

    async def tcp(self, check: Any, address: Backend, *, announced: bool = False) -> Result:
        return self._answer("tcp", address)

    def _answer(self, kind: str, address: Backend) -> Result:
        assert isinstance(address, Address)
        self.asked.append((kind, address))
        return Result(address.port not in self.failing, f"{kind} {address}", 0.001)


class Watch(HealthWatch):
    """A real watch that also says when it is told something."""

    def __init__(self, role: Role, checks: Sequence[PlannedCheck], unit: UnitRunner, deeds: list[str]) -> None:
        super().__init__(role, checks, unit)
        self.planned = tuple(checks)
        self._role_name = role.value
        self._deeds = deeds

    def replan(self, checks: Sequence[PlannedCheck]) -> None:
        self._deeds.append(f"{self._role_name} watch")
        self.planned = tuple(checks)
        super().replan(checks)


class Runner(UnitRunner):
    """A real runner that also says when it is told something."""

    replanned: Callable[[Role], None]
    planned: Plan

    def replan(self, plan: Plan) -> None:
        self.replanned(self.role)
        self.planned = plan
        super().replan(plan)


class Room:
    """Real settings, plans, runners and watches; processes and frontends are fakes."""

    def __init__(
        self, file: Path, *, before: dict[Role, SavedInstance] | None = None, running: Sequence[int] = ()
    ) -> None:
        self.file = file
        self.prober = FakeProber()
        self.world_seen: list[str] = []
        self.look_fails: Failed | None = None
        self.units = Units(running=running)
        self.deeds = self.units.deeds
        self.frontends = FakeFrontends(self.deeds)
        self.applied: list[Settings] = []
        self.reading = threading.Event()
        self.reads = 0
        self.reading.set()
        self.plans = Plans(read_settings(file), WORLD, self.prober)
        self.configuration = Configuration(file, self.plans, self.units.history, self.read, self.look, foreign_sources)
        around = replace(self.units.around, launch=self.launch, launched=self.launched)
        self.specs: dict[Role, LaunchSpec] = {}
        self.runners = {role: Runner(role, self.plans.unit(role), around) for role in Role}
        for runner in self.runners.values():
            runner.replanned = lambda role: self.deeds.append(f"{role.value} unit")
        in_force = {role: self.plans.in_force(role) for role in Role}
        self.watches = {
            role: Watch(role, self.plans.checks(role, in_force[role]), self.runners[role], self.deeds) for role in Role
        }
        self.configuration.attach(self.runners, self.watches, self.frontends, self.apply)
        for role in Role:
            self.runners[role].attach(self.watches[role], FakeWarmer(role, self.deeds), (before or {}).get(role))
        self.deeds.clear()

    def read(self, path: Path) -> Settings:
        self.reads += 1
        assert self.reading.wait(PATIENCE)
        return read_settings(path)

    def look(self, user: str) -> World:
        if self.look_fails is not None:
            raise self.look_fails
        self.world_seen.append(user)
        return World({"PATH": "/bin", "USER": user}, becomes_user=False, soft_nofile=999_999)

    def apply(self, settings: Settings) -> None:
        self.deeds.append("others")
        self.applied.append(settings)

    def launched(self, role: Role) -> None:
        self.configuration.launched(role)

    def launch(self, spec: LaunchSpec, make_events: Callable[[int], LaunchReports]) -> FakeProcess:
        process = self.units._launch(spec, make_events)
        self.specs[Role(spec.environment["ROLE"])] = spec
        return process

    async def up(self, *roles: Role) -> None:
        """Launch, and wait until its own checks have found it ready."""
        for role in roles:
            self.runners[role].order(Start(), "root")
            self.units.execute(role)
            await self.ready(role)
        self.deeds.clear()
        self.units.history.events.clear()

    async def ready(self, role: Role) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.units.board.until(lambda view: view.instances[role].is_eligible)

    async def renewed(self, role: Role, hooks: Sequence[HookName] = ()) -> None:
        """Restart it, until the next process serves; these hooks run, and succeed."""
        self.units.traffic.calls_back_at_once = True
        self.runners[role].order(Restart(), "root")
        if HookName.PRE_STOP in hooks:
            self.units.hooks[-1].on_end(None)
        self.units.exit(role, TERMED)
        if HookName.PRE_START in hooks:
            self.units.hooks[-1].on_end(None)
        self.units.execute(role)
        await self.ready(role)

    def write(self, **other: str) -> None:
        self.file.write_text(text(**other))

    def picture(self) -> dict[str, Any]:
        """Everything that a refused reload must leave alone."""
        return {
            "toml": self.configuration.show_toml(),
            "json": self.configuration.show(),
            "plans": id(self.configuration.plans),
            "status": {role: {**self.units.seen(role).as_json(), "checks": None} for role in Role},
            "watches": {role: id(self.watches[role].planned) for role in Role},
            "frontends": dict(self.frontends.plans),
            "applied": len(self.applied),
            "history": list(self.units.history.events),
            "deeds": list(self.deeds),
        }


@asynccontextmanager
async def living(room: Room) -> AsyncIterator[Room]:
    async with asyncio.TaskGroup() as group:
        jobs = (room.configuration.run(), *(watch.run() for watch in room.watches.values()))
        tasks = [group.create_task(job) for job in jobs]
        await room.frontends.configure(
            room.plans.frontends({role: room.runners[role].in_force for role in Role}).values()
        )
        try:
            yield room
            assert room.units.bugs == []
        finally:
            for runner in room.runners.values():
                runner.abandon()
            for task in tasks:
                task.cancel()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "clojarsd.toml"
    path.write_text(text())
    return path


@pytest.fixture
async def room(file: Path) -> AsyncIterator[Room]:
    async with living(Room(file)) as room:
        room.deeds.clear()
        yield room


async def settled(room: Room) -> None:
    """What has been begun by now is through: the lock is free, and the frontends have followed."""
    await until(lambda: not room.configuration._moved.is_set() and not room.configuration._changing.locked(), "rest")


# What a reload tells.


async def test_a_file_that_says_the_same_touches_nothing(room: Room) -> None:
    await room.up(P, B)
    await settled(room)
    before = room.picture()
    room.file.write_text("# another comment\n" + text())
    assert await room.configuration.reload("ann") == ("nothing has changed",)
    assert room.picture() == before


async def test_frontends_are_first_and_all_others_only_follow(room: Room) -> None:
    """What can fail is done before anything has changed."""
    await room.up(P, B)
    await settled(room)
    room.deeds.clear()
    room.write(frontends__http='listen = "127.0.0.1:8081"\nport = "http"\nhold = "7s"\n')
    sentences = await room.configuration.reload("ann")
    told = [deed for deed in room.deeds if "checks" not in deed]
    assert told == ["frontends", "primary watch", "primary unit", "backup watch", "backup unit", "others"]
    assert list(sentences) == [
        'frontends.http.listen: "127.0.0.1:8081" instead of "127.0.0.1:8080"',
        'frontends.http.hold: "7s" instead of "30s"',
    ]
    plan = room.frontends.plans["http"]
    assert (plan.listen, plan.hold) == ((Address("127.0.0.1", 8081),), 7.0)
    assert room.applied == [room.configuration.plans.settings]


async def test_another_number_of_relay_processes_is_told_with_the_frontends(room: Room) -> None:
    room.write(service=FIRST["service"] + "relay_workers = 3\n")
    assert await room.configuration.reload("ann") == ("service.relay_workers: 3 instead of 1",)
    assert room.frontends.workers == 3


async def test_a_source_that_is_no_address_of_this_machine_is_told_when_it_comes(room: Room) -> None:
    """192.0.2.0/24 is nobody's: RFC 5737."""
    listen = 'listen = "127.0.0.1:8080"\nport = "http"\n'
    room.write(frontends__http=f'{listen}source = "192.0.2.7"\n')
    sentences = list(await room.configuration.reload("ann"))
    told = (
        "frontends.http.source: 192.0.2.7: cannot assign requested address;"
        " no instance can be connected to from there, so clients of this frontend wait"
    )
    assert sentences[1:] == [told]
    assert room.units.history.events[-1][4]["changes"] == sentences
    room.write(frontends__http=f'{listen}source = "192.0.2.7"\nhold = "7s"\n')
    assert told not in await room.configuration.reload("ann"), "it was told before"


async def test_a_reload_that_changes_no_check_keeps_what_is_known_of_instances(room: Room) -> None:
    await room.up(P, B)
    pids = [room.units.seen(role).pid for role in Role]
    room.write(app=FIRST["app"] + "nice = 3\n")
    await room.configuration.reload("ann")
    assert [room.units.seen(role).pid for role in Role] == pids
    assert all(room.units.seen(role).is_eligible for role in Role)
    assert "not eligible" not in " ".join(room.deeds)


async def test_the_history_has_one_event_and_who_asked_for_it(room: Room) -> None:
    await room.up(P)
    room.write(app=FIRST["app"] + 'nice = 3\nrestart_reset = "9s"\n')
    await room.configuration.refresh("ann")
    changes = [
        'app.restart_reset: "9s" instead of "1m"',
        "restart primary to use it: app.nice",
        "used at the next start of backup: app.nice",
    ]
    assert room.units.history.events == [
        (EventName.CONFIG_RELOADED, "the configuration has changed", None, "ann", {"changes": changes})
    ]


async def test_secrets_are_shown_to_nobody(room: Room) -> None:
    room.write(app=FIRST["app"].replace("s3cr3t", "n3w3r"))
    sentences = await room.configuration.reload("ann")
    shown = f"{room.configuration.show()} {room.configuration.show_toml()} {sentences} {room.units.history.events}"
    assert "s3cr3t" not in shown
    assert "n3w3r" not in shown
    assert room.configuration.show()["instances"]["primary"]["environment"] == {"ROLE": "***", "TOKEN": "***"}
    assert 'TOKEN = "***"' in room.configuration.show_toml()
    assert room.configuration.plans.settings.instances[P].environment["TOKEN"] == "n3w3r"


# What a reload that cannot be leaves alone.

BAD = {
    "not TOML": ("[service\n", r"^cannot reload: .*line 1.*; nothing was changed$"),
    "two problems": (
        text(app='command = ["serve"]\nnice = 99\numask = "9"\n'),
        r"^cannot reload: .*app\.umask.*; .*app\.nice.*; nothing was changed$|"
        r"^cannot reload: .*app\.nice.*; .*app\.umask.*; nothing was changed$",
    ),
    "another place for the state": (
        text(service='name = "demo"\nuser = "old"\nstate_dir = "/elsewhere"\n', app=FIRST["app"] + "nice = 1\n"),
        r"^cannot reload: service\.state_dir needs a restart of the daemon; nothing was changed$",
    ),
    "a port that a process has": (
        text(
            instances__primary="ports = { http = 8011 }\n",
            frontends__http='listen = "127.0.0.1:8001"\nport = "http"\n',
        ),
        r"^cannot reload: frontends\.http\.listen: 127\.0\.0\.1:8001 is in use by primary until its next start;"
        r" nothing was changed$",
    ),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=list(BAD))
async def test_what_cannot_be_taken_over_changes_nothing(room: Room, content: str, message: str) -> None:
    await room.up(P, B)
    await settled(room)
    before = room.picture()
    room.file.write_text(content)
    with pytest.raises(Refused, match=message):
        await room.configuration.reload("ann")
    assert room.picture() == before


async def test_what_the_owner_says_stands_against_it(room: Room) -> None:
    before = room.picture()
    room.write(app=FIRST["app"] + "nice = 3\n")
    seen = []

    def why_not(old: Settings, new: Settings) -> str | None:
        seen.append((old.instances[P].nice, new.instances[P].nice))
        return "cannot reload: a deploy is under way" if len(seen) == 1 else None

    room.configuration.why_not = why_not
    with pytest.raises(Refused, match=r"^cannot reload: a deploy is under way$"):
        await room.configuration.reload("ann")
    assert room.picture() == before
    assert len(await room.configuration.reload("ann")) == 1
    assert seen == [(0, 3)] * 2


async def test_a_file_that_has_gone_changes_nothing(room: Room) -> None:
    before = room.picture()
    room.file.unlink()
    with pytest.raises(Refused, match=r"no such file .*; nothing was changed$") as refused:
        await room.configuration.reload("ann")
    assert isinstance(refused.value.__cause__, BadSettings)
    assert room.picture() == before


async def test_an_address_that_cannot_be_had_changes_nothing(room: Room) -> None:
    await room.up(P, B)
    await settled(room)
    before = room.picture()
    room.write(app=FIRST["app"] + "nice = 3\n", frontends__http='listen = "127.0.0.1:8081"\nport = "http"\n')
    room.frontends.refusal = Failed("cannot listen on 127.0.0.1:8081 for frontend http: address already in use")
    with pytest.raises(
        Refused,
        match=r"^cannot reload: cannot listen on 127\.0\.0\.1:8081 for frontend http: address already in use;"
        r" nothing was changed$",
    ):
        await room.configuration.reload("ann")
    assert room.picture() == before
    room.frontends.refusal = None
    assert len(await room.configuration.reload("ann")) == 2, "what was refused is new at the next attempt"


# Ports.


async def test_other_ports_wait_for_the_next_process_and_are_followed_at_its_launch(room: Room) -> None:
    await room.up(P, B)
    room.write(instances__primary="ports = { http = 8011 }\n")
    assert await room.configuration.reload("ann") == ("restart primary to use it: instances.primary.ports.http",)
    await settled(room)
    assert (room.frontends.backend(P), room.units.seen(P).ports) == (8001, {"http": 8001})
    room.prober.asked.clear()
    room.watches[P].hurry()
    await until(lambda: room.prober.asked, "a check")
    assert {address.port for _, address in room.prober.asked} <= {8001, 8002}
    await room.renewed(P)
    await settled(room)
    assert (room.frontends.backend(P), room.frontends.backend(B)) == (8011, 8002)
    assert room.units.seen(P).ports == {"http": 8011}
    assert room.specs[P].command == ("serve", "8011")
    assert ("tcp", Address("127.0.0.1", 8011)) in room.prober.asked


async def test_the_frontends_know_the_new_port_before_the_process_can_be_ready(room: Room) -> None:
    await room.up(P, B)
    room.write(instances__primary="ports = { http = 8011 }\n")
    await room.configuration.reload("ann")
    room.deeds.clear()
    await room.renewed(P)
    assert room.deeds.index("frontends") < room.deeds.index("primary eligible")


async def test_an_instance_without_a_process_has_its_new_port_at_once(room: Room) -> None:
    """Nobody is connected to the old one, and its start need not wait for the frontends."""
    await room.up(P)
    room.write(instances__backup="ports = { http = 8012 }\n")
    assert await room.configuration.reload("ann") == ("used at the next start of backup: instances.backup.ports.http",)
    assert (room.frontends.backend(P), room.frontends.backend(B)) == (8001, 8012)
    assert room.units.seen(B).ports == {"http": 8012}


async def test_an_adopted_process_keeps_the_ports_that_it_was_launched_with(file: Path) -> None:
    async with living(Room(file)) as first:
        await first.up(P)
        saved = first.runners[P].saved()
    assert saved.process is not None
    assert saved.in_force == InForce("127.0.0.1", {"http": 8001})
    file.write_text(text(instances__primary="ports = { http = 8011 }\n"))
    before = {P: replace(saved, process=replace(saved.process, pid=901))}
    async with living(Room(file, before=before, running=[901])) as room:
        await settled(room)
        assert (room.frontends.backend(P), room.units.seen(P).ports) == (8001, {"http": 8001})
        assert room.units.seen(P).is_eligible
        await until(lambda: room.prober.asked, "a check")
        assert room.prober.asked[0][1].port == 8001
        await room.renewed(P)
        await settled(room)
        assert room.frontends.backend(P) == 8011


async def test_a_check_of_a_port_that_a_process_does_not_have_waits_for_the_next(room: Room) -> None:
    """Also when it comes first in the file: results are counted for the check that they are of."""
    await room.up(P, B)
    both = (
        'kind = "tcp"\nport = "other"\ninterval = "20ms"\n[[checks]]\nkind = "tcp"\nport = "http"\ninterval = "20ms"\n'
    )
    room.write(
        instances__primary="ports = { http = 8001, other = 9001 }\n",
        instances__backup="ports = { http = 8002, other = 9002 }\n",
        checks=both,
    )
    await room.configuration.reload("ann")
    room.prober.failing.add(8001)
    await until(lambda: not room.units.seen(P).is_eligible, "the failure of the check that can be made")
    assert [check.health for check in room.units.seen(P).checks] == [Health.UP, Health.DOWN]
    assert {address.port for _, address in room.prober.asked} == {8001, 8002}
    room.prober.failing.clear()
    await room.renewed(P)
    assert {address.port for _, address in room.prober.asked} == {8001, 8002, 9001}


async def test_where_no_check_can_be_made_the_ports_of_the_process_are_asked(room: Room) -> None:
    """Two ports where the settings have one check: nothing breaks, and a port that is silent is noticed."""
    ports = "ports = {{ http = {0}1, nailgun = {0}2 }}\n"
    room.write(instances__primary=ports.format(701), instances__backup=ports.format(702))
    await room.configuration.reload("ann")
    await room.up(P, B)
    room.write(
        instances__primary="ports = { web = 8001 }\n",
        instances__backup="ports = { web = 8002 }\n",
        app=FIRST["app"].replace("port.http", "port.web"),
        checks='kind = "http"\nport = "web"\ninterval = "20ms"\n',
        frontends__http='listen = "127.0.0.1:8080"\nport = "web"\n',
    )
    await room.configuration.reload("ann")
    room.prober.asked.clear()
    await until(lambda: ("tcp", Address("127.0.0.1", 7012)) in room.prober.asked, "a check")
    assert room.units.seen(P).is_eligible
    room.prober.failing.add(7012)
    await until(lambda: not room.units.seen(P).is_eligible, "the silent port")


async def test_a_reload_while_it_starts_does_not_keep_it_from_getting_ready(room: Room) -> None:
    room.runners[P].order(Start(), "root")
    room.units.execute(P)
    room.write(
        instances__primary="ports = { http = 8001, other = 9001 }\n",
        instances__backup="ports = { http = 8002, other = 9002 }\n",
        checks=FIRST["checks"] + '[[checks]]\nkind = "tcp"\nport = "other"\n',
    )
    await room.configuration.reload("ann")
    await room.ready(P)


# One after the other.


async def test_two_reloads_at_once_come_one_after_the_other(room: Room) -> None:
    """The second reads the file only when the first is through, so that it compares with what that has left."""
    room.reading.clear()
    room.write(app=FIRST["app"] + "nice = 1\n")
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        one = group.create_task(room.configuration.reload("ann"))
        other = group.create_task(room.configuration.reload("bob"))
        await until(lambda: room.reads == 1, "the first reading")
        room.reading.set()
    assert room.reads == 2
    assert (one.result(), other.result()) == (
        ("used at the next start of primary and backup: app.nice",),
        ("nothing has changed",),
    )
    assert [by for *_, by, _ in room.units.history.events] == ["ann"]


async def test_a_launch_during_a_reload_is_followed_when_that_is_through(room: Room) -> None:
    """The process was launched by the old settings, whatever the frontends were being told; the sentences know it."""
    await room.up(P)
    await settled(room)
    room.frontends.gate = asyncio.Event()
    room.write(instances__backup="ports = { http = 8012 }\n")
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        reload = group.create_task(room.configuration.reload("ann"))
        await until(lambda: room.frontends.waiting, "the reconfiguration")
        room.runners[B].order(Start(), "root")
        room.units.execute(B)
        room.frontends.gate.set()
    room.frontends.gate = None
    await settled(room)
    assert reload.result() == ("restart backup to use it: instances.backup.ports.http",)
    assert room.specs[B].command == ("serve", "8002")
    assert room.frontends.backend(B) == 8002
    await room.ready(B)
    assert {address.port for _, address in room.prober.asked} == {8001, 8002}


async def test_a_reload_waits_while_the_frontends_follow_a_launch(room: Room) -> None:
    await room.up(P)
    await settled(room)
    gate = room.frontends.gate = asyncio.Event()
    room.runners[B].order(Start(), "root")
    await until(lambda: room.frontends.waiting, "the reconfiguration")
    room.write(frontends__http='listen = "127.0.0.1:8081"\nport = "http"\n')
    reads = room.reads
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        group.create_task(room.configuration.reload("ann"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert room.reads == reads
        gate.set()
    await settled(room)
    assert room.frontends.plans["http"].listen == (Address("127.0.0.1", 8081),)


async def test_frontends_that_cannot_follow_do_not_end_the_daemon(room: Room) -> None:
    room.frontends.refusal = Failed("no such host")
    await room.up(P)
    await settled(room)
    room.frontends.refusal = None
    room.runners[B].order(Start(), "root")
    await settled(room)
    assert room.frontends.backend(B) == 8002


# Another user.


async def test_another_user_is_looked_up_and_used_at_the_next_start(room: Room) -> None:
    await room.up(P, B)
    room.write(service='name = "demo"\nuser = "new"\n')
    sentences = await room.configuration.reload("ann")
    assert "restart primary and backup to use it: service.user" in sentences
    assert room.world_seen == ["new"]
    assert room.configuration.plans.world == World({"PATH": "/bin", "USER": "new"}, False, WORLD.soft_nofile)
    assert room.specs[P].environment["USER"] == "old"
    await room.renewed(P)
    assert room.specs[P].environment["USER"] == "new"
    assert room.specs[P].soft_nofile == WORLD.soft_nofile, "the daemon's own limit is raised by now"


async def test_a_user_who_is_not_there_changes_nothing(room: Room) -> None:
    await room.up(P, B)
    await settled(room)
    before = room.picture()
    room.look_fails = Failed("no such user")
    room.write(service='name = "demo"\nuser = "new"\n')
    with pytest.raises(Refused, match=r"^cannot reload: no such user; nothing was changed$"):
        await room.configuration.reload("ann")
    assert room.picture() == before


async def test_the_same_user_is_not_looked_up_again(room: Room) -> None:
    room.write(app=FIRST["app"] + "nice = 1\n")
    await room.configuration.reload("ann")
    assert room.world_seen == []
    assert room.configuration.plans.world == WORLD


# Policies.


async def test_a_new_policy_holds_for_the_process_that_runs(room: Room) -> None:
    await room.up(P)
    room.write(app=FIRST["app"].replace('stop_timeout = "1h"', 'stop_timeout = "1h"\nstop_signal = "SIGINT"'))
    await room.configuration.reload("ann")
    room.units.traffic.calls_back_at_once = True
    room.runners[P].order(Restart(), "root")
    assert room.deeds[-1] == "primary signal 2"
    assert room.runners[P].unit.state is UnitState.STOPPING
    deadline = room.runners[P].unit.deadline
    assert deadline is not None
    assert deadline - asyncio.get_running_loop().time() == pytest.approx(LONG, abs=PATIENCE)


async def test_hooks_of_a_process_get_its_own_ports(room: Room) -> None:
    """The settings of a hook hold at once, and the port that it is to ask is that of the process."""
    await room.up(P)
    room.write(
        app=FIRST["app"] + 'pre_stop = [["say", "{port.http}"]]\npre_start = [["say", "{port.http}"]]\n',
        instances__primary="ports = { http = 8011 }\n",
    )
    await room.configuration.reload("ann")
    hooks = room.runners[P].planned.hooks
    assert {hook.value: plan.commands() for hook, plan in hooks.items()} == {
        "pre_stop": (("say", "8001"),),
        "pre_start": (("say", "8011"),),
    }
    await room.renewed(P, [HookName.PRE_STOP, HookName.PRE_START])
    assert hooks[HookName.PRE_STOP].commands() == (("say", "8011"),)


async def test_a_disk_that_hangs_holds_up_no_order_for_long(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By force a start goes on with what is in use, which it could not if it waited for the lock of a reload."""
    monkeypatch.setattr(configuration, "READ_TIMEOUT", 0.01)
    room = Room(file)
    room.reading.clear()
    sentence = f"cannot reload: {file}: it could not be read within 0.01 s; nothing was changed"
    for _ in range(2):
        with pytest.raises(Refused, match=f"^{re.escape(sentence)}$"):
            await room.configuration.reload("ann")
    room.reading.set()
    room.configuration.close()
    assert room.frontends.told == []
