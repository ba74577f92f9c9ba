"""A benchmark's file as rows: JSON, JSON Lines or CSV; every row knows its place, and fields are checked when read."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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
    """Every object of ``path``: rows of a CSV, the members of a JSON list, or the lines of a JSON Lines file.

    Raises `UserError` naming the place when the file can't be read, holds none, or one is no object.
    """
    text = _text(path)
    if path.suffix == ".csv":
        found = tuple(_csv_rows(path, text))
    elif text.lstrip().startswith("["):
        found = tuple(_listed(path, text))
    else:
        found = tuple(_lines(path, text))
    if not found:
        raise UserError(f"{path}: no rows in it; fix: name a file with one object a line, a JSON list or a CSV")
    return found


def read_all(path: Path) -> tuple[Row, ...]:
    """The rows of a file, or of all ``.jsonl`` files of a folder, in the order of their names."""
    if not path.is_dir():
        return read_rows(path)
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise UserError(f"{path}: no .jsonl files in this folder; fix: name the folder that holds one file per model")
    return tuple(row for file in files for row in read_rows(file))


def read_text(path: Path) -> str:
    """A text file in UTF-8. Raises `UserError` when it can't be read."""
    return _text(path)


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


def _text(path: Path) -> str:
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: this is not UTF-8; fix: save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; fix: name a file that is there") from None


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    for number, fields in enumerate(csv.DictReader(io.StringIO(text, newline="")), 2):
        if None in fields or None in fields.values():
            raise UserError(f"{path}:{number}: not as many cells as the first line; fix: give every column a cell")
        yield Row(f"{path}:{number}", fields)


def _listed(path: Path, text: str) -> Iterator[Row]:
    for number, value in enumerate(_json(text, str(path))):
        yield _object(value, f"{path}[{number}]")


def _lines(path: Path, text: str) -> Iterator[Row]:
    # Only a newline ends a line: answers hold U+2028 and its like, where `str.splitlines` would cut.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _object(_json(line, f"{path}:{number}"), f"{path}:{number}")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); fix: write one JSON object a line, or a JSON list") from None


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object; fix: write {{ … }}")
    return Row(where, value)


# --- A benchmark's file by name: a path, or ``hub:OWNER/NAME/FILE`` for a file of a data set on the Hugging Face hub.


HUB = "hub:"


def located(name: str, network: bool = True) -> Path:
    """The path of ``name``; a hub's file is fetched into the hub's own cache, or found there, if ``network`` allows it.

    Raises `UserError` when the name has no file in it, or the hub can't be reached or doesn't have it.
    """
    if not name.startswith(HUB):
        return Path(name)
    owner, _, rest = name.removeprefix(HUB).partition("/")
    data_set, _, file = rest.partition("/")
    if not (owner and data_set and file):
        raise UserError(f"{name}: names no file of a data set; fix: write hub:OWNER/NAME/FILE")
    if not network:
        raise UserError(f"{name}: is on the Hugging Face hub; fix: set prompts.network to true, or name a local copy")
    return _fetched(name, f"{owner}/{data_set}", file)


@cache
def _fetched(name: str, repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0][:200]
        raise UserError(f"{name}: can't be fetched ({why}); fix: allow the network, or name a local copy") from None
