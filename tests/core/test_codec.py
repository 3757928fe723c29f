"""Values to what JSON can hold and back."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NewType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clojarsd.core.codec import Unfit, decode, encode

Number = NewType("Number", int)


class Colour(enum.Enum):
    RED = "a warm colour"
    BLUE = "a cold colour"


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: float = 0.5


@dataclass(frozen=True, slots=True)
class Circle:
    centre: Point
    radius: float


@dataclass(frozen=True)
class Positive:
    value: int

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise ValueError(f"{self.value} is not above zero")


@dataclass(frozen=True, slots=True)
class Everything:
    """One field of each kind."""

    truth: bool
    count: int
    number: Number
    length: float
    text: str
    blob: bytes
    colour: Colour
    point: Point
    shape: Point | Circle | None
    maybe: Point | None
    several: tuple[Point, ...]
    two: tuple[int, str]
    none_of_them: tuple[()]
    colours: frozenset[Colour]
    by_name: dict[str, int]
    by_colour: dict[Colour, Point | None]
    by_number: dict[int, str]
    mixed: int | float | str | Colour | tuple[int, ...] | None
    noted: Annotated[int, "a note"]
    computed: int = field(init=False, default=7)


@given(st.from_type(Everything))
def test_what_is_written_is_read_as_it_was(value: Everything) -> None:
    text = json.dumps(encode(value), allow_nan=False)
    read = decode(Everything, json.loads(text))
    assert read.colours == value.colours
    same_order = replace(read, colours=value.colours)
    assert repr(same_order) == repr(value)  # which also tells 1 from 1.0, and calls one nan like another
    assert json.dumps(encode(read)) == text


@dataclass(frozen=True, slots=True)
class Box:
    it: Any


def box(kind: Any) -> type[Box]:
    """A dataclass whose only field has this type."""
    made: type[Box] = dataclass(frozen=True)(type("Box", (), {"__annotations__": {"it": kind}, "__module__": __name__}))
    return made


def written(kind: Any, value: object) -> Any:
    return encode(box(kind)(value))["it"]


def read(kind: Any, document: object) -> Any:
    return decode(box(kind), {"it": document}).it


@pytest.mark.parametrize(
    ("kind", "value", "document"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, math.inf, {"float": "inf"}),
        (bytes, b"\0\xff", {"base64": "AP8="}),
        (Colour, Colour.RED, "RED"),
        (Colour | None, Colour.RED, "RED"),
        (Colour | str, Colour.RED, {"class": "Colour", "member": "RED"}),
        (Colour | str, "RED", "RED"),
        (Point, Point(1), {"x": 1, "y": 0.5}),
        (Point | None, Point(1), {"class": "Point", "x": 1, "y": 0.5}),
        (Point | Circle, Point(1), {"class": "Point", "x": 1, "y": 0.5}),
        (Point | None, None, None),
        (None, None, None),
        (frozenset[str], frozenset({"b", "a"}), ["a", "b"]),
        (tuple[int, ...], (1, 2), [1, 2]),
        (Mapping[Colour, int], {Colour.BLUE: 1}, {"BLUE": 1}),
        (Mapping[Colour | None, int], {None: 1, Colour.RED: 2}, [[None, 1], ["RED", 2]]),
        (Mapping[str, Any], {"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
    ],
)
def test_each_kind_has_its_form(kind: Any, value: object, document: object) -> None:
    assert written(kind, value) == document
    assert read(kind, document) == value


def test_a_whole_number_stays_one_where_a_number_may_stand_too() -> None:
    for value in (1, 1.0):
        assert repr(read(float | int, written(float | int, value))) == repr(value)


@pytest.mark.parametrize(
    ("kind", "document", "wrong"),
    [
        (int, True, "it: true is not a whole number"),
        (int, 1.0, "it: 1.0 is not a whole number"),
        (int, "1", 'it: "1" is not a whole number'),
        (bool, 1, "it: 1 is not a truth value"),
        (float, "1", 'it: "1" is not a number'),
        (float, {"float": "much"}, 'it: {"float": "much"} is not a number'),
        (float, 10**400, f"it: 1{'0' * 56}... is too large"),
        (str, None, "it: null is not text"),
        (None, 0, "it: 0 is not null"),
        (bytes, "AP8=", 'it: "AP8=" is not bytes in base64'),
        (bytes, {"base64": "AP8"}, 'it: {"base64": "AP8"} is not bytes in base64'),
        (bytes, {"base64": "\u00e4"}, 'it: {"base64": "\\u00e4"} is not bytes in base64'),
        (Colour, "GREEN", 'it: "GREEN" is not one of RED, BLUE'),
        (Colour, ["RED"], 'it: ["RED"] is not one of RED, BLUE'),
        (Point, [1, 2], "it: [1, 2] is not an object with the fields of Point"),
        (Point, {"y": 1.0}, "it.x: is missing"),
        (Positive, {"value": 0}, "it: 0 is not above zero"),
        (Point | Circle, {"x": 1}, 'it: {"x": 1} is none of Point, Circle'),
        (Point | Circle, {"class": "Square"}, 'it: "Square" is not one of Point, Circle'),
        (Point | Colour, {"class": "Colour"}, "it: null is not one of RED, BLUE"),
        (Point | Colour, {"class": "Colour", "member": 1}, "it: 1 is not one of RED, BLUE"),
        (int | str, [], "it: [] is none of int, str"),
        (tuple[Point, ...], {}, "it: {} is not a list"),
        (tuple[Point, ...], [{"x": 1}, {"x": "1"}], 'it[1].x: "1" is not a whole number'),
        (tuple[int, str], [1], "it: 1 items are not the 2 of tuple[int, str]"),
        (frozenset[int], [1, "2"], 'it[1]: "2" is not a whole number'),
        (Mapping[str, int], [], "it: [] is not an object"),
        (Mapping[str, int], {"a": None}, "it.a: null is not a whole number"),
        (Mapping[Colour, int], {"GREEN": 1}, 'it["GREEN"]: "GREEN" is not one of RED, BLUE'),
        (Mapping[int, int], {}, "it: {} is not a list"),
        (Mapping[int, int], [[1, 2], [3]], "it[1]: [3] is not a list of a key and a value"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(kind: Any, document: object, wrong: str) -> None:
    with pytest.raises(Unfit) as caught:
        read(kind, document)
    assert str(caught.value) == wrong


def test_the_whole_document_may_be_what_does_not_fit() -> None:
    with pytest.raises(Unfit, match=r"^3 is not an object with the fields of Point$"):
        decode(Point, 3)
    with pytest.raises(Unfit, match=r"^x: is missing$"):
        decode(Point, {})


def test_documents_of_other_versions_are_read() -> None:
    """A field that is not known is ignored, one that is missing gets its default."""
    assert decode(Point, {"x": 1, "z": [1, 2]}) == Point(1, 0.5)
    assert decode(Everything, encode(everything())).computed == 7


def test_a_union_that_was_none_once_is_read() -> None:
    """Without a class an object is of the only one that the union has; where there is no union, a class is ignored."""
    assert read(Point | None, {"x": 1}) == Point(1)
    assert read(Point, {"class": "Point", "x": 1}) == Point(1)


@pytest.mark.parametrize(
    ("kind", "value", "wrong"),
    [
        (int, "1", "'1' cannot be written as int"),
        (int, True, "True cannot be written as int"),
        (Colour, "RED", "'RED' cannot be written as Colour"),
        (Point | None, Positive(1), "cannot be written as"),
        (int | str, 1.5, "1.5 cannot be written as int | str"),
        (tuple[int, str], (1,), "1 items are not the 2 of tuple[int, str]"),
        (tuple[int, ...], [1], "[1] cannot be written as tuple[int, ...]"),
        (Any, {1, 2}, "{1, 2} cannot be written: Object of type set is not JSON serializable"),
        (complex, 1j, "1j cannot be written as complex"),
    ],
)
def test_a_value_that_is_not_of_its_type_is_a_bug(kind: Any, value: object, wrong: str) -> None:
    with pytest.raises(TypeError) as caught:
        written(kind, value)
    assert wrong in str(caught.value)


def test_a_type_that_is_not_known_is_a_bug() -> None:
    with pytest.raises(TypeError, match="complex cannot be read"):
        read(complex, 1)


def everything() -> Everything:
    return Everything(
        truth=True,
        count=1,
        number=Number(2),
        length=1.5,
        text="t",
        blob=b"b",
        colour=Colour.RED,
        point=Point(1),
        shape=Circle(Point(2), 3.0),
        maybe=None,
        several=(Point(1), Point(2)),
        two=(1, "2"),
        none_of_them=(),
        colours=frozenset(Colour),
        by_name={"a": 1},
        by_colour={Colour.RED: None},
        by_number={1: "one"},
        mixed=1.0,
        noted=1,
    )


def test_a_dataclass_that_was_written_when_its_field_had_no_other_kind() -> None:
    assert read(Point | Circle, {"x": 1, "y": 2.0}) == Point(1, 2.0)
    assert read(Circle | Point, {"x": 1, "y": 2.0}) == Point(1, 2.0)
