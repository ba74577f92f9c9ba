from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metareward.errors import UserError
from metareward.pipeline.arms import ArmsExperiment, Slot, load_experiment, run_experiment, slots
from metareward.report.arms import read_figures_csv
from metareward.storage.lock import FolderLock
from metareward.storage.run_dir import RunDir

FILE = """\
recipe: pocket
set: {prompts.per_iteration: 8, prompts.held_out: 4, iterations.2: drop, iterations.3: drop, iterations.4: drop}
seeds: [1, 2]
arms:
  meta:
  self: {iterations.1.judge_pairs: false}
  k3: {answers.k: 3}
"""


def load(folder: Path, text: str = FILE) -> ArmsExperiment:
    (folder / "try.yaml").write_text(text)
    return load_experiment(folder / "try.yaml", folder / "out")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("recipe: pocket", "recipe:", "recipe: must be given"),
        ("seeds: [1, 2]", "seeds: []", "try.yaml:3: seeds: []: expected at least 1 of them"),
        ("seeds: [1, 2]", "seeds: 5", "try.yaml:3: seeds: 5: expected a list, such as [one, two]"),
        ("seeds: [1, 2]", "seeds: [1, 1]", "seeds: one is there twice; fix: give each once"),
        ("seeds: [1, 2]", "seeds: [-1]", "-1: expected a number that is at least 0"),
        ("  meta:\n", "  ../meta:\n", "arms: '../meta' can't name a folder; fix:"),
        ("  meta:\n", "  meta: {seed: 3}\n", "seed is set; fix: list the seeds under seeds"),
        (
            "arms:",
            "compare: [[meta, other]]\narms:",
            "compare: no arm is called other; fix: name one of meta, ",
        ),
        ("arms:", "compare: [[meta]]\narms:", "expected at least 2 of them"),
        ("arms:", "arm:", "unknown key"),
        ("  k3: {answers.k: 3}", "  k3: {answers.k: none}", "arm k3: --set answers.k="),
        ("  k3: {answers.k: 3}", "  k3: {answer.k: 3}", "arm k3: --set answer.k="),
        ("  k3: {answers.k: 3}", "  k3: {1: 3}", "arm k3: --set 1=3: expected the name of a section"),
        ("  k3: {answers.k: 3}", "  k3: 3", "arms.k3: 3: expected a section of keys with values"),
        ("recipe: pocket", "recipe: pokcet", "the nearest preset is 'pocket'"),
    ],
)
def test_a_bad_file_is_one_line_before_anything_is_written(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, FILE.replace(old, new)).runs()
    assert told in str(caught.value) and "try.yaml" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["try.yaml"]


def test_every_arm_has_a_run_for_each_seed_that_may_take_from_the_first(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    runs = experiment.runs()
    assert [str(each) for each in runs] == [f"{arm}, seed {seed}" for arm in ("meta", "self", "k3") for seed in (1, 2)]
    assert [each.recipe.seed for each in runs] == [1, 2] * 3
    assert [each.parent and each.parent.path.parent.name for each in runs] == [None, None, *["meta"] * 4]
    assert [each.recipe.answers.k for each in runs] == [7, 7, 7, 7, 3, 3]
    assert experiment.pairs == (("meta", "self"), ("meta", "k3"))
    assert load(tmp_path, f"compare: [[self, k3]]\n{FILE}").pairs == (("self", "k3"),)


def test_a_recipe_beside_the_file_is_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: pocket\nanswers: {k: 2}\n")
    runs = load(tmp_path, FILE.replace("recipe: pocket", "recipe: mine.yaml")).runs()
    assert runs[0].recipe.answers.k == 2


def test_the_machine_is_shared_out() -> None:
    assert slots(1, [0, 1], ["0"]) == (Slot(),)
    assert slots(2, [0, 2, 4, 6, 7], ["5", "3"]) == (Slot((0, 2), ("5",)), Slot((4, 6), ("3",)))
    assert slots(2, [0, 1], []) == (Slot((0,)), Slot((1,)))
    with pytest.raises(UserError, match="--jobs 3: there are 2 processors; fix: --jobs 2 or less"):
        slots(3, [0, 1], [])
    with pytest.raises(UserError, match="--jobs 3: there are 2 GPUs; fix: --jobs 2 or less"):
        slots(3, [0, 1, 2], ["0", "1"])


def test_runs_that_fail_are_told_and_the_others_go_on(tmp_path: Path) -> None:
    text = FILE.replace("  self: {iterations.1.judge_pairs: false}\n  k3: {answers.k: 3}\n", "")
    experiment = load(tmp_path, text.replace("set: {", "set: {model: nowhere, "))
    told: list[str] = []
    with pytest.raises(
        UserError, match=r"^2 of 2 runs did not finish; the first, of which .*seed-1\.log has all: .*nowhere"
    ):
        run_experiment(experiment, 1, told.append)
    assert len(told) == 4
    assert "seed 2: " in (tmp_path / "out/report.html").read_text()
    assert not RunDir(tmp_path / "out/meta/seed-1").resolved.exists()


def test_two_drivers_do_not_share_an_experiment(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    lock = FolderLock(tmp_path / "out")
    assert lock.acquire()
    try:
        with pytest.raises(UserError, match="another process runs this experiment; fix:"):
            run_experiment(load(tmp_path), 1, print)
    finally:
        lock.release()


def start(folder: Path) -> subprocess.Popen[str]:
    program = "from metareward.cli.main import main; main()"
    command = [sys.executable, "-c", program, "experiment", "try.yaml", "--out", "out", "--jobs", "2"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_experiment_goes_on_and_reuses_what_is_the_same(tmp_path: Path, how: int) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two jobs need two processors")
    experiment = load(tmp_path)
    process = start(tmp_path)
    while not RunDir(tmp_path / "out/self/seed-1").resolved.is_file():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(how)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == (130 if how == signal.SIGTERM else -how), told
    done = [each for each in experiment.runs() if each.is_complete]
    before = {each.run.path: each.run.report.stat().st_mtime_ns for each in done}
    assert {each.arm for each in done} == {"meta"}

    process = start(tmp_path)
    told, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, told
    assert all(path.joinpath("report.html").stat().st_mtime_ns == at for path, at in before.items()), "not run again"
    reused = json.loads(RunDir(tmp_path / "out/self/seed-2").fork.read_text())["reused"]
    assert reused["iteration 1"] == ["answers and judgments of 8 prompts"]
    figures = read_figures_csv((tmp_path / "out/figures.csv").read_text())
    assert {(each.arm, each.seed) for each in figures} == {(each.arm, each.seed) for each in experiment.runs()}
    costs = {(each.arm, each.seed): each.value for each in figures if each.metric == "completions"}
    assert all(costs["self", seed] < costs["meta", seed] for seed in (1, 2)), "no meta-judgments"
    assert "self against meta, M1" in (tmp_path / "out/report.html").read_text()
    process = start(tmp_path)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "starts" not in told and told.count("was finished") == 6

    load(tmp_path, FILE.replace("answers.k: 3", "answers.k: 2"))
    process = start(tmp_path)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "answers.k (3 -> 2)" in told
    assert "k3 against meta" not in (tmp_path / "out/report.html").read_text(), "no results under a wrong name"
