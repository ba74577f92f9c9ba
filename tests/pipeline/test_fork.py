"""A fork has what a fresh run of its recipe would make, asks for nothing that its parent has, and needs it no more."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from run_folders import PROMPTS, begin_fork, begin_recipe, bound_recipe, made, work
from scripted_models import reply, role_of
from whole_runs import Workspace, files, run_results

from metareward.engines.base import ScriptedEngine
from metareward.errors import UserError
from metareward.generation.progress import SILENT
from metareward.pipeline import stages
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.fork import fork_of, require_parent
from metareward.storage.run_dir import RunDir


def kept(folder: Path) -> dict[str, tuple[str, int]]:
    """The files of a run, but for the empty log that every reader of a store leaves."""
    return {name: found for name, found in files(folder).items() if not name.endswith("-wal")}


def fresh(folder: Path, *changes: str) -> BoundRecipe:
    of = bound_recipe(folder, *changes, out="fresh")
    with of.run.lock():
        of.begin("name: fresh\n")
    work(of)
    return of


@pytest.fixture
def parent(tmp_path: Path) -> BoundRecipe:
    of = begin_recipe(tmp_path)
    work(of)
    return of


ALL = {"actor", "judge", "meta"}
ITERATION_1 = [f"records of {PROMPTS} prompts", "pairs"]
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("changes", "asked", "reused", "anew"),
    [
        (("engine.workers=2", "training.device=cuda"), set(), ITERATION_1, "model: the parent has none"),
        (("iterations.1.rho=0.3",), set(), ITERATION_1[:1], "pairs: iterations.1.rho (0.0 -> 0.3)"),
        (("evaluation.judgments=3",), {"actor", "judge", "meta"}, ITERATION_1, "model: the parent has none"),
        (
            ("judgments.n=4",),
            {"judge", "meta"},
            [f"answers of {PROMPTS} prompts"],
            "judgments: judgments.n (3 -> 4)",
        ),
        (
            ("meta_judgments.temperature=0.5",),
            {"meta"} | ALL,  # the meta-judge's sampling also decides the evaluation
            [f"answers and judgments of {PROMPTS} prompts"],
            "meta-judgments: meta_judgments.temperature (0.8 -> 0.5)",
        ),
        (("answers.temperature=0.7",), ALL, None, "records: answers.temperature (0.8 -> 0.7)"),
        # Each of these takes the way of one above.
        slow((), set(), ITERATION_1, "model: the parent has none"),
        slow(("training.beta=0.2",), set(), ITERATION_1, "model: the parent has none"),
        slow(("iterations.2.rho=0.3",), set(), ITERATION_1, "model: the parent has none"),
        slow(("pairs.elo_prior=0.5",), set(), ITERATION_1[:1], "pairs: pairs.elo_prior (0.1 -> 0.5)"),
        slow(
            ("judgments.n=2",),
            {"judge", "meta"},
            [f"answers of {PROMPTS} prompts"],
            "judgments: judgments.n (3 -> 2)",
        ),
        slow(("judgments.min_valid=1",), {"meta"}, [f"answers and judgments of {PROMPTS} prompts"], "meta-judgments: "),
        slow(("answers.k=3",), ALL, None, "records: answers.k (4 -> 3)"),
        slow(("seed=1",), ALL, None, "records: "),
    ],
)
def test_a_fork_has_what_a_fresh_run_makes_and_asks_for_the_rest_alone(
    tmp_path: Path, parent: BoundRecipe, changes: tuple[str, ...], asked: set[str], reused: list[str] | None, anew: str
) -> None:
    before = kept(parent.run.path)
    fork = begin_fork(tmp_path, parent, *changes)
    assert kept(parent.run.path) == before
    found = json.loads(fork.run.fork.read_text())
    assert found["reused"].get("iteration 1") == reused
    assert found["anew"]["iteration 1"][0].startswith(anew)
    assert found["parent"] == "../run"
    shutil.rmtree(parent.run.path)
    assert set(work(fork)) == asked
    assert made(fork) == made(fresh(tmp_path, *changes))
    assert not fork.run.iteration(1).earlier.exists()


def test_without_the_meta_judge_answers_and_judgments_are_reused(tmp_path: Path, parent: BoundRecipe) -> None:
    changes = ("iterations.1.judge_pairs=false",)
    fork = begin_fork(tmp_path, parent, *changes)
    # M0's evaluation is the same, but no later iteration asks the meta-judge: its figures are made again.
    assert work(fork) == Counter()
    assert made(fork) == made(fresh(tmp_path, *changes))


@pytest.mark.slow
def test_answers_alone_are_asked_for_as_often_as_a_fresh_run_judges(tmp_path: Path, parent: BoundRecipe) -> None:
    fork = begin_fork(tmp_path, parent, "judgments.n=4")
    forked, whole = work(fork), work(experiment_begun(tmp_path, "judgments.n=4"))
    assert whole["actor"] > 0 and forked["actor"] == 0
    assert forked["meta"] == whole["meta"] - evaluation_calls(parent)["meta"]


def experiment_begun(folder: Path, *changes: str) -> BoundRecipe:
    of = bound_recipe(folder, *changes, out="again")
    with of.run.lock():
        of.begin("name: again\n")
    return of


def evaluation_calls(of: BoundRecipe) -> Counter[str]:
    """What evaluating M0 asks."""
    engine, folder = ScriptedEngine(reply), of.run.iteration(0).evaluation
    shutil.rmtree(folder)
    asyncio.run(stages.evaluate_model(of, 0, engine, SILENT))
    return Counter(role_of(call.messages) for call in engine.calls)


def test_an_unfinished_parent_gives_what_it_has(tmp_path: Path, parent: BoundRecipe) -> None:
    import sqlite3

    with sqlite3.connect(parent.run.iteration(1).records) as connection:
        connection.execute("DELETE FROM record WHERE key IN (SELECT key FROM record ORDER BY key LIMIT 3)")
    shutil.rmtree(parent.run.iteration(1).path / "pairs")
    fork = begin_fork(tmp_path, parent)
    assert json.loads(fork.run.fork.read_text())["reused"]["iteration 1"] == [f"records of {PROMPTS - 3} prompts"]
    assert work(fork)["actor"] == 3
    assert made(fork) == made(fresh(tmp_path))


def test_a_fork_that_was_begun_goes_on_without_its_parent(tmp_path: Path, parent: BoundRecipe) -> None:
    fork = begin_fork(tmp_path, parent, "judgments.n=4")
    shutil.rmtree(parent.run.path)
    with fork.run.lock():
        fork.begin("name: forked\n")
    assert work(fork)["actor"] == 0
    require_parent(fork.run, parent.run.path)
    with pytest.raises(UserError, match=r"other: .*fork is a fork of .*run; fix: name another folder with --out"):
        require_parent(fork.run, tmp_path / "other")


def test_a_fork_into_itself_or_of_no_run_is_refused(tmp_path: Path, parent: BoundRecipe) -> None:
    with pytest.raises(UserError, match="the fork needs a folder of its own; fix: name one with --out"):
        fork_of(parent, RunDir(tmp_path / "run"))
    with pytest.raises(UserError, match="nowhere: this is no run folder"):
        fork_of(parent, RunDir(tmp_path / "nowhere"))


# --- whole runs, with training ---


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("change", "models", "generated"),
    [
        ("training.beta=0.3", 0, {1: 0, 2: None}),
        ("iterations.2.learning_rate=2e-3", 1, {1: 0, 2: 0}),
        ("iterations.2.rho=0.3", 1, {1: 0, 2: 0}),
        ("judgments.n=4", 0, {}),
        ("name=other", 2, {1: 0, 2: 0}),
    ],
)
def test_a_whole_fork_is_byte_for_byte_a_fresh_run(
    workspace: Workspace, change: str, models: int, generated: dict[int, int | None]
) -> None:
    reference = workspace.reference()
    stem = change.replace("=", "-")
    parent = workspace.folder / f"parent of {stem}"
    shutil.copytree(reference.path, parent)
    before = kept(parent)
    process = workspace.command("run", "--from", parent.name, "--set", change, "--out", f"fork {stem}")
    told, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors
    assert kept(parent) == before
    shutil.rmtree(parent)
    code, told, errors = workspace.go_on(f"fork {stem}")
    assert code == 0 and "finished before, nothing to do" in told, errors
    assert workspace.run(f"fresh {stem}", "--set", change)[0] == 0
    fork, fresh_run = RunDir(workspace.folder / f"fork {stem}"), RunDir(workspace.folder / f"fresh {stem}")
    assert run_results(fork) == run_results(fresh_run)
    for t in (1, 2):
        assert (fork.iteration(t).model / "lineage.json").read_bytes() == (
            fresh_run.iteration(t).model / "lineage.json"
        ).read_bytes()
    found = json.loads(fork.fork.read_text())["reused"]
    assert [f"model M{t}" in found.get(f"iteration {t}", ()) for t in (1, 2)] == [models >= 1, models >= 2]
    log = [json.loads(line) for line in fork.log.read_text().splitlines()]
    assert [entry["model"] for entry in log if entry["event"] == "trained"] == [f"M{t}" for t in (1, 2) if t > models]
