"""A scripted model for the tests of annotation: its text is a function of the messages and the seed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

from metareward.engines.scripted import ScriptedEngine
from metareward.generation.annotate import AnnotationSettings
from metareward.method.judge import Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.types import Completion, Message, Messages, ModelRole, Prompt, Sampling

ANSWERS = ("Paris.", "It is Paris.", "Paris, I think.", "Lyon.", "I don't know.")
SCORES = ("Score: 0", "Score: 2", "Score: 3", "Score: 4.5", "Score: 5", "no idea")
VERDICTS = ("Winner: Judgment A", "Winner: Judgment B", "Winner: tie", "hard to say")


def settings(k: int = 4, n: int = 3, seed: int = 7, meta_judge: bool = True) -> AnnotationSettings:
    sampling = Sampling(temperature=0.8, top_p=0.95, max_tokens=64)
    rubric = Rubric.load("judge")
    metarubric = MetaRubric.load("metajudge")
    return AnnotationSettings(k, n, sampling, sampling, sampling, rubric, metarubric, 2, meta_judge, seed)


def prompt(number: int) -> Prompt:
    return Prompt(f"p{number:03d}", (Message("user", f"What is the capital of country {number}?"),))


def prompts(count: int) -> tuple[Prompt, ...]:
    return tuple(prompt(number) for number in range(count))


def role_of(messages: Messages) -> str:
    text = messages[-1].content
    return "meta" if "<judgment_a>" in text else "judge" if "<answer>" in text else "actor"


def reply(messages: Messages, sampling: Sampling, index: int) -> str:
    """One of a few texts for each role, by a hash of the question, the seed and the sample number."""
    asked = repr((messages, sampling.seed, index)).encode()
    draw = int.from_bytes(hashlib.sha256(asked).digest()[:4], "big")
    choices = {"actor": ANSWERS, "judge": SCORES, "meta": VERDICTS}[role_of(messages)]
    text = choices[draw % len(choices)]
    return text if role_of(messages) == "actor" else f"Thought {draw}.\n{text}"


class SlowEngine:
    """A scripted engine that takes ``seconds`` for each request, and more for some."""

    def __init__(self, seconds: float, engine: ScriptedEngine | None = None) -> None:
        self.engine = engine or ScriptedEngine(reply)
        self.seconds = seconds
        self.under_way = 0
        self.most_under_way = 0

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.seconds * (1 + sampling.seed % 3))
            return await self.engine.complete(messages, sampling, n, role)
        finally:
            self.under_way -= 1

    async def aclose(self) -> None:
        pass


def here() -> Path:
    """The folder of the tests, for processes that import from it."""
    return Path(__file__).parent
