"""The rows of a benchmark's files: objects whose fields are checked when they are read (`metareward.data.files`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metareward.data import files
from metareward.errors import UserError


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a file. ``where`` is its place, such as ``outputs.jsonl:3``.

    Every method that reads a field raises `UserError` naming the place, the field and the fix.
    """

    where: str
    fields: Mapping[str, Any]

    def has(self, *names: str) -> bool:
        """Whether all these fields are there and not null."""
        return all(self.fields.get(name) is not None for name in names)

    def text(self, *names: str) -> str:
        """The first of these fields that is there, as text; a number stands for its digits."""
        value = self._first(names)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self.wrong(names[0], "is not text", "write text")
        return value

    def number(self, *names: str) -> float:
        """The first of these fields that is there, as a finite number."""
        value = self.optional_number(*names)
        if value is None:
            raise self.wrong(names[0], "is missing or no finite number", "write a number")
        return value

    def optional_number(self, *names: str) -> float | None:
        """The same, and None for a field that is absent, null, empty or not finite."""
        value = next((self.fields[name] for name in names if self.fields.get(name) not in (None, "")), None)
        return None if value is None else self._finite(value, names[0])

    def items(self, name: str) -> Sequence[Any]:
        """A list."""
        value = self._first((name,))
        if not isinstance(value, list):
            raise self.wrong(name, "is not a list", "write [ … ]")
        return value

    def rows(self, name: str) -> tuple[Row, ...]:
        """A list of objects."""
        return tuple(self._inner(each, f"{name}[{i}]") for i, each in enumerate(self.items(name)))

    def row(self, name: str) -> Row:
        """One object."""
        return self._inner(self._first((name,)), name)

    def wrong(self, name: str, what: str, fix: str) -> UserError:
        """The error to raise about a field."""
        return UserError(f'{self.where}: field "{name}": {what}; fix: {fix}')

    def _first(self, names: Sequence[str]) -> Any:
        for name in names:
            if self.fields.get(name) is not None:
                return self.fields[name]
        raise self.wrong(names[0], "is missing", f"add it (fields here: {', '.join(map(str, self.fields)) or 'none'})")

    def _finite(self, value: object, name: str) -> float | None:
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
        except ValueError:
            number = None
        if number is None:
            raise self.wrong(name, "is not a number", "write a number")
        return number if math.isfinite(number) else None

    def _inner(self, value: object, name: str) -> Row:
        if not isinstance(value, dict):
            raise self.wrong(name, "is not an object", "write { … }")
        return Row(f"{self.where} {name}", value)


def read_rows(path: Path) -> tuple[Row, ...]:
    """Every object of ``path``, in its order.

    Raises `UserError` naming the place when the file can't be read, is empty, or holds something that is no object.
    """
    found = tuple(_object(row) for row in files.read_rows(path))
    if not found:
        raise UserError(f"{path}: no rows in it; fix: name a file with one object a line, a JSON list or a CSV")
    return found


def _object(row: files.Row) -> Row:
    if not isinstance(row.value, dict):
        raise UserError(f"{row.place}: not a JSON object; fix: write {{ … }}")
    return Row(str(row.place), row.value)


def read_folder(path: Path) -> tuple[Row, ...]:
    """The rows of a file, or of all ``.jsonl`` files of a folder in the order of their names."""
    if not path.is_dir():
        return read_rows(path)
    parts = sorted(path.glob("*.jsonl"))
    if not parts:
        raise UserError(f"{path}: no .jsonl files in this folder; fix: name the folder that holds one file per model")
    return tuple(row for part in parts for row in read_rows(part))


def group(rows: Iterable[Row], *names: str) -> dict[str, list[Row]]:
    """Rows by the text of the first of these fields that is there, in the order of first appearance."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.text(*names), []).append(row)
    return found


def unique(rows: Sequence[Row], name: str) -> Sequence[Row]:
    """``rows`` as they are. Raises `UserError` when two of them have the same text in this field."""
    seen: set[str] = set()
    for row in rows:
        if row.text(name) in seen:
            raise row.wrong(name, "repeats that of an earlier row", "give every row its own")
        seen.add(row.text(name))
    return rows
