"""Deploys of the Clojure application, built by leiningen, under clients who read pages and upload by scp."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import rollouts
from bench.proxies import NotThere
from bench.rollouts import Row
from tests.support.real import unavailable

pytestmark = [pytest.mark.slow, pytest.mark.real]

FIRST, SECOND = "clojars-web-1.0.0-standalone.jar", "clojars-web-1.1.0-standalone.jar"


def test_leiningen_tests_and_builds_a_release_as_the_service_user(tmp_path: Path) -> None:
    """Nothing comes out of a cache here."""
    ((first,), _) = played(tmp_path, (), real_builds=True)
    (order,) = first.orders
    assert order.status == 0, order
    assert any(line.endswith(" 0 failures, 0 errors.") for line in order.lines), order
    assert any(line.startswith("  | Created ") for line in order.lines), order
    assert (first.link, first.primary, first.backup) == (FIRST,) * 3


def played(home: Path, names: Iterable[str], *, real_builds: bool) -> tuple[list[Row], list[str]]:
    try:
        return rollouts.play(home, {name: rollouts.CASES[name] for name in names}, real_builds=real_builds)
    except NotThere as reason:
        unavailable(f"scp: {reason}")


NOTHING, BACK = "; nothing was changed, ", f"; the link and backup are back at {SECOND}, the primary was not touched, "


@dataclass(frozen=True)
class Expected:
    """What becomes of a case: how it is ordered for the last time, what is said then, and what runs afterwards."""

    status: int
    begins: str
    holds: str = ""
    output: str = ""
    runs: str = SECOND
    versions: tuple[str, ...] = ("1.1.0",)


EXPECTED = {
    "a good deploy": Expected(0, "deploy of 1.1.0 is done and recorded as good: ", versions=("1.0.0", "1.1.0")),
    "a test fails": Expected(1, "cannot deploy bad-tests: running its tests: ", NOTHING, "1 failures, 0 errors."),
    "the build fails": Expected(
        1, "cannot deploy bad-build: building it: ", NOTHING, "Unable to resolve symbol: format-number"
    ),
    "the build leaves no artefact": Expected(
        1, "cannot deploy bad-no-artifact: installing it: no artifact: nothing matches ", NOTHING
    ),
    "the build leaves two": Expected(
        1,
        "cannot deploy bad-two-artifacts: installing it: no artifact: target/*-standalone.jar must match one file,"
        " and matches 2",
        NOTHING,
    ),
    "a release that exits after 2 s": Expected(
        1, "cannot deploy bad-exits: restarting backup: backup has ended: exited with 1", BACK, "giving up"
    ),
    "one whose smoke test fails": Expected(
        1,
        "cannot deploy bad-smoke: running smoke: ",
        BACK,
        "smoke: /version says ['<!DOCTYPE html>'], and the release is 1.2.0-bad-smoke",
    ),
    "somebody says no": Expected(0, "deploy of 1.2.0 was given up while waiting for promote or abort: ", BACK),
    "a rollback": Expected(
        0, f"rollback to {FIRST} is done and recorded as good: ", runs=FIRST, versions=("1.1.0", "1.0.0")
    ),
}


def test_no_client_notices_good_deploys_or_bad_ones_or_sees_a_bad_release(tmp_path: Path) -> None:
    """The pair begins without a release. `python -m bench.rollouts` plays more of it."""
    rows, lost = played(tmp_path, EXPECTED, real_builds=False)
    assert [row.name for row in rows] == ["the very first deploy", *EXPECTED]
    for row in rows[1:]:
        expected, last = EXPECTED[row.name], row.orders[-1]
        assert last.status == expected.status, row
        assert last.lines[-1].startswith(expected.begins), row
        assert expected.holds in last.lines[-1], row
        assert expected.output in "\n".join(last.lines), row
        assert (row.link, row.primary, row.backup) == (expected.runs,) * 3, row
        assert row.active == "primary", row
        assert row.versions == list(expected.versions), row
        assert row.failures == [], row
        assert set(row.counts) == {"fresh", "kept", "upload", "scp"}, row
    assert lost == []
