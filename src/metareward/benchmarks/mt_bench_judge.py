"""A judge of one's own for MT-Bench: every answer's two turns graded, and judgments in upstream's format.

Temperature 0, at most 2048 tokens. A judgment that the token limit cut off may hold no score; then it has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from metareward.benchmarks.asking import Asked, Desk, ask, kept_text
from metareward.benchmarks.mt_bench_files import GradingPrompts, Question, Turns
from metareward.benchmarks.mt_bench_prompts import prompt_name, question_about, read_score
from metareward.seeds import derive
from metareward.types import Prompt, Sampling

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
    turns = [
        _Turn(model, questions[number], turn)
        for model, answers in models.items()
        for number in answers
        if number in questions
        for turn in (1, 2)
    ]
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
        (written,) = await desk.engine.complete(prompt.messages, sampling, 1)
        return {"judgment": kept_text(written)}

    asked = await ask(desk, asked_about, work, {"prompt": prompts.sha256})
    return tuple(_row(each, prompt, desk.judge, asked) for each, prompt in zip(turns, asked_about, strict=True))


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn of one model's answer to a question."""

    model: str
    question: Question
    turn: int

    @property
    def id(self) -> str:
        return f"{self.model} on {self.question.id}, turn {self.turn}"


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
