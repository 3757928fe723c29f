"""What lies between two commits, in words."""

from __future__ import annotations

from clojarsd.core.changes import Changes, read_changes


def test_what_git_has_counted() -> None:
    seen = read_changes("warning: x\n0\t2\n", " 3 files changed, 10 insertions(+), 1 deletion(-)\n", ["b", "a"])
    assert seen == Changes(2, 0, 3, 10, 1, ("b", "a"))
    assert read_changes("1\t0", " 1 file changed, 2 deletions(-)", []) == Changes(0, 1, 1, 0, 2, ())
    assert read_changes("0\t0", "", []) == Changes(0, 0, 0, 0, 0, ())
    assert read_changes("fatal: bad revision", "", []) is None


def test_at_most_ten_subjects() -> None:
    seen = read_changes("0\t12", " 1 file changed, 1 insertion(+)", [str(number) for number in range(12)])
    assert seen is not None
    assert len(seen.subjects) == 10
    assert seen.text("v1", "v2").splitlines()[-1] == "  … and 2 more"


def test_the_text() -> None:
    assert Changes(1, 0, 2, 1, 7, ("fix uploads",)).text("v1", "v2") == (
        "v1 -> v2: 1 commit; 2 files changed, 1 line added, 7 removed\n  fix uploads"
    )
    assert Changes(0, 3, 1, 0, 4, ()).text("v2", "v1") == (
        "v2 -> v1: 0 commits, 3 commits taken back; 1 file changed, 0 lines added, 4 removed"
    )
    assert Changes(1, 0, 0, 0, 0, ("empty",)).text("a", "b") == "a -> b: 1 commit; no file differs\n  empty"
