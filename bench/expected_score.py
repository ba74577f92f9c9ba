"""Is the mean over the score's token worth as much as more samples? Rank correlation with the truth, per token spent.

The pocket model judges answers to held-out instructions; the pocket world's oracle knows their true scores. For each
number of judgments N the answers are scored by the mean of N sampled scores and by the mean of N expected scores
(`metareward.method.judge`), from the same judgments. Prints a table and writes bench/results/expected_score.json.

    python bench/expected_score.py [MODEL_FOLDER]
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from metareward.engines.local.engine import LocalEngine
from metareward.method.judge import TOP_LOGPROBS, expected_score
from metareward.method.stats import spearman
from metareward.pocket.build import FAULTY
from metareward.pocket.demonstrations import RUBRIC, answer
from metareward.pocket.tasks import draw_instruction, parse_instruction
from metareward.pocket.world import MODEL, check_answer
from metareward.storage.run_log import environment
from metareward.types import Completion, Message, Messages, Prompt, Sampling, Scored

ANSWERS, MOST = 600, 11
Question = tuple[Messages, float]


def questions() -> list[Question]:
    """What the judge is asked, and the true score of each answer."""
    rng, asked = random.Random(0), []
    for number in range(ANSWERS):
        instruction = draw_instruction(rng, held_out=True)
        text = answer(parse_instruction(instruction), FAULTY, rng)
        prompt = Prompt(str(number), (Message("user", instruction),))
        asked.append((RUBRIC.render(prompt, text), float(check_answer(instruction, text).score)))
    return asked


async def judged(engine: LocalEngine, asked: list[Question]) -> list[tuple[Completion, ...]]:
    """``MOST`` judgments of each answer."""
    sampling = [Sampling(1.0, 0.95, 48, seed, TOP_LOGPROBS) for seed in range(len(asked))]
    calls = (engine.complete(messages, each, MOST) for (messages, _), each in zip(asked, sampling, strict=True))
    written = [tuple(each) for each in await asyncio.gather(*calls)]
    await engine.aclose()
    return written


def correlation(written: list[tuple[Completion, ...]], truth: list[float], n: int, expected: bool) -> float | None:
    """Rank correlation of the means of the first ``n`` judgments with the truth, over answers that have a mean."""
    pairs = []
    for judgments, true in zip(written, truth, strict=True):
        read = [
            expected_score(each, RUBRIC) if expected else RUBRIC.read(each.text, each.finish) for each in judgments[:n]
        ]
        scores = [reading.score for reading in read if isinstance(reading, Scored)]
        if scores:
            pairs.append((sum(scores) / len(scores), true))
    return spearman([mean for mean, _ in pairs], [true for _, true in pairs])


def main() -> None:
    """Judge, compare, print, write."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else MODEL
    engine = LocalEngine.open(folder, device="cpu", dtype="auto", max_num_seqs=176, deterministic=False)
    asked = questions()
    written = asyncio.run(judged(engine, asked))
    truth = [true for _, true in asked]
    tokens = sum(each.tokens for judgments in written for each in judgments) / (ANSWERS * MOST)
    table = Table("N", "tokens an answer", "sampled", "expected", title="rank correlation with the truth")
    found = []
    for n in (1, 2, 3, 5, 7, 11):
        sampled, expected = (correlation(written, truth, n, kind) for kind in (False, True))
        table.add_row(str(n), f"{n * tokens:.0f}", f"{sampled:.3f}", f"{expected:.3f}")
        found.append({"n": n, "tokens": n * tokens, "sampled": sampled, "expected": expected})
    Console().print(table)
    path = Path(__file__).parent / "results" / "expected_score.json"
    path.write_text(json.dumps({"answers": ANSWERS, "rank_correlation": found, **environment()}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
