"""MT-Bench from named files to results: stored judgments alone, or answers that a judge grades first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from metareward.errors import UserError
from metareward.evaluation.judges import Asked, Desk, Door, Grading, ask, kept_text
from metareward.evaluation.mt_bench.data import (
    GradingPrompts,
    Question,
    Turns,
    prompt_name,
    question_about,
    read_answers,
    read_grades,
    read_prompts,
    read_questions,
    read_references,
    read_score,
)
from metareward.evaluation.mt_bench.score import MtBenchScore, evaluate
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines
from metareward.types import Message, Messages, Prompt, Sampling

# --- A judge of one's own for MT-Bench: every answer's two turns graded, and judgments in upstream's format.
#
# Temperature 0, at most 2048 tokens. A judgment that the token limit cut off may hold no score; then it has none.


SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=2048)


async def grade(
    desk: Desk,
    prompts: GradingPrompts,
    questions: Mapping[int, Question],
    references: Mapping[int, Turns],
    models: Mapping[str, Mapping[int, Turns]],
) -> tuple[dict[str, object], ...]:
    """A row for every model and both turns of every question that it has answered.

    Raises `UserError` as `ask` does, or when a reference answer is missing.
    """
    turns = _turns(questions, models)
    asked_about = [
        Prompt(
            each.id,
            question_about(
                prompts,
                each.question,
                models[each.model][each.question.id],
                references.get(each.question.id),
                each.turn,
            ),
        )
        for each in turns
    ]

    async def work(prompt: Prompt) -> dict[str, object]:
        sampling = replace(SAMPLING, seed=derive(desk.seed, "mt-bench", prompt.id))
        (written,) = await desk.engine.complete(prompt.messages, sampling, 1, "judge")
        return {"judgment": kept_text(written)}

    asked = await ask(desk, asked_about, work, {"prompt": prompts.sha256})
    return tuple(_row(each, prompt, desk.judge, asked) for each, prompt in zip(turns, asked_about, strict=True))


async def grade_by_rubric(
    desk: Desk,
    grading: Grading,
    questions: Mapping[int, Question],
    models: Mapping[str, Mapping[int, Turns]],
) -> tuple[dict[str, object], ...]:
    """The same rows by a judge who knows only its rubric: a turn's score is the mean of N judgments, on their scale.

    It sees the conversation up to the turn, and no reference answer. Raises `UserError` as `ask` does.
    """
    turns = _turns(questions, models)
    asked_about = [_rubric_question(grading, each, models[each.model][each.question.id]) for each in turns]
    asked = await grading.asked(desk, asked_about)
    return tuple(_graded_row(each, prompt, desk.judge, asked) for each, prompt in zip(turns, asked_about, strict=True))


def _rubric_question(grading: Grading, each: _Turn, answers: Turns) -> Prompt:
    said: Messages = (Message("user", each.question.turns[0]),)
    if each.turn == 2:
        said = (*said, Message("assistant", answers[0]), Message("user", each.question.turns[1]))
    return Prompt(each.id, grading.rubric.render(Prompt(each.id, said), answers[each.turn - 1]))


def _graded_row(each: _Turn, prompt: Prompt, judge: str, asked: Asked) -> dict[str, object]:
    document = asked.documents.get(each.id)
    scores = [score for score in document["scores"] if score is not None] if document else []
    return {
        "question_id": each.question.id,
        "model": each.model,
        "judge": [judge, "rubric"],
        "user_prompt": prompt.messages[-1].content,
        "scores": document and document["scores"],
        "score": fmean(scores) if scores else -1,
        "turn": each.turn,
        "outcome": "refused" if document is None else "judged" if scores else "unparsable",
    }


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn of one model's answer to a question."""

    model: str
    question: Question
    turn: int

    @property
    def id(self) -> str:
        return f"{self.model} on {self.question.id}, turn {self.turn}"


def _turns(questions: Mapping[int, Question], models: Mapping[str, Mapping[int, Turns]]) -> list[_Turn]:
    return [
        _Turn(model, questions[number], turn)
        for model, answers in models.items()
        for number in answers
        if number in questions
        for turn in (1, 2)
    ]


def _row(each: _Turn, prompt: Prompt, judge: str, asked: Asked) -> dict[str, object]:
    document = asked.documents.get(each.id)
    judgment = None if document is None else str(document["judgment"])
    score = None if judgment is None else read_score(judgment)
    return {
        "question_id": each.question.id,
        "model": each.model,
        "judge": [judge, prompt_name(each.question.category, each.turn)],
        "user_prompt": prompt.messages[-1].content,
        "judgment": judgment,
        "score": -1 if score is None else score,
        "turn": each.turn,
        "outcome": "refused" if document is None else "judged" if score is not None else "unparsable",
    }


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
