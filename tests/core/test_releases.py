"""What the records of the release log add up to."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clojarsd.core.codec import Unfit
from clojarsd.core.errors import Refused
from clojarsd.core.names import Role
from clojarsd.core.releases import (
    BecameCurrent,
    ProvedBad,
    ProvedGood,
    ReleaseBook,
    ReleaseKind,
    ReleaseRecord,
    ReleaseState,
    WasInstalled,
    WasRemoved,
    first_names,
    free_name,
    other_release,
    record_as_json,
    record_from_json,
)

NOON = "2026-11-23T12:00:00.000Z"
LATER = "2026-11-23T12:34:56.000Z"
SUM = "sha256:" + "ab12cd34" * 8


def installed(name: str, tag: str | None = None, checksum: str = SUM) -> WasInstalled:
    return WasInstalled(name, tag, "f00", checksum, ReleaseKind.FILE, 60_000_000, "ann", NOON, "20261123-120000")


def deployed(name: str, rollout: str = "") -> list[ReleaseRecord]:
    """All that a deploy which succeeds leaves in the log."""
    rollout = rollout or f"deploy {name}"
    return [
        replace(installed(f"{name}.jar", name), rollout=rollout),
        BecameCurrent(f"{name}.jar", NOON, "ann", rollout),
        ProvedGood(f"{name}.jar", LATER, rollout),
    ]


def failed(name: str, back_to: str) -> list[ReleaseRecord]:
    """All that a deploy leaves which has gone back."""
    rollout = f"deploy {name}"
    return [
        *deployed(name)[:2],
        BecameCurrent(f"{back_to}.jar", LATER, "ann", rollout),
        ProvedBad(f"{name}.jar", "it never answered", LATER, rollout),
    ]


def rolled_back(name: str, rollout: str) -> list[ReleaseRecord]:
    return [BecameCurrent(f"{name}.jar", LATER, "ben", rollout), ProvedGood(f"{name}.jar", LATER, rollout)]


def book(*parts: list[ReleaseRecord]) -> ReleaseBook:
    return ReleaseBook.of(record for part in parts for record in part)


def previous(book: ReleaseBook) -> str | None:
    found = book.previous_good(book.current)
    return found.name if found is not None else None


def names(book: ReleaseBook) -> list[str]:
    return [one.name for one in book.releases]


def test_an_empty_log_knows_nothing() -> None:
    empty = ReleaseBook()
    assert (empty.current, empty.releases, previous(empty), empty.to_prune(0, ())) == (None, (), None, ())
    assert empty.checksum_of("a.jar") is None
    with pytest.raises(Refused, match=r"^there is no release a\.jar: none was installed yet$"):
        empty.find("a.jar")


def test_a_release_is_unproved_then_good() -> None:
    records = deployed("a")
    states = [book(records[:count]).releases[0].state for count in (1, 2, 3)]
    assert states == [ReleaseState.UNPROVED, ReleaseState.UNPROVED, ReleaseState.GOOD]
    assert book(records).releases[0].good_at == LATER
    assert book(records).checksum_of("a.jar") == SUM


def test_the_previous_good_one_is_the_one_that_was_current_before() -> None:
    assert previous(book(deployed("a"))) is None
    assert previous(book(deployed("a"), deployed("b"))) == "a.jar"
    assert previous(book(deployed("a"), deployed("b"), deployed("c")[:2])) == "b.jar", "also before the soak"


def test_a_bad_release_is_never_the_previous_one() -> None:
    seen = book(deployed("a"), failed("x", "a"), deployed("b"))
    assert previous(seen) == "a.jar"
    assert seen.release("x.jar") is not None
    assert [one.why for one in seen.releases] == [None, "it never answered", None]
    unsoaked = book(deployed("a"), deployed("b")[:2], deployed("c"))
    assert previous(unsoaked) == "a.jar"


def test_after_a_rollback_the_one_before_is_older_still() -> None:
    """And not the release that an operator has just left."""
    seen = [*deployed("a"), *deployed("b"), *deployed("c"), *rolled_back("b", "r1")]
    assert book(seen).current == "b.jar"
    assert previous(book(seen)) == "a.jar"
    assert previous(book(seen, rolled_back("a", "r2"))) is None
    assert previous(book(seen, deployed("d"))) == "b.jar"
    assert previous(book(seen, rolled_back("c", "r2"))) == "b.jar"


def test_a_rollback_that_fails_leaves_everything_as_it_was() -> None:
    before = book(deployed("a"), deployed("b"), deployed("c"))
    tried = [BecameCurrent("a.jar", LATER, "ben", "r1"), BecameCurrent("c.jar", LATER, "ben", "r1")]
    after = book(deployed("a"), deployed("b"), deployed("c"), tried)  # type: ignore[arg-type]
    assert (after.trail, previous(after)) == (before.trail, "b.jar")


def test_a_release_that_is_deployed_again_comes_after_what_was_current_meanwhile() -> None:
    seen = book(deployed("a", "one"), deployed("b"), deployed("a", "two"))
    assert (seen.current, previous(seen), names(seen)) == ("a.jar", "b.jar", ["b.jar", "a.jar"])


def test_the_current_release_may_be_deployed_again() -> None:
    seen = book(deployed("a"), deployed("b", "one"), deployed("b", "two"))
    assert (seen.current, previous(seen), names(seen)) == ("b.jar", "a.jar", ["a.jar", "b.jar"])


@pytest.mark.parametrize(
    ("first", "again", "state"),
    [
        (ProvedGood("a.jar", LATER, "r"), SUM, ReleaseState.GOOD),
        (ProvedGood("a.jar", LATER, "r"), "sha256:other", ReleaseState.UNPROVED),
        (ProvedBad("a.jar", "slow", LATER, "r"), SUM, ReleaseState.UNPROVED),
    ],
)
def test_what_is_installed_again_stays_good_and_not_bad(first: ReleaseRecord, again: str, state: ReleaseState) -> None:
    seen = book([installed("a.jar", "a"), first, installed("a.jar", "a2", again)])
    (one,) = seen.releases
    assert (one.state, one.installed.tag, one.why) == (state, "a2", None)


def test_the_last_verdict_counts() -> None:
    verdicts: list[ReleaseRecord] = [ProvedBad("a.jar", "slow", LATER, "r"), ProvedGood("a.jar", LATER, "s")]
    for last, state in ((1, ReleaseState.BAD), (2, ReleaseState.GOOD)):
        (one,) = book(deployed("a"), verdicts[:last]).releases
        assert one.state is state
        assert (one.why, one.good_at) == ((None, LATER) if last == 2 else ("slow", None))


def test_what_was_removed_is_not_there_and_never_the_previous_one() -> None:
    seen = book(deployed("a"), deployed("b"), deployed("c"), [WasRemoved("b.jar", LATER)])
    assert names(seen) == ["a.jar", "c.jar"]
    assert previous(seen) == "a.jar"
    assert book(deployed("a"), [WasRemoved("a.jar", LATER)]).current is None


def test_a_name_that_was_never_installed_can_be_current_and_nothing_else() -> None:
    by_hand: list[ReleaseRecord] = [
        BecameCurrent("hand.jar", NOON, "ann", "r"),
        ProvedGood("hand.jar", NOON, "r"),
        ProvedBad("other.jar", "slow", NOON, "r"),
    ]
    seen = book(by_hand)
    assert (seen.current, seen.releases) == ("hand.jar", ())
    assert previous(book(by_hand, deployed("a"))) is None


def test_before_a_link_that_was_changed_by_hand_is_what_was_current_last() -> None:
    seen = book(deployed("a"), deployed("b"))
    for current in ("hand.jar", None):
        found = seen.previous_good(current)
        assert found is not None
        assert found.name == "b.jar"


# Found by what people type.


def test_a_release_is_found_by_its_name_and_by_its_tag() -> None:
    seen = book(deployed("1.0"), deployed("1.1"))
    assert seen.find("1.1.jar").name == seen.find("1.1").name == "1.1.jar"


def test_a_release_that_is_not_there_is_refused_with_those_that_are() -> None:
    seen = book(deployed("1.0"), failed("1.1", "1.0"), [installed("mine.jar")])
    with pytest.raises(Refused) as refused:
        seen.find("1.2")
    assert str(refused.value) == (
        "there is no release 1.2: there are mine.jar (unproved), 1.1.jar (tag 1.1, bad), 1.0.jar (tag 1.0, good)"
    )


def test_a_tag_of_several_releases_is_refused() -> None:
    one, other = installed("a.jar", "1"), replace(installed("b.jar", "1"), commit="f01")
    for several in ((one, other), (replace(one, commit=None), replace(other, commit=None))):
        with pytest.raises(Refused) as refused:
            book([*several]).find("1")
        assert str(refused.value) == (
            "tag 1 is that of several releases: a.jar (tag 1, unproved), b.jar (tag 1, unproved); give the name of one"
        )


def test_of_several_builds_of_one_commit_the_last_good_one_is_found() -> None:
    builds = [installed(name, "1") for name in ("a.jar", "b.jar", "c.jar")]
    assert book([*builds]).find("1").name == "c.jar"
    assert book([*builds, ProvedGood("a.jar", LATER, "r"), ProvedGood("b.jar", LATER, "r")]).find("1").name == "b.jar"


def test_another_build_of_the_same_commit_is_no_way_back_unless_there_is_no_other() -> None:
    def built(name: str, commit: str) -> list[ReleaseRecord]:
        made, *rest = deployed(name)
        assert isinstance(made, WasInstalled)
        return [replace(made, commit=commit), *rest]

    assert previous(book(built("1.0", "f0"), built("1.1", "f1"), built("1.1-again", "f1"))) == "1.0.jar"
    assert previous(book(built("1.1", "f1"), built("1.1-again", "f1"))) == "1.1.jar"


def test_a_file_that_is_brought_in_without_a_tag_keeps_that_of_the_release_that_it_is() -> None:
    bare = replace(installed("a.jar"), commit=None)
    (same,) = book([installed("a.jar", "1"), ProvedGood("a.jar", LATER, "r"), bare]).releases
    assert (same.installed.tag, same.installed.commit, same.is_good) == ("1", "f00", True)
    (other,) = book([installed("a.jar", "1"), replace(bare, checksum="sha256:other")]).releases
    assert (other.installed.tag, other.installed.commit) == (None, None)


def test_what_a_tag_named_is_known_though_its_release_is_not_there_any_more() -> None:
    seen = book(deployed("1"), [replace(installed("b.jar", "2"), commit="f02"), WasRemoved("1.jar", LATER)])
    assert seen.tags == {"1": "f00", "2": "f02"}


def test_a_name_wins_over_a_tag() -> None:
    assert book([installed("a.jar", "1"), installed("1", "2")]).find("1").installed.tag == "2"


# What may go.


def test_of_good_releases_the_latest_stay_beside_the_current_and_the_previous_one() -> None:
    seen = book(*(deployed(name) for name in "abcdef"))
    assert seen.to_prune(0, ()) == ("a.jar", "b.jar", "c.jar", "d.jar")
    assert seen.to_prune(2, ()) == ("a.jar", "b.jar")
    assert seen.to_prune(2, ("a.jar",)) == ("b.jar",)
    assert seen.to_prune(9, ()) == ()


def test_the_previous_good_one_stays_however_old_it_is() -> None:
    seen = book(deployed("a"), *(failed(name, "a") for name in "xyz"), deployed("b"))
    assert seen.to_prune(0, ()) == ("x.jar", "y.jar")
    assert seen.to_prune(0, ("x.jar",)) == ("y.jar",)


def test_unproved_releases_go_unless_they_are_current_or_in_use() -> None:
    seen = book(deployed("a"), [installed("staged.jar"), installed("used.jar")], deployed("b")[:2])
    assert seen.to_prune(5, ("used.jar",)) == ("staged.jar",)


# JSON.


def test_the_answer_says_of_each_release_what_it_is_now() -> None:
    seen = book(deployed("a"), deployed("b"), failed("x", "b"))
    answer = seen.as_json("b.jar", {Role.PRIMARY: "b.jar", Role.BACKUP: "a.jar"})
    assert [one["name"] for one in answer] == ["x.jar", "b.jar", "a.jar"]
    assert answer[2] == {
        "name": "a.jar",
        "tag": "a",
        "commit": "f00",
        "checksum": SUM,
        "kind": "file",
        "size_bytes": 60_000_000,
        "by": "ann",
        "at": NOON,
        "rollout": "deploy a",
        "state": "good",
        "good_at": LATER,
        "why": None,
        "current": False,
        "previous": True,
        "runs_on": ["backup"],
    }
    assert (answer[0]["state"], answer[0]["why"], answer[0]["runs_on"]) == ("bad", "it never answered", [])
    assert (answer[1]["current"], answer[1]["previous"], answer[1]["runs_on"]) == (True, False, ["primary"])
    assert not any(one["previous"] for one in book(deployed("a")).as_json("a.jar", {}))


def test_a_record_is_a_plain_object_that_names_its_kind() -> None:
    document = record_as_json(ProvedBad("a.jar", "slow", NOON, "r"))
    assert document == {"class": "ProvedBad", "name": "a.jar", "why": "slow", "at": NOON, "rollout": "r"}
    with pytest.raises(Unfit):
        record_from_json({"class": "ProvedBest", "name": "a.jar"})


NAME = st.sampled_from(["a.jar", "b.jar", "c.jar", "d.jar"])
ROLLOUT = st.sampled_from(["r1", "r2", "r3"])
WHEN = st.just(NOON)
TAG = st.sampled_from([None, "1", "2"])
CHECKSUM = st.sampled_from([SUM, "sha256:other"])
RECORD: st.SearchStrategy[ReleaseRecord] = st.one_of(
    st.builds(WasInstalled, NAME, TAG, TAG, CHECKSUM, st.sampled_from(ReleaseKind), st.just(1), NAME, WHEN, ROLLOUT),
    st.builds(BecameCurrent, NAME, WHEN, NAME, ROLLOUT),
    st.builds(ProvedGood, NAME, WHEN, ROLLOUT),
    st.builds(ProvedBad, NAME, st.just("slow"), WHEN, ROLLOUT),
    st.builds(WasRemoved, NAME, WHEN),
)


@given(RECORD)
def test_every_record_is_read_as_it_was_written(record: ReleaseRecord) -> None:
    assert record_from_json(json.loads(json.dumps(record_as_json(record)))) == record


@given(st.lists(RECORD, max_size=30), st.integers(0, 3), st.frozensets(NAME))
def test_whatever_the_log_says_nothing_that_is_needed_goes(
    records: list[ReleaseRecord], keep: int, protected: frozenset[str]
) -> None:
    seen = ReleaseBook.of(records)
    assert seen == reduce(ReleaseBook.after, records, ReleaseBook())
    known = names(seen)
    assert len(set(known)) == len(known)
    assert len(set(seen.trail)) == len(seen.trail)
    before = seen.previous_good(seen.current)
    assert before is None or (before.is_good and before.name != seen.current and before.name in known)
    pruned = seen.to_prune(keep, protected)
    assert [name for name in known if name in pruned] == list(pruned), "in the order of installation"
    assert not {seen.current, before and before.name} & set(pruned)
    assert not protected & set(pruned)
    left = reduce(ReleaseBook.after, (WasRemoved(name, LATER) for name in pruned), seen)
    assert left.previous_good(left.current) == before
    assert left.to_prune(keep, protected) == ()
    good = [one for one in left.releases if one.is_good and one.name not in protected]
    assert len(good) <= keep + 2
    for one in seen.releases:
        assert seen.find(one.name) == one
        assert seen.checksum_of(one.name) == one.installed.checksum


# Link and instances.


@pytest.mark.parametrize(
    ("runs", "current", "told"),
    [
        ("1.jar", "1.jar", None),
        (None, "1.jar", None),
        (None, None, None),
        ("1.jar", "2.jar", "primary runs 1.jar, and the link names 2.jar: clojarsctl restart primary"),
        (
            "1.jar",
            None,
            "primary runs 1.jar, and the link names nothing: clojarsctl rollback, or clojarsctl deploy TAG",
        ),
    ],
)
def test_an_instance_that_runs_something_else_than_the_link_names_is_told(
    runs: str | None, current: str | None, told: str | None
) -> None:
    assert other_release(Role.PRIMARY, runs, current) == told


# Names.


def free(artifact: str, tag: str | None, *taken: str, same: tuple[str, ...] = ()) -> str:
    existing: dict[str, str | None] = dict.fromkeys(taken) | dict.fromkeys(same, SUM)
    return free_name(artifact, tag, SUM, existing, "current.jar")


def test_a_release_has_the_name_of_its_artefact_where_that_is_free() -> None:
    assert free("app-1.2.jar", "1.2") == "app-1.2.jar"
    assert free("app-1.2.jar", "1.2", same=("app-1.2.jar",)) == "app-1.2.jar"


def test_the_names_that_are_thought_of_first() -> None:
    assert first_names(".app.jar", "1.2", SUM) == ("app.jar", "app-1.2.jar", "app-1.2-ab12cd34.jar")


@pytest.mark.parametrize(
    ("artifact", "tag", "tagged", "summed"),
    [
        ("app.jar", "1.2", "app-1.2.jar", "app-1.2-ab12cd34.jar"),
        ("app.tar.gz", "1.2", "app-1.2.tar.gz", "app-1.2-ab12cd34.tar.gz"),
        ("app-1.1", "1.2", "app-1.1-1.2", "app-1.1-1.2-ab12cd34"),
        ("app", "release/1.2 rc", "app-release-1.2-rc", "app-release-1.2-rc-ab12cd34"),
        (".jar", "..", "jar-..", "jar-..-ab12cd34"),
        ("...", "1", "release-1", "release-1-ab12cd34"),
    ],
)
def test_a_name_that_is_taken_gets_the_tag_then_the_checksum_then_a_number(
    artifact: str, tag: str, tagged: str, summed: str
) -> None:
    plain = free(artifact, tag)
    assert free(artifact, tag, plain) == tagged
    assert free(artifact, tag, plain, tagged) == summed
    numbered = free(artifact, tag, plain, tagged, summed)
    assert numbered.replace("-2", "", 1) == summed or numbered == summed.replace("ab12cd34", "ab12cd34-2")


def test_an_artefact_without_a_tag_gets_its_checksum() -> None:
    assert free("app.jar", None, "app.jar") == "app-ab12cd34.jar"


def test_the_name_of_the_link_is_never_free() -> None:
    assert free("current.jar", "1") == "current-1.jar"
    assert free("current.jar", "1", same=("current.jar",)) == "current-1.jar"


ODD: Any = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=300)


@given(ODD, st.none() | st.text(max_size=300), st.integers(0, 5))
def test_a_free_name_is_one_file_name_that_nobody_has(artifact: str, tag: str | None, times: int) -> None:
    taken = ["current.jar"]
    for _ in range(times):
        taken.append(free(artifact, tag, *taken))
    assert len(set(taken)) == len(taken)
    for name in taken[1:]:
        assert "/" not in name
        assert not name.startswith(".")
        assert 0 < len(name.encode(errors="surrogatepass")) <= 255
