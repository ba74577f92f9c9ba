"""Preference pairs as Parquet in TRL's conversational preference format; dropped prompts as JSON Lines.

``prompt`` is the conversation, ``chosen`` and ``rejected`` are lists of one assistant turn; the other columns give a
pair's origin. ``chosen_message`` and ``rejected_message`` repeat the two turns outside a list, as LLaMA-Factory needs
them (docs/data.md). Equal pairs give equal bytes (with one version of pyarrow), so a digest identifies the pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from metareward.errors import UserError
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines
from metareward.types import Dropped, PreferencePair

_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
_TURNS = pa.list_(_TURN)
_SCHEMA = pa.schema(
    [
        ("prompt", _TURNS),
        ("chosen", _TURNS),
        ("rejected", _TURNS),
        ("kind", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen_index", pa.int64()),
        ("rejected_index", pa.int64()),
        ("candidate", pa.int64()),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("margin", pa.float64()),
        ("chosen_message", _TURN),
        ("rejected_message", _TURN),
    ]
)
_DERIVED = ("margin", "chosen_message", "rejected_message")
_REQUIRED = tuple(name for name in _SCHEMA.names if name not in _DERIVED)
_PAIR = TypeAdapter(PreferencePair)
_DROPPED = TypeAdapter(Dropped)


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    """Write ``pairs`` in order, atomically. ``margin`` is the chosen score minus the rejected score."""
    table = pa.Table.from_pylist([_row(pair) for pair in pairs], schema=_SCHEMA)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, version="2.6", compression="zstd", compression_level=3, row_group_size=4096)
    write_atomic(path, buffer.getvalue().to_pybytes())


def read_pairs(path: Path) -> tuple[PreferencePair, ...]:
    """The pairs in a file of `write_pairs`. Raises `UserError` naming the file and the problem."""
    table = _table(path)
    missing = [name for name in _REQUIRED if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: columns missing: {', '.join(missing)}; fix: rebuild the pairs")
    try:
        return tuple(_pair(row) for row in table.to_pylist())
    except (LookupError, TypeError, ValidationError) as error:
        reason = _one_line(error)
        raise UserError(f"{path}: not a file of preference pairs ({reason}); fix: rebuild the pairs") from None


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> None:
    """Write ``dropped`` as JSON Lines, atomically."""
    write_atomic(path, json_lines(asdict(item) for item in dropped))


def read_dropped(path: Path) -> tuple[Dropped, ...]:
    """The dropped prompts in a file of `write_dropped`. Raises `UserError` naming the file and line."""
    try:
        lines = path.read_bytes().decode().split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({_one_line(error)}); fix: rebuild the pairs") from None
    return tuple(_dropped(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line)


def _table(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: there are no pairs here; fix: build them first") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({_one_line(error)}); fix: rebuild the pairs") from None


def _dropped(line: str, where: str) -> Dropped:
    try:
        return _DROPPED.validate_json(line, strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: not a dropped prompt ({_one_line(error)}); fix: rebuild the pairs") from None


def _row(pair: PreferencePair) -> dict[str, Any]:
    row = asdict(pair)
    chosen = {"role": "assistant", "content": pair.chosen}
    rejected = {"role": "assistant", "content": pair.rejected}
    row |= {"prompt": list(row["prompt"]), "chosen": [chosen], "rejected": [rejected]}
    margin = pair.chosen_score - pair.rejected_score
    return row | {"margin": margin, "chosen_message": chosen, "rejected_message": rejected}


def _pair(row: dict[str, Any]) -> PreferencePair:
    values = {name: row[name] for name in _REQUIRED}
    values["chosen"] = row["chosen"][0]["content"]
    values["rejected"] = row["rejected"][0]["content"]
    return _PAIR.validate_python(values)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
