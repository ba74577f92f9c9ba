"""Ranked answers that name their quality, and a judge that mostly reads it."""

from __future__ import annotations

import hashlib
import re

from metareward.data.ranked import RankedAnswer, RankedPrompt, RankedSet
from metareward.data.seed_sets import SeedSettings
from metareward.generation.annotate import AnnotationSettings
from metareward.method.judge import Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.types import Message, Messages, Prompt, Sampling

QUALITIES = ((5, 3), (4, 1, 2), (0, 5), (2, 4, 5), (3, 3, 1))


def ranked(number: int) -> RankedPrompt:
    """A prompt with two or three answers, better ones with the lower rank."""
    qualities = QUALITIES[number % len(QUALITIES)]
    better = sorted(set(qualities), reverse=True)
    answers = tuple(RankedAnswer(f"Answer of quality {q} to {number}.", better.index(q)) for q in qualities)
    return RankedPrompt(Prompt(f"p{number:03d}", (Message("user", f"What is thing {number}?"),)), answers, "en")


def ranked_set(count: int) -> RankedSet:
    return RankedSet(tuple(ranked(number) for number in range(count)), {})


def settings(n: int = 3, seed: int = 7) -> SeedSettings:
    sampling = Sampling(temperature=0.8, top_p=0.95, max_tokens=64)
    rubric, metarubric = Rubric.load("judge"), MetaRubric.load("metajudge")
    annotation = AnnotationSettings(1, n, sampling, sampling, sampling, rubric, metarubric, 1, False, seed)
    return SeedSettings(annotation, seed)


def reply(messages: Messages, sampling: Sampling, i: int) -> str:
    """The right score in three of five cases, else one too high, or an unreadable one."""
    (quality,) = re.findall(r"Answer of quality (\d)", messages[-1].content)
    draw = hashlib.sha256(repr((messages, sampling.seed, i)).encode()).digest()[0] % 5
    score = ("five", min(int(quality) + 1, 5), quality, quality, quality)[draw]
    return f"I have read it ({draw}).\nScore: {score}"
