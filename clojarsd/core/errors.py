"""Every exception that clojarsd raises on purpose.

::

    ClojarsdError
    ├── Refused            asked at the wrong time or for a thing that is not there; nothing was done
    │   └── Denied         the caller may not ask for this
    ├── Failed             tried, and stopped; says what still holds
    │   ├── LaunchFailed   a process could not be made; says how far it came
    │   ├── OrderFailed    an order for an instance has not come to what was asked; has the bare reason
    │   ├── InstanceFailed a release has not come up on an instance, or not stayed up; says on which
    │   ├── CommandFailed  a command of a rollout did not succeed; has its last lines
    │   └── CannotSteer    the kernel does not give connections to instances here; says why
    ├── BadSettings        the configuration cannot be used; carries every problem found
    └── IllegalTransition  a bug: an event that cannot happen in this state; never caught to carry on
"""

from __future__ import annotations

from collections.abc import Sequence

from clojarsd.core.names import LaunchStage, Role, UnitState


class ClojarsdError(Exception):
    """The base of all errors of this project."""


class Refused(ClojarsdError):
    """The order does not fit what is; nothing was done."""


class Denied(Refused):
    """The caller may not ask for this; nothing was done."""


class Failed(ClojarsdError):
    """The order was tried and did not come to its end; the text says what still holds."""


class LaunchFailed(Failed):
    """A process could not be made.

    Attributes:
        stage: how far the launch came.
        reason: why that stage failed, as text for people.
    """

    def __init__(self, stage: LaunchStage, reason: str) -> None:
        super().__init__(f"{stage.value}: {reason}")
        self.stage = stage
        self.reason = reason


class OrderFailed(Failed):
    """An order for an instance was carried out, and has not come to what was asked.

    Attributes:
        reason: why, without what was asked and what serves now, for who says that in other words.
    """

    def __init__(self, cannot: str, reason: str, holds: str) -> None:
        super().__init__(f"{cannot}: {reason}; {holds}")
        self.reason = reason


class InstanceFailed(Failed):
    """An instance that a rollout has restarted or watches has not come up with its release, or not stayed up."""

    def __init__(self, text: str, role: Role) -> None:
        super().__init__(text)
        self.role = role


class CommandFailed(Failed):
    """A command of a rollout did not succeed, or an instance that it has restarted.

    Attributes:
        last_lines: of the output.
    """

    def __init__(self, text: str, last_lines: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.last_lines = tuple(last_lines)


class CannotSteer(Failed):
    """The kernel cannot give connections to instances here; the text says why, and what it steered it steers on."""


class BadSettings(ClojarsdError):
    """The configuration cannot be used; nothing of it was applied.

    Attributes:
        problems: one sentence for each problem, `FILE: key.path: value: what is wrong (what is allowed)`.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class IllegalTransition(ClojarsdError):
    """An event reached a state in which it cannot happen: a bug in the caller."""

    def __init__(self, state: UnitState, event: object) -> None:
        super().__init__(f"{event!r} cannot happen in state {state.value}")
        self.state = state
        self.event = event


def reason_of(error: Exception) -> str:
    """The error in words for the middle of a sentence; of the system's errors what they mean, without their numbers."""
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
