from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
from run_folders import HELD_OUT, PROMPTS, bound_recipe, model_folder, small_run
from scripted_models import reply
from whole_runs import invoke

from metareward.engines.base import ScriptedEngine
from metareward.errors import UserError
from metareward.evaluation.held_out import held_out_records
from metareward.generation.progress import SILENT
from metareward.pipeline import stages
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.compare_runs import compare_runs, plot_runs
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.types import Messages, Sampling


def longer(messages: Messages, sampling: Sampling, index: int) -> str:
    """Every text is seven characters longer."""
    return f"Indeed {reply(messages, sampling, index)}"


def evaluated(
    folder: Path, out: str, *changes: str, weights: str = "m1", generates: Callable[..., str] = reply
) -> BoundRecipe:
    """A run with M0 and M1 evaluated and the pairs of iteration 1; M1 writes longer where it has other weights."""
    of = bound_recipe(folder, *changes, out=out)
    with of.run.lock():
        of.begin("name: scripted\n")
    asyncio.run(stages.evaluate_model(of, 0, ScriptedEngine(reply), SILENT))
    asyncio.run(stages.generate(of, 1, ScriptedEngine(generates), SILENT))
    stages.make_pairs(of, 1)
    model_folder(of.model(1), weights)
    engine = ScriptedEngine(reply if weights == "m1" else longer)
    asyncio.run(stages.evaluate_model(of, 1, engine, SILENT))
    return of


def lengths(of: BoundRecipe, t: int) -> list[float]:
    with RecordStore.read(of.run.iteration(t).evaluation / "records.sqlite") as store:
        return [fmean(len(answer.text) for answer in record.own) for record in held_out_records(store)]


def test_runs_are_compared_by_recipe_and_on_the_same_prompts(tmp_path: Path) -> None:
    a = evaluated(tmp_path, "a")
    b = evaluated(tmp_path, "b", "training.beta=0.3", "name=other", weights="other")
    found = compare_runs(a.run, b.run)
    assert found.recipe == ("training.beta (0.1 -> 0.3)",)
    assert found.notes == ("The same in both runs: M0.", "Iteration 1: the same records of 8 prompts in both runs.")
    assert list(found.outcomes) == ["Answer length (characters)"]
    (compared,) = found.outcomes["Answer length (characters)"]
    assert (compared.a, compared.b, compared.found.n_prompts) == ("M1 of a", "M1 of b", HELD_OUT)
    assert compared.found.mean_a == pytest.approx(fmean(lengths(a, 1)))
    assert compared.found.difference == pytest.approx(fmean(lengths(b, 1)) - fmean(lengths(a, 1)))
    assert found.beside["Pairs"]["iteration 1: actor pairs"]["first"] == len_pairs(a)
    assert {"readable_judgments, M1"} <= found.beside["Judge health, by model"].keys()
    assert found.beside["Cost, in seconds"].keys() == {"evaluating", "generating", "total"}


def test_runs_are_compared_on_the_prompts_of_an_iteration(tmp_path: Path) -> None:
    a, b = evaluated(tmp_path, "a"), evaluated(tmp_path, "b", generates=longer)
    found = compare_runs(a.run, b.run)
    assert found.notes == ("The same in both runs: M0, M1.",)
    (compared,) = found.outcomes["Prompts of the iterations: Answer length (characters)"]
    assert (compared.a, compared.b) == ("M0 in iteration 1 of a", "M0 in iteration 1 of b")
    assert compared.found.n_prompts == PROMPTS and compared.found.difference == pytest.approx(7.0)


def len_pairs(of: BoundRecipe) -> int:
    return int(json.loads(of.run.iteration(1).summary.read_text())["actor_pairs"])


def test_the_command_prints_both_and_plots(tmp_path: Path) -> None:
    a, b = evaluated(tmp_path, "a"), evaluated(tmp_path, "b", weights="other")
    told = invoke(["compare", str(a.run.path), str(b.run.path), "--out", str(tmp_path / "plot.svg")])
    assert told.exit_code == 0, told.output
    assert told.output.startswith("the recipes differ in:\n  nothing\n")
    assert "M1 of a and M1 of b" in told.output and "The same in both runs: M0." in told.output
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    numbers = json.loads(invoke(["compare", str(a.run.path), str(b.run.path), "--json"]).output)
    assert numbers["outcomes"]["Answer length (characters)"][0]["n_prompts"] == HELD_OUT


def test_other_prompts_are_not_compared(tmp_path: Path) -> None:
    a, b = evaluated(tmp_path, "a"), bound_recipe(tmp_path, out="b")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("something", "anything"))
    b = evaluated(tmp_path, "b", weights="other")
    found = compare_runs(a.run, b.run)
    assert found.outcomes == {} and "M1: no held-out prompt in common." in found.notes
    with pytest.raises(UserError, match="nothing to plot"):
        plot_runs(found, tmp_path / "plot.svg")


def test_runs_without_models_are_compared_by_recipe(tmp_path: Path) -> None:
    first, second = small_run(tmp_path / "a"), small_run(tmp_path / "b")
    for run in (first, second):
        for t in (0, 1):
            (run.iteration(t).evaluation / "model.json").unlink()
    assert compare_runs(first, second).recipe == ()


def test_a_run_is_not_compared_with_itself_or_with_no_run(tmp_path: Path) -> None:
    run = small_run(tmp_path / "a")
    with pytest.raises(UserError, match="both are the same run; fix: name two"):
        compare_runs(run, RunDir(tmp_path / "b/../a"))
    with pytest.raises(UserError, match="this is no run folder"):
        compare_runs(run, RunDir(tmp_path / "nowhere"))
