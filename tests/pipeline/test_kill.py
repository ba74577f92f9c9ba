"""``kill -9`` of a whole run at random moments: started again, it ends as the run that nobody disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from whole_runs import HELD_OUT, ITERATIONS, PROMPTS, Workspace, documents, kill_tree, processes_of, run_results

from metareward.errors import UserError
from metareward.storage.custody import fingerprint_model, weights_deleted
from metareward.storage.run_dir import RunDir

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="walks through /proc"),
    pytest.mark.timeout(3600),
]

LONGEST = 1500.0


@dataclass(frozen=True)
class Moment:
    """So long (seconds) after ``count`` prompts or steps of a stage of iteration ``t`` were done."""

    stage: str
    t: int
    count: int
    delay: float


def reached(run: RunDir, process: int, moment: Moment) -> bool:
    folder = run.iteration(moment.t)
    if moment.stage == "starting":
        holder = run.path / "lock.json"
        return holder.is_file() and f'"pid": {process},' in holder.read_text(encoding="utf-8")
    if moment.stage == "loading":
        return len(processes_of(process)) > 1
    if moment.stage == "generating":
        return finished(folder.records) >= moment.count
    if moment.stage == "pairing":
        return (folder.path / "pairs").is_dir() or finished(folder.records) == PROMPTS
    if moment.stage == "training":
        return steps(folder.path / "training.jsonl") >= moment.count
    if moment.stage == "evaluating":
        return finished(folder.evaluation / "records.sqlite") >= moment.count
    return folder.done.is_file()


def finished(records: Path) -> int:
    """How many prompts a store holds; -1 when it isn't quite there."""
    try:
        return len(documents(records))
    except UserError:
        return -1


def steps(log: Path) -> int:
    """How many steps were told, after the line that training begins; -1 before that line."""
    return log.read_text(encoding="utf-8").count("\n") - 1 if log.is_file() else -1


def moments(seed: int, stages: Sequence[tuple[str, int]]) -> list[Moment]:
    """A random moment of each stage."""
    draw = random.Random(seed)
    most = {"generating": PROMPTS - 1, "training": 1, "evaluating": HELD_OUT - 1}
    longest = {"loading": 2.0}
    return [
        Moment(stage, t, draw.randint(0, most.get(stage, 0)), draw.uniform(0, longest.get(stage, 0.2)))
        for stage, t in stages
    ]


def come_to(workspace: Workspace, name: str, moment: Moment, *words: str) -> subprocess.Popen[str]:
    """A run, at the moment."""
    process = workspace.start(name, *words)
    run, until = RunDir(workspace.folder / name), time.monotonic() + LONGEST
    try:
        while not reached(run, process.pid, moment):
            assert process.poll() is None, f"ended before {moment}: {process.communicate()}"
            assert time.monotonic() < until, f"never came to {moment}"
            time.sleep(0.005)
    except BaseException:
        kill_tree(process)
        raise
    time.sleep(moment.delay)
    return process


def interrupt(workspace: Workspace, name: str, moment: Moment, *words: str) -> None:
    """Start the run, kill all of it at the moment."""
    process = come_to(workspace, name, moment, *words)
    kill_tree(process)
    assert process.returncode == -signal.SIGKILL, f"ended before {moment}"
    assert not processes_of(process.pid)


def check(workspace: Workspace, name: str, plan: Sequence[Moment]) -> None:
    for moment in plan:
        print(moment)
        interrupt(workspace, name, moment)
    code, told, errors = workspace.go_on(name)
    assert code == 0, errors
    assert told.endswith(f"\nfinished; open the report: {name}/report.html\n")
    assert run_results(RunDir(workspace.folder / name)) == run_results(workspace.reference())


SEED = 1
WHOLE = (
    ("starting", 0),
    ("evaluating", 0),
    ("generating", 1),
    ("generating", 1),
    ("pairing", 1),
    ("training", 1),
    ("evaluating", 1),
    ("generating", 2),
    ("training", 2),
    ("reporting", 2),
)


def test_killed_in_the_last_training_it_ends_as_if_not_killed(workspace: Workspace) -> None:
    """It begins where the reference run had written its last records, and has the evaluation that is to come: both
    spare an engine. The evaluation's records hold for the reference run's model alone.
    """
    last = RunDir(Path(shutil.copytree(workspace.reference().path, workspace.folder / "killed"))).iteration(ITERATIONS)
    for folder in (last.model, last.path / "pairs"):
        shutil.rmtree(folder)
    for file in (
        last.done,
        last.path / "seconds.json",
        *last.path.glob("training.*"),
        last.path.parents[0] / "report.html",
    ):
        file.unlink()
    check(workspace, "killed", moments(SEED, [("training", ITERATIONS)]))


@pytest.mark.slow
def test_killed_in_the_first_training_it_ends_as_if_not_killed(workspace: Workspace) -> None:
    check(workspace, "killed-first", moments(SEED, [("training", 1)]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_ten_times_it_ends_as_if_not_killed(workspace: Workspace, seed: int) -> None:
    check(workspace, f"killed-{seed}", moments(seed, WHOLE))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_does_in_one_line_and_leaves_nothing_running(workspace: Workspace, how: signal.Signals) -> None:
    stages = [("starting", 0), ("loading", 0), ("evaluating", 0), ("generating", 1), ("training", 1)]
    for moment in moments(SEED, stages):
        print(moment)
        process = come_to(workspace, f"stopped-{how.name}", moment)
        process.send_signal(how)
        told, errors = process.communicate(timeout=LONGEST)
        assert (process.returncode, told) == (130, "")
        assert errors.splitlines()[-1].startswith("metareward: stopped; what is finished is kept")
        assert "Traceback" not in errors and "Exception" not in errors
        assert not processes_of(process.pid)
    assert workspace.run(f"stopped-{how.name}")[0] == 0
    assert run_results(RunDir(workspace.folder / f"stopped-{how.name}")) == run_results(workspace.reference())


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_every_process_and_ends_in_one_line(workspace: Workspace) -> None:
    for moment in moments(SEED, [("loading", 0), ("evaluating", 0), ("generating", 1), ("training", 1)]):
        print(moment)
        process = come_to(workspace, "interrupted", moment)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=LONGEST)
        assert process.returncode == 130
        assert "Traceback" not in errors and "Exception" not in errors
        assert not processes_of(process.pid)
    assert workspace.run("interrupted")[0] == 0
    assert run_results(RunDir(workspace.folder / "interrupted")) == run_results(workspace.reference())


@pytest.mark.slow
def test_a_run_that_deletes_weights_makes_the_same_model_also_after_a_kill(workspace: Workspace) -> None:
    """It begins where the reference run had written its last records."""
    there = RunDir(Path(shutil.copytree(workspace.reference().path, workspace.folder / "thin")))
    last = there.iteration(ITERATIONS)
    for folder in (last.evaluation, last.model, last.path / "pairs"):
        shutil.rmtree(folder)
    for file in (last.done, last.path / "seconds.json", *last.path.glob("training.*"), there.report):
        file.unlink()
    keep = ("--set", "training.keep_models=1")
    interrupt(workspace, "thin", Moment("training", ITERATIONS, 1, 0.0), *keep)
    assert not weights_deleted(there.iteration(1).model)
    code, _, errors = workspace.go_on("thin", *keep)
    assert code == 0, errors
    assert weights_deleted(there.iteration(1).model)
    assert fingerprint_model(last.model) == fingerprint_model(workspace.reference().iteration(ITERATIONS).model)
    assert fingerprint_model(there.iteration(1).model) == fingerprint_model(workspace.reference().iteration(1).model)
    code, told, errors = workspace.go_on("thin", *keep)
    assert code == 0 and "Traceback" not in errors, told + errors
