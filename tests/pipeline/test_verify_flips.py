"""A thousand flipped bits over all files of a finished and of half-done runs of the pocket world, and their repair."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from flips import Flip, apply, contents, draw_flips, flipped, outcome
from whole_runs import Workspace, documents, kill_tree, run_results

from metareward.errors import UserError
from metareward.pipeline.run_list import list_runs
from metareward.pipeline.status import status_text
from metareward.pipeline.verify import verify
from metareward.report.facts import gather
from metareward.storage.run_dir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

SEED = 1
ITERATIONS = 2
SMALL = (
    *("prompts.per_iteration=16", "prompts.held_out=8", "answers.k=4", "judgments.n=4", "judgments.min_valid=2"),
    *("iterations.3=drop", "iterations.4=drop", "engine.workers=1", "training.save_steps=1", "training.batch_size=4"),
)


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    words = [word for change in SMALL for word in ("--set", change)]
    return Workspace(folder).command("run", "pocket", *words, "--out", name)


def killed(folder: Path, name: str, when: Callable[[RunDir], bool], *again: str) -> RunDir:
    """A run that goes on where the finished one was before it made ``again`` of iteration 2, and is killed."""
    run, until = RunDir(Path(shutil.copytree(folder / "finished", folder / name))), time.monotonic() + 1500
    for each in (*again, "pairs", "dropped.jsonl", "model", "eval", "done.json", "training.jsonl"):
        path = run.iteration(2).path / each
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    process = Workspace(folder).command("run", name)
    while not when(run):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)
    kill_tree(process)
    return run


def is_generating(run: RunDir) -> bool:
    with suppress(UserError):
        return len(documents(run.iteration(2).records)) >= 5
    return False


def is_training(run: RunDir) -> bool:
    return any(run.iteration(2).path.glob(".model.unfinished/kept/*/resume_state.json"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """A finished run, one that was killed while M1 generated, and one that was killed while M2 was trained."""
    folder = tmp_path_factory.mktemp("pocket")
    process = start(folder, "finished")
    _, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors
    made = {"generating": killed(folder, "generating", is_generating, "records.sqlite")}
    made["training"] = killed(folder, "training", is_training)
    return {"finished": RunDir(folder / "finished"), **made}


@pytest.mark.parametrize(("name", "count"), [("finished", 1000), ("generating", 500), ("training", 500)])
def test_every_flip_is_noticed_or_changes_nothing_that_is_used(
    runs: dict[str, RunDir], name: str, count: int, tmp_path: Path
) -> None:
    run = RunDir(Path(shutil.copytree(runs[name].path, tmp_path / name)))
    assert not verify(run).findings
    before = contents(run)
    outcomes = Counter[str]()
    for number, flip in enumerate(draw_flips(run, SEED, count)):
        outcomes[outcome(run, flip, before)] += 1
        if number % 10 == 0:
            look_at(run, flip)
    print(name, SEED, outcomes)
    assert not verify(run).findings


def look_at(run: RunDir, flip: Flip) -> None:
    """No command has a traceback."""
    with flipped(flip):
        for command in (status_text, gather, lambda run: list_runs(run.path.parent)):
            with suppress(UserError):
                command(run)


@pytest.mark.parametrize("name", ["finished", "generating", "training"])
def test_what_is_repaired_ends_as_the_run_that_nobody_disturbed(
    runs: dict[str, RunDir], name: str, tmp_path: Path
) -> None:
    """One bit in each of a dozen files, and one record's score."""
    folder = runs[name].path.parent
    run = RunDir(Path(shutil.copytree(runs[name].path, folder / f"{name} damaged")))
    draw = random.Random(SEED)
    paths = [path for path in sorted(run.path.rglob("*")) if path.is_file() and path.stat().st_size > 100]
    chosen = [path for path in draw.sample(paths, len(paths)) if path.name not in ("recipe.yaml", "resolved.json")][:12]
    for path in chosen:
        apply(Flip(path, draw.randrange(path.stat().st_size), draw.randrange(8)))
    print([str(path.relative_to(run.path)) for path in chosen], *verify(run).findings, sep="\n")
    go_on = Workspace(folder)
    process = go_on.command("verify", run.path.name, "--repair")
    told, errors = process.communicate(timeout=600)
    assert process.returncode == 0 and "Traceback" not in errors, told + errors
    assert not verify(run).findings
    code, _, errors = go_on.go_on(run.path.name)
    assert code == 0 and "Traceback" not in errors, errors
    assert not verify(run).findings
    assert run_results(run, ITERATIONS) == run_results(runs["finished"], ITERATIONS)
