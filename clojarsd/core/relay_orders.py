"""What operators order about one frontend, as the supervisor tells it to the relay process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from clojarsd.core.frontend_plan import CountedFrom
from clojarsd.core.names import Role
from clojarsd.core.routing import Caps


@dataclass(frozen=True, slots=True)
class PauseFrontend:
    """Have new connections of a frontend wait for so many seconds. `by`: who wishes it."""

    frontend: str
    seconds: float
    by: str


@dataclass(frozen=True, slots=True)
class ResumeFrontend:
    """Let new connections of a frontend wait no more."""

    frontend: str


@dataclass(frozen=True, slots=True)
class CapFrontend:
    """Have no more connections than that, until the settings of the frontend say something else about it."""

    frontend: str
    caps: Caps


@dataclass(frozen=True, slots=True)
class ShareFrontend:
    """Let that part of new connections, from 0 to 0.5, go to the backup while both may get some."""

    frontend: str
    share: float


@dataclass(frozen=True, slots=True)
class CountFrom:
    """Show what is counted from here on."""

    frontend: str
    counted_from: CountedFrom


@dataclass(frozen=True, slots=True)
class CountOn:
    """Count these too, which a process that has ended had accepted for the frontend."""

    frontend: str
    accepted: Mapping[Role | None, int]


FrontendOrder: TypeAlias = PauseFrontend | ResumeFrontend | CapFrontend | ShareFrontend | CountFrom | CountOn
