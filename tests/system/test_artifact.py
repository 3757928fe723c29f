"""What a build has made is found, and what it is said when it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system.artifact import find_artifact

PATTERN = "target/*-standalone.jar"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    made = tmp_path / "checkout"
    (made / "target").mkdir(parents=True)
    return made


def jar(checkout: Path, name: str = "target/app-1-standalone.jar") -> Path:
    made = checkout / name
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_bytes(b"PK")
    return made


def why(checkout: Path, pattern: str = PATTERN) -> str:
    with pytest.raises(Failed) as failed:
        find_artifact(checkout, pattern)
    return str(failed.value)


def test_the_one_file_that_matches(checkout: Path) -> None:
    made = jar(checkout)
    jar(checkout, "target/app-1.jar")
    assert find_artifact(checkout, PATTERN) == made
    assert find_artifact(checkout, "**/*-standalone.jar") == made
    assert find_artifact(checkout, "target/app-1.jar") == checkout / "target/app-1.jar"


def test_a_directory_is_one_as_well(checkout: Path) -> None:
    jar(checkout, "target/dist/lib/a.jar")
    (checkout / "target/dist/current.jar").symlink_to("lib/a.jar")
    assert find_artifact(checkout, "target/dist") == checkout / "target" / "dist"


def test_a_link_to_what_is_inside_is_followed(checkout: Path) -> None:
    made = jar(checkout, "out/app.jar")
    (checkout / "target/x-standalone.jar").symlink_to("../out/app.jar")
    assert find_artifact(checkout, PATTERN) == made


def test_none_is_told_with_what_is_there_instead(checkout: Path) -> None:
    assert why(checkout) == f"no artifact: nothing matches {PATTERN}; target is empty"
    for number in range(7):
        jar(checkout, f"target/{number}.jar")
    (checkout / "target/.hidden-standalone.jar").write_text("x")
    assert why(checkout) == (
        f"no artifact: nothing matches {PATTERN}; target contains 0.jar, 1.jar, 2.jar, 3.jar, 4.jar and 2 more"
    )


def test_a_directory_that_is_not_there_is_told(checkout: Path) -> None:
    (checkout / "target").rmdir()
    (checkout / "pom.xml").write_text("")
    assert (
        why(checkout)
        == f"no artifact: nothing matches {PATTERN}; there is no directory target; the checkout contains pom.xml"
    )
    assert why(checkout, "*/x.jar") == "no artifact: nothing matches */x.jar; the checkout contains pom.xml"


def test_a_name_commands_no_terminal(checkout: Path) -> None:
    jar(checkout, "target/\x1b[31mred\n.jar")
    assert why(checkout) == f"no artifact: nothing matches {PATTERN}; target contains red .jar"


def test_several_are_told_by_name(checkout: Path) -> None:
    jar(checkout, "target/b-standalone.jar")
    jar(checkout, "target/a-standalone.jar")
    assert why(checkout) == (
        f"no artifact: {PATTERN} must match one file, and matches 2: target/a-standalone.jar, target/b-standalone.jar"
    )


def test_nothing_leads_out_of_the_checkout(checkout: Path, tmp_path: Path) -> None:
    outside = jar(tmp_path, "outside.jar")
    link = checkout / "target/x-standalone.jar"
    link.symlink_to(outside)
    assert why(checkout) == f"no artifact: target/x-standalone.jar leads out of the checkout, to {outside}"
    link.unlink()
    (checkout / "target").rmdir()
    (tmp_path / "elsewhere").mkdir()
    jar(tmp_path, "elsewhere/y-standalone.jar")
    (checkout / "target").symlink_to(tmp_path / "elsewhere")
    assert "leads out of the checkout" in why(checkout)


def test_a_link_in_a_directory_that_leads_out_of_it_is_told(checkout: Path) -> None:
    """It would lead nowhere once the checkout is removed."""
    jar(checkout, "target/dist/a.jar")
    jar(checkout, "other.jar")
    (checkout / "target/dist/b.jar").symlink_to("../../other.jar")
    assert why(checkout, "target/dist") == "no artifact: target/dist: b.jar is a link that leads out of it"


def test_what_cannot_be_a_release(checkout: Path) -> None:
    made = checkout / "target/x-standalone.jar"
    made.write_bytes(b"")
    assert why(checkout) == "no artifact: target/x-standalone.jar is empty"
    made.unlink()
    made.symlink_to("absent")
    assert why(checkout) == "no artifact: target/x-standalone.jar is a link that leads nowhere"
    made.unlink()
    os.mkfifo(made)
    assert why(checkout) == "no artifact: target/x-standalone.jar is neither a file nor a directory"
    made.unlink()
    (made / "inner").mkdir(parents=True)
    assert why(checkout) == "no artifact: target/x-standalone.jar is a directory without a file"


def test_a_checkout_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert why(tmp_path / "absent") == f"no artifact: {tmp_path}/absent: no such file or directory"
