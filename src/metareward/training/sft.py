"""One supervised run as a process of its own: ``python -m metareward.training.sft JOB.json``.

Reads an `SftJob`, writes a Hugging Face folder, tells every step as a line of JSON on standard output and in the log.
A mistake of the user's is one line on standard error and exit status 2. Memory is given back when the process ends.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from metareward.errors import UserError
from metareward.training.events import EventLog
from metareward.training.lifeline import tie_to_parent
from metareward.training.newfolder import new_folder
from metareward.training.sft_examples import read_examples
from metareward.training.sft_job import SftJob
from metareward.training.sft_lineage import SftLineage, already_taught
from metareward.training.surroundings import settle

WRONG = 2


def teach(job: SftJob, out: TextIO) -> SftLineage:
    """Train ``job``, or give the lineage of the model it has made before. Events go to ``job.log`` and ``out``.

    Made for a process of its own: it changes the environment and torch's settings. Raises `UserError`.
    """
    made = already_taught(job)
    if made is not None:
        return made
    examples = read_examples(job.data)
    with EventLog(job.log, out) as report:
        with new_folder(job.output) as new:
            settle(os.environ, job.as_dpo(), new.scratch)
            # Not before the environment is settled: Hugging Face's libraries read it as they are imported.
            from metareward.training.sft_fit import fit

            lineage = fit(job, examples, new, report)
        report({"event": "end", "steps": lineage.steps})
    return lineage


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m metareward.training.sft", description="Train one supervised job.")
    parser.add_argument("job", type=Path, help="JSON file of the job")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input does")
    asked = parser.parse_args(arguments)
    if asked.with_parent:
        tie_to_parent()
    try:
        with _own_output() as out:
            teach(SftJob.read(asked.job), out)
    except UserError as error:
        print(error, file=sys.stderr)
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
