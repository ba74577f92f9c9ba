"""One training run as a process of its own: ``python -m metareward.training.child JOB.json``.

Reads a `DpoJob` or `SftJob`, writes a Hugging Face folder, reports every step as a line of JSON on standard output and
in the log. A user's error is one line on standard error and exit status 2. The process's end frees all its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from metareward.engines.process_group import collector_paused, die_with_parent
from metareward.errors import UserError
from metareward.storage.atomic import AtomicDir, atomic_dir
from metareward.storage.custody import remember
from metareward.training.checkpoints import ResumeState, latest_resume_state
from metareward.training.config import USER_ERROR, AnyJob, DpoJob, TrainingJob, read_job
from metareward.training.data import read_examples, read_training_pairs
from metareward.training.launch import Report, event_log, is_main_process
from metareward.training.lineage import Lineage, existing_lineage

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it matrix products on a GPU may differ from run to run
}
_TRACKERS = {"WANDB_PROJECT": "metareward", "WANDB_LOG_MODEL": "false", "MLFLOW_EXPERIMENT_NAME": "metareward"}
_CACHES = ("HF_HOME", "HF_DATASETS_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR")


def train(job: AnyJob, out: TextIO) -> Lineage:
    """Train ``job``, or return the lineage of the model it has made before. Events go to ``job.log`` and ``out``.

    A job that was killed is resumed from its latest resume state. Of several processes only the main one writes, but
    for the others' parts of resume states. Made for a process of its own: it changes the environment and torch's
    settings. Raises `UserError`.
    """
    made = existing_lineage(job)
    if made is not None:
        return made
    # Before torch is imported: errors in the data show at once.
    data: Any = read_training_pairs(job.data) if isinstance(job, DpoJob) else read_examples(job.data)
    state = latest_resume_state(job)
    if not is_main_process():
        with tempfile.TemporaryDirectory() as scratch:
            folders = replace(AtomicDir.beside(job.product), scratch=Path(scratch))
            return _fit(job, data, folders, lambda _: None, state)
    with event_log(job.log, out, state.step if state else 0) as report:
        with atomic_dir(job.product, resume=state is not None) as folders:
            lineage = _fit(job, data, folders, report, state)
        report({"event": "end", "steps": lineage.steps})
    return lineage


def _fit(job: AnyJob, data: Any, folders: AtomicDir, report: Report, state: ResumeState | None) -> Lineage:
    set_environment(os.environ, job, folders.scratch)
    # Not before the environment is set: Hugging Face's libraries read it when they are imported.
    with collector_paused():
        from metareward.training.fit import fit

    try:
        return fit(job, data, folders, report, state)
    finally:
        if wandb := sys.modules.get("wandb"):
            wandb.finish()  # W&B writes the steps at its end, by default at an exit that this process doesn't have


def set_environment(environment: MutableMapping[str, str], job: TrainingJob, scratch: Path) -> None:
    """Set the process's ``environment`` before heavy libraries are imported, with all caches in ``scratch``.

    No network, no progress bars, nothing in the user's home. Experiment trackers are only the job's, and write beside
    its log unless the user's environment says otherwise.
    """
    environment.update(_ENVIRONMENT)
    # Threads of libgomp that spin while they wait slow everything down once another process wants the same cores: two
    # threads on two busy cores were over 50 times slower than one. This bounds the spinning.
    environment.setdefault("GOMP_SPINCOUNT", "1000")
    if job.settings.report_to:
        folder = job.log.resolve().parent
        trackers = {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"), "WANDB_DIR": str(folder)}
        trackers["TRACKIO_DIR"] = str(folder / "trackio")  # by default in HF_HOME, which is deleted after the training
        for name, value in (trackers | _TRACKERS).items():
            environment.setdefault(name, value)
    environment["OMP_NUM_THREADS"] = str(job.threads_each)
    environment.update(dict.fromkeys(_CACHES, str(scratch.resolve())))
    if "LOCAL_RANK" not in environment:  # without a launcher: one process, so one GPU
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m metareward.training.child", description="Run one training job.")
    parser.add_argument("job", type=Path, help="JSON file of the job")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input does")
    options = parser.parse_args(arguments)
    if options.with_parent:
        die_with_parent(watch_stdin=True)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # for events alone
    os.dup2(2, 1)  # what libraries print goes to standard error from now on
    with out:
        try:
            job = read_job(options.job)
            remember(job.file_digests)
            train(job, out)
        except UserError as error:
            print(error, file=sys.stderr)
            if options.with_parent and is_main_process():
                print(json.dumps({"event": "error", "message": str(error)}), file=out)
            return USER_ERROR
    return 0


if __name__ == "__main__":
    exit_status = main()
    sys.stderr.flush()
    os._exit(exit_status)  # at once: all files are written and closed, and torch's own shutdown takes a second
