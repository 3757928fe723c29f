"""Reads a document table by table, so that a wrong table does not hide what is wrong in the others."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ValidationError

from clojarsd.core.errors import BadSettings
from clojarsd.core.names import Role
from clojarsd.core.settings_problems import Problem, Where, problems_of, unknown_key, value_text

_AT: Final = re.compile(r" \(at line ([0-9]+), column ([0-9]+)\)$")
_AT_END: Final = " (at end of document)"
_KEY: Final = re.compile(r"[a-z][a-z0-9_-]*")


def parse_toml(text: str, origin: str) -> dict[str, object]:
    """The document that `text` is.

    Raises:
        BadSettings: it is not TOML; one problem, with line and column where they are known.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise BadSettings([f"{origin}: is not TOML: it is nested too deeply"]) from None
    except tomllib.TOMLDecodeError as error:
        raise BadSettings([_not_toml(str(error), text, origin)]) from None
    except ValueError:  # from int(), which refuses thousands of digits
        raise BadSettings([f"{origin}: is not TOML: a number has too many digits"]) from None


def _not_toml(reason: str, text: str, origin: str) -> str:
    at = _AT.search(reason)
    if at is not None:
        line, column = int(at[1]), int(at[2])
        reason = reason[: at.start()]
    else:
        line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
        reason = reason.removesuffix(_AT_END) + " before the end of the file"
    return f"{origin}: line {line}, column {column}: is not TOML: {reason[:1].lower()}{reason[1:]}"


def read_tables(
    document: Mapping[str, object], models: Mapping[str, type[BaseModel]]
) -> tuple[list[Problem], dict[Where, BaseModel]]:
    """Every problem of single keys in `document`, and every table that could be read, by its place.

    A table stands in the result without those of its keys that have problems; where such a key is required, the table
    is absent.

    Args:
        models: for each top-level key the table that it is; `instances` and `frontends` are tables of such tables,
            `checks` and `hooks` arrays of them.
    """
    reader = _Reader(document, models)
    reader.read()
    return reader.problems, reader.tables


class _Reader:
    def __init__(self, document: Mapping[str, object], models: Mapping[str, type[BaseModel]]) -> None:
        self.problems: list[Problem] = []
        self.tables: dict[Where, BaseModel] = {}
        self._document = document
        self._models = models

    def read(self) -> None:
        self.problems += [unknown_key((key,), self._models) for key in self._document if key not in self._models]
        for key, model in self._models.items():
            if key == "instances":
                self._instances(model)
            elif key not in self._document:
                continue
            elif key == "frontends":
                self._frontends(self._document[key], model)
            elif key in ("checks", "hooks"):
                self._array(key, self._document[key], model)
            else:
                self._table((key,), self._document[key], model)

    def _blame(self, where: Where, text: str) -> None:
        self.problems.append(Problem(where, text))

    def _table(self, where: Where, value: object, model: type[BaseModel]) -> None:
        if not isinstance(value, dict):
            self._blame(where, f"{value_text(value)}: is not a table")
            return
        try:
            self.tables[where] = model.model_validate(value)
        except ValidationError as error:
            self.problems += problems_of(error, model, where)
            wrong = {details["loc"][0] for details in error.errors()}
            if not any(model.model_fields[str(key)].is_required() for key in wrong if key in model.model_fields):
                self.tables[where] = model.model_validate({key: one for key, one in value.items() if key not in wrong})

    def _instances(self, model: type[BaseModel]) -> None:
        roles = [role.value for role in Role]
        instances = self._document.get("instances", {})
        if not isinstance(instances, dict):
            self._blame(("instances",), f"{value_text(instances)}: is not a table (of primary and backup)")
            return
        self.problems += [unknown_key(("instances", key), roles) for key in instances if key not in roles]
        for role in roles:
            if role in instances:
                self._table(("instances", role), instances[role], model)
            else:
                self._blame(("instances", role), "missing (a table with the ports of this instance)")

    def _frontends(self, frontends: object, model: type[BaseModel]) -> None:
        if not isinstance(frontends, dict):
            self._blame(("frontends",), f"{value_text(frontends)}: is not a table (of tables, [frontends.NAME])")
            return
        for name, table in frontends.items():
            if _KEY.fullmatch(name) is None:
                self._blame(
                    ("frontends", name),
                    "is not a name of a frontend (lower-case letters, digits, _ and -, a letter first)",
                )
            else:
                self._table(("frontends", name), table, model)

    def _array(self, key: str, tables: object, model: type[BaseModel]) -> None:
        if not isinstance(tables, list):
            self._blame((key,), f"{value_text(tables)}: is not an array of tables (each begins with [[{key}]])")
            return
        for number, table in enumerate(tables):
            self._table((key, number), table, model)
