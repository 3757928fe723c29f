"""The kinds of value that a configuration holds, each with the sentence that refuses a wrong one.

Every type here does its own checking and raises ValueError in our words, so that no text of pydantic reaches people.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from clojarsd.core.addresses import parse_address, parse_addresses, parse_host, parse_source
from clojarsd.core.history import EventName
from clojarsd.core.names import Address
from clojarsd.core.quantities import longer_than_zero, parse_duration, parse_size
from clojarsd.core.restart import RestartWhen
from clojarsd.core.stopping import WrittenStep, parse_reload_signal, parse_stop_steps

T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)

LIMITS: Final = (
    *("as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice"),
    *("nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
)
"""Resources of setrlimit(2), without `RLIMIT_`."""

UNLIMITED: Final = -1
LONGEST_SOCKET_PATH: Final = 107
"""Bytes that sun_path of unix(7) holds, but for the NUL at its end."""


class LogTo(enum.Enum):
    """Where the output of an instance goes."""

    FILE = "file"
    JOURNAL = "journal"
    INHERIT = "inherit"


class CheckKind(enum.Enum):
    """How an instance is asked whether it can serve."""

    TCP = "tcp"
    HTTP = "http"
    NAILGUN = "nailgun"
    EXEC = "exec"


class OnDown(enum.Enum):
    """What becomes of open connections when their instance is down and the other one can serve."""

    KEEP = "keep"
    CUT = "cut"


class OnUp(enum.Enum):
    """What becomes of the backup's open connections when new ones go to the primary again."""

    KEEP = "keep"
    MOVE = "move"


class Mode(enum.Enum):
    """How connections of a frontend reach an instance. `AUTO` steers where the kernel can and relays elsewhere."""

    AUTO = "auto"
    STEER = "steer"
    RELAY = "relay"


@dataclass(frozen=True, slots=True)
class Read:
    """An annotation: the value is what `parse` makes of the one in the file, and is written as what it then is.

    Unlike pydantic's PlainValidator, which dumps an enum or a dataclass to JSON only with a warning.
    """

    parse: Callable[[object], object]

    def __get_pydantic_core_schema__(self, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        """What pydantic asks an annotation for."""
        return core_schema.no_info_plain_validator_function(self.parse)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is not a truth value (true or false, without quotes)")
    return value


def whole_number(least: int, most: int) -> Read:
    """A validator of whole numbers from `least` to `most`."""

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"is not a whole number ({least} to {most})")
        if not least <= value <= most:
            raise ValueError(f"is out of range ({least} to {most})")
        return value

    return Read(check)


def one_of(kind: type[E]) -> Read:
    """A validator that reads the value of a member of `kind`."""
    members = {member.value: member for member in kind}

    def check(value: object) -> E:
        if not isinstance(value, str) or value not in members:
            raise ValueError(f"is not one of the choices ({', '.join(members)})")
        return members[value]

    return Read(check)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text (text stands in quotes)")
    if "\0" in value:
        raise ValueError("holds a NUL character, which no program can be given")
    return value


def _matching(pattern: str, wrong: str) -> Callable[[object], str]:
    """A validator of texts that match all of `pattern`; `wrong` is the sentence about others."""
    compiled = re.compile(pattern)

    def check(value: object) -> str:
        text = _text(value)
        if compiled.fullmatch(text) is None:
            raise ValueError(wrong)
        return text

    return check


def parse_path(value: object) -> Path:
    """The absolute path that `value` is. Raises ValueError; the message is for people."""
    path = Path(_text(value))
    if not path.is_absolute():
        raise ValueError("is not an absolute path (it begins with /)")
    if ".." in path.parts:
        raise ValueError("holds .. (an absolute path without it)")
    return path


def _larger_than_zero(size: int) -> int:
    if size == 0:
        raise ValueError("must be larger than zero")
    return size


def a_list(of: str) -> Callable[[object], object]:
    """A validator that only lets a list pass; `of` says what kind of list and gives an example."""

    def check(value: object) -> object:
        if not isinstance(value, list):
            raise ValueError(f"is not {of}")
        return value

    return check


def a_table(example: str) -> Callable[[object], object]:
    """A validator that only lets a table pass."""

    def check(value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError(f"is not a table (such as {example})")
        return value

    return check


def not_empty(wrong: str) -> Callable[[T], T]:
    """A validator that refuses an empty value with the sentence `wrong`."""

    def check(value: T) -> T:
        if not value:
            raise ValueError(wrong)
        return value

    return check


def _program(command: tuple[str, ...]) -> tuple[str, ...]:
    if command and not command[0]:
        raise ValueError("names no program (its first word is empty)")
    return command


def _port(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("is not a port (1 to 65535, without quotes)")
    if not 1 <= value <= 65535:
        raise ValueError("is not a port (1 to 65535)")
    return value


def _socket_path(value: object) -> str:
    path = str(parse_path(value))
    if len(path.encode()) > LONGEST_SOCKET_PATH:
        raise ValueError(f"is too long for a Unix socket (at most {LONGEST_SOCKET_PATH} bytes)")
    return path


def _umask(value: object) -> int:
    if not isinstance(value, str) or re.fullmatch(r"[0-7]{1,4}", value) is None or int(value, 8) > 0o777:
        raise ValueError('is not a umask (octal text from "000" to "777", such as "022")')
    return int(value, 8)


def _limit(value: object) -> int:
    if value == "unlimited":
        return UNLIMITED
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError('is not a limit (a whole number from 0, or "unlimited")')
    return value


def _limit_name(value: object) -> str:
    if value not in LIMITS:
        raise ValueError(f"is not a resource of setrlimit ({', '.join(LIMITS)})")
    return str(value)


def _request(value: object) -> str:
    text = _text(value)
    if re.fullmatch(r"/[!-~]*", text) is None:
        raise ValueError('is not a path to ask for (it begins with / and holds no spaces, such as "/search?q=ring")')
    return text


def _event_pattern(value: object) -> str:
    text = _text(value)
    names = [event.value for event in EventName]
    if not any(fnmatchcase(name, text) for name in names):
        raise ValueError(f"matches no event ({', '.join(names)}; * stands for anything)")
    return text


def _file_name(value: object) -> str:
    text = _text(value)
    if not text or "/" in text or text in {".", ".."}:
        raise ValueError("is not a file name (no /)")
    return text


def _artifact(value: object) -> str:
    text = _text(value)
    if not text or text.startswith("/") or ".." in text.split("/"):
        raise ValueError("is not a pattern below the checkout (no / at its start, no ..)")
    return text


Boolean = Annotated[bool, Read(_boolean)]
Text = Annotated[str, Read(_text)]
FilledText = Annotated[str, Read(_matching(r"(?s).+", "is empty"))]
Name = Annotated[
    str,
    Read(_matching(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "is not a name (letters, digits, _, . and -, no spaces)")),
]
Key = Annotated[
    str,
    Read(_matching(r"[a-z][a-z0-9_-]*", "is not a name (lower-case letters, digits, _ and -, a letter first)")),
]
Account = Annotated[
    str,
    Read(_matching(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?", "is not the name of a user or group")),
]
Caller = Annotated[
    str,
    Read(_matching(r"@?[A-Za-z0-9_][A-Za-z0-9_.-]*\$?", 'is neither a user nor a group ("root", "@adm")')),
]
Variable = Annotated[
    str, Read(_matching(r"[A-Za-z_][A-Za-z0-9_]*", "is not a name of a variable (letters, digits and _)"))
]
AbsolutePath = Annotated[Path, Read(parse_path)]
DurationOrZero = Annotated[float, Read(parse_duration)]
Duration = Annotated[float, Read(parse_duration), AfterValidator(longer_than_zero)]
Size = Annotated[int, Read(parse_size), AfterValidator(_larger_than_zero)]
Port = Annotated[int, Read(_port)]
Host = Annotated[str, Read(parse_host)]
Source = Annotated[str | None, Read(parse_source)]
Listen = Annotated[Address, Read(parse_address)]
Listens = Annotated[tuple[Address, ...], Read(parse_addresses)]
Signal = Annotated[int, Read(parse_reload_signal)]
StopSteps = Annotated[tuple[WrittenStep, ...], Read(parse_stop_steps)]
Umask = Annotated[int, Read(_umask)]
Limit = Annotated[int, Read(_limit)]
LimitName = Annotated[str, Read(_limit_name)]
Request = Annotated[str, Read(_request)]
EventPattern = Annotated[str, Read(_event_pattern)]
FileName = Annotated[str, Read(_file_name)]
Artifact = Annotated[str, Read(_artifact)]
OptionalCommand = Annotated[
    tuple[Text, ...],
    BeforeValidator(a_list('an argument list (such as ["java", "-jar", "app.jar"])')),
    AfterValidator(_program),
]
Command = Annotated[OptionalCommand, AfterValidator(not_empty('is empty (an argument list, such as ["true"])'))]
Commands = Annotated[
    tuple[Command, ...], BeforeValidator(a_list('a list of commands (each a list, such as [["touch", "/tmp/here"]])'))
]

Environment = Annotated[Mapping[Variable, Text], BeforeValidator(a_table('{ LANG = "C.UTF-8" }'))]
Limits = Annotated[Mapping[LimitName, Limit], BeforeValidator(a_table("{ nofile = 65536 }"))]
Ports = Annotated[Mapping[Key, Port], BeforeValidator(a_table("{ http = 8001, nailgun = 8101 }"))]
Sockets = Annotated[
    Mapping[Key, Annotated[str, Read(_socket_path)]], BeforeValidator(a_table('{ http = "/run/app/http.sock" }'))
]
ExitCodes = Annotated[
    frozenset[Annotated[int, whole_number(0, 255)]],
    BeforeValidator(a_list("a list of exit codes (such as [0, 143])")),
]
Statuses = Annotated[
    tuple[Annotated[int, whole_number(100, 599)], ...],
    BeforeValidator(a_list("a list of HTTP statuses (such as [200])")),
    AfterValidator(not_empty("is empty (at least one HTTP status, such as [200])")),
]
Requests = Annotated[tuple[Request, ...], BeforeValidator(a_list('a list of paths (such as ["/", "/search?q=ring"])'))]
EventPatterns = Annotated[
    tuple[EventPattern, ...],
    BeforeValidator(a_list('a list of events (such as ["failover", "deploy-*"])')),
    AfterValidator(not_empty('is empty (at least one event, such as ["failover"])')),
]
Callers = Annotated[
    tuple[Caller, ...], BeforeValidator(a_list('a list of users and groups (such as ["root", "@adm"])'))
]
Passes = Annotated[int, whole_number(1, 1000)]
Kept = Annotated[int, whole_number(0, 1000)]
Percent = Annotated[int, whole_number(0, 50)]
Count = Annotated[int, whole_number(1, 1_000_000)]
CountOrZero = Annotated[int, whole_number(0, 1_000_000)]
Nice = Annotated[int, whole_number(-20, 19)]
OomScore = Annotated[int, whole_number(-1000, 1000)]
RestartChoice = Annotated[RestartWhen, one_of(RestartWhen)]
LogChoice = Annotated[LogTo, one_of(LogTo)]
KindChoice = Annotated[CheckKind, one_of(CheckKind)]
ModeChoice = Annotated[Mode, one_of(Mode)]
OnDownChoice = Annotated[OnDown, one_of(OnDown)]
OnUpChoice = Annotated[OnUp, one_of(OnUp)]
