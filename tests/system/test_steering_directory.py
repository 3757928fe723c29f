"""Who may steer, who has the directory, and what is left behind."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from clojarsd.core.errors import CannotSteer
from clojarsd.core.names import Address, Role
from clojarsd.core.steering import Steered
from clojarsd.core.steering_reasons import CAP_BPF, CAP_NET_ADMIN
from clojarsd.system import bpf
from clojarsd.system.bpf_fs import OURS, is_bpf_fs
from clojarsd.system.steering import KernelSteering, cleanup
from clojarsd.system.steering_directory import sweep
from tests.support.namespaces import (
    BPF_FS,
    another_process,
    apart,
    become,
    in_child,
    mount,
    new_namespaces,
    run_apart,
    unmount,
)
from tests.support.steered import listening, reached
from tests.support.waiting import PATIENCE

P = Role.PRIMARY
HTTP = Steered("http", (Address("127.0.0.1", 8080),))
PARENT = BPF_FS / "clojarsd"
PLAIN = 65534
CLONE_NEWUSER = 0x10000000


def entries(path: Path) -> list[str]:
    """What is there, but for what the kernel itself shows in a BPF file system."""
    return sorted(entry.name for entry in path.iterdir() if "." not in entry.name)


def reason(name: str = "test", root: Path = BPF_FS) -> str:
    """Why steering cannot be opened."""
    with pytest.raises(CannotSteer) as refused:
        KernelSteering.open(name, root)
    return str(refused.value)


@apart
def test_a_removed_steering_leaves_nothing() -> None:
    with listening() as instance, listening(port=8080) as own:
        steering = KernelSteering.open("test")
        assert not steering.is_as_found(), "there was nothing"
        steering.configure([HTTP])
        steering.put("http", P, [instance])
        steering.set_order("http", [P])
        among = {"primary": instance, "own": own}
        assert entries(PARENT / "test") == ["counters", "link", "names", "order", "sockets"]
        assert reached("127.0.0.1", 8080, among) == "primary"
        steering.remove()
        assert reached("127.0.0.1", 8080, among) == "own"
        assert entries(BPF_FS) == []
        assert is_bpf_fs(BPF_FS), "it is not ours"


@apart
def test_what_somebody_else_has_removed_is_not_missed() -> None:
    steering = KernelSteering.open("test")
    for entry in (PARENT / "test").iterdir():
        entry.unlink()
    (PARENT / "test").rmdir()
    steering.remove()
    assert entries(BPF_FS) == []


@pytest.mark.slow
@pytest.mark.parametrize("bpf_fs", [True, False])
def test_daemons_that_come_and_go_at_once_do_not_trip_over_each_other(bpf_fs: bool) -> None:
    """Each opens it, or is told that the other has it; also while that one takes directories and mount away."""
    times = 100

    def come_and_go() -> None:
        for _ in range(times):
            try:
                KernelSteering.open("test").remove()
            except CannotSteer as error:
                assert "steers as test already" in str(error)  # noqa: PT017  # either is right

    def both() -> None:
        in_child(come_and_go, come_and_go)
        assert (entries(BPF_FS) if is_bpf_fs(BPF_FS) else []) == []
        assert is_bpf_fs(BPF_FS) == bpf_fs

    run_apart(both, bpf_fs=bpf_fs)


@apart
def test_other_pins_are_left_alone() -> None:
    (PARENT / "another").mkdir(parents=True)
    (BPF_FS / "others").mkdir()
    KernelSteering.open("test").remove()
    assert entries(BPF_FS) == ["clojarsd", "others"]
    assert entries(PARENT) == ["another"]


@apart
def test_names_are_told_apart_whatever_letters_they_have() -> None:
    """A file system for BPF takes neither dots nor slashes."""
    opened = [KernelSteering.open(name) for name in ("a.b", "a/b", "a b", "ä")]
    assert entries(PARENT) == ["a%20b", "a%2eb", "a%2fb", "ä"]
    for steering in opened:
        steering.remove()


@apart
def test_a_second_daemon_of_the_name_is_told_who_has_it() -> None:
    with another_process(lambda: KernelSteering.open("test")) as pid:
        assert reason() == f"process {pid} steers as test already: it holds {PARENT}/test"
        KernelSteering.open("other").remove()
    KernelSteering.open("test").remove()
    assert entries(BPF_FS) == []


@apart
def test_clean_up_removes_what_nobody_holds() -> None:
    """Whatever is in it; and it stops steering."""
    with listening() as instance, listening(port=8080) as own:
        steering = KernelSteering.open("dead")
        steering.configure([HTTP])
        steering.put("http", P, [instance])
        steering.set_order("http", [P])
        steering.detach()
        (PARENT / "odd").mkdir()
        other = bpf.create_map(bpf.MapShape(2, 4, 4, 1), "odd")
        bpf.pin(other, PARENT / "odd" / "link")
        bpf.pin(other, PARENT / "odd" / "odd")
        os.close(other)
        with another_process(lambda: KernelSteering.open("alive")):
            assert cleanup() == ["dead", "odd"]
            assert entries(PARENT) == ["alive"]
        assert reached("127.0.0.1", 8080, {"primary": instance, "own": own}) == "own"
        assert cleanup() == ["alive"]
        assert entries(BPF_FS) == []
        assert cleanup() == []


@apart(bpf_fs=False)
def test_clean_up_without_a_bpf_file_system_finds_nothing() -> None:
    assert cleanup() == []
    assert not is_bpf_fs(BPF_FS)


@apart
def test_clean_up_says_where_it_may_not_look() -> None:
    PARENT.mkdir(mode=0o700)
    BPF_FS.chmod(0o755)

    def look() -> None:
        become(PLAIN)
        with pytest.raises(CannotSteer) as refused:
            cleanup()
        assert str(refused.value) == f"cannot clean up {PARENT}: permission denied"

    in_child(look)


@apart(bpf_fs=False)
def test_root_mounts_a_bpf_file_system_and_takes_it_away_again() -> None:
    steering = KernelSteering.open("test")
    assert is_bpf_fs(BPF_FS)
    assert BPF_FS.stat().st_mode & 0o777 == 0o700
    mounted = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    assert [words[0] for words in mounted if words[1] == str(BPF_FS)] == [OURS]
    steering.remove()
    assert not is_bpf_fs(BPF_FS)


@apart(bpf_fs=False)
def test_a_mount_into_which_somebody_looks_at_the_end_is_taken_away_when_they_have_gone() -> None:
    steering = KernelSteering.open("test")
    looks = os.open(BPF_FS, os.O_RDONLY | os.O_DIRECTORY)
    steering.remove()
    assert is_bpf_fs(BPF_FS)
    assert sweep(BPF_FS, 0.05) == "device or resource busy"
    goes = threading.Timer(0.2, os.close, [looks])
    goes.start()
    try:
        assert sweep(BPF_FS, PATIENCE) is None
    finally:
        goes.join()
    assert not is_bpf_fs(BPF_FS)
    assert sweep(BPF_FS, PATIENCE) is None, "there is nothing to take away"


@apart(bpf_fs=False)
def test_a_mount_in_which_another_daemon_has_pinned_something_stays() -> None:
    with another_process(lambda: KernelSteering.open("other")):
        assert sweep(BPF_FS, PATIENCE) is None
        assert is_bpf_fs(BPF_FS)


@apart(bpf_fs=False)
def test_the_mount_of_a_dead_daemon_is_taken_away_by_its_successor_or_by_clean_up() -> None:
    for end in (lambda: KernelSteering.open("test").remove(), cleanup):
        with another_process(lambda: KernelSteering.open("test")):
            pass
        assert entries(PARENT) == ["test"]
        end()
        assert not is_bpf_fs(BPF_FS)


@apart(bpf_fs=False)
def test_a_mount_of_ours_stays_while_somebody_else_has_pinned_something() -> None:
    steering = KernelSteering.open("test")
    (BPF_FS / "others").mkdir()
    steering.remove()
    assert entries(BPF_FS) == ["others"]
    (BPF_FS / "others").rmdir()
    KernelSteering.open("test").remove()
    assert not is_bpf_fs(BPF_FS)


@apart(bpf_fs=False)
def test_a_refusal_on_the_way_leaves_no_mount() -> None:
    programs = attach_up_to_the_limit()
    reason()
    assert not is_bpf_fs(BPF_FS)
    assert len(programs) == 64


def attach_up_to_the_limit() -> list[int]:
    program = bpf.load_lookup_program(bytes.fromhex("b700000001000000") + bytes.fromhex("9500000000000000"), "other")
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    return [bpf.attach_lookup(program, namespace) for _ in range(64)]


@apart
def test_too_many_programs_are_named() -> None:
    attach_up_to_the_limit()
    assert reason() == (
        "attaching the program failed: this network namespace has 64 sk_lookup programs already, "
        "the most that Linux runs"
    )
    assert entries(BPF_FS) == []


@apart
def test_a_plain_user_with_two_capabilities_steers_in_a_directory_made_for_it() -> None:
    """As root makes it: the file system can be passed through, and the directory is the user's. It stays, empty."""
    BPF_FS.chmod(0o711)
    (PARENT / "test").mkdir(parents=True)
    os.chown(PARENT / "test", PLAIN, PLAIN)

    def steer() -> None:
        become(PLAIN, CAP_BPF, CAP_NET_ADMIN)
        with listening() as instance, listening(port=8080) as own:
            steering = KernelSteering.open("test")
            steering.configure([HTTP])
            steering.detach()
            steering = KernelSteering.open("test")
            steering.configure([HTTP, Steered("line", (Address("::", 8700),))])
            steering.put("http", P, [instance])
            steering.set_order("http", [P])
            among = {"primary": instance, "own": own}
            assert reached("127.0.0.1", 8080, among) == "primary"
            assert steering.counters("http") == {P: 1, Role.BACKUP: 0, None: 0}
            steering.remove()
            assert reached("127.0.0.1", 8080, among) == "own"

    in_child(steer)
    assert entries(PARENT / "test") == []


def as_plain_user(*capabilities: int, says: str) -> None:
    def look() -> None:
        become(PLAIN, *capabilities)
        assert reason() == says

    in_child(look)


@apart
def test_each_capability_that_is_missing_is_named() -> None:
    as_plain_user(
        says=f"user {PLAIN} may not steer: it takes root, or the capabilities CAP_BPF and CAP_NET_ADMIN "
        "(systemd: AmbientCapabilities=)"
    )
    missing = "which this process does not have (systemd: CapabilityBoundingSet=)"
    as_plain_user(CAP_BPF, says=f"steering takes CAP_NET_ADMIN, {missing}")
    as_plain_user(CAP_NET_ADMIN, says=f"steering takes CAP_BPF, {missing}")


@apart
def test_a_directory_that_the_user_may_not_make_or_enter_is_named() -> None:
    """The file system is root's alone; the parent is missing; the directory is somebody else's."""
    both = (CAP_BPF, CAP_NET_ADMIN)
    how = "permission denied (systemd: ExecStartPre=+ of clojarsd.service)"
    BPF_FS.chmod(0o700)
    as_plain_user(*both, says=f"{PARENT} cannot be made or entered by user {PLAIN}: {how}")
    BPF_FS.chmod(0o711)
    as_plain_user(*both, says=f"{PARENT} cannot be made or entered by user {PLAIN}: {how}")
    PARENT.mkdir()
    as_plain_user(*both, says=f"{PARENT}/test cannot be made or entered by user {PLAIN}: {how}")
    (PARENT / "test").mkdir()
    as_plain_user(
        *both,
        says=f"{PARENT}/test belongs to user 0, and this daemon is user {PLAIN} "
        "(remove it with: clojarsctl daemon cleanup)",
    )


@apart(bpf_fs=False)
def test_a_plain_user_without_a_bpf_file_system_is_told_how_to_mount_one() -> None:
    as_plain_user(
        CAP_BPF,
        CAP_NET_ADMIN,
        says=f"no BPF file system is mounted at {BPF_FS}, and only root may mount one (mount -t bpf bpf {BPF_FS})",
    )


def test_a_place_where_none_can_be_mounted_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"

    def look() -> None:
        assert reason(root=missing) == (
            f"no BPF file system is mounted at {missing}, and mounting one failed: no such file or directory"
        )

    run_apart(look, bpf_fs=False)


@apart(bpf_fs=False)
def test_a_file_system_that_is_read_only_is_named() -> None:
    mount(BPF_FS, "bpf", read_only=True)
    assert reason() == (
        f"{PARENT} cannot be made: it is on a file system that is read-only (systemd: ProtectKernelTunables=)"
    )
    unmount(BPF_FS)


@apart
def test_capabilities_that_count_in_a_user_namespace_only_are_told_from_real_ones() -> None:
    def look() -> None:
        new_namespaces(CLONE_NEWUSER)
        assert reason() == (
            "making the maps failed: the kernel does not permit it, although this process has the capabilities "
            "(a user namespace, systemd's SystemCallFilter= or a security module)"
        )

    in_child(look)
    assert entries(BPF_FS) == []
