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
_JOIN_SECONDS = 60.0  # that machines of a cluster which has just been started may take to join it
_LEAST_START_SECONDS = 600.0  # for workers to import torch on a busy machine; Ray Train gives them a minute


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
    training_job, job = read_job(job_path), job_path.resolve()
    settings = training_job.settings
    require_packages(settings)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Longer than the launcher itself waits for machines.
    seconds = max(_LEAST_START_SECONDS, settings.start_timeout + _JOIN_SECONDS)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{seconds:.0f}")
    import ray
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    command = ["-m", child, str(job), "--with-parent"]
    joined = _connect(training_job.ray_address, settings.num_processes)
    use_gpu = _wait_for_room(settings, _JOIN_SECONDS if joined else 0.0, out)
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
    watch = _ClusterWatch("GPU" if use_gpu else "CPU", settings)
    while training.is_alive():
        training.join(_POLL_SECONDS)
        if waiting := watch.look():
            _tell_waiting(waiting, out)
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
    """Looks now and then whether the cluster's head answers, and whether machines have room for all processes."""

    def __init__(self, kind: str, settings: OptimizationSettings) -> None:
        import ray

        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._head, self._kind, self._settings = (host, int(port)), kind, settings
        self._looked = self._answered = time.monotonic()
        self._waiting_since: float | None = None
        self._told = False

    def look(self) -> str:
        """A line to tell when training has begun to wait for machines, else empty.

        Raises `UserError` without a head, as without it a cluster ends after a minute, and this process with it; and
        when there was no room for ``start_timeout`` seconds, as Ray Train would wait for ever.
        """
        import ray

        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return ""
        self._looked = now
        try:
            socket.create_connection(self._head, timeout=_LOOK_SECONDS).close()
            return self._look_for_room(now)
        except (OSError, ray.exceptions.RayError) as error:
            if now - self._answered > _HEAD_SECONDS:
                raise UserError(
                    f"training on Ray: the cluster's head at {':'.join(map(str, self._head))} is gone ({error}); fix: "
                    "start the cluster and run again, which goes on from the last resume state (training.save_steps)"
                ) from None
            return ""

    def _look_for_room(self, now: float) -> str:
        import ray

        groups = _placement_groups()
        there = int(ray.cluster_resources().get(self._kind, 0))
        self._answered = now
        lacking = there < self._settings.num_processes or bool(groups - {"CREATED", "REMOVED"})
        if not lacking:
            if "CREATED" in groups:
                self._waiting_since, self._told = None, False
            return ""
        since = self._waiting_since = self._waiting_since or now
        if now - since < _LOOK_SECONDS:  # for a moment all have to wait
            return ""
        free = int(ray.available_resources().get(self._kind, 0))
        room = f"{self._settings.num_processes} processes, one for each {self._kind}, and the cluster has {there}"
        room += f", of which {free} {'is' if free == 1 else 'are'} free"
        if now - since > self._settings.start_timeout:
            raise UserError(
                f"training on Ray: no room for {self._settings.start_timeout:.0f} s (training.start_timeout): {room}; "
                "fix: add machines, free those in use (ray status) or lower training.num_processes, and run again, "
                "which goes on from the last resume state (training.save_steps)"
            )
        before, self._told = self._told, True
        return "" if before else f"training waits for machines: {room}"


def _placement_groups() -> set[str]:
    """The states of the places that Ray Train has asked for in this process's job, whose number ends their names."""
    import ray
    from ray.util import placement_group_table

    job = ray.get_runtime_context().get_job_id()
    return {str(group["state"]) for name, group in placement_group_table().items() if name.endswith(job)}


def _tell_waiting(message: str, out: TextIO) -> None:
    out.write(json.dumps({"event": "waiting", "message": message}) + "\n")
    out.flush()


def _connect(address: str | None, processes: int) -> bool:
    """Connect to a cluster; returns whether it is one that was there, which machines may join."""
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    fix = "set engine.address or RAY_ADDRESS to HOST:PORT of its head, or auto on one of its nodes, "
    fix += "and RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token, to its token if it has one"
    if "://" in address:
        raise UserError(f"training.launcher ray: {address} isn't the address of a node; fix: {fix}")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        options |= {"include_dashboard": False, "num_cpus": max(processes, os.cpu_count() or 1)}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"training.launcher ray: no cluster at {address}: {line}; fix: {fix}") from None
    return address != "local"


def _wait_for_room(settings: OptimizationSettings, seconds: float, out: TextIO) -> bool:
    """`_require_room` of a cluster that machines may join within so many seconds."""
    import ray

    until, told = time.monotonic() + min(seconds, settings.start_timeout), False
    while True:
        try:
            return _require_room(settings, ray.cluster_resources())
        except UserError as error:
            if time.monotonic() >= until:
                raise
            if not told:
                found = str(error).partition(";")[0].removeprefix("training.num_processes: ")
                _tell_waiting(f"training waits for machines: {found}", out)
            told = True
        time.sleep(_POLL_SECONDS)


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
            name="train",
            storage_path=str(storage),
            # Workers that can't start are no reason to go on for ever, either.
            failure_config=FailureConfig(
                max_failures=settings.max_restarts, controller_failure_limit=settings.max_restarts
            ),
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
