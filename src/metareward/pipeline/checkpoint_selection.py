"""Checkpoint selection: which epoch of a training becomes M_t, if the recipe has ``training.checkpoint_selection``.

Every epoch annotates the held-out prompts as M_t will, and gets the metrics of the report. ``win_rate`` compares its
answers with M0's, in percent, as judged by the model itself; ``oracle_win_rate`` by the oracle, if there is one. A
judge named in the recipe adds ``judge_win_rate`` and ``judge_agreement``, Spearman's correlation of the model's scores
of M0's answers with that judge's. Records and metrics of each epoch lie in ``iter-t/eval/epoch-*``.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace

from metareward.evaluation.held_out import (
    HeldOut,
    evaluate,
    held_out_metrics,
    held_out_records,
    held_out_win_rates,
    judged_again,
    win_rate_by,
)
from metareward.generation.progress import Progress
from metareward.method.scores import mean, valid_scores
from metareward.method.stats import spearman
from metareward.pipeline import stages
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.engines import OpenModel, open_engine, open_judge_engine
from metareward.seeds import derive
from metareward.storage import manifest
from metareward.storage.atomic import write_atomic
from metareward.storage.custody import fingerprint_model
from metareward.storage.run_log import log_event, timed
from metareward.storage.store import RecordStore
from metareward.training.checkpoints import epoch_checkpoint, promote_epoch, select_epoch
from metareward.training.config import DpoJob


async def select_checkpoint(bound: BoundRecipe, t: int, progress: Progress, open_own: OpenModel = open_engine) -> None:
    """Make the selected epoch M_t; does nothing if M_t exists or the recipe selects nothing. Raises `UserError`.

    ``open_own`` opens the engine of each epoch.
    """
    settings = bound.recipe.training.checkpoint_selection
    if settings.metric is None:
        return
    job = stages.training_job(bound, t)
    if not job.output.is_dir():
        with timed(bound.run, t, "choosing"):
            epochs = range(1, job.settings.last_epoch + 1)
            metrics = {epoch: await _epoch_metrics(bound, t, job, epoch, progress, open_own) for epoch in epochs}
        before = json.loads(stages.evaluation_result(bound, t - 1).read_text(encoding="utf-8"))["metrics"]
        selected = select_epoch(metrics, settings, _means(before))
        log_event(bound.run, "chosen", model=f"M{t}", epoch=selected.epoch, why=selected.reason)
        manifest.require_whole(bound.run, job.product)
        promote_epoch(job, selected.epoch, keep_all=True)
        manifest.forget(bound.run, epoch_checkpoint(job, selected.epoch))
        manifest.record(bound.run, job.output)
    if not settings.keep_all:
        manifest.forget(bound.run, job.product)
        shutil.rmtree(job.product, ignore_errors=True)


async def _epoch_metrics(
    bound: BoundRecipe, t: int, job: DpoJob, epoch: int, progress: Progress, open_own: OpenModel
) -> Mapping[str, float]:
    """The metrics of one epoch, from the file of an earlier start if there is one."""
    checkpoint, folder = epoch_checkpoint(job, epoch), bound.run.iteration(t).evaluation
    result = folder / f"epoch-{epoch}.json"
    if result.is_file():
        manifest.require_whole(bound.run, result)
        return dict(json.loads(result.read_text(encoding="utf-8")))
    manifest.require_whole(bound.run, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    anchors = stages.anchors_by_prompt(bound)
    prompts = tuple(prompt for prompt in bound.held_out if prompt.id in anchors)
    settings, meta_pairs = bound.evaluation_settings(), bound.recipe.evaluation.meta_pairs
    fingerprint = {"model": fingerprint_model(checkpoint), "iteration": t}
    engine = await open_own(bound.recipe.engine, checkpoint, t, bound.run.iteration(t).path)
    try:
        with RecordStore.open(folder / f"epoch-{epoch}.sqlite", fingerprint) as store:
            outcome = await evaluate(engine, prompts, settings, meta_pairs, store, anchors, progress)
            stages.check_failed_prompts(bound, f"choosing an epoch of M{t}", outcome)
            records = held_out_records(store)
    finally:
        await engine.aclose()
    metrics = own_metrics(bound, records) | await _judge_metrics(bound, records, progress)
    write_atomic(result, json.dumps(metrics, indent=2) + "\n")
    manifest.record(bound.run, result, result.with_suffix(".sqlite"))
    return metrics


def own_metrics(bound: BoundRecipe, records: Sequence[HeldOut]) -> dict[str, float]:
    """All metrics that need no other judge."""
    anchors, seed = stages.anchors_by_prompt(bound), derive(bound.recipe.seed, "intervals")
    names = {"itself": "win_rate", "oracle": "oracle_win_rate"}
    win_rates = held_out_win_rates(records, {"M0": tuple(anchors.values())}, bound.oracle, seed)
    metrics = _means(held_out_metrics(records, anchors, bound.oracle, seed))
    return metrics | {names[each.judge]: each.win_rate for each in win_rates}


async def _judge_metrics(bound: BoundRecipe, records: Sequence[HeldOut], progress: Progress) -> dict[str, float]:
    """The metrics of the judge named in the recipe; none if no judge is named."""
    name, seed = bound.recipe.training.checkpoint_selection.judge, bound.recipe.seed
    if name is None:
        return {}
    settings = replace(bound.evaluation_settings(), seed=derive(seed, "choosing"))
    judge = await open_judge_engine(name)

    async def rejudge(record: HeldOut) -> HeldOut:
        own = await judged_again(judge, record.prompt, record.own, settings, progress)
        anchors_K = await judged_again(judge, record.prompt, record.anchors_K, settings, progress)
        return replace(record, own=own, anchors_K=anchors_K)

    try:
        rejudged = await asyncio.gather(*map(rejudge, records))
    finally:
        await judge.aclose()
    scores = [
        (mean(valid_scores(mine)), mean(valid_scores(theirs)))
        for record, other in zip(records, rejudged, strict=True)
        for mine, theirs in zip(record.anchors_K, other.anchors_K, strict=True)
        if valid_scores(mine) and valid_scores(theirs)
    ]
    agreement = spearman([mine for mine, _ in scores], [theirs for _, theirs in scores])
    against_m0 = win_rate_by(name, rejudged, derive(seed, "intervals"))
    found = {"judge_win_rate": against_m0.win_rate if against_m0 else None, "judge_agreement": agreement}
    return {metric: value for metric, value in found.items() if value is not None}


def _means(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {name: each["mean"] for name, each in metrics.items()}
