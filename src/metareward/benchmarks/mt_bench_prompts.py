"""What the judge of MT-Bench is asked about one turn, byte for byte, and the score that it gives (FastChat, llm_judge).

Turn 1: the whole question in the user's message. Turn 2: the instructions in the system message, both turns of the
conversation in the user's, and the second answer is graded. In math, reasoning and coding the reference goes with it.
The score is the first ``[[8.5]]``, else the first ``[8.5]``.
"""

from __future__ import annotations

import re

from metareward.benchmarks.mt_bench_files import GradingPrompt, GradingPrompts, Question, Turns
from metareward.benchmarks.slots import fill
from metareward.errors import UserError
from metareward.types import Message, Messages

WITH_REFERENCE = ("math", "reasoning", "coding")

_SCORES = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def prompt_name(category: str, turn: int) -> str:
    """Which of the judge's prompts grades this turn."""
    kind = "single-math-v1" if category in WITH_REFERENCE else "single-v1"
    return kind if turn == 1 else f"{kind}-multi-turn"


def question_about(
    prompts: GradingPrompts, question: Question, answer: Turns, reference: Turns | None, turn: int
) -> Messages:
    """The judge's question. Raises `UserError` when the prompt or a needed reference is missing."""
    prompt = _prompt(prompts, prompt_name(question.category, turn))
    if question.category in WITH_REFERENCE and reference is None:
        raise UserError(f"question {question.id} ({question.category}) has no reference answer; fix: add --references")
    slots = {"question": question.turns[0], "answer": answer[0]}
    for number in (1, 2):
        slots[f"question_{number}"] = question.turns[number - 1]
        slots[f"answer_{number}"] = answer[number - 1]
        slots[f"ref_answer_{number}"] = reference[number - 1] if reference else ""
    return (Message("system", prompt.system), Message("user", fill(prompt.template, slots)))


def _prompt(prompts: GradingPrompts, name: str) -> GradingPrompt:
    if name not in prompts.by_name:
        raise UserError(f"the judge's prompts lack {name!r}; fix: name FastChat's judge_prompts.jsonl")
    return prompts.by_name[name]


def read_score(text: str) -> float | None:
    """The score in the judge's text, or None."""
    for pattern in _SCORES:
        found = pattern.search(text)
        if found:
            return float(found[1])
    return None
