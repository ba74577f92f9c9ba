"""MT-Bench from named files to results: stored judgments alone, or answers that a judge grades first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metareward.benchmarks.asking import Desk, Door
from metareward.benchmarks.mt_bench_files import (
    read_answers,
    read_grades,
    read_prompts,
    read_questions,
    read_references,
)
from metareward.benchmarks.mt_bench_judge import grade
from metareward.benchmarks.mt_bench_scores import MtBenchScore, evaluate
from metareward.errors import UserError
from metareward.rundir import json_lines, write_atomic


@dataclass(frozen=True, slots=True)
class MtBenchFiles:
    """Where everything is. ``prompts`` are the judge's."""

    judgments: Path
    questions: Path | None = None
    answers: Path | None = None
    references: Path | None = None
    prompts: Path | None = None


def results(files: MtBenchFiles) -> tuple[MtBenchScore, ...]:
    """The scores of every model; with questions, by category and with what is missing."""
    return evaluate(read_grades(files.judgments), read_questions(files.questions) if files.questions else None)


async def judged(files: MtBenchFiles, door: Door) -> Path:
    """The judge's grades of every model in ``answers``, written to ``judgments``; what it wrote is kept beside them.

    Raises `UserError` when a file that this takes isn't named.
    """
    if files.answers is None or files.questions is None or files.prompts is None:
        raise UserError(
            "--judge-engine: needs --answers, --questions, --prompts (judge_prompts.jsonl) and --references"
        )
    models, questions = read_answers(files.answers), read_questions(files.questions)
    references = read_references(files.references) if files.references else {}
    prompts = read_prompts(files.prompts)

    async def work(desk: Desk) -> tuple[dict[str, object], ...]:
        return await grade(desk, prompts, questions, references, models)

    rows = await door.at_desk(files.judgments.with_suffix(".sqlite"), work)
    if not rows:
        raise UserError(f"{files.answers}: answers none of the questions; fix: check the ids")
    write_atomic(files.judgments, json_lines(rows))
    return files.judgments
