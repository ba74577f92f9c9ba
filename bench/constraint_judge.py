"""A model as a judge of answers in the constraint world, by Yes-or-No questions, beside length and chance.

The answers are those that bench/constraint_families.py has written with --texts. AUC: how often an answer that passes
has a higher score than one of the same prompt that doesn't; ties count half. ``short rubric`` and ``criteria`` are the
loop's own ways: the packaged rubric short_judge, a constrained verdict, its expected score; and the packaged criteria.

    out=bench/results/constraint_judge.json
    python bench/constraint_judge.py --model models/smollm2 --texts answers.jsonl --out $out
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from metareward.engines.base import Engine, run_concurrently
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.evaluation.constraints.prompts import read_prompt
from metareward.evaluation.constraints.world import check_answer
from metareward.generation.annotate import RubricJudge
from metareward.generation.verdicts import VerdictRules
from metareward.method.judge import Rubric
from metareward.types import Message, Prompt, Sampling, Scored

ANSWERS = ("Yes", "No")
QUESTION = "Instruction:\n{prompt}\n\nResponse:\n{answer}\n\n{question} Reply Yes or No."


@dataclass(frozen=True, slots=True)
class Row:
    """An answer to a prompt."""

    prompt: str
    answer: str
    finish: str


def questions(prompt: str) -> dict[str, tuple[str, ...]]:
    """The judge's questions about an answer to ``prompt``, by rubric."""
    task = read_prompt(prompt)
    constraints = tuple(f'Does the response follow this: "{each.sentence}"?' for each in task.constraints)
    topic = f"Is the response about {task.topic}?"
    finished = "Is the response complete, without a sentence that breaks off?"
    return {
        "one question": ("Does the response follow the instruction?",),
        "each constraint": constraints,
        "constraints, topic, finished": (*constraints, topic, finished),
    }


async def log_odds(engine: Engine, row: Row, question: str) -> float:
    """log P(Yes) - log P(No)."""
    text = QUESTION.format(prompt=row.prompt, answer=row.answer, question=question)
    sampling = Sampling(1.0, 1.0, 1, top_logprobs=2, choices=ANSWERS)
    (completion,) = await engine.complete((Message("user", text),), sampling, 1, "judge")
    found = {each.text.strip(): each.logprob for each in completion.steps[0].top_logprobs}
    return found["Yes"] - found["No"]


async def judged(folder: Path, rows: Sequence[Row], dtype: str) -> list[dict[str, float]]:
    """The score of every row by each rubric: the mean log odds of its questions, or the score that the loop gives."""
    settings = {"dtype": dtype, "workers": 1, "deterministic": False}
    engine = await open_local(folder, LocalSettings.model_validate(settings))

    rubric = Rubric.load("short_judge", min_score=0, max_score=1)
    rules = VerdictRules(constrained=True)
    loops = {
        "short rubric": RubricJudge(engine, rubric, Sampling(1.0, 1.0, 1), expected=True, verdicts=rules),
        "criteria": RubricJudge(engine, Rubric.load("criteria", min_score=0, max_score=1)),
    }

    async def scores(row: Row) -> dict[str, float]:
        asked = questions(row.prompt)
        each = dict.fromkeys(question for group in asked.values() for question in group)
        answers = await run_concurrently(log_odds(engine, row, question) for question in each)
        odds = dict(zip(each, answers, strict=True))
        found = {name: fmean(odds[question] for question in group) for name, group in asked.items()}
        for name, judge in loops.items():
            (judgment,) = await judge.judge(Prompt("", (Message("user", row.prompt),)), row.answer, 1)
            assert isinstance(judgment.reading, Scored)
            found[name] = judgment.reading.score
        return found

    try:
        return list(await run_concurrently(map(scores, rows)))
    finally:
        await engine.aclose()


def comparisons(rows: Sequence[Row], passing: Sequence[bool], scores: Sequence[float]) -> Iterator[tuple[str, float]]:
    """(prompt, 1, 0.5 or 0) for every passing and failing answer of one prompt."""
    for i, row in enumerate(rows):
        for j, other in enumerate(rows):
            if passing[i] and not passing[j] and row.prompt == other.prompt:
                yield row.prompt, (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])


def auc(found: Sequence[tuple[str, float]], draws: int = 1000) -> Mapping[str, float]:
    """The mean, and its 95 % interval over prompts."""
    groups: dict[str, list[float]] = {}
    for prompt, value in found:
        groups.setdefault(prompt, []).append(value)
    sums = np.array([(sum(each), len(each)) for each in groups.values()])
    rng = np.random.default_rng(0)
    picks = rng.integers(len(sums), size=(draws, len(sums)))
    totals = sums[picks].sum(axis=1)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    mean = sums[:, 0].sum() / sums[:, 1].sum()
    return {"auc": float(mean), "low": float(low), "high": float(high), "pairs": len(found), "prompts": len(groups)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.texts.read_text(encoding="utf-8").splitlines()]
    rows = [Row(each["prompt"], each["answer"], each["finish"]) for each in lines if each["finish"] == "stop"]
    rows = list({(row.prompt, row.answer): row for row in rows}.values())  # the same answer twice says nothing
    passing = [check_answer(row.prompt, row.answer).passes for row in rows]
    mixed = {row.prompt for row, good in zip(rows, passing, strict=True) if good}
    mixed &= {row.prompt for row, good in zip(rows, passing, strict=True) if not good}
    rows = [row for row in rows if row.prompt in mixed]
    passing = [check_answer(row.prompt, row.answer).passes for row in rows]
    found = asyncio.run(judged(given.model, rows, given.dtype))
    draw = random.Random(0)
    others: dict[str, Callable[[Row], float]] = {
        "longer wins": lambda row: len(row.answer),
        "shorter wins": lambda row: -len(row.answer),
        "random": lambda _: draw.random(),
    }
    scores = {name: [each[name] for each in found] for name in found[0]}
    scores |= {name: [score(row) for row in rows] for name, score in others.items()}
    result = {name: auc(list(comparisons(rows, passing, each))) for name, each in scores.items()}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, each in result.items():
        print(f"{name:30}", *(f"{key} {value:.3f}" for key, value in each.items()))


if __name__ == "__main__":
    main()
