"""MT-Bench's files, in the formats of the public repository lm-sys/FastChat (fastchat/llm_judge), and its scores.

``question.jsonl`` (two turns each), ``reference_answer/gpt-4.jsonl`` (for math, reasoning and coding),
``model_answer/MODEL.jsonl``, ``judge_prompts.jsonl``, and the judgments of single-answer grading. The judge's messages
equal FastChat's byte for byte: turn 1 is graded on the whole question, turn 2 on both turns of the conversation.

Scores are means overall, per turn, per category, and per category and turn. The overall score is the mean over all
readable scores, not of the two turns' means. Unreadable scores are excluded and counted. Repeated rows enter the means
again, as upstream, and are counted.
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
from metareward.method.stats import mean_or_none
from metareward.method.template import fill
from metareward.types import Message, Messages

Turns = tuple[str, str]


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
    questions = (Question(_id(row), row.text("category"), _two(row, row.items("turns"))) for row in read_rows(path))
    return {question.id: question for question in questions}


def _id(row: Row) -> int:
    return int(row.number("question_id"))


def _two(row: Row, turns: object) -> Turns:
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
        raise row.error("turns", "are not two texts", "give both turns")
    return (turns[0], turns[1])


def read_answers(path: Path) -> dict[str, dict[int, Turns]]:
    """The two answers to each question, by model and question; the last of repeated ones, as upstream."""
    found: dict[str, dict[int, Turns]] = {}
    for row in read_all_rows(path):
        turns = _two(row, row.rows("choices")[0].fields.get("turns"))
        found.setdefault(row.text("model_id"), {})[_id(row)] = turns
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


def read_grades(path: Path) -> tuple[Grade, ...]:
    """The judgments of a file, or of a folder's ``.jsonl`` files. A stored score of -1 means unreadable."""
    grades = []
    for row in read_all_rows(path):
        turn, score = int(row.number("turn")), row.optional_number("score")
        if turn not in (1, 2):
            raise row.error("turn", f"is {turn}", "give 1 or 2")
        readable = None if score is None or score < 0 else score
        refused = row.fields.get("outcome") == "refused"
        grades.append(Grade(_id(row), row.text("model"), turn, readable, refused))
    return tuple(grades)


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
            return float(found[1])
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
    n_repeated: int


def evaluate(grades: Sequence[Grade], questions: Mapping[int, Question] | None = None) -> tuple[MtBenchScore, ...]:
    """The score of each model, the best first. ``questions`` are needed for categories and missing turns."""
    models = dict.fromkeys(grade.model for grade in grades)
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
        },
        n_valid=len(grades) - len(unread),
        n_failed=sum(not grade.refused for grade in unread),
        n_refused=sum(grade.refused for grade in unread),
        n_missing=sum((question, turn) not in judged for question in questions for turn in (1, 2)),
        n_repeated=len(grades) - len(judged),
    )


def _means(grades: Sequence[Grade]) -> tuple[float | None, float | None, float | None]:
    """Of all readable scores, of the first turns' and of the second turns'."""
    every, first, second = (
        mean_or_none([grade.score for grade in grades if grade.score is not None and grade.turn in turns])
        for turns in ((1, 2), (1,), (2,))
    )
    return every, first, second
