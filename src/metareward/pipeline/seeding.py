"""Runs `metareward seed build`, `metareward sft` and `metareward prompts propose` with a recipe's model and settings.

Each resumes: the same command again does only what is pending.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from metareward.config.schema import Recipe
from metareward.config.sections import engine_fingerprint
from metareward.data.eft_from_labels import balance_written, meta_from_written, select_labelled
from metareward.data.propose import (
    Proposals,
    ProposalSettings,
    proposal_fingerprint,
    propose,
    usable_seeds,
    write_proposals,
)
from metareward.data.ranked import RankedPrompt, RankedSet
from metareward.data.seed_sets import (
    SeedSets,
    SeedSettings,
    judge_prompts,
    read_all_judged,
    select_sets,
    split_prompts,
    write_seed_sets,
)
from metareward.engines.base import Engine, LazyEngine
from metareward.errors import UserError
from metareward.generation.progress import Progress
from metareward.method.criteria import names_criteria
from metareward.method.template import load_template
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.engines import model_folder, open_engine
from metareward.seeds import derive
from metareward.storage.custody import fingerprint_model
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.training.config import SftJob, SftSettings
from metareward.training.launch import Step, TrainingResult, run_training
from metareward.types import Prompt, Sampling

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SeedOptions:
    """The settings of `SeedSettings` that a recipe doesn't have.

    ``judgment_sets``: judgments of each answer. ``judging``: false builds IFT and held-out sets only. ``templated``:
    EFT from labels or ranks, without asking the model (`metareward.data.eft_from_labels`); ``meta_judge``: also
    examples for the meta-judge. ``balance``: EFT in which length teaches nothing.
    """

    judgment_sets: int = 1
    ift_share: float = 0.5
    held_out_share: float = 0.25
    allow_ties: bool = False
    max_score_share: float = 0.4
    judging: bool = True
    balance: bool = False
    templated: bool = False
    meta_judge: bool = False


def build_seed_sets(
    recipe: Recipe,
    ranked: RankedSet,
    out: Path,
    options: SeedOptions,
    progress: Progress,
    held_out: Sequence[RankedPrompt] = (),
) -> SeedSets:
    """Build the seed sets in ``out``; unless EFT is templated, the recipe's model judges by its rubric.

    ``held_out`` are held out in place of a share of ``ranked``. Raises `UserError`.
    """
    if options.judging and not options.templated and names_criteria(recipe.judgments.rubric):
        why = "judgments by criteria are no text to train on; fix: name a text as rubric"
        raise UserError(f"judgments.rubric {recipe.judgments.rubric}: {why}")
    # EFT trains on a judgment's text, so its score is the one in the text, even if the recipe uses expected scores.
    annotation = replace(
        BoundRecipe(RunDir(out), recipe).settings(1),
        n=options.judgment_sets,
        meta_judge=False,
        expected=False,
        seed=derive(recipe.seed, "seeding"),
    )
    settings = SeedSettings(
        annotation,
        derive(recipe.seed, "seed sets"),
        ift_share=options.ift_share,
        held_out_share=0.0 if held_out else options.held_out_share,
        allow_ties=options.allow_ties,
        max_score_share=options.max_score_share,
    )
    split = split_prompts(ranked.prompts, settings)
    if held_out:
        split = replace(split, held_out=tuple(each for each in held_out if each.is_comparable))
    if options.templated:
        sets = select_labelled(ranked, split, settings, options.meta_judge, options.balance)
        with RunDir(out).lock():
            write_seed_sets(out, sets)
        return sets
    judging = options.judging and bool(split.eft)
    model = model_fingerprint(recipe) if judging else {}  # raises before anything is written

    def judge(engine: Engine) -> Awaitable[None]:
        return judge_prompts(engine, split.eft, settings, out, model, progress)

    with RunDir(out).lock():
        if judging:
            asyncio.run(with_engine(recipe, out, judge))
        sets = select_sets(ranked, split, settings, out if judging else None)
        if judging:
            sets = balance_written(sets, split, settings, options.balance)
            if options.meta_judge:
                meta = meta_from_written(split.eft, read_all_judged(out, split.eft), settings)
                sets = replace(sets, meta=meta, summary={**sets.summary, "meta_eft": len(meta)})
        write_seed_sets(out, sets)
    return sets


def propose_prompts(
    recipe: Recipe,
    seeds: Sequence[Prompt],
    wanted: int,
    out: Path,
    sampling: Sampling,
    exclude: Sequence[Prompt],
    progress: Progress,
) -> Proposals:
    """Propose ``wanted`` prompts like ``seeds`` with the recipe's model and write them to ``out``.

    None is similar to a prompt in ``exclude``. Raises `UserError`.
    """
    reasoning = BoundRecipe(RunDir(out), recipe).settings(1).reasoning
    seed, template = derive(recipe.seed, "proposing"), load_template("propose")
    settings = ProposalSettings(template, seed, sampling, reasoning=reasoning)
    usable_seeds(seeds, settings.limits)  # raises before anything is written
    fingerprint = {**proposal_fingerprint(seeds, exclude, settings), **model_fingerprint(recipe)}
    with RunDir(out).lock(), RecordStore.open(out / "proposals.sqlite", fingerprint) as store:

        def ask(engine: Engine) -> Awaitable[Proposals]:
            return propose(engine, seeds, wanted, settings, store, progress, exclude)

        proposals = asyncio.run(with_engine(recipe, out, ask))
        write_proposals(out, proposals)
    return proposals


def train_sft(
    model: str,
    data: Sequence[Path],
    out: Path,
    settings: SftSettings,
    progress: Progress,
    seed: int = 0,
    threads: int | None = None,
) -> TrainingResult:
    """Train the model in folder ``model`` (or 'pocket') on the examples in ``data``; the result is ``out``/model.

    ``threads`` None: as many as there are cores. Raises `UserError`.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    job = SftJob(
        settings=settings,
        start=model_folder(model),
        data=tuple(data),
        output=out / "model",
        log=out / "training.jsonl",
        seed=seed,
        threads=threads or cores,
    )
    started = False

    def on_step(step: Step) -> None:
        nonlocal started
        if not started:
            progress.start("supervised training", {"steps": int(step["steps"])})
            started = True
        progress.advance("steps", 1)

    with RunDir(out).lock():
        try:
            return run_training(job, on_step)
        finally:
            if started:
                progress.finish()


async def with_engine(recipe: Recipe, out: Path, task: Callable[[Engine], Awaitable[T]]) -> T:
    """Run ``task`` with the engine of the recipe's model, which is opened at the first request."""
    async with aclosing(LazyEngine(lambda: open_engine(recipe.engine, model_folder(recipe.model), 0, out))) as engine:
        return await task(engine)


def model_fingerprint(recipe: Recipe) -> dict[str, object]:
    """What decides a completion beside the request: the model's files and the engine."""
    return {"model": fingerprint_model(model_folder(recipe.model)), **engine_fingerprint(recipe.engine)}
