"""What one daemon has pinned, and what the next one makes of it."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from clojarsd.core.bpf_assembly import Helper
from clojarsd.core.spreading import WHOLE
from clojarsd.core.steering import ADDRESS_SIZE, IPV4, address_keys, program
from clojarsd.system import bpf
from clojarsd.system.bpf import MapKind, MapShape
from clojarsd.system.steering import KernelSteering
from clojarsd.system.steering_maps import SHAPES
from tests.support.namespaces import another_process, apart, new_network
from tests.support.steered import HTTP, LINE, PINS, B, P, Rig, clients, cookie, listening, reached, rig


@apart
def test_the_kernel_steers_on_when_the_daemon_is_killed_and_the_next_one_takes_it_up() -> None:
    """Also the failover is the kernel's alone. The sockets need not be had again."""
    with ExitStack() as closing:
        among = {name: closing.enter_context(listening()) for name in ("primary", "backup")}

        def steer() -> KernelSteering:
            steering = KernelSteering.open("test")
            steering.configure([LINE, HTTP])
            steering.put("http", P, [among["primary"]])
            steering.put("http", B, [among["backup"]])
            steering.set_order("http", [P, B])
            return steering

        with another_process(steer):
            pass
        assert reached("127.0.0.1", 8080, among) == "primary"
        among["primary"].close()
        del among["primary"]
        assert reached("127.0.0.1", 8080, among) == "backup"
        steering = KernelSteering.open("test")
        assert steering.is_as_found()
        assert steering.order("http") == (P, B)
        assert steering.counters("http") == {P: 1, B: 1, None: 0}
        assert steering.has("http", B) == {IPV4: cookie(among["backup"])}
        steering.configure([HTTP])
        assert not steering.is_as_found()
        assert reached("127.0.0.1", 8080, among) == "backup"
        with pytest.raises(KeyError):
            steering.order("line")
        steering.remove()


@apart
def test_a_daemon_is_followed_by_another_without_a_connection_that_goes_astray() -> None:
    """The clients see neither a failure nor our own listener."""
    with rig() as seen:
        seen.steering.set_order("http", [P, B])
        with clients("127.0.0.1", 8080, seen.among) as asked:
            for _ in range(20):
                seen.steering.detach()
                asked.more(4)
                seen.steering = seen.opened()
                asked.more(4)
                seen.steering.configure([HTTP])
                seen.put(P)
                asked.more(4)
        assert asked.answers.keys() == {"primary"}


@apart
def test_a_link_of_another_network_namespace_is_replaced() -> None:
    """Pins outlive a container's network: the next daemon steers where it is itself."""
    with ExitStack() as closing:
        steering = KernelSteering.open("test")
        steering.configure([HTTP])
        steering.set_order("http", [P])
        steering.detach()
        new_network()
        seen = Rig(closing)
        assert seen.steering.order("http") == (P,)
        assert seen.reached() == "primary"


@apart
def test_a_link_that_somebody_has_cut_is_made_anew() -> None:
    """By the next configuration, or the next daemon."""
    with rig() as seen:
        seen.steering.set_order("http", [P])
        for is_another in (False, True):
            link = bpf.get_pinned(PINS / "link")
            bpf.detach(link)
            os.close(link)
            assert seen.reached() == "own"
            if is_another:
                seen.steering.detach()
                seen.steering = seen.opened()
            seen.steering.configure([HTTP])
            assert seen.reached() == "primary"


@pytest.mark.parametrize("odd", SHAPES)
def test_an_unknown_layout_steers_on_until_new_maps_take_its_place(odd: str) -> None:
    """Whichever map is another one, or missing: no client fails, and our own listener takes what comes in between."""

    @apart
    def change() -> None:
        with rig() as seen:
            seen.steering.set_order("http", [P])
            with clients("127.0.0.1", 8080, seen.among) as asked:
                seen.steering.detach()
                (PINS / odd).unlink()
                other = bpf.create_map(MapShape(MapKind.ARRAY, 4, 8, 2), "other")
                bpf.pin(other, PINS / odd)
                os.close(other)
                seen.steering = seen.opened()
                asked.more()
                assert asked.answers.keys() == {"primary"}
                seen.steering.configure([HTTP])
                asked.more()
                seen.put(B)
                seen.steering.set_order("http", [B])
                asked.more()
            assert asked.answers.keys() == {"primary", "own", "backup"}
            assert seen.steering.has("http", P) == {}

    change()


@apart
def test_a_layout_of_another_version_is_not_taken_for_ours() -> None:
    with rig() as seen:
        seen.steering.set_order("http", [P])
        names = bpf.get_pinned(PINS / "names")
        bpf.update(names, (256).to_bytes(4, bpf.BYTE_ORDER), b"clojarsd steering, layout 9".ljust(256, b"\0"))
        os.close(names)
        seen.steering.detach()
        seen.steering = seen.opened()
        with pytest.raises(KeyError):
            seen.steering.order("http")
        assert seen.reached() == "primary"


@apart
def test_a_daemon_that_was_killed_while_it_pinned_leaves_nothing_in_the_way() -> None:
    with rig() as seen:
        (PINS / "order").rename(PINS / "order-new")
        seen.steering.detach()
        seen.steering = seen.opened()
        seen.steering.configure([HTTP])
        seen.put(P)
        seen.steering.set_order("http", [P])
        assert seen.reached() == "primary"
        seen.steering.remove()
        assert not PINS.exists()


@apart
def test_a_share_goes_on_and_a_program_of_an_earlier_version_is_replaced() -> None:
    """One that knows no shares steers by the same maps, as if there were none, until the next configuration."""
    with rig() as seen:
        seen.steering.set_order("http", (P, B), WHOLE // 2)
        link, older = bpf.get_pinned(PINS / "link"), _without_shares(seen)
        bpf.replace_program(link, older)
        os.close(older)
        os.close(link)
        assert {seen.reached() for _ in range(50)} == {"primary"}
        seen.steering.detach()
        seen.steering = seen.opened()
        assert (seen.steering.order("http"), seen.steering.part("http")) == ((P, B), WHOLE // 2)
        assert {seen.reached() for _ in range(50)} == {"primary"}
        seen.steering.configure([HTTP])
        assert {seen.reached() for _ in range(50)} == {"primary", "backup"}


def _without_shares(seen: Rig) -> int:
    """The program with the random number replaced by the highest there is, which is nobody's turn."""
    addresses = bpf.create_map(MapShape(MapKind.HASH, ADDRESS_SIZE, 4, 8), "addresses")
    for key, index in address_keys({0: HTTP}, bpf.BYTE_ORDER).items():
        bpf.update(addresses, key, index.to_bytes(4, bpf.BYTE_ORDER))
    text = bytearray(program(seen.steering._maps.for_program(addresses), bpf.BYTE_ORDER))
    calls = [at for at in range(0, len(text), 8) if text[at] == 0x85 and text[at + 4] == Helper.RANDOM]
    (at,) = calls
    text[at : at + 8] = bytes((0xB7, 0, 0, 0)) + (0xFFFF).to_bytes(4, bpf.BYTE_ORDER)
    loaded = bpf.load_lookup_program(bytes(text), "older")
    os.close(addresses)
    return loaded
