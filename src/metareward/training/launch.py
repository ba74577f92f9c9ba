"""Several processes for one training: ``python -m metareward.training.launch JOB.json --with-parent``.

On GPUs `accelerate launch` starts them, with the configuration file for the job's sharding that lies beside this module
in ``accelerate/``; on a CPU torchrun does, because `accelerate launch` then silently starts a single one. All of them
end when this process does, and this one when its parent does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from metareward.errors import UserError
from metareward.training.job import DpoJob
from metareward.training.lifeline import tie_to_parent

CONFIGURATIONS = Path(__file__).parent / "accelerate"
_TRAINING = "metareward.training.dpo"


def command(job: DpoJob, paper: Path) -> list[str]:
    """How to start the training of ``job``, which is written in ``paper``: alone, or with a launcher before it."""
    module = _TRAINING if job.processes == 1 and job.sharding == "ddp" else __name__
    return [sys.executable, "-m", module, str(paper), "--with-parent"]


def main(arguments: Sequence[str]) -> None:
    """Start the processes and wait for them."""
    tie_to_parent()
    paper = Path(arguments[0])
    job = DpoJob.read(paper)
    worker = ["-m", _TRAINING, str(paper), "--with-parent"]
    if _on_gpus(job):
        _accelerate(job, worker)
    else:
        _torchrun(job, worker)


def _on_gpus(job: DpoJob) -> bool:
    import torch

    return job.device in ("auto", "cuda") and torch.cuda.is_available()


def _accelerate(job: DpoJob, worker: Sequence[str]) -> None:
    from accelerate.commands import launch

    configuration = CONFIGURATIONS / f"{job.sharding}.yaml"
    own = ["--config_file", str(configuration), "--num_processes", str(job.processes), "--main_process_port", "0"]
    launch.launch_command(launch.launch_command_parser().parse_args([*own, *worker]))


def _torchrun(job: DpoJob, worker: Sequence[str]) -> None:
    """Raises `UserError` for shardings that need GPUs."""
    from torch.distributed import run

    if job.sharding != "ddp":
        raise UserError(f"training job: sharding {job.sharding} needs GPUs, and torch finds none; fix: make it ddp")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    run.main(["--standalone", f"--nproc_per_node={job.processes}", *worker])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
