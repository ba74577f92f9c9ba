"""What constrained verdicts, retries and expected scores buy: readable judgments, agreement with the truth, tokens.

Each model judges the same answers to held-out instructions, N times in each way; the pocket world's oracle knows their
true scores. In each way the first request of an answer has the same seed, so the ways differ in their verdicts only.
"constrained, unreadable only" keeps a verdict that is readable as written and takes the drawn one otherwise. Prints a
table for each model and writes bench/results/constrained.json.

    python bench/constrained.py [MODEL_FOLDER ...]
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table

from metareward.engines.local.engine import LocalEngine
from metareward.generation.annotate import RubricJudge
from metareward.generation.verdicts import VerdictRules
from metareward.method.stats import spearman
from metareward.pocket.build import FAULTY
from metareward.pocket.demonstrations import RUBRIC, answer
from metareward.pocket.tasks import draw_instruction, parse_instruction
from metareward.pocket.world import MODEL, check_answer
from metareward.storage.run_log import environment
from metareward.types import Judgment, Message, Prompt, Sampling, Scored

ANSWERS, N, MIN_VALID = 400, 7, 3
WAYS: Mapping[str, tuple[VerdictRules, bool]] = {
    "text": (VerdictRules(), False),
    "text, 2 retries": (VerdictRules(retries=2), False),
    "constrained": (VerdictRules(constrained=True), False),
    "expected": (VerdictRules(), True),
    "constrained, expected": (VerdictRules(constrained=True), True),
}
Question = tuple[Prompt, str, int]  # prompt, answer, true score
Judgments = Sequence[Sequence[Judgment]]


def questions() -> list[Question]:
    """The answers that are judged: half of them without a fault."""
    rng, asked = random.Random(0), []
    for number in range(ANSWERS):
        instruction = draw_instruction(rng, held_out=True)
        faults = FAULTY if number % 2 else replace(FAULTY, **dict.fromkeys(_FAULTS, 0.0))
        text = answer(parse_instruction(instruction), faults, rng)
        prompt = Prompt(f"{number:03d}", (Message("user", instruction),))
        asked.append((prompt, text, check_answer(instruction, text).score))
    return asked


_FAULTS = ("wrong_kind", "wrong_item", "missing", "extra", "repeated", "swapped", "opening", "closing")


async def judged(engine: LocalEngine, asked: Sequence[Question]) -> dict[str, tuple[Judgments, float]]:
    """N judgments of each answer and the CPU seconds that they took, by way."""
    found: dict[str, tuple[Judgments, float]] = {}
    for way, (rules, expected) in WAYS.items():
        judge = RubricJudge(engine, RUBRIC, Sampling(1.0, 0.95, 48), 0, expected, rules)
        began = time.process_time()
        written = await asyncio.gather(*(judge.judge(prompt, text, N) for prompt, text, _ in asked))
        found[way] = written, time.process_time() - began
    await engine.aclose()
    return found


def unreadable_only(text: Judgments, drawn: Judgments) -> Judgments:
    """The judgments as written, where they are readable, with the tokens of a second request where they aren't."""
    return [
        [a if isinstance(a.reading, Scored) else b for a, b in zip(*each, strict=True)]
        for each in zip(text, drawn, strict=True)
    ]


def measures(written: Judgments, truth: Sequence[int]) -> dict[str, float | None]:
    """Shares of all judgments, so that an unreadable one is not exact; correlations over answers that have a score."""
    scores = [[each.reading.score for each in row if isinstance(each.reading, Scored)] for row in written]
    perfect = [len(row) / N for row, true in zip(scores, truth, strict=True) if true == 5]
    flawed = [len(row) / N for row, true in zip(scores, truth, strict=True) if true < 5]
    exact = sum(round(score) == true for row, true in zip(scores, truth, strict=True) for score in row)
    single = [(row[0], true) for row, true in zip(scores, truth, strict=True) if row]
    mean = [(fmean(row), true) for row, true in zip(scores, truth, strict=True) if len(row) >= MIN_VALID]
    return {
        "readable": sum(map(len, scores)) / (N * len(truth)),
        "readable_perfect": fmean(perfect),
        "readable_flawed": fmean(flawed),
        "exact": exact / (N * len(truth)),
        "correlation_single": spearman(*map(list, zip(*single, strict=True))),
        "correlation_mean": spearman(*map(list, zip(*mean, strict=True))),
        "answers_with_mean": len(mean) / len(truth),
        "tokens": fmean(each.tokens for row in written for each in row),
    }


def main() -> None:
    """Judge in every way, compare, print, write."""
    asked, results = questions(), {}
    truth = [true for _, _, true in asked]
    for folder in map(Path, sys.argv[1:] or [str(MODEL)]):
        engine = LocalEngine.open(folder, device="cpu", dtype="auto", max_num_seqs=176, deterministic=False)
        written = asyncio.run(judged(engine, asked))
        ways = {way: {**measures(each, truth), "seconds": seconds} for way, (each, seconds) in written.items()}
        kept = unreadable_only(written["text"][0], written["constrained"][0])
        ways["constrained, unreadable only"] = measures(kept, truth)
        names = [*next(iter(ways.values()))]
        table = Table("", *names, title=str(folder))
        for way, found in ways.items():
            table.add_row(way, *("-" if found.get(name) is None else f"{found[name]:.3f}" for name in names))
        Console(width=200).print(table)
        results[folder.parent.name] = ways
    path = Path(__file__).parent / "results" / "constrained.json"
    content = {"answers": ANSWERS, "judgments": N, "models": results, **environment()}
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
