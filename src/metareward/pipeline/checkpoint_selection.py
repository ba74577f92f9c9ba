"""Which epoch of a training becomes M_t, where the recipe gives a rule (`metareward.training.checkpoints`).

Every epoch answers and judges the held-out prompts as M_t itself will, and its figures
are those that the report shows. ``win_rate`` is against M0's answers, in percent, as the model itself judges both, and
``oracle_win_rate`` as the oracle does, where there is one. A judge that the recipe names judges both too:
``judge_win_rate``, and ``judge_agreement``, the rank correlation (Spearman's) of the model's judgments of M0's answers
with that judge's. Beside ``iter-t/eval`` stand the records and the figures of each epoch.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from metareward.engines.base import Engine
from metareward.evaluation.held_out import HeldOut, evaluate, held_out_metrics, held_out_records, judged_again
from metareward.evaluation.win_rates import held_out_win_rates, win_rate_by
from metareward.generation.progress import Progress
from metareward.method.scores import mean, valid_scores
from metareward.method.stats import spearman
from metareward.pipeline import stages
from metareward.pipeline.engines import open_engine, open_judge_engine
from metareward.pipeline.experiment import Experiment
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.custody import fingerprint_model
from metareward.storage.run_log import log_event, timed
from metareward.storage.store import RecordStore
from metareward.training.checkpoints import epoch_checkpoint, promote_epoch, select_epoch
from metareward.training.config import DpoJob

_IN_FLIGHT = 256


async def choose(of: Experiment, t: int, progress: Progress) -> None:
    """Make the best epoch M_t, unless that is done or nothing is to be chosen. Raises `UserError`."""
    settings = of.recipe.training.checkpoint_selection
    if settings.metric is None:
        return
    job = stages.training_job(of, t)
    if not job.output.is_dir():
        with timed(of.run, t, "choosing"):
            epochs = range(1, job.settings.last_epoch + 1)
            measured = {epoch: await _metrics(of, t, job, epoch, progress) for epoch in epochs}
        start = _means(json.loads(stages.evaluation_result(of, t - 1).read_text(encoding="utf-8"))["metrics"])
        selected = select_epoch(measured, settings, start)
        log_event(of.run, "chosen", model=f"M{t}", epoch=selected.epoch, why=selected.reason)
        promote_epoch(job, selected.epoch, keep_all=True)
    if not settings.keep_all:
        shutil.rmtree(job.product, ignore_errors=True)


async def _metrics(of: Experiment, t: int, job: DpoJob, epoch: int, progress: Progress) -> Mapping[str, float]:
    """The figures of one epoch, measured unless they are there."""
    folder, place = epoch_checkpoint(job, epoch), of.run.iteration(t).evaluation
    result = place / f"epoch-{epoch}.json"
    if result.is_file():
        return dict(json.loads(result.read_text(encoding="utf-8")))
    place.mkdir(parents=True, exist_ok=True)
    engine = await open_engine(of.recipe.engine, folder, t, of.run.iteration(t).path)
    try:
        records = await _answers(of, t, folder, place / f"epoch-{epoch}.sqlite", engine, progress)
    finally:
        await engine.aclose()
    found = figures_of(of, records) | await _judged(of, records, progress)
    write_atomic(result, json.dumps(found, indent=2) + "\n")
    return found


async def _answers(
    of: Experiment, t: int, folder: Path, place: Path, engine: Engine, progress: Progress
) -> tuple[HeldOut, ...]:
    anchors, fingerprint = stages.anchors_by_prompt(of), {"model": fingerprint_model(folder), "iteration": t}
    prompts = tuple(prompt for prompt in of.held_out if prompt.id in anchors)
    settings, meta_pairs = of.evaluation_settings(), of.recipe.evaluation.meta_pairs
    with RecordStore.open(place, fingerprint) as store:
        outcome = await evaluate(engine, prompts, settings, meta_pairs, store, anchors, progress, _IN_FLIGHT)
        stages.check_failed_prompts(of, f"choosing an epoch of M{t}", outcome)
        return held_out_records(store)


def figures_of(of: Experiment, records: Sequence[HeldOut]) -> dict[str, float]:
    """All that can be measured without another judge."""
    anchors, seed = stages.anchors_by_prompt(of), derive(of.recipe.seed, "intervals")
    found = _means(held_out_metrics(records, anchors, of.oracle, seed))
    names = {"itself": "win_rate", "oracle": "oracle_win_rate"}
    fought = held_out_win_rates(records, {"M0": tuple(anchors.values())}, of.oracle, seed)
    return found | {names[duel.judge]: duel.win_rate for duel in fought}


async def _judged(of: Experiment, records: Sequence[HeldOut], progress: Progress) -> dict[str, float]:
    """The figures that need the judge named in the recipe; none where none is named."""
    name = of.recipe.training.checkpoint_selection.judge
    if name is None:
        return {}
    judge = await open_judge_engine(name)
    try:
        again = await asyncio.gather(*(_again(of, judge, record, progress) for record in records))
    finally:
        await judge.aclose()
    duel = win_rate_by(name, again, derive(of.recipe.seed, "intervals"))
    agreement = _agreement(records, again)
    found = {} if duel is None else {"judge_win_rate": duel.win_rate}
    return found if agreement is None else found | {"judge_agreement": agreement}


async def _again(of: Experiment, judge: Engine, record: HeldOut, progress: Progress) -> HeldOut:
    settings = replace(of.evaluation_settings(), seed=derive(of.recipe.seed, "choosing"))
    own = await judged_again(judge, record.prompt, record.own, settings, progress)
    return replace(
        record, own=own, anchors_K=await judged_again(judge, record.prompt, record.anchors_K, settings, progress)
    )


def _agreement(records: Sequence[HeldOut], again: Sequence[HeldOut]) -> float | None:
    """Spearman's correlation of the mean scores that two judges gave M0's answers; None where it isn't defined."""
    both = [
        (mean(valid_scores(mine)), mean(valid_scores(theirs)))
        for record, other in zip(records, again, strict=True)
        for mine, theirs in zip(record.anchors_K, other.anchors_K, strict=True)
        if valid_scores(mine) and valid_scores(theirs)
    ]
    return spearman([mine for mine, _ in both], [theirs for _, theirs in both])


def _means(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {name: each["mean"] for name, each in metrics.items()}
