"""What the control socket carries is read strictly and answered in sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clojarsd.core.api import (
    Access,
    Awaited,
    ErrorKind,
    OrderOptions,
    Rights,
    Step,
    Verb,
    accepted_line,
    describe_order,
    done_line,
    error_body,
    failed_line,
    judge,
    kind_of,
    parse_awaited,
    parse_count,
    parse_flag,
    parse_options,
    parse_patience,
    parse_verb,
    roles_named,
    step_line,
)
from clojarsd.core.errors import Denied, Failed, LaunchFailed, Refused
from clojarsd.core.names import Health, LaunchStage, Role, UnitState
from clojarsd.core.rollout_facts import Kind, Outcome, StepName, Wish
from clojarsd.core.rollout_journal import asked, told
from clojarsd.core.rollout_view import RolloutView
from clojarsd.core.view import DaemonView, PairView
from tests.support.control import instance

NAMES = {Role.PRIMARY: "clojars", Role.BACKUP: "clojars-backup"}


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (b"", OrderOptions(force=False, timeout=None, wait=True)),
        (b" \n", OrderOptions()),
        (b"{}", OrderOptions()),
        (b'{"force": true}', OrderOptions(force=True)),
        (b'{"timeout": 90, "wait": false}', OrderOptions(timeout=90, wait=False)),
        (b'{"timeout": null}', OrderOptions()),
        (b'{"timeout": 0.5}', OrderOptions(timeout=0.5)),
        (b'{"environment": {}}', OrderOptions()),
        (
            b'{"environment": {"LANG": "", "_a1": "\xc3\xa4=b c"}}',
            OrderOptions(environment={"LANG": "", "_a1": "ä=b c"}),
        ),
    ],
)
def test_options_of_an_order(body: bytes, options: OrderOptions) -> None:
    assert parse_options(body) == options


TIMEOUT = "not a number of seconds (more than 0, at most 86400)"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"nonsense", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[]", 'the body is not a JSON object such as {"force": true}'),
        (b'{"forced": true}', "forced is not an option of an order (force, timeout, wait, within, environment)"),
        (b'{"force": 1}', "force is 1, not true or false"),
        (b'{"wait": "no"}', 'wait is "no", not true or false'),
        (b'{"timeout": "5m"}', f'timeout is "5m", {TIMEOUT}'),
        (b'{"timeout": 0}', f"timeout is 0, {TIMEOUT}"),
        (b'{"timeout": true}', f"timeout is true, {TIMEOUT}"),
        (b'{"timeout": NaN}', f"timeout is NaN, {TIMEOUT}"),
        (b'{"timeout": 86401}', f"timeout is 86401, {TIMEOUT}"),
        (b'{"environment": ["A=1"]}', 'environment is not an object such as {"LANG": "C.UTF-8"}'),
        (b'{"environment": {"A-B": "1"}}', '"A-B" is not a name of a variable (letters, digits and _)'),
        (b'{"environment": {"": "1"}}', '"" is not a name of a variable (letters, digits and _)'),
        (b'{"environment": {"1A": "1"}}', '"1A" is not a name of a variable (letters, digits and _)'),
        (b'{"environment": {"A\\n": "1"}}', r'"A\n" is not a name of a variable (letters, digits and _)'),
        (b'{"environment": {"CLOJARSD_INSTANCE": "1"}}', "CLOJARSD_INSTANCE is set by clojarsd alone"),
        (b'{"environment": {"A": 1}}', "the value of A is not text"),
        (b'{"environment": {"A": "b\\u0000"}}', "the value of A cannot be given to a process (no NUL, and UTF-8)"),
        (b'{"environment": {"A": "\\ud800"}}', "the value of A cannot be given to a process (no NUL, and UTF-8)"),
    ],
)
def test_options_that_are_none(body: bytes, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole text is compared
        parse_options(body)
    assert str(refused.value) == sentence


@pytest.mark.parametrize("verb", [verb for verb in Verb if verb not in (Verb.START, Verb.RESTART)])
def test_an_environment_is_for_a_process_that_is_started(verb: Verb) -> None:
    body = b'{"environment": {"A": "1"}}'
    assert parse_options(body, Verb.RESTART).environment == {"A": "1"}
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole text is compared
        parse_options(body, verb)
    assert str(refused.value) == f"environment is for a process that is started (start, restart), not for {verb.value}"


def test_an_unknown_verb_is_told_with_the_known_ones() -> None:
    assert parse_verb("reload") is Verb.RELOAD
    with pytest.raises(ValueError, match=r"^halt is not an order \(start, stop, restart, drain, undrain, reload\)$"):
        parse_verb("halt")


def test_what_is_waited_for() -> None:
    assert parse_awaited("eligible") is Awaited.ELIGIBLE
    for text, shown in ((None, "missing"), ("", "missing"), ("up", "up")):
        with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole text is compared
            parse_awaited(text)
        assert str(refused.value) == f"for is {shown}, not one of ready, eligible, stopped, down"


@pytest.mark.parametrize(
    ("state", "health", "holding"),
    [
        (UnitState.READY, Health.UP, {Awaited.READY, Awaited.ELIGIBLE}),
        (UnitState.READY, Health.DOWN, {Awaited.READY}),
        (UnitState.STARTING, Health.UNKNOWN, set()),
        (UnitState.DRAINING, Health.UP, set()),
        (UnitState.STOPPING, Health.UP, set()),
        (UnitState.STOPPED, Health.UNKNOWN, {Awaited.STOPPED, Awaited.DOWN}),
        (UnitState.BACKOFF, Health.UNKNOWN, {Awaited.DOWN}),
        (UnitState.FAILED, Health.UNKNOWN, {Awaited.DOWN}),
    ],
)
def test_when_what_is_waited_for_holds(state: UnitState, health: Health, holding: set[Awaited]) -> None:
    seen = instance(Role.BACKUP, state=state, health=health)
    assert {one for one in Awaited if one.holds(seen)} == holding


def test_how_long_somebody_waits() -> None:
    assert [parse_patience(text) for text in (None, "90", "0.25", "86400")] == [None, 90.0, 0.25, 86400.0]
    for text in ("0", "0.0", "-1", "86401", "nan", "1e3", "5m", "", "9" * 400):
        with pytest.raises(
            ValueError, match=r"^timeout is .*, not a number of seconds \(more than 0, at most 86400\)$"
        ):
            parse_patience(text)


@pytest.mark.parametrize(("text", "count"), [(None, 50), ("0", 0), ("7", 7), ("1000", 1000)])
def test_counts(text: str | None, count: int) -> None:
    assert parse_count(text, 50, 1000) == count


@pytest.mark.parametrize("text", ["", "-1", "1001", "ten", "1e3", "²", "9" * 5000])
def test_counts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^n is .*, not a number from 0 to 1000$"):
        parse_count(text, 50, 1000)


def test_flags() -> None:
    assert not parse_flag("follow", None)
    assert not parse_flag("follow", "0")
    assert parse_flag("follow", "1")
    with pytest.raises(ValueError, match=r"^follow is yes, not 0 or 1$"):
        parse_flag("follow", "yes")


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("primary", (Role.PRIMARY,)),
        ("backup", (Role.BACKUP,)),
        ("clojars", (Role.PRIMARY,)),
        ("clojars-backup", (Role.BACKUP,)),
        ("all", (Role.BACKUP, Role.PRIMARY)),
    ],
)
def test_roles_by_any_of_their_names_and_the_backup_first(text: str, roles: tuple[Role, ...]) -> None:
    assert roles_named(text, NAMES, all_allowed=True) == roles


def test_a_role_wins_over_an_instance_with_the_same_name() -> None:
    crossed = {Role.PRIMARY: "backup", Role.BACKUP: "primary"}
    assert roles_named("backup", crossed, all_allowed=False) == (Role.BACKUP,)
    assert roles_named("primary", crossed, all_allowed=False) == (Role.PRIMARY,)


def test_an_unknown_instance_is_told_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^there is no instance x \(primary, backup, all, clojars, clojars-backup\)$"):
        roles_named("x", NAMES, all_allowed=True)
    with pytest.raises(ValueError, match=r"^there is no instance all \(primary, backup, clojars, clojars-backup\)$"):
        roles_named("all", NAMES, all_allowed=False)


def test_lines_of_a_stream() -> None:
    at = "2026-11-23T12:00:00.000Z"
    assert step_line(Step(at, Role.BACKUP, "backup is ready")) == {
        "step": {"at": at, "role": "backup", "message": "backup is ready"}
    }
    assert step_line(Step(at, None, "done"))["step"]["role"] is None
    assert done_line() == {"result": "done"}
    assert done_line("backup is ready") == {"result": "done", "message": "backup is ready"}
    assert accepted_line("it goes on") == {"result": "accepted", "message": "it goes on"}
    assert failed_line("cannot") == {"result": "failed", "error": {"kind": "failed", "message": "cannot"}}


def test_errors_and_their_statuses() -> None:
    assert {kind.value: kind.status for kind in ErrorKind} == {
        "usage": 400,
        "denied": 403,
        "refused": 409,
        "failed": 500,
    }
    assert kind_of(Denied("x")) is ErrorKind.DENIED
    assert kind_of(Refused("x")) is ErrorKind.REFUSED
    assert kind_of(Failed("x")) is ErrorKind.FAILED
    assert kind_of(LaunchFailed(LaunchStage.LOG, "x")) is ErrorKind.FAILED
    assert error_body(ErrorKind.USAGE, "x") == {"error": {"kind": "usage", "message": "x"}}


def test_orders_in_words() -> None:
    assert describe_order(Verb.RESTART, (Role.BACKUP, Role.PRIMARY)) == "restart backup and primary"
    assert describe_order(Verb.DRAIN, (Role.PRIMARY,)) == "drain primary"


ACCESS = Access(operators=("clojars", "@wheel"), viewers=("@adm", "eve"), daemon_uid=990)


@pytest.mark.parametrize(
    ("uid", "user", "groups", "rights"),
    [
        (0, "root", set(), Rights.OPERATE),
        (990, "whoever", set(), Rights.OPERATE),
        (1000, "clojars", set(), Rights.OPERATE),
        (1001, "bob", {"users", "wheel"}, Rights.OPERATE),
        (1002, "ann", {"adm"}, Rights.LOOK),
        (1002, "ann", {"adm", "wheel"}, Rights.OPERATE),
        (1003, "eve", set(), Rights.LOOK),
        (1004, "adm", {"clojars"}, Rights.NONE),
        (1005, "@adm", set(), Rights.LOOK),  # no user can have such a name
        (1006, "1006", set(), Rights.NONE),
    ],
)
def test_rights(uid: int, user: str, groups: set[str], rights: Rights) -> None:
    assert ACCESS.rights(uid, user, groups) is rights


def test_a_denial_says_who_may() -> None:
    assert ACCESS.why_denied("ann", Rights.OPERATE) == "ann may not give orders (operators: clojars, @wheel)"
    wish = ACCESS.why_denied("ann", Rights.OPERATE, "see the configuration")
    assert wish == "ann may not see the configuration (operators: clojars, @wheel)"
    assert ACCESS.why_denied("joe", Rights.LOOK) == "joe may not look (operators: clojars, @wheel; viewers: @adm, eve)"
    nobody = Access((), (), 990)
    assert nobody.why_denied("joe", Rights.LOOK) == "joe may not look (operators: root; viewers: none)"


def pair(**states: UnitState) -> PairView:
    daemon = DaemonView("0.1.0", 1, "2026-11-23T12:00:00Z", "x.toml")
    reasons = {state: f"it is {state.value}" for state in UnitState}
    instances = {
        role: instance(role, state=state, reason=None if state is UnitState.READY else reasons[state])
        for role, state in ((Role(name), state) for name, state in states.items())
    }
    return PairView("clojars", daemon, instances, {})


def test_judgement_of_the_pair() -> None:
    ready, failed, starting = UnitState.READY, UnitState.FAILED, UnitState.STARTING
    good = judge(pair(primary=ready, backup=ready))
    assert (good.code, good.message) == (0, "clojars OK: primary and backup can serve")
    one = judge(pair(primary=failed, backup=ready))
    assert one.code == 1
    assert one.message == "clojars WARNING: only backup can serve; primary is failed: it is failed"
    none = judge(pair(primary=failed, backup=starting))
    assert none.code == 2
    assert (
        none.message
        == "clojars CRITICAL: nothing can serve; primary is failed: it is failed; backup is starting: it is starting"
    )


def test_a_rollout_is_told_beside_the_judgement() -> None:
    rollout = told([asked(Wish("1", Kind.DEPLOY, "1.2.0", None, None, None, None, "ann", "then", (StepName.BUILD,)))])
    where = "deploy of 1.2.0 by ann is at step 1 of 1 (building it), since then"
    for states, begin in (
        ({"primary": UnitState.READY, "backup": UnitState.READY}, "clojars OK: primary and backup can serve"),
        (
            {"primary": UnitState.FAILED, "backup": UnitState.READY},
            "clojars WARNING: only backup can serve; primary is failed: it is failed",
        ),
    ):
        view = replace(pair(**states), rollout=RolloutView(rollout, "/log"))
        assert judge(view).message == f"{begin}; {where}"
    done = replace(rollout, outcome=Outcome.DONE)
    assert judge(replace(view, rollout=RolloutView(done, "/log"))).message == begin


def test_a_ready_instance_whose_checks_fail_cannot_serve() -> None:
    view = pair(primary=UnitState.READY, backup=UnitState.READY)
    sick = replace(view.instances[Role.PRIMARY], health=Health.DOWN, reason="its checks fail")
    verdict = judge(replace(view, instances={**view.instances, Role.PRIMARY: sick}))
    assert (verdict.code, verdict.message) == (
        1,
        "clojars WARNING: only backup can serve; primary is ready: its checks fail",
    )
