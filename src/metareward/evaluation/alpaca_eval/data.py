"""The files of AlpacaEval 2, in the formats of the public repository tatsu-lab/alpaca_eval.

``model_outputs.json``; ``annotations.json`` (``_1`` is the baseline, ``_2`` the evaluated model; preference 1 is the
baseline's, 2 the model's, 1.5 or the older 0 a draw); the two tables of the length-controlled win rate; the published
weights. A CSV with ``preference``, ``len_1`` and ``len_2`` is enough for all numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metareward.data.files import Row, group_by, read_rows, require_unique

Array = NDArray[np.float64]

BASELINE = "gpt4_1106_preview"


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
    (``refused``) missing.
    """

    row: int
    preference: float | None
    baseline_chars: int
    model_chars: int
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Annotations:
    """All comparisons of one model. ``baseline`` is None where the file doesn't name it.

    ``mode`` says how preferences were read, if known; ``differing_name`` is the model's name in the file if the folder
    has another; ``by_place``: rows were numbered by their place in the file.
    """

    model: str
    baseline: str | None
    mode: str
    rows: tuple[Annotation, ...]
    differing_name: str | None = None
    by_place: bool = False


@dataclass(frozen=True, slots=True)
class Gamed:
    """Upstream's rows of the baseline made verbose and concise: preference, scaled length difference, difficulty."""

    preference_R: Array
    length_R: Array
    difficulty_R: Array


@dataclass(frozen=True, slots=True)
class Weights:
    """The three coefficients of a length-controlled win rate."""

    length: float
    difficulty: float
    constant: float


def read_outputs(path: Path) -> tuple[Output, ...]:
    """A model's outputs, in the order of the file. Raises `UserError` for a repeated instruction."""
    return tuple(
        Output(
            instruction=row.text("instruction"),
            output=row.text("output"),
            dataset=str(row.fields.get("dataset") or ""),
            generator=row.text("generator") if row.has("generator") else path.parent.name,
        )
        for row in require_unique(read_rows(path), "instruction")
    )


def read_annotations(path: Path, order: Mapping[str, int] | None = None) -> tuple[Annotations, ...]:
    """The annotations of every model in ``path``.

    A row's number is its ``index`` or ``row`` field, else the place of its instruction in ``order``, else its place in
    the file as upstream numbers rows (a gap shifts all rows after it). In upstream's layout
    ``results/MODEL/JUDGE/annotations.json`` the folder names the model, because the field in the file can be wrong.
    Raises `UserError` for a field that is missing or out of range.
    """
    unnamed = {"model": path.stem}
    rows = [
        row if row.has("model") or row.has("generator_2") else Row(row.where, {**row.fields, **unnamed})
        for row in read_rows(path)
    ]
    models = group_by(rows, "model", "generator_2")
    in_results = path.name == "annotations.json" and path.parent.parent.parent.name == "results"
    folder = path.parent.parent.name if in_results and len(models) == 1 else None
    return tuple(_annotations(model, found, folder, order) for model, found in models.items())


def _annotations(model: str, rows: Sequence[Row], folder: str | None, order: Mapping[str, int] | None) -> Annotations:
    modes = Counter(str(row.fields["mode"]) for row in rows if row.has("mode"))
    baseline = rows[0].text("generator_1") if rows[0].has("generator_1") else None
    return Annotations(
        model=folder or model,
        baseline=baseline,
        mode=" and ".join(sorted(modes)) or "as stored",
        rows=tuple(
            Annotation(
                row=_row_number(row, place, order),
                preference=_share(row),
                baseline_chars=_chars(row, "len_1", "output_1"),
                model_chars=_chars(row, "len_2", "output_2"),
                refused=row.fields.get("outcome") == "refused",
            )
            for place, row in enumerate(rows)
        ),
        differing_name=model if folder not in (None, model) else None,
        by_place=order is None and not any(row.has("index") or row.has("row") for row in rows),
    )


def _row_number(row: Row, place: int, order: Mapping[str, int] | None) -> int:
    for name in ("index", "row"):
        if row.has(name):
            return int(row.number(name))
    if order is None:
        return place
    instruction = row.text("instruction")
    if instruction not in order:
        raise row.error(
            "instruction", "is not in the reference outputs", "name the reference these were judged against"
        )
    return order[instruction]


def _share(row: Row) -> float | None:
    value = row.optional_number("preference")
    if value is None:
        return None
    if value == 0:
        return 0.5
    if not 1 <= value <= 2:
        raise row.error("preference", f"is {value:g}", "give a number from 1 (baseline) to 2 (model), or null")
    return value - 1


def _chars(row: Row, counted: str, written: str) -> int:
    return int(row.number(counted)) if row.has(counted) else len(row.text(written))


def read_difficulty(path: Path) -> Array:
    """The difficulty of every instruction, by its number: ``instruction_difficulty.csv``."""
    rows = read_rows(path)
    by_index = {int(row.number("index", "")): row.number("instruction_difficulty") for row in rows}
    if sorted(by_index) != list(range(len(by_index))):
        raise rows[0].error("index", "isn't numbered 0, 1, 2 …", "name upstream's table")
    return np.array([by_index[i] for i in range(len(by_index))])


def read_gamed(path: Path) -> Gamed:
    """Upstream's ``df_gamed.csv``: rows that fit the length coefficient to the baseline's own length effect."""
    rows = read_rows(path)
    columns = ("preference", "std_delta_len", "instruction_difficulty")
    preference, length, difficulty = (np.array([row.number(name) for row in rows]) for name in columns)
    if preference.min() < 0 or preference.max() > 1:
        raise rows[0].error("preference", "is not between 0 and 1 in every row", "name upstream's table")
    return Gamed(preference, length, difficulty)


# Upstream's weight table has an unnamed first column and the terms of the formula as names.
_LENGTH = ("w_len", "np.tanh(std_delta_len)")
_DIFFICULTY = ("w_difficulty", "instruction_difficulty")
_CONSTANT = ("w_const", "not_gamed_baseline.astype(float)")


def read_weights(path: Path) -> dict[str, Weights]:
    """The weights of every model of a leaderboard's table."""
    return {
        row.text("model", ""): Weights(row.number(*_LENGTH), row.number(*_DIFFICULTY), row.number(*_CONSTANT))
        for row in read_rows(path)
    }
