"""`{role}`, `{port.http}` and their like in commands and environments.

A placeholder is `{word}` or `{word.word}`: lower-case letters, digits, `_` and `-`, a letter first. Everything else
with braces stays as it is: `${HOME}` of a shell, `{"json": 1}`, `{}`, `[0-9]{3}`. Values are put in once and are not
looked at again. There is no other syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

_PLACEHOLDER: Final = re.compile(r"(?<!\$)\{([a-z][a-z0-9_-]*(?:\.[a-z0-9_-]+)?)\}")


def placeholders_in(text: str) -> tuple[str, ...]:
    """The names of the placeholders in `text`, without braces, in their order, repeated where the text repeats them."""
    return tuple(_PLACEHOLDER.findall(text))


def unknown_placeholder(name: str, known: Iterable[str]) -> str:
    """The sentence that says so: `unknown placeholder {relase} (known: {name}, {release})`."""
    return f"unknown placeholder {{{name}}} (known: {', '.join(f'{{{one}}}' for one in sorted(known))})"


def expand(text: str, values: Mapping[str, str]) -> str:
    """`text` with each placeholder replaced by its value.

    Args:
        values: by name without braces, such as `role` or `port.http`.

    Raises:
        ValueError: a placeholder is not in `values`; the message names those that are.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            raise ValueError(unknown_placeholder(name, values))
        return values[name]

    return _PLACEHOLDER.sub(value_of, text)
