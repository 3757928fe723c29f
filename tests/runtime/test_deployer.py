"""A rollout carried out, with real journals: whatever of it fails, is cut or ordered otherwise, and whenever."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core import rollout_journal as journal
from clojarsd.core.errors import CommandFailed, Failed, Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import Health, Role, UnitState
from clojarsd.core.rollout_facts import FORWARD, HeldBack, Outcome, StepName
from clojarsd.runtime.rollout_work import RolloutWork
from clojarsd.system.record_log import RecordLog
from tests.support.rollouts import ALL, AUTOMATIC, ID, NEW, OLD, Bench, Daemon, make_wish, serving
from tests.support.waiting import PATIENCE, until

P, B = Role.PRIMARY, Role.BACKUP
LOG = f"/var/log/clojarsd/rollouts/{ID}.log"
SERVED = "the link and backup are back at old.jar, the primary was not touched, primary and backup still serve"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def empty_bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, release=None)


async def lines(work: RolloutWork) -> list[dict[str, Any]]:
    async with asyncio.timeout(PATIENCE):
        return [line async for line in work.lines()]


async def messages(work: RolloutWork) -> list[str]:
    return [line["step"]["message"] for line in await lines(work) if "step" in line]


def records(bench: Bench, id: str = ID) -> list[journal.Record]:
    with RecordLog.open(bench.directory / "rollouts" / f"{id}.jsonl", create=False) as log:
        return list(log.records())


def begins(bench: Bench) -> list[str]:
    return [record["step"] for record in records(bench) if record["what"] == "begun"]


def is_at(what: str, step: StepName) -> Any:
    """Refuses that record for want of room."""
    return lambda record: (
        "no space left on device" if record["what"] == what and record.get("step") == step.value else None
    )


async def test_a_deploy_goes_its_way_and_is_recorded_as_good(bench: Bench) -> None:
    async with bench.daemon() as daemon:
        work = await daemon.begin()
        asked = await daemon.asked()
        assert asked is work
        assert bench.runs() == {P: OLD, B: NEW}
        assert daemon.deployer.under_way is None, "other code can take up a question"
        await daemon.deployer.promote("bob")
        ended = await daemon.end()
    assert ended.outcome is Outcome.DONE
    assert ended.message == (
        "deploy of 1.2.0 is done and recorded as good: primary and backup run new.jar instead of old.jar"
    )
    assert bench.runs() == {P: NEW, B: NEW}
    assert bench.pair.link == NEW
    assert begins(bench) == [step.value for step in ALL]
    assert [record["what"] for record in records(bench)][-1] == "ended"
    assert [record["by"] for record in records(bench) if record["what"] == "approved"] == ["bob"]
    assert bench.steps.shares == 1
    told = await messages(work)
    assert told[0] == "checking it out"
    assert "bob has approved it" in told
    assert work.outcome is Outcome.DONE
    names = [event for event, *_ in bench.history.events]
    assert names[0] is EventName.DEPLOY_STARTED
    assert names[-1] is EventName.DEPLOY_FINISHED
    assert names.count(EventName.DEPLOY_WAITING) == 1
    waiting = next(message for event, message, *_ in bench.history.events if event is EventName.DEPLOY_WAITING)
    assert waiting.startswith("deploy of 1.2.0 waits for `clojarsctl promote` or `clojarsctl abort` until 20")


async def test_nobody_is_asked_when_it_is_approved_beforehand(bench: Bench) -> None:
    async with bench.daemon() as daemon:
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann (--yes)")
        assert (await daemon.end()).outcome is Outcome.DONE
    assert [record["what"] for record in records(bench)[:2]] == ["asked", "approved"]
    assert begins(bench) == [step.value for step in AUTOMATIC]


async def test_a_second_one_is_refused_while_one_is_under_way(bench: Bench) -> None:
    bench.steps.block(StepName.BUILD)
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.at(StepName.BUILD)
        with pytest.raises(Refused) as refused:
            await daemon.begin(make_wish(id="20261128-120001"))
        assert str(refused.value).startswith(
            "cannot begin a deploy: deploy of 1.2.0 by ann is at step 3 of 17 (building it), since 20"
        )
        assert str(refused.value).endswith("; nothing was done")
        assert daemon.deployer.under_way == "deploy of 1.2.0 is at step 3 of 17 (building it)"
        assert daemon.deployer.why_busy() is not None
        view = daemon.deployer.view
        assert view is not None
        assert view.log == LOG
        assert not (bench.directory / "rollouts" / "20261128-120001.jsonl").exists()


async def test_one_after_the_other(bench: Bench) -> None:
    """Each is told its own end, and gets its own steps."""
    async with bench.daemon() as daemon:
        first = await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await daemon.end()
        second = await daemon.begin(make_wish(id=f"{ID}-2", tag="1.3.0", steps=AUTOMATIC, previous=NEW), "ann")
        await until(lambda: second.outcome)
    assert first.message.startswith("deploy of 1.2.0 is done")
    assert second.message.startswith("deploy of 1.3.0 is done")


async def test_the_next_one_begins_only_when_the_last_has_ended_for_all(bench: Bench) -> None:
    """Also when the disk takes its time with the end: who watches the second must not be told of the first."""
    async with bench.daemon() as daemon:
        daemon.journals.may_end.clear()
        first = await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await until(lambda: daemon.journals.is_ending)
        with pytest.raises(Refused):
            await daemon.begin(make_wish(id=f"{ID}-2"))
        daemon.journals.may_end.set()
        await until(lambda: first.outcome)
        assert first.message.startswith("deploy of 1.2.0 is done")
        assert daemon.deployer.why_busy() is None


# Failures.


@pytest.mark.parametrize("step", [step for step in FORWARD if step is not StepName.APPROVE], ids=lambda step: step.name)
async def test_a_step_that_fails_brings_everything_back(bench: Bench, step: StepName) -> None:
    bench.steps.failures[step.value] = CommandFailed("lein ended with code 1 after 2.0 s", ("one", "two"))
    async with bench.daemon() as daemon:
        work = await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        ended = await daemon.end()
    if step is StepName.PRUNE:  # the release is good, and nothing goes back
        assert ended.outcome is Outcome.DONE
        assert bench.runs() == {P: NEW, B: NEW}
        assert "removing old releases: lein ended with code 1 after 2.0 s" in await messages(work)
        return
    assert ended.outcome is Outcome.FAILED
    assert bench.runs() == {P: OLD, B: OLD}
    assert bench.pair.link == OLD
    assert ended.message is not None
    assert ended.message.startswith("cannot deploy 1.2.0: ")
    assert ": lein ended with code 1 after 2.0 s; " in ended.message
    assert ended.message.endswith(f"; whole log: {LOG}")
    assert work.output == ("one", "two")
    assert bench.history.events[-1][0] is EventName.DEPLOY_FAILED
    assert bench.steps.acts[-1] == "ended"


async def test_what_breaks_in_a_step_ends_the_rollout_and_not_the_daemon(bench: Bench) -> None:
    bench.steps.failures[StepName.BUILD.value] = ZeroDivisionError("division by zero")
    async with bench.daemon() as daemon:
        await daemon.begin()
        ended = await daemon.end()
    assert ended.message == (
        "cannot deploy 1.2.0: building it: this is a bug in clojarsd (ZeroDivisionError: division by zero);"
        f" nothing was changed, primary and backup still serve, with old.jar; whole log: {LOG}"
    )


async def test_what_the_system_refuses_in_a_step_is_no_bug(bench: Bench) -> None:
    bench.steps.failures[StepName.SMOKE.value] = OSError(24, "Too many open files", "/proc")
    async with bench.daemon() as daemon:
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        ended = await daemon.end()
    assert ended.message == (
        f"cannot deploy 1.2.0: running smoke: /proc: too many open files; {SERVED}; whole log: {LOG}"
    )


async def test_what_cannot_be_cleaned_up_is_no_reason_not_to_end(bench: Bench) -> None:
    for failure in (Failed("no room"), OSError(5, "Input/output error"), ZeroDivisionError()):
        bench.steps.end_failure = failure
        async with bench.daemon() as daemon:
            await daemon.begin(make_wish(id=await daemon.journals.free_id(ID), steps=AUTOMATIC, previous=OLD), "ann")
            assert (await daemon.end()).outcome is Outcome.DONE


async def test_a_way_back_that_fails_leaves_the_last_one_serving(bench: Bench) -> None:
    gone = serving(P, None, state=UnitState.FAILED, reason="given up", health=Health.UNKNOWN)
    bench.steps.failures = {"primary": Failed("it exited with 1"), "primary back": Failed("it exited with 2")}
    bench.steps.leaves = {"primary": gone, "primary back": gone}
    async with bench.daemon() as daemon:
        work = await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        ended = await daemon.end()
    assert ended.outcome is Outcome.STUCK
    assert ended.message == (
        "cannot deploy 1.2.0: restarting primary: it exited with 1; not everything could be brought back:"
        f" primary is failed; backup is ready with new.jar; backup still serves; whole log: {LOG}"
    )
    assert "cannot go back: bringing primary back: it exited with 2" in await messages(work)
    assert bench.steps.acts.count("primary back") == 1


async def test_the_very_first_release_leaves_nothing_behind_when_it_fails(empty_bench: Bench) -> None:
    bench = empty_bench
    bench.steps.failures["soak"] = Failed("primary has ended: code 1")
    async with bench.daemon() as daemon:
        await daemon.begin(make_wish(steps=AUTOMATIC, previous=None), "ann")
        ended = await daemon.end()
    assert ended.outcome is Outcome.FAILED
    assert bench.pair.link is None
    assert bench.runs() == {P: None, B: None}


async def test_a_rule_that_a_move_would_break_stops_it(bench: Bench) -> None:
    """Such as a journal of a version that has approved nothing and wants no answer."""
    async with bench.daemon() as daemon:
        await daemon.begin(make_wish(steps=AUTOMATIC))
        ended = await daemon.end()
    assert ended.outcome is Outcome.FAILED
    assert ended.message is not None
    assert "this is a bug in clojarsd: the primary is restarted before the release has proved itself" in ended.message
    assert bench.runs() == {P: OLD, B: OLD}


# The answer.


@pytest.mark.parametrize("by", ["promote", "deadline", "abort", "backup"])
async def test_the_question_has_one_answer(bench: Bench, by: str) -> None:
    if by == "deadline":
        bench.steps.approval_timeout = 0.05
    async with bench.daemon() as daemon:
        work = await daemon.begin()
        if by != "deadline":
            await daemon.asked()
        if by == "promote":
            assert await daemon.deployer.promote("bob") is work
        elif by == "abort":
            assert daemon.deployer.abort("bob") is work
        elif by == "backup":
            fallen = serving(B, None, state=UnitState.FAILED, reason="given up after 10 launches")
            bench.pair.board.publish(fallen)
        ended = await daemon.end()
    assert work.question is None
    assert ended.message is not None
    if by == "promote":
        assert ended.outcome is Outcome.DONE
        return
    assert bench.runs() == {P: OLD, B: OLD}
    if by == "backup":
        assert ended.outcome is Outcome.FAILED
        assert ended.message == (
            "cannot deploy 1.2.0: waiting for promote or abort: backup has fallen over: given up after 10 launches;"
            f" {SERVED}; whole log: {LOG}"
        )
        return
    assert ended.outcome is Outcome.ABORTED
    why = "aborted by bob" if by == "abort" else "nobody answered until 20"
    assert ended.message.startswith(f"deploy of 1.2.0 was given up while waiting for promote or abort: {why}")


async def test_nothing_waits_for_an_answer_before_and_after_the_question(bench: Bench) -> None:
    bench.steps.block(StepName.SMOKE)
    bench.steps.block(StepName.PRIMARY)
    async with bench.daemon() as daemon:
        with pytest.raises(Refused, match=r"^cannot promote: no deploy or rollback is under way; nothing was done$"):
            await daemon.deployer.promote("bob")
        with pytest.raises(Refused, match=r"^cannot abort: no deploy or rollback is under way; nothing was done$"):
            daemon.deployer.abort("bob")
        await daemon.begin()
        await daemon.at(StepName.SMOKE)
        with pytest.raises(Refused) as refused:
            await daemon.deployer.promote("bob")
        assert str(refused.value).startswith(
            "cannot promote: deploy of 1.2.0 by ann is at step 9 of 17 (running smoke), since 20"
        )
        assert str(refused.value).endswith(", and waits for nobody; nothing was done")
        bench.steps.block(StepName.SMOKE).set()
        await daemon.asked()
        await daemon.deployer.promote("bob")
        await daemon.at(StepName.PRIMARY)
        with pytest.raises(Refused, match="waits for nobody"):
            await daemon.deployer.promote("bob")
        bench.steps.block(StepName.PRIMARY).set()
        assert (await daemon.end()).outcome is Outcome.DONE


async def test_two_answers_at_once_are_one(bench: Bench) -> None:
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.asked()
        async with asyncio.TaskGroup() as group:
            both = [group.create_task(daemon.deployer.promote(by)) for by in ("bob", "cid")]
        assert both[0].result() is both[1].result()
        assert (await daemon.end()).outcome is Outcome.DONE
    assert [record["by"] for record in records(bench) if record["what"] == "approved"] == ["bob"]


async def test_an_answer_in_time_counts_though_the_disk_is_late(bench: Bench) -> None:
    """The deadline passes while the answer is being written: it was given before."""
    bench.steps.approval_timeout = 0.3
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.asked()
        daemon.journals.may_write.clear()
        async with asyncio.TaskGroup() as group:
            promoting = group.create_task(daemon.deployer.promote("bob"))
            await until(lambda: daemon.journals.wanted[-1]["what"] == "approved")
            await until(lambda: _is_due(daemon), "the deadline")
            assert not promoting.done()
            daemon.journals.may_write.set()
        assert (await daemon.end()).outcome is Outcome.DONE
    written = [record["what"] for record in records(bench)]
    assert "turned" not in written


async def test_an_answer_in_the_moment_of_the_deadline_counts(bench: Bench) -> None:
    bench.steps.approval_timeout, bench.steps.is_deaf = 0.3, True
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.asked()
        await daemon.deployer.promote("bob")
        assert (await daemon.end()).outcome is Outcome.DONE


def _is_due(daemon: Daemon) -> bool:
    """Whether the deadline of the question has passed."""
    until_at = daemon.record.rollout.until
    assert until_at is not None
    return datetime.now(UTC) > datetime.fromisoformat(until_at)


async def test_an_answer_after_the_deadline_comes_to_nothing(bench: Bench) -> None:
    """That nobody answered is being written down when somebody does."""
    bench.steps.approval_timeout = 0.1
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.asked()
        daemon.journals.may_write.clear()
        await until(lambda: daemon.journals.wanted[-1]["what"] == "turned")
        async with asyncio.TaskGroup() as group:
            promoting = group.create_task(_refusal(daemon.deployer.promote("bob")))
            await asyncio.sleep(0)
            daemon.journals.may_write.set()
        assert promoting.result().startswith("cannot promote: deploy of 1.2.0 by ann is at its way back, since 20")
        assert (await daemon.end()).outcome is Outcome.ABORTED
    assert not [record for record in records(bench) if record["what"] == "approved"]
    assert bench.runs() == {P: OLD, B: OLD}


async def _refusal(act: Any) -> str:
    with pytest.raises(Refused) as refused:
        await act
    return str(refused.value)


async def test_an_abort_right_after_the_answer_wins_while_that_is_written(bench: Bench) -> None:
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.asked()
        daemon.journals.may_write.clear()
        async with asyncio.TaskGroup() as group:
            promoting = group.create_task(_refusal(daemon.deployer.promote("bob")))
            await until(lambda: daemon.journals.wanted[-1]["what"] == "approved")
            daemon.deployer.abort("cid")
            with pytest.raises(Refused, match="waits for nobody"):
                await daemon.deployer.promote("dan")
            daemon.journals.may_write.set()
        assert promoting.result().startswith("cannot promote: deploy of 1.2.0 by ann is at its way back")
        ended = await daemon.end()
    assert ended.outcome is Outcome.ABORTED
    assert bench.runs() == {P: OLD, B: OLD}


async def test_an_answer_that_cannot_be_written_does_not_count_and_it_waits_on(bench: Bench) -> None:
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.asked()
        daemon.journals.refused = lambda record: "input/output error" if record["what"] == "approved" else None
        assert await _refusal(daemon.deployer.promote("bob")) == (
            "cannot promote: cannot write to the log: input/output error; the record is not in it; it waits on"
        )
        assert bench.runs() == {P: OLD, B: NEW}
        daemon.journals.refused = lambda record: None
        await daemon.deployer.promote("bob")
        assert (await daemon.end()).outcome is Outcome.DONE


async def test_who_wanted_to_promote_hears_that_the_daemon_ends(bench: Bench) -> None:
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.asked()
        daemon.journals.may_write.clear()
        promoting = asyncio.ensure_future(_refusal(daemon.deployer.promote("bob")))
        await until(lambda: daemon.journals.wanted[-1]["what"] == "approved")
    assert await promoting == "cannot promote: clojarsd is ending"


async def test_a_caller_who_goes_has_answered_all_the_same(bench: Bench) -> None:
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.asked()
        daemon.journals.may_write.clear()
        promoting = asyncio.ensure_future(daemon.deployer.promote("bob"))
        await until(lambda: daemon.journals.wanted[-1]["what"] == "approved")
        promoting.cancel()
        daemon.journals.may_write.set()
        assert (await daemon.end()).outcome is Outcome.DONE


# Aborts.

STOPPABLE = [step for step in ALL if step not in (StepName.APPROVE, StepName.SWITCH, StepName.GOOD, StepName.PRUNE)]


@pytest.mark.parametrize("step", STOPPABLE, ids=lambda step: step.name)
async def test_an_abort_stops_a_step_and_brings_everything_back(bench: Bench, step: StepName) -> None:
    bench.steps.block(step)
    async with bench.daemon() as daemon:
        work = await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await daemon.at(step)
        await until(lambda: bench.steps.acts[-1:] == [step.value])
        assert daemon.deployer.abort("bob") is work
        assert daemon.deployer.abort("cid") is work, "asking for what is under way already succeeds"
        ended = await daemon.end()
    assert bench.steps.cut == [step.value]
    assert ended.outcome is Outcome.ABORTED
    assert bench.runs() == {P: OLD, B: OLD}
    assert bench.pair.link == OLD
    assert "bob has aborted it" in await messages(work)
    assert bench.history.events[-1][0] is EventName.DEPLOY_ABORTED


async def test_a_switch_is_not_stopped_in_the_middle(bench: Bench) -> None:
    door = bench.steps.block(StepName.SWITCH)
    async with bench.daemon() as daemon:
        await daemon.begin()
        await until(lambda: bench.steps.acts[-1:] == ["switch"])
        daemon.deployer.abort("bob")
        door.set()
        ended = await daemon.end()
    assert bench.steps.cut == []
    assert ended.outcome is Outcome.ABORTED
    assert bench.pair.link == OLD
    assert ended.message is not None
    assert "the link names old.jar, as before, and no instance was touched" in ended.message


@pytest.mark.parametrize("step", [StepName.GOOD, StepName.PRUNE], ids=lambda step: step.name)
async def test_it_is_too_late_when_the_release_is_good(bench: Bench, step: StepName) -> None:
    door = bench.steps.block(step)
    async with bench.daemon() as daemon:
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await daemon.at(step)
        with pytest.raises(Refused) as refused:
            daemon.deployer.abort("bob")
        what = "is just being recorded as good" if step is StepName.GOOD else "is recorded as good already"
        assert str(refused.value) == (
            f"cannot abort: new.jar {what}; clojarsctl rollback brings the former release back; nothing was done"
        )
        door.set()
        assert (await daemon.end()).outcome is Outcome.DONE


@pytest.mark.parametrize("step", AUTOMATIC, ids=lambda step: step.name)
async def test_an_abort_while_a_step_is_written_down_keeps_it_from_being_done(bench: Bench, step: StepName) -> None:
    """Also at a switch, and at the one that makes it too late."""
    async with bench.daemon() as daemon:
        _hold_at(daemon, "begun", step)
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await until(lambda: daemon.journals.wanted and _is(daemon.journals.wanted[-1], "begun", step))
        if step is StepName.PRUNE:
            with pytest.raises(Refused):
                daemon.deployer.abort("bob")
            daemon.journals.may_write.set()
            assert (await daemon.end()).outcome is Outcome.DONE
            return
        daemon.deployer.abort("bob")
        daemon.journals.may_write.set()
        ended = await daemon.end()
    assert step.value not in bench.steps.acts
    assert ended.outcome is Outcome.ABORTED
    assert bench.runs() == {P: OLD, B: OLD}
    assert bench.pair.link == OLD


def _is(record: journal.Record, what: str, step: StepName) -> bool:
    return record["what"] == what and record.get("step") == step.value


def _hold_at(daemon: Daemon, what: str, step: StepName) -> None:
    """Have the disk wait when that record is to be written."""

    class Door(asyncio.Event):
        async def wait(self) -> Any:
            if _is(daemon.journals.wanted[-1], what, step):
                return await super().wait()
            return True

    daemon.journals.may_write = Door()


@pytest.mark.parametrize("step", AUTOMATIC[:-2], ids=lambda step: step.name)
async def test_an_abort_at_the_very_end_of_a_step_is_not_lost(bench: Bench, step: StepName) -> None:
    """It comes while it is written down that the step is done."""
    async with bench.daemon() as daemon:
        _hold_at(daemon, "done", step)
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await until(lambda: daemon.journals.wanted and _is(daemon.journals.wanted[-1], "done", step))
        daemon.deployer.abort("bob")
        daemon.journals.may_write.set()
        ended = await daemon.end()
    assert ended.outcome is Outcome.ABORTED
    assert bench.runs() == {P: OLD, B: OLD}
    assert bench.pair.link == OLD


async def test_an_abort_on_the_way_back_is_refused(bench: Bench) -> None:
    bench.steps.failures["smoke"] = Failed("smoke failed")
    door = bench.steps.block(StepName.BACKUP_BACK)
    async with bench.daemon() as daemon:
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await daemon.at(StepName.BACKUP_BACK)
        with pytest.raises(Refused) as refused:
            daemon.deployer.abort("bob")
        assert str(refused.value) == ("cannot abort: it is on its way back already: smoke failed; nothing was done")
        door.set()
        assert (await daemon.end()).outcome is Outcome.FAILED


async def test_an_abort_while_the_rollout_is_not_taken_up_yet(bench: Bench) -> None:
    async with bench.daemon() as daemon:
        await daemon.begin()
        daemon.deployer.abort("bob")
        assert (await daemon.end()).outcome is Outcome.ABORTED
    assert bench.steps.acts == ["ended"]


# The disk.


@pytest.mark.parametrize("step", AUTOMATIC, ids=lambda step: step.name)
async def test_what_cannot_be_written_down_is_not_done(bench: Bench, step: StepName) -> None:
    async with bench.daemon() as daemon:
        daemon.journals.refused = is_at("begun", step)
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        ended = await daemon.end()
    if step is StepName.PRUNE:  # nothing goes back any more, so it is done all the same
        assert ended.outcome is Outcome.DONE
        return
    assert step.value not in bench.steps.acts
    assert ended.outcome is Outcome.FAILED
    assert ended.message is not None
    assert "cannot write to the log: no space left on device; the record is not in it" in ended.message
    assert bench.runs() == {P: OLD, B: OLD}


@pytest.mark.parametrize("what", ["done", "turned", "failed", "ended", "begun back"])
async def test_what_is_so_is_so_though_it_cannot_be_written(bench: Bench, what: str) -> None:
    bench.steps.failures["soak"] = Failed("primary has ended: code 1")
    async with bench.daemon() as daemon:

        def refuse(record: journal.Record) -> str | None:
            is_back = str(record.get("step")).endswith("back")
            wanted = record["what"] == "begun" and is_back if what == "begun back" else record["what"] == what
            return "no space left on device" if wanted else None

        daemon.journals.refused = refuse
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        ended = await daemon.end()
    assert ended.outcome is Outcome.FAILED
    assert bench.runs() == {P: OLD, B: OLD}


async def test_without_a_journal_nothing_begins(bench: Bench) -> None:
    (bench.directory / "rollouts").write_text("in the way")
    async with bench.daemon() as daemon:
        with pytest.raises(Failed):
            await daemon.begin()
        assert daemon.deployer.why_busy() is None
        (bench.directory / "rollouts").unlink()
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        assert (await daemon.end()).outcome is Outcome.DONE


# Daemons that die.


@pytest.mark.parametrize("number", range(2 * len(AUTOMATIC) + 1))
async def test_the_next_daemon_goes_on_from_each_record(bench: Bench, number: int) -> None:
    """The daemon is killed when it wants to write its next record after so many."""
    async with bench.daemon() as daemon:

        class Door(asyncio.Event):
            async def wait(self) -> Any:
                return await super().wait() if len(daemon.journals.written) >= number else True

        daemon.journals.may_write = Door()
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await until(lambda: len(daemon.journals.wanted) > number, "the cut")
    acts = list(bench.steps.acts)
    async with bench.daemon() as daemon:
        ended = await daemon.end()
    assert bench.cleaned == [ID]
    changed = "switch" in [record["step"] for record in records(bench) if record["what"] == "begun"]
    if not changed:
        assert ended.outcome is Outcome.FAILED
        assert bench.runs() == {P: OLD, B: OLD}
        assert bench.pair.link == OLD
        assert bench.steps.acts == [*acts, "ended"]
        assert ended.message is not None
        assert "clojarsd ended during" in ended.message
        assert "nothing was changed, primary and backup still serve, with old.jar" in ended.message
    else:
        assert ended.outcome is Outcome.DONE
        assert bench.runs() == {P: NEW, B: NEW}
    async with bench.daemon() as daemon:
        assert daemon.deployer.why_busy() is None, "it has ended for good"


async def test_a_step_in_which_two_daemons_have_died_is_not_given_to_a_third(bench: Bench) -> None:
    bench.steps.block(StepName.SMOKE)
    async with bench.daemon() as daemon:
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await daemon.at(StepName.SMOKE)
    async with bench.daemon() as daemon:
        await until(lambda: begins(bench).count("smoke") == 2)
        told = [message for event, message, *_ in bench.history.events if "was started again" in message]
        assert told == [
            "clojarsd was started again while a deploy of 1.2.0 was at step 9 of 16 (running smoke); it goes on"
        ]
    async with bench.daemon() as daemon:
        ended = await daemon.end()
    assert ended.outcome is Outcome.FAILED
    assert ended.message == (
        f"cannot deploy 1.2.0: running smoke: clojarsd ended twice during smoke; {SERVED}; whole log: {LOG}"
    )


async def test_a_question_is_taken_up_with_its_deadline(bench: Bench) -> None:
    for _ in range(4):
        async with bench.daemon() as daemon:
            if daemon.deployer.view is None:
                await daemon.begin()
            work = await daemon.asked()
            assert work.question is not None
    untils = {record["until"] for record in records(bench) if record["what"] == "begun" and "until" in record}
    assert len(untils) == 1
    async with bench.daemon() as daemon:
        await daemon.deployer.promote("bob")  # perhaps before it was asked again
        assert (await daemon.end()).outcome is Outcome.DONE


async def test_an_answer_after_which_the_daemon_has_died_is_not_asked_for_again(bench: Bench) -> None:
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.asked()
        _hold_at(daemon, "done", StepName.APPROVE)
        await daemon.deployer.promote("bob")
        await until(lambda: _is(daemon.journals.wanted[-1], "done", StepName.APPROVE))
    async with bench.daemon() as daemon:
        assert (await daemon.end()).outcome is Outcome.DONE
    assert bench.steps.shares == 1
    assert len([record for record in records(bench) if record["what"] == "approved"]) == 1


async def test_an_answer_that_comes_before_the_question_is_asked_again_counts(bench: Bench) -> None:
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.asked()
    bench.pair.board.publish(serving(B, NEW, health=Health.UNKNOWN))  # just taken up
    async with bench.daemon() as daemon, asyncio.TaskGroup() as group:
        group.create_task(daemon.deployer.promote("bob"))
        await asyncio.sleep(0)
        bench.pair.board.publish(serving(B, NEW))
        assert (await daemon.end()).outcome is Outcome.DONE


async def test_a_rollout_is_taken_up_when_it_is_known_how_the_pair_is(bench: Bench) -> None:
    """An instance that was just taken up may serve in a moment: it is not restarted for that."""
    bench.steps.block(StepName.AFTER_BACKUP)
    async with bench.daemon() as daemon:
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await daemon.at(StepName.AFTER_BACKUP)
    bench.steps.doors.clear()
    for role, release in ((P, OLD), (B, NEW)):
        bench.pair.board.publish(serving(role, release, state=UnitState.STARTING, health=Health.UNKNOWN))
    bench.steps.acts.clear()
    async with bench.daemon() as daemon:
        await until(lambda: bench.cleaned)
        bench.pair.board.publish(serving(P, OLD))
        assert bench.steps.acts == []
        bench.pair.board.publish(serving(B, NEW))
        assert (await daemon.end()).outcome is Outcome.DONE
    assert bench.steps.acts[0] == "after_backup"


async def test_what_a_former_daemon_has_left_running_and_cannot_be_ended_stops_nothing(bench: Bench) -> None:
    bench.steps.block(StepName.BUILD)
    async with bench.daemon() as daemon:
        await daemon.begin()
        await daemon.at(StepName.BUILD)
    bench.clean_fails = OSError(24, "Too many open files")
    async with bench.daemon() as daemon:
        assert (await daemon.end()).outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("step", "outcome"),
    [(StepName.BUILD, Outcome.FAILED), (StepName.SMOKE, Outcome.STUCK), (StepName.PRUNE, Outcome.DONE)],
    ids=lambda value: value.name,
)
async def test_a_rollout_that_nobody_can_carry_out_any_more_ends(
    bench: Bench, step: StepName, outcome: Outcome
) -> None:
    bench.steps.block(step)
    async with bench.daemon() as daemon:
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await daemon.at(step)
    bench.no_steps = Failed("the configuration has no table [deploy] any more")
    async with bench.daemon() as daemon:
        ended = await daemon.end()
        assert ended.outcome is outcome
        assert ended.message is not None
        assert (bench.no_steps.args[0] in ended.message) is (outcome is not Outcome.DONE)
        bench.no_steps = None
        bench.steps.doors.clear()
        bench.pair.link = OLD
        for role in Role:
            bench.pair.board.publish(serving(role, OLD))
        await daemon.begin(make_wish(id=f"{ID}-2", steps=AUTOMATIC), "ann")
        assert (await daemon.end()).outcome is Outcome.DONE


@pytest.mark.parametrize("step", AUTOMATIC, ids=lambda step: step.name)
async def test_what_an_instance_is_launched_with_meanwhile(bench: Bench, step: StepName) -> None:
    bench.steps.block(step)
    async with bench.daemon() as daemon:
        assert daemon.deployer.held_back(P) is None
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await daemon.at(step)
        is_between = AUTOMATIC.index(StepName.SWITCH) <= AUTOMATIC.index(step) < AUTOMATIC.index(StepName.PRIMARY)
        former = HeldBack(OLD, "deploy of 1.2.0 is under way") if is_between else None
        assert [daemon.deployer.held_back(role) for role in Role] == [former, None]
    async with bench.daemon() as daemon:
        await daemon.at(step) if step in AUTOMATIC[AUTOMATIC.index(StepName.SWITCH) :] else await daemon.end()
        assert [daemon.deployer.held_back(role) for role in Role] == [former, None], "by the next daemon too"


async def test_a_link_that_somebody_changes_by_hand_turns_it_back(bench: Bench) -> None:
    door = bench.steps.block(StepName.SMOKE)
    async with bench.daemon() as daemon:
        await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await daemon.at(StepName.SMOKE)
        bench.pair.link = "other.jar"
        door.set()
        ended = await daemon.end()
    assert ended.message is not None
    assert "somebody has changed the link, which names other.jar now" in ended.message
    assert bench.pair.link == OLD


async def test_times_of_steps_are_compared_with_the_last_ones(bench: Bench) -> None:
    async with bench.daemon() as daemon:
        first = await daemon.begin(make_wish(steps=AUTOMATIC), "ann")
        await daemon.end()
        second = await daemon.begin(make_wish(id=f"{ID}-2", steps=AUTOMATIC, previous=NEW), "ann")
        await until(lambda: second.outcome)
    assert "build: 0.0 s" in await messages(first)
    assert "build: 0.0 s (last time 0.0 s)" in await messages(second)


async def test_output_of_a_failure_is_short_enough_for_the_reserve(bench: Bench) -> None:
    bench.steps.failures["build"] = CommandFailed("lein failed", ("x" * 1000,) * 20)
    async with bench.daemon() as daemon:
        work = await daemon.begin()
        await daemon.end()
    assert work.output == ("x" * 500,) * 20
    assert sum(len(str(record)) for record in records(bench)) < 64 * 1024
