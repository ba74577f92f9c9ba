"""Data files: from a name (a file, folder, pattern or Hugging Face data set) to paths, and from a path to rows.

    FILE.jsonl  FILE.json  FILE.parquet  FILE.csv  FILE.txt      hub:OWNER/NAME
    FOLDER      FOLDER/train-*.parquet      example:NAME         hub:OWNER/NAME/data/train-*.parquet

A folder is one saved by `datasets`, or a copy of a data set's files. Where there are several splits, one must be named.
An example is a file of ranked answers that ships with the package (``examples/``, written for it, Apache-2.0).
Every row carries its place, such as ``prompts.jsonl:3``, for error messages.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

from metareward.errors import UserError
from metareward.text import one_line

HUB = "hub:"
EXAMPLE = "example:"
STATE = "state.json"  # in a folder that `datasets` saved one split in
_SPLITS = "dataset_dict.json"  # in a folder that `datasets` saved several splits in
_DATA = (".parquet", ".jsonl", ".json", ".csv")
_METADATA = (STATE, _SPLITS, "dataset_info.json", "dataset_infos.json")
_LARGEST = 1e100
_OTHER_FORMS = {
    b"\x1f\x8b": "a gzip file",
    b"PK": "a ZIP file",
    b"PAR1": "a Parquet file without that ending",
    b"SQLite": "an SQLite file",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_EXAMPLES = Path(str(files("metareward.data").joinpath("examples")))
_SHARD = re.compile(r"-\d+-of-\d+$")
_FORMATS = "JSON Lines, .json (a list), .parquet, .csv (with a header), .txt (one prompt a line) or a data set's folder"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file, as JSON would have it. ``where`` is its place, such as ``outputs.jsonl:3``.

    Lines are counted from 1, as editors do; items of a list and rows of a table from 0, as data sets do. Every method
    that reads a field raises `UserError` naming the place, the field and the fix.
    """

    where: str
    value: Any

    @property
    def fields(self) -> Mapping[str, Any]:
        """The row as a JSON object."""
        if not isinstance(self.value, dict):
            raise UserError(f"{self.where}: not a JSON object; fix: write {{ … }}")
        return self.value

    def has(self, *names: str) -> bool:
        """Whether all these fields are present and not null."""
        return all(self.fields.get(name) is not None for name in names)

    def text(self, *names: str) -> str:
        """The first of these fields that is present, as text; a number becomes its digits."""
        value = self._first(names)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self.error(names[0], "is not text", "write text")
        return value

    def number(self, *names: str) -> float:
        """The first of these fields that is present, as a finite number."""
        value = self.optional_number(*names)
        if value is None:
            raise self.error(names[0], "is missing or no finite number", "write a number")
        return value

    def integer(self, *names: str) -> int:
        """Like `number`, but whole."""
        value = self.number(*names)
        if value != int(value):
            raise self.error(names[0], f"is {value:g}, no whole number", "write a whole number")
        given = self._first(names)
        return given if isinstance(given, int) else int(value)  # a float has 53 bits

    def optional_number(self, *names: str) -> float | None:
        """Like `number`, but None for a field that is absent, null, empty or NaN, as tables write what is missing."""
        value = next((self.fields[name] for name in names if self.fields.get(name) not in (None, "")), None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self.error(names[0], "is not a number", "write a number")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise self.error(names[0], "is not a number", "write a number") from None
        if isinstance(value, str) and "_" in value:  # Python's own notation, in which 1_0 is ten
            raise self.error(names[0], "is not a number", "write a number")
        if math.isinf(number):
            raise self.error(names[0], "is infinite", "write a finite number")
        if abs(number) > _LARGEST:  # its square would be infinite
            raise self.error(names[0], f"is {number:g}", f"write a number below {_LARGEST:g}")
        return None if math.isnan(number) else number

    def items(self, name: str) -> Sequence[Any]:
        """A field that holds a list."""
        value = self._first((name,))
        if not isinstance(value, list):
            raise self.error(name, "is not a list", "write [ … ]")
        return value

    def rows(self, name: str) -> tuple[Row, ...]:
        """A field that holds a list of objects."""
        return tuple(self._inner(each, f"{name}[{i}]") for i, each in enumerate(self.items(name)))

    def first(self, name: str) -> Row:
        """The first object of a field that holds a list of them."""
        rows = self.rows(name)
        if not rows:
            raise self.error(name, "is empty", "give one object at least")
        return rows[0]

    def row(self, name: str) -> Row:
        """A field that holds an object."""
        return self._inner(self._first((name,)), name)

    def error(self, field: str, problem: str, fix: str) -> UserError:
        """The error to raise about a field."""
        return field_error(self.where, field, problem, fix)

    def _first(self, names: Sequence[str]) -> Any:
        for name in names:
            if self.fields.get(name) is not None:
                return self.fields[name]
        present = one_line(", ".join(map(str, self.fields))) or "none"
        raise self.error(names[0], "is missing", f"add it (fields here: {present})")

    def _inner(self, value: object, name: str) -> Row:
        if not isinstance(value, dict):
            raise self.error(name, "is not an object", "write { … }")
        return Row(f"{self.where} {name}", value)


def field_error(where: str, field: str, problem: str, fix: str) -> UserError:
    """The error about a field of the row at ``where``."""
    return UserError(f'{where}: field "{field}": {problem}; fix: {fix}')


# --- reading ---


def iter_rows(path: Path) -> Iterator[Row]:
    """The rows of ``path`` in order, read as its ending says; any other ending is JSON Lines or a JSON list.

    The rows of a CSV file are objects of text, those of a text file its lines that aren't blank. Raises `UserError`
    naming the place that can't be read.
    """
    if path.is_dir() or path.suffix == ".parquet":
        yield from _saved_dataset(path) if path.is_dir() else _parquet(path)
        return
    text, is_text = read_text(path), path.suffix == ".txt"
    if path.suffix == ".csv":
        yield from _csv(path, text)
    elif not is_text and text.lstrip().startswith("["):
        for number, item in enumerate(_json(text, str(path))):
            yield Row(f"{path}: item {number}", item)
    else:
        for number, line in enumerate(text.split("\n"), 1):  # only newlines: `str.splitlines` would cut at U+2028
            where = f"{path}:{number}"
            if is_text and line.lstrip().startswith(('{"', '["')):
                raise UserError(f"{where}: JSON in a .txt file, where each line is a prompt; fix: name it .jsonl")
            if line.strip():
                yield Row(where, line.strip() if is_text else _json(line, where))


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of ``path``, which are objects. Raises `UserError` when there are none or one is no object."""
    rows = tuple(Row(row.where, row.fields) for row in iter_rows(path))
    if not rows:
        raise UserError(f"{path}: no rows in it; fix: name a file with one object a line, a JSON list or a CSV")
    return rows


def read_all_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a file, or of all ``.jsonl`` files in a folder, in the order of their names."""
    if not path.is_dir():
        return read_rows(path)
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise UserError(f"{path}: no .jsonl files in this folder; fix: name the folder that holds one file per model")
    return tuple(row for file in files for row in read_rows(file))


def read_text(path: Path) -> str:
    """A text file in UTF-8, without a byte order mark. Raises `UserError` when it can't be read."""
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        form = next((name for start, name in _OTHER_FORMS.items() if error.object.startswith(start)), None)
        if form is not None:
            raise UserError(f"{path}: this is {form}; fix: write it as UTF-8 text: {_FORMATS}") from None
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: this is not UTF-8; fix: save the file as UTF-8: {_FORMATS}") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; fix: name one that is there: {_FORMATS}") from None


def group_by(rows: Iterable[Row], *names: str) -> dict[str, list[Row]]:
    """Rows by the text of the first of these fields that is present, in the order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.text(*names), []).append(row)
    return groups


def require_unique(rows: Sequence[Row], name: str) -> Sequence[Row]:
    """``rows`` unchanged. Raises `UserError` when two of them have the same text in this field."""
    seen: set[str] = set()
    for row in rows:
        if row.text(name) in seen:
            raise row.error(name, "repeats that of an earlier row", "give every row its own")
        seen.add(row.text(name))
    return rows


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not JSON ({error}); fix: write one JSON object a line or one JSON list, or name a file that its "
            "ending marks as something else: .parquet, .csv (with a header), .txt (one prompt a line)"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises `ValueError` for a key that is there twice, as nobody knows which of its values counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice in one object")
    return found


def _csv(path: Path, text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    line = 1
    try:
        if reader.fieldnames:
            line = reader.line_num + 1
            for name in reader.fieldnames:
                if reader.fieldnames.count(name) > 1:
                    raise UserError(f"{path}:1: two columns are called {name!r}; fix: give every column its own name")
        for fields in reader:
            if None in fields or None in fields.values():
                raise UserError(f"{path}:{line}: not as many cells as the first line; fix: give every column a cell")
            yield Row(f"{path}:{line}", fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not CSV ({error}); fix: write the file as JSON Lines") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield Row(f"{path}: row {number}", row)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: not a readable Parquet file ({reason}); fix: name another or write it again"
        ) from None


def _saved_dataset(folder: Path) -> Iterator[Row]:
    import pyarrow as pa
    from datasets import load_from_disk

    try:
        rows = load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: can't be read: {reason}; fix: save the data set again") from None
    for number, row in enumerate(rows):
        yield Row(f"{folder}: row {number}", row)


# --- from names to paths ---


def resolve_files(source: Path | str, network: bool = False) -> tuple[Path, ...]:
    """The files of ``source`` in the order of their names; those of ``hub:OWNER/NAME`` are downloaded or cached.

    Raises `UserError` when there are none, when there are several splits and none is named, or when the hub is named
    and ``network`` is false or the hub can't be reached.
    """
    name = str(source)
    if name.startswith(HUB):
        return _resolve_hub(name, network)
    if name.startswith(EXAMPLE):
        return (_example(name),)
    path = Path(name)
    if path.is_dir() and not (path / STATE).is_file():
        if (path / _SPLITS).is_file():
            splits: list[tuple[str, ...]] = [(each.parent.name,) for each in sorted(path.glob(f"*/{STATE}"))]
        else:
            splits = splits_of(each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())
        return tuple(path / each for each in _only_split(str(path), splits))
    if "*" not in name or path.exists():
        return (path,)
    files = tuple(sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))))
    if not files:
        raise UserError(f"{name}: no file matches; fix: name files that are there")
    return files


def resolve_file(source: Path | str, network: bool = False) -> Path:
    """The one file or folder of ``source``: a path, ``hub:OWNER/NAME/FILE`` or ``example:NAME``.

    Raises like `resolve_files`.
    """
    name = str(source)
    if name.startswith(EXAMPLE):
        return _example(name)
    if not name.startswith(HUB):
        return Path(name)
    if name.count("/") < 2 or name.endswith("/") or has_magic(name):
        raise UserError(f"{name}: doesn't name one file of a data set; fix: write hub:OWNER/NAME/FILE")
    return _resolve_hub(name, network)[0]


def _example(name: str) -> Path:
    """The file of ``example:NAME``. Raises `UserError` for a name that there isn't."""
    found = {f"{EXAMPLE}{path.stem}": path for path in sorted(_EXAMPLES.glob("*.jsonl"))}
    if name not in found:
        raise UserError(f"{name}: no such example; fix: name {' or '.join(found)}")
    return found[name]


def splits_of(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The data files among ``names``, the shards of a split together."""
    splits: dict[str, list[str]] = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        hidden = any(part.startswith(".") for part in path.parts)
        if path.suffix in _DATA and path.name not in _METADATA and not hidden:
            splits.setdefault(_split_pattern(name), []).append(name)
    return [tuple(shards) for shards in splits.values()]


def _split_pattern(name: str) -> str:
    """The pattern that all shards of a file's split match (``data/train-*.parquet``), or the file's own name."""
    path = PurePosixPath(name)
    return str(path.with_name(_SHARD.sub("-*", path.stem) + path.suffix))


def _only_split(source: str, splits: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    if not splits:
        raise UserError(f"{source}: can't be read: no data files in it ({', '.join(_DATA)}); fix: name another")
    if len(splits) > 1:
        patterns = [_split_pattern(split[0]) for split in splits]
        names = ", ".join(patterns[:8])
        raise UserError(f"{source}: holds {names}; fix: name one of them, as {source}/{patterns[0]}")
    return splits[0]


def _resolve_hub(source: str, network: bool) -> tuple[Path, ...]:
    repository, pattern = _on_hub(source, network, "data set")
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    with hub_errors(source):
        if pattern and not has_magic(pattern):
            return (Path(hf_hub_download(repository, pattern, repo_type="dataset")),)
        names = HfApi().list_repo_files(repository, repo_type="dataset")
        matching = sorted(name for name in names if not pattern or fnmatchcase(name, pattern))
        wanted = tuple(matching) if pattern and matching else _only_split(source, splits_of(matching))
        folder = snapshot_download(repository, repo_type="dataset", allow_patterns=list(wanted))
    return tuple(Path(folder) / name for name in wanted)


def fetch_hub_model(source: str, network: bool) -> tuple[Path, str | None]:
    """The folder of the model ``hub:OWNER/NAME``, named after its commit, and the licence that the hub states.

    Configuration, tokenizer and safetensors weights are downloaded or cached. Raises `UserError` like `resolve_files`.
    """
    repository, rest = _on_hub(source, network, "model")
    if rest:
        raise UserError(f"{source}: names a file; fix: write hub:OWNER/NAME")
    from huggingface_hub import HfApi, snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md", "LICENSE*"]
    with hub_errors(source):
        card = HfApi().model_info(repository).card_data
        folder = snapshot_download(repository, allow_patterns=wanted, ignore_patterns=["*/*"])
    return Path(folder), str(card.get("license")) if card and card.get("license") else None


def _on_hub(source: str, network: bool, kind: str) -> tuple[str, str]:
    """OWNER/NAME of ``hub:OWNER/NAME/REST``, and REST. Raises `UserError` for another form, or without ``network``."""
    owner, _, rest = source.removeprefix(HUB).partition("/")
    name, _, pattern = rest.partition("/")
    if not (owner and name):
        form = "hub:OWNER/NAME" if kind == "model" else "hub:OWNER/NAME or hub:OWNER/NAME/FILE"
        raise UserError(f"{source}: names no {kind}; fix: write {form}")
    if not network:
        raise UserError(
            f"{source}: is on the Hugging Face hub, and the network is off; fix: allow it (prompts.network: true in a "
            "recipe, --network in a command), or name a local copy"
        )
    return f"{owner}/{name}", pattern


@contextmanager
def hub_errors(source: str, what: str = "fetched", fix: str = "check the name and the network") -> Iterator[None]:
    """Turn an error of the hub's library into a `UserError` of one line."""
    import httpx2  # what huggingface_hub asks with: its errors are no `OSError` where nothing answers

    try:
        yield
    except (OSError, ValueError, httpx2.HTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{source}: can't be {what} ({reason}); fix: {fix}") from None
