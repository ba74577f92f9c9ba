"""What stands behind `metareward seed build`, `metareward sft` and `metareward prompts propose`.

A recipe says which model is asked, by which engine, and how it judges; here it is taken apart, as `experiment` does it
for a run. Each of these does only what is owed: the same command again goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from metareward.config.schema import Recipe, engine_fingerprint
from metareward.data import propose as proposing
from metareward.data.propose import Proposals, ProposingSettings
from metareward.data.ranked import RankedSet
from metareward.data.seed_sets import SeedSets, SeedSettings, judge, parts_of, seed_sets, write_seed_sets
from metareward.engines.base import Engine, LazyEngine
from metareward.generation.progress import Progress
from metareward.method.template import load_template
from metareward.pipeline.engines import model_folder, open_engine
from metareward.pipeline.experiment import Experiment
from metareward.seeds import derive
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.training.lineage import fingerprint_model
from metareward.training.process import Step
from metareward.training.sft_job import SftJob
from metareward.training.sft_process import SftResult, teach_in_process
from metareward.types import Prompt, Sampling

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SeedChoices:
    """What of `SeedSettings` a recipe doesn't say; ``judging`` false leaves EFT for another time.

    ``tries`` is how many sets of judgments a prompt gets; of many tries one agrees by chance.
    """

    tries: int = 1
    ift_share: float = 0.5
    held_out_share: float = 0.25
    ties: bool = False
    most_share: float = 0.4
    judging: bool = True


def build_seed_sets(recipe: Recipe, ranked: RankedSet, out: Path, choices: SeedChoices, progress: Progress) -> SeedSets:
    """Make the seed sets in ``out``; the recipe's model judges, by its rubric. Raises `UserError`."""
    # What is taught is a judgment's text, so its score is the one that stands there, whatever the recipe goes by.
    asked = _of(recipe, out).settings(1)
    seed = derive(recipe.seed, "seeding")
    unit = replace(asked, n=choices.tries, meta_judge=False, expected=False, seed=seed)
    how = SeedSettings(
        unit=unit,
        seed=derive(recipe.seed, "seed sets"),
        ift_share=choices.ift_share,
        held_out_share=choices.held_out_share,
        ties=choices.ties,
        most_share=choices.most_share,
    )
    parts = parts_of(ranked, how)
    judging = choices.judging and bool(parts.eft)
    made_by = _made_by(recipe) if judging else {}  # before anything is written
    with RunDir(out).lock():
        if judging:
            asyncio.run(_asked(recipe, out, lambda engine: judge(engine, parts, how, out, made_by, progress)))
        sets = seed_sets(ranked, parts, how, out if judging else None)
        write_seed_sets(out, sets)
    return sets


def propose_prompts(
    recipe: Recipe,
    seeds: Sequence[Prompt],
    wanted: int,
    out: Path,
    sampling: Sampling,
    apart: Sequence[Prompt],
    progress: Progress,
) -> Proposals:
    """Have the recipe's model propose ``wanted`` prompts like ``seeds``, and write them into ``out``."""
    thinking = _of(recipe, out).settings(1).reasoning
    seed = derive(recipe.seed, "proposing")
    how = ProposingSettings(load_template("propose"), seed, sampling, reasoning=thinking)
    proposing.seed_texts(seeds, how.limits)  # before anything is written
    decided_by = {**proposing.fingerprint(seeds, apart, how), **_made_by(recipe)}
    with RunDir(out).lock(), RecordStore.open(out / "proposals.sqlite", decided_by) as store:
        found = asyncio.run(
            _asked(
                recipe,
                out,
                lambda engine: proposing.propose(engine, seeds, wanted, how, store, progress, apart),
            )
        )
        proposing.write_proposals(out, found)
    return found


def teach(model: str, data: Sequence[Path], out: Path, settings: Mapping[str, Any], progress: Progress) -> SftResult:
    """Teach the model in folder ``model`` (or 'pocket') the examples in ``data``; the result is ``out``/model.

    ``settings`` are those of `SftJob` that aren't its defaults. Raises `UserError`.
    """
    places = {"start": model_folder(model), "data": tuple(data), "output": out / "model", "log": out / "training.jsonl"}
    job = SftJob.checked({"threads": _cores(), **settings, **places})
    began = False

    def on_step(step: Step) -> None:
        nonlocal began
        if not began:
            progress.start("learning from examples", {"steps": int(step["steps"])})
            began = True
        progress.advance("steps", 1)

    with RunDir(out).lock():
        try:
            return teach_in_process(job, on_step)
        finally:
            if began:
                progress.finish()


async def _asked(recipe: Recipe, out: Path, work: Callable[[Engine], Awaitable[T]]) -> T:
    """``work`` with the recipe's model behind its engine, which is opened if anything is asked of it."""
    engine = LazyEngine(lambda: open_engine(recipe.engine, model_folder(recipe.model), 0, out))
    try:
        return await work(engine)
    finally:
        await engine.aclose()


def _made_by(recipe: Recipe) -> dict[str, object]:
    """What decides the texts of the recipe's model, beside how it is asked."""
    return {"model": fingerprint_model(model_folder(recipe.model)), **engine_fingerprint(recipe.engine)}


def _of(recipe: Recipe, out: Path) -> Experiment:
    return Experiment(RunDir(out), recipe)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
