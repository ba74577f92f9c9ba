"""The four stages of an iteration. Each does only what is owed, and says what it did.

generate    M_{t-1} answers, judges and meta-judges the prompts of iteration t     iter-t/records.sqlite
make_pairs  the records become preference pairs                                    iter-t/pairs/
train       DPO on the pairs makes M_t, in a process of its own                    iter-t/model/
evaluate    M_t is measured on the held-out prompts                                iter-t/eval/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metareward.config.schema import pairs_rules
from metareward.engines.base import Engine
from metareward.errors import UserError
from metareward.evaluation.held_out import HeldOut, evaluate, held_out_records, measure, score_histogram
from metareward.evaluation.win_rates import duels
from metareward.generation.progress import Progress
from metareward.generation.runner import SweepOutcome, sweep
from metareward.method.diagnostics import summarize
from metareward.method.pairs import PairSet, build_pairs
from metareward.pipeline.experiment import Experiment
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.pair_files import write_dropped, write_pairs
from metareward.storage.run_log import seconds, tell, timed
from metareward.storage.store import RecordStore, from_json
from metareward.training.job import DpoJob
from metareward.training.process import Step, run_in_process
from metareward.types import PairKind, PromptRecord

# Prompts that fail for good (too long for the model, say) may be left behind, but not silently many.
_MOST_FAILED = 0.05
# Prompts under way at once: enough to fill batches, few enough that a kill costs little. Held-out prompts are small.
_GENERATING, _EVALUATING = 64, 256


async def generate(of: Experiment, t: int, engine: Engine, progress: Progress) -> None:
    """Make the records of iteration ``t`` with M_{t-1}."""
    with timed(of.run, t, "generating"), _records(of, t) as store:
        outcome = await sweep(engine, of.prompts(t), of.settings(t), store, progress, _GENERATING)
    accept(of, f"iteration {t}", outcome)


def owes_records(of: Experiment, t: int) -> bool:
    """Whether prompts of iteration ``t`` are without a record. Raises `UserError` for records of another recipe."""
    if t > of.last or _has_pairs(of, t):
        return False
    with _records(of, t) as store:
        return len(store.keys()) < len(of.prompts(t))


def make_pairs(of: Experiment, t: int) -> None:
    """Turn the records of iteration ``t`` into pairs, the reasons why there are no more, and a summary."""
    if _has_pairs(of, t):
        return
    with _records(of, t) as store:
        records = tuple(from_json(document) for _, document in store.documents())
    pairs = build_pairs(records, pairs_rules(of.recipe, t), of.rubric, of.recipe.seed)
    _write_pairs(of, t, records, pairs)
    tell(of.run, "pairs", iteration=t, actor=len(pairs.actor), judge=len(pairs.judge), dropped=len(pairs.dropped))


def _write_pairs(of: Experiment, t: int, records: tuple[PromptRecord, ...], pairs: PairSet) -> None:
    folder = of.run.iteration(t)
    write_pairs(folder.pairs("actor"), pairs.actor)
    write_pairs(folder.pairs("judge"), pairs.judge)
    write_dropped(folder.dropped, pairs.dropped)
    summary = summarize(t, records, pairs, of.rubric)
    write_atomic(folder.summary, json.dumps(summary, indent=2) + "\n")  # last: it says that the pairs are whole


def _has_pairs(of: Experiment, t: int) -> bool:
    return of.run.iteration(t).summary.is_file()


def train(of: Experiment, t: int, progress: Progress) -> None:
    """Make M_t; where its epoch is still to be chosen, the models of all epochs."""
    of.average(t)
    job = training_job(of, t)
    if of.model(t).is_dir():
        run_in_process(job, lambda _: None)  # only checks that this job made it
        return
    began = False

    def on_step(step: Step) -> None:
        nonlocal began
        if not began:
            progress.start(f"training M{t}", {"steps": int(step["steps"])})
            began = True
        progress.advance("steps", 1)

    with timed(of.run, t, "training"):
        try:
            result = run_in_process(job, on_step)
        finally:
            if began:
                progress.finish()
    pairs, steps = sum(result.lineage.pairs.values()), result.lineage.steps
    tell(of.run, "trained", model=f"M{t}", pairs=pairs, steps=steps, seconds=result.seconds)


def training_job(of: Experiment, t: int) -> DpoJob:
    """The training of M_t. Raises `UserError` when there are no pairs."""
    return of.job(t, _kinds(of, t))


def _kinds(of: Experiment, t: int) -> tuple[PairKind, ...]:
    """The kinds of which there are pairs. Raises `UserError` when there are none at all: nothing can be learned."""
    summary = json.loads(of.run.iteration(t).summary.read_text(encoding="utf-8"))
    counts: tuple[tuple[PairKind, int], ...] = (("actor", summary["actor_pairs"]), ("judge", summary["judge_pairs"]))
    kinds = tuple(kind for kind, count in counts if count)
    if not kinds:
        raise UserError(_no_pairs(of, t, summary))
    return kinds


def _no_pairs(of: Experiment, t: int, summary: Mapping[str, Any]) -> str:
    """Why there are none, as far as counts can tell."""
    folder, readings = of.run.iteration(t), summary["readings"]
    reasons = [
        f"{count} {kind} {reason.replace('_', ' ')}"
        for kind, counts in summary["dropped"].items()
        for reason, count in counts.items()
    ]
    return (
        f"{folder.path}: iteration {t} gave no pairs: of {sum(readings.values())} judgments {readings['scored']} have "
        f"a readable score ({', '.join(reasons)}); {folder.dropped.name} there says why for each prompt, and "
        f"`metareward show {of.run.path} --prompt ID` tells the whole story of one"
    )


async def measure_model(of: Experiment, t: int, engine: Engine, progress: Progress) -> None:
    """Measure M_t on the held-out prompts."""
    anchors = anchors_of(of) if t else None
    # Without M_0's answer to it a prompt has nothing that models could be compared on.
    prompts = tuple(prompt for prompt in of.held_out if anchors is None or prompt.id in anchors)
    meta_pairs, settings = of.recipe.evaluation.meta_pairs, of.evaluation_settings()
    with timed(of.run, t, "evaluating"):
        with RecordStore.open(_evaluation_records(of, t), of.evaluation_fingerprint(t)) as store:
            outcome = await evaluate(engine, prompts, settings, meta_pairs, store, anchors, progress, _EVALUATING)
            accept(of, f"evaluating M{t}", outcome)
            records = held_out_records(store)
        known = anchors or {record.prompt.id: record for record in records}
        seed = derive(of.recipe.seed, "intervals")
        metrics = measure(records, known, of.oracle, seed)
        fought = duels(records, _earlier(of, t), of.oracle, seed) if t else ()
    found = {
        "model": f"M{t}",
        "prompts": len(records),
        "seconds": seconds(of.run, t)["evaluating"],
        "metrics": metrics,
        "score_histogram": score_histogram(records),
        "duels": [asdict(duel) for duel in fought],
    }
    write_atomic(evaluation_result(of, t), json.dumps(found, indent=2) + "\n")
    tell(of.run, "evaluated", model=f"M{t}", **{name: metrics[name]["mean"] for name in _TOLD if name in metrics})


_TOLD = (
    "answer_quality",
    "answer_chars",
    "judgment_exact",
    "judgment_rank_correlation",
    "anchor_score",
    "judgment_valid",
)


def owes_evaluation(of: Experiment, t: int) -> bool:
    """Whether M_t has not been measured."""
    return not evaluation_result(of, t).is_file()


def evaluation_result(of: Experiment, t: int) -> Path:
    """Where the figures of M_t are, once it has been measured."""
    return of.run.iteration(t).evaluation / "model.json"


def _evaluation_records(of: Experiment, t: int) -> Path:
    folder = of.run.iteration(t).evaluation
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: can't be made: {error.strerror}; fix: free space or rights, then run again"
        ) from None
    return folder / "records.sqlite"


def anchors_of(of: Experiment) -> dict[str, HeldOut]:
    """What M_0 did on each held-out prompt, by the prompt's id."""
    return {record.prompt.id: record for record in measured(of, 0)}


def measured(of: Experiment, t: int) -> tuple[HeldOut, ...]:
    """What M_t did on the held-out prompts."""
    with RecordStore.read(_evaluation_records(of, t)) as store:
        return held_out_records(store)


def _earlier(of: Experiment, t: int) -> dict[str, tuple[HeldOut, ...]]:
    """The records of M_0 and of M_{t-1}."""
    return {f"M{each}": measured(of, each) for each in sorted({0, t - 1})}


def _records(of: Experiment, t: int) -> RecordStore:
    return RecordStore.open(of.run.iteration(t).records, of.generation_fingerprint(t))


def accept(of: Experiment, what: str, outcome: SweepOutcome) -> None:
    """Go on without the prompts that failed if they are few. Raises `UserError` if they are many."""
    if not outcome.failed:
        return
    prompt, error = outcome.failed[0]
    failed, of_all = len(outcome.failed), len(outcome.failed) + outcome.finished + outcome.already
    told = f"{failed} of {of_all} prompts failed, the first ({prompt}) with: {error}"
    if failed > _MOST_FAILED * of_all:
        raise UserError(f"{what}: {told}; run again to try them again")
    tell(of.run, "left behind", stage=what, note=told)
