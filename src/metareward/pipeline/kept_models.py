"""Deletes the weights of models that nothing in the run needs any more (``training.keep_models``).

M_t is evaluated, generates, and is start and reference of M_{t+1}; once iteration t + 1 is done, its weights are needed
for nothing. What was measured of it stays, with its digest, configuration and lineage. The last model, the start model
and whatever the recipe names keep their weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from metareward.config.schema import Recipe
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.engines import model_folder
from metareward.storage import manifest
from metareward.storage.custody import delete_weights
from metareward.storage.run_log import log_event


def delete_old_weights(bound: BoundRecipe) -> None:
    """Delete the weights of all models but the last ``training.keep_models`` of the iterations that are done.

    Also those of moving averages, each after its model's. What a kill left undone is done by the next call.
    """
    keep, run = bound.recipe.training.keep_models, bound.run
    if keep == "all":
        return
    done = next((t for t in range(1, bound.last + 1) if not run.iteration(t).done.is_file()), bound.last + 1)
    named = {path.resolve() for path in _named_models(bound.recipe)}
    for t in range(1, done - keep):
        why = f"training.keep_models: {keep}"
        for folder in (bound.model(t), run.iteration(t).path / "reference"):
            if folder.is_dir() and folder.resolve() not in named and delete_weights(folder, why):
                manifest.forget(run, folder)
                manifest.record(run, folder)
                log_event(run, "weights deleted", folder=folder.relative_to(run.path).as_posix(), why=why)


def _named_models(recipe: Recipe) -> Iterator[Path]:
    """Every folder that the recipe names as a model."""
    yield model_folder(recipe.model)
    judges = (getattr(each, "model", None) for each in (recipe.judge, recipe.meta_judge))
    asked = (each.asked_judge for each in recipe.benchmarks)
    for name in (recipe.training.start, *judges, recipe.training.checkpoint_selection.judge, *asked):
        if name is not None:
            yield Path(name)


def most_models(recipe: Recipe) -> int:
    """The most trained models that have their weights at one time: those kept, and one that is being made."""
    keep, made = recipe.training.keep_models, len(recipe.iterations)
    return made if keep == "all" else min(made, keep + 1)
