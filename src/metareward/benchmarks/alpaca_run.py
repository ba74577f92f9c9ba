"""AlpacaEval 2 from named files to results: stored annotations alone, or outputs that a judge annotates first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metareward.benchmarks.alpaca import AlpacaResult, evaluate
from metareward.benchmarks.alpaca_files import (
    Annotations,
    Output,
    Weights,
    read_annotations,
    read_difficulty,
    read_gamed,
    read_outputs,
    read_weights,
)
from metareward.benchmarks.alpaca_judge import annotate
from metareward.benchmarks.asking import Desk, Door
from metareward.benchmarks.label_judge import load_label_prompt
from metareward.benchmarks.lc_win_rate import LengthControlled, predicted
from metareward.errors import UserError
from metareward.rundir import write_atomic


@dataclass(frozen=True, slots=True)
class AlpacaFiles:
    """Where everything is. ``prompt`` is the judge's, ``reference`` the baseline's outputs.

    Rows are counted by place, as upstream counts them; ``by_instruction`` takes their numbers from the reference.
    """

    annotations: tuple[Path, ...]
    outputs: Path | None = None
    reference: Path | None = None
    difficulty: Path | None = None
    gamed: Path | None = None
    prompt: Path | None = None
    by_instruction: bool = False


def results(files: AlpacaFiles) -> tuple[AlpacaResult, ...]:
    """The numbers of every model in the annotation files. Raises `UserError` for files that don't fit each other."""
    if files.gamed is not None and files.difficulty is None:
        raise UserError("--gamed: needs --difficulty; fix: give both of upstream's tables, or neither")
    if files.by_instruction and files.reference is None:
        raise UserError("--by-instruction: needs --reference, whose order counts")
    reference = read_outputs(files.reference) if files.reference else ()
    order = {output.instruction: i for i, output in enumerate(reference)} if files.by_instruction else None
    models = tuple(each for path in files.annotations for each in read_annotations(path, order))
    return evaluate(
        models,
        difficulty=read_difficulty(files.difficulty) if files.difficulty else None,
        gamed=read_gamed(files.gamed) if files.gamed else None,
        instructions=len(reference) or None,
        chars=_chars(models, read_outputs(files.outputs)) if files.outputs else None,
    )


def _chars(models: Sequence[Annotations], outputs: Sequence[Output]) -> dict[str, list[int]]:
    """The lengths of the outputs, under the name of the model they belong to."""
    lengths = [len(output.output) for output in outputs]
    if len(models) == 1:
        return {models[0].model: lengths}
    return {output.generator: lengths for output in outputs[:1]}


def published(weights: Path, difficulty: Path) -> dict[str, LengthControlled]:
    """The length-controlled win rate that every model's published weights stand for, in the file's order."""
    hard_I = read_difficulty(difficulty)
    found: dict[str, Weights] = read_weights(weights)
    return {model: predicted(each, hard_I) for model, each in found.items()}


async def annotated(files: AlpacaFiles, door: Door) -> Path:
    """The judge's annotations of ``outputs``, written where ``annotations`` says; what it answered is kept beside them.

    Raises `UserError` when a file that this takes isn't named.
    """
    if files.outputs is None or files.reference is None or files.prompt is None or len(files.annotations) != 1:
        raise UserError(
            "--judge-engine: needs --outputs, --reference (the baseline's outputs), --prompt, "
            "and one --annotations, the file to write"
        )
    (path,) = files.annotations
    baseline, outputs = read_outputs(files.reference), read_outputs(files.outputs)
    prompt = load_label_prompt(files.prompt)

    async def work(desk: Desk) -> tuple[dict[str, object], ...]:
        return await annotate(desk, prompt, baseline, outputs)

    rows = await door.at_desk(path.with_suffix(".sqlite"), work)
    if not rows:
        raise UserError(
            f"{files.outputs}: answers none of the reference's instructions; fix: name outputs to the same ones"
        )
    write_atomic(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return path
