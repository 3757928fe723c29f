"""Takes orders about releases: looks before it leaps, says what is asked of the deployer, and shows what there is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from clojarsd.core.api_rollout import DeployOrder, RollbackOrder
from clojarsd.core.errors import Failed, Refused
from clojarsd.core.history import stamp
from clojarsd.core.names import Role
from clojarsd.core.progress import what_serves
from clojarsd.core.releases import BecameCurrent, ProvedGood, WasInstalled, other_release
from clojarsd.core.rollout import steps_for
from clojarsd.core.rollout_facts import GATES, Kind, StepName, Wish
from clojarsd.core.rollout_view import RolloutView
from clojarsd.core.settings import DeploySettings, Settings
from clojarsd.core.view import InstanceView, PairView
from clojarsd.runtime.deployer import Deployer
from clojarsd.runtime.releases import Releases
from clojarsd.runtime.rollout_work import RolloutWork
from clojarsd.runtime.status import Board
from clojarsd.runtime.unit_parts import BY_DAEMON
from clojarsd.runtime.workshop import Workshop

FOUND = "found"
"""Stands for a rollout in the records of a release that no rollout has brought."""


class Rollouts:
    """What operators may order about releases. Made by daemon.py; nothing runs inside.

    Args:
        free_id: gives a name of a rollout that no other has had, out of the one that the time gives.
    """

    def __init__(
        self,
        deployer: Deployer,
        releases: Releases | None,
        board: Board,
        workshop: Workshop,
        free_id: Callable[[str], Awaitable[str]],
    ) -> None:
        self._deployer = deployer
        self._releases = releases
        self._board = board
        self._workshop = workshop
        self._free_id = free_id
        self._preparing: str | None = None
        self._refusal: str | None = None

    def refuse(self, why: str) -> None:
        """Begin nothing from now on, what is about to begin included."""
        self._refusal = why

    @property
    def under_way(self) -> str | None:
        """What cannot be taken up by other code just now, in words: a rollout, or one that is about to begin."""
        return self._deployer.under_way or self._preparing

    def why_not_reload(self, old: Settings, new: Settings) -> str | None:
        """Why another configuration cannot be taken over just now; None when it can.

        A rollout must find link and releases where it has found them in its beginning.
        """
        busy = self._deployer.why_busy() or self._preparing
        if busy is None or old.deploy is None or (new.deploy is not None and new.deploy.link == old.deploy.link):
            return None
        what = "there would be no table [deploy]" if new.deploy is None else f"the link would be {new.deploy.link}"
        return f"cannot reload: {what}, and {busy}; nothing was changed; clojarsctl rollout shows it"

    @property
    def view(self) -> RolloutView | None:
        """The rollout that is under way, or was the latest."""
        return self._deployer.view

    @property
    def work(self) -> RolloutWork:
        """What is told of it."""
        return self._deployer.work

    async def deploy(self, order: DeployOrder, by: str) -> RolloutWork:
        """Begin a deploy; on return it will not be forgotten.

        Raises:
            Refused: something stands against it; nothing was done.
        """
        what = order.tag if order.tag is not None else str(order.artifact)
        with self._alone(f"cannot deploy {what}", f"deploy of {what}", by) as cannot:
            deploy, releases = self._table(cannot)
            if order.tag is not None and not deploy.repository:
                raise Refused(
                    f"{cannot}: [deploy] has no repository; clojarsctl deploy --artifact FILE brings in what was built"
                    " elsewhere; nothing was done"
                )
            previous = await self._workshop.previous(cannot)
            if previous is not None and (why := why_not_both(self._board.view(), is_forced=order.force)):
                raise Refused(f"{cannot}: {why}")
            id = await self._new_id()
            await self._workshop.preflight(cannot, deploy, order)
            commit = None
            if order.tag is not None:
                known = releases.book.tags.get(order.tag)
                commit = await self._workshop.resolve(id, deploy, order.tag, known, force=order.force)
            steps = steps_for(
                Kind.DEPLOY,
                from_tag=order.tag is not None,
                tests=bool(deploy.test) and not order.skip_tests,
                asks=not order.yes,
                smokes=bool(deploy.smoke),
                archives=deploy.cds,
                gates=_gates(deploy),
            )
            await self._adopt(releases, previous)
            wish = Wish(id, Kind.DEPLOY, order.tag, commit, order.artifact, None, previous, by, _now(), steps)
            return await self._begin(cannot, wish, _approved(order.yes, by))

    async def rollback(self, order: RollbackOrder, by: str) -> RolloutWork:
        """Begin a rollback; on return it will not be forgotten.

        Raises:
            Refused: something stands against it; nothing was done.
        """
        with self._alone("cannot roll back", "rollback", by) as cannot:
            deploy, releases = self._table(cannot)
            current = await self._workshop.previous(cannot)
            name = self._wanted(releases, order.release, current)
            cannot = f"{cannot} to {name}"
            try:
                await self._workshop.verify(name)
                await releases.reserve()
            except Failed as failed:
                raise Refused(f"{cannot}: {failed}; nothing was done") from failed
            steps = steps_for(
                Kind.ROLLBACK,
                from_tag=False,
                tests=False,
                asks=not order.yes,
                smokes=bool(deploy.smoke),
                archives=False,
                gates=_gates(deploy),
            )
            id = await self._new_id()
            found = releases.book.release(name)
            tag, commit = (None, None) if found is None else (found.installed.tag, found.installed.commit)
            wish = Wish(id, Kind.ROLLBACK, tag, commit, None, name, current, by, _now(), steps)
            return await self._begin(cannot, wish, _approved(order.yes, by))

    async def promote(self, by: str) -> RolloutWork:
        """Let the rollout that waits go on to the primary; raises Refused."""
        return await self._deployer.promote(by)

    def abort(self, by: str) -> RolloutWork:
        """Let the rollout that is under way go back; raises Refused."""
        return self._deployer.abort(by)

    async def releases(self) -> dict[str, Any]:
        """All releases, as JSON, with warnings: of instances that run another one than the link names, of a bad log."""
        if self._releases is None or self._workshop.deploy is None:
            raise Refused("there are no releases: the configuration has no table [deploy]")
        current = await asyncio.to_thread(self._releases.link)
        await self._board.look()
        running = {role: self._board.runs(role, running_release(self._board.instance(role))) for role in Role}
        listed = self._releases.book.as_json(current, running)
        told = (other_release(role, runs, current) for role, runs in running.items())
        warnings = [one for one in told if one is not None]
        if warnings and (busy := self._deployer.why_busy()) is not None:  # which explains it
            warnings = [busy]
        if (problem := self._releases.problem) is not None:
            warnings.append(problem)
        return {"current": current, "releases": listed, "warnings": warnings}

    async def _new_id(self) -> str:
        return await self._free_id(f"{datetime.now(UTC):%Y%m%d-%H%M%S}")

    async def _begin(self, cannot: str, wish: Wish, approved_by: str | None) -> RolloutWork:
        """Begin it, unless the daemon has begun to end while it was prepared; raises Refused."""
        if self._refusal is not None:
            raise Refused(f"{cannot}: {self._refusal}; nothing was done")
        return await self._deployer.begin(wish, approved_by)

    @contextmanager
    def _alone(self, cannot: str, text: str, by: str) -> Iterator[str]:
        """Look before a rollout is begun, one at a time; what fails inside is refused."""
        if self._refusal is not None:
            raise Refused(f"{cannot}: {self._refusal}; nothing was done")
        if (busy := self._deployer.why_busy()) is not None:
            raise Refused(f"{cannot}: {busy}; nothing was done; clojarsctl rollout shows it")
        if self._preparing is not None:
            raise Refused(f"{cannot}: {self._preparing}; nothing was done")
        self._preparing = f"{text} by {by} is about to begin, since {_now()}"
        try:
            yield cannot
        except Failed as failed:
            raise Refused(f"{cannot}: {failed}; nothing was done") from failed
        finally:
            self._preparing = None

    def _table(self, cannot: str) -> tuple[DeploySettings, Releases]:
        deploy = self._workshop.deploy
        if deploy is None or self._releases is None:
            raise Refused(f"{cannot}: the configuration has no table [deploy]; nothing was done")
        return deploy, self._releases

    async def _adopt(self, releases: Releases, current: str | None) -> None:
        """Take into the log what was there before the first deploy, so that there is a way back to it.

        It counts as good when both instances serve with it.
        """
        if current is None or releases.book.release(current) is not None:
            return
        view, at = self._board.view(), _now()
        there = await self._workshop.found(current)
        await releases.record(
            WasInstalled(current, None, None, there.checksum, there.kind, there.size, BY_DAEMON, at, FOUND)
        )
        await releases.record(BecameCurrent(current, at, BY_DAEMON, FOUND))
        if all(seen.release == current and seen.is_eligible for seen in view.instances.values()):
            await releases.record(ProvedGood(current, at, FOUND))

    def _wanted(self, releases: Releases, asked: str | None, current: str | None) -> str:
        """The release to go back to."""
        if asked is not None:
            try:
                name = releases.book.find(asked).name
            except Refused as refused:
                raise Refused(f"cannot roll back to {asked}: {refused}; nothing was done") from refused
        else:
            found = releases.book.previous_good(current)
            if found is None:
                there = f"before {current}" if current is not None else "at all"
                raise Refused(
                    f"cannot roll back: no good release is known {there}; clojarsctl releases shows what there is;"
                    " nothing was done"
                )
            name = found.name
        view = self._board.view()
        if name == current and all(seen.release == name and seen.is_eligible for seen in view.instances.values()):
            raise Refused(f"cannot roll back to {name}: it is current, and both instances run it; nothing was done")
        return name


def why_not_both(view: PairView, *, is_forced: bool) -> str | None:
    """Why nothing can be deployed to instances that cannot both serve, and what to do; None when it can.

    Nothing forces a deploy while the backup is the only one that serves: it is restarted first.
    """
    missing = [seen for seen in view.instances.values() if not seen.is_eligible]
    is_backup_alone = [seen.role for seen in missing] == [Role.PRIMARY]
    if not missing or (is_forced and not is_backup_alone):
        return None
    why = " and ".join(f"{seen.role.value} is {seen.unit.state.value} ({seen.reason})" for seen in missing)
    what = "--force deploys all the same"
    if is_backup_alone:
        what = "clojarsctl start primary, or clojarsctl rollback, comes first"
    return f"both instances must be able to serve, and {why}; {what_serves(view)}; nothing was done; {what}"


def running_release(seen: InstanceView) -> str | None:
    """What the process of the instance was launched with; None without one."""
    return seen.release if seen.unit.has_process else None


def _gates(deploy: DeploySettings) -> frozenset[StepName]:
    return frozenset(gate for gate in GATES if getattr(deploy, gate.value))


def _approved(yes: bool, by: str) -> str | None:
    return f"{by} (--yes)" if yes else None


def _now() -> str:
    return stamp(datetime.now(UTC))
