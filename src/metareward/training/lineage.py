"""Where a model comes from: its start model, its reference, its training files; checked before training, then recorded.

Losing track of which model is the reference is the commonest silent fault of iterated DPO. So every model folder
carries a ``lineage.json`` with the digests of start and reference, and before the first step both are run on the first
pairs: when they are meant to be one model, the log-ratio

    log pi_start(y|x) - log pi_reference(y|x)

of every completion must be 0 (and the first loss, therefore, ln 2).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from metareward.data.files import resolve_files
from metareward.errors import UserError
from metareward.storage.custody import LINEAGE, ModelRef, digest, fingerprint_model, model_ref
from metareward.training.config import AnyJob, DpoJob

ADAPTER = "adapter"  # the folder of a low-rank adapter inside the folder of the model it was merged into
Setting = str | int | float | None
# In nats, for a whole completion. Equal models on an equal batch differ by 0 in float32 and in bfloat16 alike; the
# room is for kernels that sum in another order each time.
TOLERANCE = 1e-3
# Settings that change how fast a model is made, not which: a resumed run may differ in them.
_NOT_IDENTITY = frozenset(
    {
        *("device", "per_device_train_batch_size", "gradient_checkpointing", "prefix_sharing", "num_processes"),
        *("sharding", "save_steps", "report_to", "checkpoint_selection", "keep_models"),
        *("launcher", "max_restarts", "start_timeout"),
        *("start", "reference", "ema_decay", "method", "lora"),  # in the identity under other keys
    }
)


@dataclass(frozen=True, slots=True)
class Lineage:
    """What ``lineage.json`` holds.

    ``sources`` are digests of the training files. ``examples`` and ``too_long`` count the examples (DPO: pairs) trained
    on, and those left out for their length, by kind; ``longest`` and ``limit`` are in tokens. ``notes`` say where the
    chat template writes conversations otherwise than generation has them. ``epoch`` is the one after which the model
    was saved, where every epoch was. Of DPO only: ``reference``; ``log_ratio``, the largest of
    the first pairs, in nats; whether rows were packed (``prefix_sharing``), and why not (``not_packed``); ``base``,
    the model that a low-rank adapter belongs to.
    """

    method: Literal["dpo", "sft"]
    start: ModelRef
    sources: tuple[str, ...]
    examples: Mapping[str, int]
    too_long: Mapping[str, int]
    longest: int
    limit: int
    steps: int
    seed: int
    settings: Mapping[str, Setting]
    versions: Mapping[str, str]
    reference: ModelRef | None = None
    log_ratio: float | None = None
    prefix_sharing: bool = False
    not_packed: str = ""
    base: ModelRef | None = None
    epoch: int | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The text of ``lineage.json``: equal for equal runs."""
        return _LINEAGE.dump_json(self, indent=2).decode() + "\n"


_LINEAGE = TypeAdapter(Lineage)


def read_lineage(folder: Path) -> Lineage:
    """The lineage of the model in ``folder``. Raises `UserError` when there is no readable one."""
    try:
        return _LINEAGE.validate_json((folder / LINEAGE).read_bytes())
    except (OSError, ValidationError):
        raise UserError(f"{folder}: already there, without a readable {LINEAGE}; fix: move or delete it") from None


def existing_lineage(job: AnyJob) -> Lineage | None:
    """The lineage of the model that this very job has made before; None when nothing is there.

    Raises `UserError` naming what differs when another model is there: a model is never overwritten.
    """
    folder = next((folder for folder in (job.output, job.product) if folder.exists()), None)
    if folder is None:
        return None
    lineage = read_lineage(folder)
    differing = other_identity(lineage, job)
    if differing:
        which = ", ".join(differing)
        raise UserError(f"{folder}: a model made with other values of {which} is here; fix: move or delete it")
    return lineage


def other_identity(lineage: Lineage, job: AnyJob) -> dict[str, tuple[object, object]]:
    """In what the model of ``lineage`` differs from the one that ``job`` makes: (its value, the job's) by name."""
    wanted = identity(job)
    there = _identity(lineage.method, lineage.start, lineage.reference, lineage.sources, lineage.settings)
    names = sorted(name for name in wanted | there if wanted.get(name) != there.get(name))
    return {name: (there.get(name), wanted.get(name)) for name in names}


def identity(job: AnyJob) -> dict[str, object]:
    """All that decides which weights ``job`` makes: digests of what it reads, and its settings."""
    start, reference = start_and_reference(job)
    return _identity(job.kind, start, reference, source_digests(job), identity_settings(job))


def _identity(
    method: str, start: ModelRef, reference: ModelRef | None, data: tuple[str, ...], settings: Mapping[str, object]
) -> dict[str, object]:
    digests = {"start": start.sha256, "reference": None if reference is None else reference.sha256}
    return {**settings, "method": method, **digests, "data": data}


def identity_settings(job: AnyJob) -> dict[str, Setting]:
    """The settings of a job that bear on the weights it makes, nested ones under dotted keys."""
    settings = job.settings.model_dump(mode="json")
    found = {name: value for name, value in settings.items() if name not in _NOT_IDENTITY}
    found |= {"stop_after_epoch": job.settings.last_epoch, "seed": job.seed}
    if isinstance(job, DpoJob) and job.settings.adapter is not None:
        found |= {"adapter": job.settings.method} | {f"lora.{name}": each for name, each in settings["lora"].items()}
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in found.items()}


def start_and_reference(job: AnyJob) -> tuple[ModelRef, ModelRef | None]:
    """The start model of a job and its reference, with their digests; SFT has no reference."""
    start = model_ref(job.start, job.output)
    if not isinstance(job, DpoJob):
        return start, None
    return start, start if job.start == job.reference else model_ref(job.reference, job.output)


def source_digests(job: AnyJob) -> tuple[str, ...]:
    """The digests of a job's training files; a folder counts by the files in it."""
    if isinstance(job, DpoJob):
        return tuple(map(digest, job.data))
    found = (path for source in job.data for path in resolve_files(source))
    files = (sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path] for path in found)
    return tuple(digest(file) for each in files for file in each)


def adapter_base(job: DpoJob) -> Path:
    """The folder that a low-rank adapter is trained on: the start model's, or the one that its adapter belongs to.

    Raises `UserError` when that one is missing or has changed.
    """
    lora = job.settings.adapter
    if lora is None or lora.carry_over == "merged" or not (job.start / ADAPTER).is_dir():
        return job.start
    recorded = read_lineage(job.start).base
    if recorded is None:
        raise UserError(f"{job.start}: its lineage names no base for its adapter; fix: set lora.carry_over to merged")
    folder = Path(os.path.normpath(job.start / recorded.path))
    if not folder.is_dir() or fingerprint_model(folder) != recorded.sha256:
        raise UserError(f"{folder}: not the base that the adapter in {job.start} belongs to; fix: put it back")
    return folder


def check_log_ratio(log_ratios: Sequence[float], start: ModelRef, reference: ModelRef) -> float:
    """The largest absolute value of the first pairs' ``log_ratios`` (nats).

    Raises `UserError` when it isn't finite, or isn't 0 although start and reference are the same model.
    """
    worst = max(map(abs, log_ratios))
    if not all(map(math.isfinite, log_ratios)):
        raise UserError(f"{start.path}: its log-probabilities are not finite; fix: start from an unbroken model")
    if start.sha256 == reference.sha256 and worst > TOLERANCE:
        raise UserError(
            f"lineage: start {start.path} and reference {reference.path} should be one model, but the log-ratio "
            f"on the first pairs is {worst:.3g} instead of 0; fix: check that both folders load completely"
        )
    return worst
