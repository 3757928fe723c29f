"""What outlives the daemon, as a value and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clojarsd.core.errors import Failed
from clojarsd.core.health import CheckRecord
from clojarsd.core.names import Goal, Health, Incarnation, Role, Rotation
from clojarsd.core.saved import SavedInstance, SavedPair, as_json, essence, from_json, in_this_boot
from clojarsd.core.unit_facts import Unit
from tests.support.saved import BOOT, LATER, NOON, a_pair

INSTANCE = st.from_type(SavedInstance)
PAIR = st.builds(SavedPair, instances=st.fixed_dictionaries(dict.fromkeys(Role, INSTANCE)), format=st.just(1))


@given(PAIR)
def test_every_pair_is_read_as_it_was_saved(pair: SavedPair) -> None:
    text = json.dumps(as_json(pair), allow_nan=False)
    read = from_json(json.loads(text))
    assert json.dumps(as_json(read)) == text
    assert read == pair or "nan" in text


def test_the_document_says_first_of_which_format_it_is() -> None:
    document = as_json(a_pair(7))
    assert list(document)[:4] == ["format", "service", "boot_id", "generation"]
    assert document["format"] == 1
    assert document["instances"]["PRIMARY"]["process"]["pid"] == 901
    assert from_json(document) == a_pair(7)


def changed(**fields: Any) -> dict[str, Any]:
    return {**as_json(a_pair()), **fields}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ([], "it holds no state of a pair"),
        ({}, "it holds no state of a pair"),
        (changed(format=2), "it has format 2, and this version knows 1"),
        (changed(format=None), "it has format None, and this version knows 1"),
        (changed(format=True), "format: true is not a whole number"),
        (changed(generation="3"), 'generation: "3" is not a whole number'),
        (changed(instances={}), "instances: primary is missing"),
        (changed(instances={"PRIMARY": {}}), "instances.PRIMARY.unit: is missing"),
        (changed(instances={"SPARE": {}}), 'instances["SPARE"]: "SPARE" is not one of PRIMARY, BACKUP'),
    ],
)
def test_a_document_that_cannot_be_used_is_told_in_a_sentence(document: object, sentence: str) -> None:
    with pytest.raises(Failed) as caught:
        from_json(document)
    assert str(caught.value) == sentence


def test_a_document_with_more_or_less_in_it_is_read() -> None:
    """What a later version has added is ignored; what an earlier one did not know has its default."""
    document = as_json(a_pair())
    document["sandwich"] = {"ham": 1}
    primary = document["instances"]["PRIMARY"]
    primary["unit"]["colour"] = "RED"
    del primary["unit"]["rotation"], primary["records"], primary["in_force"]["cgroup"]
    read = from_json(document).instances[Role.PRIMARY]
    assert read.unit.rotation is Rotation.IN
    assert read.records == ()
    assert read.in_force is not None
    assert not read.in_force.cgroup


def test_in_the_same_boot_everything_holds() -> None:
    assert in_this_boot(a_pair(), BOOT) is not None
    assert in_this_boot(a_pair(), BOOT) == a_pair()


def test_after_a_reboot_what_operators_want_and_what_is_counted_holds() -> None:
    before = a_pair(5)
    after = in_this_boot(before, "another")
    assert (after.boot_id, after.generation, after.service) == ("another", 5, "clojars")
    for role in Role:
        instance = after.instances[role]
        assert instance.wanted is Goal.UP
        assert (instance.goal_by, instance.goal_at) == ("ann", NOON)
        assert (instance.restarts, instance.last_exit) == (2, before.instances[role].last_exit)
        assert (instance.unit.rotation, instance.unit.incarnation) == (Rotation.OUT, Incarnation(3))


def test_after_a_reboot_nothing_runs_and_no_instant_of_the_old_boot_is_left() -> None:
    for instance in in_this_boot(a_pair(), "another").instances.values():
        assert instance.unit == Unit(rotation=Rotation.OUT, incarnation=Incarnation(3))
        assert (instance.process, instance.in_force, instance.status_text, instance.started_at) == (
            None,
            None,
            None,
            None,
        )
        assert (instance.release, instance.records, instance.checked_at) == (None, (), ())
        assert instance.since == LATER


def test_what_checks_saw_last_is_not_essential_and_what_they_say_is() -> None:
    pair = a_pair()
    assert essence(pair) == essence(a_pair(checked="200 in 9 ms", saved_at=NOON))
    primary = pair.instances[Role.PRIMARY]
    down = replace(primary, records=(CheckRecord(Health.DOWN), *primary.records[1:]))
    assert essence(pair) != essence(replace(pair, instances={**pair.instances, Role.PRIMARY: down}))
    assert essence(pair) != essence(a_pair(2))
