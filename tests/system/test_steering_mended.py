"""What somebody takes away under a daemon that steers: noticed, and made again."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from clojarsd.core.errors import CannotSteer
from clojarsd.system import bpf
from clojarsd.system.steering import KernelSteering, take_away
from clojarsd.system.steering_directory import LINK
from tests.support.namespaces import BPF_FS, another_process, apart, become, in_child
from tests.support.steered import HTTP, PINS, B, P, Rig, clients, listening, reached, rig

MNT_DETACH = 2
PLAIN = 65534


def detach_link() -> None:
    """As `bpftool link detach` does."""
    link = bpf.get_pinned(PINS / LINK)
    bpf.detach(link)
    os.close(link)


def unmount_under_us() -> None:
    assert ctypes.CDLL(None).umount2(os.fsencode(BPF_FS), MNT_DETACH) == 0


@contextmanager
def steering_rig() -> Iterator[Rig]:
    """One that steers already, and whose pins all stand."""
    with rig() as seen:
        seen.steering.set_order("http", [P, B])
        assert seen.steering.lacks() is None
        yield seen


def follow(seen: Rig) -> None:
    """The pins are good for a next daemon, and a clean end leaves nothing."""
    assert seen.steering.lacks() is None
    assert seen.reached() == "primary"
    seen.steering.detach()
    assert seen.reached() == "primary"
    seen.steering = seen.opened()
    assert seen.steering.order("http") == (P, B)
    seen.steering.configure([HTTP])
    assert seen.steering.lacks() is None
    seen.steering.remove()
    assert not PINS.exists()
    assert seen.reached() == "own"


@apart
def test_a_link_that_was_detached() -> None:
    with steering_rig() as seen:
        detach_link()
        assert seen.reached() == "own"
        assert not seen.steering.is_attached()
        assert seen.steering.lacks() == "the program was detached"
        seen.steering.mend()
        follow(seen)


@apart
def test_another_program_in_the_link() -> None:
    with steering_rig() as seen:
        nobody = bytes.fromhex("b7000000010000009500000000000000")  # r0 = SK_PASS; exit
        program = bpf.load_lookup_program(nobody, "stranger")
        link = bpf.get_pinned(PINS / LINK)
        bpf.replace_program(link, program)
        os.close(link)
        os.close(program)
        assert seen.reached() == "own"
        assert seen.steering.lacks() == "another program was put in its place"
        seen.steering.mend()
        follow(seen)


@apart
@pytest.mark.parametrize("what", ["link", "sockets", "all", "directory", "both", "file system"])
def test_pins_that_were_removed(what: str) -> None:
    """Nobody notices but the next look: the kernel steers on, since this daemon has it all."""
    with steering_rig() as seen, clients("127.0.0.1", 8080, seen.among) as asked:
        asked.more(4)
        if what in ("link", "sockets"):
            (PINS / what).unlink()
        elif what == "all":
            for path in PINS.iterdir():
                path.unlink()
        elif what == "file system":
            unmount_under_us()
        else:
            shutil.rmtree(PINS if what == "directory" else PINS.parent)
        asked.more(4)
        assert seen.steering.lacks() == f"what was pinned in {PINS} is gone"
        seen.steering.mend()
        asked.more(4)
        assert seen.steering.lacks() is None
        assert set(asked.answers) == {"primary"}
    with rig() as again:  # another daemon, that finds all
        assert again.steering.order("http") == (P, B)


@apart
def test_link_and_pins_at_once() -> None:
    with steering_rig() as seen:
        detach_link()
        shutil.rmtree(PINS)
        seen.steering.mend()
        follow(seen)


@apart
def test_a_new_link_that_cannot_be_pinned_is_missed_until_it_can() -> None:
    """The pin of the old one leads nowhere, and a next daemon would find that."""
    with steering_rig() as seen:
        detach_link()
        remount(read_only=True)
        for _ in range(2):
            with pytest.raises(CannotSteer, match="pinning failed: read-only file system"):
                seen.steering.mend()
            assert seen.reached() == "primary"
            assert seen.steering.lacks() == f"what was pinned in {PINS} is gone"
        remount(read_only=False)
        seen.steering.mend()
        follow(seen)


def remount(*, read_only: bool) -> None:
    subprocess.run(["mount", "-o", f"remount,{'ro' if read_only else 'rw'}", BPF_FS], check=True)


@apart
def test_pins_that_another_daemon_has_made_meanwhile_stay_its_own() -> None:
    with steering_rig() as seen:
        shutil.rmtree(PINS)
        with another_process(lambda: KernelSteering.open("test")) as other:
            with pytest.raises(CannotSteer, match=f"process {other} steers as test already"):
                seen.steering.mend()
            assert seen.steering.is_attached()
            assert seen.reached() == "primary"
            seen.steering.remove()
            assert (PINS / LINK).exists()


@apart
def test_what_cannot_be_made_again_is_one_sentence_and_steered_on() -> None:
    """A plain user cannot mount; its kernel has the program as long as it lives."""
    BPF_FS.chmod(0o711)
    PINS.mkdir(parents=True)
    os.chown(PINS, PLAIN, PLAIN)
    with listening() as instance:

        def steer() -> None:
            become(PLAIN, 39, 12)
            steering = KernelSteering.open("test")
            steering.configure([HTTP])
            steering.put("http", P, [instance])
            steering.set_order("http", [P])
            for path in PINS.iterdir():
                path.unlink()
            steering.mend()
            assert steering.lacks() is None
            root.unmounts()
            assert steering.lacks() == f"what was pinned in {PINS} is gone"
            with pytest.raises(CannotSteer, match="only root may mount one"):
                steering.mend()
            assert steering.is_attached()
            assert reached("127.0.0.1", 8080, {"primary": instance}) == "primary"

        root = Root()
        in_child(steer, root.unmount_when_asked)


class Root:
    """Root, who unmounts when the other one says so."""

    def __init__(self) -> None:
        self._ask, self._asked = os.pipe(), os.pipe()

    def unmounts(self) -> None:
        os.write(self._ask[1], b"x")
        assert os.read(self._asked[0], 1) == b"x"

    def unmount_when_asked(self) -> None:
        assert os.read(self._ask[0], 1) == b"x"
        unmount_under_us()
        os.write(self._asked[1], b"x")


@apart
def test_removing_takes_no_descriptor_that_is_not_there() -> None:
    """Nothing is steered where none is left, though the files of the maps stay."""
    with steering_rig() as seen:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(CannotSteer, match="too many open files"):
                seen.steering.remove()
            assert not (PINS / LINK).exists()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert seen.reached() == "own"


@apart
def test_what_a_dead_daemon_has_left_is_taken_away_and_what_a_living_one_has_stays() -> None:
    with steering_rig() as seen:
        assert not take_away("test")
        assert not take_away("other")
        seen.steering.detach()
        assert seen.reached() == "primary"
        assert take_away("test")
        assert seen.reached() == "own"
        assert not PINS.exists()


@apart
def test_a_plain_user_without_capabilities_takes_his_own_pins_away() -> None:
    """Nothing but removing files, which ends the link."""
    BPF_FS.chmod(0o711)
    PINS.mkdir(parents=True)
    os.chown(PINS, PLAIN, PLAIN)
    with listening() as instance, listening(port=8080) as own:
        among = {"primary": instance, "own": own}

        def steer() -> None:
            become(PLAIN, 39, 12)
            steering = KernelSteering.open("test")
            steering.configure([HTTP])
            steering.put("http", P, [instance])
            steering.set_order("http", [P])
            steering.detach()

        def remove() -> None:
            become(PLAIN)
            assert take_away("test")

        in_child(steer)
        assert reached("127.0.0.1", 8080, among) == "primary"
        in_child(remove)
        assert reached("127.0.0.1", 8080, among) == "own"
