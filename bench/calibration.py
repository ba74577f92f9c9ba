"""Does a judge's probability hold? Calibration of the pocket judge and of a real model, against the worlds' oracles.

Every model judges the same answers once, with the probabilities of the scores at the verdict's place. Three questions:

    label      the most probable score with probability p: is it the true one in a share p of the cases?
    pairs      two answers of one prompt and different quality: output 1 is better with probability p, by both scores'
               distributions; is it in a share p?
    expected   the expected score, as a share of the scale, beside the true one, in bins of the expected one

ECE, Brier and confidence as in `metareward.evaluation.judge_quality.calibration`. The pocket judge writes its verdict;
the real model's verdict on the short rubric is drawn (constrained), which is how its preset judges. A true score of the
real world is 1 where the answer passes, else 0, as the rubric asks.

    python bench/calibration.py pocket --runs runs/preset-1 --runs runs/preset-2
    python bench/calibration.py real before --model models/smollm2 --texts answers.jsonl
    python bench/calibration.py real after --model runs/smollm2/iter-2/model --texts answers.jsonl

The answers are those of ``bench/constraint_families.py drawn --texts answers.jsonl``, the same file for both models.
What else is in bench/results/calibration.json stays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from metareward.engines.base import Engine, run_concurrently
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.evaluation.constraints.world import check_answer as check_constraints
from metareward.evaluation.judge_quality.calibration import BINS, calibration
from metareward.evaluation.judge_quality.data import Item, Pair, Response, verdicts_from_scores
from metareward.generation.verdicts import RubricGrader, VerdictRules
from metareward.method.judge import TOP_LOGPROBS, Rubric
from metareward.pocket.build import FAULTY
from metareward.pocket.demonstrations import CLEAN, RUBRIC, answer
from metareward.pocket.tasks import draw_instruction, parse_instruction
from metareward.pocket.world import MODEL, check_answer
from metareward.seeds import derive
from metareward.storage.run_log import environment
from metareward.types import Completion, Message, Messages, Prompt, Sampling, Scored

RESULTS = Path(__file__).parent / "results" / "calibration.json"
PROMPTS, SAMPLED = 300, Sampling(1.0, 0.95, 48)
Distribution = Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to ``prompt`` and its true score, from 0 to the highest of the rubric."""

    prompt: str
    text: str
    truth: float


def pocket_answers() -> list[Answer]:
    """Two answers to each of `PROMPTS` held-out instructions: one without a fault, one with those of M0's actor."""
    rng, found = random.Random(0), []
    for _ in range(PROMPTS):
        instruction = draw_instruction(rng, held_out=True)
        for faults in (CLEAN, FAULTY):
            text = answer(parse_instruction(instruction), faults, rng)
            found.append(Answer(instruction, text, float(check_answer(instruction, text).score)))
    return found


def constraint_answers(path: Path) -> list[Answer]:
    """The finished answers of a file, each once."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = dict.fromkeys((row["prompt"], row["answer"]) for row in rows if row["finish"] == "stop")
    return [Answer(prompt, text, float(check_constraints(prompt, text).passes)) for prompt, text in texts]


async def distributions(folder: Path, grader: RubricGrader, answers: Sequence[Answer]) -> list[Distribution]:
    """The probabilities of the scores of one judgment of each answer, empty for an unreadable one."""
    settings = {"dtype": "float32", "workers": 1, "deterministic": False}
    engine = await open_local(folder, LocalSettings.model_validate(settings))
    try:
        return list(
            await run_concurrently(_judged(engine, grader, number, each) for number, each in enumerate(answers))
        )
    finally:
        await engine.aclose()


async def _judged(engine: Engine, grader: RubricGrader, number: int, judged: Answer) -> Distribution:
    last: list[Distribution] = []

    async def ask(messages: Messages, sampling: Sampling, n: int, *of: str | int) -> Sequence[Completion]:
        seeded = Sampling(
            sampling.temperature,
            sampling.top_p,
            sampling.max_tokens,
            derive(number, *of),
            TOP_LOGPROBS,
            sampling.choices,
        )
        replies = await engine.complete(messages, seeded, n, "judge")
        last.append(grader.distribution(replies[0], drawn=bool(sampling.choices)))
        return replies

    prompt = Prompt(str(number), (Message("user", judged.prompt),))
    (judgment,) = await grader.judge(ask, prompt, judged.text)
    if not isinstance(judgment.reading, Scored):
        return {}
    return last[-1] or {judgment.reading.score: 1.0}


def measures(answers: Sequence[Answer], found: Sequence[Distribution], highest: float) -> dict[str, Any]:
    """The three calibrations; an answer with an unreadable judgment is in none."""
    readable = [(each, scores) for each, scores in zip(answers, found, strict=True) if scores]
    top = [(max(scores, key=scores.__getitem__), each.truth, max(scores.values())) for each, scores in readable]
    label = calibration([p for *_, p in top], [score == truth for score, truth, _ in top])
    by_pair = calibration(*pair_predictions(readable))
    assert label is not None and by_pair is not None
    right = sum(score == truth for score, truth, _ in top) / len(top)
    return {
        "answers": len(answers),
        "readable": len(readable) / len(answers),
        "label": {**asdict(label), "accuracy": right},
        "pairs": {**asdict(by_pair), "accuracy": _pair_accuracy(readable)},
        "expected": expected_table(readable, highest),
    }


def pair_predictions(readable: Sequence[tuple[Answer, Distribution]]) -> tuple[list[float], list[bool]]:
    """The probability that the first answer of a pair is better, and whether it is."""
    pairs = _pairs(readable)
    items = [
        Pair(
            Item(str(i), (), tuple(Response(a.text, None, (0.0,), distributions_N=(p,)) for a, p in both)), 1, "", None
        )
        for i, both in enumerate(pairs)
    ]
    shares = [verdict.probabilities[0] for verdict in verdicts_from_scores(items)]
    better = [one.truth > other.truth for (one, _), (other, _) in pairs]
    return [0.5 if share is None else share for share in shares], better


def _pairs(
    readable: Sequence[tuple[Answer, Distribution]],
) -> list[tuple[tuple[Answer, Distribution], tuple[Answer, Distribution]]]:
    """Every two answers to one prompt of different quality, in an order drawn at random."""
    groups: dict[str, list[tuple[Answer, Distribution]]] = {}
    for each in readable:
        groups.setdefault(each[0].prompt, []).append(each)
    rng = random.Random(0)
    both = [
        pair for group in groups.values() for pair in combinations(group, 2) if pair[0][0].truth != pair[1][0].truth
    ]
    return [pair if rng.random() < 0.5 else pair[::-1] for pair in both]


def _pair_accuracy(readable: Sequence[tuple[Answer, Distribution]]) -> float:
    predicted, better = pair_predictions(readable)
    return sum(0.5 if p == 0.5 else (p > 0.5) == first for p, first in zip(predicted, better, strict=True)) / len(
        better
    )


def expected_table(readable: Sequence[tuple[Answer, Distribution]], highest: float) -> dict[str, object]:
    """Expected and true scores as shares of the scale, in `BINS` bins of the expected one; ECE as for probabilities."""
    pairs = [(sum(s * p for s, p in scores.items()) / highest, each.truth / highest) for each, scores in readable]
    bins = []
    for place in range(BINS):
        inside = [(e, t) for e, t in pairs if min(int(e * BINS), BINS - 1) == place]
        if inside:
            n, expected, truth = len(inside), *(sum(side) / len(inside) for side in zip(*inside, strict=True))
            bins.append({"low": place / BINS, "n": n, "predicted": expected, "observed": truth})
    return {
        "n": len(pairs),
        "ece": sum(each["n"] * abs(each["predicted"] - each["observed"]) for each in bins) / len(pairs),
        "brier": sum((e - t) ** 2 for e, t in pairs) / len(pairs),
        "predicted": sum(e for e, _ in pairs) / len(pairs),
        "observed": sum(t for _, t in pairs) / len(pairs),
        "bins": bins,
    }


def measured(folder: Path, world: str, texts: Path | None) -> dict[str, Any]:
    """The measures of one model in a world."""
    if world == "pocket":
        grader, answers = RubricGrader(RUBRIC, 1, SAMPLED, expected=True), pocket_answers()
    else:
        assert texts is not None
        rubric = Rubric.load("short_judge", min_score=0, max_score=1)
        grader = RubricGrader(rubric, 1, Sampling(1.0, 1.0, 1), expected=True, rules=VerdictRules(constrained=True))
        answers = constraint_answers(texts)
    found = asyncio.run(distributions(folder, grader, answers))
    return measures(answers, found, grader.rubric.max_score)


def main() -> None:
    """Judge, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    worlds = parser.add_subparsers(dest="world", required=True)
    pocket = worlds.add_parser("pocket")
    pocket.add_argument(
        "--runs", type=Path, action="append", default=[], help="finished runs of the preset, a seed each"
    )
    real = worlds.add_parser("real")
    real.add_argument("name", help="what the model is called, such as before or after")
    real.add_argument("--model", type=Path, required=True)
    real.add_argument("--texts", type=Path, required=True)
    given = parser.parse_args()
    if given.world == "pocket":
        models = {"M0": MODEL, **{f"M4, {run.name}": run / "iter-4" / "model" for run in given.runs}}
    else:
        models = {given.name: given.model}
    rows = {name: measured(folder, given.world, getattr(given, "texts", None)) for name, folder in models.items()}
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    before = {} if given.world == "pocket" else known.get("real", {})
    found = {**known, given.world: {**before, **rows}, **environment()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, row in rows.items():
        for kind in ("label", "pairs", "expected"):
            print(name, kind, *(f"{key} {row[kind][key]:.3f}" for key in ("n", "ece", "brier")))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
