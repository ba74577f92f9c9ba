"""Training in child processes, seen from the parent; and the launcher for several processes.

`run_training` starts the child, passes its steps on, and raises one line when it fails. The parent never imports torch,
and no child outlives it. When the child ends, its memory is free.

``python -m metareward.training.launch JOB.json`` starts the processes of a job with several: on GPUs by `accelerate
launch` with the configuration file of the job's sharding in ``accelerate/``; on a CPU by torchrun, because `accelerate
launch` then silently starts a single one. All of them end when the launcher does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from metareward.engines.process_group import die_with_parent
from metareward.errors import UserError
from metareward.storage.custody import known_digests
from metareward.training.config import AnyJob, DpoJob, read_job
from metareward.training.events import USER_ERROR, exit_reason
from metareward.training.lineage import Lineage, existing_lineage, read_lineage

Step = Mapping[str, float]
ACCELERATE_CONFIGS = Path(__file__).parent / "accelerate"
_CHILD = "metareward.training.child"


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished training run; ``output`` is the job's product. ``seconds`` is 0 when it was made before."""

    output: Path
    lineage: Lineage
    seconds: float


def run_training(job: AnyJob, on_step: Callable[[Step], None]) -> TrainingResult:
    """Train ``job`` in a child process; ``on_step`` gets each step's figures (the names in the log) as it ends.

    The same job again returns the model that is there. A job that was killed is resumed from its latest resume state,
    and the steps before it are reported once more. The child's standard error is kept beside the log. Raises
    `UserError` with the one line that says why it failed; whatever ends this call ends the child too.
    """
    made = existing_lineage(job)
    if made is not None:
        return TrainingResult(job.product, made, 0.0)
    started = time.monotonic()
    models = (job.start, job.reference) if isinstance(job, DpoJob) else (job.start,)
    job_path, stderr_path = job.log.with_suffix(".job.json"), job.log.with_suffix(".stderr.txt")
    job.model_copy(update={"file_digests": known_digests(models)}).write(job_path)
    with stderr_path.open("wb") as stderr:
        status, message = _follow(_start(job, job_path, stderr), on_step)
    if status:
        raise UserError(message or exit_reason(status, stderr_path, job.output))
    return TrainingResult(job.product, read_lineage(job.product), time.monotonic() - started)


def command(job: AnyJob, job_path: Path) -> list[str]:
    """The command that trains ``job``, which is written at ``job_path``: the child, or the launcher of several."""
    settings = job.settings
    module = _CHILD if settings.num_processes == 1 and settings.sharding == "ddp" else __name__
    return [sys.executable, "-m", module, str(job_path), "--with-parent"]


def _start(job: AnyJob, job_path: Path, stderr: IO[bytes]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(job, job_path), stdin=pipe, stdout=pipe, stderr=stderr, encoding="utf-8", bufsize=1)


def _follow(child: subprocess.Popen[str], on_step: Callable[[Step], None]) -> tuple[int, str]:
    """Pass the child's steps on until it ends; returns its exit status and the user error that it reported, if any.

    The child is killed when this fails.
    """
    message = ""
    with child:
        try:
            for line in child.stdout or ():
                event = json.loads(line)
                kind = event.pop("event")
                if kind == "step":
                    on_step(event)
                elif kind == "error":
                    message = event["message"]
            child.wait()  # before its standard input is closed, which would end it
        except BaseException:
            child.kill()
            raise
    return child.returncode, message


# --- the launcher ---


def main(arguments: Sequence[str]) -> None:
    """Start the processes of a job and wait for them."""
    die_with_parent(watch_stdin=True)
    job_path = Path(arguments[0])
    job = read_job(job_path)
    worker = ["-m", _CHILD, str(job_path), "--with-parent"]
    if _on_gpus(job):
        _accelerate(job, worker)
    else:
        _torchrun(job, worker)


def _on_gpus(job: AnyJob) -> bool:
    import torch

    return job.settings.device in ("auto", "cuda") and torch.cuda.is_available()


def _accelerate(job: AnyJob, worker: Sequence[str]) -> None:
    from accelerate.commands import launch

    config, processes = ACCELERATE_CONFIGS / f"{job.settings.sharding}.yaml", str(job.settings.num_processes)
    options = ["--config_file", str(config), "--num_processes", processes, "--main_process_port", "0"]
    launch.launch_command(launch.launch_command_parser().parse_args([*options, *worker]))


def _torchrun(job: AnyJob, worker: Sequence[str]) -> None:
    """Raises `UserError` for shardings that need GPUs."""
    from torch.distributed import run

    sharding = job.settings.sharding
    if sharding != "ddp":
        raise UserError(f"training job: sharding {sharding} needs GPUs, and torch finds none; fix: make it ddp")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    run.main(["--standalone", f"--nproc_per_node={job.settings.num_processes}", *worker])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(USER_ERROR)
