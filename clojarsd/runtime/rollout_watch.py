"""Watches the pair for a rollout: how it is, and whether a release that has come up falls over soon after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from clojarsd.core.errors import InstanceFailed
from clojarsd.core.names import Goal, Incarnation, Role, UnitState
from clojarsd.core.rollout_facts import Seen, SeenInstance
from clojarsd.core.view import InstanceView
from clojarsd.runtime.status import Board

_AT_REST = (UnitState.STOPPED, UnitState.FAILED, UnitState.BACKOFF, UnitState.DRAINING)


def look(board: Board, link: str | None) -> Seen:
    """How the pair is now.

    Args:
        link: what the link names, or None.
    """
    return Seen(link, {role: _seen(board.instance(role)) for role in Role})


async def settled(board: Board) -> None:
    """Return when it is known how both instances are: neither is just taken up, or on its way somewhere."""
    await board.until(lambda view: all(_is_settled(seen) for seen in view.instances.values()))


async def soak(board: Board, roles: Sequence[Role], seconds: float, patience: float) -> None:
    """Return when the instances have served for so long without a break.

    Args:
        patience: seconds more in which one that is not well for a moment may become well again.

    Raises:
        InstanceFailed: one of them has ended, or was not well for so long.
    """
    loop = asyncio.get_running_loop()
    before = _incarnations(board, roles)
    give_up_at = loop.time() + seconds + patience
    since = loop.time()
    while True:
        sick = [board.instance(role) for role in roles if not board.instance(role).is_eligible]
        for role, incarnation in before.items():
            if (why := _why_ended(board.instance(role), incarnation)) is not None:
                raise InstanceFailed(f"{role.value} {why}", role)
        now = loop.time()
        if sick:
            since = now
            if now >= give_up_at:
                raise InstanceFailed(f"{sick[0].role.value} does not serve: {sick[0].reason}", sick[0].role)
            await _change(board, give_up_at)
        elif now - since >= seconds:
            return
        else:
            await _change(board, since + seconds)


async def until_answered(board: Board, role: Role, is_answered: Callable[[], bool]) -> None:
    """Wait for an answer. The instance may be restarted by order meanwhile, but must not fall over by itself.

    Raises:
        InstanceFailed: it has.
    """
    falls = board.instance(role).restarts
    while not is_answered():
        seen = board.instance(role)
        has_ended = seen.unit.state is UnitState.STOPPED and seen.unit.goal is Goal.UP  # by itself, with success
        if seen.restarts > falls or has_ended or seen.unit.state in (UnitState.BACKOFF, UnitState.FAILED):
            raise InstanceFailed(f"{role.value} has fallen over: {how_it_is(seen)}", role)
        await board.change()


def how_it_is(seen: InstanceView) -> str:
    """Why an instance is not what it should be: how it ended, and not when it would be launched again."""
    if seen.ended is not None and (seen.reason is None or seen.unit.state is UnitState.BACKOFF):
        return seen.ended
    return seen.reason or f"it is {seen.unit.state.value}"


def _why_ended(seen: InstanceView, before: Incarnation) -> str | None:
    """How the instance has ended since, after its name; None when it has not."""
    if seen.unit.goal is Goal.DOWN:
        return "was told to stop meanwhile"
    if seen.unit.incarnation != before or not seen.unit.has_process:
        return f"has ended: {how_it_is(seen)}"
    return None


def _incarnations(board: Board, roles: Sequence[Role]) -> Mapping[Role, Incarnation]:
    return {role: board.instance(role).unit.incarnation for role in roles}


async def _change(board: Board, until: float) -> None:
    with suppress(TimeoutError):  # then time itself is what has changed
        async with asyncio.timeout_at(until):
            await board.change()


def _seen(instance: InstanceView) -> SeenInstance:
    is_with_it = instance.unit.has_process or instance.unit.state is UnitState.BACKOFF  # and soon will be again
    return SeenInstance(instance.release if is_with_it else None, instance.is_eligible)


def _is_settled(seen: InstanceView) -> bool:
    return seen.unit.state in _AT_REST or seen.is_eligible or seen.is_down
