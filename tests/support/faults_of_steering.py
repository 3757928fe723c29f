"""Faults of what the kernel steers by: pins, link, file system; and of everything that might look after them."""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from collections.abc import Callable

from clojarsd.system import bpf
from tests.support.faults import Faults, Load, Scene, kill, pids, said, until_normal, until_said
from tests.support.namespaces import BPF_FS

fault = Faults()

MEANINGLESS = frozenset({"no free descriptors in the relay process"})
"""Faults that cannot happen: nobody comes to the relay process, so that it runs short of nothing."""
PINS = BPF_FS / "clojarsd" / "demo"
_MNT_DETACH = 2


def _taken_away(scene: Scene, act: Callable[[], None], why: str) -> None:
    """Nobody notices; it is made again, and outlives the daemon as before."""
    with scene.pair() as pair:
        with Load(pair, inside=5, slow_ms=3000) as load:
            before = pids(pair)
            act()
            began = time.monotonic()
            until_said(pair, "event=steering_mended", why)
            seconds = until_normal(pair, began)
            assert all((PINS / name).exists() for name in ("link", "order", "sockets", "counters", "names"))
            load.prove()
            pair.kill()
            kill(before["relay"])
            load.prove()
            pair.begin()
            until_normal(pair, began)
            load.prove()
        load.assert_nothing_lost()
        assert said(pair, "event=steering_given_up") == []
    assert list(BPF_FS.glob("clojarsd/*")) == []
    scene.tell(load, "made again; the daemon and the relay process were killed, the kernel steered on", seconds)


@fault("pins removed")
def removed_pins(scene: Scene) -> None:
    _taken_away(scene, lambda: shutil.rmtree(PINS), f"what was pinned in {PINS} is gone")


@fault("bpffs unmounted")
def unmounted(scene: Scene) -> None:
    def act() -> None:
        assert ctypes.CDLL(None).umount2(os.fsencode(BPF_FS), _MNT_DETACH) == 0

    _taken_away(scene, act, f"what was pinned in {PINS} is gone")


@fault("link detached")
def detached(scene: Scene) -> None:
    """What comes until it is seen goes by way of the relay process, and is cut with that."""
    with scene.pair() as pair:
        with Load(pair) as load:
            link = bpf.get_pinned(PINS / "link")
            bpf.detach(link)
            os.close(link)
            began = time.monotonic()
            until_said(pair, "event=steering_mended", "the program was detached")
            seconds = until_normal(pair, began)
            load.prove()
        load.assert_nothing_lost()
    scene.tell(load, "relayed for less than a second, then steered again", seconds)


@fault("nothing can be pinned again")
def unpinnable(scene: Scene) -> None:
    """The kernel steers on as long as the daemon lives, and says so; after it the relay process has everything."""
    with scene.pair() as pair:
        with Load(pair) as load:
            shutil.rmtree(PINS)
            PINS.mkdir()
            os.chown(PINS, 65534, 65534)
            began = time.monotonic()
            pair.until(lambda seen: seen["frontends"]["http"]["mode_reason"] is not None)
            seen = pair.status()["frontends"]["http"]
            assert seen["mode"] == "steer"
            assert f"{PINS} belongs to user 65534, and this daemon is user 0" in seen["mode_reason"]
            load.prove()
            os.chown(PINS, 0, 0)
            seconds = until_normal(pair, began, lambda seen: seen["frontends"]["http"]["mode_reason"] is None)
            load.prove()
        load.assert_nothing_lost()
    scene.tell(load, "steered on, and named; pinned again when that could be", seconds)
