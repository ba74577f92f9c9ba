"""The loop (Meta-Rewarding section 2): M_t is evaluated and annotates the prompts whose pairs train M_{t+1}.

Every stage skips what is done, so the same command resumes a stopped run.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from metareward.config.schema import Recipe
from metareward.engines.base import Engine, LazyEngine
from metareward.engines.device import this_machine
from metareward.errors import JudgeHealthError
from metareward.generation.progress import Progress, terminal_progress
from metareward.generation.usage import log_usage, log_warnings
from metareward.pipeline import benchmarks, stages
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.checkpoint_selection import select_checkpoint
from metareward.pipeline.engines import EnginePool
from metareward.pipeline.fork import fork_of, require_parent
from metareward.pipeline.judge_check import check_before_first, check_is_settled
from metareward.pipeline.judge_health import check_health
from metareward.pipeline.kept_models import delete_old_weights
from metareward.pipeline.preflight import check_inputs, check_machine
from metareward.pipeline.trackers import track_iteration
from metareward.report.cards import write_model_card
from metareward.report.write import write_report
from metareward.storage import manifest
from metareward.storage.run_dir import RunDir, mark_done
from metareward.storage.run_log import log_event, stage_seconds

_LOG = logging.getLogger(__name__)


def run_recipe(recipe: Recipe, out: Path, recipe_text: str, parent: Path | None = None) -> bool:
    """Run ``recipe`` in folder ``out``, or resume it there, to the report.

    ``parent``: a run folder from which a new run takes over all that this recipe would make the same. Returns whether
    there was anything to do. Raises `UserError` for all that the user can mend, `JudgeHealthError` when a gate of judge
    health stops the run.
    """
    run = RunDir(out)
    bound = BoundRecipe(run, recipe)
    if run.resolved.is_file() or not bound.made_nothing:  # a start was killed before it had begun a run
        require_whole_run(run)
    fork = None
    if parent is not None and run.fork.is_file():
        require_parent(run, parent)
    elif parent is not None:
        fork = fork_of(bound, RunDir(parent))
    if bound.complete():
        bound.check()
        benchmarks.check(bound)
    else:  # before anything is written
        machine = this_machine()
        check_inputs(bound)
        check_machine(bound, machine)
        if machine.gpus and recipe.engine.kind == "local":
            _LOG.warning("engine.kind is local on a machine with %s; on GPUs vLLM is faster (docs/engines.md)", machine)
    with run.lock(), log_warnings(run):
        bound.begin(recipe_text)
        if fork is not None:
            fork.take_over()
        manifest.bring_up_to_date(run)
        delete_old_weights(bound)
        if bound.complete() and run.report.is_file() and not benchmarks.pending(bound):
            return False
        with asyncio.Runner() as runner:  # an engine that is kept between models lives in one event loop
            loop = _Loop(bound, terminal_progress(), runner, EnginePool())
            try:
                for t in range(bound.last + 1):
                    loop.run_iteration(t)
            except JudgeHealthError:
                write_report(run)
                raise
            finally:
                runner.run(loop.pool.aclose())
        if not run.report.is_file():
            write_report(run)
        return True


# What no record, pair, model or measurement follows from: a start only says that it isn't what was recorded.
_NOTES = frozenset({"recipe.yaml", "environment.json", "fork.json", "seconds.json", "training.jsonl", "README.md"})


def require_whole_run(run: RunDir) -> None:
    """Raise `UserError` if a recorded file isn't what it was, or is gone although its iteration is done.

    What an iteration that isn't done lacks is made again. A finished run has all of its files.
    """
    broken = []
    for each in manifest.quick_problems(run):
        if Path(each.name).name in _NOTES:
            if not each.missing:
                _LOG.warning("%s: %s; no result follows from it", run.path / each.name, each.reason)
        elif not (each.missing and _is_made_again(run, each.name)):
            broken.append(each)
    if broken:
        raise manifest.damage_error(run, broken)


def _is_made_again(run: RunDir, name: str) -> bool:
    """Whether the next start makes a recorded file again if it is missing."""
    first, *inside = Path(name).parts
    if not first.startswith("iter-") or inside == ["prompts.jsonl"]:
        return first in ("judge_check.json", "judge_health.json", "verdicts")
    if inside == ["records.sqlite"] and (run.path / first / "pairs" / "summary.json").is_file():
        return False  # the pairs stay
    return not (run.path / first / "done.json").is_file()


@dataclass(frozen=True, slots=True)
class _Loop:
    """What all iterations share."""

    bound: BoundRecipe
    progress: Progress
    runner: asyncio.Runner
    pool: EnginePool

    def run_iteration(self, t: int) -> None:
        """Train M_t (M_0 is given), evaluate it, and annotate the prompts of iteration t + 1 with it."""
        bound, progress, run = self.bound, self.progress, self.runner.run
        done = bound.run.iteration(t).done
        if t and not done.is_file():
            stages.make_pairs(bound, t)
            check_health(bound)
            stages.train(bound, t, progress)
            run(select_checkpoint(bound, t, progress, self.pool.open))
        run(self._use_model(t))
        run(benchmarks.ask_others(bound, t, progress))
        if t and not done.is_file():
            bound.run.report.unlink(missing_ok=True)  # after a kill it would lack this iteration
            mark_done(done, {"model": f"M{t}", "seconds": stage_seconds(bound.run, t)})
            manifest.record(bound.run, done, write_model_card(bound.run, t))
            log_event(bound.run, "iteration done", iteration=t)
            track_iteration(bound.run, t)
            delete_old_weights(bound)
            write_report(bound.run)

    async def _use_model(self, t: int) -> None:
        """One engine for everything that M_t generates, opened only if something is pending, closed before training."""
        bound, progress = self.bound, self.progress
        check_health(bound)
        evaluating, generating = stages.evaluation_pending(bound, t), stages.records_pending(bound, t + 1)
        checking = t == 0 and not check_is_settled(bound)
        if not (checking or evaluating or generating or benchmarks.needs_model(bound, t)):
            return

        async def opened() -> Engine:
            return log_usage(bound.run, f"M{t}", await bound.engine(t, self.pool.open))

        asks = checking or generating or benchmarks.needs_model(bound, t) or not stages.is_measured(bound, t)
        engine = await opened() if asks else LazyEngine(opened)
        if t == bound.last:
            self.pool.stop_keeping()
        try:
            if checking:
                await check_before_first(bound, engine, progress)
            if evaluating:
                await stages.evaluate_model(bound, t, engine, progress)
                check_health(bound)
            await benchmarks.ask_model(bound, t, engine, progress)
            if generating:
                await stages.generate(bound, t + 1, engine, progress)
        except BaseException:
            self.pool.stop_keeping()
            raise
        finally:
            await engine.aclose()
