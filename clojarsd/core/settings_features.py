"""Which keys a configuration gives that this version reads but does not act on yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from clojarsd.core.settings_types import CheckKind

if TYPE_CHECKING:
    from pydantic import BaseModel

    from clojarsd.core.settings import Settings


def features_not_acted_on(settings: Settings) -> tuple[str, ...]:
    """One sentence for each key that the file gives and that asks for something this version does not do."""
    return tuple(f"{key}: accepted, not acted on in this version" for key in dict.fromkeys(_keys(settings)))


def _keys(settings: Settings) -> Iterator[str]:
    for number, check in enumerate(settings.checks):
        if check.kind in (CheckKind.NAILGUN, CheckKind.EXEC):
            yield f'checks[{number}].kind "{check.kind.value}"'
    yield from _given("hang", settings.hang, {"restart_after": None, "thread_dump": False})
    for key in ("admin", "hooks"):
        if getattr(settings, key):
            yield key


def _given(where: str, table: BaseModel, off: dict[str, object]) -> Iterator[str]:
    """The keys of `off` that the file gives with another value than the one there."""
    for key, value in off.items():
        if key in table.model_fields_set and getattr(table, key) != value:
            yield f"{where}.{key}"
