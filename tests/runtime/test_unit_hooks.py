"""What the commands of a hook find, how their end is told, and that nothing is told after a cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import UNKNOWN_END, ExitStatus, HookName, LaunchStage, Role
from clojarsd.runtime.unit_hooks import UnitHooks
from clojarsd.runtime.unit_parts import HookPlan
from tests.support.units import FakeHook, a_spec
from tests.support.waiting import until

PLAN = HookPlan(lambda: (("first", "word"), ("second",)), 5.0)
NO_RELEASE = LaunchFailed(LaunchStage.RELEASE, "/r/current: no such file or directory")


class Hooks:
    """The hooks of the primary before commands that end when the test says so."""

    def __init__(self) -> None:
        self.deeds: list[str] = []
        self.told: list[str | LaunchFailed | None] = []
        self.run: list[tuple[Sequence[Sequence[str]], float, FakeHook]] = []
        self.hooks = UnitHooks(Role.PRIMARY, self._run)

    def _run(
        self,
        commands: Sequence[Sequence[str]],
        spec: LaunchSpec,
        timeout: float,
        on_end: Callable[[str | None], None],
    ) -> FakeHook:
        hook = FakeHook(spec.imposed["CLOJARSD_HOOK"], self.deeds, on_end, spec)
        self.run.append((commands, timeout, hook))
        return hook

    def begin(
        self,
        hook: HookName,
        plan: HookPlan | None = PLAN,
        how: ExitStatus | None = None,
        spec: Callable[[], LaunchSpec] = lambda: a_spec(Role.PRIMARY),
    ) -> None:
        self.hooks.begin(hook, plan, spec, how, self.told.append)

    @property
    def environment(self) -> dict[str, str]:
        """What the latest hook finds besides the instance's own, and whatever the environment file says."""
        assert self.run[-1][2].spec.environment == a_spec(Role.PRIMARY).environment
        return dict(self.run[-1][2].spec.imposed)


@pytest.fixture
async def hooks() -> Hooks:
    return Hooks()


def refuse() -> LaunchSpec:
    raise NO_RELEASE


def refuse_commands() -> tuple[tuple[str, ...], ...]:
    raise NO_RELEASE


@pytest.mark.parametrize("hook", list(HookName))
async def test_each_hook_finds_its_name_and_the_role_besides_the_instances_own(hooks: Hooks, hook: HookName) -> None:
    hooks.begin(hook, how=ExitStatus(3, None))
    ended = {"EXIT_CODE": "exited", "EXIT_STATUS": "3"} if hook is HookName.POST_STOP else {}
    assert hooks.environment == {"CLOJARSD_ROLE": "primary", "CLOJARSD_HOOK": hook.value, **ended}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (ExitStatus(0, None), {"EXIT_CODE": "exited", "EXIT_STATUS": "0"}),
        (ExitStatus(143, None), {"EXIT_CODE": "exited", "EXIT_STATUS": "143"}),
        (ExitStatus(None, 9), {"EXIT_CODE": "killed", "EXIT_STATUS": "9"}),
        (UNKNOWN_END, {}),
        (None, {}),
    ],
)
async def test_post_stop_finds_how_the_process_ended(
    hooks: Hooks, how: ExitStatus | None, told: dict[str, str]
) -> None:
    hooks.begin(HookName.POST_STOP, how=how)
    assert {key: value for key, value in hooks.environment.items() if key.startswith("EXIT_")} == told


async def test_the_commands_and_the_time_for_each_are_those_of_the_plan(hooks: Hooks) -> None:
    hooks.begin(HookName.PRE_STOP)
    ((commands, timeout, _),) = hooks.run
    assert (commands, timeout) == ((("first", "word"), ("second",)), 5.0)


@pytest.mark.parametrize("failure", [None, "first exited with 1"])
async def test_the_end_is_told_as_it_was(hooks: Hooks, failure: str | None) -> None:
    hooks.begin(HookName.PRE_START)
    assert hooks.told == []
    hooks.run[-1][2].on_end(failure)
    assert hooks.told == [failure]


async def test_a_hook_that_the_settings_have_no_more_is_through(hooks: Hooks) -> None:
    """Told later: whoever begins it is in the middle of a step."""
    hooks.begin(HookName.PRE_STOP, None)
    assert hooks.told == []
    await until(lambda: hooks.told, "the end")
    assert (hooks.told, hooks.run) == ([None], [])


@pytest.mark.parametrize("world", [True, False])
async def test_a_release_that_cannot_be_resolved_is_a_failure_of_the_hook(hooks: Hooks, world: bool) -> None:
    """Whether the commands need it or the world of the instance does."""
    if world:
        hooks.begin(HookName.PRE_START, spec=refuse)
    else:
        hooks.begin(HookName.PRE_START, HookPlan(refuse_commands, 1.0))
    assert hooks.told == []
    await until(lambda: hooks.told, "the end")
    assert hooks.told == [NO_RELEASE]
    assert hooks.run == []


async def test_what_is_imposed_on_the_instance_is_on_its_hooks_too(hooks: Hooks) -> None:
    hooks.begin(HookName.PRE_STOP, spec=lambda: replace(a_spec(Role.PRIMARY), imposed={"SPEED": "9"}))
    assert hooks.environment == {"SPEED": "9", "CLOJARSD_ROLE": "primary", "CLOJARSD_HOOK": "pre_stop"}


async def test_an_error_that_is_no_failed_launch_is_a_bug(hooks: Hooks) -> None:
    def broken() -> LaunchSpec:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        hooks.begin(HookName.PRE_START, spec=broken)


async def test_a_cancel_kills_what_runs_once(hooks: Hooks) -> None:
    hooks.begin(HookName.PRE_START)
    hooks.hooks.cancel()
    hooks.hooks.cancel()
    assert hooks.deeds == ["pre_start cancelled"]


async def test_a_cancel_after_the_end_kills_nothing(hooks: Hooks) -> None:
    hooks.begin(HookName.PRE_START)
    hooks.run[-1][2].on_end(None)
    hooks.hooks.cancel()
    assert hooks.deeds == []


@pytest.mark.parametrize("plan", [None, HookPlan(refuse_commands, 1.0)])
@pytest.mark.parametrize("let_go", [UnitHooks.cancel, UnitHooks.abandon])
async def test_what_was_to_be_told_later_is_not_told_after_a_cancel(
    hooks: Hooks, plan: HookPlan | None, let_go: Callable[[UnitHooks], None]
) -> None:
    """And the hook that came next can still be killed."""
    hooks.begin(HookName.PRE_START, plan)
    let_go(hooks.hooks)
    hooks.begin(HookName.PRE_START)
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    await turned.wait()
    assert hooks.told == []
    hooks.hooks.cancel()
    assert hooks.deeds == ["pre_start cancelled"]


async def test_an_abandoned_hook_runs_on_and_is_not_killed_later(hooks: Hooks) -> None:
    hooks.begin(HookName.PRE_STOP)
    hooks.hooks.abandon()
    hooks.hooks.abandon()
    hooks.hooks.cancel()
    assert hooks.deeds == ["pre_stop abandoned"]
