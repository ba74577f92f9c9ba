"""Preference pairs as Parquet in TRL's conversational preference format; dropped prompts as JSON Lines.

``prompt`` is the conversation, ``chosen`` and ``rejected`` are lists of one assistant turn; the other columns give a
pair's origin. ``chosen_message`` and ``rejected_message`` repeat the two turns outside a list, as LLaMA-Factory needs
them (docs/data.md). Equal pairs give equal bytes (with one version of pyarrow), so a digest identifies the pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from metareward.errors import UserError
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines
from metareward.types import Dropped, PreferencePair

if TYPE_CHECKING:
    import pyarrow as pa

_REQUIRED = (
    *("prompt", "chosen", "rejected", "kind", "prompt_id", "chosen_index", "rejected_index", "candidate"),
    *("chosen_score", "rejected_score", "chosen_finish", "rejected_finish"),
)
_PAIR = TypeAdapter(PreferencePair)
_DROPPED = TypeAdapter(Dropped)


def _schema() -> pa.Schema:
    import pyarrow as pa  # takes a tenth of a second, and seconds from a cold disk

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("prompt", pa.list_(turn)),
            ("chosen", pa.list_(turn)),
            ("rejected", pa.list_(turn)),
            ("kind", pa.string()),
            ("prompt_id", pa.string()),
            ("chosen_index", pa.int64()),
            ("rejected_index", pa.int64()),
            ("candidate", pa.int64()),
            ("chosen_score", pa.float64()),
            ("rejected_score", pa.float64()),
            ("margin", pa.float64()),
            ("chosen_finish", pa.string()),
            ("rejected_finish", pa.string()),
            ("chosen_message", turn),
            ("rejected_message", turn),
        ]
    )


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    """Write ``pairs`` in order, atomically. ``margin`` is the chosen score minus the rejected score."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for pair in pairs:
        row = asdict(pair)
        chosen = {"role": "assistant", "content": pair.chosen}
        rejected = {"role": "assistant", "content": pair.rejected}
        row |= {"prompt": list(row["prompt"]), "chosen": [chosen], "rejected": [rejected]}
        row |= {"chosen_message": chosen, "rejected_message": rejected}
        rows.append(row | {"margin": pair.chosen_score - pair.rejected_score})
    buffer = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=_schema())
    pq.write_table(table, buffer, version="2.6", compression="zstd", compression_level=3, row_group_size=4096)
    write_atomic(path, buffer.getvalue().to_pybytes())


def read_pairs(path: Path) -> tuple[PreferencePair, ...]:
    """The pairs in a file of `write_pairs`. Raises `UserError` naming the file and the problem."""
    return tuple(iterate_pairs(path, 4096))


def iterate_pairs(path: Path, batch: int = 64) -> Iterator[PreferencePair]:
    """The pairs of `read_pairs`, ``batch`` of them in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in _REQUIRED if name not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{path}: columns missing: {', '.join(missing)}; fix: rebuild the pairs")
            for rows in file.iter_batches(batch_size=batch, columns=list(_REQUIRED)):
                yield from _pairs_of(path, rows.to_pylist())
    except FileNotFoundError:
        raise UserError(f"{path}: there are no pairs here; fix: build them first") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({_one_line(error)}); fix: rebuild the pairs") from None


def _pairs_of(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[PreferencePair]:
    pairs = []
    try:
        for row in rows:
            texts = {side: row[side][0]["content"] for side in ("chosen", "rejected")}
            pairs.append(_PAIR.validate_python({name: row[name] for name in _REQUIRED} | texts))
    except (LookupError, TypeError, ValidationError) as error:
        reason = _one_line(error)
        raise UserError(f"{path}: not a file of preference pairs ({reason}); fix: rebuild the pairs") from None
    return pairs


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> None:
    """Write ``dropped`` as JSON Lines, atomically."""
    write_atomic(path, json_lines(asdict(item) for item in dropped))


def read_dropped(path: Path) -> tuple[Dropped, ...]:
    """The dropped prompts in a file of `write_dropped`. Raises `UserError` naming the file and line."""
    try:
        lines = path.read_bytes().decode().split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({_one_line(error)}); fix: rebuild the pairs") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found += [_DROPPED.validate_json(line, strict=True)] if line else []
        except ValidationError as error:
            reason = _one_line(error)
            raise UserError(f"{path}:{number}: not a dropped prompt ({reason}); fix: rebuild the pairs") from None
    return tuple(found)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
