"""A made-up run folder: records as a model would leave them, with the pairs and figures that really follow."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import permutations
from pathlib import Path

from metareward.config.schema import Recipe, load_recipe, pairs_rules
from metareward.evaluation.held_out import HeldOut, held_out_to_json
from metareward.method.diagnostics import summarize
from metareward.method.health_checks import HealthCheck, check_gates
from metareward.method.judge import Rubric
from metareward.method.judge_health import Scale, record_figures
from metareward.method.pairs import build_pairs, of_kind
from metareward.report.facts import read_health
from metareward.storage.atomic import write_atomic
from metareward.storage.pair_files import write_dropped, write_pairs
from metareward.storage.records import record_to_json
from metareward.storage.run_dir import IterationDir, RunDir, mark_done
from metareward.storage.store import RecordStore
from metareward.types import (
    Candidate,
    Dispute,
    Duplicate,
    Judgment,
    Message,
    MetaJudgment,
    Prompt,
    PromptRecord,
    Reading,
    Scored,
    Truncated,
    Unparsed,
    Won,
)

PROMPTS = 24
K = 7
N = 7
# Everything the tests rely on, whatever the preset says today.
_PINNED = (
    f"prompts.per_iteration={PROMPTS}",
    f"answers.k={K}",
    f"judgments.n={N}",
    "judgments.min_valid=3",
    *(f"iterations.{t}.rho={rho}" for t, rho in ((1, 0.0), (2, 0.2), (3, 0.2), (4, 0.2))),
    *(f"iterations.{t}.judge_pairs={'true' if t <= 2 else 'false'}" for t in (1, 2, 3, 4)),
    *(f"iterations.{t}.{limit}=null" for t in (1, 2, 3, 4) for limit in ("max_answer_chars", "max_judgment_chars")),
)
HOSTILE = (
    '</div></details><script>alert("x")</script><img src=x onerror=alert(1)>'
    "\x00\x1b[31m \u202eright to left\u202c {{ 7 * 7 }} {% raw %} &amp; <style>*{display:none}</style>"
)
_TOPICS = ("animals", "colours", "fruits", "tools")
_WORDS = ("otter", "heron", "badger", "plum", "ochre", "chisel", "quince", "teal", "mallet", "finch")
_FILLER = "Of course, here is what you asked for, and I hope that it is of help to you:"

# Mean and half-width of the interval for M0..M4, as the pocket world's prototype measured them.
MEANS: Mapping[str, tuple[tuple[float, ...], float, int]] = {
    "answer_quality": ((2.41, 3.00, 3.63, 3.81, 3.78), 0.13, 300),
    "answer_perfect": ((0.13, 0.24, 0.44, 0.47, 0.46), 0.05, 300),
    "answer_self_score": ((3.1, 3.4, 3.9, 4.2, 4.4), 0.08, 900),
    "answer_chars": ((61.0, 40.0, 37.0, 31.0, 30.0), 2.5, 300),
    "answer_truncated": ((0.02, 0.0, 0.0, 0.0, 0.0), 0.01, 300),
    "judgment_exact": ((0.27, 0.34, 0.36, 0.37, 0.36), 0.03, 900),
    "judgment_rank_correlation": ((0.32, 0.43, 0.50, 0.50, 0.48), 0.05, 900),
    "judgment_mean_rank_correlation": ((0.68, 0.77, 0.76, 0.71, 0.72), 0.06, 300),
    "judgment_valid": ((0.94, 0.97, 0.98, 0.98, 0.98), 0.01, 900),
    "judgment_chars": ((78.0, 80.0, 82.0, 81.0, 81.0), 1.5, 900),
    "anchor_score": ((3.1, 3.0, 3.2, 3.3, 3.4), 0.08, 900),
    "meta_accuracy": ((0.68, 0.73, 0.73, 0.71, 0.71), 0.05, 420),
    "meta_valid": ((0.97, 0.98, 0.98, 0.98, 0.98), 0.01, 600),
    "meta_first_position": ((0.61, 0.57, 0.56, 0.57, 0.57), 0.04, 590),
}
ORACLE = frozenset(
    {
        "answer_quality",
        "answer_perfect",
        "judgment_exact",
        "judgment_rank_correlation",
        "judgment_mean_rank_correlation",
        "meta_accuracy",
    }
)


def fake_run(path: Path, models: int = 5, oracle: bool = True, overrides: Sequence[str] = ()) -> RunDir:
    """A run of 4 iterations in ``path`` of which the first ``models`` models are there, measured and done."""
    run = start(path, overrides)
    write_evaluation(run.iteration(0), 0, oracle)
    for t in range(1, models):
        write_records(run, t, [fake_record(t, number) for number in range(PROMPTS)])
        write_built(run, t)
        write_training(run.iteration(t), t)
        write_evaluation(run.iteration(t), t, oracle)
        finish(run.iteration(t))
    return run


def start(path: Path, overrides: Sequence[str] = ()) -> RunDir:
    """The folder as it is before anything is generated."""
    run = RunDir(path)
    recipe = load_recipe("pocket", [f"name={path.name}", *_PINNED, *overrides])
    write_atomic(run.resolved, json.dumps(recipe.resolved()))
    versions = {"metareward": "0.1.0", "torch": "2.9.0", "transformers": "5.1.0", "trl": "1.16.2"}
    environment = {"python": "3.11.9", "started": "2026-03-14T09:26:53+00:00", "packages": versions}
    write_atomic(run.environment, json.dumps(environment))
    return run


def recipe_of(run: RunDir) -> Recipe:
    return load_recipe(str(run.resolved))


def write_records(
    run: RunDir, t: int, records: Iterable[PromptRecord], failed: Mapping[str, str] | None = None
) -> None:
    folder = run.iteration(t)
    folder.path.mkdir(parents=True, exist_ok=True)
    with RecordStore.open(folder.records, {"seed": 0}) as store:
        for record in records:
            store.put(record.prompt.id, record_to_json(record))
        for key, error in (failed or {}).items():
            store.put_failure(key, error)
    _records_cache[folder.records] = tuple(records)


_records_cache: dict[Path, tuple[PromptRecord, ...]] = {}


def write_built(run: RunDir, t: int) -> None:
    """Pairs, drop reasons and summary, by the recipe's rules."""
    recipe, folder = recipe_of(run), run.iteration(t)
    records = _records_cache[folder.records]
    rubric = Rubric.load("pocket_judge")
    pairs, dropped = build_pairs(records, pairs_rules(recipe, t), rubric, recipe.seed)
    write_pairs(folder.pairs("actor"), of_kind(pairs, "actor"))
    write_pairs(folder.pairs("judge"), of_kind(pairs, "judge"))
    write_dropped(folder.dropped, dropped)
    rules = pairs_rules(recipe, t)
    figures = record_figures(records, pairs, Scale(0.0, 5.0), rules.min_valid, rules.judge_pairs)
    health = {name: asdict(figure) for name, figure in figures.items()}
    write_atomic(folder.summary, json.dumps({**summarize(t, records, pairs, dropped), "judge_health": health}))
    checks = [*read_health(run), HealthCheck("records", f"M{t - 1}", t, check_gates(figures, recipe.gate_limits))]
    write_atomic(run.judge_health, json.dumps([asdict(check) for check in checks]))


def write_training(folder: IterationDir, t: int) -> None:
    draw = random.Random(t)
    lines = []
    for step in range(1, 19):
        margin = 0.9 * (1 - math.exp(-step / 7)) * (1 + 0.15 * t) + draw.gauss(0, 0.04)
        loss = math.log(1 + math.exp(-margin))
        accuracy = 0.5 + 0.4 * (1 - math.exp(-step / 5))
        lines.append({"step": step, "loss": loss, "rewards/margins": margin, "rewards/accuracies": accuracy})
    lines.append({"step": 18, "train_runtime": 6.1})
    write_atomic(folder.path / "training.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def write_evaluation(folder: IterationDir, t: int, oracle: bool = True) -> None:
    metrics = {
        key: {"mean": means[t], "low": max(0.0, means[t] - half), "high": means[t] + half, "n": n}
        for key, (means, half, n) in MEANS.items()
        if oracle or key not in ORACLE
    }
    histogram = {"own": _histogram(t, 3.1 + 0.3 * t), "anchor": _histogram(9, 3.1 + 0.08 * t)}
    evaluation = {"model": f"M{t}", "prompts": 300, "seconds": 21.5, "metrics": metrics, "score_histogram": histogram}
    write_atomic(folder.evaluation / "model.json", json.dumps(evaluation))


def _histogram(seed: int, mean: float) -> dict[str, int]:
    draw = random.Random(seed)
    scores = (min(5, max(0, round(draw.gauss(mean, 1.3)))) for _ in range(900))
    return {str(score): count for score, count in sorted(Counter(scores).items())}


def finish(folder: IterationDir) -> None:
    seconds = {"generating": 71.0, "training": 14.5, "evaluating": 21.5}
    write_atomic(folder.path / "seconds.json", json.dumps(seconds))
    mark_done(folder.done, {"model": folder.path.name, "seconds": seconds})


def fake_record(t: int, number: int, meta_judge: bool | None = None) -> PromptRecord:
    """One prompt's life with all the things that go wrong: repeats, unreadable and cut-off judgments, flips."""
    draw = random.Random(f"{t} {number}")
    topic = draw.choice(_TOPICS)
    prompt = Prompt(
        f"pocket-{t}{number:04d}", (Message("user", f"List {draw.randint(2, 5)} {topic} , no more than that ."),)
    )
    flat = number % 11 == 3  # the judge gives the same to all
    candidates, duplicates = _answers(draw, flat)
    asked = t <= 2 if meta_judge is None else meta_judge
    return PromptRecord(prompt, candidates, duplicates, _dispute(draw, candidates) if asked and not flat else None)


def _answers(draw: random.Random, flat: bool) -> tuple[tuple[Candidate, ...], tuple[Duplicate, ...]]:
    seen: dict[str, int] = {}
    candidates, duplicates = [], []
    for k in range(K):
        quality = draw.randint(0, 5)
        text = _answer_text(draw, quality)
        if text in seen:
            duplicates.append(Duplicate(k, seen[text]))
            continue
        seen[text] = k
        candidates.append(_candidate(draw, k, text, 3 if flat else quality, flat))
    return tuple(candidates), tuple(duplicates)


def _answer_text(draw: random.Random, quality: int) -> str:
    words = ", ".join(draw.sample(_WORDS, 2 + draw.randint(0, 2)))
    return f"{_FILLER} {words} . Anything else ?" if quality < 3 and draw.random() < 0.6 else f"{words} ."


def _candidate(draw: random.Random, k: int, text: str, quality: int, flat: bool) -> Candidate:
    judgments = []
    for index in range(N):
        score = quality if flat else min(5, max(0, round(draw.gauss(quality + len(text) / 120, 1.0))))
        judgments.append(_judgment(draw, index, score, sure=flat))
    return Candidate(k, text, "length" if draw.random() < 0.03 else "stop", len(text) // 4, tuple(judgments))


def _judgment(draw: random.Random, index: int, score: int, sure: bool) -> Judgment:
    calls = " , ".join(f"{item} {'yes' if place < score else 'no'}" for place, item in enumerate(CRITERIA))
    reading: Reading = Scored(float(score))
    text = f"{calls} . score {score}"
    fate = 1.0 if sure else draw.random()
    if fate < 0.02:
        reading, text = Truncated(), calls
    elif fate < 0.05:
        reading, text = Unparsed("missing"), f"{calls} . that is my view"
    return Judgment(index, text, len(text) // 4, reading)


CRITERIA = ("kind", "count", "items", "order", "brief")


def _dispute(draw: random.Random, candidates: Sequence[Candidate]) -> Dispute | None:
    disputed = max(candidates, key=lambda candidate: (_spread(candidate), -candidate.index))
    scores = {j.index: j.reading.score for j in disputed.judgments_N if isinstance(j.reading, Scored)}
    if len(scores) < 2 or _spread(disputed) == 0:
        return None
    metas = tuple(_meta(draw, first, second, scores) for first, second in permutations(scores, 2))
    return Dispute(disputed.index, tuple(scores), metas)


def _meta(draw: random.Random, first: int, second: int, scores: Mapping[int, float]) -> MetaJudgment:
    if draw.random() < 0.03:
        return MetaJudgment(first, second, "both are much the same", 6, Unparsed("missing"))
    lean = 0.62 + 0.06 * (scores[first] - scores[second])
    winner = first if draw.random() < lean else second
    text = f"the count and the order are called right there . winner {'A' if winner == first else 'B'}"
    return MetaJudgment(first, second, text, 14, Won(winner))


def _spread(candidate: Candidate) -> float:
    scores = [j.reading.score for j in candidate.judgments_N if isinstance(j.reading, Scored)]
    return max(scores) - min(scores) if len(scores) > 1 else 0.0


def write_held_out(run: RunDir, t: int) -> None:
    """Held-out records of M``t``: six prompts with an answer and a judgment each."""
    with RecordStore.open(run.iteration(t).evaluation / "records.sqlite", {"seed": 0}) as store:
        for number in range(6):
            prompt = Prompt(f"held-{number}", (Message("user", f"Name {number} colours."),))
            judgments = (Judgment(0, "fine", 1, Scored(float((number + t) % 6))),)
            own = (Candidate(0, f"red, blue, M{t}", "stop", 4, judgments),)
            store.put(prompt.id, held_out_to_json(HeldOut(prompt, own, own, ())))


def run_with_annotations(path: Path, baseline: str = "M0", judges: tuple[str, str] = ("oracle", "oracle")) -> RunDir:
    """A run of three models with AlpacaEval's annotations of a benchmark by-oracle."""
    run = fake_run(path, models=3)
    for t, judge in enumerate(judges, 1):
        folder = run.path / f"iter-{t}" / "eval" / "by-oracle"
        folder.mkdir(parents=True)
        rows = [
            {
                "index": i,
                "instruction": f"Do {i}.",
                "output_1": "a",
                "output_2": "b",
                "generator_1": baseline if t == 1 else "M0",
                "generator_2": f"M{t}",
                "annotator": judge,
                "preference": 1.5 if t == 1 and i % 2 else 2.0 - (i % 5) / 100,
            }
            for i in range(40)
        ]
        write_atomic(folder / "annotations.json", json.dumps(rows))
    return run
