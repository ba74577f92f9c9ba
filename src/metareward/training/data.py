"""The training data of a run: pairs (DPO) or examples (SFT), read from files, and left out where they are too long.

Pairs are Parquet files in TRL's conversational preference format: the columns ``prompt``, ``chosen`` and ``rejected``
are needed. Examples are files of any format that ends with an answer (`metareward.data.prompts`); TRL's conversational
prompt-completion format is what `metareward seed build` writes. ``kind`` is counted where a row has it.

What is too long is left out and counted. TRL would truncate it at its end, where an answer stops and where a judgment
has its verdict: the model would be trained on texts that nobody preferred, or to stop in the middle. The chat template
must write an example's prompt before an answer as it writes it before generation, or the model would be trained on
another context than it will be given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import TemplateError

from metareward.data.files import iter_rows, resolve_files
from metareward.data.prompts import chat_turns, parse_example
from metareward.errors import UserError
from metareward.training.config import AnyJob, DpoJob, SftJob

COLUMNS = ("prompt", "chosen", "rejected")
Turns = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """A conversation and two ways to go on, the preferred one first, as the chat template wants them."""

    kind: str
    prompt: Turns
    chosen: Turns
    rejected: Turns


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation and the one turn that answers it, as the chat template wants them."""

    kind: str
    prompt: Turns
    completion: Turns


E = TypeVar("E", TrainingPair, Example)


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
        fitting, fitting_lengths = zip(
            *((each, length) for each, length in zip(examples, lengths, strict=True) if length <= limit), strict=True
        )
        too_long = tuple(each for each, length in zip(examples, lengths, strict=True) if length > limit)
        return cls(fitting, fitting_lengths, too_long, max(fitting_lengths), limit)


def count_kinds(examples: Iterable[TrainingPair | Example]) -> dict[str, int]:
    """How many examples there are of each kind."""
    return dict(sorted(Counter(example.kind for example in examples).items()))


# --- pairs ---


def read_training_pairs(paths: Sequence[Path]) -> tuple[TrainingPair, ...]:
    """All pairs of ``paths``, in order. Raises `UserError` naming the file, and the column or row, with an error."""
    pairs = []
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                table = file.read()
        except FileNotFoundError:
            raise UserError(f"{path}: there is no such file of pairs; fix: make the pairs first") from None
        except (pa.ArrowException, OSError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"{path}: not a readable Parquet file ({why}); fix: make the pairs again") from None
        for column in COLUMNS:
            if column not in table.column_names:
                raise UserError(f"{path}: column {column} is missing; fix: give it prompt, chosen and rejected columns")
        columns = [name for name in (*COLUMNS, "kind") if name in table.column_names]
        for number, row in enumerate(table.select(columns).to_pylist()):
            where = f"{path}: row {number}"
            turns = {column: _turns(row[column], f"{where}: {column}") for column in COLUMNS}
            if turns["chosen"] == turns["rejected"]:
                raise UserError(f"{where}: chosen and rejected are the same; fix: drop this pair, it teaches nothing")
            pairs.append(TrainingPair(row.get("kind") or "unlabelled", **turns))
    if not pairs:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names}: no pairs at all to train on; fix: see the drop reasons in the report")
    return tuple(pairs)


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
    sides = [[pair.prompt + getattr(pair, side) for pair in pairs] for side in ("chosen", "rejected")]
    token_counts = [_token_counts(_render(side, "a pair", tokenizer, job), tokenizer) for side in sides]
    lengths = list(map(max, *token_counts))
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


# --- examples ---


def read_examples(sources: Sequence[Path]) -> tuple[Example, ...]:
    """All examples of ``sources``, in order. Raises `UserError` naming the file and row with an error."""
    examples = []
    for row in (row for source in sources for path in resolve_files(source) for row in iter_rows(path)):
        messages, answer = parse_example(row.value, row.where)
        kind = row.value.get("kind")
        completion = [{"role": "assistant", "content": answer}]
        examples.append(Example(kind if isinstance(kind, str) else "unlabelled", chat_turns(messages), completion))
    if not examples:
        names = ", ".join(map(str, sources))
        raise UserError(f"{names}: no examples at all to learn from; fix: name files that hold some")
    return tuple(examples)


def fit_examples(examples: Sequence[Example], tokenizer: Any, job: SftJob, context: int | None) -> FittingData[Example]:
    """The examples that fit in ``max_length`` and in the model's ``context``, both in tokens.

    Raises `UserError` when none fits, or when the chat template can't render one or renders its prompt in two ways.
    """
    max_length = job.settings.max_length
    limit = min(max_length, context or max_length)
    conversations = [example.prompt + example.completion for example in examples]
    prompts = _render([each.prompt for each in examples], "an example", tokenizer, job, add_generation_prompt=True)
    texts = _render(conversations, "an example", tokenizer, job)
    if not all(text.startswith(prompt) for prompt, text in zip(prompts, texts, strict=True)):
        raise UserError(
            f"{job.start}: its chat template writes a prompt differently before generation and before an answer; "
            "fix: use a chat template that writes it in one way"
        )
    lengths = _token_counts(texts, tokenizer)
    if min(lengths) > limit:
        raise UserError(
            f"training job: no example fits in {limit} tokens, the shortest has {min(lengths)}; "
            "fix: raise max_length, or use a model with a longer context"
        )
    return FittingData.select(examples, lengths, limit)


# --- both ---


def _render(conversations: Sequence[Turns], what: str, tokenizer: Any, job: AnyJob, **options: Any) -> list[str]:
    """Each conversation as the chat template writes it; ``what`` names one in an error."""
    try:
        return list(tokenizer.apply_chat_template(list(conversations), tokenize=False, **options))
    except TemplateError as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{job.start}: its chat template can't render {what} ({why}); fix: change one of them"
        ) from None


def _token_counts(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """Tokens of each text, counted the way TRL tokenizes it: the template writes the special tokens."""
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
