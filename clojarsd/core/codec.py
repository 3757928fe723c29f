"""Values to what JSON can hold and back, driven by their declared types.

================================ ==================================================================================
frozen dataclass                 an object with its fields; in a union also `"class"`, the name of its class, which is
                                 not needed to read one with exactly the fields of a member
enum                             the name of the member: values are often phrases, and phrases get better
tuple, frozenset                 a list
mapping                          an object where keys are text or enum members, else a list of `[key, value]`
bytes, a float that is no number an object with one field, `base64` or `float`
NewType, Annotated               what they stand for
None, bool, int, float, str, Any as they are
================================ ==================================================================================

Documents of another version can be read: fields that the class does not know are ignored, and missing ones get their
default.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import enum
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NewType, TypeVar, Union

T = TypeVar("T")

CLASS = "class"
"""Tells the members of a union apart. A keyword of Python, so that no field has this name."""
MEMBER = "member"
"""With `CLASS`: the member of that enum."""
_PLAIN = (bool, int, float, str)
_KINDS = {bool: "a truth value", int: "a whole number", float: "a number", str: "text"}


class Unfit(ValueError):
    """A document does not fit the type it is read as.

    Attributes:
        where: the way to the place, as `instances.BACKUP.unit.goal`; empty for the whole.
        wrong: what is wrong there.
    """

    def __init__(self, where: str, wrong: str) -> None:
        super().__init__(f"{where}: {wrong}" if where else wrong)
        self.where = where
        self.wrong = wrong


def encode(value: object, kind: Any = None) -> Any:
    """What JSON can hold of the value.

    Args:
        kind: the declared type of the value; None: its class.

    Raises:
        TypeError: the value is not of its declared type, or the type is none of those this module knows: a bug.
    """
    kind = _bare(type(value) if kind is None else kind)
    origin = typing.get_origin(kind)
    if kind is Any:
        return _as_it_is(value)
    if _is_union(kind):
        return _encode_member(value, kind)
    if kind is type(None) and value is None:
        return None
    if kind in _PLAIN and _is_plain(value, kind):
        return _encode_float(float(value)) if kind is float else value  # type: ignore[arg-type]
    if kind is bytes and isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if _is_enum(kind) and isinstance(value, kind):
        return value.name
    if _is_dataclass(kind) and type(value) is kind:
        return _encode_dataclass(value, kind)
    if origin is tuple and isinstance(value, tuple):
        return [encode(item, hint) for item, hint in zip(value, _of_tuple(kind, len(value)), strict=True)]
    if origin is frozenset and isinstance(value, frozenset):
        (hint,) = typing.get_args(kind)
        return sorted((encode(item, hint) for item in value), key=json.dumps)
    if _is_mapping(kind) and isinstance(value, Mapping):
        return _encode_mapping(value, kind)
    raise TypeError(f"{value!r} cannot be written as {_name(kind)}")


def decode(kind: type[T], document: object) -> T:
    """The value of that type that the document, as JSON has it, stands for.

    Raises:
        Unfit: it stands for none.
        TypeError: the type is none of those this module knows: a bug.
    """
    value: T = _decode(kind, document, "")
    return value


def _decode(kind: Any, document: object, where: str) -> Any:
    kind = _bare(kind)
    origin = typing.get_origin(kind)
    if kind is Any:
        return document
    if _is_union(kind):
        return _decode_member(kind, document, where)
    if kind is type(None):
        return _expect(document is None, None, where, f"{_seen(document)} is not null")
    if kind in _PLAIN:
        return _decode_plain(kind, document, where)
    if kind is bytes:
        return _decode_bytes(document, where)
    if _is_enum(kind):
        return _decode_enum(kind, document, where)
    if _is_dataclass(kind):
        return _decode_dataclass(kind, document, where)
    if origin is tuple:
        items = _list(document, where)
        hints = _of_tuple(kind, len(items), where)
        return tuple(
            _decode(hint, item, _at(where, n)) for n, (hint, item) in enumerate(zip(hints, items, strict=True))
        )
    if origin is frozenset:
        (hint,) = typing.get_args(kind)
        return frozenset(_decode(hint, item, _at(where, n)) for n, item in enumerate(_list(document, where)))
    if _is_mapping(kind):
        return _decode_mapping(kind, document, where)
    raise TypeError(f"{_name(kind)} cannot be read")


# One kind of type each, both ways.


def _encode_float(value: float) -> Any:
    return value if math.isfinite(value) else {"float": str(value)}


def _decode_plain(kind: type, document: object, where: str) -> Any:
    if kind is float and isinstance(document, dict) and document.get("float") in {"inf", "-inf", "nan"}:
        return float(document["float"])
    _expect(_is_plain(document, kind), None, where, f"{_seen(document)} is not {_KINDS[kind]}")
    try:
        return kind(document)
    except OverflowError:
        raise Unfit(where, f"{_seen(document)} is too large") from None


def _decode_bytes(document: object, where: str) -> bytes:
    wrong = Unfit(where, f"{_seen(document)} is not bytes in base64")
    if not isinstance(document, dict) or not isinstance(document.get("base64"), str):
        raise wrong
    try:
        return base64.b64decode(document["base64"], validate=True)
    except (binascii.Error, ValueError):
        raise wrong from None


def _decode_enum(kind: type[enum.Enum], document: object, where: str) -> enum.Enum:
    known = kind.__members__
    if not isinstance(document, str) or document not in known:
        raise Unfit(where, f"{_seen(document)} is not one of {', '.join(known)}")
    return known[document]


def _encode_dataclass(value: object, kind: Any) -> dict[str, Any]:
    return {name: encode(getattr(value, name), hint) for name, hint in _fields(kind).items()}


def _decode_dataclass(kind: Any, document: object, where: str) -> Any:
    if not isinstance(document, dict):
        raise Unfit(where, f"{_seen(document)} is not an object with the fields of {_name(kind)}")
    hints, values = _fields(kind), {}
    for field in dataclasses.fields(kind):
        inside = f"{where}.{field.name}" if where else field.name
        if field.name not in hints:
            continue
        if field.name in document:
            values[field.name] = _decode(hints[field.name], document[field.name], inside)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise Unfit(inside, "is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise Unfit(where, str(error)) from error


def _encode_mapping(value: Mapping[Any, Any], kind: Any) -> Any:
    of_key, of_value = typing.get_args(kind)
    pairs = [(encode(key, of_key), encode(item, of_value)) for key, item in value.items()]
    return dict(pairs) if _is_textual(of_key) else [list(pair) for pair in pairs]


def _decode_mapping(kind: Any, document: object, where: str) -> dict[Any, Any]:
    of_key, of_value = typing.get_args(kind)
    pairs: Iterable[tuple[object, object]]
    if _is_textual(of_key):
        if not isinstance(document, dict):
            raise Unfit(where, f"{_seen(document)} is not an object")
        pairs = document.items()
    else:
        pairs = [_pair(item, _at(where, number)) for number, item in enumerate(_list(document, where))]
    return {
        _decode(of_key, key, _at(where, _seen(key))): _decode(of_value, value, f"{where}.{key}" if where else str(key))
        for key, value in pairs
    }


def _has_exactly_its_fields(kind: Any, document: object) -> bool:
    """Whether an object may be a dataclass of that kind though it does not say so: there was no other when written."""
    return isinstance(document, dict) and set(document) == set(_fields(kind))


def _encode_member(value: object, union: Any) -> Any:
    """The value with the name of its class, where there is another that the document could stand for."""
    members = _members(union)
    if value is None and type(None) in members:
        return None
    for member in members:
        if (_is_dataclass(member) or _is_enum(member)) and type(value) is member:
            document = encode(value, member)
            if _is_dataclass(member):
                return {CLASS: member.__name__, **document}
            return {CLASS: member.__name__, MEMBER: document} if _is_mixed(members) else document
    for member in members:
        if not (_is_dataclass(member) or _is_enum(member)):
            try:
                return encode(value, member)
            except TypeError:
                continue
    raise TypeError(f"{value!r} cannot be written as {_name(union)}")


def _decode_member(union: Any, document: object, where: str) -> Any:
    members = _members(union)
    if document is None and type(None) in members:
        return None
    rest = [member for member in members if member is not type(None)]
    if len(rest) == 1:
        return _decode(rest[0], document, where)
    if isinstance(document, dict) and CLASS in document:
        for member in rest:
            if (_is_dataclass(member) or _is_enum(member)) and member.__name__ == document[CLASS]:
                return _decode(member, document.get(MEMBER) if _is_enum(member) else document, where)
        raise Unfit(where, f"{_seen(document[CLASS])} is not one of {', '.join(map(_name, rest))}")
    for member in rest:
        if not _is_enum(member) and (not _is_dataclass(member) or _has_exactly_its_fields(member, document)):
            try:
                return _decode(member, document, where)
            except Unfit:
                continue
    raise Unfit(where, f"{_seen(document)} is none of {', '.join(map(_name, rest))}")


# Questions about types.


def _bare(kind: Any) -> Any:
    """The type that NewType and Annotated stand for."""
    while True:
        if isinstance(kind, NewType):
            kind = kind.__supertype__
        elif typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        else:
            return kind


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _members(union: Any) -> list[Any]:
    """The types in a union; those come first that are stricter about what fits them."""
    members = [_bare(member) for member in typing.get_args(union)]
    return sorted(members, key=lambda member: member is float)  # a whole number fits it too


def _is_mixed(members: list[Any]) -> bool:
    return len([member for member in members if member is not type(None)]) > 1


def _is_dataclass(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _is_mapping(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_textual(kind: Any) -> bool:
    kind = _bare(kind)
    return kind is str or _is_enum(kind)


def _is_plain(value: object, kind: type) -> bool:
    """Whether the value is of that plain type. A truth value is no number, and a whole number is a number."""
    return type(value) is kind or (kind is float and type(value) is int)


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """The types of the fields that a dataclass is made with, by name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _of_tuple(kind: Any, count: int, where: str | None = None) -> list[Any]:
    """The types of that many items of a tuple type."""
    hints = [hint for hint in typing.get_args(kind) if hint != ()]
    if len(hints) == 2 and hints[1] is Ellipsis:
        return [hints[0]] * count
    if len(hints) != count:
        wrong = f"{count} items are not the {len(hints)} of {_name(kind)}"
        raise TypeError(wrong) if where is None else Unfit(where, wrong)
    return hints


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and typing.get_origin(kind) is None else str(kind)


# Questions about documents.


def _as_it_is(value: object) -> object:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{value!r} cannot be written: {error}") from error
    return value


def _expect(fits: bool, value: T, where: str, wrong: str) -> T:
    if not fits:
        raise Unfit(where, wrong)
    return value


def _list(document: object, where: str) -> list[Any]:
    if not isinstance(document, list):
        raise Unfit(where, f"{_seen(document)} is not a list")
    return document


def _pair(document: object, where: str) -> tuple[object, object]:
    if not isinstance(document, list) or len(document) != 2:
        raise Unfit(where, f"{_seen(document)} is not a list of a key and a value")
    return document[0], document[1]


def _at(where: str, index: object) -> str:
    return f"{where}[{index}]"


def _seen(document: object) -> str:
    """The document for a sentence, not longer than one."""
    text = json.dumps(document, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
