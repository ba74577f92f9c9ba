"""The pocket world for a run: prompts, an oracle, and the folder of the packaged model."""

from __future__ import annotations

from pathlib import Path

from metareward.pocket.oracle import check_answer, judgment_errors
from metareward.pocket.tasks import draw_instructions
from metareward.types import Message, Prompt

MODEL = Path(__file__).parent / "model"


def prompts(count: int, seed: int, held_out: bool = False) -> tuple[Prompt, ...]:
    """``count`` different instructions, by ``seed``; held-out ones are disjoint from the others for all seeds."""
    name = "held-out" if held_out else "pocket"
    texts = draw_instructions(count, seed, held_out)
    return tuple(Prompt(f"{name}-{number:05d}", (Message("user", text),)) for number, text in enumerate(texts, 1))


class PocketOracle:
    """The ground truth about the pocket world (`metareward.evaluation.held_out.Oracle`)."""

    def answer_score(self, prompt: Prompt, answer: str) -> float:
        """The true score, 0..5."""
        return check_answer(prompt.messages[-1].content, answer).score

    def judgment_error(self, prompt: Prompt, answer: str, judgment: str, score: float) -> tuple[float, ...]:
        """The score's distance from the true score, then the number of wrong criteria."""
        return judgment_errors(check_answer(prompt.messages[-1].content, answer), judgment, score)
