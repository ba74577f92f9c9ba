"""What `import metareward` adds to the packages' own names: run a recipe, read its records, open a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from metareward.config.schema import Recipe, load_recipe
from metareward.config.yaml_file import default_folder, recipe_text
from metareward.engines.base import Engine
from metareward.errors import UserError
from metareward.pipeline.engines import open_judge_engine
from metareward.pipeline.loop import run_recipe
from metareward.storage.records import read_records
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.types import PromptRecord


def run(
    recipe: str | Path | Recipe,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    parent: str | Path | None = None,
) -> Path:
    """Run a recipe to its report, or resume it, as ``metareward run`` does; returns the run folder.

    ``recipe``: a preset's name, the path of a YAML file, a run folder to go on with, or a `Recipe`. ``overrides``: as
    ``--set``, for example ``["judgments.n=5"]``; with a `Recipe` there can be none. ``out``: the run folder, by default
    ``runs/<name>``, or the one that is named. ``parent``: as ``--from``, a run to take over from. Call it outside a
    running event loop. Raises `UserError` with one line for what the user can mend.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise UserError("run: overrides go with a recipe's name or path; change the Recipe itself instead")
        loaded, text = recipe, json.dumps(recipe.resolved(), indent=2) + "\n"
        folder = Path("runs") / loaded.name
    else:
        loaded, text = load_recipe(str(recipe), overrides), recipe_text(str(recipe), overrides)
        folder = default_folder(str(recipe), loaded.name)
    folder = folder if out is None else Path(out)
    run_recipe(loaded, folder, text, None if parent is None else Path(parent))
    return folder


def load_records(run_dir: str | Path, iteration: int) -> tuple[PromptRecord, ...]:
    """The records of one iteration (from 1) of a run folder, in their order. Raises `UserError` if there are none."""
    path = RunDir(Path(run_dir)).iteration(iteration).records
    if not path.is_file():
        raise UserError(f"{path}: no records of iteration {iteration}; fix: name a run folder and an iteration it has")
    with RecordStore.read(path) as store:
        return tuple(read_records(store))


async def open_engine(name: str) -> Engine:
    """A model ready to complete: ``pocket``, a model folder, a recipe file (its model and engine), or ``URL#MODEL``.

    Close it with ``await engine.aclose()``. Raises `UserError` for a name that is none of these.
    """
    return await open_judge_engine(name)
