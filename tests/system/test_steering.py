"""Steering by this machine's kernel, in namespaces of its own for each test."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from clojarsd.core.errors import CannotSteer
from clojarsd.core.names import Address
from clojarsd.core.spreading import WHOLE
from clojarsd.core.steering import IPV4, IPV6, Steered
from tests.support.namespaces import apart, new_network
from tests.support.steered import HTTP, LINE, B, P, clients, cookie, listening, rig


@apart
def test_the_order_decides_who_gets_a_connection_and_one_update_changes_it() -> None:
    """Primary first; backup first; only one; nobody: then the listener that is bound to the address."""
    with rig() as seen:
        assert seen.reached() == "own"
        for order, who in [((P, B), "primary"), ((B, P), "backup"), ((P,), "primary"), ((), "own"), ((B,), "backup")]:
            seen.steering.set_order("http", order)
            assert seen.steering.order("http") == order
            assert seen.reached() == who


@apart
def test_another_address_of_the_same_port_and_another_port_are_left_alone() -> None:
    with rig() as seen, listening("127.0.0.2", 8080) as other, listening(port=8081) as beside:
        seen.steering.set_order("http", [P, B])
        seen.among |= {"other": other, "beside": beside}
        assert seen.reached("127.0.0.2") == "other"
        assert seen.reached(port=8081) == "beside"
        assert seen.reached("127.0.0.3") == "refused"
        assert seen.steering.counters("http") == {P: 0, B: 0, None: 0}


@apart
def test_a_listener_that_takes_both_families_gets_both() -> None:
    """As a JVM's does."""
    with rig("::") as seen:
        seen.steering.set_order("http", [P, B])
        assert (seen.reached(), seen.reached("::1")) == ("primary", "primary")
        seen.steering.set_order("http", [B, P])
        assert (seen.reached(), seen.reached("::1")) == ("backup", "backup")


@apart
def test_an_ipv6_client_of_instances_with_ipv4_alone_reaches_our_own_listener() -> None:
    with rig() as seen:
        seen.steering.set_order("http", [P, B])
        assert (seen.reached(), seen.reached("::1")) == ("primary", "own6")
        assert seen.steering.counters("http") == {P: 1, B: 0, None: 1}


@apart
def test_an_ipv4_address_that_a_client_writes_as_ipv6_is_ipv4() -> None:
    with rig() as seen:
        seen.steering.set_order("http", [P, B])
        assert seen.reached("::ffff:127.0.0.1") == "primary"


@apart
def test_an_ipv6_listener_that_takes_ipv6_alone_gets_no_ipv4() -> None:
    with rig() as seen, listening("::1", v6_only=True) as narrow:
        seen.among["narrow"] = narrow
        assert seen.steering.put("http", P, [narrow]) == {IPV6}
        seen.steering.set_order("http", [P])
        assert (seen.reached(), seen.reached("::1")) == ("own", "narrow")


@apart
def test_of_two_listeners_of_an_instance_the_ipv4_one_gets_ipv4() -> None:
    with rig() as seen, listening("::") as wide:
        seen.among["wide"] = wide
        assert seen.steering.put("http", P, [wide, seen.among["primary"]]) == {IPV4, IPV6}
        seen.steering.set_order("http", [P])
        assert (seen.reached(), seen.reached("::1")) == ("primary", "wide")
        assert seen.steering.has("http", P) == {IPV4: cookie(seen.among["primary"]), IPV6: cookie(wide)}


@apart
def test_wildcards_are_steered_as_sockets_take_them() -> None:
    """`::` takes IPv4 too, unless the frontend has an IPv4 address with the port."""
    with rig("::") as seen:
        wide = Steered("http", (Address("::", 9000), Address("::", 9001), Address("127.0.0.1", 9001)))
        seen.steering.configure([wide])
        seen.steering.set_order("http", [P])
        assert [seen.reached(host, 9000) for host in ("127.0.0.1", "127.9.9.9", "::1")] == ["primary"] * 3
        assert [seen.reached(host, 9001) for host in ("127.0.0.1", "127.9.9.9", "::1")] == [
            "primary",
            "refused",
            "primary",
        ]


@apart
def test_when_the_primarys_listener_closes_the_very_next_connection_reaches_the_backup() -> None:
    with rig() as seen:
        seen.steering.set_order("http", [P, B])
        assert seen.reached() == "primary"
        seen.among["primary"].close()
        assert seen.reached() == "backup"
        assert seen.steering.has("http", P) == {}
        seen.among["backup"].close()
        assert seen.reached() == "own"
        assert seen.steering.counters("http") == {P: 1, B: 1, None: 1}


@apart
def test_sockets_are_put_taken_out_and_replaced() -> None:
    with rig() as seen, listening() as second:
        seen.steering.set_order("http", [P])
        seen.put(P)
        assert seen.steering.has("http", P) == {IPV4: cookie(seen.among["primary"])}
        seen.among["second"] = second
        seen.steering.put("http", P, [second])
        assert seen.reached() == "second"
        assert seen.steering.has("http", P) == {IPV4: cookie(second)}
        seen.steering.put("http", P, [])
        assert seen.steering.has("http", P) == {}
        assert seen.reached() == "own"


@apart
def test_a_socket_is_put_again_and_replaced_without_a_connection_that_misses_it() -> None:
    with rig() as seen, listening() as second:
        seen.steering.set_order("http", [P])
        among = {**seen.among, "second": second}
        with clients("127.0.0.1", 8080, among) as asked:
            for _ in range(20):
                for one in (second, seen.among["primary"], seen.among["primary"]):
                    seen.steering.put("http", P, [one])
                    asked.more(2)
        assert asked.answers.keys() == {"primary", "second"}


@apart
def test_frontends_change_at_one_instant() -> None:
    """Others come, go and change places; a client of one that stays sees nothing of it."""
    with rig() as seen:
        seen.steering.set_order("http", [P, B])
        with clients("127.0.0.1", 8080, seen.among) as asked:
            for number in range(30):
                others = [Steered(f"other {n}", (Address("127.0.0.1", 9000 + n),)) for n in range(number % 4)]
                seen.steering.configure([*others, HTTP] if number % 2 else [HTTP, *others])
                asked.more(4)
        assert asked.answers.keys() == {"primary"}
        assert seen.steering.order("http") == (P, B)


@apart
def test_an_address_moves_from_one_frontend_to_another_at_one_instant() -> None:
    with rig() as seen:
        moving = HTTP.listen
        there = [Steered("http", moving), Steered("line", LINE.listen)]
        gone = [Steered("http", LINE.listen), Steered("line", moving)]
        seen.steering.configure(there)
        seen.steering.put("line", B, [seen.among["backup"]])
        seen.steering.set_order("line", [B])
        seen.steering.set_order("http", [P])
        with clients("127.0.0.1", 8080, seen.among) as asked:
            for number in range(30):
                seen.steering.configure(there if number % 2 else gone)
                asked.more(4)
        assert asked.answers.keys() == {"primary", "backup"}


@apart
def test_a_frontend_that_comes_back_has_neither_sockets_nor_an_order() -> None:
    with rig() as seen:
        seen.steering.set_order("http", [P])
        assert seen.reached() == "primary"
        seen.steering.configure([LINE])
        assert seen.reached() == "own"
        with pytest.raises(KeyError):
            seen.steering.counters("http")
        seen.steering.configure([HTTP])
        assert seen.steering.has("http", P) == {}
        assert seen.steering.order("http") == ()
        assert seen.steering.counters("http") == {P: 0, B: 0, None: 0}


@apart
def test_frontends_that_cannot_be_leave_those_before() -> None:
    with rig() as seen:
        seen.steering.set_order("http", [P])
        with pytest.raises(CannotSteer) as refused:
            seen.steering.configure([HTTP, Steered("line", HTTP.listen)])
        assert str(refused.value) == "cannot steer 127.0.0.1:8080 of frontend line: frontend http has it too"
        with pytest.raises(CannotSteer) as refused:
            seen.steering.configure([Steered("x" * 256, LINE.listen)])
        assert str(refused.value) == f"the name of frontend {'x' * 256} is longer than 255 bytes"
        many = [Steered(str(number), ()) for number in range(256)]
        with pytest.raises(CannotSteer) as refused:
            seen.steering.configure(many)
        assert str(refused.value) == "257 frontends, those that they replace included, are more than 256"
        assert seen.reached() == "primary"
        seen.steering.configure([HTTP, *many[1:]])


@apart
def test_a_change_that_fails_on_the_way_leaves_no_name_behind() -> None:
    """Here for want of descriptors. The next daemon finds each frontend once."""
    other = Steered("other", (Address("127.0.0.1", 9000),))
    with rig() as seen:
        seen.steering.set_order("http", [P])
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0), most[1]))
        with pytest.raises(CannotSteer) as refused:
            seen.steering.configure([HTTP, LINE, other])
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
        assert str(refused.value) == "making the maps failed: too many open files"
        assert seen.reached() == "primary"
        seen.steering.configure([HTTP, other])
        seen.steering.set_order("other", [B])
        seen.steering.detach()
        seen.steering = seen.opened()
        assert seen.steering.order("other") == (B,)
        assert seen.reached() == "primary"


@apart
def test_many_frontends_with_many_addresses_are_steered() -> None:
    frontends = [
        Steered(f"f{number}", tuple(Address(f"127.{number}.1.{last}", 7000 + number) for last in range(256)))
        for number in range(32)
    ]
    with rig() as seen:
        seen.steering.configure(frontends)
        for frontend in frontends:
            seen.steering.put(frontend.name, P, [seen.among["primary"]])
            seen.steering.set_order(frontend.name, [P])
        for number in (0, 17, 31):
            for last in (1, 128, 254):
                assert seen.reached(f"127.{number}.1.{last}", 7000 + number) == "primary"
                assert seen.reached(f"127.{number}.2.{last}", 7000 + number) == "refused"


@apart
def test_what_cannot_be_given_connections_is_not_put() -> None:
    """The sockets before stay."""
    with rig() as seen, socket.socket() as silent, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        seen.steering.set_order("http", [P])
        for one, reason in [(silent, "it does not listen"), (datagrams, "it is no TCP socket")]:
            with pytest.raises(CannotSteer) as refused:
                seen.steering.put("http", P, [one])
            assert str(refused.value) == (f"the listening socket of primary cannot be used for frontend http: {reason}")
        assert seen.reached() == "primary"


@apart
def test_a_socket_of_another_network_namespace_is_not_put() -> None:
    with listening() as elsewhere:
        new_network()
        with rig() as seen:
            with pytest.raises(CannotSteer) as refused:
                seen.steering.put("http", P, [elsewhere])
            assert str(refused.value).endswith("http: it is in another network namespace")


@apart
def test_a_part_of_the_connections_goes_the_other_way_round_by_chance() -> None:
    """A quarter of 2000: ten standard deviations are 194. Both families; and none when the order has no part."""
    with rig("::") as seen:
        seen.steering.set_order("http", (P, B), WHOLE // 4)
        assert (seen.steering.order("http"), seen.steering.part("http")) == ((P, B), WHOLE // 4)
        names = [seen.reached("::1" if number % 2 else "127.0.0.1") for number in range(2000)]
        assert set(names) == {"primary", "backup"}
        assert 306 <= names.count("backup") <= 694
        counted = seen.steering.counters("http")
        assert (counted[B], counted[None]) == (names.count("backup"), 0)
        seen.steering.set_order("http", (P, B))
        assert seen.steering.part("http") == 0
        assert {seen.reached() for _ in range(200)} == {"primary"}


@apart
def test_a_share_costs_nobody_an_answer_when_an_instance_closes_its_listener() -> None:
    """Whose turn it would have been."""
    with rig() as seen:
        seen.steering.set_order("http", (P, B), WHOLE // 2)
        seen.among["backup"].close()
        assert {seen.reached() for _ in range(50)} == {"primary"}
        seen.among["primary"].close()
        assert {seen.reached() for _ in range(50)} == {"own"}
