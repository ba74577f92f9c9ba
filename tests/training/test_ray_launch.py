"""Training as workers of Ray Train: the weights of one process, and the same ones after a worker or a process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from ray_clusters import LocalCluster, gone, local_cluster, processes
from safetensors.torch import load_file
from test_launch import events, pids
from training_world import changed, moved, small_job

from metareward.errors import UserError
from metareward.training.config import DpoJob
from metareward.training.launch import run_training

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> DpoJob:
    """A job that one process has trained, without Ray."""
    job = small_job(tmp_path_factory.mktemp("alone"))
    run_training(job, lambda _: None)
    return job


def on_ray(job: DpoJob, cluster: LocalCluster, folder: Path, **changes: object) -> DpoJob:
    """The same job, for two workers on a cluster."""
    return changed(moved(job, folder), ray_address=cluster.address, launcher="ray", num_processes=2, **changes)


def difference(job: DpoJob, other: DpoJob) -> float:
    one, two = (load_file(each.output / "model.safetensors") for each in (job, other))
    return max(float(torch.max(torch.abs(one[name] - two[name]))) for name in one)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_workers_make_what_one_process_makes(
    sharding: str, alone: DpoJob, cluster: LocalCluster, tmp_path: Path
) -> None:
    job = on_ray(alone, cluster, tmp_path, sharding=sharding)
    steps: list[Mapping[str, float]] = []
    run_training(job, steps.append)
    assert 0 <= difference(alone, job) < ROUNDING
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert gone("metareward.training.child", 10)


@pytest.mark.parametrize("victim", ["process", "worker"])
def test_a_lost_worker_is_started_again_from_the_last_resume_state(
    victim: str, alone: DpoJob, cluster: LocalCluster, tmp_path: Path
) -> None:
    job = on_ray(alone, cluster, tmp_path, save_steps=2)
    killed: list[int] = []

    def kill(step: Mapping[str, float]) -> None:
        if step["step"] == 3 and not killed:
            killed.extend(pids(job)[-1:] if victim == "process" else processes("ray::RayTrainWorker")[:1])
            os.kill(killed[0], signal.SIGKILL)

    run_training(job, kill)
    assert killed and difference(alone, job) < ROUNDING
    assert "resume" in [each["event"] for each in events(job)]


def test_a_lost_head_is_one_line_and_another_cluster_goes_on(alone: DpoJob, tmp_path: Path) -> None:
    others = set(processes("gcs_server"))
    with local_cluster(2) as loses:
        job, heads = on_ray(alone, loses, tmp_path, save_steps=2), set(processes("gcs_server")) - others

        def kill(step: Mapping[str, float]) -> None:
            if step["step"] == 3:
                for head in heads:
                    os.kill(head, signal.SIGKILL)

        with pytest.raises(UserError, match=r"the cluster's head at .* is gone .*; fix: start the cluster") as caught:
            run_training(job, kill)
        assert "\n" not in str(caught.value)
        assert gone(str(job.log.with_suffix(".job.json")), 120)  # the raylets end a minute after their head
    with local_cluster(2) as another:
        run_training(changed(job, ray_address=another.address), lambda _: None)
    assert difference(alone, job) < ROUNDING


HOLD = """\
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
held = ray.util.placement_group([{"CPU": 1}])
ray.get(held.ready())
print("held", flush=True)
sys.stdin.read()
ray.util.remove_placement_group(held)
ray.shutdown()
"""


def test_missing_machines_are_waited_for_and_then_one_line(alone: DpoJob, tmp_path: Path) -> None:
    with local_cluster(2) as cluster:
        job = on_ray(alone, cluster, tmp_path, save_steps=2, start_timeout=6.0)
        command, pipe = [sys.executable, "-c", HOLD, cluster.address], subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as other:  # which leaves when its input ends
            assert other.stdout is not None and other.stdout.readline() == b"held\n"
            with pytest.raises(UserError, match=r"no room for 6 s .* cluster has 2, of which 1 is free; fix:") as busy:
                run_training(job, lambda _: None)
        killed: list[int] = []

        def kill(step: Mapping[str, float]) -> None:
            if step["step"] == 3 and not killed:
                killed.append(1)
                cluster.kill()

        with pytest.raises(UserError, match=r"no room for 6 s .* one for each CPU, and the cluster has 1, ") as lost:
            run_training(job, kill)
        assert "\n" not in f"{busy.value} {lost.value}" and killed
        assert gone(str(job.log.with_suffix(".job.json")), 30)
        # Machines may join while it waits.
        with ThreadPoolExecutor() as pool:
            again = pool.submit(run_training, changed(job, start_timeout=100.0), lambda _: None)
            time.sleep(2)
            cluster.add()
            again.result()
    assert difference(alone, job) < ROUNDING
    assert "resume" in [each["event"] for each in events(job)]


def test_mistakes_are_one_line(alone: DpoJob, cluster: LocalCluster, tmp_path: Path) -> None:
    for changes, told in (
        ({"max_length": 5}, r"training job: no pair fits in max_length 5"),
        (
            {"num_processes": 4, "per_device_train_batch_size": 1, "start_timeout": 1.0},
            "4 processes, one for each CPU, and the cluster",
        ),
    ):
        with pytest.raises(UserError, match=told) as caught:
            run_training(changed(on_ray(alone, cluster, tmp_path), **changes), lambda _: None)
        assert "\n" not in str(caught.value)
