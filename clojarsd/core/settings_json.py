"""The whole configuration in force, as the file would say it: for `config show`, and to compare two of them.

Keys are those of the file, durations and sizes text with a unit. There is no `[app]`: each instance has all its keys.
What is written with nothing hidden is read by `parse_settings` as equal settings.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from clojarsd.core.names import Address
from clojarsd.core.quantities import duration_text, size_text
from clojarsd.core.settings import CheckKind, CheckSettings, InstanceSettings, Settings
from clojarsd.core.settings_problems import MASK, Where, key_text, masked_value
from clojarsd.core.settings_process import NEVER, NO_CHROOT, NO_MEMORY_LIMIT
from clojarsd.core.settings_types import UNLIMITED
from clojarsd.core.stopping import SIGNALS

_SIGNAL_NAMES: Final = {number: name for name, number in SIGNALS.items()}
_KEYS_OF_KIND: Final = {
    CheckKind.TCP: frozenset({"path", "status", "command"}),
    CheckKind.HTTP: frozenset({"command"}),
    CheckKind.NAILGUN: frozenset({"path", "status", "command"}),
    CheckKind.EXEC: frozenset({"port", "path", "status"}),
}
"""The keys that a check of that kind may not have."""


def settings_json(settings: Settings, *, hide: bool = True) -> dict[str, Any]:
    """The settings as a value for `json.dumps`.

    Args:
        hide: whether `***` stands for what may be secret: the values of environment variables, and user and password
            in the address of the repository.
    """
    document: dict[str, Any] = {
        "service": _table(settings.service),
        "instances": {role.value: _instance(instance) for role, instance in settings.instances.items()},
        "checks": [_check(check) for check in settings.checks],
        "stall": _table(settings.stall),
        "hang": _table(settings.hang),
        "warmup": _table(settings.warmup),
        "frontends": {name: _table(frontend) for name, frontend in settings.frontends.items()},
        "control": _table(settings.control),
        "hooks": [_table(hook) for hook in settings.hooks],
    }
    if settings.deploy is not None:
        document["deploy"] = _table(settings.deploy)
    if settings.admin is not None:
        document["admin"] = _table(settings.admin)
    whole = {key: document[key] for key in Settings.model_fields if key in document}
    return masked((), whole) if hide else whole


def settings_toml(settings: Settings, *, hide: bool = True) -> str:
    """The settings as text for a file; see `settings_json`. Where something may be hidden, its first line says so."""
    lines = [f"# {MASK} stands for what is not shown."] if hide else []
    for key, value in settings_json(settings, hide=hide).items():
        if key in ("instances", "frontends"):
            for name, table in value.items():
                lines += ["", f"[{key}.{name}]", *_lines(table)]
        elif isinstance(value, list):
            for table in value:
                lines += ["", f"[[{key}]]", *_lines(table)]
        else:
            lines += ["", f"[{key}]", *_lines(value)]
    return "\n".join(lines).lstrip("\n") + "\n"


def masked(where: Where, value: Any) -> Any:
    """A part of `settings_json`, the one at `where`, with `***` for what may be secret."""
    if isinstance(value, dict):
        return {key: masked((*where, key), one) for key, one in value.items()}
    return masked_value(where, value)


def toml_text(value: object) -> str:
    """`value`, from `settings_json`, as TOML writes it on one line."""
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(toml_text(one) for one in value)}]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key_text(key)} = {toml_text(one)}" for key, one in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    assert isinstance(value, int)
    return str(value)


def _lines(table: Mapping[str, object]) -> list[str]:
    return [f"{key} = {toml_text(value)}" for key, value in table.items()]


def _table(table: BaseModel) -> dict[str, Any]:
    written = {}
    for key in type(table).model_fields:
        write: Callable[[Any], Any] = _WRITERS.get(key, _plain)
        written[key] = write(getattr(table, key))
    return {key: value for key, value in written.items() if value is not None}


def _check(check: CheckSettings) -> dict[str, Any]:
    return {key: value for key, value in _table(check).items() if key not in _KEYS_OF_KIND[check.kind]}


def _instance(instance: InstanceSettings) -> dict[str, Any]:
    """The time after the last signal is left out where `stop_timeout` gives it."""
    words = [word for step in instance.stop_signal for word in (_SIGNAL_NAMES[step.signal], duration_text(step.wait))]
    if instance.stop_signal[-1].wait == instance.stop_timeout:
        words.pop()
    first = {"name": instance.name, "host": instance.host, "ports": dict(instance.ports)}
    return {**first, **_table(instance), "stop_signal": words[0] if len(words) == 1 else words}


def _plain(value: object) -> Any:
    """What a value of that type is in the file, where its key says nothing else."""
    if isinstance(value, float):
        return duration_text(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path | Address):
        return str(value)
    if isinstance(value, BaseModel):
        return _table(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


def _listens(value: tuple[Address, ...] | Address) -> Any:
    written = _plain(value)
    return written[0] if isinstance(written, list) and len(written) == 1 else written


_WRITERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "chroot": lambda path: str(path or NO_CHROOT),
    "limits": lambda limits: {name: "unlimited" if one == UNLIMITED else one for name, one in limits.items()},
    "listen": _listens,
    **dict.fromkeys(("log_max_size", "min_free"), size_text),
    "memory_max": lambda size: NO_MEMORY_LIMIT if size is None else size_text(size),
    "reload_signal": lambda signal: _SIGNAL_NAMES[signal],
    "source": lambda source: source or "",
    "umask": lambda bits: f"{bits:03o}",
    **dict.fromkeys(
        ("half_closed_timeout", "idle_timeout", "resolve", "restart_after", "watchdog"),
        lambda seconds: NEVER if seconds is None else duration_text(seconds),
    ),
}
"""How the file has the values of keys for which their type alone does not tell."""
