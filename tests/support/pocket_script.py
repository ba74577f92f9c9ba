"""A scripted model of the pocket world: it answers well and badly, judges with errors, and can be told to misbehave."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from run_folders import model_folder

from metareward.config.schema import load_recipe
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pocket.tasks import parse_instruction
from metareward.pocket.world import check_answer
from metareward.storage.run_dir import RunDir
from metareward.types import Messages, Sampling

Reply = Callable[[Messages, Sampling, int], str]
Judging = Callable[[int, random.Random], str]
"""The end of a judgment of an answer with this true score."""
Comparing = Callable[[int, random.Random], str]
"""The name of the winner, A or B, if the first judgment is nearer to the truth by so many points."""

SMALL = (
    "prompts.held_out=40",
    "prompts.per_iteration=40",
    "answers.k=4",
    "judgments.n=4",
    "judgments.min_valid=2",
    "evaluation.judgments=4",
    "benchmarks=[]",
    "iterations.3=drop",
    "iterations.4=drop",
)


def careful(truth: int, draw: random.Random) -> str:
    return f"Score: {min(5, max(0, truth + draw.choice((-1, 0, 0, 0, 1))))}"


def fair(lead: int, draw: random.Random) -> str:
    return "AB"[draw.random() > (0.5 if lead == 0 else 0.8 if lead > 0 else 0.2)]


def scripted(judging: Judging = careful, comparing: Comparing = fair, skill: float = 0.3) -> Reply:
    """Text by the messages, the seed and the sample's number. ``skill``: the share of perfect answers."""

    def reply(messages: Messages, sampling: Sampling, index: int) -> str:
        text = messages[-1].content
        draw = random.Random(hashlib.sha256(repr((text, sampling.seed, index)).encode()).digest())
        if "Judgment A:" in text:
            return f"Winner: Judgment {comparing(_lead(text), draw)}"
        if "Judge kind" in text:
            return f"Read {draw.random():.3f}. {judging(_truth(text), draw)}"
        return _answer(text, draw, skill)

    return reply


def _answer(instruction: str, draw: random.Random, skill: float) -> str:
    items = list(parse_instruction(instruction).expected)
    if draw.random() < skill:
        return ", ".join(items)
    for fault in draw.sample(range(4), draw.randint(1, 3)):
        if fault == 0:
            items.append("brick")
        elif fault == 1 and len(items) > 1:
            items.pop(draw.randrange(len(items)))
        elif fault == 2:
            items.reverse()
        else:
            items[-1] += ". Have a very nice day."
    return ", ".join(items)


def _asked(text: str) -> tuple[str, str]:
    found = re.search(r"Question:\s*(.+?)\s*\nAnswer:\s*(.*?)\s*(?:\nJudgment A:|\Z)", text, re.DOTALL)
    assert found is not None, text
    return found[1], found[2]


@lru_cache(maxsize=10_000)
def _truth(text: str) -> int:
    return check_answer(*_asked(text)).score


def _lead(text: str) -> int:
    """By how many points judgment A is nearer to the truth than judgment B."""
    first, second = (int(score) for score in re.findall(r"Judgment [AB]:.*?(\d+)\s*(?=\n|\Z)", text))
    truth = _truth(text)
    return abs(second - truth) - abs(first - truth)


def pocket_experiment(folder: Path, *changes: str) -> BoundRecipe:
    """A small run of the pocket world that has begun in ``folder``/run; its model's files can't be loaded."""
    model = model_folder(folder / "model", "m0")
    recipe = load_recipe("pocket", [f"model={model}", *SMALL, *changes])
    started = BoundRecipe(RunDir(folder / "run"), recipe)
    with started.run.lock():
        started.begin(json.dumps(recipe.resolved()))
    return started
