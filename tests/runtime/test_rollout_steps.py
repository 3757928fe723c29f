"""The steps of a rollout, over a real directory of releases and a real release log."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clojarsd.core import rollout_journal as journal
from clojarsd.core.errors import CommandFailed, Failed, Refused
from clojarsd.core.history import stamp
from clojarsd.core.names import Role
from clojarsd.core.releases import ProvedBad, ProvedGood, ReleaseState
from clojarsd.core.rollout_facts import GoingBack, Rollout, StepName
from clojarsd.runtime.rollout_steps import RolloutSteps
from clojarsd.runtime.rollout_work import RolloutWork
from tests.support.release_shop import Shop, open_shop
from tests.support.rollouts import ALL, AT, make_wish

pytestmark = pytest.mark.slow

OLD, NEW = "app-1.0.0.jar", "app-1.1.0.jar"


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path, smoke=["sh", "-c", "echo $CLOJARSD_RELEASE; exit 3"]) as shop:
        await shop.runs(OLD)
        await shop.installed(OLD)
        yield shop


def rollout_of(shop: Shop, *records: journal.Record) -> Rollout:
    """A deploy of an artifact that somebody has built."""
    artifact = shop.directory / NEW
    artifact.write_text("new")
    steps = ALL[ALL.index(StepName.INSTALL) :]
    wish = make_wish(tag=None, commit=None, artifact=str(artifact), previous=OLD, steps=steps)
    return journal.told([journal.asked(wish), *records])


def steps_of(shop: Shop, rollout: Rollout) -> RolloutSteps:
    return shop.workshop.steps(rollout.wish)


async def installed(shop: Shop) -> tuple[RolloutSteps, Rollout]:
    rollout = rollout_of(shop)
    steps = steps_of(shop, rollout)
    facts = await steps.do(StepName.INSTALL, rollout, RolloutWork())
    return steps, journal.after(rollout, journal.done(StepName.INSTALL, AT, 1.0, **facts))


async def test_a_release_is_installed_switched_to_and_found_good(shop: Shop) -> None:
    steps, rollout = await installed(shop)
    assert rollout.release == NEW
    assert (shop.directory / "releases" / NEW).read_text() == "new"
    await steps.switch(NEW)
    assert os.readlink(shop.directory / "releases" / "current.jar") == NEW
    await steps.do(StepName.GOOD, rollout, RolloutWork())
    book = shop.releases.book
    known = book.release(NEW)
    assert known is not None
    assert (known.state, book.current, shop.releases.previous_of(NEW)) == (ReleaseState.GOOD, NEW, OLD)


async def test_a_switch_that_was_cut_after_the_link_is_recorded_by_the_next_one(shop: Shop) -> None:
    """Else a rollback from the release after it would pass it over."""
    steps, _ = await installed(shop)
    await asyncio.to_thread(shop.releases.store.switch, NEW)  # and then the daemon died
    assert shop.releases.book.current == OLD
    await steps.switch(NEW)
    assert shop.releases.book.current == NEW


async def test_a_release_that_was_changed_is_not_switched_to(shop: Shop) -> None:
    steps, _ = await installed(shop)
    path = shop.directory / "releases" / NEW
    path.chmod(0o644)
    path.write_text("changed")
    with pytest.raises(Failed, match="is not what was installed"):
        await steps.switch(NEW)
    assert os.readlink(path.with_name("current.jar")) == OLD
    assert shop.releases.book.current == OLD


async def test_without_a_release_before_there_is_no_link_afterwards(shop: Shop) -> None:
    steps = steps_of(shop, rollout_of(shop))
    await steps.switch(None)
    assert shop.releases.link() is None


async def test_an_install_that_is_cancelled_leaves_nothing_that_nobody_knows_of(shop: Shop) -> None:
    rollout = rollout_of(shop)
    installing = asyncio.ensure_future(steps_of(shop, rollout).do(StepName.INSTALL, rollout, RolloutWork()))
    while not installing.done():
        await asyncio.sleep(0)
        if (shop.directory / "releases" / NEW).exists():
            installing.cancel()
    await asyncio.wait((installing,))
    await shop.releases.reserve()  # comes after what was under way
    known = {one.name for one in shop.releases.book.releases}
    assert {path.name for path in (shop.directory / "releases").iterdir()} - {"current.jar"} == known == {OLD, NEW}


async def test_a_command_that_fails_comes_with_its_last_lines(shop: Shop) -> None:
    steps, rollout = await installed(shop)
    work = RolloutWork()
    with pytest.raises(CommandFailed) as caught:
        await steps.do(StepName.SMOKE, rollout, work)
    assert "ended with code 3" in str(caught.value)
    assert caught.value.last_lines == (str(shop.directory / "releases" / NEW),)


async def test_what_is_not_needed_is_removed_and_what_cannot_be_is_told(shop: Shop) -> None:
    steps, rollout = await installed(shop)
    await steps.switch(NEW)
    await steps.do(StepName.GOOD, rollout, RolloutWork())
    await shop.installed("app-0.8.0.jar", "app-0.9.0.jar", good=False)
    await steps.switch(NEW)
    (shop.directory / "releases" / "app-0.8.0.jar").unlink()
    (shop.directory / "releases" / "app-0.8.0.jar").mkdir()
    (shop.directory / "releases" / "app-0.8.0.jar" / "lib").mkdir()
    work = RolloutWork()
    await steps.do(StepName.PRUNE, rollout, work)
    left = {path.name for path in (shop.directory / "releases").iterdir() if not path.name.startswith(".")}
    assert left == {OLD, NEW, "current.jar"}
    assert {one.name for one in shop.releases.book.releases} == {OLD, NEW}
    assert work.told == 2


@pytest.mark.parametrize("is_abort", [False, True])
async def test_a_release_that_was_gone_back_from_is_bad_unless_somebody_only_did_not_want_it(
    shop: Shop, is_abort: bool
) -> None:
    steps, rollout = await installed(shop)
    rollout = journal.after(rollout, journal.begun(StepName.BACKUP, AT))
    rollout = journal.after(rollout, journal.turned(GoingBack("it fell over", StepName.BACKUP, is_abort), AT))
    await steps.ended(rollout)
    known = shop.releases.book.release(NEW)
    assert known is not None
    assert (known.state, known.why) == (
        (ReleaseState.UNPROVED, None) if is_abort else (ReleaseState.BAD, "it fell over")
    )


async def test_checkouts_go_although_the_release_log_takes_nothing(tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        (tmp_path / "state" / "releases.jsonl").mkdir()
        rollout = rollout_of(shop, journal.done(StepName.INSTALL, AT, 1.0, release=NEW))
        for record in (
            journal.begun(StepName.BACKUP, AT),
            journal.turned(GoingBack("it fell over", StepName.BACKUP), AT),
        ):
            rollout = journal.after(rollout, record)
        checkout = tmp_path / "builds" / rollout.wish.id
        checkout.mkdir()
        with pytest.raises(Failed):
            await steps_of(shop, rollout).ended(rollout)
        assert not checkout.exists()


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (None, False),
        (timedelta(minutes=5), True),
        (timedelta(minutes=-5), True),
        (timedelta(days=400), False),  # the clock was set back since
    ],
)
async def test_a_question_keeps_to_its_first_deadline(shop: Shop, asked: timedelta | None, kept: bool) -> None:
    until = None if asked is None else stamp(datetime.now(UTC) + asked)
    steps, rollout = await installed(shop)
    rollout = journal.after(rollout, journal.begun(StepName.APPROVE, AT, until))
    question = await steps.question(rollout)
    assert (question.until == until) is kept
    assert datetime.fromisoformat(question.until) <= datetime.now(UTC) + timedelta(minutes=30)
    port = shop.ports[Role.BACKUP]
    assert question.look == (f"curl -i http://127.0.0.1:{port}/", f"backup listens at http 127.0.0.1:{port}")


async def test_without_a_table_nothing_can_be_carried_out(shop: Shop) -> None:
    shop.settings = shop.parse(None)
    with pytest.raises(Failed, match=r"^the configuration has no table \[deploy\] any more$"):
        steps_of(shop, rollout_of(shop))
    with pytest.raises(Refused):
        _ = shop.releases.store


async def test_records_are_told_apart(shop: Shop) -> None:
    """What a rollout says of a release last is what counts."""
    await shop.releases.record(ProvedBad(OLD, "it fell over", AT, "x"))
    await shop.releases.record(ProvedGood(OLD, AT, "y"))
    known = shop.releases.book.release(OLD)
    assert known is not None
    assert known.is_good
