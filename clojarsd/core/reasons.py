"""Why an instance gets no connections, and how things ended: sentences for people, from facts."""

from __future__ import annotations

from collections.abc import Sequence

from clojarsd.core.names import UNKNOWN_END, Goal, Health, HookName, Role, UnitState
from clojarsd.core.restart import RestartWhen
from clojarsd.core.signal_names import signal_name
from clojarsd.core.unit import SIGKILL, EndCause, Unit, UnitPolicy
from clojarsd.core.unit_events import Exited, NotLaunched
from clojarsd.core.view import CheckView
from clojarsd.core.warmup import Warmup


def describe_end(
    role: Role,
    end: Exited | NotLaunched,
    ended_by: EndCause | None,
    hook_failure: str | None = None,
    *,
    warmup_failure: str | None = None,
    unready: str | None = None,
    policy: UnitPolicy,
    sent: int,
) -> str:
    """How the latest process ended: `exited with 1`, `cannot start backup: opening its log: ...`.

    Args:
        hook_failure, warmup_failure: how its post_start or warm-up failed, if that is why it was ended.
        unready: what it still lacked when it was not ready in time; see `why_unready`.
        sent: how many stop signals it was sent; more than the policy has: the last ones were SIGKILL.
    """
    if isinstance(end, NotLaunched):
        if end.stage.waits_for_operator:
            return f"cannot start {role.value}: {end.reason}"
        return f"cannot start {role.value}: {end.stage.value}: {end.reason}"
    status = end.status
    if sent > len(policy.stop_steps) and (status.signal == SIGKILL or status == UNKNOWN_END):
        names = ", ".join(signal_name(number) for number, _ in policy.stop_steps)
        how = f"had not ended after {names} and was killed"
    else:
        how = str(status) if status.signal is None else f"was killed by {signal_name(status.signal)}"
    if ended_by is EndCause.START_TIMEOUT:
        why = f" ({unready})" if unready is not None else ""
        return f"was not ready in time{why} and was ended ({how})"
    if ended_by is EndCause.POST_START:
        why = f": {hook_failure}" if hook_failure is not None else ""
        return f"was ended because its post_start failed{why} ({how})"
    if ended_by is EndCause.WARMUP:
        why = f": {warmup_failure}" if warmup_failure is not None else ""
        return f"was ended because its warm-up failed{why} ({how})"
    return how


def how_it_ended(role: Role, unit: Unit, policy: UnitPolicy, sent: int, unready: str | None = None) -> str | None:
    """How the unit's latest process ended; None before the first end. sent, unready: as for `describe_end`."""
    if unit.last_end is None:
        return None
    return describe_end(
        role,
        unit.last_end,
        unit.ended_by,
        unit.hook_failure,
        warmup_failure=unit.warmup_failure,
        unready=unready,
        policy=policy,
        sent=sent,
    )


def why_unready(checks: Sequence[CheckView], *, is_silent: bool) -> str | None:
    """What an instance that starts still lacks: `http: connection refused`; None where that is not known.

    Args:
        is_silent: whether it has to say READY=1 and has not.
    """
    return _seen(checks) or ("it has not said READY=1" if is_silent else None)


def why_not_eligible(
    role: Role,
    unit: Unit,
    health: Health,
    checks: Sequence[CheckView],
    policy: UnitPolicy,
    next_try_at: str | None,
    *,
    ended_after: int = 0,
    unready: str | None = None,
    is_silent: bool = False,
    stopped_by: str | None = None,
    stopped_at: str | None = None,
    stalled: str | None = None,
    warmup: Warmup | None = None,
) -> str | None:
    """Why the instance gets no connections; None when it may.

    Args:
        next_try_at: wall-clock time of the unit's deadline, for `BACKOFF`.
        ended_after: how many stop signals the latest process that has ended was sent.
        unready: what it still lacked, if it was not ready in time.
        is_silent: whether it has to say READY=1 and has not.
        stopped_by: whose order it is that the instance is down, and
        stopped_at: when they gave it (UTC); None when that is not known.
        stalled: that it accepts no connections, in words; None when it is not known not to.
        warmup: how far its warm-up is, or None without one.
    """
    state = unit.state
    ended = how_it_ended(role, unit, policy, ended_after, unready)
    if state is UnitState.READY:
        if health is Health.STALLED:
            return stalled
        if health is Health.UP:
            return None
        failing = f"its checks fail ({_seen(checks)})"
        return failing if stalled is None else f"{stalled}; {failing}"
    if state is UnitState.STARTING:
        if unit.warming_since is not None:
            return f"warming up: {warmup.progress()}" if warmup is not None else "warming up"
        return _why_starting(unit, health, checks, is_silent, ended)
    if state is UnitState.DRAINING:
        return _why_draining(role, unit)
    if state is UnitState.STOPPING:
        return _why_stopping(unit, policy, ended)
    if state is UnitState.BACKOFF:
        return f"{ended}; next try at {next_try_at}"
    if state is UnitState.FAILED:
        return f"{ended}; given up {_limit(policy)}; `clojarsctl start {role.value}` tries again"
    if unit.lacks is not None:
        return unit.lacks
    if unit.goal is Goal.UP:
        return f"{ended}, which is no failure, so it is not started again; `clojarsctl start {role.value}` does"
    if stopped_by is not None:
        when = f" at {stopped_at}" if stopped_at is not None else ""
        return f"stopped by {stopped_by}{when}; `clojarsctl start {role.value}` starts it"
    return "stopped by order" if unit.incarnation else "not started yet"


def _seen(checks: Sequence[CheckView]) -> str:
    """What the checks that are not up saw last."""
    return ", ".join(
        f"{check.kind}: {check.last or 'no result yet'}" for check in checks if check.health is not Health.UP
    )


def _why_starting(unit: Unit, health: Health, checks: Sequence[CheckView], is_silent: bool, ended: str | None) -> str:
    if unit.hook is HookName.POST_START:
        return "its checks have passed, its post_start runs"
    if unit.hook is HookName.PRE_START:
        return "its pre_start runs"
    if health is Health.UP:
        waiting = "its checks pass; it has not said READY=1 yet" if is_silent else "its checks pass"
    else:
        passed = any(check.health is Health.UP for check in checks)
        waiting = f"{'not every' if passed else 'no'} check has passed yet ({_seen(checks)})"
    unasked = unit.ended_by is None or not unit.ended_by.is_asked
    return f"{waiting}; the one before {ended}" if isinstance(unit.last_end, Exited) and unasked else waiting


def _why_draining(role: Role, unit: Unit) -> str:
    if unit.cause is EndCause.STOP:
        return "its connections may end before it is stopped"
    if unit.cause is EndCause.RESTART:
        return "its connections may end before it is restarted"
    return f"out of rotation by order; `clojarsctl undrain {role.value}` brings it back"


def _why_stopping(unit: Unit, policy: UnitPolicy, ended: str | None) -> str:
    if unit.hook is HookName.POST_STOP:
        return f"{ended}; its post_stop runs"
    assert unit.cause is not None
    why = unit.cause.value
    if unit.cause in (EndCause.POST_START, EndCause.WARMUP):
        why = f"{why} ({unit.hook_failure if unit.cause is EndCause.POST_START else unit.warmup_failure})"
    if unit.hook is HookName.PRE_STOP:
        return f"{why}: its pre_stop runs"
    sent = policy.stop_steps[: unit.stop_step]
    names = [signal_name(number) for number, _ in sent]
    if unit.stop_step > len(policy.stop_steps):
        names.append(signal_name(SIGKILL))
    return f"{why}: {', '.join(names)} sent"


def _limit(policy: UnitPolicy) -> str:
    restart = policy.restart
    if restart.when is RestartWhen.NEVER:
        return "because restart is never"
    count = restart.limit_count
    return f"after {count} restart{'' if count == 1 else 's'} within {restart.limit_within:g} s"
