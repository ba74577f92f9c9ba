"""The preference pairs of a DPO run: read from Parquet files, checked, and left out where they are too long.

Any Parquet file in TRL's conversational preference format will do: the columns ``prompt``, ``chosen`` and ``rejected``
are needed, ``kind`` is counted where there is one. A pair that is too long is left out and counted. TRL would truncate
it at its end, where an answer stops and where a judgment has its verdict: the model would be trained on texts that
nobody preferred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import TemplateError

from metareward.errors import UserError
from metareward.training.config import DpoJob

COLUMNS = ("prompt", "chosen", "rejected")
Turns = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """A conversation and two ways to go on, the preferred one first, as the chat template wants them."""

    kind: str
    prompt: Turns
    chosen: Turns
    rejected: Turns


class _Example(Protocol):
    @property
    def kind(self) -> str: ...


E = TypeVar("E", bound=_Example)


@dataclass(frozen=True, slots=True)
class FittingData(Generic[E]):
    """``examples`` (pairs, in DPO) that fit, with their ``lengths`` in tokens; ``too_long`` are left out.

    The length of a pair is that of its longer side. ``longest`` is the largest length, ``limit`` the largest allowed.
    """

    examples: tuple[E, ...]
    lengths: tuple[int, ...]
    too_long: tuple[E, ...]
    longest: int
    limit: int

    @classmethod
    def select(cls, examples: Sequence[E], lengths: Sequence[int], limit: int) -> FittingData[E]:
        """The examples whose length is at most ``limit``; there must be one."""
        fitting = [number for number, length in enumerate(lengths) if length <= limit]
        return cls(
            examples=tuple(examples[number] for number in fitting),
            lengths=tuple(lengths[number] for number in fitting),
            too_long=tuple(each for each, length in zip(examples, lengths, strict=True) if length > limit),
            longest=max(lengths[number] for number in fitting),
            limit=limit,
        )


def read_training_pairs(paths: Sequence[Path]) -> tuple[TrainingPair, ...]:
    """All pairs of ``paths``, in order. Raises `UserError` naming the file, and the column or row, with an error."""
    pairs = tuple(pair for path in paths for pair in _pairs(path))
    if not pairs:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names}: no pairs at all to train on; fix: see the drop reasons in the report")
    return pairs


def count_kinds(examples: Iterable[_Example]) -> dict[str, int]:
    """How many examples there are of each kind."""
    return dict(sorted(Counter(example.kind for example in examples).items()))


def _pairs(path: Path) -> Iterable[TrainingPair]:
    table = _table(path)
    for column in COLUMNS:
        if column not in table.column_names:
            raise UserError(f"{path}: column {column} is missing; fix: give it prompt, chosen and rejected columns")
    columns = [name for name in (*COLUMNS, "kind") if name in table.column_names]
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
    turns = {column: _turns(row[column], f"{where}: {column}") for column in COLUMNS}
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


def fit_pairs(
    pairs: Sequence[TrainingPair], tokenizer: Any, job: DpoJob, context: int | None
) -> FittingData[TrainingPair]:
    """The pairs that fit in ``max_length`` and in the model's ``context``, both in tokens.

    Raises `UserError` when none fits, or when the chat template can't render one.
    """
    max_length = job.settings.max_length
    limit = min(max_length, context or max_length)
    chosen = _lengths([pair.prompt + pair.chosen for pair in pairs], tokenizer, job)
    rejected = _lengths([pair.prompt + pair.rejected for pair in pairs], tokenizer, job)
    lengths = [max(sides) for sides in zip(chosen, rejected, strict=True)]
    shortest = min(lengths)
    if context is not None and shortest > context:
        raise UserError(
            f"{job.start}: its context is {context} tokens, the shortest pair has {shortest}; fix: use another model"
        )
    if shortest > limit:
        raise UserError(
            f"training job: no pair fits in max_length {limit}, the shortest has {shortest} tokens; "
            "fix: raise max_length"
        )
    return FittingData.select(pairs, lengths, limit)


def _lengths(conversations: Sequence[Turns], tokenizer: Any, job: DpoJob) -> list[int]:
    """Tokens of each conversation, counted the way TRL tokenizes it: the template writes the special tokens."""
    try:
        texts = tokenizer.apply_chat_template(list(conversations), tokenize=False)
    except TemplateError as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{job.start}: its chat template can't render a pair ({why}); fix: change one of them"
        ) from None
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
