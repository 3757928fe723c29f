"""Problems of a configuration, in words: `FILE: key.path: value: what is wrong (what is allowed)`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from pydantic import BaseModel, ValidationError

Where = tuple[str | int, ...]
"""The way to a value: keys of tables, and numbers of array elements, from 0."""

MASK: Final = "***"
"""What stands for a value that may be secret."""

_MOST_CHARACTERS: Final = 100
_USERINFO: Final = re.compile(r"(?<=://)[^/]*@")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong.

    Attributes:
        where: the key to blame.
        text: the value and what is wrong with it, as text for people.
        rests_on: other keys that were read to come to this; if one of them is wrong itself, this one is not told.
    """

    where: Where
    text: str
    rests_on: tuple[Where, ...] = ()

    def depends_on(self, where: Where) -> bool:
        """Whether the key at `where`, or one in it, was read to come to this."""
        return any(read[: len(where)] == where or where[: len(read)] == read for read in (self.where, *self.rests_on))

    def __str__(self) -> str:
        return f"{path_text(self.where)}: {self.text}"


def path_text(where: Where) -> str:
    """The dotted path: `frontends.http.listen`, `checks[0].port`; a key that needs quotes in TOML has them."""
    text = ""
    for part in where:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + key_text(part)
    return text


def key_text(key: str) -> str:
    """`key` as a key of TOML, quoted where it must be."""
    plain = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if plain else json.dumps(key, ensure_ascii=False)


def word_text(word: str) -> str:
    """`word` for a sentence: as it is, or quoted as in TOML where it is empty or would not show."""
    return word if word and word.isprintable() else json.dumps(word)


def masked_value(where: Where, value: object) -> object:
    """`value` as it may be shown: without the values of environment variables, and passwords in addresses."""
    if where[:2] in (("app", "environment"), ("deploy", "environment")) or (
        where[:1] == ("instances",) and where[2:3] == ("environment",)
    ):
        return dict.fromkeys(value, MASK) if isinstance(value, Mapping) else MASK
    if where == ("deploy", "repository") and isinstance(value, str):
        return _USERINFO.sub(f"{MASK}@", value)
    return value


def value_text(value: object) -> str:
    """`value` as TOML writes it, on one line, cut after 100 characters."""
    text = _value_text(value)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."


def _value_text(value: object) -> str:
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(_value_text(one) for one in value)}]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key_text(str(key))} = {_value_text(one)}" for key, one in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    return str(value)


def unknown_key(where: Where, allowed: Iterable[str]) -> Problem:
    """The problem of a key that does not exist; `allowed` are those that do."""
    known = tuple(allowed)
    near = get_close_matches(str(where[-1]), known, n=1)
    meant = f", did you mean {near[0]}?" if near else ""
    return Problem(where, f"unknown key{meant} (allowed: {', '.join(known)})")


def problems_of(error: ValidationError, model: type[BaseModel], where: Where) -> list[Problem]:
    """What pydantic found in the table at `where`, in our words and in the order of the keys in the model."""
    return [_problem(details["type"], details["loc"], details, model, where) for details in error.errors()]


def _problem(kind: str, at: Where, details: Mapping[str, object], model: type[BaseModel], where: Where) -> Problem:
    if kind == "missing":
        meaning = _table(model, at).model_fields[str(at[-1])].description
        return Problem(where + at, f"missing ({meaning})")
    if kind == "extra_forbidden":
        return unknown_key(where + at, _table(model, at).model_fields)
    context = details["ctx"]
    assert isinstance(context, dict), f"a type of pydantic's own came into the settings: {kind}"
    if at[-1] == "[key]":
        return Problem((*where, *at[:-1]), f"{value_text(details['input'])}: {context['error']}")
    shown = masked_value((*where, *at), details["input"])
    return Problem((*where, *at), f"{value_text(shown)}: {context['error']}")


def _table(model: type[BaseModel], at: Sequence[str | int]) -> type[BaseModel]:
    """The model of the table that the last key of `at` belongs to."""
    for part in at[:-1]:
        inner = model.model_fields[str(part)].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return model
