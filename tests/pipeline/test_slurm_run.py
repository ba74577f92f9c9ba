"""A whole run as a Slurm job of two nodes with Ray inside: stopped by its time limit, submitted again, same results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_slurm import fake_slurm
from ray_clusters import processes
from whole_runs import documents, kill_tree

from metareward.errors import UserError
from metareward.storage.run_dir import RunDir

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

CHANGES = (
    *("prompts.per_iteration=8", "prompts.held_out=4", "answers.k=3", "judgments.n=3", "judgments.min_valid=2"),
    *("iterations.3=drop", "iterations.4=drop", "training.num_train_epochs=1", "training.num_processes=2"),
    *("training.device=cpu", "benchmarks=[]", "judge_check.action=null"),
)
ON_RAY = (
    "engine={kind: ray, replicas: 2, engine: {kind: local, device: cpu, dtype: float32, workers: 1, threads: 1}}",
    "training.launcher=ray",
)
ALONE = ("engine={kind: local, device: cpu, dtype: float32, workers: 1, threads: 1}",)
_METAREWARD = [sys.executable, "-c", "from metareward.cli.main import main; main()"]


def words(*changes: str) -> list[str]:
    return [word for change in (*CHANGES, *changes) for word in ("--set", change)]


def finished(records: Path) -> dict[str, str]:
    try:
        return documents(records)
    except UserError:  # not quite there
        return {}


def submit(folder: Path, job: int) -> subprocess.Popen[str]:
    """``sbatch job.sh``, which here waits for the job."""
    return subprocess.Popen(
        ["sbatch", "job.sh"],
        cwd=folder,
        env=fake_slurm(folder / "bin", job),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_run_on_two_nodes_that_runs_out_of_time_and_is_submitted_again(tmp_path: Path) -> None:
    reference = subprocess.run(
        [*_METAREWARD, "run", "pocket", "--out", "alone", *words(*ALONE)], cwd=tmp_path, capture_output=True, text=True
    )
    assert reference.returncode == 0, reference.stderr
    options = ("--nodes", "2", "--gpus", "0", "--cpus", "1", "--time", "00:20:00", "--run", "run", "--out", "job.sh")
    launched = [*_METAREWARD, "launch", "slurm", "pocket", *options, *words(*ON_RAY)]
    subprocess.run(launched, cwd=tmp_path, check=True, capture_output=True)
    folder = RunDir(tmp_path / "run").iteration(1)
    job = submit(tmp_path, 4007)
    try:
        assert job.stdout is not None
        script = int(job.stdout.readline().split()[-1])
        until = time.monotonic() + 300
        while len(finished(folder.records)) < 2:
            assert job.poll() is None and time.monotonic() < until, (tmp_path / "pocket-4007.log").read_text()
            time.sleep(0.05)
        os.kill(script, signal.SIGTERM)  # as Slurm does with --signal=B:TERM
        assert job.wait(120) != 0
    finally:
        kill_tree(job)  # the nodes' processes, as Slurm ends them with the job
    before = finished(folder.records)
    assert 2 <= len(before) < 8
    assert "the same command goes on from there" in (tmp_path / "pocket-4007.log").read_text()
    job = submit(tmp_path, 4008)
    try:
        assert job.wait(900) == 0, (tmp_path / "pocket-4008.log").read_text()
    finally:
        kill_tree(job)
    assert before.items() <= finished(folder.records).items(), "nothing lost, nothing made again"
    alone, run = RunDir(tmp_path / "alone"), RunDir(tmp_path / "run")
    for t in (1, 2):
        assert documents(run.iteration(t).records) == documents(alone.iteration(t).records)
        weights = [each.iteration(t).model / "model.safetensors" for each in (run, alone)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not processes("ray::ReplicaActor") and not processes("metareward.training.child")
