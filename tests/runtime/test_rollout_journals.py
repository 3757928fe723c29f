"""Journals on a real disk: what is taken up of them, what is forgotten, and what a disk that is full does to them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import structlog

from clojarsd.core import rollout_journal as journal
from clojarsd.core.errors import Failed
from clojarsd.core.rollout_facts import GoingBack, Outcome, StepName
from clojarsd.runtime.rollout_journals import KEPT, RESERVED, Journals, short
from clojarsd.system.record_log import RecordLog
from tests.support.namespaces import apart
from tests.support.rollouts import AT, ID, make_wish
from tests.support.small_disks import fill, mount_small
from tests.support.waiting import PATIENCE, until

ASKED = journal.asked(make_wish())
ENDED = journal.ended(Outcome.DONE, "so it is", AT)


def open_journals(directory: Path) -> Journals:
    (directory / "logs").mkdir(exist_ok=True)
    return Journals(directory / "rollouts", directory / "logs")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "rollouts").iterdir())


def make(directory: Path, id: str, *records: journal.Record) -> Path:
    """A journal as a former daemon has left it."""
    (directory / "rollouts").mkdir(exist_ok=True)
    path = directory / "rollouts" / f"{id}.jsonl"
    with RecordLog.open(path, create=True) as log:
        for record in records:
            log.append(record)
    return path


async def test_a_journal_is_taken_up_until_it_has_an_end(tmp_path: Path) -> None:
    journals = open_journals(tmp_path)
    assert journals.load() is None
    await journals.begin(ID, [ASKED, journal.approved("ann", AT)])
    path = tmp_path / "rollouts" / f"{ID}.jsonl"
    assert path.stat().st_size >= RESERVED
    assert path.parent.stat().st_mode & 0o777 == 0o750
    await journals.write(journal.begun(StepName.BUILD, AT))
    journals.close()
    journals = open_journals(tmp_path)
    rollout = journals.load()
    assert rollout is not None
    assert (rollout.at_step, rollout.approved_by, rollout.outcome) == (StepName.BUILD, "ann", None)
    await journals.write(ENDED)
    await journals.end()
    journals.close()
    rollout = open_journals(tmp_path).load()
    assert rollout is not None
    assert (rollout.outcome, rollout.message) == (Outcome.DONE, "so it is")


async def test_ids_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    journals = open_journals(tmp_path)
    assert await journals.free_id(ID) == ID
    for number in range(1, 12):
        id = await journals.free_id(ID)
        assert id == (ID if number == 1 else f"{ID}-{number}")
        make(tmp_path, id, journal.asked(make_wish(id=id)), ENDED)
    latest = open_journals(tmp_path).load()
    assert latest is not None
    assert latest.wish.id == f"{ID}-11"
    make(tmp_path, "20261128-120001", journal.asked(make_wish(id="20261128-120001")), ENDED)
    latest = open_journals(tmp_path).load()
    assert latest is not None
    assert latest.wish.id == "20261128-120001"
    journals.close()


@pytest.mark.parametrize(
    "name", ["notes.jsonl", "zz-99999999.jsonl", f"{ID}-x.jsonl", f"{ID}.jsonl.bak", f"{ID}-².jsonl"]
)
async def test_other_files_are_nobodys(tmp_path: Path, name: str) -> None:
    """They would come last in the order, and hide what is under way."""
    make(tmp_path, ID, ASKED)
    stranger = tmp_path / "rollouts" / name
    stranger.write_text("notes")
    journals = open_journals(tmp_path)
    rollout = journals.load()
    assert rollout is not None
    assert rollout.outcome is None
    await journals.end()
    journals.close()
    assert stranger.read_text() == "notes"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"something else\n" * 3, "it is something else, or damaged beyond use; it was left as it is"),
        (None, "a record of it cannot be understood: ValueError: 'perhaps' is not a valid Outcome"),
        ("begun", "it begins with begun, not with what was asked for"),
    ],
)
async def test_what_cannot_be_understood_is_told_and_left(
    tmp_path: Path, content: bytes | str | None, reason: str
) -> None:
    """Nothing is undone by a guess; what was before it has ended."""
    make(tmp_path, "20261128-110000", journal.asked(make_wish(id="20261128-110000")), ENDED)
    if content is None:
        path = make(tmp_path, ID, ASKED, {**ENDED, "outcome": "perhaps"})
    elif isinstance(content, str):
        path = make(tmp_path, ID, journal.begun(StepName.BUILD, AT))
    else:
        path = make(tmp_path, ID)
        path.write_bytes(content)
    before = path.read_bytes()
    with structlog.testing.capture_logs() as logged:
        assert open_journals(tmp_path).load() is None
    assert [entry["event"] for entry in logged] == ["journal_not_usable"]
    assert logged[0]["reason"].endswith(reason)
    assert path.read_bytes() == before


async def test_a_journal_that_was_cut_while_it_was_made_stands_for_nothing(tmp_path: Path) -> None:
    """Nobody was told that its rollout has begun; the one before it is the latest, and may even be under way."""
    make(tmp_path, "20261128-110000", journal.asked(make_wish(id="20261128-110000")))
    make(tmp_path, ID)
    (tmp_path / "rollouts" / f"{ID}-2.jsonl").write_bytes(b'{"for')
    journals = open_journals(tmp_path)
    with structlog.testing.capture_logs() as logged:
        rollout = journals.load()
    assert rollout is not None
    assert rollout.wish.id == "20261128-110000"
    assert [entry["event"] for entry in logged] == ["journal_damaged", "journal_of_nothing", "journal_of_nothing"]
    journals.close()
    for path in (tmp_path / "rollouts").iterdir():
        path.unlink()
    make(tmp_path, ID)
    assert open_journals(tmp_path).load() is None


async def test_a_torn_last_record_does_not_count(tmp_path: Path) -> None:
    path = make(tmp_path, ID, ASKED, journal.begun(StepName.BUILD, AT))
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with structlog.testing.capture_logs() as logged:
        journals = open_journals(tmp_path)
        rollout = journals.load()
    assert rollout is not None
    assert rollout.at_step is None
    assert logged[0]["event"] == "journal_damaged"
    await journals.write(ENDED)
    journals.close()
    ended = open_journals(tmp_path).load()
    assert ended is not None
    assert ended.outcome is Outcome.DONE


async def test_the_oldest_are_forgotten_with_their_output(tmp_path: Path) -> None:
    ids = [f"20261128-12{minute:02}{second:02}" for minute in range(2) for second in range(30)]
    for id in ids:
        make(tmp_path, id, journal.asked(make_wish(id=id)), ENDED)
        (tmp_path / "logs").mkdir(exist_ok=True)
        (tmp_path / "logs" / f"{id}.log").write_text("output")
    (tmp_path / "logs" / "20261127-000000.log").write_text("of a deploy that was refused")
    journals = open_journals(tmp_path)
    await journals.begin("20261128-130000", [ASKED])
    await journals.write(ENDED)
    await journals.end()
    journals.close()
    kept = [*ids, "20261128-130000"][-KEPT:]
    assert names(tmp_path) == [f"{id}.jsonl" for id in kept]
    assert sorted(path.stem for path in (tmp_path / "logs").iterdir()) == kept[:-1]


async def test_what_cannot_be_forgotten_is_only_told(tmp_path: Path) -> None:
    for second in range(KEPT + 1):
        id = f"20261128-1200{second:02}"
        make(tmp_path, id, journal.asked(make_wish(id=id)), ENDED)
    journals = open_journals(tmp_path)
    (tmp_path / "rollouts" / "20261128-120000.jsonl").unlink()
    (tmp_path / "rollouts" / "20261128-120000.jsonl").mkdir()
    with structlog.testing.capture_logs() as logged:
        await journals.end()
    assert [entry["event"] for entry in logged] == ["journals_not_forgotten"]
    journals.close()


async def test_times_of_steps_are_the_latest(tmp_path: Path) -> None:
    for second, seconds in ((0, 5.0), (1, 7.0)):
        id = f"20261128-12000{second}"
        make(tmp_path, id, journal.asked(make_wish(id=id)), journal.done(StepName.BUILD, AT, seconds), ENDED)
    (tmp_path / "rollouts" / "20261128-120002.jsonl").write_bytes(b"something else\n")
    journals = open_journals(tmp_path)
    assert await journals.times() == {"build": 7.0}
    journals.close()


async def test_a_directory_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "rollouts").write_text("in the way")
    journals = open_journals(tmp_path)
    assert journals.load() is None
    assert await journals.times() == {}
    with pytest.raises(Failed):
        await journals.begin(ID, [ASKED])
    journals.close()
    missing = Journals(tmp_path / "nowhere" / "rollouts", tmp_path / "logs")
    with pytest.raises(Failed) as caught:
        await missing.begin(ID, [ASKED])
    told = f"cannot make {tmp_path}/nowhere/rollouts: no such file or directory"
    assert str(caught.value) == told
    missing.close()


async def test_who_is_cancelled_while_it_writes_is_in_nobodys_way(tmp_path: Path) -> None:
    """What it has begun to write is written before what comes after it, and never into it."""
    journals = open_journals(tmp_path)
    await journals.begin(ID, [ASKED])
    for number in range(50):
        writing = asyncio.ensure_future(journals.write(journal.begun(StepName.BUILD, f"{number}")))
        await asyncio.sleep(0)
        if number % 2:
            writing.cancel()
        await journals.write(journal.done(StepName.BUILD, f"{number}", 1.0))
        await asyncio.wait((writing,))
    journals.close()
    with RecordLog.open(tmp_path / "rollouts" / f"{ID}.jsonl", create=False) as log:
        assert log.problem is None
        done = [record["at"] for record in log.records() if record["what"] == "done"]
    assert done == [str(number) for number in range(50)]


async def test_a_file_is_let_go_of_when_what_is_being_written_is_written(tmp_path: Path) -> None:
    journals = open_journals(tmp_path)
    await journals.begin(ID, [ASKED])
    path = str(tmp_path / "rollouts" / f"{ID}.jsonl")
    writing = asyncio.ensure_future(journals.write(journal.begun(StepName.BUILD, AT)))
    await asyncio.sleep(0)
    journals.close()
    async with asyncio.timeout(PATIENCE):
        await writing
    await until(lambda: path not in _open_files(), "its end")
    with RecordLog.open(Path(path), create=False) as log:
        assert len(log.records()) == 2


def _open_files() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return found


def test_lines_are_short_enough_for_the_reserve() -> None:
    assert short(("x" * 501, "y")) == ["x" * 500, "y"]
    back = journal.turned(GoingBack("no", StepName.BUILD, output=tuple(short(("x" * 1000,) * 20))), AT)
    assert len(str(back)) < RESERVED / 4


def _whole_way_back() -> list[Any]:
    """Everything that a rollout may write, with as much output as a failure has."""
    back = GoingBack("it did not work", StepName.PRIMARY, output=tuple(short(("x" * 1000,) * 20)))
    steps = make_wish().steps
    records = [record for step in steps for record in (journal.begun(step, AT), journal.done(step, AT, 1.0))]
    return [*records, journal.turned(back, AT), *records, journal.ended(Outcome.STUCK, "so it is" * 200, AT)]


@pytest.mark.real
@apart(bpf_fs=False)
async def test_a_full_disk_keeps_no_rollout_from_going_back(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount_small(disk, 1024 * 1024)
    journals = open_journals(disk)
    await journals.begin(ID, [ASKED])
    ballast = fill(disk)
    for record in _whole_way_back():
        await journals.write(record)
    await journals.end()
    with pytest.raises(Failed) as caught:
        await journals.begin(f"{ID}-2", [ASKED])
    assert "no space left on device" in str(caught.value)
    assert names(disk) == [f"{ID}.jsonl"], "nothing is left of one that could not begin"
    ballast.unlink()
    await journals.begin(f"{ID}-2", [ASKED])
    journals.close()
