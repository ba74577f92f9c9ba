"""Training in child processes: started and followed by the parent, reported by the child, and the launcher of several.

`run_training` starts the child, passes its steps on, and raises one line when it fails. The parent never imports torch,
and no child outlives it. When the child ends, its memory is free.

Events are JSON objects, one a line, in the log file and on the child's standard output: ``start`` (what is trained on),
a ``step`` for each optimizer step, ``end``, and from a launcher ``waiting``. A resumed run repeats the steps before its
resume state, then reports ``resume``.

``python -m metareward.training.launch JOB.json`` starts the processes of a job with several: on GPUs by `accelerate
launch` with the configuration file of the job's sharding in ``accelerate/``; on a CPU by torchrun, because `accelerate
launch` then silently starts a single one; with launcher ray by Ray Train. All of them end when the launcher does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from metareward.engines.process_group import count_oom_kills, die_with_parent, dying_with_parent
from metareward.errors import UserError
from metareward.storage.atomic import write_errors
from metareward.storage.custody import known_digests
from metareward.training.config import USER_ERROR, AnyJob, DpoJob, read_job
from metareward.training.lineage import Lineage, existing_lineage, read_lineage
from metareward.training.requirements import loads_shards, require_devices

Step = Mapping[str, float]
Event = Mapping[str, object]
Report = Callable[[Event], None]

_LOG = logging.getLogger(__name__)
ACCELERATE_CONFIGS = Path(__file__).parent / "accelerate"
_CHILD = "metareward.training.child"
_ERROR_LINE = re.compile(r"^(?:\[rank\d+\]: )?(?!\S*ChildFailedError)[\w.]*(Error|Exception|Interrupt)\b")
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|MemoryError|Cannot allocate memory", re.IGNORECASE)


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
    oom_kills = count_oom_kills()
    arguments, pipe, message = dying_with_parent(command(job, job_path)), subprocess.PIPE, ""
    with (
        stderr_path.open("wb") as stderr,
        subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=stderr, encoding="utf-8", bufsize=1) as child,
    ):
        try:
            for line in child.stdout or ():
                event = json.loads(line)
                kind = event.pop("event")
                if kind == "step":
                    on_step(event)
                elif kind == "waiting":
                    _LOG.warning("%s", event["message"])
                elif kind == "error":
                    message = event["message"]
            child.wait()  # before its standard input is closed, which would end it
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        now = count_oom_kills()
        for_memory = None if oom_kills is None or now is None else now > oom_kills
        raise UserError(message or exit_reason(child.returncode, stderr_path, job.output, for_memory))
    return TrainingResult(job.product, read_lineage(job.product), time.monotonic() - started)


def command(job: AnyJob, job_path: Path) -> list[str]:
    """The command that trains ``job``, which is written at ``job_path``: the child, or the launcher of several."""
    settings = job.settings
    alone = settings.num_processes == 1 and settings.sharding == "ddp" and settings.launcher == "local"
    module = _CHILD if alone else __name__
    return [sys.executable, "-m", module, str(job_path), "--with-parent"]


def exit_reason(status: int, stderr: Path, output: Path, for_memory: bool | None = None) -> str:
    """One line on why a training process ended with ``status`` (negative: by that signal), from its ``stderr`` file.

    ``for_memory``: whether the system has killed processes for want of memory meanwhile, None if that isn't known.
    """
    text = stderr.read_text(encoding="utf-8", errors="replace").strip()
    if status == USER_ERROR and text:
        return text.splitlines()[-1]
    error = error_line(text)
    if _DISK_FULL.search(error):
        return f"{output.parent}: the disk is full; fix: free space, then run again"
    killed = status == -signal.SIGKILL
    if killed and for_memory is False:
        return f"training was killed by SIGKILL, not for want of memory; fix: run again, which resumes it ({stderr})"
    if killed or _OUT_OF_MEMORY.search(error):
        likely = "most likely" if for_memory else "perhaps"
        why = f"was killed, {likely} for want of memory" if killed else "ran out of memory"
        lower = "per_device_train_batch_size or max_length, or set gradient_checkpointing"
        return f"training {why}; fix: lower {lower} ({stderr})"
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    return f"training ended {how}: {error}; the whole message is in {stderr}"


def error_line(stderr: str) -> str:
    """The line of a child's standard error that names the error."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if _ERROR_LINE.match(line)), lines[-1] if lines else "no message")


# --- in the child ---


def is_main_process() -> bool:
    """Whether this process writes and reports: it is alone, or the first of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def event_log(path: Path, out: TextIO, resumed_step: int = 0) -> Iterator[Report]:
    """Yield a function that writes one event to a file at ``path`` and to ``out``, unbuffered.

    A resumed run keeps and repeats the file's events up to optimizer step ``resumed_step``; a new run begins it anew.
    Raises `UserError` on a full disk.
    """
    kept = []
    if resumed_step and path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a kill may have cut off the last line
                event = json.loads(line)
                if event["event"] == "start" or (event["event"] == "step" and event["step"] <= resumed_step):
                    kept.append(event)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb", buffering=0)

    def report(event: Event) -> None:
        line = json.dumps(event) + "\n"
        with write_errors(path):
            file.write(line.encode())
        out.write(line)
        out.flush()

    with file:
        for event in kept:
            report(event)
        yield report


# --- the launcher ---


def main(job_path: Path) -> None:
    """Start the processes of a job and wait for them. Raises `UserError` for a sharding without GPUs."""
    die_with_parent(watch_stdin=True)
    settings = read_job(job_path).settings
    if settings.launcher == "ray":
        _launch_on_ray(job_path)
        return
    worker, processes = ["-m", _CHILD, str(job_path), "--with-parent"], settings.num_processes
    import torch

    require_devices(settings, torch.cuda.device_count(), torch.backends.mps.is_available())
    if settings.device in ("auto", "cuda") and torch.cuda.is_available():
        from accelerate.commands import launch

        # Where each process loads its part of the model, accelerate doesn't have to shard it.
        config = ACCELERATE_CONFIGS / f"{'ddp' if loads_shards(settings) else settings.sharding}.yaml"
        options = ["--config_file", str(config), "--num_processes", str(processes), "--main_process_port", "0"]
        launch.launch_command(launch.launch_command_parser().parse_args([*options, *worker]))
        return
    from torch.distributed import run

    os.environ["ACCELERATE_USE_CPU"] = "true"
    run.main(["--standalone", f"--nproc_per_node={processes}", *worker])


def _launch_on_ray(job_path: Path) -> None:
    from metareward.training.ray_launch import launch_on_ray

    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:  # for events alone
        os.dup2(2, 1)
        try:
            launch_on_ray(job_path, _CHILD, ACCELERATE_CONFIGS, out)
        except UserError as error:
            print(json.dumps({"event": "error", "message": str(error)}), file=out)
            raise


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(USER_ERROR)
