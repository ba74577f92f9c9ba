"""Scripted models, whose text is a function of the messages and the seed, with prompts and settings for them."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from metareward.data.ranked import RankedAnswer, RankedPrompt, RankedSet
from metareward.data.seed_sets import SeedSettings
from metareward.engines.base import ScriptedEngine
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
    """One of a few texts for each role, by a hash of the messages, the seed and the sample number."""
    request = repr((messages, sampling.seed, index)).encode()
    draw = int.from_bytes(hashlib.sha256(request).digest()[:4], "big")
    choices = {"actor": ANSWERS, "judge": SCORES, "meta": VERDICTS}[role_of(messages)]
    text = choices[draw % len(choices)]
    return text if role_of(messages) == "actor" else f"Thought {draw}.\n{text}"


class SlowEngine:
    """A scripted engine that takes ``seconds`` for each request, and more for some."""

    def __init__(self, seconds: float, engine: ScriptedEngine | None = None) -> None:
        self.engine = engine or ScriptedEngine(reply)
        self.seconds = seconds
        self.in_flight = 0
        self.max_in_flight = 0

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds * (1 + sampling.seed % 3))
            return await self.engine.complete(messages, sampling, n, role)
        finally:
            self.in_flight -= 1

    async def aclose(self) -> None:
        pass


async def open_slow(seconds: float, settings: object, folder: Path, logs: Path) -> SlowEngine:
    """A `SlowEngine` in place of the one that the settings name: for replicas on a Ray cluster."""
    return SlowEngine(seconds)


def here() -> Path:
    """This folder, for processes that import from it."""
    return Path(__file__).parent


QUALITIES = ((5, 3), (4, 1, 2), (0, 5), (2, 4, 5), (3, 3, 1))


def ranked(number: int) -> RankedPrompt:
    """A prompt with two or three answers, better ones with the lower rank."""
    qualities = QUALITIES[number % len(QUALITIES)]
    better = sorted(set(qualities), reverse=True)
    answers = tuple(RankedAnswer(f"Answer of quality {q} to {number}.", better.index(q)) for q in qualities)
    return RankedPrompt(Prompt(f"p{number:03d}", (Message("user", f"What is thing {number}?"),)), answers, "en")


def ranked_set(count: int) -> RankedSet:
    return RankedSet(tuple(ranked(number) for number in range(count)), {})


def seed_settings(n: int = 3, seed: int = 7) -> SeedSettings:
    sampling = Sampling(temperature=0.8, top_p=0.95, max_tokens=64)
    rubric, metarubric = Rubric.load("judge"), MetaRubric.load("metajudge")
    annotation = AnnotationSettings(1, n, sampling, sampling, sampling, rubric, metarubric, 1, False, seed)
    return SeedSettings(annotation, seed)


def rank_reply(messages: Messages, sampling: Sampling, i: int) -> str:
    """The right score in three of five cases, else one too high, or an unreadable one."""
    (quality,) = re.findall(r"Answer of quality (\d)", messages[-1].content)
    draw = hashlib.sha256(repr((messages, sampling.seed, i)).encode()).digest()[0] % 5
    score = ("five", min(int(quality) + 1, 5), quality, quality, quality)[draw]
    return f"I have read it ({draw}).\nScore: {score}"
