"""Arms of preference pairs for a real model in the constraint world: what self-judged pairs are worth beside controls.

Every arm trains the same model with DPO on pairs of the same prompts and answers; only who says which answer is better
differs. A program knows the truth (docs/real-model.md). An arm has several seeds: of six of the eight answers, of ties,
of the order of training. Stages write into a work folder what the next ones read; what is there isn't made again, so
a killed stage goes on.

    m="--model models/smollm2 --work work"
    python bench/real_model.py answers $m                          # to the training prompts
    python bench/real_model.py judge $m --judge untrained          # each answer's score by the model itself
    python bench/real_model.py eft $m                              # a judge trained on length-balanced Yes and No
    python bench/real_model.py judge $m --judge trained
    python bench/real_model.py arm $m --arm program --seed 1       # pairs, DPO, held-out answers; and so on
    python bench/real_model.py table $m                            # bench/results/real_model.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import rankdata

from constraint_families import answers as draw_answers
from constraint_judge import QUESTION, Row, log_odds
from metareward.engines.base import run_concurrently
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.evaluation.constraints.prompts import draw_held_out, draw_prompts
from metareward.evaluation.constraints.world import check_answer
from metareward.evaluation.judge_quality.calibration import calibration
from metareward.method.paired import paired_difference
from metareward.method.pairs import PairRules, actor_pair
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.pair_files import write_pairs
from metareward.training.config import DpoJob, SftJob, SftSettings, TrainingSettings
from metareward.training.launch import run_training
from metareward.types import Candidate, Message, PreferencePair, Prompt, PromptRecord, Sampling

TRAINING_PROMPTS, SAMPLES, K, PAIRS = 400, 8, 6, 300
HELD_OUT, HELD_OUT_SAMPLES, HELD_OUT_SEED = 300, 2, 5
POOL_SEED = 11
EFT_PAIRS = 504
ACTOR = Sampling(0.7, 0.95, 160)
# As a prototype found them on other prompts (5e-5: 2e-5 learned little, 1e-4 taught loops).
DPO = TrainingSettings(
    learning_rate=5e-5,
    num_train_epochs=1,
    batch_size=8,
    per_device_train_batch_size=8,
    max_length=512,
    dtype="bfloat16",
    device="cpu",
)
ASKED = "Does the response follow the instruction?"
ARMS = ("program", "guards", "random", "longest", "shortest", "untrained", "trained")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a prompt. ``tokens``: its length."""

    prompt: str
    text: str
    finish: str
    tokens: int


# --- answers ---


def write_answers(path: Path, folder: Path, prompts: Sequence[Prompt], samples: int, seed: int) -> None:
    """``samples`` answers to each prompt, if the file isn't there."""
    if path.is_file():
        return
    texts = [prompt.messages[-1].content for prompt in prompts]
    found = asyncio.run(draw_answers(folder, texts, samples, ACTOR, seed, "bfloat16"))
    rows = (
        {"prompt": prompt, "answer": each.text, "finish": each.finish, "tokens": each.tokens}
        for prompt, completions in zip(texts, found, strict=True)
        for each in completions
    )
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_answers(path: Path) -> dict[str, list[Answer]]:
    """The answers in a file of `write_answers`, by prompt."""
    found: dict[str, list[Answer]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answer = Answer(row["prompt"], row["answer"], row["finish"], row["tokens"])
        found.setdefault(answer.prompt, []).append(answer)
    return found


# --- the judge: one question, one token ---


async def _judge(folder: Path, answers: Sequence[Answer]) -> list[float]:
    engine = await open_local(folder, LocalSettings(dtype="float32", workers=1, deterministic=False))
    try:
        rows = (Row(each.prompt, each.text, each.finish) for each in answers)
        return list(await run_concurrently(log_odds(engine, row, ASKED) for row in rows))
    finally:
        await engine.aclose()


def write_scores(path: Path, folder: Path, answers: Sequence[Answer]) -> None:
    """The judge's score of every answer, if the file isn't there."""
    if not path.is_file():
        write_atomic(path, json.dumps(asyncio.run(_judge(folder, answers))))


# --- pairs ---


def scores_of(arm: str, answers: Sequence[Answer], seed: int, judged: Mapping[tuple[str, str], float]) -> list[float]:
    """An arm's score of every answer to one prompt."""
    if arm == "program":
        return [check_answer(each.prompt, each.text).share for each in answers]
    if arm == "random":
        rng = random.Random(derive(seed, answers[0].prompt, "random pairs"))
        return [rng.random() for _ in answers]
    if arm in ("longest", "shortest"):
        return [len(each.text) * (1.0 if arm == "longest" else -1.0) for each in answers]
    if arm == "guards":
        return [float(sum(astuple(check_answer(each.prompt, each.text).guards))) for each in answers]
    return [judged[each.prompt, each.text] for each in answers]


def arm_pairs(
    arm: str, pool: Mapping[str, list[Answer]], seed: int, judged: Mapping[tuple[str, str], float]
) -> list[PreferencePair]:
    """An arm's pairs: of each prompt the best against the worst of K answers, cut-off ones left out.

    All arms have the same prompts: the first ones, in the seed's order, whose answers the program doesn't score alike.
    """
    rng, pairs = random.Random(seed), list[PreferencePair]()
    for prompt in rng.sample(sorted(pool), len(pool)):
        chosen = random.Random(derive(seed, prompt)).sample(pool[prompt], K)
        answers = list({each.text: each for each in chosen}.values())
        found = [_pair(arm, prompt, answers, seed, judged), _pair("program", prompt, answers, seed, judged)]
        if all(found) and len(pairs) < PAIRS:
            pairs.append(found[0])  # type: ignore[arg-type]
    return pairs


def _pair(
    arm: str, prompt: str, answers: Sequence[Answer], seed: int, judged: Mapping[tuple[str, str], float]
) -> PreferencePair | None:
    scores = scores_of(arm, answers, seed, judged)
    candidates = tuple(
        Candidate(i, each.text, "length" if each.finish == "length" else "stop", each.tokens, (), reward=score)
        for i, (each, score) in enumerate(zip(answers, scores, strict=True))
    )
    record = PromptRecord(Prompt(prompt, (Message("user", prompt),)), candidates, duplicates=(), dispute=None)
    pair = actor_pair(record, PairRules(on_tie="random", min_valid=1), seed)
    return pair if isinstance(pair, PreferencePair) else None


def labels(pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """How often the chosen side passes and the rejected one doesn't, and the other way round; lengths in characters."""
    passed = [
        tuple(check_answer(pair.prompt_id, side).passes for side in (pair.chosen, pair.rejected)) for pair in pairs
    ]
    better = [
        np.sign(check_answer(pair.prompt_id, pair.chosen).share - check_answer(pair.prompt_id, pair.rejected).share)
        for pair in pairs
    ]
    return {
        "pairs": len(pairs),
        "passing_over_failing": passed.count((True, False)),
        "failing_over_passing": passed.count((False, True)),
        "better_score_chosen": float(np.mean([each > 0 for each in better])),
        "worse_score_chosen": float(np.mean([each < 0 for each in better])),
        "chosen_longer": fmean(len(pair.chosen) > len(pair.rejected) for pair in pairs),
        "chosen_chars": fmean(len(pair.chosen) for pair in pairs),
        "rejected_chars": fmean(len(pair.rejected) for pair in pairs),
    }


# --- arms ---


def measured(answers: Mapping[str, list[Answer]]) -> dict[str, Any]:
    """Each held-out prompt's share of passing answers, in the order of the prompts, and means of all answers."""
    checked = {prompt: [check_answer(prompt, each.text) for each in rows] for prompt, rows in answers.items()}
    flat = [each for rows in checked.values() for each in rows]
    every = [each for rows in answers.values() for each in rows]
    return {
        "passes": [fmean(each.passes for each in rows) for rows in checked.values()],
        "constraints": [fmean(all(each.constraints) for each in rows) for rows in checked.values()],
        "score": [fmean(each.share for each in rows) for rows in checked.values()],
        "guards": {name: fmean(getattr(each.guards, name) for each in flat) for name in asdict(flat[0].guards)},
        "all_guards": fmean(all(astuple(each.guards)) for each in flat),
        "cut_off": fmean(each.finish == "length" for each in every),
        "tokens": fmean(each.tokens for each in every),
        "chars": fmean(len(each.text) for each in every),
    }


def run_arm(work: Path, model: Path, arm: str, seed: int, keep: bool) -> None:
    """Pairs, DPO, held-out answers; the trained model is removed unless ``keep``."""
    held_out = draw_held_out(HELD_OUT, HELD_OUT_SEED)
    folder = work / f"{arm}-{seed}"
    if arm == "m0":
        write_answers(work / "m0.jsonl", model, held_out, 2 * HELD_OUT_SAMPLES, HELD_OUT_SEED)
        return
    folder.mkdir(parents=True, exist_ok=True)
    output, texts = folder / "model", folder / "held-out.jsonl"
    if not texts.is_file():
        pairs = arm_pairs(arm, read_answers(work / "pool.jsonl"), seed, _judged(work, arm))
        write_pairs(folder / "pairs.parquet", pairs)
        write_atomic(folder / "labels.json", json.dumps(labels(pairs)))
        job = DpoJob(
            settings=DPO,
            start=model,
            reference=model,
            data=(folder / "pairs.parquet",),
            output=output,
            log=folder / "training.jsonl",
            seed=seed,
        )
        began = time.monotonic()
        run_training(job, lambda step: print(f"{arm}-{seed} {time.monotonic() - began:.0f}s {step}", flush=True))
        write_answers(texts, output, held_out, HELD_OUT_SAMPLES, derive(seed, "held-out"))
    if not keep:
        shutil.rmtree(output, ignore_errors=True)


def _judged(work: Path, arm: str) -> dict[tuple[str, str], float]:
    path = work / f"scores-{arm}.json"
    if not path.is_file():
        return {}
    answers = [each for rows in read_answers(work / "pool.jsonl").values() for each in rows]
    scores = json.loads(path.read_text(encoding="utf-8"))
    return {(each.prompt, each.text): score for each, score in zip(answers, scores, strict=True)}


# --- the judge's training ---


def length_balanced(pool: Mapping[str, list[Answer]], seed: int) -> list[tuple[Answer, Answer]]:
    """(passing, failing) answers of one prompt, whole ones; the passing one is longer as often as shorter.

    At most two pairs of each kind and prompt, so that no prompt rules.
    """
    rng, longer, shorter = random.Random(seed), list[tuple[Answer, Answer]](), list[tuple[Answer, Answer]]()
    for rows in pool.values():
        whole = list({each.text: each for each in rows if each.finish == "stop"}.values())
        passes = [check_answer(each.prompt, each.text).passes for each in whole]
        good = [each for each, passed in zip(whole, passes, strict=True) if passed]
        bad = [each for each, passed in zip(whole, passes, strict=True) if not passed]
        pairs = rng.sample([(a, b) for a in good for b in bad], len(good) * len(bad))
        longer += [pair for pair in pairs if len(pair[0].text) > len(pair[1].text)][:2]
        shorter += [pair for pair in pairs if len(pair[0].text) < len(pair[1].text)][:2]
    count = min(len(longer), len(shorter), EFT_PAIRS // 2)
    return rng.sample(longer, count) + rng.sample(shorter, count)


EFT = SftSettings(
    learning_rate=4e-5,
    min_lr=0.0,
    num_train_epochs=1,
    batch_size=16,
    per_device_train_batch_size=8,
    max_length=512,
    dropout=0.0,
    warmup_ratio=0.05,
    save_steps=21,
    dtype="bfloat16",
    device="cpu",
)


def run_eft(work: Path, model: Path) -> None:
    """Train the judge on length-balanced Yes and No examples."""
    pairs = length_balanced(read_answers(work / "pool.jsonl"), 0)
    examples = [(each, verdict) for pair in pairs for each, verdict in zip(pair, ("Yes", "No"), strict=True)]
    rows = (
        {
            "prompt": [
                {"role": "user", "content": QUESTION.format(prompt=each.prompt, answer=each.text, question=ASKED)}
            ],
            "completion": [{"role": "assistant", "content": verdict}],
        }
        for each, verdict in random.Random(0).sample(examples, len(examples))
    )
    write_atomic(work / "eft.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(examples)} examples", flush=True)
    job = SftJob(
        settings=EFT, start=model, data=(work / "eft.jsonl",), output=work / "judge", log=work / "eft-training.jsonl"
    )
    began = time.monotonic()
    run_training(job, lambda step: print(f"eft {time.monotonic() - began:.0f}s {step}", flush=True))


# --- tables ---


def comparisons(answers: Sequence[Answer], scores: Sequence[float]) -> Iterator[tuple[str, int, float]]:
    """(prompt, whether the passing answer is longer: 1, 0 or -1; 1, 0.5 or 0 for the score) for every passing and
    failing answer of one prompt.
    """
    rows: dict[str, list[tuple[Answer, float, bool]]] = {}
    for each, score in zip(answers, scores, strict=True):
        if each.finish == "stop":
            rows.setdefault(each.prompt, []).append((each, score, check_answer(each.prompt, each.text).passes))
    for prompt, found in rows.items():
        for good, score, passed in found:
            for bad, other, passed_too in found:
                if passed and not passed_too:
                    sign = int(np.sign(len(good.text) - len(bad.text)))
                    yield prompt, sign, (score > other) + 0.5 * (score == other)


def auc(found: Sequence[tuple[str, int, float]], draws: int = 2000) -> dict[str, float]:
    """How often the passing answer has the higher score, with a 95 % interval over prompts.

    ``balanced`` weighs comparisons in which the passing answer is longer and those in which it is shorter alike, so
    that length alone has 0.5 there.
    """
    prompts = sorted({prompt for prompt, _, _ in found})
    place = {prompt: i for i, prompt in enumerate(prompts)}
    sums = np.zeros((len(prompts), 3, 2))
    for prompt, sign, value in found:
        sums[place[prompt], sign + 1] += (value, 1)
    rng = np.random.default_rng(0)
    picks = rng.integers(len(prompts), size=(draws, len(prompts)))
    drawn = np.concatenate([sums.sum(axis=0)[None], sums[picks].sum(axis=1)])  # (draws + 1, 3, 2)
    every = drawn[:, :, 0].sum(axis=1) / drawn[:, :, 1].sum(axis=1)
    balanced = (drawn[:, 0, 0] / drawn[:, 0, 1] + drawn[:, 2, 0] / drawn[:, 2, 1]) / 2
    result: dict[str, float] = {"prompts": len(prompts), "comparisons": len(found)}
    for name, values in (("auc", every), ("balanced", balanced)):
        low, high = np.quantile(values[1:], [0.025, 0.975])
        result |= {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return result


def auc_of_checks(answers: Sequence[Answer], scores: Sequence[float], draws: int = 500) -> dict[str, list[float]]:
    """AUC over all answers, of all prompts, cut off or not, for each thing that the program checks: does an answer that
    has it have a higher score than one that hasn't? With a 95 % interval over prompts.
    """
    checked = [check_answer(each.prompt, each.text) for each in answers]
    things = {
        "passes": [each.passes for each in checked],
        "constraints": [all(each.constraints) for each in checked],
        **{name: [getattr(each.guards, name) for each in checked] for name in asdict(checked[0].guards)},
    }
    rows: dict[str, list[int]] = {}
    for place, each in enumerate(answers):
        rows.setdefault(each.prompt, []).append(place)
    groups, rng = [np.array(own) for own in rows.values()], np.random.default_rng(0)
    picks = [np.arange(len(answers))]
    picks += [np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]) for _ in range(draws)]
    values_N = np.asarray(scores)
    found = {}
    for name, has in things.items():
        has_N = np.asarray(has)
        areas = [_auc(values_N[pick], has_N[pick]) for pick in picks]
        found[name] = [areas[0], *map(float, np.quantile(areas[1:], [0.025, 0.975]))]
    return found


def _auc(scores_N: Any, has_N: Any) -> float:
    """The share of (has, hasn't) pairs in which the score is higher; ties count half."""
    count = has_N.sum()
    ranks = rankdata(scores_N)[has_N].sum() - count * (count + 1) / 2
    return float(ranks / (count * (len(has_N) - count)))


def judge_table(work: Path, judges: Sequence[str]) -> dict[str, Any]:
    """Each judge on M0's held-out answers, by kind of prompt, beside length and chance."""
    rows = read_answers(work / "m0.jsonl")
    answers = [each for own in rows.values() for each in own]
    kinds = {
        prompt.messages[-1].content: prompt.id.removeprefix("held-out-").rpartition("-")[0]
        for prompt in draw_held_out(HELD_OUT, HELD_OUT_SEED)
    }
    rng = random.Random(0)
    scores: dict[str, Sequence[float]] = {
        "longer wins": [len(each.text) for each in answers],
        "random": [rng.random() for _ in answers],
    }
    for judge in judges:
        path = work / f"held-out-scores-{judge}.json"
        if path.is_file():
            scores[judge] = json.loads(path.read_text(encoding="utf-8"))
    result: dict[str, Any] = {}
    for name, own in scores.items():
        found = list(comparisons(answers, own))
        result[name] = {"all": auc(found)} | {
            kind: auc([each for each in found if kinds[each[0]] == kind]) for kind in ("topic", "combination", "family")
        }
        result[name]["checks"] = auc_of_checks(answers, own)
        if name in judges:  # P(Yes) of every answer, cut off or not, beside whether it passes
            yes = [1 / (1 + math.exp(-score)) for score in own]
            held = calibration(yes, [check_answer(each.prompt, each.text).passes for each in answers])
            result[name]["calibration"] = held and asdict(held)
    return result


def _stored_arms(out: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of an earlier table with the same settings, by name and seed: their work folders may be gone."""
    earlier = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    return dict(earlier["arms"]) if earlier.get("settings") == settings else {}


def table(work: Path, out: Path) -> None:
    """All that is measured so far, seeds of an earlier table included."""
    result: dict[str, Any] = {
        "settings": {
            "dpo": DPO.model_dump(mode="json"), "eft": EFT.model_dump(mode="json"), "k": K, "pairs": PAIRS,
            "training_prompts": TRAINING_PROMPTS, "held_out": HELD_OUT, "held_out_samples": HELD_OUT_SAMPLES,
        },
        "m0": measured(read_answers(work / "m0.jsonl")),
        "judges": judge_table(work, ("untrained", "trained")),
        "arms": {},
    }  # fmt: skip
    base = np.array([result["m0"]["passes"]])
    stored = _stored_arms(out, result["settings"])
    for arm in ARMS:
        seeds = stored.get(arm, {})
        for folder in sorted(work.glob(f"{arm}-[0-9]*")):
            if (folder / "held-out.jsonl").is_file():
                own = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
                seeds[folder.name.rpartition("-")[2]] = {"labels": own} | measured(
                    read_answers(folder / "held-out.jsonl")
                )
        if seeds:
            result["arms"][arm] = seeds
            found = paired_difference(base, np.array([each["passes"] for each in seeds.values()]))
            print(
                f"{arm:12} {len(seeds)} seeds  {found.mean_b:.3f}  {found.difference:+.3f} [{found.low}, {found.high}]"
            )
            print(
                " " * 12,
                {k: round(fmean(each[k] for each in seeds.values()), 2) for k in ("tokens", "cut_off", "all_guards")},
            )
    print("M0", fmean(result["m0"]["passes"]), {k: result["m0"][k] for k in ("tokens", "cut_off", "all_guards")})
    for name, each in result["judges"].items():
        print(name, {kind: round(each[kind]["balanced"], 3) for kind in ("all", "topic", "combination", "family")})
        print(" " * 8, {thing: [round(v, 2) for v in values] for thing, values in each["checks"].items()})
    write_atomic(out, json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("answers", "judge", "eft", "arm", "table"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--judge", choices=("untrained", "trained"), default="untrained")
    parser.add_argument("--arm", choices=("m0", *ARMS), default="program")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the trained model")
    parser.add_argument("--held-out", action="store_true", help="judge M0's held-out answers instead of the pool")
    parser.add_argument("--out", type=Path, default=Path("bench/results/real_model.json"))
    given = parser.parse_args()
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    if given.what == "answers":
        write_answers(work / "pool.jsonl", given.model, draw_prompts(TRAINING_PROMPTS, POOL_SEED), SAMPLES, POOL_SEED)
    elif given.what == "judge":
        folder = given.model if given.judge == "untrained" else work / "judge"
        source = work / ("m0.jsonl" if given.held_out else "pool.jsonl")
        answers = [each for rows in read_answers(source).values() for each in rows]
        write_scores(work / f"{'held-out-' * given.held_out}scores-{given.judge}.json", folder, answers)
    elif given.what == "eft":
        run_eft(work, given.model)
    elif given.what == "arm":
        run_arm(work, given.model, given.arm, given.seed, given.keep)
    else:
        table(work, given.out)


if __name__ == "__main__":
    main()
