"""A file's rows, whatever it is: JSON Lines, a JSON list, CSV, Parquet, or a data set that `datasets` saved.

Every row knows its place, so that a message about it can be followed.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
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
    """The rows of ``path``, in its order: by its ending ``.parquet``, ``.csv`` or ``.json`` (a list), else JSON Lines.

    Text files are UTF-8. A folder is one that `datasets` saved. Raises `UserError` naming the place that can't be read.
    """
    if path.is_dir():
        return _saved(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    text = read_text(path)
    if path.suffix == ".csv":
        return _csv(path, text)
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


def _csv(path: Path, text: str) -> Iterator[Row]:
    """The first line names the columns; every cell is text."""
    for number, cells in enumerate(csv.DictReader(io.StringIO(text, newline="")), 2):
        if None in cells or None in cells.values():
            raise UserError(f"{path}:{number}: not as many cells as the first line; fix: give every column a cell")
        yield Row(Place(str(path), "line", number), cells)


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


def read_text(path: Path) -> str:
    """A text file in UTF-8, without a byte order mark. Raises `UserError` when it can't be read."""
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: this is not UTF-8; fix: save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; fix: name a file that is there") from None


def _json(text: str, where: str, fix: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); fix: {fix}") from None


# --- From a name to files: a file, a folder, a pattern, or a data set on the Hugging Face hub.
#
#     FILE.jsonl   FILE.json   FILE.parquet   FOLDER   FOLDER/train-*.parquet
#     hub:OWNER/NAME   hub:OWNER/NAME/data/train-*.parquet
#
# A folder is one that `datasets` saved, or a copy of a data set's files. What isn't here is fetched only where the
# caller
# allows the network. Of several splits one must be named: nothing is chosen or thrown together unasked.


HUB = "hub:"
_SPLITS = "dataset_dict.json"  # stands in a folder that `datasets` saved several splits in
_DATA = (".parquet", ".jsonl", ".json")
_ABOUT = (STATE, _SPLITS, "dataset_info.json", "dataset_infos.json")  # JSON about the data, not data
_SHARD = re.compile(r"-\d+-of-\d+$")


def located(source: Path | str, network: bool = False) -> tuple[Path, ...]:
    """The files of ``source``, in the order of their names.

    Raises `UserError` when there are none, when there are several splits and none is named, or when the hub is named
    and ``network`` is false or it can't be reached.
    """
    name = str(source)
    if name.startswith(HUB):
        return _fetched(name, network)
    path = Path(name)
    if path.is_dir():
        return _in_folder(path)
    return _matching(path) if "*" in name and not path.exists() else (path,)


def _matching(pattern: Path) -> tuple[Path, ...]:
    root = Path(pattern.anchor or ".")
    files = tuple(sorted(root.glob(str(pattern.relative_to(pattern.anchor)))))
    if not files:
        raise UserError(f"{pattern}: no file is named like this; fix: name files that are there")
    return files


def _in_folder(folder: Path) -> tuple[Path, ...]:
    if (folder / STATE).is_file():
        return (folder,)
    if (folder / _SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{STATE}"))
        return _one(str(folder), [(split,) for split in splits], folder)
    files = (path for path in folder.rglob("*") if path.is_file())
    return _one(str(folder), splits_of(path.relative_to(folder).as_posix() for path in files), folder)


def splits_of(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The data files among ``names``, those that are parts of one split together, each name as it is."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        hidden = any(part.startswith(".") for part in path.parts)
        if path.suffix in _DATA and path.name not in _ABOUT and not hidden:
            found.setdefault(_pattern(path), []).append(name)
    return [tuple(parts) for parts in found.values()]


def _pattern(path: PurePosixPath) -> str:
    """The name that all parts of the file's split share: ``data/train-*.parquet``; its own if it is no part."""
    stem = _SHARD.sub("-*", path.stem)
    return str(path.with_name(stem + path.suffix))


def _one(source: str, splits: Sequence[tuple[str, ...]], folder: Path) -> tuple[Path, ...]:
    if len(splits) != 1:
        raise _not_one(source, splits)
    return tuple(folder / name for name in splits[0])


def _not_one(source: str, splits: Sequence[tuple[str, ...]]) -> UserError:
    if not splits:
        return UserError(f"{source}: can't be read: no data files in it ({', '.join(_DATA)}); fix: name another")
    named = [_pattern(PurePosixPath(split[0])) for split in splits]
    return UserError(f"{source}: holds {', '.join(named[:8])}; fix: name one of them, as {source}/{named[0]}")


def located_file(name: str, network: bool = True) -> Path:
    """One file: a local path as it is, or ``hub:OWNER/NAME/FILE``.

    Raises `UserError` when the hub is named without a file, with ``network`` false, or can't be reached.
    """
    if not name.startswith(HUB):
        return Path(name)
    if len(name.removeprefix(HUB).split("/", 2)) < 3:
        raise UserError(f"{name}: names no file of a data set; fix: write hub:OWNER/NAME/FILE")
    return _fetched(name, network)[0]


def _fetched(source: str, network: bool) -> tuple[Path, ...]:
    owner, _, rest = source.removeprefix(HUB).partition("/")
    name, _, pattern = rest.partition("/")
    if not (owner and name):
        raise UserError(f"{source}: names no data set; fix: write hub:OWNER/NAME or hub:OWNER/NAME/FILE")
    if not network:
        raise UserError(
            f"{source}: is on the Hugging Face hub, and the network is off; "
            "fix: set prompts.network to true, or name a local copy"
        )
    return _download(source, f"{owner}/{name}", pattern)


@cache
def _download(source: str, repository: str, pattern: str) -> tuple[Path, ...]:
    """The files of the one split that ``pattern`` names. An exact name needs no listing, so the hub's cache can do."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    try:
        if pattern and not set(pattern) & set("*?["):
            return (Path(hf_hub_download(repository, pattern, repo_type="dataset")),)
        there = HfApi().list_repo_files(repository, repo_type="dataset")
        wanted = [name for name in there if not pattern or fnmatchcase(name, pattern)]
        splits = [tuple(sorted(wanted))] if pattern and wanted else splits_of(wanted)
        if len(splits) != 1:
            raise _not_one(source, splits)
        folder = snapshot_download(repository, repo_type="dataset", allow_patterns=list(splits[0]))
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0][:200]
        raise UserError(f"{source}: can't be fetched ({why}); fix: allow the network, or name a local copy") from None
    return tuple(Path(folder) / name for name in splits[0])
