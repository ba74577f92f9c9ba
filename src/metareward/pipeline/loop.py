"""The loop (Meta-Rewarding section 2): M_t is measured and makes the records whose pairs train M_{t+1}.

Every stage does only what is owed, so the same command again goes on where it stopped.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from metareward.config.schema import Recipe
from metareward.generation.progress import Progress, terminal_progress
from metareward.generation.usage import log_usage, log_warnings
from metareward.pipeline import benchmarks as benchmarking
from metareward.pipeline import checkpoint_selection as choosing
from metareward.pipeline import stages
from metareward.pipeline.experiment import Experiment
from metareward.report.write import write_report
from metareward.storage.run_dir import RunDir, mark_done
from metareward.storage.run_log import log_event, stage_seconds


def run_recipe(recipe: Recipe, out: Path, recipe_text: str) -> bool:
    """Run ``recipe`` in folder ``out``, or go on with it there, to the report.

    Returns whether there was anything to do. Raises `UserError` for all that the user can mend.
    """
    run = RunDir(out)
    experiment = Experiment(run, recipe)
    experiment.check()  # before anything is written
    benchmarking.check(experiment)
    with run.lock(), log_warnings(run):
        experiment.begin(recipe_text)
        if experiment.complete() and run.report.is_file():
            return False
        progress = terminal_progress()
        for t in range(experiment.last + 1):
            _iterate(experiment, t, progress)
        if not run.report.is_file():
            write_report(run)
        return True


def _iterate(experiment: Experiment, t: int, progress: Progress) -> None:
    """Make M_t (M_0 is given), measure it, and let it make the records of the next iteration."""
    done = experiment.run.iteration(t).done
    if t and not done.is_file():
        stages.make_pairs(experiment, t)
        stages.train(experiment, t, progress)
        asyncio.run(choosing.choose(experiment, t, progress))
    asyncio.run(_use(experiment, t, progress))
    asyncio.run(benchmarking.ask_others(experiment, t, progress))
    if t and not done.is_file():
        experiment.run.report.unlink(missing_ok=True)  # it would outlive a kill, and know nothing of this iteration
        mark_done(done, {"model": f"M{t}", "seconds": stage_seconds(experiment.run, t)})
        log_event(experiment.run, "iteration done", iteration=t)
        write_report(experiment.run)


async def _use(experiment: Experiment, t: int, progress: Progress) -> None:
    """One engine for all that M_t is asked, and none if nothing is owed. It is closed before any training."""
    measuring, generating = stages.evaluation_pending(experiment, t), stages.records_pending(experiment, t + 1)
    if not (measuring or generating or benchmarking.needs_model(experiment, t)):
        return
    engine = log_usage(experiment.run, f"M{t}", await experiment.engine(t))
    try:
        if measuring:
            await stages.measure_model(experiment, t, engine, progress)
        await benchmarking.ask_model(experiment, t, engine, progress)
        if generating:
            await stages.generate(experiment, t + 1, engine, progress)
    finally:
        await engine.aclose()
