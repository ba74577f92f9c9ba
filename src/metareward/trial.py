"""A recipe's engine tried out for a few seconds, in a folder that is thrown away."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from metareward.experiment import Experiment
from metareward.measuring import Rates, measure_rates
from metareward.recipe import Recipe
from metareward.rundir import RunDir


def try_out(recipe: Recipe, seconds: float) -> Rates:
    """How long a completion of each role of ``recipe`` takes M_0, measured for ``seconds`` a role.

    Raises `UserError` for a recipe that couldn't run, `EngineError` for an engine that doesn't serve.
    """
    with tempfile.TemporaryDirectory() as folder:
        of = Experiment(RunDir(Path(folder)), recipe)
        of.check()
        return asyncio.run(_measured(of, seconds))


async def _measured(of: Experiment, seconds: float) -> Rates:
    engine = await of.engine(0)
    try:
        return await measure_rates(engine, of.first_prompts, of.settings(of.meta_judged), seconds)
    finally:
        await engine.aclose()
