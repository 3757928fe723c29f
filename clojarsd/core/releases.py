"""What is known of releases: the records of the release log, and the book that they add up to.

A release is *unproved* until a rollout has soaked it (*good*) or has gone back from it (*bad*). What was current before
is read from the order of the records, never from times. The book keeps that as a trail: a switch to a release puts it
at the end, a switch back to one of the trail drops what came after it, so that neither a bad release nor one that an
operator has gone back from is "the one before". What a rollout does counts as a whole: one that fails and goes back
leaves the trail as it was. A release that is brought in once more is new.

Names that were never recorded as installed are nobody's: they can be current, but are not listed, chosen or removed.
"""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from clojarsd.core.codec import decode, encode
from clojarsd.core.errors import Refused
from clojarsd.core.names import Role

LONGEST_NAME: Final = 255
"""Bytes of a file name."""
_LONGEST_TAG: Final = 80
_SUFFIX: Final = re.compile(r"(?:\.tar)?\.[A-Za-z][A-Za-z0-9]{0,9}$")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._+-]")


class ReleaseKind(enum.Enum):
    """What a release is on the disk."""

    FILE = "file"
    DIRECTORY = "directory"


class ReleaseState(enum.Enum):
    """What is known of a release."""

    GOOD = "good"
    BAD = "bad"
    UNPROVED = "unproved"


@dataclass(frozen=True, slots=True)
class WasInstalled:
    """A release was copied into the directory of releases, or one with this very checksum was there already.

    Attributes:
        name: of the file or directory, which identifies the release.
        tag, commit: what it was built from; None for an artefact that somebody has brought.
        checksum: `sha256:…`.
        size: bytes.
        by: the user who ordered it.
        at: UTC.
        rollout: its id.
    """

    name: str
    tag: str | None
    commit: str | None
    checksum: str
    kind: ReleaseKind
    size: int
    by: str
    at: str
    rollout: str


@dataclass(frozen=True, slots=True)
class BecameCurrent:
    """The link was switched to it."""

    name: str
    at: str
    by: str
    rollout: str


@dataclass(frozen=True, slots=True)
class ProvedGood:
    """Both instances have run it for the whole soak."""

    name: str
    at: str
    rollout: str


@dataclass(frozen=True, slots=True)
class ProvedBad:
    """A rollout has gone back from it; `why` in words."""

    name: str
    why: str
    at: str
    rollout: str


@dataclass(frozen=True, slots=True)
class WasRemoved:
    """Its file or directory was removed."""

    name: str
    at: str


ReleaseRecord = WasInstalled | BecameCurrent | ProvedGood | ProvedBad | WasRemoved


def record_as_json(record: ReleaseRecord) -> dict[str, Any]:
    """The record as the release log has it."""
    document: dict[str, Any] = encode(record, ReleaseRecord)
    return document


def record_from_json(document: object) -> ReleaseRecord:
    """The record of a line of the release log; raises codec.Unfit when it is none that this version knows."""
    record: ReleaseRecord = decode(ReleaseRecord, document)  # type: ignore[arg-type]
    return record


@dataclass(frozen=True, slots=True)
class Release:
    """A release that is there, by the log.

    Attributes:
        installed: as it was recorded last.
        good_at: when it was proved good (UTC), or None.
        why: what was wrong with it; None unless it is bad.
    """

    installed: WasInstalled
    state: ReleaseState = ReleaseState.UNPROVED
    good_at: str | None = None
    why: str | None = None

    @property
    def name(self) -> str:
        """Of its file or directory."""
        return self.installed.name

    @property
    def is_good(self) -> bool:
        """Whether it was proved, and not disproved since."""
        return self.state is ReleaseState.GOOD

    def as_json(self, *, is_current: bool, is_previous: bool, runs_on: Iterable[Role]) -> dict[str, Any]:
        """The release as `GET /v1/releases` gives it."""
        one = self.installed
        return {
            "name": one.name,
            "tag": one.tag,
            "commit": one.commit,
            "checksum": one.checksum,
            "kind": one.kind.value,
            "size_bytes": one.size,
            "by": one.by,
            "at": one.at,
            "rollout": one.rollout,
            "state": self.state.value,
            "good_at": self.good_at,
            "why": self.why,
            "current": is_current,
            "previous": is_previous,
            "runs_on": [role.value for role in runs_on],
        }

    def __str__(self) -> str:
        """As messages list it: `app-1.2.jar (tag 1.2, good)`."""
        tag = f"tag {self.installed.tag}, " if self.installed.tag is not None else ""
        return f"{self.name} ({tag}{self.state.value})"


@dataclass(frozen=True, slots=True)
class ReleaseBook:
    """What the records add up to.

    Attributes:
        releases: what is there, in the order of installation.
        trail: the names that were current one after the other, as the module says; the last is the current one.
        before: what the trail was before the latest rollout that has switched the link.
        rollout: the id of that one.
        tags: the commit that each tag named when it was brought in last, whether or not that release is still there.
    """

    releases: tuple[Release, ...] = ()
    trail: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    rollout: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[ReleaseRecord]) -> Self:
        """The book of a whole log."""
        book = cls()
        for record in records:
            book = book.after(record)
        return book

    def after(self, record: ReleaseRecord) -> Self:
        """The book with one more record."""
        match record:
            case WasInstalled():
                return self._installed(record)
            case BecameCurrent(name=name, rollout=rollout):
                before = self.before if rollout == self.rollout else self.trail
                return replace(self, trail=(*_until(before, name), name), before=before, rollout=rollout)
            case ProvedGood(name=name, at=at):
                return self._judged(name, ReleaseState.GOOD, good_at=at)
            case ProvedBad(name=name, why=why):
                return self._judged(name, ReleaseState.BAD, why=why)
            case _:
                return self._forgotten(record.name)

    @property
    def current(self) -> str | None:
        """The name of the release that the link was switched to last; None: it never was, or that was removed."""
        return self.trail[-1] if self.trail else None

    def release(self, name: str | None) -> Release | None:
        """The release with that name, or None."""
        return next((one for one in self.releases if one.name == name), None)

    def checksum_of(self, name: str) -> str | None:
        """What the release was when it was installed; None for a name that was never recorded."""
        known = self.release(name)
        return known.installed.checksum if known is not None else None

    def previous_good(self, current: str | None) -> Release | None:
        """The last good release before the current one; another build of the same commit only where there is no other.

        Args:
            current: what the link names. Where that was never on the trail, as when the link was changed by hand, all
                of the trail is before it.
        """
        here = self.release(current)
        commit = here.installed.commit if here is not None else None
        found = [self.release(name) for name in reversed(_until(self.trail, current))]
        good = [one for one in found if one is not None and one.is_good]
        others = (one for one in good if commit is None or one.installed.commit != commit)
        return next(others, good[0] if good else None)

    def find(self, text: str) -> Release:
        """The release with that name, else the one with that tag; of several builds of one commit the last good one.

        Raises:
            Refused: there is none, or several of other commits have the tag; lists what there is.
        """
        named = self.release(text)
        if named is not None:
            return named
        tagged = [one for one in self.releases if one.installed.tag == text]
        if tagged and (len(tagged) == 1 or len({one.installed.commit or one for one in tagged}) == 1):
            return next((one for one in reversed(tagged) if one.is_good), tagged[-1])
        if tagged:
            raise Refused(f"tag {text} is that of several releases: {_listed(tagged)}; give the name of one")
        if not self.releases:
            raise Refused(f"there is no release {text}: none was installed yet")
        raise Refused(f"there is no release {text}: there are {_listed(reversed(self.releases))}")

    def to_prune(self, keep: int, protected: Collection[str]) -> tuple[str, ...]:
        """What may be removed, the oldest first.

        The current one, the previous good one and what is protected stay, and of the other good ones the `keep` that
        were installed last. Of the bad ones the latest stays: somebody will want to see what was wrong with it. Of the
        unproved ones none stays: their deploys have not come to an end.

        Args:
            protected: names that are in use, whatever the log says: what the link names, what a process has open.
        """
        previous = self.previous_good(self.current)
        needed = {self.current, previous.name if previous is not None else None}
        spare = [one.name for one in self.releases if one.is_good and one.name not in needed]
        bad = [one.name for one in self.releases if one.state is ReleaseState.BAD]
        stay = {*needed, *protected, *spare[max(0, len(spare) - keep) :], *bad[-1:]}
        return tuple(one.name for one in self.releases if one.name not in stay)

    def as_json(self, current: str | None, running: Mapping[Role, str | None]) -> list[dict[str, Any]]:
        """The releases as `GET /v1/releases` gives them, the latest first.

        Args:
            current: what the link names now.
            running: what each instance runs.
        """
        previous = self.previous_good(current)
        return [
            one.as_json(
                is_current=one.name == current,
                is_previous=one is previous,
                runs_on=[role for role in Role if running.get(role) == one.name],
            )
            for one in reversed(self.releases)
        ]

    def _installed(self, record: WasInstalled) -> Self:
        """A release that is brought in again is the latest; it stays good, since it is the same, and bad no longer.

        Nor does it lose the tag that it was built from when its file is brought in without one.
        """
        known = self.release(record.name)
        fresh = Release(record)
        if known is not None and known.installed.checksum == record.checksum:
            if record.tag is None:
                record = replace(record, tag=known.installed.tag, commit=known.installed.commit)
            fresh = replace(known, installed=record) if known.is_good else Release(record)
        tags = self.tags if record.tag is None or record.commit is None else {**self.tags, record.tag: record.commit}
        book = self if record.name == self.current else self._forgotten(record.name)
        return replace(book, releases=(*book._without(record.name), fresh), tags=tags)

    def _judged(self, name: str, state: ReleaseState, *, good_at: str | None = None, why: str | None = None) -> Self:
        judged = (
            replace(one, state=state, good_at=good_at, why=why) if one.name == name else one for one in self.releases
        )
        return replace(self, releases=tuple(judged))

    def _forgotten(self, name: str) -> Self:
        trail, before = (tuple(one for one in names if one != name) for names in (self.trail, self.before))
        return replace(self, releases=self._without(name), trail=trail, before=before)

    def _without(self, name: str) -> tuple[Release, ...]:
        return tuple(one for one in self.releases if one.name != name)


def other_release(role: Role, runs: str | None, current: str | None) -> str | None:
    """That an instance runs another release than the link names, and what to do; None when it does not.

    Args:
        runs: None without a process, or where nobody knows.
        current: None where the link names nothing that is there.
    """
    if runs is None or runs == current:
        return None
    if current is None:
        return f"{role.value} runs {runs}, and the link names nothing: clojarsctl rollback, or clojarsctl deploy TAG"
    return f"{role.value} runs {runs}, and the link names {current}: clojarsctl restart {role.value}"


def _until(names: tuple[str, ...], name: str | None) -> tuple[str, ...]:
    """The names before that one; all of them where it is not among them."""
    return names[: names.index(name)] if name in names else names


def _listed(releases: Iterable[Release]) -> str:
    return ", ".join(map(str, releases))


def free_name(artifact: str, tag: str | None, checksum: str, existing: Mapping[str, str | None], link_name: str) -> str:
    """The name under which an artefact becomes a release: one that nothing else has.

    That is its own file name, else STEM-TAG.SUFFIX, else STEM-TAG-CHECKSUM8.SUFFIX, else that with a number. What is
    unusual in a tag, such as a slash, becomes a dash. A name that is there with the same checksum is as good as free.

    Args:
        artifact: the file name of the artefact, without its directory.
        tag: None for an artefact that somebody has brought.
        checksum: `sha256:…` of the artefact.
        existing: the checksum of each name in the directory; None where it is not known.
        link_name: the name of the link, which is never free.
    """
    candidates = _candidates(_named(artifact), tag, checksum)
    return next(name for name in candidates if name != link_name and existing.get(name, checksum) == checksum)


def first_names(artifact: str, tag: str | None, checksum: str) -> tuple[str, ...]:
    """The names without a number that `free_name` thinks of."""
    return tuple(itertools.islice(_candidates(_named(artifact), tag, checksum), 3))


def _named(artifact: str) -> str:
    return artifact.lstrip(".") or "release"


def _candidates(artifact: str, tag: str | None, checksum: str) -> Iterator[str]:
    found = _SUFFIX.search(artifact)
    begin = found.start() if found is not None and found.start() > 0 else len(artifact)
    stem, suffix = artifact[:begin], artifact[begin:]
    tagged = "" if tag is None else f"-{_UNSAFE.sub('-', tag)[:_LONGEST_TAG]}"
    short = checksum.rpartition(":")[2][:8]
    yield _fitting(stem, suffix)
    yield _fitting(stem, f"{tagged}{suffix}")
    yield _fitting(stem, f"{tagged}-{short}{suffix}")
    yield from (_fitting(stem, f"{tagged}-{short}-{number}{suffix}") for number in itertools.count(2))


def _fitting(stem: str, rest: str) -> str:
    """The two, the first one shortened where they are too long for a file name."""
    size, most = len(_bytes(stem)), LONGEST_NAME - len(_bytes(rest))
    return (stem if size <= most else _bytes(stem)[:most].decode(errors="ignore")) + rest


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogatepass")
