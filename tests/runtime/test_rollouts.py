"""Orders about releases, over a real repository and a real directory of releases: what begins, and every refusal."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core.api_rollout import DeployOrder, RollbackOrder
from clojarsd.core.errors import Failed, Refused
from clojarsd.core.names import Health, Role, UnitState
from clojarsd.core.releases import ReleaseState
from clojarsd.core.rollout_facts import Kind, Outcome, StepName
from clojarsd.runtime.rollouts import Rollouts, running_release
from tests.support.release_shop import Shop, open_shop
from tests.support.rollouts import serving
from tests.support.waiting import until

pytestmark = pytest.mark.slow

P, B = Role.PRIMARY, Role.BACKUP
OLD = "app-1.0.0.jar"


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(tmp_path) as shop:
        yield shop


# What begins.


async def test_a_first_deploy(shop: Shop) -> None:
    rollout = await shop.begun(DeployOrder("1.0.0"))
    wish = rollout.wish
    assert (wish.kind, wish.tag, wish.commit, wish.release, wish.previous) == (
        Kind.DEPLOY,
        "1.0.0",
        shop.commit,
        None,
        None,
    )
    assert [step.value for step in wish.steps] == [
        *("checkout", "test", "build", "install", "switch", "backup", "approve", "primary", "soak", "good", "prune")
    ]
    assert rollout.approved_by is None
    assert shop.rollouts.under_way == "deploy of 1.0.0 is at step 1 of 11 (checking it out)"


async def test_steps_are_those_that_the_settings_and_the_order_have(tmp_path: Path) -> None:
    gates: dict[str, Any] = {gate: [["true"]] for gate in ("before_switch", "after_backup")}
    async with open_shop(tmp_path / "a", smoke=["true"], cds=True, **gates) as shop:
        rollout = await shop.begun(DeployOrder("1.0.0", yes=True, skip_tests=True))
        assert rollout.approved_by == "ann (--yes)"
        assert [step.value for step in rollout.wish.steps] == [
            *("checkout", "build", "install", "before_switch", "switch", "backup", "after_backup", "smoke", "archive"),
            *("primary", "soak", "good", "prune"),
        ]
    async with open_shop(tmp_path / "b", test=[]) as shop:
        steps = (await shop.begun(DeployOrder("1.0.0"))).wish.steps
        assert StepName.TEST not in steps


async def test_an_artifact_needs_no_repository(tmp_path: Path) -> None:
    async with open_shop(tmp_path / "a", repository="", work_dir=str(tmp_path)) as shop:
        artifact = tmp_path / "app.jar"
        artifact.write_text("app")
        rollout = await shop.begun(DeployOrder(artifact=str(artifact)))
        assert (rollout.wish.text, rollout.wish.commit) == (f"deploy of {artifact}", None)
        assert rollout.wish.steps[0] is StepName.INSTALL


async def test_what_was_there_before_the_first_deploy_is_taken_into_the_log(shop: Shop) -> None:
    await shop.runs(OLD)
    rollout = await shop.begun(DeployOrder("1.0.0"))
    assert rollout.wish.previous == OLD
    known = shop.releases.book.release(OLD)
    assert known is not None
    assert (known.state, shop.releases.book.current) == (ReleaseState.GOOD, OLD)


async def test_what_only_one_instance_runs_is_not_taken_for_good(shop: Shop) -> None:
    await shop.runs(OLD)
    shop.board.publish(serving(B, "other.jar"))
    await shop.begun(DeployOrder("1.0.0"))
    known = shop.releases.book.release(OLD)
    assert known is not None
    assert known.state is ReleaseState.UNPROVED


@pytest.mark.parametrize("asked", [None, "app-1.0.0.jar", "1.0.0"])
async def test_a_rollback(shop: Shop, asked: str | None) -> None:
    await shop.runs("app-1.1.0.jar")
    await shop.installed("app-1.0.0.jar", "app-1.1.0.jar")
    rollout = await shop.begun(RollbackOrder(asked, yes=True))
    wish = rollout.wish
    assert (wish.kind, wish.release, wish.previous, wish.tag) == (Kind.ROLLBACK, OLD, "app-1.1.0.jar", "1.0.0")
    assert wish.steps[0] is StepName.SWITCH
    assert rollout.approved_by == "ann (--yes)"


async def test_a_rollback_to_the_current_one_where_not_both_run_it(shop: Shop) -> None:
    await shop.runs(OLD)
    await shop.installed(OLD)
    shop.board.publish(serving(P, "app-1.1.0.jar"))
    assert (await shop.begun(RollbackOrder(OLD))).wish.release == OLD


async def test_ids_are_times_and_are_never_given_twice(shop: Shop) -> None:
    async with shop.running():
        first = await shop.begun(DeployOrder("1.0.0"))
        shop.rollouts.abort("ann")
        await until(lambda: shop.deployer.why_busy() is None)
        second = await shop.begun(DeployOrder("1.0.0"))
        shop.rollouts.abort("ann")
        await until(lambda: shop.deployer.why_busy() is None)
    assert first.wish.id != second.wish.id
    assert first.wish.id[:15].replace("-", "").isdigit()


# What is refused.


async def test_without_a_table_there_is_nothing_to_order(tmp_path: Path) -> None:
    async with open_shop(tmp_path / "a", table=False) as shop:
        why = "the configuration has no table [deploy]; nothing was done"
        assert await shop.refusal(DeployOrder("1.0.0")) == f"cannot deploy 1.0.0: {why}"
        assert await shop.refusal(RollbackOrder()) == f"cannot roll back: {why}"
        without = Rollouts(shop.deployer, None, shop.board, shop.workshop, shop.journals.free_id)
        with pytest.raises(Refused, match=r"^there are no releases: the configuration has no table \[deploy\]$"):
            await without.releases()
        with pytest.raises(Refused, match=r"^there are no releases: the configuration has no table \[deploy\]$"):
            await shop.rollouts.releases()


async def test_a_tag_needs_a_repository(tmp_path: Path) -> None:
    async with open_shop(tmp_path / "a", repository="", work_dir=str(tmp_path)) as shop:
        assert await shop.refusal(DeployOrder("1.0.0")) == (
            "cannot deploy 1.0.0: [deploy] has no repository; clojarsctl deploy --artifact FILE brings in what was"
            " built elsewhere; nothing was done"
        )


async def test_both_must_be_able_to_serve_unless_it_is_forced(shop: Shop) -> None:
    await shop.runs(OLD)
    shop.board.publish(serving(B, OLD, health=Health.DOWN, reason="http: 503"))
    assert await shop.refusal(DeployOrder("1.0.0")) == (
        "cannot deploy 1.0.0: both instances must be able to serve, and backup is ready (http: 503);"
        " primary still serves; nothing was done; --force deploys all the same"
    )
    shop.board.publish(serving(P, OLD, state=UnitState.FAILED, reason="given up"))
    assert await shop.refusal(DeployOrder("1.0.0")) == (
        "cannot deploy 1.0.0: both instances must be able to serve, and primary is failed (given up) and backup is"
        " ready (http: 503); nothing serves now; nothing was done; --force deploys all the same"
    )
    assert (await shop.begun(DeployOrder("1.0.0", force=True))).wish.previous == OLD


async def test_nothing_forces_a_deploy_while_the_backup_alone_serves(shop: Shop) -> None:
    await shop.runs(OLD)
    shop.board.publish(serving(P, OLD, state=UnitState.FAILED, reason="given up"))
    for force in (False, True):
        assert await shop.refusal(DeployOrder("1.0.0", force=force)) == (
            "cannot deploy 1.0.0: both instances must be able to serve, and primary is failed (given up);"
            " backup still serves; nothing was done; clojarsctl start primary, or clojarsctl rollback, comes first"
        )


async def test_a_link_that_leads_elsewhere(shop: Shop) -> None:
    elsewhere = shop.directory / "elsewhere.jar"
    elsewhere.write_text("x")
    link = shop.directory / "releases" / "current.jar"
    link.symlink_to(elsewhere)
    why = f"{link} leads out of {link.parent}, to {elsewhere}; nothing was done"
    assert await shop.refusal(DeployOrder("1.0.0")) == f"cannot deploy 1.0.0: {why}"
    assert await shop.refusal(RollbackOrder()) == f"cannot roll back: {why}"
    elsewhere.unlink()
    assert (await shop.begun(DeployOrder("1.0.0"))).wish.previous is None, "nobody could come back to that"


async def test_a_tag_that_is_not_there_and_a_repository_that_cannot_be_read(shop: Shop) -> None:
    assert await shop.refusal(DeployOrder("1.0.1")) == (
        f"cannot deploy 1.0.1: {shop.repository.path} has no such tag; nearest: 1.0.0; nothing was done"
    )
    shop.repository.path.rename(shop.directory / "gone")
    told = await shop.refusal(DeployOrder("1.0.0"))
    assert told.startswith(f"cannot deploy 1.0.0: {shop.repository.path} cannot be read: ")
    assert told.endswith("; nothing was done")


async def test_a_tag_that_has_moved_is_refused_unless_it_is_forced(shop: Shop) -> None:
    await shop.installed(OLD)
    new = shop.repository.commit("second", app="2")
    shop.repository.tag("1.0.0", "--force")
    assert await shop.refusal(DeployOrder("1.0.0")) == (
        f"cannot deploy 1.0.0: tag 1.0.0 has moved: it named {shop.commit[:12]} and names {new[:12]} now;"
        " nothing was done; --force deploys what it names now"
    )
    assert (await shop.begun(DeployOrder("1.0.0", force=True))).wish.commit == new


async def test_every_problem_before_a_deploy_is_told_at_once(tmp_path: Path) -> None:
    async with open_shop(tmp_path / "a", build=["no-such-tool"], min_free="1000TiB") as shop:
        told = await shop.refusal(DeployOrder("1.0.0"))
        assert told.startswith("cannot deploy 1.0.0: ")
        assert "no-such-tool" in told
        assert told.endswith("; nothing was done")
        assert told.count("; ") >= 2


async def test_a_port_that_somebody_else_has(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", shop.ports[B])):
        told = await shop.refusal(DeployOrder("1.0.0"))
    assert told.startswith("cannot deploy 1.0.0: backup: ")
    assert str(shop.ports[B]) in told


async def test_an_artifact_that_is_not_there(shop: Shop) -> None:
    told = await shop.refusal(DeployOrder(artifact=f"{shop.directory}/gone.jar"))
    assert told == (
        f"cannot deploy {shop.directory}/gone.jar: cannot read {shop.directory}/gone.jar: "
        f"{shop.directory}/gone.jar: no such file or directory; nothing was done"
    )


async def test_no_release_to_go_back_to(shop: Shop) -> None:
    shows = "clojarsctl releases shows what there is; nothing was done"
    assert await shop.refusal(RollbackOrder()) == f"cannot roll back: no good release is known at all; {shows}"
    assert await shop.refusal(RollbackOrder("1.0.0")) == (
        "cannot roll back to 1.0.0: there is no release 1.0.0: none was installed yet; nothing was done"
    )
    await shop.runs(OLD)
    await shop.installed(OLD)
    assert await shop.refusal(RollbackOrder()) == f"cannot roll back: no good release is known before {OLD}; {shows}"
    assert await shop.refusal(RollbackOrder(OLD)) == (
        f"cannot roll back to {OLD}: it is current, and both instances run it; nothing was done"
    )
    assert await shop.refusal(RollbackOrder("2.0")) == (
        f"cannot roll back to 2.0: there is no release 2.0: there are {OLD} (tag 1.0.0, good); nothing was done"
    )


async def test_a_release_that_is_not_what_was_installed_any_more(shop: Shop) -> None:
    await shop.runs("app-1.1.0.jar")
    await shop.installed(OLD, "app-1.1.0.jar")
    (shop.directory / "releases" / OLD).write_text("changed")
    told = await shop.refusal(RollbackOrder())
    path = shop.directory / "releases" / OLD
    assert told.startswith(f"cannot roll back to {OLD}: {path} is not what was installed: its checksum is sha256:")
    assert told.endswith("; nothing was done")


async def test_one_at_a_time_those_that_are_about_to_begin_included(shop: Shop) -> None:
    shop.journals.may_begin.clear()
    first = asyncio.ensure_future(shop.begun(DeployOrder("1.0.0")))
    await until(lambda: shop.journals.is_beginning)
    assert shop.rollouts.under_way is not None
    assert shop.rollouts.under_way.startswith("deploy of 1.0.0 by ann is about to begin, since 20")
    for act, cannot in (
        (shop.rollouts.deploy(DeployOrder("1.0.0"), "bob"), "cannot deploy 1.0.0"),
        (shop.rollouts.rollback(RollbackOrder(), "bob"), "cannot roll back"),
    ):
        with pytest.raises(Refused) as caught:
            await act
        assert str(caught.value).startswith(f"{cannot}: deploy of 1.0.0 by ann is about to begin, since 20")
        assert str(caught.value).endswith("; nothing was done")
    shop.journals.may_begin.set()
    await first
    with pytest.raises(Refused) as caught:
        await shop.rollouts.deploy(DeployOrder("1.0.0"), "bob")
    told = str(caught.value)
    assert told.startswith("cannot deploy 1.0.0: deploy of 1.0.0 by ann is at step 1 of 11 (checking it out), since 20")
    assert told.endswith("; nothing was done; clojarsctl rollout shows it")


async def test_a_journal_that_cannot_be_made(shop: Shop) -> None:
    (shop.directory / "state" / "rollouts").write_text("in the way")
    told = await shop.refusal(DeployOrder("1.0.0"))
    assert told.startswith("cannot deploy 1.0.0: cannot ")
    assert told.endswith("; nothing was done")


async def test_a_daemon_that_ends_begins_nothing_also_of_what_is_being_prepared(shop: Shop) -> None:
    may_go = asyncio.Event()

    async def slow(wanted: str) -> str:
        await may_go.wait()
        return await shop.journals.free_id(wanted)

    shop.rollouts = Rollouts(shop.deployer, shop.releases, shop.board, shop.workshop, slow)
    refused = asyncio.ensure_future(shop.refusal(DeployOrder("1.0.0")))
    await until(lambda: shop.rollouts.under_way)
    shop.rollouts.refuse("clojarsd is being upgraded")
    may_go.set()
    told = "cannot deploy 1.0.0: clojarsd is being upgraded; nothing was done"
    assert await refused == told
    assert await shop.refusal(DeployOrder("1.0.0")) == told
    assert not (shop.directory / "state" / "rollouts").exists()


async def test_a_configuration_cannot_move_the_link_meanwhile(shop: Shop) -> None:
    moved, without = shop.parse({"current": "other.jar"}), shop.parse(None)
    kept = shop.parse({"test": ["false"]})
    for new in (moved, without, kept):
        assert shop.rollouts.why_not_reload(shop.settings, new) is None
    await shop.begun(DeployOrder("1.0.0"))
    busy = shop.deployer.why_busy()
    tail = f"and {busy}; nothing was changed; clojarsctl rollout shows it"
    link = shop.directory / "releases" / "other.jar"
    assert shop.rollouts.why_not_reload(shop.settings, moved) == f"cannot reload: the link would be {link}, {tail}"
    assert shop.rollouts.why_not_reload(shop.settings, without) == (
        f"cannot reload: there would be no table [deploy], {tail}"
    )
    assert shop.rollouts.why_not_reload(shop.settings, kept) is None
    assert shop.rollouts.why_not_reload(without, moved) is None


# Looks, and answers.


async def test_releases(shop: Shop) -> None:
    await shop.runs("app-1.1.0.jar")
    await shop.installed(OLD, "app-1.1.0.jar")
    shop.board.publish(serving(B, OLD))
    seen = await shop.rollouts.releases()
    assert seen["current"] == "app-1.1.0.jar"
    assert [(one["name"], one["current"], one["previous"], one["runs_on"]) for one in seen["releases"]] == [
        ("app-1.1.0.jar", True, False, ["primary"]),
        (OLD, False, True, ["backup"]),
    ]
    assert len(seen["warnings"]) == 1
    assert seen["warnings"][0].startswith("backup runs app-1.0.0.jar, and the link names app-1.1.0.jar")
    assert running_release(serving(B, OLD, state=UnitState.STOPPED)) is None


async def test_a_damaged_log_is_told_with_the_releases(shop: Shop) -> None:
    await shop.runs(OLD)
    await shop.installed(OLD, "app-1.1.0.jar")
    shop.releases.close()
    log = shop.directory / "state" / "releases.jsonl"
    first, *rest = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first + rest[0].replace(b"app", b"bad", 1) + b"".join(rest[1:]))
    shop.releases.load()
    (warning,) = (await shop.rollouts.releases())["warnings"]
    assert warning == shop.releases.problem
    assert str(log) in warning


async def test_answers_go_to_the_rollout(shop: Shop) -> None:
    async with shop.running():
        await shop.begun(DeployOrder("1.0.0"))
        await until(lambda: shop.rollouts.work.question)
        assert await shop.rollouts.promote("bob") is shop.rollouts.work
        await until(lambda: shop.rollouts.work.outcome)
        with pytest.raises(Refused, match=r"^cannot abort: no deploy or rollback is under way; nothing was done$"):
            shop.rollouts.abort("bob")


async def test_a_rollout_that_has_ended_is_still_seen(shop: Shop) -> None:
    async with shop.running():
        await shop.begun(DeployOrder("1.0.0"))
        shop.rollouts.abort("bob")
        await until(lambda: shop.rollouts.work.outcome)
    view = shop.rollouts.view
    assert view is not None
    assert (view.is_under_way, view.rollout.outcome) == (False, Outcome.ABORTED)


async def test_what_fails_on_the_way_is_refused(shop: Shop) -> None:
    """Such as a disk that gives no name for the journal."""

    async def no_id(wanted: str) -> str:
        raise Failed("cannot look into the directory: input/output error")

    shop.rollouts = Rollouts(shop.deployer, shop.releases, shop.board, shop.workshop, no_id)
    assert await shop.refusal(DeployOrder("1.0.0")) == (
        "cannot deploy 1.0.0: cannot look into the directory: input/output error; nothing was done"
    )
