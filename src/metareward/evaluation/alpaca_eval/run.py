"""AlpacaEval 2 from named files to results: stored annotations alone, or outputs that a judge annotates first."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.data import (
    Annotations,
    Output,
    Weights,
    read_annotations,
    read_difficulty,
    read_gamed,
    read_outputs,
    read_weights,
)
from metareward.evaluation.alpaca_eval.length_control import LengthControlled, win_rate_of_weights
from metareward.evaluation.alpaca_eval.score import AlpacaResult, evaluate
from metareward.evaluation.judges import (
    Desk,
    Door,
    FirstShare,
    LabelJudge,
    LabelPrompt,
    PairJudge,
    Shown,
    Unjudged,
    load_label_prompt,
)
from metareward.storage.atomic import write_atomic
from metareward.types import Message, Prompt

# --- Which of the two outputs the judge of AlpacaEval 2 is shown first: random, but decided by the instruction alone.
#
# Upstream draws ``Random("is_switched_outputs" + instruction + seed)`` with the annotator's seed, 0 on the leaderboard.


LEADERBOARD_SEED = 0


def model_first(instruction: str, seed: int = LEADERBOARD_SEED) -> bool:
    """Whether the evaluated model's output is shown first (as "m"), before the baseline's."""
    drawn = random.Random(f"is_switched_outputs{instruction}{seed}")
    return drawn.choices([False, True], k=1)[0]


def preference(first_share: float, model_was_first: bool) -> float:
    """The evaluated model's share of a preference whose first output got ``first_share``."""
    return first_share if model_was_first else 1 - first_share


# --- A judge of one's own for AlpacaEval 2: every output against the baseline's, and annotations in upstream's format.
#
# The judge is any of `metareward.evaluation.judges`. Identical outputs are not judged: they draw. What an engine
# answers is kept beside the annotations, so the same call again asks only what is owed. A row without a readable
# preference has null and says why in ``outcome``.


@dataclass(frozen=True, slots=True)
class Meeting:
    """The baseline's output and the model's to the same instruction, whose number is ``index``.

    ``prompt`` is what the judge sees of the instruction; its id is unique among the meetings.
    """

    index: int
    prompt: Prompt
    base: Output
    own: Output


def meetings(baseline: Sequence[Output], outputs: Sequence[Output]) -> tuple[Meeting, ...]:
    """One for every instruction of ``baseline`` that ``outputs`` answers, numbered and in order as there."""
    by_instruction = {output.instruction: output for output in outputs}
    return tuple(
        Meeting(index, _prompt(index, base.instruction), base, by_instruction[base.instruction])
        for index, base in enumerate(baseline)
        if base.instruction in by_instruction
    )


def _prompt(index: int, instruction: str) -> Prompt:
    return Prompt(str(index), (Message("user", instruction),))


async def annotate(
    desk: Desk, prompt: LabelPrompt, baseline: Sequence[Output], outputs: Sequence[Output]
) -> tuple[dict[str, object], ...]:
    """The annotations of the desk's judge, asked the benchmark's question. Raises `UserError` as `ask` does."""
    return await annotated_by(label_judge(desk, prompt), meetings(baseline, outputs))


def label_judge(desk: Desk, prompt: LabelPrompt) -> LabelJudge:
    """The judge of the benchmark."""
    return LabelJudge(desk, prompt, {"order": LEADERBOARD_SEED})


async def annotated_by(judge: PairJudge, met: Sequence[Meeting]) -> tuple[dict[str, object], ...]:
    """A row for every meeting, in their order. Raises `UserError` as the judge does."""
    shares = await judge.shares([_shown(each) for each in met if each.base.output != each.own.output])
    return tuple(_row(each, judge.name) | _told(each, shares.get(each.prompt.id)) for each in met)


def _shown(each: Meeting) -> Shown:
    base, own = each.base.output, each.own.output
    return Shown(each.prompt, *((own, base) if model_first(each.base.instruction) else (base, own)))


def _row(each: Meeting, judge: str) -> dict[str, object]:
    return {
        "index": each.index,
        "instruction": each.base.instruction,
        "dataset": each.base.dataset,
        "output_1": each.base.output,
        "generator_1": each.base.generator,
        "output_2": each.own.output,
        "generator_2": each.own.generator,
        "annotator": judge,
    }


def _told(each: Meeting, share: FirstShare | Unjudged | None) -> dict[str, object]:
    if share is None:
        return {"preference": 1.5, "outcome": "identical"}
    if not isinstance(share, FirstShare):
        return {"preference": None, "outcome": share}
    gained = preference(share.share, model_first(each.base.instruction))
    return {"preference": 1 + gained, "outcome": "judged", "mode": share.mode}


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
    return {model: win_rate_of_weights(each, hard_I) for model, each in found.items()}


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
