"""The files of AlpacaEval 2, in the formats of the public repository tatsu-lab/alpaca_eval.

``model_outputs.json``; ``annotations.json`` (``_1`` is the baseline, ``_2`` the evaluated model; preference 1 is the
baseline's, 2 the model's, 1.5 or the older 0 a draw); the two tables of the length-controlled win rate; the published
weights. A CSV with ``preference``, ``len_1`` and ``len_2`` is enough for all numbers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metareward.data.files import Row, read_rows, require_unique
from metareward.evaluation.input_checks import (
    group_by_name,
    one_value,
    require_everywhere,
    require_field,
    require_no_verdict,
    require_one_row,
    score_on_scale,
)

Array = NDArray[np.float64]

# What makes a result the leaderboard's: its baseline, its judge, its instructions in their order. The digest of the
# baseline's lengths stands for the instructions in a table that has only lengths.
BASELINE = "gpt4_1106_preview"
JUDGE = "weighted_alpaca_eval_gpt4_turbo"
INSTRUCTIONS = 805
_INSTRUCTIONS_SHA256 = "bfe8c45991f635de0b1f94abeeb1335ef665d58eddd87ddf6fa71b7b0c2ce7a5"
_LENGTHS_SHA256 = "7e60659a43dbf0768299297733596838c14ed61883f8594eeba14990bd86f312"


@dataclass(frozen=True, slots=True)
class Output:
    """One model's output to one instruction."""

    instruction: str
    output: str
    dataset: str
    generator: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """One comparison with the baseline's output to instruction number ``row``. Lengths are in characters.

    ``preference`` is the evaluated model's share in [0, 1], None where the judge's reply was unreadable or
    (``refused``) missing. ``instruction`` is None in a table of lengths.
    """

    row: int
    preference: float | None
    baseline_chars: int
    model_chars: int
    refused: bool = False
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Annotations:
    """All comparisons of one model. ``baseline`` is None where the file doesn't name it.

    ``mode`` says how preferences were read, if known; ``differing_name`` is the model's name in the file if the folder
    has another; ``by_place``: rows were numbered by their place in the file; ``judge`` is None where it isn't named.
    ``official_prompts``: the rows are the leaderboard's 805 instructions in their order.
    """

    model: str
    baseline: str | None
    mode: str
    rows: tuple[Annotation, ...]
    differing_name: str | None = None
    by_place: bool = False
    judge: str | None = None
    official_prompts: bool = False

    @property
    def unofficial(self) -> tuple[str, ...]:
        """Why no number of this model is the leaderboard's; empty where it is."""
        judged = sum(row.preference is not None for row in self.rows)
        reasons = (
            (self.judge != JUDGE, f"judge {self.judge}" if self.judge else "its judge is not named"),
            (self.baseline != BASELINE, f"baseline {self.baseline}" if self.baseline else "its baseline is not named"),
            (judged != INSTRUCTIONS, f"{judged} of {INSTRUCTIONS} instructions"),
            (not self.official_prompts and judged >= INSTRUCTIONS, "other instructions, or in another order"),
        )
        return tuple(reason for holds, reason in reasons if holds)


@dataclass(frozen=True, slots=True)
class Gamed:
    """Upstream's rows of the baseline made verbose and concise: preference, scaled length difference, difficulty."""

    preference_R: Array
    length_R: Array
    difficulty_R: Array


# Of upstream's tables. Difficulties: mean, standard deviation, mean of number times difficulty. Gamed rows: mean and
# standard deviation of the lengths, means of preference times tanh(length) and times difficulty (the fit uses these).
_DIFFICULTY_MOMENTS = (-0.05704, 1.48058, 23.31777)
_GAMED_MOMENTS = (0.35081, 1.46937, -0.11347, 0.25647)


def are_official_tables(difficulty_I: Array, gamed: Gamed) -> bool:
    """Whether these are the leaderboard's difficulties and gamed rows, to three digits."""
    if len(difficulty_I) != INSTRUCTIONS or len(gamed.length_R) != 2 * INSTRUCTIONS:
        return False
    p_R, length_R = gamed.preference_R, gamed.length_R
    moments = (
        float(difficulty_I.mean()),
        float(difficulty_I.std()),
        float(np.arange(INSTRUCTIONS) @ difficulty_I) / INSTRUCTIONS,
    )
    of_gamed = (length_R.mean(), length_R.std(), (p_R * np.tanh(length_R)).mean(), (p_R * gamed.difficulty_R).mean())
    return np.allclose(moments, _DIFFICULTY_MOMENTS, 1e-3, 1e-3) and np.allclose(of_gamed, _GAMED_MOMENTS, 1e-3, 1e-3)


@dataclass(frozen=True, slots=True)
class Weights:
    """The three coefficients of a length-controlled win rate."""

    length: float
    difficulty: float
    constant: float


def read_outputs(path: Path) -> tuple[Output, ...]:
    """A model's outputs, in the order of the file. Raises `UserError` for a repeated instruction or a second model."""
    rows = require_unique(read_rows(path), "instruction")
    generator = one_value(rows, "generator") or path.parent.name
    return tuple(
        Output(
            instruction=row.text("instruction"),
            output=row.text("output"),
            dataset=str(row.fields.get("dataset") or ""),
            generator=generator,
        )
        for row in rows
    )


def read_annotations(path: Path, order: Mapping[str, int] | None = None) -> tuple[Annotations, ...]:
    """The annotations of every model in ``path``.

    A row's number is its ``index`` or ``row`` field, else the place of its instruction in ``order``, else its place in
    the file as upstream numbers rows (a gap shifts all rows after it). In upstream's layout
    ``results/MODEL/JUDGE/annotations.json`` the folder names the model, because the field in the file can be wrong.
    Raises `UserError` for a field that is missing or out of range.
    """
    models = group_by_name(read_rows(path), "model", "generator_2", default=path.stem)
    in_results = path.name == "annotations.json" and path.parent.parent.parent.name == "results"
    folder = path.parent.parent.name if in_results and len(models) == 1 else None
    return tuple(_annotations(model, found, folder, order) for model, found in models.items())


def _annotations(model: str, rows: Sequence[Row], folder: str | None, order: Mapping[str, int] | None) -> Annotations:
    for name in ("index", "row", "instruction"):
        require_everywhere(rows, name)
    modes = Counter(str(row.fields["mode"]) for row in rows if row.has("mode"))
    numbers = [_row_number(row, place, order) for place, row in enumerate(rows)]
    fix = "keep one row for each model and instruction"
    require_one_row(zip(numbers, rows, strict=True), "index", fix)
    instructions = [(row.text("instruction"), row) for row in rows if row.has("instruction")]
    require_one_row(instructions, "instruction", fix)
    return Annotations(
        model=folder or model,
        baseline=one_value(rows, "generator_1"),
        mode=" and ".join(sorted(modes)) or "as stored",
        rows=tuple(
            Annotation(
                row=number,
                preference=_share(row),
                baseline_chars=_chars(row, "len_1", "output_1"),
                model_chars=_chars(row, "len_2", "output_2"),
                refused=row.fields.get("outcome") == "refused",
                instruction=row.text("instruction") if row.has("instruction") else None,
            )
            for number, row in zip(numbers, rows, strict=True)
        ),
        differing_name=model if folder not in (None, model) else None,
        by_place=order is None and not any(row.has("index") or row.has("row") for row in rows),
        judge=one_value(rows, "annotator"),
        official_prompts=_are_official(rows, numbers),
    )


def _are_official(rows: Sequence[Row], numbers: Sequence[int]) -> bool:
    """Whether these are the leaderboard's instructions, each with its number."""
    in_order = [row for _, row in sorted(zip(numbers, rows, strict=True), key=lambda each: each[0])]
    if sorted(numbers) != list(range(INSTRUCTIONS)):
        return False
    if all(row.has("instruction") for row in rows):
        return _digest(row.text("instruction") for row in in_order) == _INSTRUCTIONS_SHA256
    return _digest(str(_chars(row, "len_1", "output_1")) for row in in_order) == _LENGTHS_SHA256


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()


def _row_number(row: Row, place: int, order: Mapping[str, int] | None) -> int:
    for name in ("index", "row"):
        if row.has(name):
            number = row.integer(name)
            if number < 0:
                raise row.error(name, f"is {number}", "count instructions from 0")
            return number
    if order is None:
        return place
    instruction = row.text("instruction")
    if instruction not in order:
        raise row.error(
            "instruction", "is not in the reference outputs", "name the reference these were judged against"
        )
    return order[instruction]


def _share(row: Row) -> float | None:
    require_field(row, "preference", "give 1 (baseline) to 2 (model), or null")
    if row.optional_number("preference") == 0:
        return 0.5
    value = score_on_scale(row, "preference", 1, 2)
    require_no_verdict(row, "preference", value)
    return None if value is None else value - 1


def _chars(row: Row, counted: str, written: str) -> int:
    if not row.has(counted):
        return len(row.text(written))
    count = row.integer(counted)
    if count < 0:
        raise row.error(counted, f"is {count}", "give the number of characters")
    return count


def read_difficulty(path: Path) -> Array:
    """The difficulty of every instruction, by its number: ``instruction_difficulty.csv``."""
    rows = read_rows(path)
    require_one_row(((row.integer("index", ""), row) for row in rows), "index", "name upstream's table")
    by_index = {row.integer("index", ""): _coefficient(row, "instruction_difficulty") for row in rows}
    if sorted(by_index) != list(range(len(by_index))):
        raise rows[0].error("index", "isn't numbered 0, 1, 2 …", "name upstream's table")
    return np.array([by_index[i] for i in range(len(by_index))])


def read_gamed(path: Path) -> Gamed:
    """Upstream's ``df_gamed.csv``: rows that fit the length coefficient to the baseline's own length effect."""
    rows = read_rows(path)
    columns = ("preference", "std_delta_len", "instruction_difficulty")
    preference, length, difficulty = (np.array([_coefficient(row, name) for row in rows]) for name in columns)
    if preference.min() < 0 or preference.max() > 1:
        raise rows[0].error("preference", "is not between 0 and 1 in every row", "name upstream's table")
    return Gamed(preference, length, difficulty)


_LARGEST_COEFFICIENT = 1e3
# Upstream's weight table has an unnamed first column and the terms of the formula as names.
_LENGTH = ("w_len", "np.tanh(std_delta_len)")
_DIFFICULTY = ("w_difficulty", "instruction_difficulty")
_CONSTANT = ("w_const", "not_gamed_baseline.astype(float)")


def read_weights(path: Path) -> dict[str, Weights]:
    """The weights of every model of a leaderboard's table."""
    rows = require_unique(
        [Row(row.where, {"model": row.text("model", ""), **row.fields}) for row in read_rows(path)], "model"
    )
    return {
        row.text("model"): Weights(*(_coefficient(row, *names) for names in (_LENGTH, _DIFFICULTY, _CONSTANT)))
        for row in rows
    }


def _coefficient(row: Row, *names: str) -> float:
    """A number of the regression. Raises `UserError` for one that is out of all proportion: upstream's are below 10."""
    value = row.number(*names)
    if abs(value) > _LARGEST_COEFFICIENT:
        raise row.error(names[0], f"is {value:g}", "name upstream's table")
    return value
