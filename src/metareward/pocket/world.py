"""The pocket world as a run sees it: prompts, an oracle, and the shipped model's folder."""

from __future__ import annotations

from pathlib import Path

from metareward.pocket.oracle import judgment_errors, mark
from metareward.pocket.tasks import draw_instructions
from metareward.types import Message, Prompt

MODEL = Path(__file__).parent / "model"


def prompts(count: int, seed: int, held_out: bool = False) -> tuple[Prompt, ...]:
    """``count`` different instructions, by ``seed``; held-out ones are never among the others, whatever the seed."""
    name = "held-out" if held_out else "pocket"
    texts = draw_instructions(count, seed, held_out)
    return tuple(Prompt(f"{name}-{number:05d}", (Message("user", text),)) for number, text in enumerate(texts, 1))


class PocketOracle:
    """The truth about the pocket world (`metareward.evaluation.Oracle`)."""

    def answer_score(self, prompt: Prompt, answer: str) -> float:
        """The true score, 0..5."""
        return mark(prompt.messages[-1].content, answer).score

    def judgment_error(self, prompt: Prompt, answer: str, judgment: str, score: float) -> tuple[float, ...]:
        """The score's distance from the truth, then the number of criteria called wrongly."""
        return judgment_errors(mark(prompt.messages[-1].content, answer), judgment, score)
