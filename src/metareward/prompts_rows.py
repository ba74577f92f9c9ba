"""A file's rows, whatever it is: JSON Lines, a JSON list, Parquet, or a data set that `datasets` saved.

Every row knows its place, so that a message about it can be followed.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from metareward.errors import UserError

STATE = "state.json"  # stands in a folder that `datasets` saved one split in


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands. Lines are counted from 1, as editors do; rows and items from 0, as data sets do."""

    file: str
    kind: Literal["line", "row", "item"]
    number: int

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" if self.kind == "line" else f"{self.file}: {self.kind} {self.number}"

    def seen_from(self, other: Place) -> str:
        """This place in few words, for a message that has named ``other`` already."""
        return f"{self.kind} {self.number}" if self.file == other.file else str(self)


@dataclass(frozen=True, slots=True)
class Row:
    """What stands at a place, as JSON would have it."""

    place: Place
    value: Any


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of ``path``, in its order: by its ending ``.parquet`` or ``.json`` (a list), else JSON Lines (UTF-8).

    A folder is one that `datasets` saved. Raises `UserError` naming the place that can't be read.
    """
    if path.is_dir():
        return _saved(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    text = _text(path)
    if path.suffix == ".json" and text.lstrip().startswith("["):
        return _items(path, text)
    return _lines(path, text)


def _lines(path: Path, text: str) -> Iterator[Row]:
    """Only a newline ends a line: U+2028 and its like are text (`str.splitlines` differs)."""
    for number, line in enumerate(text.split("\n"), 1):
        place = Place(str(path), "line", number)
        if line.strip():
            yield Row(place, _json(line, str(place), "write one JSON object a line"))


def _items(path: Path, text: str) -> Iterator[Row]:
    items = _json(text, str(path), "write one JSON list of objects")
    for number, item in enumerate(items):
        yield Row(Place(str(path), "item", number), item)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield Row(Place(str(path), "row", number), row)
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable Parquet file ({why}); fix: name another, or write it again") from None


def _saved(folder: Path) -> Iterator[Row]:
    from datasets import load_from_disk

    try:
        rows = load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowException) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{folder}: can't be read: {why}; fix: save the data set again") from None
    for number, row in enumerate(rows):
        yield Row(Place(str(folder), "row", number), row)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: this is not UTF-8; fix: save the file as UTF-8") from None
    except OSError as error:
        raise UserError(
            f"{path}: can't be read: {error.strerror}; fix: name a JSONL, JSON or Parquet file, or a data set's folder"
        ) from None


def _json(text: str, where: str, fix: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); fix: {fix}") from None
