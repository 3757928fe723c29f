"""The kernel gives connections of frontends to the instances' own listening sockets, also while no daemon runs.

One program, attached to our network namespace by one link, and its maps are pinned in a directory that one daemon has
at a time (docs/decisions/0009-steering.md). Nothing here decides who gets connections.

Source: Documentation/bpf/prog_sk_lookup.rst and map_sockmap.rst of Linux.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from clojarsd.core.errors import CannotSteer, reason_of
from clojarsd.core.names import Role
from clojarsd.core.steering import ADDRESS_SIZE, IPV4, IPV6, MOST_FRONTENDS, Steered, address_keys, program
from clojarsd.core.steering_reasons import Act, Powers, why_no_room, why_not_usable, why_refused
from clojarsd.system import bpf, steering_directory
from clojarsd.system.bpf import MapKind, MapShape
from clojarsd.system.steerable_sockets import cookie_of, families_of, why_unusable
from clojarsd.system.steering_directory import (
    LINK,
    ROOT,
    SteeringDirectory,
    left_behind,
    refuse_if_impossible,
    sweep,
)
from clojarsd.system.steering_maps import LONGEST_NAME, SHAPES, SteeringMaps
from clojarsd.system.steering_powers import powers_of_this_process, room_in_memory

_NAMESPACE: Final = Path("/proc/self/ns/net")
_FAMILIES: Final = (IPV4, IPV6)


class KernelSteering:
    """Steering under one service name. Made by `open`; who made it ends it with `detach` or `remove`.

    A frontend that was never configured is a KeyError.
    """

    def __init__(self, directory: SteeringDirectory, maps: SteeringMaps, powers: Powers) -> None:
        self._directory = directory
        self._maps = maps
        self._powers = powers
        self._indexes: Mapping[str, int] = {}
        self._link = -1
        self._is_pinned = False
        """Whether the link that is pinned is the one that we have."""
        self._program: int | None = None
        """The kernel's number of the program that we have put into the link; None: it was there before us."""
        self._keys: Mapping[bytes, int] = {}

    @classmethod
    def open(cls, name: str, root: Path = ROOT) -> Self:
        """Steering as the last daemon of that name has left it, or with no frontends.

        What was left goes on as it is until `configure`, also where it is of another layout.

        Args:
            root: in a BPF file system; or, for root, where one can be mounted.

        Raises:
            CannotSteer: it cannot be here; the text is the reason. What was steered is steered on.
        """
        powers = powers_of_this_process()
        refuse_if_impossible(powers)
        directory = SteeringDirectory.open(root, name, powers)
        was_empty = False
        made: Self | None = None
        try:
            with _explained(Act.PIN, powers):
                was_empty = directory.is_empty()
            inherited = SteeringMaps.inherit(directory)
            made = cls(directory, inherited or _make_maps(powers), powers)
            with _explained(Act.CHANGE, powers):
                made._indexes = made._maps.names()
            made._have_link()
            if inherited is None:
                with _explained(Act.PIN, powers):
                    made._maps.pin(directory)
        except BaseException:
            if made is not None:
                made._close()
            if was_empty:
                with contextlib.suppress(OSError):
                    directory.remove()
            directory.close()
            raise
        return made

    def configure(self, frontends: Sequence[Steered]) -> None:
        """Steer these frontends and no others from now on, at one instant.

        Those that keep their name keep sockets, order and counters; new ones have neither sockets nor an order, and
        counters at 0.

        Raises:
            CannotSteer: it cannot be; what was steered is steered on.
        """
        wanted = {frontend.name: frontend for frontend in frontends}
        known = {name: index for name, index in self._indexes.items() if name in wanted}
        new = [name for name in wanted if name not in known]
        for name in new:
            if len(name.encode()) > LONGEST_NAME:
                raise CannotSteer(f"the name of frontend {name} is longer than {LONGEST_NAME} bytes")
        free = sorted(set(range(MOST_FRONTENDS)) - set(self._indexes.values()))
        if len(free) < len(new):
            raise CannotSteer(why_no_room([*self._indexes, *new], MOST_FRONTENDS))
        indexes = known | dict(zip(new, free, strict=False))
        keys = address_keys({index: wanted[name] for name, index in indexes.items()}, bpf.BYTE_ORDER)
        try:
            with _explained(Act.CHANGE, self._powers):
                for name in new:  # no program leads there yet
                    self._maps.begin(indexes[name], name)
            self._run(keys)
        except CannotSteer:
            with contextlib.suppress(OSError):
                for name in new:
                    self._maps.end(indexes[name])
            raise
        left = [index for name, index in self._indexes.items() if name not in wanted]
        self._indexes = indexes
        with _explained(Act.CHANGE, self._powers):
            for index in left:  # no program leads there any more; one that dies here leaves names that the next ends
                self._maps.end(index)

    def put(self, frontend: str, role: Role, sockets: Sequence[socket.socket]) -> frozenset[int]:
        """Let the role's connections go to these listening sockets, and to no others; they may be closed afterwards.

        An IPv6 socket that takes IPv4 too gets IPv4 clients unless there is an IPv4 socket as well.

        Returns:
            The families of clients that reach one of them.

        Raises:
            CannotSteer: one cannot be used; the text says why. The sockets before are still there.
        """
        index = self._indexes[frontend]
        wanted: dict[int, socket.socket] = {}
        for one in sorted(sockets, key=lambda one: one.family):  # IPv4 before IPv6
            reason = why_unusable(one)
            if reason is not None:
                raise CannotSteer(why_not_usable(frontend, role.value, reason))
            for family in families_of(one):
                wanted.setdefault(family, one)
        try:
            for family, one in wanted.items():
                if self._maps.cookie(index, role, family) != cookie_of(one):
                    self._maps.set_socket(index, role, family, one.fileno())
            for family in _FAMILIES:
                if family not in wanted:
                    self._maps.drop_socket(index, role, family)
        except OSError as error:
            raise CannotSteer(why_not_usable(frontend, role.value, reason_of(error))) from error
        return frozenset(wanted)

    def has(self, frontend: str, role: Role) -> dict[int, int]:
        """SO_COOKIE of the socket of the role that clients of a family reach now, by family; one that was closed has
        left by itself."""
        cookies = {family: self._maps.cookie(self._indexes[frontend], role, family) for family in _FAMILIES}
        return {family: cookie for family, cookie in cookies.items() if cookie is not None}

    def set_order(self, frontend: str, order: Sequence[Role], part: int = 0) -> None:
        """Let connections that come from now on try these roles, first to last, and `part` of `WHOLE` last to first."""
        self._maps.set_order(self._indexes[frontend], order, part)

    def order(self, frontend: str) -> tuple[Role, ...]:
        """The roles that connections try, first to last."""
        return self._maps.order(self._indexes[frontend])

    def part(self, frontend: str) -> int:
        """For how many of `WHOLE` connections they are tried last to first."""
        return self._maps.part(self._indexes[frontend])

    def counters(self, frontend: str) -> Mapping[Role | None, int]:
        """How many lookups each role got since the frontend was configured first; None: how many fell through.

        A connection is one lookup; one more for each time that a client repeats its SYN, as it does when a queue is
        full, and for one that was established by a SYN cookie.
        """
        index = self._indexes[frontend]
        return {counted: self._maps.counter(index, counted) for counted in (*Role, None)}

    def lacks(self) -> str | None:
        """What somebody has taken away under us, for the middle of a sentence; None: all is as it was made.

        Eight system calls, and no look at what stands in the maps. Raises OSError.
        """
        link = bpf.link_of(self._link)
        if link.namespace == 0:
            return "the program was detached"
        if self._program not in (None, link.program):
            return "another program was put in its place"
        if not self._has_pins():
            return f"what was pinned in {self._directory.path} is gone"
        return None

    def mend(self) -> None:
        """Make again what was taken away.

        Raises:
            CannotSteer: it cannot be; says whether connections are steered on.
        """
        try:
            if not self._has_pins():
                self._pin_again()
            link = bpf.link_of(self._link)
            if link.namespace == 0 or self._program not in (None, link.program):
                self._run(self._keys)
        except OSError as error:
            raise CannotSteer(why_refused(Act.PIN, error.errno or 0, reason_of(error), self._powers)) from error

    def _has_pins(self) -> bool:
        return self._is_pinned and self._directory.holds((LINK, *SHAPES))

    def _pin_again(self) -> None:
        """In a directory that is ours before the one that has gone is let go of."""
        directory = self._directory.again(self._powers)
        try:
            with _explained(Act.PIN, self._powers):
                self._maps.pin(directory)
                directory.pin(self._link, LINK)
                self._is_pinned = True
        except BaseException:
            if directory is not self._directory:
                directory.close()
            raise
        if directory is not self._directory:
            self._directory.close()
            self._directory = directory

    def is_as_found(self) -> bool:
        """Whether lookups run what an earlier daemon has left, since nothing was configured."""
        return self._program is None

    def is_attached(self) -> bool:
        """Whether lookups run a program of ours."""
        try:
            return bpf.link_of(self._link).namespace != 0
        except OSError:
            return False

    def detach(self) -> None:
        """Let another daemon take it up; the kernel steers on."""
        self._close()
        self._directory.close()

    def remove(self) -> None:
        """Steer no more, and leave nothing in the kernel nor in the file system.

        Raises:
            CannotSteer: something is left, and the next daemon will find it; the text says what. Nothing is steered.
        """
        if self._link >= 0:
            with contextlib.suppress(OSError):  # the namespace is gone; or it takes closing, and removing the pin
                bpf.detach(self._link)
        self._close()
        try:
            self._directory.remove()
        except OSError as error:
            raise CannotSteer(f"cannot remove {self._directory.path}: {reason_of(error)}") from error
        finally:
            self._directory.close()

    def _close(self) -> None:
        self._maps.close()
        if self._link >= 0:
            os.close(self._link)
            self._link = -1

    def _have_link(self) -> None:
        """The link that is pinned, with the program that it has, if it is of this network namespace; else a new one."""
        namespace = os.stat(_NAMESPACE).st_ino
        pinned = self._directory.pinned(LINK)
        if pinned is not None:
            with contextlib.suppress(OSError):
                link = bpf.link_of(pinned)
                if (link.kind, link.namespace, link.attach) == (bpf.NETNS_LINK, namespace, bpf.SK_LOOKUP_ATTACH):
                    self._link, self._is_pinned = pinned, True
                    return
            os.close(pinned)
        self._run({})

    def _run(self, keys: Mapping[bytes, int]) -> None:
        """Let lookups run a program with these addresses, in place of the one before, at one instant."""
        with room_in_memory(self._powers), contextlib.ExitStack() as closing:
            with _explained(Act.MAKE_MAPS, self._powers):
                shape = MapShape(MapKind.HASH, ADDRESS_SIZE, 4, max(1, len(keys)))
                addresses = bpf.create_map(shape, "clojarsd_addr")
                closing.callback(os.close, addresses)
                for key, index in keys.items():
                    bpf.update(addresses, key, index.to_bytes(4, bpf.BYTE_ORDER))
            with _explained(Act.LOAD, self._powers):
                text = program(self._maps.for_program(addresses), bpf.BYTE_ORDER)
                loaded = bpf.load_lookup_program(text, "clojarsd")
                closing.callback(os.close, loaded)
            with _explained(Act.ATTACH, self._powers):
                self._have_attached(loaded)
                self._program = bpf.link_of(self._link).program
        self._keys = keys
        if not self._is_pinned:
            with _explained(Act.PIN, self._powers):
                self._directory.pin(self._link, LINK)
            self._is_pinned = True

    def _have_attached(self, loaded: int) -> None:
        if self._link >= 0:
            try:
                bpf.replace_program(self._link, loaded)
                return
            except OSError as error:
                if error.errno != errno.ENOLINK:
                    raise
        self._attach(loaded)

    def _attach(self, loaded: int) -> None:
        """Make a link with the program: there was none, or somebody has cut it."""
        namespace = os.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            link = bpf.attach_lookup(loaded, namespace)
        finally:
            os.close(namespace)
        if self._link >= 0:
            os.close(self._link)
        self._link, self._is_pinned = link, False


def cleanup(root: Path = ROOT) -> list[str]:
    """Take out of the kernel what dead daemons have left; their directories' names. What a living one holds stays.

    Raises:
        CannotSteer: it cannot be looked at, or something cannot be taken out.
    """
    removed: list[str] = []
    try:
        for directory in left_behind(root):
            directory.remove()
            removed.append(directory.path.name)
        sweep(root)
    except OSError as error:
        raise CannotSteer(f"cannot clean up {error.filename or root}: {reason_of(error)}") from error
    return removed


def take_away(name: str, root: Path = ROOT) -> bool:
    """Take out what a dead daemon of that service name has left; whether there was anything that nobody holds.

    Removing pins is enough where nothing else may be done, as by a plain user who has lost his capabilities.

    Raises:
        CannotSteer: something cannot be taken out.
    """
    try:
        return steering_directory.take_away(name, root)
    except OSError as error:
        raise CannotSteer(f"what steers as {name} cannot be removed: {reason_of(error)}") from error


def _make_maps(powers: Powers) -> SteeringMaps:
    with room_in_memory(powers), _explained(Act.MAKE_MAPS, powers):
        return SteeringMaps.make()


@contextlib.contextmanager
def _explained(act: Act, powers: Powers) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # what the verifier says is long, and stays with the cause
        raise CannotSteer(why_refused(act, error.errno or 0, reason_of(error), powers)) from error
