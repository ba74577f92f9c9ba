"""The pairs of one training run, refused early when they can't teach anything.

Read from any Parquet file in TRL's conversational preference format, ours or another tool's: only the columns
``prompt``, ``chosen`` and ``rejected`` are needed; ``kind`` is counted when it is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from metareward.errors import UserError

SIDES = ("prompt", "chosen", "rejected")
Turns = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """One row: a conversation and two ways to go on, the better one first, as the chat template wants them."""

    kind: str
    prompt: Turns
    chosen: Turns
    rejected: Turns


def read_training_pairs(paths: Sequence[Path]) -> tuple[TrainingPair, ...]:
    """All pairs of ``paths``, in order. Raises `UserError` naming the file, and the column or row, that won't do."""
    pairs = tuple(pair for path in paths for pair in _pairs(path))
    if not pairs:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names}: no pairs at all to train on; fix: see the drop reasons in the report")
    return pairs


def count_kinds(pairs: Iterable[TrainingPair]) -> dict[str, int]:
    """How many pairs there are of each kind."""
    return dict(sorted(Counter(pair.kind for pair in pairs).items()))


def _pairs(path: Path) -> Iterable[TrainingPair]:
    table = _table(path)
    for column in SIDES:
        if column not in table.column_names:
            raise UserError(f"{path}: column {column} is missing; fix: give it prompt, chosen and rejected columns")
    columns = [name for name in (*SIDES, "kind") if name in table.column_names]
    return [_pair(row, f"{path}: row {number}") for number, row in enumerate(table.select(columns).to_pylist())]


def _table(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file of pairs; fix: make the pairs first") from None
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable Parquet file ({why}); fix: make the pairs again") from None


def _pair(row: dict[str, Any], where: str) -> TrainingPair:
    turns = {side: _turns(row[side], f"{where}: {side}") for side in SIDES}
    if turns["chosen"] == turns["rejected"]:
        raise UserError(f"{where}: chosen and rejected are the same; fix: drop this pair, it teaches nothing")
    return TrainingPair(row.get("kind") or "unlabelled", **turns)


def _turns(value: object, where: str) -> Turns:
    """``value`` as chat turns. A list of role and content is TRL's conversational format; plain text is not."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} is not a list of turns; fix: give it turns with role and content")
    for turn in value:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise UserError(f"{where} holds a turn without role and content; fix: give every turn both")
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]
