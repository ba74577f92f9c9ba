"""Resume states of a training that was killed, and the checkpoints of its epochs, one of which becomes the model.

A resume state is transformers' checkpoint (weights, optimizer, schedule, random numbers) with a mark that is written
last: which job it belongs to, what was computed before that job's first step, and digests of all files, so that no
damaged state is resumed. This module imports no torch.

The papers keep early epochs (Meta-Rewarding appendix A.3: 6, 4, 2 and 2 of 10) without stating a rule. Here the recipe
names one metric on held-out prompts, a limit on the growth of answers, and how much worse than the best an earlier
epoch may be: later epochs have had more time to learn the judge's errors.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from metareward.errors import UserError
from metareward.storage.atomic import AtomicDir, flush_dir, write_atomic
from metareward.storage.custody import digest
from metareward.storage.serialization import fingerprint_of
from metareward.training.config import AnyJob, CheckpointSelectionSettings, DpoJob
from metareward.training.lineage import identity

RESUME_MARK = "resume_state.json"
LENGTH = "answer_chars"  # the metric that max_length_ratio limits
LogProbs = tuple[tuple[float, ...], tuple[float, ...]]
Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SanityFindings:
    """What DPO's sanity check finds before the first step; a resumed run takes it from the resume state.

    ``log_ratio`` is the largest of the first pairs, in nats. ``not_packed`` says why rows aren't packed; empty: they
    are, with FlexAttention if ``flex``. ``reference`` has the reference's log-probabilities of all pairs, chosen and
    rejected, where they were precomputed.
    """

    log_ratio: float
    not_packed: str
    flex: bool
    reference: LogProbs | None


@dataclass(frozen=True, slots=True)
class ResumeState:
    """A folder to resume a job from, after ``step`` optimizer steps that took ``seconds``; no ``findings`` for SFT."""

    folder: Path
    step: int
    seconds: float
    findings: SanityFindings | None


_FINDINGS: TypeAdapter[SanityFindings | None] = TypeAdapter(SanityFindings | None)


def latest_resume_state(job: AnyJob) -> ResumeState | None:
    """The job's latest complete resume state, if there is one."""
    marks = sorted(AtomicDir.beside(job.product).resume.glob(f"*/{RESUME_MARK}"))
    if not marks:
        return None
    wanted, found = json.loads(json.dumps(identity(job))), []
    for mark in marks:
        content = _read_mark(mark)
        if content["identity"] == wanted and _is_whole(mark.parent, content):
            with suppress(ValidationError):  # of another release
                findings = _FINDINGS.validate_python(content["findings"])
                found.append(ResumeState(mark.parent, content["step"], content["seconds"], findings))
    return max(found, default=None, key=lambda state: state.step)


def mark_resume_state(job: AnyJob, state: ResumeState) -> None:
    """Write the mark that makes the folder of ``state`` a complete resume state of ``job``."""
    findings = None if state.findings is None else asdict(state.findings)
    content: dict[str, Any] = {
        "step": state.step,
        "seconds": state.seconds,
        "identity": identity(job),
        "findings": findings,
        "files": _digests(state.folder),
    }
    write_atomic(state.folder / RESUME_MARK, json.dumps({**content, "sha256": fingerprint_of(content)}))


def delete_resume_state(folder: Path) -> None:
    """Delete a resume state, its mark first: half deleted it is none."""
    (folder / RESUME_MARK).unlink(missing_ok=True)
    shutil.rmtree(folder)


def damaged_resume_states(folder: Path) -> list[Path]:
    """The resume states of trainings anywhere in ``folder`` that aren't what was saved; none of them is resumed.

    One that a running training deletes meanwhile isn't among them.
    """
    marks = sorted(folder.rglob(f".*/kept/*/{RESUME_MARK}"))
    return [mark.parent for mark in marks if not _is_whole(mark.parent, _read_mark(mark)) and mark.is_file()]


def _read_mark(mark: Path) -> dict[str, Any]:
    """What a mark holds; a damaged one belongs to no job."""
    try:
        content = dict(json.loads(mark.read_bytes()))
        stored = content.pop("sha256", None)
        if stored == fingerprint_of(content):
            return content
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    return {"identity": None}


def _is_whole(folder: Path, content: Mapping[str, Any]) -> bool:
    """Whether the files of a resume state can be read, and are those that its mark names, bit for bit."""
    try:
        return content.get("files") == _digests(folder)
    except UserError:
        return False


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RESUME_MARK)
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


# --- the checkpoints of a DPO job's epochs ---


def epoch_checkpoint(job: DpoJob, epoch: int) -> Path:
    """The model folder of an ``epoch`` (from 1)."""
    return job.product / f"epoch-{epoch}"


@dataclass(frozen=True, slots=True)
class SelectedEpoch:
    """The selected ``epoch``, counted from 1, and the ``reason``, in a sentence for the log."""

    epoch: int
    reason: str


def select_epoch(
    measured: Mapping[int, Metrics], settings: CheckpointSelectionSettings, start: Metrics
) -> SelectedEpoch:
    """Select among the epochs in ``measured`` by ``settings.metric``; ``start`` has the start model's metrics.

    The earliest epoch within ``tolerance`` of the best is taken. Epochs whose answers have grown to more than
    ``max_length_ratio`` times the start model's are skipped, unless all have: then the shortest is taken. Raises
    `UserError` when no epoch has a number for the metric.
    """
    metric, ratio = settings.metric or "", settings.max_length_ratio
    values = {epoch: _finite(metrics, metric) for epoch, metrics in sorted(measured.items())}
    sign = -1 if settings.mode == "min" else 1
    known = {epoch: sign * value for epoch, value in values.items() if value is not None}
    if not known:
        raise UserError(f"checkpoint_selection: no epoch has a number for {metric}; fix: name another metric")
    short, length_before = dict(known), _finite(start, LENGTH)
    if ratio is not None and length_before is not None:
        lengths = {epoch: _finite(measured[epoch], LENGTH) for epoch in known}
        too_long = {epoch for epoch, length in lengths.items() if length is not None and length > ratio * length_before}
        short = {epoch: value for epoch, value in known.items() if epoch not in too_long}
    if not short:
        epoch = min(known, key=lambda epoch: measured[epoch][LENGTH])
        limit = f"{ratio:g} times the start model's"
        return SelectedEpoch(epoch, f"epoch {epoch}: the lowest {LENGTH}; all epochs are above {limit}")
    best = max(short.values())
    epoch = next(epoch for epoch, value in short.items() if value >= best - settings.tolerance)
    listed = ", ".join(f"{each}: {'-' if value is None else f'{value:.4g}'}" for each, value in values.items())
    goal = f"{'lowest' if settings.mode == 'min' else 'highest'} {settings.metric}"
    within = f", or the earliest within {settings.tolerance:g} of it" if settings.tolerance else ""
    skipped = f"; too long: {', '.join(map(str, sorted(known.keys() - short)))}" if len(short) < len(known) else ""
    return SelectedEpoch(epoch, f"epoch {epoch} by {goal}{within} ({listed}{skipped})")


def _finite(metrics: Metrics, name: str) -> float | None:
    value = metrics.get(name)
    return value if value is not None and math.isfinite(value) else None


def promote_epoch(job: DpoJob, epoch: int, keep_all: bool = False) -> None:
    """Make the checkpoint of ``epoch`` the output of ``job``, and delete the others unless ``keep_all``.

    After a kill it can be called again. Raises `UserError` when there is no such checkpoint.
    """
    chosen = epoch_checkpoint(job, epoch)
    if not job.output.exists():
        if not chosen.is_dir():
            raise UserError(f"{chosen}: no checkpoint of this epoch; fix: train again")
        flush_dir(chosen)
        chosen.rename(job.output)
    if not keep_all:
        shutil.rmtree(job.product, ignore_errors=True)
