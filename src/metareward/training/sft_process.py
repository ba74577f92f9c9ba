"""A supervised run in a child process, seen from the parent: as `metareward.training.process` does it for DPO."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metareward.errors import UserError
from metareward.training.process import Step, explain
from metareward.training.sft_job import SftJob
from metareward.training.sft_lineage import SftLineage, already_taught, read_sft_lineage


@dataclass(frozen=True, slots=True)
class SftResult:
    """A finished supervised run. ``seconds`` is 0 when the model had been made before by the same job."""

    output: Path
    lineage: SftLineage
    seconds: float


def teach_in_process(job: SftJob, on_step: Callable[[Step], None]) -> SftResult:
    """Train ``job`` in a process of its own; ``on_step`` gets each step's figures (the names in the log) as it ends.

    The same job again gives the model that is there. What the child wrote to standard error is kept beside the log.
    Raises `UserError` with the one line that says why it failed; whatever ends this call ends the child too.
    """
    made = already_taught(job)
    if made is not None:
        return SftResult(job.output, made, 0.0)
    started = time.monotonic()
    paper = job.log.with_suffix(".job.json")
    job.write(paper)
    errors = job.log.with_suffix(".stderr.txt")
    status = _run(paper, errors, on_step)
    if status:
        raise UserError(explain(status, errors, job.as_dpo()))
    return SftResult(job.output, read_sft_lineage(job), time.monotonic() - started)


def _run(paper: Path, errors: Path, on_step: Callable[[Step], None]) -> int:
    """Start the child, pass its steps on until it ends, and give its exit status. It is ended if this can't go on."""
    command = [sys.executable, "-m", "metareward.training.sft", str(paper), "--with-parent"]
    pipe = subprocess.PIPE
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, encoding="utf-8", bufsize=1) as child,
    ):
        try:
            for line in child.stdout or ():
                event = json.loads(line)
                if event.pop("event") == "step":
                    on_step(event)
            child.wait()  # before its standard input is closed, which would end it
        except BaseException:
            child.kill()
            raise
    return child.returncode
