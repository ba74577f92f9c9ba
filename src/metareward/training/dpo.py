"""One DPO training run as a process of its own: ``python -m metareward.training.dpo JOB.json``.

Reads a `DpoJob`, writes a Hugging Face folder, tells every step as a line of JSON on standard output and in the log.
A mistake of the user's is one line on standard error and exit status 2. Memory is given back when the process ends.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TextIO

from metareward.errors import UserError
from metareward.training.events import EventLog, Report
from metareward.training.job import DpoJob
from metareward.training.kept import Kept, newest
from metareward.training.lifeline import tie_to_parent
from metareward.training.lineage import Lineage, already_made
from metareward.training.newfolder import NewFolder, new_folder, workshop
from metareward.training.pairset import TrainingPair, read_training_pairs
from metareward.training.ranks import is_first
from metareward.training.surroundings import settle

WRONG = 2


def train(job: DpoJob, out: TextIO) -> Lineage:
    """Train ``job``, or give the lineage of the model it has made before. Events go to ``job.log`` and ``out``.

    What a killed run of the same job has kept is gone on from.

    Made for a process of its own: it changes the environment and torch's settings. Raises `UserError`.
    """
    made = already_made(job)
    if made is not None:
        return made
    pairs, kept = read_training_pairs(job.pairs), newest(job)
    with EventLog(job.log, out, kept.step if kept else 0) as report:
        with new_folder(job.product, resume=kept is not None) as new:
            lineage = _fit(job, pairs, new, report, kept)
        report({"event": "end", "steps": lineage.steps})
    return lineage


def assist(job: DpoJob) -> None:
    """Take part in a training that the first process leads: compute, and write nothing but a part of checkpoints."""
    if already_made(job) is not None:
        return
    pairs, kept = read_training_pairs(job.pairs), newest(job)
    with tempfile.TemporaryDirectory() as scratch:
        new = replace(workshop(job.product), scratch=Path(scratch))
        _fit(job, pairs, new, lambda _: None, kept)


def _fit(job: DpoJob, pairs: tuple[TrainingPair, ...], new: NewFolder, report: Report, kept: Kept | None) -> Lineage:
    settle(os.environ, job, new.scratch)
    # Not before the environment is settled: Hugging Face's libraries read it as they are imported.
    from metareward.training.fit import fit

    return fit(job, pairs, new, report, kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m metareward.training.dpo", description="Train one DPO job.")
    parser.add_argument("job", type=Path, help="JSON file of the job")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input does")
    asked = parser.parse_args(arguments)
    if asked.with_parent:
        tie_to_parent()
    with _own_output() as out:
        try:
            job = DpoJob.read(asked.job)
            train(job, out) if is_first() else assist(job)
        except UserError as error:
            print(error, file=sys.stderr)
            if asked.with_parent and is_first():
                print(json.dumps({"event": "refused", "why": str(error)}), file=out)
            return WRONG
    return 0


def _own_output() -> TextIO:
    """Standard output for our events alone: what libraries print goes to standard error from now on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _leave(status: int) -> NoReturn:
    """End at once: everything is written and closed, and taking torch down in good order costs a second."""
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _leave(main())
