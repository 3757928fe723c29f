"""What happens to a unit, and what must be done about it: orders, reports and effects as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from clojarsd.core.history import EventName
from clojarsd.core.names import ExitStatus, HookName, Incarnation, LaunchStage

# Orders: what an operator asks for.


@dataclass(frozen=True, slots=True)
class Start:
    """Be up."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Be down: drain, then end the process. within: seconds that the drain may take, where that is sooner."""

    within: float | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    """Be up with a new process: drain, end the old one, launch. within: as for a stop."""

    within: float | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """Run on without new connections. within: seconds that open ones may last, where that is sooner."""

    within: float | None = None


@dataclass(frozen=True, slots=True)
class Undrain:
    """Get connections again."""


@dataclass(frozen=True, slots=True)
class Reload:
    """Read your configuration again: the reload signal to the main process."""


Order: TypeAlias = Start | Stop | Restart | Drain | Undrain | Reload

# Reports: news from the outside about one incarnation.


@dataclass(frozen=True, slots=True)
class Proved:
    """The checks have passed for the first time."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class NotLaunched:
    """The launch did not come to the end; no process is left."""

    incarnation: Incarnation
    stage: LaunchStage
    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The process has ended and is reaped."""

    incarnation: Incarnation
    status: ExitStatus


@dataclass(frozen=True, slots=True)
class Drained:
    """No connection to it is left."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class HookEnded:
    """The commands of a hook are through.

    Attributes:
        failure: which one failed, how, and its last words; None when none did.
        stage: how far the launch came that a failed pre_start is part of.
    """

    incarnation: Incarnation
    hook: HookName
    failure: str | None
    stage: LaunchStage = LaunchStage.PRE_START


@dataclass(frozen=True, slots=True)
class TimeAsked:
    """The process asks for time: at least that many seconds from now until it is ready, or has ended."""

    incarnation: Incarnation
    seconds: float


@dataclass(frozen=True, slots=True)
class Warmed:
    """The warm-up is over. failure: why the process has not become warm; None when it has, or need not be."""

    incarnation: Incarnation
    failure: str | None


Report: TypeAlias = Proved | NotLaunched | Exited | Drained | HookEnded | TimeAsked | Warmed


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The state has lasted until its deadline."""


Event: TypeAlias = Order | Report | DeadlinePassed

# Effects: what must be done about a decision. Each is begun and not waited for.


@dataclass(frozen=True, slots=True)
class Launch:
    """Make the process of this incarnation, and begin its checks."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class RunHook:
    """Run the commands of a hook and report `HookEnded`."""

    incarnation: Incarnation
    hook: HookName


@dataclass(frozen=True, slots=True)
class EndHook:
    """Kill the commands of the hook that runs; nothing is reported."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class BeginWarmup:
    """Warm the process of this incarnation up, and report `Warmed`."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class EndWarmup:
    """Warm it up no more; nothing is reported."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to the whole process group of this incarnation."""

    incarnation: Incarnation
    number: int


@dataclass(frozen=True, slots=True)
class SignalMain:
    """Send a signal to the main process of this incarnation alone."""

    incarnation: Incarnation
    number: int


@dataclass(frozen=True, slots=True)
class BeginDrain:
    """Give it no new connections, let the open ones end, and report `Drained` when none is left.

    Attributes:
        within: seconds in which that shall be, where it is sooner than by the settings; None: by them alone.
    """

    incarnation: Incarnation
    within: float | None = None


@dataclass(frozen=True, slots=True)
class EndDrain:
    """It may get connections again."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class CutConnections:
    """Close what is still open to it."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class EndChecks:
    """Check this incarnation no more."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Announce:
    """Put it into the history."""

    event: EventName


Effect: TypeAlias = (
    Launch
    | RunHook
    | EndHook
    | BeginWarmup
    | EndWarmup
    | Signal
    | SignalMain
    | BeginDrain
    | EndDrain
    | CutConnections
    | EndChecks
    | Announce
)  # fmt: skip
