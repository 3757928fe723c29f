"""The tables that say how an instance is judged: checks, stalls, hangs, warm-up; and what every table is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from clojarsd.core import settings_process as processes
from clojarsd.core import settings_types as kinds
from clojarsd.core.settings_types import CheckKind


class Table(BaseModel):
    """A table of the configuration: frozen, and it knows its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class CheckSettings(Table):
    """One check, which both instances must pass. port: None for kind exec alone, the only one with a command."""

    kind: kinds.KindChoice = Field(description=", ".join(kind.value for kind in CheckKind))
    port: kinds.Key | None = None
    path: kinds.Request = "/health"
    status: kinds.Statuses = (200,)
    command: kinds.OptionalCommand = ()
    interval: kinds.Duration = 1.0
    timeout: kinds.Duration = 1.0
    rise: kinds.Passes = 1
    fall: kinds.Passes = 2


class StallSettings(Table):
    """When a listener that does not accept is looked at more closely."""

    enabled: kinds.Boolean = True
    sample: kinds.Duration = 0.05
    after: kinds.Duration = 0.3


class HangSettings(Table):
    """What is done about an instance that lives but does not serve. restart_after: None for never."""

    restart_after: processes.RestartAfter = 30.0
    thread_dump: kinds.Boolean = True


class WarmupSettings(Table):
    """What an instance is asked before traffic comes. required: whether one that fails at it does not serve."""

    requests: kinds.Requests = ()
    rounds: kinds.Count = 20
    timeout: kinds.Duration = 20.0
    required: kinds.Boolean = False
