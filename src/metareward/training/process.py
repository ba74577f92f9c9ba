"""Training in a child process, seen from the parent: its steps as they come, and one line when it fails.

The parent never imports torch, and the child never outlives it. When the child ends, its memory is really free.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from metareward.errors import UserError
from metareward.training.job import DpoJob
from metareward.training.launch import command
from metareward.training.lineage import Lineage, already_made, read_lineage

Step = Mapping[str, float]
_WRONG = 2  # the child's exit status for a mistake of the user's, told in one line
_ERROR_LINE = re.compile(r"^(?:\[rank\d+\]: )?(?!\S*ChildFailedError)[\w.]*(Error|Exception|Interrupt)\b")
_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_MEMORY = re.compile(r"out of memory|can't allocate memory|MemoryError|Cannot allocate memory", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished training run; ``output`` is the job's product. ``seconds`` is 0 when it had made that before."""

    output: Path
    lineage: Lineage
    seconds: float


def run_in_process(job: DpoJob, on_step: Callable[[Step], None]) -> TrainingResult:
    """Train ``job`` in a process of its own; ``on_step`` gets each step's figures (the names in the log) as it ends.

    The same job again gives the model that is there. A job that was killed goes on from its last checkpoint, and tells
    the steps before it once more. What the child wrote to standard error is kept beside the log.
    Raises `UserError` with the one line that says why it failed; whatever ends this call ends the child too.
    """
    made = already_made(job)
    if made is not None:
        return TrainingResult(job.product, made, 0.0)
    started = time.monotonic()
    job.write(job.log.with_suffix(".job.json"))
    errors = job.log.with_suffix(".stderr.txt")
    with errors.open("wb") as stderr:
        status, refused = _follow(_start(job, stderr), on_step)
    if status:
        raise UserError(refused or explain(status, errors, job))
    return TrainingResult(job.product, read_lineage(job.product), time.monotonic() - started)


def _start(job: DpoJob, stderr: IO[bytes]) -> subprocess.Popen[str]:
    started, pipe = command(job, job.log.with_suffix(".job.json")), subprocess.PIPE
    return subprocess.Popen(started, stdin=pipe, stdout=pipe, stderr=stderr, encoding="utf-8", bufsize=1)


def _follow(child: subprocess.Popen[str], on_step: Callable[[Step], None]) -> tuple[int, str]:
    """Pass the child's steps on until it ends, and give its exit status and why it refused, if it said so.

    It is ended first if this can't go on.
    """
    refused = ""
    with child:
        try:
            for line in child.stdout or ():
                event = json.loads(line)
                kind = event.pop("event")
                if kind == "step":
                    on_step(event)
                elif kind == "refused":
                    refused = event["why"]
            child.wait()  # before its standard input is closed, which would end it
        except BaseException:
            child.kill()
            raise
    return child.returncode, refused


def last_line(told: str) -> str:
    """The line of a child's standard error that says what went wrong."""
    lines = [line for line in told.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if _ERROR_LINE.match(line)), lines[-1] if lines else "no message")


def explain(status: int, errors: Path, job: DpoJob) -> str:
    """One line on why the child ended with ``status`` (negative: by that signal), from what it wrote to ``errors``."""
    lines = [line for line in errors.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if status == _WRONG and lines:
        return lines[-1]
    last = last_line("\n".join(lines))
    if _FULL.search(last):
        return f"{job.output.parent}: the disk is full; fix: free space, then run again"
    if status == -signal.SIGKILL or _MEMORY.search(last):
        why = "was killed, most likely for want of memory" if status < 0 else "ran out of memory"
        return f"training {why}; fix: lower micro_batch_size or max_length, or set gradient_checkpointing ({errors})"
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    return f"training ended {how}: {last}; the whole message is in {errors}"
