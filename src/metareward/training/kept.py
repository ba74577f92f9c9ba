"""What a killed training has left to go on from, found without importing anything heavy.

A checkpoint counts once the file `KEPT` stands in it, written last. It says to which job the checkpoint belongs, and
what was found out before that job's first step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from metareward.storage.atomic import write_atomic
from metareward.training.job import DpoJob
from metareward.training.lineage import identity
from metareward.training.newfolder import workshop

KEPT = "kept.json"
Figures = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Findings:
    """What is found out before the first step, and not again when a run is taken up.

    ``log_ratio`` is the first pairs' largest, in nats. ``not_packed`` says why rows are run apart; empty: they aren't.
    ``reference`` holds the reference's log-probabilities of all pairs, chosen and rejected, where they were computed.
    """

    log_ratio: float
    not_packed: str
    reference: Figures | None


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint that a job can go on from: where it is, after how many optimiser steps and seconds of them.

    ``findings`` are those that were made before the first step.
    """

    folder: Path
    step: int
    seconds: float
    findings: Findings


_FINDINGS = TypeAdapter(Findings)


def newest(job: DpoJob) -> Kept | None:
    """The latest whole checkpoint of ``job``; None when there is none."""
    marks = sorted(workshop(job.product).kept.glob(f"*/{KEPT}"))
    if not marks:
        return None
    wanted = _plain(identity(job))
    found = [kept for mark in marks if (kept := _read(mark, wanted)) is not None]
    return max(found, default=None, key=lambda kept: kept.step)


def mark(job: DpoJob, kept: Kept) -> None:
    """Say that the checkpoint ``kept`` of ``job`` is whole."""
    content = {"step": kept.step, "seconds": kept.seconds, "identity": identity(job), "findings": asdict(kept.findings)}
    write_atomic(kept.folder / KEPT, json.dumps(content))


def _read(path: Path, wanted: object) -> Kept | None:
    """The checkpoint, if it is of the ``wanted`` job; one of an older release that can't be read is of none."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content["identity"] != wanted:
        return None
    try:
        findings = _FINDINGS.validate_python(content["findings"])
        return Kept(path.parent, content["step"], content["seconds"], findings)
    except ValidationError:
        return None


def _plain(value: object) -> object:
    """``value`` as it comes back from a JSON file."""
    return json.loads(json.dumps(value))
