"""What is known of one rollout, and what is seen of the pair meanwhile: the values that its planner decides by."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from clojarsd.core.names import Role


class Kind(enum.Enum):
    """What a rollout brings in: a new release, or one that was there before."""

    DEPLOY = "deploy"
    ROLLBACK = "rollback"


class StepName(enum.Enum):
    """One move of a rollout. The value is the word in the journal, in events and in `status`."""

    CHECKOUT = "checkout"
    TEST = "test"
    BUILD = "build"
    INSTALL = "install"
    BEFORE_SWITCH = "before_switch"
    SWITCH = "switch"
    BACKUP = "backup"
    AFTER_BACKUP = "after_backup"
    SMOKE = "smoke"
    ARCHIVE = "archive"
    APPROVE = "approve"
    BEFORE_PROMOTE = "before_promote"
    PRIMARY = "primary"
    SOAK = "soak"
    AFTER_DEPLOY = "after_deploy"
    GOOD = "good"
    PRUNE = "prune"
    SWITCH_BACK = "switch back"
    BACKUP_BACK = "backup back"
    PRIMARY_BACK = "primary back"


_RETURN = (StepName.SWITCH_BACK, StepName.BACKUP_BACK, StepName.PRIMARY_BACK)
FORWARD: tuple[StepName, ...] = tuple(step for step in StepName if step not in _RETURN)
"""The steps of a whole deploy, in their order."""
GATES = (StepName.BEFORE_SWITCH, StepName.AFTER_BACKUP, StepName.BEFORE_PROMOTE, StepName.AFTER_DEPLOY)
"""The steps that are lists of commands in the settings, under the same names."""
RESTARTS: Mapping[StepName, Role] = {
    StepName.BACKUP: Role.BACKUP,
    StepName.PRIMARY: Role.PRIMARY,
    StepName.BACKUP_BACK: Role.BACKUP,
    StepName.PRIMARY_BACK: Role.PRIMARY,
}
"""Which instance a step restarts."""
BACK: Mapping[Role, StepName] = {Role.BACKUP: StepName.BACKUP_BACK, Role.PRIMARY: StepName.PRIMARY_BACK}
"""The step that brings an instance back to the release that was there before."""


DOING: Mapping[StepName, str] = {
    StepName.CHECKOUT: "checking it out",
    StepName.TEST: "running its tests",
    StepName.BUILD: "building it",
    StepName.INSTALL: "installing it",
    StepName.BEFORE_SWITCH: "running before_switch",
    StepName.SWITCH: "switching the link",
    StepName.BACKUP: "restarting backup",
    StepName.AFTER_BACKUP: "running after_backup",
    StepName.SMOKE: "running smoke",
    StepName.ARCHIVE: "making its class-data archive",
    StepName.APPROVE: "waiting for promote or abort",
    StepName.BEFORE_PROMOTE: "running before_promote",
    StepName.PRIMARY: "restarting primary",
    StepName.SOAK: "watching both instances serve",
    StepName.AFTER_DEPLOY: "running after_deploy",
    StepName.GOOD: "recording it as good",
    StepName.PRUNE: "removing old releases",
    StepName.SWITCH_BACK: "switching the link back",
    StepName.BACKUP_BACK: "bringing backup back",
    StepName.PRIMARY_BACK: "bringing primary back",
}
"""What is being done at a step, in words that go on `cannot deploy 1.2.0: `."""


class Outcome(enum.Enum):
    """How a rollout has ended."""

    DONE = "done"
    """Both instances run the release, and it is recorded as good."""
    FAILED = "failed"
    """It could not be brought in; everything is as it was before."""
    ABORTED = "aborted"
    """An operator did not want it, or nobody said so in time; everything is as it was before."""
    STUCK = "stuck"
    """It could not be brought in, and not everything could be brought back."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for; it does not change while the rollout lasts.

    Attributes:
        id: of the rollout, such as `20261128-212345`.
        tag: None for a release that was given as a file.
        commit: what the tag named when it was asked for; None without a tag, and where that is not known.
        artifact: the file or directory that was given; None for a tag, and for a rollback.
        release: what a rollback brings back; None for a deploy, whose release gets its name when it is installed.
        previous: the release that the link named; None when there was none.
        by: the user who asked; at: when (UTC).
        steps: what is to be done, in this order.
    """

    id: str
    kind: Kind
    tag: str | None
    commit: str | None
    artifact: str | None
    release: str | None
    previous: str | None
    by: str
    at: str
    steps: tuple[StepName, ...]

    @property
    def text(self) -> str:
        """`deploy of 1.2.0`, `rollback to x.jar`."""
        if self.kind is Kind.ROLLBACK:
            return f"rollback to {self.release}"
        return f"deploy of {self.tag if self.tag is not None else self.artifact}"


@dataclass(frozen=True, slots=True)
class GoingBack:
    """Why a rollout does not go on. is_abort: somebody wanted that, or nobody answered; by: who, None for nobody.

    Attributes:
        step: which step it was at.
        output: the last lines of what the step's command has written.
    """

    why: str
    step: StepName
    is_abort: bool = False
    by: str | None = None
    output: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout, as its journal tells.

    Attributes:
        release: the name of what is brought in; None before it is installed.
        begun: how often each step was begun.
        done: the steps that have come to their good end, and the seconds that each took.
        failed: the steps that have failed, going back included.
        at_step: the step that was begun last, and has not ended.
        step_at: when it was begun (UTC), None without one.
        until: when its answer is due (UTC), while that is awaited.
        approved_by: who wanted it to go on to the primary.
        back: why it does not go on, or None.
        outcome: None while it is under way; message: how it has ended, for people.
    """

    wish: Wish
    release: str | None = None
    begun: Mapping[StepName, int] = field(default_factory=dict)
    done: Mapping[StepName, float] = field(default_factory=dict)
    failed: frozenset[StepName] = frozenset()
    at_step: StepName | None = None
    step_at: str | None = None
    until: str | None = None
    approved_by: str | None = None
    back: GoingBack | None = None
    outcome: Outcome | None = None
    message: str | None = None

    @property
    def next_step(self) -> StepName:
        """The first step of the wish that is not done; the last one where all are."""
        return next((step for step in self.wish.steps if step not in self.done), self.wish.steps[-1])

    @property
    def has_changed(self) -> bool:
        """Whether the link may have been switched, or an instance restarted."""
        return self._is_begun(StepName.SWITCH)

    @property
    def is_good(self) -> bool:
        """Whether the release is recorded as good, so that nothing brings it back any more."""
        return StepName.GOOD in self.done

    def touched(self, role: Role) -> bool:
        """Whether the instance may have been restarted into the release."""
        return self._is_begun(StepName.BACKUP if role is Role.BACKUP else StepName.PRIMARY)

    def _is_begun(self, step: StepName) -> bool:
        return step in self.begun or step in self.done


@dataclass(frozen=True, slots=True)
class HeldBack:
    """That an instance is not to be launched with what the link names.

    Attributes:
        release: what it gets instead; None: it must wait, because there was none before.
        why: the rollout, and how it is with it, in words.
        only_from: it holds only while the link names this release; None: whatever the link names.
    """

    release: str | None
    why: str
    only_from: str | None = None


@dataclass(frozen=True, slots=True)
class SeenInstance:
    """One instance. release: what it was launched with, None without a process, or one that was launched without."""

    release: str | None
    is_eligible: bool

    def serves(self, release: str | None) -> bool:
        """Whether it may get connections, and runs that release."""
        return self.is_eligible and self.release == release


@dataclass(frozen=True, slots=True)
class Seen:
    """What is true now. link: the release that the link names, None without one."""

    link: str | None
    instances: Mapping[Role, SeenInstance]

    def is_eligible(self, role: Role) -> bool:
        """Whether the instance may get connections."""
        return self.instances[role].is_eligible
