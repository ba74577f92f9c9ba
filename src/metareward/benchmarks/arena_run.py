"""Arena-Hard from named files to results: stored judgments alone, or answers that a judge compares first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metareward.benchmarks.arena import ROUNDS, ArenaResult, evaluate
from metareward.benchmarks.arena_files import by_model, read_answers, read_judge_prompt, read_judgments, read_questions
from metareward.benchmarks.arena_judge import judge_games
from metareward.benchmarks.arena_verdicts import Version
from metareward.benchmarks.asking import Desk, Door
from metareward.errors import UserError
from metareward.rundir import json_lines, write_atomic


@dataclass(frozen=True, slots=True)
class ArenaFiles:
    """Where everything is; ``answers`` hold the baseline's, too. ``baseline`` is a model's name."""

    judgments: Path
    version: Version
    baseline: str | None = None
    answers: Path | None = None
    questions: Path | None = None
    prompt: Path | None = None


def results(files: ArenaFiles, rounds: int = ROUNDS, style_rounds: int = 0, seed: int = 0) -> tuple[ArenaResult, ...]:
    """The numbers of every category; with answers, style control too."""
    matches = read_judgments(files.judgments, files.baseline, files.version)
    if not matches:
        raise UserError(
            f"{files.judgments}: only the baseline itself is in it; fix: name the judgments of other models"
        )
    answers = by_model(read_answers(files.answers)) if files.answers else {}
    return evaluate(matches, answers, files.version, rounds, style_rounds, seed)


async def judged(files: ArenaFiles, door: Door) -> Path:
    """The judge's games of every model in ``answers``, written to ``judgments``; what it wrote is kept beside them.

    Raises `UserError` when a file that this takes isn't named, or the baseline hasn't answered.
    """
    if files.answers is None or files.questions is None or files.prompt is None or files.baseline is None:
        raise UserError("--judge-engine: needs --answers, --questions, --prompt (judge_config.yaml) and --baseline")
    models = by_model(read_answers(files.answers))
    if files.baseline not in models:
        raise UserError(f"--baseline {files.baseline}: has no answers in {files.answers}; fix: add its file")
    baseline = models.pop(files.baseline)
    questions, prompt = read_questions(files.questions), read_judge_prompt(files.prompt)

    async def work(desk: Desk) -> tuple[dict[str, object], ...]:
        return await judge_games(desk, prompt, questions, baseline, models, files.version)

    rows = await door.at_desk(files.judgments.with_suffix(".sqlite"), work)
    if not rows:
        raise UserError(f"{files.answers}: no model answers a question that the baseline answers; fix: check the ids")
    write_atomic(files.judgments, json_lines(rows))
    return files.judgments
