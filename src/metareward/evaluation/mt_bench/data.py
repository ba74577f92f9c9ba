"""MT-Bench's files, in the formats of the public repository lm-sys/FastChat (fastchat/llm_judge), and its scores.

``question.jsonl`` (two turns each), ``reference_answer/gpt-4.jsonl`` (for math, reasoning and coding),
``model_answer/MODEL.jsonl``, ``judge_prompts.jsonl``, and the judgments of single-answer grading. The judge's messages
equal FastChat's byte for byte: turn 1 is graded on the whole question, turn 2 on both turns of the conversation.

Scores are means overall, per turn, per category, and per category and turn. The overall score is the mean over all
readable scores, not of the two turns' means. Unreadable scores are excluded and counted. Upstream lets a repeated row
enter the means again; here it is an error.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metareward.data.files import Row, read_all_rows, read_rows, read_text
from metareward.errors import UserError
from metareward.evaluation.input_checks import (
    group_by_name,
    one_value,
    require_field,
    require_known,
    require_no_verdict,
    require_one_row,
    score_on_scale,
)
from metareward.evaluation.judges import is_refusal
from metareward.method.stats import mean_or_none
from metareward.method.template import fill
from metareward.types import Message, Messages

Turns = tuple[str, str]

SCALE = (0.0, 10.0)  # the judge is asked for 1 to 10; upstream counts a 0 as well
UNREADABLE = -1
# What is published: its judge, and both turns of its 80 questions.
_JUDGE, _IDS = "gpt-4", range(81, 161)
_TURNS = 2 * len(_IDS)


@dataclass(frozen=True, slots=True)
class Question:
    """One question of two turns."""

    id: int
    category: str
    turns: Turns


@dataclass(frozen=True, slots=True)
class Grade:
    """One judgment of one turn. ``score`` is None if unreadable; ``refused``: the judge didn't answer."""

    question: int
    model: str
    turn: int
    score: float | None
    refused: bool = False
    judge: str | None = None


@dataclass(frozen=True, slots=True)
class GradingPrompt:
    """One of the judge's prompts: the system message and the template of the user message."""

    name: str
    system: str
    template: str


@dataclass(frozen=True, slots=True)
class GradingPrompts:
    """All prompts of a file by name, and the file's SHA-256."""

    by_name: dict[str, GradingPrompt]
    sha256: str


def read_questions(path: Path) -> dict[int, Question]:
    """The questions by id. Raises `UserError` for a question without two turns."""
    rows = read_rows(path)
    require_one_row(((_id(row), row) for row in rows), "question_id", "keep one question to an id")
    questions = (Question(_id(row), row.text("category"), _two(row, row.items("turns"))) for row in rows)
    return {question.id: question for question in questions}


def _id(row: Row) -> int:
    return row.integer("question_id")


def _two(row: Row, turns: object) -> Turns:
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
        raise row.error("turns", "are not two texts", "give both turns")
    return (turns[0], turns[1])


def read_answers(path: Path) -> dict[str, dict[int, Turns]]:
    """The two answers to each question, by model and question. Raises `UserError` for a second one."""
    found: dict[str, dict[int, Turns]] = {}
    rows = read_all_rows(path)
    keyed = (((row.text("model_id"), _id(row)), row) for row in rows)
    require_one_row(keyed, "question_id", "keep one answer of each model to a question")
    for model, own in group_by_name(rows, "model_id").items():
        found[model] = {_id(row): _two(row, row.first("choices").fields.get("turns")) for row in own}
    return found


def read_references(path: Path) -> dict[int, Turns]:
    """The reference answers of a file, by question."""
    return {question: turns for answers in read_answers(path).values() for question, turns in answers.items()}


def read_prompts(path: Path) -> GradingPrompts:
    """The judge's prompts."""
    rows = read_rows(path)
    prompts = [GradingPrompt(row.text("name"), row.text("system_prompt"), row.text("prompt_template")) for row in rows]
    digest = hashlib.sha256(read_text(path).encode()).hexdigest()
    return GradingPrompts({prompt.name: prompt for prompt in prompts}, digest)


def read_grades(path: Path, questions: Mapping[int, Question] | None = None) -> tuple[Grade, ...]:
    """The judgments of a file, or of a folder's ``.jsonl`` files. A stored score of -1 means unreadable.

    Raises `UserError` for a score off the scale, a repeated turn, a model with two judges, and, where ``questions`` are
    given, a question that is not among them.
    """
    rows, grades = read_all_rows(path), []
    for row in rows:
        turn = row.integer("turn")
        if turn not in (1, 2):
            raise row.error("turn", f"is {turn}", "give 1 or 2")
        require_field(row, "score", "give a grade from 0 to 10, or -1 or null if it is unreadable")
        unreadable = row.optional_number("score") == UNREADABLE
        score = None if unreadable else score_on_scale(row, "score", *SCALE)
        if questions:
            require_known(row, "question_id", _id(row), questions, "the questions")
        require_no_verdict(row, "score", score)
        declined = score is None and is_refusal(str(row.fields.get("judgment") or ""))
        refused = declined or row.fields.get("outcome") == "refused"
        grades.append(Grade(_id(row), row.text("model"), turn, score, refused, _judge(row)))
    keyed = zip(((each.model, each.question, each.turn) for each in grades), rows, strict=True)
    require_one_row(keyed, "question_id", "keep one judgment of each model's turn")
    for those in group_by_name(rows, "model").values():
        one_value([Row(row.where, {**row.fields, "judge": _judge(row)}) for row in those], "judge")
    return tuple(grades)


def _judge(row: Row) -> str | None:
    """Upstream stores ``[name, prompt]``; the prompt differs by category and turn."""
    judge = row.fields.get("judge")
    name = judge[0] if isinstance(judge, list) and judge else judge
    if name is not None and not isinstance(name, str):
        raise row.error("judge", "is no name", "give a name, or a list of the judge's and the prompt's")
    return name


WITH_REFERENCE = ("math", "reasoning", "coding")

_SCORES = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def prompt_name(category: str, turn: int) -> str:
    """The name of the judge's prompt for this turn."""
    kind = "single-math-v1" if category in WITH_REFERENCE else "single-v1"
    return kind if turn == 1 else f"{kind}-multi-turn"


def question_about(
    prompts: GradingPrompts, question: Question, answer: Turns, reference: Turns | None, turn: int
) -> Messages:
    """The judge's messages about one turn. Raises `UserError` when the prompt or a needed reference is missing."""
    name = prompt_name(question.category, turn)
    if name not in prompts.by_name:
        raise UserError(f"the judge's prompts lack {name!r}; fix: name FastChat's judge_prompts.jsonl")
    prompt = prompts.by_name[name]
    if question.category in WITH_REFERENCE and reference is None:
        raise UserError(f"question {question.id} ({question.category}) has no reference answer; fix: add --references")
    slots = {"question": question.turns[0], "answer": answer[0]}
    for number in (1, 2):
        slots[f"question_{number}"] = question.turns[number - 1]
        slots[f"answer_{number}"] = answer[number - 1]
        slots[f"ref_answer_{number}"] = reference[number - 1] if reference else ""
    return (Message("system", prompt.system), Message("user", fill(prompt.template, slots)))


def read_score(text: str) -> float | None:
    """The score in the judge's text: the first ``[[8.5]]``, else the first ``[8.5]``; None without either."""
    for pattern in _SCORES:
        found = pattern.search(text)
        if found:
            score = float(found[1])
            return score if score <= SCALE[1] else None
    return None


# --- scores ---


@dataclass(frozen=True, slots=True)
class CategoryScore:
    """The means of one category; None without a readable score."""

    average: float | None
    turn1: float | None
    turn2: float | None
    n_valid: int


@dataclass(frozen=True, slots=True)
class MtBenchScore:
    """One model. ``n_missing`` counts turns of known questions without a judgment."""

    model: str
    average: float | None
    turn1: float | None
    turn2: float | None
    categories: Mapping[str, CategoryScore]
    n_valid: int
    n_failed: int
    n_refused: int
    n_missing: int
    caveats: tuple[str, ...] = ()


def evaluate(grades: Sequence[Grade], questions: Mapping[int, Question] | None = None) -> tuple[MtBenchScore, ...]:
    """The score of each model, the best first. ``questions`` are needed for categories and missing turns."""
    models = dict.fromkeys(grade.model for grade in grades)
    if questions is None:  # a turn that one model has is missing where another lacks it
        asked = {grade.question for grade in grades}
        questions = {number: Question(number, "", ("", "")) for number in asked}
    found = [_model(name, [grade for grade in grades if grade.model == name], questions or {}) for name in models]
    return tuple(sorted(found, key=lambda each: -1.0 if each.average is None else each.average, reverse=True))


def _model(name: str, grades: Sequence[Grade], questions: Mapping[int, Question]) -> MtBenchScore:
    judged = Counter((grade.question, grade.turn) for grade in grades)
    unread = [grade for grade in grades if grade.score is None]
    by_category: dict[str, list[Grade]] = {}
    for grade in grades:
        if grade.question in questions:
            by_category.setdefault(questions[grade.question].category, []).append(grade)
    return MtBenchScore(
        name,
        *_means(grades),
        categories={
            category: CategoryScore(*_means(those), sum(grade.score is not None for grade in those))
            for category, those in sorted(by_category.items())
            if category
        },
        n_valid=len(grades) - len(unread),
        n_failed=sum(not grade.refused for grade in unread),
        n_refused=sum(grade.refused for grade in unread),
        n_missing=sum((question, turn) not in judged for question in questions for turn in (1, 2)),
        caveats=_caveats(grades),
    )


def _caveats(grades: Sequence[Grade]) -> tuple[str, ...]:
    """What keeps the score from being comparable with published ones."""
    judged = sum(grade.score is not None for grade in grades)
    reasons = []
    if grades[0].judge != _JUDGE:
        reasons.append(f"judge {grades[0].judge or 'not named'}")
    if judged != _TURNS:
        reasons.append(f"{judged} of {_TURNS} turns")
    if any(grade.question not in _IDS for grade in grades):
        reasons.append("other questions")
    return (f"not comparable with published scores: {'; '.join(reasons)}",) if reasons else ()


def _means(grades: Sequence[Grade]) -> tuple[float | None, float | None, float | None]:
    """Of all readable scores, of the first turns' and of the second turns'."""
    every, first, second = (
        mean_or_none([grade.score for grade in grades if grade.score is not None and grade.turn in turns])
        for turns in ((1, 2), (1,), (2,))
    )
    return every, first, second
