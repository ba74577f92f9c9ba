"""The whole path of a real model: prompts of the constraint world, the judge's check, constrained expected scores,
pairs, DPO, evaluation and report, on a tiny model of SmolLM2's kind, and on SmolLM2 where its folder is.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tiny_models import tiny_smollm2
from training_world import changed, train_here

from metareward.config.schema import load_recipe
from metareward.engines.local.engine import LocalEngine
from metareward.evaluation.constraints.prompts import draw_prompts
from metareward.generation.progress import SILENT
from metareward.method.template import load_template
from metareward.pipeline import stages
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.judge_check import check_before_first
from metareward.pipeline.judge_health import check_health
from metareward.pipeline.loop import run_recipe
from metareward.report.facts import gather
from metareward.report.write import write_report
from metareward.storage.run_dir import RunDir

FOLDER = Path(__file__).parents[2] / "models" / "smollm2"
SMALL = (
    "prompts.per_iteration=8",
    "prompts.held_out=8",
    "answers.k=3",
    "evaluation.answers=1",
    "judge_check.count=6",
    "engine.workers=1",
    "engine.threads=1",
    "benchmarks=[]",
    "iterations.2=drop",
)
TINY = ("answers.max_tokens=48", "training.learning_rate=1e-3")


def tiny(folder: Path) -> Path:
    texts = [prompt.messages[-1].content for prompt in draw_prompts(200, 1)]
    return tiny_smollm2(folder, [*texts, load_template("short_judge").text])


def check_run(run: RunDir) -> None:
    found = gather(run)
    assert found.judge_check is not None and found.judge_check.n_pairs % 2 == 0
    summary = found.iterations[1].summary
    assert summary is not None and summary.actor_pairs >= 2
    assert sum(summary.readings.values()) == summary.readings["scored"]  # constrained: every judgment is readable
    first, last = found.evaluations
    kinds = {"passes_topic": 4, "passes_combination": 2, "passes_family": 2}
    for measured in (first.metrics, last.differences):
        assert {name: measured[name].n for name in kinds} == kinds
    assert {"constraints_met", "guard_finished", "answer_truncated", "answer_chars"} <= last.differences.keys()
    told = run.report.read_text(encoding="utf-8")
    assert "8 held-out prompts drawn by the run's seed" in told and "Judge on labelled pairs" in told
    lineage = json.loads((run.iteration(1).model / "lineage.json").read_text(encoding="utf-8"))
    assert sum(lineage["examples"].values()) == summary.actor_pairs


def test_a_tiny_model_of_smollm2_s_kind_goes_through_the_stages(tmp_path: Path) -> None:
    """The loop's stages in this process, which spares three starts of torch."""
    of = BoundRecipe(
        RunDir(tmp_path / "run"), load_recipe("smollm2", [f"model={tiny(tmp_path / 'model')}", *SMALL, *TINY])
    )
    with of.run.lock():
        of.begin("")

    async def use(t: int) -> None:
        engine = LocalEngine.open(of.model(t), device="cpu", dtype="float32", max_num_seqs=32, deterministic=False)
        try:
            if t == 0:
                await check_before_first(of, engine, SILENT)
            await stages.evaluate_model(of, t, engine, SILENT)
            if t == 0:
                await stages.generate(of, 1, engine, SILENT)
        finally:
            await engine.aclose()

    asyncio.run(use(0))
    stages.make_pairs(of, 1)
    train_here(changed(stages.training_job(of, 1), threads=1))
    asyncio.run(use(1))
    check_health(of)
    write_report(of.run)
    check_run(of.run)


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True])
def test_a_whole_run_with_its_processes(tmp_path: Path, real: bool) -> None:
    if real and not FOLDER.is_dir():
        pytest.skip("no models/smollm2: metareward model smollm2 --out models/smollm2 --network makes it")
    model = FOLDER if real else tiny(tmp_path / "model")
    recipe, out = load_recipe("smollm2", [f"model={model}", *SMALL, *(() if real else TINY)]), tmp_path / "run"
    assert run_recipe(recipe, out, "")
    assert not run_recipe(recipe, out, "")  # a finished run does nothing
    check_run(RunDir(out))
