"""The four stages of an iteration. Each skips what is done already and logs what it did.

generate    M_{t-1} answers, judges and meta-judges the prompts of iteration t     iter-t/records.sqlite
make_pairs  preference pairs from the records                                       iter-t/pairs/
train       DPO on the pairs makes M_t, in a child process                         iter-t/model/
evaluate    M_t is measured on the held-out prompts                                iter-t/eval/
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from metareward.config.schema import pairs_rules
from metareward.engines.base import Engine
from metareward.errors import UserError
from metareward.evaluation.held_out import (
    HeldOut,
    evaluate,
    held_out_differences,
    held_out_metrics,
    held_out_records,
    held_out_win_rates,
    score_histogram,
)
from metareward.generation.annotate import AnnotationSettings, EarlierRecord, misread
from metareward.generation.progress import Progress
from metareward.generation.runner import RunnerResult, annotate_prompts
from metareward.method.diagnostics import summarize
from metareward.method.pairs import build_pairs, of_kind
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.changes import shared_part
from metareward.pipeline.judge_health import FirstPrompts, figures_of_evaluation, figures_of_records
from metareward.seeds import derive
from metareward.storage import manifest
from metareward.storage.atomic import write_atomic
from metareward.storage.pair_files import write_dropped, write_pairs
from metareward.storage.records import find_record, read_records
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import log_event, stage_seconds, timed
from metareward.storage.store import MEND, RecordStore
from metareward.training.config import DpoJob
from metareward.training.launch import Step, run_training
from metareward.types import PairKind, Prompt, PromptRecord

# Prompts that keep failing (too long for the model, for example) are skipped up to this share.
_MAX_FAILED_SHARE = 0.05


async def generate(bound: BoundRecipe, t: int, engine: Engine, progress: Progress) -> None:
    """Make the records of iteration ``t`` with M_{t-1}. Raises `JudgeHealthError` if their beginning fails a gate."""
    run = bound.run
    with timed(run, t, "generating"), _records(bound, t) as store, _earlier_records(bound, t) as earlier:
        first = FirstPrompts(bound, t, store)
        settings = bound.settings(t)
        prompts, in_flight = _wanted(bound, t, store), bound.recipe.prompts.in_flight
        outcome = await annotate_prompts(engine, prompts, settings, store, progress, in_flight, first.add, earlier)
    if not outcome.failed:
        manifest.forget(run, run.iteration(t).earlier)
        run.iteration(t).earlier.unlink(missing_ok=True)
    check_failed_prompts(bound, f"iteration {t}", outcome)
    if _has_pairs(bound, t):
        manifest.record(run, run.iteration(t).records)
        require_same_records(run, t)


def records_pending(bound: BoundRecipe, t: int) -> bool:
    """Whether prompts of iteration ``t`` lack a record. Raises `UserError` for records that another recipe made."""
    if t > bound.last or (_has_pairs(bound, t) and not manifest.made_again(bound.run, t)):
        return False
    with _records(bound, t) as store:
        return not store.keys().issuperset(prompt.id for prompt in _wanted(bound, t, store))


def _wanted(bound: BoundRecipe, t: int, store: RecordStore) -> tuple[Prompt, ...]:
    """The prompts to annotate: all; once there are pairs, those that the pairs were built from."""
    failed = store.failures() if _has_pairs(bound, t) else {}
    return tuple(prompt for prompt in bound.prompts(t) if prompt.id not in failed)


def require_same_records(run: RunDir, t: int) -> None:
    """Raise `UserError` if iteration ``t``'s records aren't those that its pairs were built from."""
    folder = run.iteration(t)
    made_from = manifest.pairs_made_from(run, t)
    if made_from and folder.records.is_file() and manifest.entry_of(folder.records).sha256 != made_from:
        raise UserError(
            f"{folder.records}: the pairs beside it were built from other records: those that were made again differ; "
            f"fix: restore the earlier file, or run metareward verify {run.path} --repair to build the pairs again"
        )


def make_pairs(bound: BoundRecipe, t: int) -> None:
    """Write iteration ``t``'s pairs, the dropped prompts with reasons, and a summary with figures of judge health."""
    folder = bound.run.iteration(t)
    if _has_pairs(bound, t):
        require_same_records(bound.run, t)
        return
    with _records(bound, t) as store:
        records = tuple(read_records(store))
        made_from = store.content_digest()
    require_readings(folder.records, records, bound.settings(t))
    pairs, dropped = build_pairs(records, pairs_rules(bound.recipe, t), bound.rubric, bound.recipe.seed)
    actor, judge = of_kind(pairs, "actor"), of_kind(pairs, "judge")
    write_pairs(folder.pairs("actor"), actor)
    write_pairs(folder.pairs("judge"), judge)
    write_dropped(folder.dropped, dropped)
    figures = figures_of_records(bound, t, records, pairs)
    summary = {
        **summarize(t, records, pairs, dropped),
        "judge_health": {name: asdict(figure) for name, figure in figures.items()},
    }
    write_atomic(folder.summary, json.dumps(summary, indent=2) + "\n")  # last: it marks the pairs as complete
    made = (folder.records, folder.dropped, folder.pairs("actor"), folder.pairs("judge"), folder.summary)
    manifest.record(bound.run, *made, made_from=made_from)
    log_event(bound.run, "pairs", iteration=t, actor=len(actor), judge=len(judge), dropped=len(dropped))


def require_readings(path: Path, records: Iterable[PromptRecord], settings: AnnotationSettings) -> None:
    """Raise `UserError` for a record whose stored scores and verdicts aren't those in its texts."""
    for record in records:
        comparisons = () if record.dispute is None else record.dispute.meta
        _require_read(path, record.prompt, misread(record.candidates_K, comparisons, settings))


def require_held_out_readings(path: Path, records: Iterable[HeldOut], settings: AnnotationSettings) -> None:
    """The same for held-out records."""
    for record in records:
        comparisons = [each.meta for each in record.comparisons]
        _require_read(path, record.prompt, misread((*record.own, *record.anchors_K), comparisons, settings))


def _require_read(path: Path, prompt: Prompt, problem: str | None) -> None:
    if problem is not None:
        raise UserError(f"{path}: {json.dumps(prompt.id)}: {problem}; fix: {MEND}")


def _has_pairs(bound: BoundRecipe, t: int) -> bool:
    return bound.run.iteration(t).summary.is_file()


def train(bound: BoundRecipe, t: int, progress: Progress) -> None:
    """Train M_t; with checkpoint selection, save the models of all epochs."""
    bound.make_reference(t)
    job, run = training_job(bound, t), bound.run
    used = (run.iteration(t - 1).model, run.iteration(t).path / "reference", run.iteration(t).path / "pairs")
    manifest.require_whole(run, *used)
    if bound.model(t).is_dir():
        run_training(job, lambda _: None)  # checks that this job made the model
        return
    manifest.forget(run, job.log)
    began = False

    def on_step(step: Step) -> None:
        nonlocal began
        if not began:
            progress.start(f"training M{t}", {"steps": int(step["steps"])})
            began = True
        progress.advance("steps", 1)

    with timed(bound.run, t, "training"):
        try:
            result = run_training(job, on_step)
        finally:
            if began:
                progress.finish()
    manifest.record(run, result.output, job.log)
    lineage = result.lineage
    unpacked = {"unpacked_because": lineage.not_packed} if job.settings.prefix_sharing and lineage.not_packed else {}
    pairs, steps = sum(lineage.examples.values()), lineage.steps
    log_event(bound.run, "trained", model=f"M{t}", pairs=pairs, steps=steps, seconds=result.seconds, **unpacked)


def training_job(bound: BoundRecipe, t: int) -> DpoJob:
    """The training job of M_t on the kinds of pairs that exist. Raises `UserError` when there are no pairs."""
    folder = bound.run.iteration(t)
    summary = json.loads(folder.summary.read_text(encoding="utf-8"))
    counts: dict[PairKind, int] = {"actor": summary["actor_pairs"], "judge": summary["judge_pairs"]}
    kinds = tuple(kind for kind, count in counts.items() if count)
    if kinds:
        return bound.job(t, kinds)
    readings = summary["readings"]
    reasons = [
        f"{count} {kind} {reason.replace('_', ' ')}"
        for kind, dropped in summary["dropped"].items()
        for reason, count in dropped.items()
    ]
    raise UserError(
        f"{folder.path}: iteration {t} gave no pairs: of {sum(readings.values())} judgments {readings['scored']} have "
        f"a readable score ({', '.join(reasons)}); {folder.dropped.name} there says why for each prompt, and "
        f"`metareward show {bound.run.path} --prompt ID` shows one prompt's trace"
    )


async def evaluate_model(bound: BoundRecipe, t: int, engine: Engine, progress: Progress) -> None:
    """Measure M_t on the held-out prompts."""
    anchors = anchors_by_prompt(bound) if t else None
    # A prompt that M_0 failed on has no anchor to compare models on.
    prompts = tuple(prompt for prompt in bound.held_out if anchors is None or prompt.id in anchors)
    meta_pairs, settings = bound.recipe.evaluation.meta_pairs, bound.evaluation_settings()
    with timed(bound.run, t, "evaluating"):
        with RecordStore.open(_evaluation_records(bound, t), bound.evaluation_fingerprint(t)) as store:
            outcome = await evaluate(engine, prompts, settings, meta_pairs, store, anchors, progress)
            check_failed_prompts(bound, f"evaluating M{t}", outcome)
            records = held_out_records(store)
        require_held_out_readings(store.path, records, settings)
        anchors = anchors or {record.prompt.id: record for record in records}
        seed = derive(bound.recipe.seed, "intervals")
        metrics = held_out_metrics(records, anchors, bound.oracle, seed)
        differences = held_out_differences(records, anchors, bound.oracle) if t else {}
        win_rates = held_out_win_rates(records, _opponents(bound, t), bound.oracle, seed) if t else ()
        figures = figures_of_evaluation(bound, t, records, anchors)
    result = {
        "model": f"M{t}",
        "prompts": len(records),
        "seconds": stage_seconds(bound.run, t)["evaluating"],
        "metrics": metrics,
        "differences": differences,
        "score_histogram": score_histogram(records),
        "win_rates": [asdict(each) for each in win_rates],
        "judge_health": {name: asdict(figure) for name, figure in figures.items()},
    }
    write_atomic(evaluation_result(bound, t), json.dumps(result, indent=2) + "\n")
    manifest.record(bound.run, _evaluation_records(bound, t), evaluation_result(bound, t))
    log_event(
        bound.run,
        "evaluated",
        model=f"M{t}",
        **{name: metrics[name]["mean"] for name in _LOGGED if name in metrics},
    )


_LOGGED = (
    "answer_quality",
    "answer_chars",
    "judgment_exact",
    "judgment_rank_correlation",
    "anchor_score",
    "judgment_valid",
)


def evaluation_pending(bound: BoundRecipe, t: int) -> bool:
    """Whether M_t is still to be evaluated."""
    return not evaluation_result(bound, t).is_file()


def is_measured(bound: BoundRecipe, t: int) -> bool:
    """Whether M_t has a record of every held-out prompt, so that its figures need no model."""
    path = bound.run.iteration(t).evaluation / "records.sqlite"
    if not path.is_file():
        return False
    with RecordStore.read(path) as store:
        return store.keys().issuperset(prompt.id for prompt in bound.held_out)


def evaluation_result(bound: BoundRecipe, t: int) -> Path:
    """The file of M_t's metrics."""
    return bound.run.iteration(t).evaluation / "model.json"


def _evaluation_records(bound: BoundRecipe, t: int) -> Path:
    folder = bound.run.iteration(t).evaluation
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: can't be made: {error.strerror}; fix: free space or rights, then run again"
        ) from None
    return folder / "records.sqlite"


def anchors_by_prompt(bound: BoundRecipe) -> dict[str, HeldOut]:
    """M_0's held-out records by prompt id."""
    return {record.prompt.id: record for record in held_out_of(bound, 0)}


def held_out_of(bound: BoundRecipe, t: int) -> tuple[HeldOut, ...]:
    """M_t's held-out records."""
    with RecordStore.read(_evaluation_records(bound, t)) as store:
        return held_out_records(store)


def _opponents(bound: BoundRecipe, t: int) -> dict[str, tuple[HeldOut, ...]]:
    """The records of M_0 and of M_{t-1}."""
    return {f"M{each}": held_out_of(bound, each) for each in sorted({0, t - 1})}


def _records(bound: BoundRecipe, t: int) -> RecordStore:
    return RecordStore.open(bound.run.iteration(t).records, bound.generation_fingerprint(t))


@contextmanager
def _earlier_records(bound: BoundRecipe, t: int) -> Iterator[Callable[[str], EarlierRecord | None]]:
    """What a fork's parent has of a prompt, by its id."""
    path = bound.run.iteration(t).earlier
    if not path.is_file():
        yield lambda _: None
        return
    with RecordStore.read(path) as store:
        shared = shared_part(store.differences(bound.generation_fingerprint(t)))

        def find(prompt: str) -> EarlierRecord | None:
            record = None if shared is None else find_record(store, prompt)
            return None if record is None else EarlierRecord(record, judged=shared == "judgments")

        yield find


def check_failed_prompts(bound: BoundRecipe, what: str, outcome: RunnerResult) -> None:
    """Log failed prompts and go on without them. Raises `UserError` if they are more than 5 %."""
    if not outcome.failed:
        return
    prompt, error = outcome.failed[0]
    failed, total = len(outcome.failed), len(outcome.failed) + outcome.finished + outcome.cached
    message = f"{failed} of {total} prompts failed, the first ({prompt}) with: {error}"
    if failed > _MAX_FAILED_SHARE * total:
        raise UserError(f"{what}: {message}; run again to try them again")
    log_event(bound.run, "skipped prompts", stage=what, note=message)
