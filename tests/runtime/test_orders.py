"""Orders over the pair: what is refused, what runs in turn, and what a watcher hears whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from clojarsd.core.api import Verb
from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.errors import Failed, LaunchFailed, Refused
from clojarsd.core.names import LaunchStage, Role, UnitState
from clojarsd.core.unit_events import Start, Stop
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.work import Work
from tests.support.units import BAD, CRASHED, GOOD, POLICY, TERMED, Units
from tests.support.waiting import PATIENCE, until

P, B = Role.PRIMARY, Role.BACKUP
BOTH = (B, P)


async def no_refresh(by: str) -> None:
    """The configuration is what it was."""


async def kept() -> None:
    """The disk is fast."""


@asynccontextmanager
async def taking(orders: Orders) -> AsyncIterator[None]:
    """Orders that can be given within the block."""
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        running = group.create_task(orders.run())
        await until(lambda: hasattr(orders, "_group"))
        yield
        running.cancel()


class Desk:
    """Orders over two lively units that both serve."""

    def __init__(self, units: Units, orders: Orders) -> None:
        self.units = units
        self.orders = orders

    def submit(self, verb: Verb, *roles: Role, force: bool = False, timeout: float | None = None) -> Work:
        return self.orders.submit(verb, roles, "root", force=force, timeout=timeout)

    async def all_serve(self) -> None:
        await self.units.board.until(lambda view: all(view.instances[role].is_eligible for role in Role))

    async def state(self, role: Role, state: UnitState) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.units.board.until(lambda view: view.instances[role].unit.state is state)

    async def stopped(self, role: Role) -> None:
        self.units.runners[role].order(Stop(), "test")
        await self.state(role, UnitState.STOPPED)

    def incarnations(self) -> dict[Role, int]:
        return {role: len(self.units.launched[role]) for role in Role}


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    units = Units()
    units.is_lively = units.traffic.calls_back_at_once = True
    orders = Orders(units.runners, units.board, lambda failures: 5.0, no_refresh, kept)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        running = group.create_task(orders.run())
        for role in Role:
            units.runners[role].order(Start(), "test")
        made = Desk(units, orders)
        await made.all_serve()
        yield made
        running.cancel()
    for runner in units.runners.values():
        runner.abandon()
    assert units.bugs == []


async def test_without_a_release_nothing_that_runs_is_ended(desk: Desk) -> None:
    """Not by force either: there would be nothing to start instead."""
    desk.units.lacking = "no release: clojarsctl deploy TAG"
    before = desk.incarnations()
    for roles, force in (((B,), False), ((P,), True), (BOTH, False)):
        with pytest.raises(Refused) as caught:
            desk.submit(Verb.RESTART, *roles, force=force)
        told = f"cannot restart {roles[0].value}: no release: clojarsctl deploy TAG; nothing was done"
        assert str(caught.value) == told
    assert await done(desk.submit(Verb.START, *BOTH)) == "backup is already up; primary is already up"
    assert desk.incarnations() == before
    await desk.stopped(B)
    with pytest.raises(Refused, match=r"^cannot start backup: no release: clojarsctl deploy TAG; nothing was done$"):
        desk.submit(Verb.START, *BOTH)
    desk.units.lacking = None
    assert await done(desk.submit(Verb.START, B)) == "backup is up"


async def test_a_release_that_goes_while_its_instance_is_ended_fails_the_restart(desk: Desk) -> None:
    work = desk.submit(Verb.RESTART, B)
    desk.units.lacking = "the current release 1.jar is missing: clojarsctl rollback, or clojarsctl deploy TAG"
    told = f"cannot restart backup: {desk.units.lacking}; primary still serves"
    assert await failure(work) == told
    assert desk.units.seen(B).unit.state is UnitState.STOPPED


async def messages(work: Work) -> list[str]:
    async with asyncio.timeout(PATIENCE):
        return [step.message async for step in work.steps()]


async def done(work: Work) -> str:
    async with asyncio.timeout(PATIENCE):
        return await work.result()


async def failure(work: Work) -> str:
    with pytest.raises(Failed) as caught:
        await done(work)
    return str(caught.value)


async def told(work: Work, message: str) -> None:
    """Return when that is the latest step."""
    await until(lambda: work._steps and work._steps[-1].message == message, message)


async def restart_by_hand(desk: Desk) -> Work:
    """A restart of the backup whose new process is only launched so far."""
    desk.units.is_lively = desk.units.traffic.calls_back_at_once = False
    work = desk.submit(Verb.RESTART, B)
    await told(work, "backup is to be restarted")
    desk.units.traffic.when_drained[B]()
    await told(work, "backup starts (process 102)")
    return work


STEPS = [
    "backup is to be restarted",
    "backup ends (process 101)",
    "backup starts (process 102)",
    "backup is ready",
]


async def test_a_restart_is_told_step_by_step(desk: Desk) -> None:
    work = await restart_by_hand(desk)
    desk.units.serve(B)
    assert [(step.role, step.message) async for step in work.steps()] == [(B, message) for message in STEPS]
    assert await done(work) == "backup is up"
    assert desk.incarnations() == {P: 1, B: 2}


async def test_steps_that_are_over_before_anybody_looks_are_told(desk: Desk) -> None:
    """On a machine that has much to do a process may end, and the next one begin, before the watcher gets its turn."""
    desk.units.is_lively = desk.units.traffic.calls_back_at_once = False
    desk.units.process(B).heed = lambda: desk.units.exit(B, TERMED)  # all in one turn of the loop
    work = desk.submit(Verb.RESTART, B)
    await told(work, "backup is to be restarted")
    desk.units.traffic.tallies[B] = DrainTally(cut=1, after=0.5, is_sooner=True)
    desk.units.traffic.when_drained[B]()
    desk.units.serve(B)
    assert await messages(work) == [
        "backup is to be restarted",
        "backup ends (process 101), and 1 of 1 connection was cut after 0.5 s (sooner than drain)",
        "backup starts (process 102)",
        "backup is ready",
    ]


async def test_restarts_of_both_in_one_turn_leave_one_to_serve(desk: Desk) -> None:
    """The second sees what the first has done already."""
    first = desk.submit(Verb.RESTART, P)
    with pytest.raises(Refused) as caught:
        desk.submit(Verb.RESTART, B)
    assert str(caught.value) == (
        "cannot restart backup: primary could not take over, it is stopping (an order to restart: SIGTERM sent);"
        " nothing was done; --force restarts all the same"
    )
    assert await done(first) == "primary is up"
    assert desk.incarnations() == {P: 2, B: 1}


async def test_restart_all_goes_one_by_one(desk: Desk) -> None:
    work = desk.submit(Verb.RESTART, *BOTH)
    worst: list[int] = []
    watching = asyncio.ensure_future(work.result())
    while not watching.done():
        worst.append(sum(desk.units.traffic.eligible.values()))
        await asyncio.sleep(0)
    assert watching.result() == "backup is up; primary is up"
    assert min(worst) == 1, "one of them serves at every moment"
    launches = [deed for deed in desk.units.deeds if deed.endswith("launch")]
    assert launches[2:] == ["backup launch", "primary launch"]


async def test_restart_all_stops_when_the_first_does_not_come_back(desk: Desk) -> None:
    desk.units.launch_fails = LaunchFailed(LaunchStage.EXECUTE, "java: no such command")
    text = await failure(desk.submit(Verb.RESTART, *BOTH))
    assert text.startswith(
        "cannot restart backup: cannot start backup: running its command: java: no such command; next try at "
    )
    assert text.endswith("; primary still serves")
    assert desk.incarnations() == {P: 1, B: 1}


async def test_restart_all_is_refused_when_the_first_could_not_stand_in_afterwards(desk: Desk) -> None:
    await done(desk.submit(Verb.DRAIN, B))
    with pytest.raises(Refused) as refused:
        desk.submit(Verb.RESTART, *BOTH)
    assert str(refused.value) == (
        "cannot restart primary after backup: backup is out of rotation and could not take over; nothing was done;"
        " --force restarts all the same"
    )
    assert desk.incarnations() == {P: 1, B: 1}


async def test_restart_all_says_what_was_done_when_the_second_is_refused(desk: Desk) -> None:
    """The backup is taken out of rotation while it is restarted, and so cannot stand in for the primary."""
    desk.units.is_lively = False
    work = desk.submit(Verb.RESTART, *BOTH)
    await desk.state(B, UnitState.STARTING)
    desk.submit(Verb.DRAIN, B)
    desk.units.serve(B)
    assert await failure(work) == (
        "cannot restart primary: backup could not take over, it is draining"
        " (out of rotation by order; `clojarsctl undrain backup` brings it back);"
        " backup was restarted, primary was left as it is; --force restarts all the same"
    )
    assert desk.incarnations() == {P: 1, B: 2}


async def test_restart_all_under_way_does_not_start_what_the_daemon_stops(desk: Desk) -> None:
    desk.units.is_lively = False
    work = desk.submit(Verb.RESTART, *BOTH)
    await desk.state(B, UnitState.STARTING)
    desk.orders.refuse("clojarsd is stopping")
    await desk.stopped(P)
    desk.units.serve(B)
    assert await failure(work) == "cannot restart primary: clojarsd is stopping; backup was restarted"
    assert desk.units.seen(P).unit.state is UnitState.STOPPED


async def test_stop_all_and_start_all(desk: Desk) -> None:
    assert await done(desk.submit(Verb.STOP, *BOTH)) == "backup is stopped; primary is stopped"
    assert await done(desk.submit(Verb.STOP, *BOTH)) == "backup is already stopped; primary is already stopped"
    desk.units.runners[B].order(Start(), "test")
    await desk.state(B, UnitState.READY)
    assert await done(desk.submit(Verb.START, *BOTH)) == "backup is up; primary is up"
    assert await done(desk.submit(Verb.START, *BOTH)) == "backup is already up; primary is already up"
    assert desk.incarnations() == {P: 2, B: 2}


async def test_what_holds_already_succeeds_and_has_no_steps(desk: Desk) -> None:
    work = desk.submit(Verb.UNDRAIN, P)
    assert await messages(work) == []
    assert await done(work) == "primary is already in rotation"


async def test_a_drain_waits_for_the_last_connection(desk: Desk) -> None:
    desk.units.traffic.calls_back_at_once = False
    desk.units.traffic.connections = 1
    work = desk.submit(Verb.DRAIN, P)
    ended = asyncio.ensure_future(work.result())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not ended.done()
    desk.units.traffic.connections = 0
    desk.units.traffic.when_drained[P]()
    assert await ended == "primary is out of rotation and has no connections left"
    assert await done(desk.submit(Verb.UNDRAIN, P)) == "primary gets connections again"


async def test_a_drain_that_does_not_fit_is_refused(desk: Desk) -> None:
    await desk.stopped(P)
    with pytest.raises(Refused, match=r"^cannot drain primary: it is stopped$"):
        desk.submit(Verb.DRAIN, P)


async def test_a_later_order_supersedes_an_earlier_one(desk: Desk) -> None:
    """Each watcher of an earlier order gets a sentence, also when all came in one turn."""
    desk.units.traffic.calls_back_at_once = False
    restart = desk.submit(Verb.RESTART, P)
    stop = desk.submit(Verb.STOP, P)
    start = desk.submit(Verb.START, P)
    assert await failure(restart) == (
        "cannot restart primary: primary was told to stop and to start meanwhile, and runs on;"
        " primary and backup still serve"
    )
    assert await failure(stop) == (
        "cannot stop primary: primary was told to start meanwhile; primary and backup still serve"
    )
    assert await done(start) == "primary is up"


async def test_a_stop_calls_a_restart_off(desk: Desk) -> None:
    desk.units.traffic.calls_back_at_once = False
    restart = desk.submit(Verb.RESTART, P)
    stop = desk.submit(Verb.STOP, P)
    assert await failure(restart) == ("cannot restart primary: primary was told to stop meanwhile; backup still serves")
    desk.units.traffic.when_drained[P]()
    assert await done(stop) == "primary is stopped"


async def test_a_restarted_process_that_crashes_at_its_start_is_not_waited_for(desk: Desk) -> None:
    desk.units.is_lively = False
    work = desk.submit(Verb.RESTART, B)
    await desk.state(B, UnitState.STARTING)
    desk.units.exit(B, CRASHED)
    text = await failure(work)
    assert text.startswith("cannot restart backup: backup exited with 3; next try at ")
    assert text.endswith("; primary still serves")
    assert (await messages(work))[-1].startswith("backup exited with 3; next try at ")


@pytest.mark.parametrize("how", ["stopped", "failed", "backoff"])
async def test_a_restart_of_one_that_does_not_run_starts_it(how: str) -> None:
    """The other need not serve: nothing is taken away."""
    policy = replace(POLICY, restart=replace(POLICY.restart, limit_count=1 if how != "failed" else 0))
    units = Units(policy)
    units.traffic.calls_back_at_once = True
    orders = Orders(units.runners, units.board, lambda failures: 5.0, no_refresh, kept)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        running = group.create_task(orders.run())
        await asyncio.sleep(0)
        if how != "stopped":
            units.runners[B].order(Start(), "test")
            units.exit(B, CRASHED)
        assert units.seen(B).unit.state.value == how
        units.is_lively = True
        assert await done(orders.submit(Verb.RESTART, (B,), "root")) == "backup is up"
        running.cancel()
    for runner in units.runners.values():
        runner.abandon()


async def test_force_restarts_though_nobody_can_take_over(desk: Desk) -> None:
    await desk.stopped(B)
    with pytest.raises(Refused):
        desk.submit(Verb.RESTART, P)
    assert desk.incarnations()[P] == 1
    assert await done(desk.submit(Verb.RESTART, P, force=True)) == "primary is up"
    assert desk.incarnations()[P] == 2


async def test_what_comes_true_in_the_moment_in_which_the_time_is_over_has_come_true(desk: Desk) -> None:
    """Otherwise it would be said that it could not be stopped, because it is stopped."""
    desk.units.is_lively, loop = False, asyncio.get_running_loop()
    desk.units.process(B).heed = lambda: None
    work = desk.submit(Verb.STOP, B, timeout=0.2)
    await asyncio.sleep(0)  # from here on its time runs
    loop.call_at(loop.time() + 0.2, desk.units.exit, B, TERMED)
    time.sleep(0.3)  # both are due in the same turn of the loop, the timeout first
    assert await done(work) == "backup is stopped"


async def test_time_ends_the_watching_and_not_the_work(desk: Desk) -> None:
    desk.units.is_lively = False
    work = desk.submit(Verb.RESTART, B, timeout=0.01)
    assert await failure(work) == (
        "cannot restart backup within 0.01 s: it is starting (no check has passed yet (http: no result yet));"
        " this goes on: clojarsctl status; primary still serves"
    )
    desk.units.serve(B)
    assert desk.units.seen(B).is_eligible


async def test_the_time_is_shared_by_all_roles(desk: Desk) -> None:
    await desk.stopped(B)
    await desk.stopped(P)
    desk.units.is_lively = False
    work = desk.submit(Verb.START, *BOTH, timeout=0.05)
    desk.units.serve(B)
    assert await failure(work) == (
        "cannot start primary within 0.05 s: it is starting (no check has passed yet (http: no result yet));"
        " this goes on: clojarsctl status; backup still serves"
    )


async def test_a_restarted_primary_is_waited_for_until_it_has_its_traffic(desk: Desk) -> None:
    traffic = desk.units.traffic
    traffic.failing_back = True
    work = desk.submit(Verb.RESTART, P)
    seen: list[str] = []

    async def watch() -> None:
        seen.extend(await messages(work))

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        await until(lambda: work._steps and work._steps[-1].message.endswith("(failback)"), "the failback")
        assert not work._has_ended()
        traffic.failing_back = False
        desk.units.board.wake()
    assert seen[-2:] == [
        "primary gets its traffic back after 5 s without a break (failback)",
        "primary serves again",
    ]
    assert await done(work) == "primary is up"


async def test_a_restarted_primary_that_fails_before_it_has_its_traffic(desk: Desk) -> None:
    desk.units.traffic.failing_back = True
    work = desk.submit(Verb.RESTART, P)
    await until(lambda: work._steps and work._steps[-1].message.endswith("(failback)"), "the failback")
    desk.units.check(P, BAD)
    assert await failure(work) == (
        "cannot restart primary: it was ready, but then: its checks fail (http: 127.0.0.1:1 refused);"
        " backup still serves"
    )


async def test_a_failback_that_outlasts_the_order_is_not_waited_for(desk: Desk) -> None:
    desk.units.traffic.failing_back = True
    work = desk.submit(Verb.RESTART, P, timeout=4.9)
    assert await done(work) == "primary is up"
    assert (await messages(work))[-1] == "primary gets its traffic back after 5 s without a break (failback)"


async def test_a_primary_that_has_failed_often_is_waited_for_as_long_as_it_takes(desk: Desk) -> None:
    desk.units.traffic.failing_back = True
    desk.units.traffic.failures = 3
    orders = Orders(desk.units.runners, desk.units.board, lambda failures: 4.0 * failures, no_refresh, kept)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(orders.run())
        await asyncio.sleep(0)
        work = orders.submit(Verb.RESTART, (P,), "root", timeout=11.0)
        assert await done(work) == "primary is up"
        assert (await messages(work))[-1] == (
            "primary gets its traffic back after 12 s without a break"
            " (failback; longer, since it has failed 3 times lately)"
        )
        running.cancel()


async def test_a_failback_that_is_late_is_a_sentence(desk: Desk) -> None:
    """The traffic should have come within the time, and has not."""
    orders = Orders(desk.units.runners, desk.units.board, lambda failures: 0.001, no_refresh, kept)
    desk.units.traffic.failing_back = True
    async with asyncio.TaskGroup() as group:
        running = group.create_task(orders.run())
        await asyncio.sleep(0)
        text = await failure(orders.submit(Verb.RESTART, (P,), "root", timeout=0.1))
        assert text == (
            "cannot restart primary within 0.1 s: it is ready (waiting for its traffic);"
            " this goes on: clojarsctl status; primary and backup still serve"
        )
        assert not running.done(), "a late failback ends no daemon"
        running.cancel()


async def test_a_primary_out_of_rotation_has_no_traffic_to_wait_for(desk: Desk) -> None:
    await done(desk.submit(Verb.DRAIN, P))
    assert await done(desk.submit(Verb.RESTART, P)) == (
        "primary is up and out of rotation by order; `clojarsctl undrain primary` brings it back"
    )


async def test_late_and_several_watchers_hear_every_step_once(desk: Desk) -> None:
    work = await restart_by_hand(desk)
    watchers = [asyncio.ensure_future(messages(work)) for _ in range(3)]
    await asyncio.sleep(0)
    desk.units.serve(B)
    for watcher in watchers:
        assert await watcher == STEPS
    assert await messages(work) == STEPS


async def test_a_slow_watcher_loses_nothing() -> None:
    """Steps come while it is busy with one, and the end does too."""
    work, heard = Work(), []
    work.note(None, "1")
    async for step in work.steps():
        heard.append(step.message)
        if len(heard) < 3:
            work.note(None, f"{len(heard)}a")
            work.note(None, f"{len(heard)}b")
        elif len(heard) == 3:
            work.finish("end")
    assert heard == ["1", "1a", "1b", "2a", "2b"]


async def test_a_watcher_that_leaves_ends_nothing(desk: Desk) -> None:
    desk.units.is_lively = False
    work = desk.submit(Verb.RESTART, B)
    watcher = asyncio.ensure_future(work.result())
    await desk.state(B, UnitState.STARTING)
    watcher.cancel()
    desk.units.serve(B)
    assert await done(work) == "backup is up"


async def test_nothing_is_taken_while_the_daemon_stops(desk: Desk) -> None:
    desk.orders.refuse("clojarsd is stopping")
    with pytest.raises(Refused, match=r"^cannot restart backup and primary: clojarsd is stopping$"):
        desk.submit(Verb.RESTART, *BOTH)
    assert desk.incarnations() == {P: 1, B: 1}


async def test_work_of_a_daemon_that_ends_has_an_end(desk: Desk) -> None:
    orders = Orders(desk.units.runners, desk.units.board, lambda failures: 5.0, no_refresh, kept)
    desk.units.is_lively = False
    async with asyncio.TaskGroup() as group:
        running = group.create_task(orders.run())
        await asyncio.sleep(0)
        work = orders.submit(Verb.RESTART, (B,), "root")
        await desk.state(B, UnitState.STARTING)
        running.cancel()
    assert await failure(work) == "cannot say how the order ends: clojarsd is ending"
    desk.units.check(B, GOOD)


# The configuration as it is now, and what is remembered.


async def test_a_restart_reads_the_configuration_first_and_a_drain_does_not(desk: Desk) -> None:
    read: list[str] = []

    async def refresh(by: str) -> None:
        read.append(by)
        assert desk.incarnations() == {P: 1, B: 1}, "before the order is placed"

    orders = Orders(desk.units.runners, desk.units.board, lambda failures: 0.001, refresh, kept)
    async with taking(orders):
        await (await orders.begin(Verb.DRAIN, (B,), "ann")).result()
        assert read == []
        await (await orders.begin(Verb.UNDRAIN, (B,), "ann")).result()
        await (await orders.begin(Verb.RESTART, (B,), "ann")).result()
        assert read == ["ann"]


async def test_a_configuration_that_cannot_be_used_refuses_a_restart_unless_forced(desk: Desk) -> None:
    async def refresh(by: str) -> None:
        raise Refused("cannot reload: x.toml: app.command: is missing; nothing was changed")

    orders = Orders(desk.units.runners, desk.units.board, lambda failures: 0.001, refresh, kept)
    async with taking(orders):
        with pytest.raises(Refused) as refused:
            await orders.begin(Verb.RESTART, (B,), "ann")
        assert str(refused.value) == (
            "cannot restart backup by the configuration as it is now: cannot reload: x.toml: app.command: is missing;"
            " nothing was changed; --force restarts by the one in use"
        )
        assert desk.incarnations() == {P: 1, B: 1}
        await (await orders.begin(Verb.RESTART, (B,), "ann", force=True)).result()
        assert desk.incarnations() == {P: 1, B: 2}


async def test_an_order_is_not_answered_before_it_is_remembered(desk: Desk) -> None:
    safe = asyncio.Event()
    placed: list[UnitState] = []

    async def slowly() -> None:
        placed.append(desk.units.seen(B).unit.state)
        await safe.wait()

    orders = Orders(desk.units.runners, desk.units.board, lambda failures: 0.001, no_refresh, slowly)
    async with taking(orders):
        answering = asyncio.ensure_future(orders.begin(Verb.STOP, (B,), "ann"))
        await until(lambda: placed)
        assert not answering.done()
        assert placed != [UnitState.READY], "the order is carried out meanwhile"
        safe.set()
        await (await answering).result()


async def test_an_order_is_obeyed_when_the_disk_cannot_remember_it(desk: Desk) -> None:
    async def full() -> None:
        raise Failed("no space left on device")

    orders = Orders(desk.units.runners, desk.units.board, lambda failures: 0.001, no_refresh, full)
    async with taking(orders):
        assert await (await orders.begin(Verb.STOP, (B,), "ann")).result() == (
            "backup is stopped; this cannot be remembered, so the next clojarsd may not know of it:"
            " no space left on device"
        )


async def test_what_is_under_way_is_known_until_it_has_ended(desk: Desk) -> None:
    desk.units.traffic.calls_back_at_once = False
    before = desk.orders.under_way
    assert before is None
    work = desk.submit(Verb.RESTART, B)
    assert desk.orders.under_way == "restart backup (by root)"
    desk.units.traffic.when_drained[B]()
    await work.result()
    await until(lambda: desk.orders.under_way is None)


# Reload, and the environment of one start.


async def test_reload_tells_every_instance_at_once(desk: Desk) -> None:
    work = desk.orders.submit(Verb.RELOAD, BOTH, "root")
    assert await work.result() == "backup was told to reload (SIGHUP); primary was told to reload (SIGHUP)"
    assert [deed for deed in desk.units.deeds if "main process" in deed] == [
        "backup signal 1 to the main process",
        "primary signal 1 to the main process",
    ]


async def test_nobody_is_told_to_reload_when_one_cannot_be(desk: Desk) -> None:
    await desk.stopped(P)
    with pytest.raises(Refused, match=r"^cannot reload primary: it is stopped"):
        desk.orders.submit(Verb.RELOAD, BOTH, "root")
    assert not any("main process" in deed for deed in desk.units.deeds)


async def test_a_start_with_an_environment_of_its_own_needs_a_new_process(desk: Desk) -> None:
    with pytest.raises(Refused, match="it runs already, as process 101; nothing was done"):
        desk.orders.submit(Verb.START, (B,), "root", environment={"A": "1"})
    await desk.orders.submit(Verb.RESTART, (B,), "root", environment={"A": "1"}).result()
    assert desk.units.environments[-1] == {"A": "1"}
