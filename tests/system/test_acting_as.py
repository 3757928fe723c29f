"""A thread that acts as another user may do what that user may, and no other thread is changed."""

from __future__ import annotations

import asyncio
import os
import pwd
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system import acting_as as module
from clojarsd.system.acting_as import Actor, acting_as, actor_of
from tests.support.namespaces import become, in_child
from tests.support.real import unavailable

UID, GID, EXTRA = 12345, 12346, 12347
ACTOR = Actor(UID, GID, (EXTRA,))
IDENTITY = ("Uid:", "Gid:", "Groups:", "CapEff:", "CapPrm:")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of the actor's, below one that everybody can reach."""
    if os.geteuid() != 0:
        unavailable("not root, who alone can act as others")
    for above in (tmp_path, *tmp_path.parents):
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    place = tmp_path / "place"
    place.mkdir(0o700)
    os.chown(place, UID, GID)
    return place


def identity() -> list[str]:
    """Of this thread, as the kernel has it."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(IDENTITY)]


def in_thread(act: Callable[[], None]) -> None:
    """Run it in a thread of its own; its failure is ours."""
    asyncio.run(_to_thread(act))


async def _to_thread(act: Callable[[], None]) -> None:
    await asyncio.to_thread(act)


def test_a_link_in_a_users_directory_leads_to_nothing_that_the_user_may_not_see(place: Path) -> None:
    secret = place.parent / "secret"
    secret.write_text("root's alone")
    secret.chmod(0o600)
    link = place / "link"
    link.symlink_to(secret)
    assert link.read_text() == "root's alone"

    def act() -> None:
        with acting_as(ACTOR):
            with pytest.raises(PermissionError):
                link.read_text()
            with pytest.raises(PermissionError):
                link.write_text("led astray")
            with pytest.raises(PermissionError):
                (place.parent / "new").write_text("")
        assert link.read_text() == "root's alone"

    in_thread(act)


def test_what_is_made_belongs_to_the_user(place: Path) -> None:
    with acting_as(ACTOR):
        (place / "file").write_text("")
        (place / "directory").mkdir()
    for made in place.iterdir():
        assert (made.stat().st_uid, made.stat().st_gid) == (UID, GID)


@pytest.mark.parametrize(("groups", "readable"), [((EXTRA,), True), ((), False), ((0,), False)])
def test_the_users_groups_count_and_those_of_the_daemon_do_not(
    place: Path, groups: tuple[int, ...], readable: bool
) -> None:
    file = place / "file"
    file.write_text("for a group")
    os.chown(file, 0, EXTRA)
    file.chmod(0o040)
    with acting_as(Actor(UID, GID, groups)):
        if readable:
            assert file.read_text() == "for a group"
        else:
            with pytest.raises(PermissionError):
                file.read_text()


def test_the_main_group_counts(place: Path) -> None:
    file = place / "file"
    file.write_text("for the main group")
    os.chown(file, 0, GID)
    file.chmod(0o040)
    with acting_as(ACTOR):
        assert file.read_text() == "for the main group"


def test_another_thread_is_root_all_the_while(place: Path) -> None:
    """Also where the C library would have told every thread."""
    secret = place / "secret"
    secret.write_text("root's alone")
    secret.chmod(0o600)
    os.chown(secret, 0, 0)
    entered, looked = threading.Event(), threading.Event()
    refused: list[bool] = []

    def act() -> None:
        with acting_as(ACTOR):
            entered.set()
            assert looked.wait(30)
            try:
                secret.read_text()
            except PermissionError:
                refused.append(True)

    before = identity()
    other = threading.Thread(target=act)
    other.start()
    assert entered.wait(30)
    try:
        assert identity() == before
        assert secret.read_text() == "root's alone"
        for task in Path("/proc/self/task").iterdir():
            is_other = task.name == str(other.native_id)
            assert (f"\t{EXTRA} " in (task / "status").read_text()) == is_other
    finally:
        looked.set()
        other.join()
    assert refused == [True]


def test_everything_is_restored_whatever_happens(place: Path) -> None:
    before = identity()

    def fail() -> None:
        with acting_as(ACTOR):
            assert identity() != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert identity() == before
    with acting_as(ACTOR):
        with acting_as(Actor(UID + 1, GID + 1)):
            inner = identity()
        assert identity() != inner
        with pytest.raises(PermissionError):
            os.chown(place, 0, 0)
    assert identity() == before


def test_who_one_is_already_changes_nothing(tmp_path: Path) -> None:
    before = identity()
    for actor in (None, Actor(os.geteuid(), 1, (2,))):
        with acting_as(actor):
            assert identity() == before
            (tmp_path / "file").write_text("")


async def test_it_is_a_bug_to_do_so_where_tasks_run() -> None:
    with pytest.raises(AssertionError, match=r"^an await in the block would let other tasks act as this user"):
        acting_as(ACTOR).__enter__()


def as_plain_user() -> None:
    become(UID)
    before = identity()
    with pytest.raises(Failed, match=rf"^cannot act as user {UID + 1}: this is neither that user nor root: "):
        acting_as(Actor(UID + 1, GID)).__enter__()
    assert identity() == before
    assert actor_of(pwd.getpwuid(0).pw_name) is None


def without_some_capability(*capabilities: int) -> Callable[[], None]:
    def act() -> None:
        become(UID, *capabilities)
        before = identity()
        with pytest.raises(Failed, match=r"^cannot act as user or group \d+: the kernel does not allow it$"):
            acting_as(Actor(UID + 1, GID)).__enter__()
        assert identity() == before

    return act


def test_who_may_not_is_told_and_nothing_has_changed(place: Path) -> None:
    """CAP_SETGID is 6; without CAP_SETUID the groups are put back."""
    in_child(as_plain_user)
    in_child(without_some_capability(6))


def test_a_machine_whose_system_calls_are_not_known_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NUMBERS", {})
    machine = os.uname().machine
    with pytest.raises(Failed, match=rf"^cannot act as user {UID}: how that is done on {machine} is not known$"):
        acting_as(ACTOR).__enter__()


def test_the_actor_of_an_account_has_its_groups(place: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    assert actor_of("nobody") == Actor(
        nobody.pw_uid, nobody.pw_gid, tuple(os.getgrouplist(nobody.pw_name, nobody.pw_gid))
    )
    assert actor_of("nobody", "12347") == Actor(nobody.pw_uid, 12347, tuple(os.getgrouplist("nobody", 12347)))
    assert actor_of("root") is None
    with pytest.raises(Failed, match="no such user on this machine"):
        actor_of("no-such-user")
