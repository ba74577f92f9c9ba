"""The training data of a run: pairs (DPO) or examples (SFT), read from files, and left out where they are too long.

Pairs are Parquet files in TRL's conversational preference format: the columns ``prompt``, ``chosen`` and ``rejected``
are needed. Examples are files of any format that ends with an answer (`metareward.data.prompts`); TRL's conversational
prompt-completion format is what `metareward seed build` writes. ``kind`` is counted where a row has it.

A model is trained on the tokens that generation has: the ids of the prompt, of the completion and of the end of the
turn (`metareward.engines.chat`), which TRL gets ready-made. Whatever the chat template does to an answer, such as
cutting its thinking, has no effect; a template that leaves out a part of a prompt is refused. A completion that was cut
off gets no end of the turn. What is too long is left out and counted: TRL would truncate it at its end, where an answer
stops and where a judgment has its verdict.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from metareward.data.files import iter_rows, resolve_files
from metareward.data.prompts import chat_turns, parse_example
from metareward.engines.chat import ChatEncoder, ChatTemplateError, thinking_end
from metareward.errors import UserError
from metareward.method.template import LOOKALIKE_BRACKET, LOOKALIKE_COLON, LOOKALIKE_SQUARE
from metareward.text import one_line
from metareward.training.config import AnyJob, DpoJob, SftJob
from metareward.types import Message, Messages

COLUMNS = ("prompt", "chosen", "rejected")
_OPTIONAL = ("kind", "chosen_finish", "rejected_finish")
_NO_LOSS = -100  # transformers' label of a token without loss
_PLAIN = str.maketrans({LOOKALIKE_BRACKET: "<", LOOKALIKE_SQUARE: "[", LOOKALIKE_COLON: ":"})
Turns = list[dict[str, str]]
TokenRow = Mapping[str, npt.NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """A conversation and two ways to go on, the preferred one first, as the chat template wants them.

    A side whose finish is ``length`` was cut off, so its turn doesn't end.
    """

    kind: str
    prompt: Turns
    chosen: Turns
    rejected: Turns
    chosen_finish: str = "stop"
    rejected_finish: str = "stop"


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

    ``rows`` are their token ids in TRL's columns. The length of a pair is that of its longer side. ``longest`` is the
    largest length, ``limit`` the largest allowed. ``notes``: where the chat template writes a conversation otherwise.
    """

    examples: tuple[E, ...]
    rows: tuple[TokenRow, ...]
    lengths: tuple[int, ...]
    too_long: tuple[E, ...]
    longest: int
    limit: int
    notes: tuple[str, ...] = ()

    @classmethod
    def select(
        cls, examples: Sequence[E], rows: Sequence[TokenRow], lengths: Sequence[int], limit: int, notes: Sequence[str]
    ) -> FittingData[E]:
        """The examples whose length is at most ``limit``; there must be one."""
        every = list(zip(examples, rows, lengths, strict=True))
        fitting = [each for each in every if each[2] <= limit]
        kept, kept_rows, kept_lengths = zip(*fitting, strict=True)
        too_long = tuple(example for example, _, length in every if length > limit)
        return cls(kept, kept_rows, kept_lengths, too_long, max(kept_lengths), limit, tuple(notes))


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
        columns = [name for name in (*COLUMNS, *_OPTIONAL) if name in table.column_names]
        for number, row in enumerate(table.select(columns).to_pylist()):
            where = f"{path}: row {number}"
            turns = {column: _turns(row[column], f"{where}: {column}") for column in COLUMNS}
            if turns["chosen"] == turns["rejected"]:
                raise UserError(f"{where}: chosen and rejected are the same; fix: drop this pair, it teaches nothing")
            for side in ("chosen", "rejected"):
                if len(turns[side]) > 1 or turns[side][0]["role"] != "assistant":
                    raise UserError(f"{where}: {side} is not one assistant turn; fix: move other turns to prompt")
            finish = [row.get(f"{side}_finish") or "stop" for side in ("chosen", "rejected")]
            if unknown := [each for each in finish if each not in ("stop", "length")]:
                raise UserError(f"{where}: finish is {unknown[0]!r}; fix: make it stop or length")
            kind = row.get("kind") or "unlabelled"
            pairs.append(TrainingPair(kind, turns["prompt"], turns["chosen"], turns["rejected"], *finish))
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
    tokenized = _CheckedTokenizer(tokenizer, job, "a pair")
    rows = []
    for pair in pairs:
        prompt, prompt_ids = tokenized.prompt(pair.prompt)
        sides = ((pair.chosen, pair.chosen_finish), (pair.rejected, pair.rejected_finish))
        chosen, rejected = (
            tokenized.completion(prompt, turns[0]["content"], finish == "stop") for turns, finish in sides
        )
        rows.append(_row(prompt_ids=prompt_ids, chosen_ids=chosen, rejected_ids=rejected))
    lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
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
    return FittingData.select(pairs, rows, lengths, limit, tokenized.notes)


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
    tokenized = _CheckedTokenizer(tokenizer, job, "an example")
    rows = []
    for example in examples:
        answer = example.completion[0]["content"]
        prompt, prompt_ids = tokenized.prompt(example.prompt)
        tokenized.require_same_header(prompt, answer)
        completion = tokenized.completion(prompt, answer, True)
        labels = [_NO_LOSS] * len(prompt_ids) + completion
        rows.append(_row(input_ids=prompt_ids + completion, labels=labels))
    lengths = [len(row["labels"]) for row in rows]
    if min(lengths) > limit:
        raise UserError(
            f"training job: no example fits in {limit} tokens, the shortest has {min(lengths)}; "
            "fix: raise max_length, or use a model with a longer context"
        )
    return FittingData.select(examples, rows, lengths, limit, tokenized.notes)


# --- both ---


def _row(**columns: Sequence[int]) -> TokenRow:
    return {name: np.asarray(ids, np.int32) for name, ids in columns.items()}


class _CheckedTokenizer:
    """Token ids of the conversations of a job, checked to hold all of their texts; ``what`` names one in an error."""

    def __init__(self, tokenizer: Any, job: AnyJob, what: str) -> None:
        self._tokenizer = tokenizer
        self._encoder = ChatEncoder(tokenizer)
        self._start, self._what = job.start, what
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the chat template would have written otherwise, in the order of its discovery."""
        return tuple(self._notes)

    def prompt(self, turns: Turns) -> tuple[Messages, list[int]]:
        """The prompt and its ids. Raises `UserError` if the template can't write it or leaves out a part."""
        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)  # type: ignore[arg-type]
        try:
            ids = self._encoder.encode(messages)
        except ChatTemplateError as error:
            raise self._unwritten(error) from None
        written = _squeeze(self._tokenizer.decode(ids))
        for message in messages:
            if self._holds(written, message.content):
                continue
            answer = message.content[thinking_end(message.content) :]
            if message.role != "assistant" or not self._holds(written, answer):
                raise self._left_out(f"the {message.role}'s text {one_line(message.content, 40)!r}")
            self._note("leaves out the thinking of earlier turns, in generation as in training")
        return messages, ids

    def completion(self, prompt: Messages, text: str, end_turn: bool) -> list[int]:
        """The ids of an answer. Raises `UserError` if they don't hold all of it."""
        try:
            ids = self._encoder.encode_completion(prompt, text, end_turn)
            turn = self._encoder.turn(prompt)
        except ChatTemplateError as error:
            raise self._unwritten(error) from None
        if turn.otherwise:
            written = f"{one_line(turn.otherwise[-60:])!r}, and {one_line(turn.before[-60:])!r} before generation"
            self._note(f"writes {written}: trained as in generation")
        if not self._encoder.writes(prompt, text):
            self._note("cuts or changes answers, such as their thinking: trained on the whole answers as written")
        if not self._holds(_squeeze(self._tokenizer.decode(ids)), text):
            raise self._left_out(f"the answer {one_line(text, 40)!r}")
        return ids

    def require_same_header(self, prompt: Messages, answer: str) -> None:
        """Raise `UserError` if an answer that the model didn't write can't follow the header of a generation."""
        turn = self._encoder.turn(prompt)
        if turn.opens_reasoning and not thinking_end(answer):
            raise UserError(
                f"{self._start}: its chat template opens reasoning before an answer, and an answer doesn't close it "
                f"({one_line(answer, 40)!r}); fix: give answers with their reasoning, or change the chat template"
            )
        if turn.otherwise and not turn.opens_reasoning and not turn.otherwise.startswith(turn.before):
            raise UserError(
                f"{self._start}: its chat template writes a prompt differently before generation and before an answer; "
                "fix: use a chat template that writes it in one way"
            )

    def _note(self, text: str) -> None:
        self._notes.setdefault(f"the chat template {text}")

    def _holds(self, written: str, text: str) -> bool:
        """Whether ``text``, or what of it the tokenizer can write, is in ``written``, which is squeezed."""
        if _squeeze(text) in written:
            return True
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return _squeeze(self._tokenizer.decode(ids)) in written

    def _unwritten(self, error: ChatTemplateError) -> UserError:
        return UserError(
            f"{self._start}: its chat template can't render {self._what} ({error}); fix: change one of them"
        )

    def _left_out(self, part: str) -> UserError:
        return UserError(
            f"{self._start}: its chat template leaves out a part of {self._what}: {part}; "
            "fix: use a chat template that writes all of it"
        )


def _squeeze(text: str) -> str:
    """``text`` without white space and look-alike brackets, in its compatibility form."""
    return "".join(unicodedata.normalize("NFKC", text.translate(_PLAIN)).split())
