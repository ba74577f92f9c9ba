"""The processes of a training job as workers of Ray Train, on any machines of a cluster (``training.launcher: ray``).

Ray Train starts the workers together, and all of them again when one is lost; each worker runs one process of the job,
as torchrun would, with RANK, WORLD_SIZE and MASTER_ADDR. A job that is started again goes on from its latest resume
state (``training.save_steps``), so its folder must be on storage that all machines share. Events of the first process
come back through an actor. Nothing outlives the launcher: Ray ends the workers with it, and their processes with them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from metareward.engines.process_group import dying_with_parent
from metareward.errors import UserError
from metareward.training.config import USER_ERROR, OptimizationSettings, read_job
from metareward.training.requirements import loads_shards, require_packages

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 3.0  # between two looks at the cluster
_HEAD_SECONDS = 30.0  # that its head may fail to answer
# Ray Train gives workers a minute to start, which importing torch can take where a machine is busy.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600"}


class Events:
    """A Ray actor: lines of the first process, until the launcher takes them."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, line: str) -> None:
        """Add one line."""
        self._lines.append(line)

    def take(self) -> list[str]:
        """The lines since the last call."""
        taken, self._lines = self._lines, []
        return taken


def launch_on_ray(job_path: Path, child: str, configs: Path, out: TextIO) -> None:
    """Run the module ``child`` on the job at ``job_path`` in every worker; events of the first one go to ``out``.

    ``configs`` has accelerate's configuration of each sharding. Raises `UserError`, one line, when it fails.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
    training_job, job = read_job(job_path), job_path.resolve()
    settings = training_job.settings
    require_packages(settings)
    import ray
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    command = ["-m", child, str(job), "--with-parent"]
    _connect(training_job.ray_address, settings.num_processes)
    use_gpu = _require_room(settings, ray.cluster_resources())
    error_file = job.with_suffix(".error.txt")  # of a `UserError` in a worker
    error_file.unlink(missing_ok=True)
    # On the launcher's node, so that the loss of another node loses no events.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = ray.remote(Events).options(num_cpus=0, scheduling_strategy=here).remote()
    config = {"job": str(job), "directory": str(Path.cwd()), "error_file": str(error_file), "events": events}
    config |= {"command": command, "num_processes": settings.num_processes, "use_gpu": use_gpu}
    # Where each process loads its part of the model, accelerate doesn't have to shard it.
    config["accelerate"] = str(configs / f"{'ddp' if loads_shards(settings) else settings.sharding}.yaml")
    failed: list[Exception] = []
    training = threading.Thread(target=_fit, args=(settings, config, job, failed), daemon=True)
    training.start()
    watch = _ClusterWatch("GPU" if use_gpu else "CPU", settings.num_processes)
    while training.is_alive():
        training.join(_POLL_SECONDS)
        if waiting := watch.look():
            out.write(json.dumps({"event": "waiting", "message": waiting}) + "\n")
        _pass_on(events, out)
    _pass_on(events, out)
    if error_file.is_file():
        raise UserError(error_file.read_text(encoding="utf-8").strip())
    if failed:
        if not isinstance(failed[0], TrainingFailedError):
            raise failed[0]
        times = settings.max_restarts + 1
        raise UserError(f"training on Ray ended {times} times: {_reason(failed[0])}; whole messages are beside {job}")


class _ClusterWatch:
    """Looks now and then whether the cluster's head answers, and whether there is a device for each process."""

    def __init__(self, kind: str, processes: int) -> None:
        import ray

        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._head, self._kind, self._processes = (host, int(port)), kind, processes
        self._looked = self._answered = time.monotonic()
        self._waiting = False

    def look(self) -> str:
        """A line to tell when training has begun to wait for machines, else empty. Raises `UserError` without a head.

        Without its head a cluster ends after a minute, and this process with it.
        """
        import ray

        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return ""
        self._looked = now
        try:
            socket.create_connection(self._head, timeout=_LOOK_SECONDS).close()
            there = int(ray.cluster_resources().get(self._kind, 0))
        except (OSError, ray.exceptions.RayError) as error:
            if now - self._answered > _HEAD_SECONDS:
                raise UserError(
                    f"training on Ray: the cluster's head at {':'.join(map(str, self._head))} is gone ({error}); fix: "
                    "start the cluster and run again, which goes on from the last resume state (training.save_steps)"
                ) from None
            return ""
        self._answered = now
        before, self._waiting = self._waiting, there < self._processes
        if not self._waiting or before:
            return ""
        return f"training waits for machines: {self._processes} processes, one for each {self._kind}, and {there} left"


def _connect(address: str | None, processes: int) -> None:
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    fix = "set engine.address or RAY_ADDRESS to HOST:PORT of its head, or auto on one of its nodes"
    if "://" in address:
        raise UserError(f"training.launcher ray: {address} isn't the address of a node; fix: {fix}")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        options |= {"include_dashboard": False, "num_cpus": max(processes, os.cpu_count() or 1)}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"training.launcher ray: no cluster at {address}: {line}; fix: {fix}") from None


def _require_room(settings: OptimizationSettings, resources: Mapping[str, float]) -> bool:
    """Whether the workers have GPUs. Raises `UserError` for more processes than the cluster has devices."""
    gpus = int(resources.get("GPU", 0))
    use_gpu = gpus > 0 and settings.device in ("auto", "cuda")
    kind, there = ("GPU", gpus) if use_gpu else ("CPU", int(resources.get("CPU", 0)))
    if settings.sharding != "ddp" and not use_gpu and not loads_shards(settings):
        raise UserError(
            f"training.sharding: {settings.sharding} needs GPUs, and the cluster has none; fix: make it ddp"
        )
    if there < settings.num_processes:
        found = f"{settings.num_processes} processes, one for each {kind}, and the cluster has {there}"
        raise UserError(f"training.num_processes: {found}; fix: lower it, or add machines to the cluster")
    return use_gpu


def _fit(settings: OptimizationSettings, config: dict[str, Any], job: Path, failed: list[Exception]) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    storage = job.with_suffix(".ray")
    shutil.rmtree(storage, ignore_errors=True)  # of an earlier start; resume states are elsewhere
    trainer = TorchTrainer(
        work,
        train_loop_config=config,
        # The workers use this group only to agree on a port; the training processes have their own, with NCCL on GPUs.
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=settings.num_processes, use_gpu=config["use_gpu"]),
        run_config=RunConfig(
            name="train", storage_path=str(storage), failure_config=FailureConfig(max_failures=settings.max_restarts)
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # raised again in the launcher's own thread
        failed.append(error)
    shutil.rmtree(storage, ignore_errors=True)


def _pass_on(events: Any, out: TextIO) -> None:
    import ray

    for line in ray.get(events.take.remote()):
        out.write(line)
    out.flush()


def _reason(error: Exception) -> str:
    """Why the workers ended, in one line: of several the one that was killed or failed first."""
    causes = [str(each) for each in getattr(error, "worker_failures", {}).values()] or [str(error)]
    lines = [line.strip() for cause in causes for line in cause.splitlines() if line.strip()]
    named = [line for line in lines if "training process" in line or "Error: " in line]
    return (named or lines or [type(error).__name__])[0][:300]


# --- in the workers ---


def work(config: dict[str, Any]) -> None:
    """One worker: run one process of the job to its end. Raises when it ends badly, so that Ray starts all again."""
    import ray.train

    error_file = Path(config["error_file"])
    port = _shared_port()
    if error_file.is_file():  # a `UserError`, which another start would only repeat
        return
    context = ray.train.get_context()
    rank = context.get_world_rank()
    places = {"RANK": rank, "LOCAL_RANK": context.get_local_rank(), "WORLD_SIZE": context.get_world_size()}
    places |= {"LOCAL_WORLD_SIZE": context.get_local_world_size(), "MASTER_PORT": port}
    environment = os.environ | _accelerate_environment(config) | {name: str(value) for name, value in places.items()}
    errors = Path(config["job"]).with_suffix(f".rank{rank}.stderr.txt")
    command, pipe = dying_with_parent([sys.executable, *config["command"]]), subprocess.PIPE
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=stderr, env=environment, cwd=config["directory"], text=True
        ) as child,
    ):
        for line in child.stdout or ():
            if rank == 0 and json.loads(line)["event"] != "error":
                config["events"].put.remote(line)
        child.wait()
    if child.returncode:
        text = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
        if child.returncode == USER_ERROR:
            error_file.write_text(text[-1] + "\n", encoding="utf-8")
        how = f"by signal {-child.returncode}" if child.returncode < 0 else f"with status {child.returncode}"
        raise RuntimeError(f"the training process of rank {rank} ended {how}: {text[-1][:200]}")


def _shared_port() -> int:
    """A port that is free on the first worker's machine, where the processes meet: Ray's own group has another."""
    import torch.distributed

    with socket.socket() as probe:
        probe.bind(("", 0))
        found = [probe.getsockname()[1]]
    torch.distributed.broadcast_object_list(found, src=0)
    return int(found[0])


def _accelerate_environment(config: Mapping[str, Any]) -> dict[str, str]:
    """The variables by which `accelerate launch` tells the processes of their sharding."""
    if not config["use_gpu"]:
        return {"ACCELERATE_USE_CPU": "true"}
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_multi_gpu_env

    options = ["--config_file", config["accelerate"], "--num_processes", str(config["num_processes"]), "child"]
    arguments, *_ = launch._validate_launch_command(launch.launch_command_parser().parse_args(options))
    variables: dict[str, str] = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in variables.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
