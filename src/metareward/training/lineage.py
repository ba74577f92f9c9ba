"""Where a model comes from: what it started as, what it was held to, on which pairs; checked, then written down.

Losing track of which model is the reference is the commonest silent fault of iterated DPO. So every model folder
carries a ``lineage.json`` with the digests of its start and its reference, and before the first step the two are
run on the first pairs: when they are meant to be one model, the log-ratio

    log pi_start(y|x) - log pi_reference(y|x)

of every completion must be 0 (and the first loss, therefore, ln 2).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from metareward.errors import UserError
from metareward.training.job import DpoJob

LINEAGE = "lineage.json"
ADAPTER = "adapter"  # the folder of a low-rank adapter in that of the model it has made
Setting = str | int | float | None
# In nats, for a whole completion. Equal models on an equal batch differ by 0 in float32 and in bfloat16 alike; the
# room is for kernels that add up in another order each time.
TOLERANCE = 1e-3
# What the folder weighs on: README and the like may change without changing the model.
_MEANING = frozenset({".json", ".safetensors", ".jinja", ".model", ".txt"})
_PLACES = frozenset({"start", "reference", "pairs", "output", "log"})
# Settings that change how fast, not what: a run taken up again elsewhere may differ in them.
_MACHINE = frozenset({"device", "threads", "micro_batch_size", "gradient_checkpointing", "prefix_sharing"})
_AROUND = frozenset({"processes", "sharding", "checkpoint_steps", "keep_epochs", "trackers", "run_name"})
_LATER_NAMES = frozenset({"loss", "loss_weights", "label_smoothing", "ld_alpha", "lora"})
# Fields that the first release's models don't tell of, with what they meant then.
_LATER = {field.name: field.default for field in fields(DpoJob) if field.name in _LATER_NAMES}


@dataclass(frozen=True, slots=True)
class Origin:
    """A model folder (``folder`` as a path from the new model's folder) and its digest."""

    folder: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """What ``lineage.json`` holds.

    ``pairs`` and ``too_long`` count the pairs trained on, and those left out for their length, by kind;
    ``longest`` and ``limit`` are in tokens. ``log_ratio`` is the largest one of the first pairs, in nats.
    ``prefix_sharing`` says whether what pairs have in common was in fact run once, ``not_shared`` why not.
    ``sources`` are digests of the pair files. ``base`` is what a low-rank adapter was trained on top of. ``epoch`` is
    the one at whose end the model was taken, where every epoch was kept.
    """

    start: Origin
    reference: Origin
    sources: tuple[str, ...]
    pairs: Mapping[str, int]
    too_long: Mapping[str, int]
    longest: int
    limit: int
    log_ratio: float
    prefix_sharing: bool
    steps: int
    seed: int
    settings: Mapping[str, Setting]
    versions: Mapping[str, str]
    not_shared: str = ""
    base: Origin | None = None
    epoch: int | None = None

    def to_json(self) -> str:
        """The text of ``lineage.json``: equal for equal runs."""
        return _LINEAGE.dump_json(self, indent=2).decode() + "\n"


_LINEAGE = TypeAdapter(Lineage)


def fingerprint_model(folder: Path) -> str:
    """64 hex digits over the configuration, tokenizer and weights of a Hugging Face folder, names and contents.

    Raises `UserError` when there is no model with safetensors weights in ``folder``.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model here (config.json is missing); fix: name a Hugging Face model folder")
    files = sorted(path for path in folder.iterdir() if path.suffix in _MEANING and path.name != LINEAGE)
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{folder}: no safetensors weights; fix: save the model with save_pretrained")
    digests = "".join(f"{path.name} {digest(path)}\n" for path in files)
    return hashlib.sha256(digests.encode()).hexdigest()


def digest(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits. Raises `UserError` when it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; fix: make it readable") from None


def origins(job: DpoJob) -> tuple[Origin, Origin]:
    """Start and reference of a job, with their digests."""
    start = origin(job.start, job)
    return start, start if job.start == job.reference else origin(job.reference, job)


def base_of(job: DpoJob) -> Path:
    """The folder that a low-rank adapter is trained on top of: the start model's, or the one its adapter was made for.

    Raises `UserError` when that one isn't where it was, or isn't what it was.
    """
    if job.lora is None or not job.lora.stacked or not (job.start / ADAPTER).is_dir():
        return job.start
    noted = read_lineage(job.start).base
    if noted is None:
        raise UserError(f"{job.start}: its lineage names no base for its adapter; fix: set lora.stacked to false")
    folder = Path(os.path.normpath(job.start / noted.folder))
    if not folder.is_dir() or fingerprint_model(folder) != noted.sha256:
        raise UserError(f"{folder}: not the base that the adapter in {job.start} was made for; fix: put it back")
    return folder


def check_log_ratio(log_ratios: Sequence[float], start: Origin, reference: Origin) -> float:
    """The largest of the first pairs' ``log_ratios`` (nats), by size.

    Raises `UserError` when it isn't a number, or isn't 0 although start and reference are the same model.
    """
    worst = max(map(abs, log_ratios))
    if not all(map(math.isfinite, log_ratios)):
        raise UserError(f"{start.folder}: its log-probabilities are not finite; fix: start from an unbroken model")
    if start.sha256 == reference.sha256 and worst > TOLERANCE:
        raise UserError(
            f"lineage: start {start.folder} and reference {reference.folder} should be one model, but the log-ratio "
            f"on the first pairs is {worst:.3g} instead of 0; fix: check that both folders load completely"
        )
    return worst


def settings_of(job: DpoJob) -> dict[str, Setting]:
    """The settings of a job that bear on the weights it makes; those of later releases only where they are in use."""
    kept = {name: value for name, value in asdict(job).items() if name not in _PLACES | _MACHINE | _AROUND}
    return {
        name: value if isinstance(value, Setting) else json.dumps(value)
        for name, value in kept.items()
        if name not in _LATER or value != _LATER[name]
    }


def already_made(job: DpoJob) -> Lineage | None:
    """The lineage of what this very job has made before, None when nothing is there.

    Raises `UserError` naming what differs when something else is there: a model is never written over.
    """
    folder = next((folder for folder in (job.output, job.product) if folder.exists()), None)
    if folder is None:
        return None
    lineage = read_lineage(folder)
    wanted = identity(job)
    there = _identity(lineage.start, lineage.reference, lineage.sources, lineage.settings)
    differing = sorted(name for name in wanted | there if wanted.get(name) != there.get(name))
    if differing:
        which = ", ".join(differing)
        raise UserError(f"{folder}: a model made with other values of {which} is here; fix: move or delete it")
    return lineage


def identity(job: DpoJob) -> dict[str, object]:
    """All that decides which weights ``job`` makes: digests of what it reads, and its settings."""
    return _identity(*origins(job), tuple(map(digest, job.pairs)), settings_of(job))


def _identity(
    start: Origin, reference: Origin, sources: tuple[str, ...], settings: Mapping[str, object]
) -> dict[str, object]:
    return {**settings, "start": start.sha256, "reference": reference.sha256, "pairs": sources}


def read_lineage(folder: Path) -> Lineage:
    """What is written in ``folder``. Raises `UserError` when there is no readable lineage."""
    try:
        return _LINEAGE.validate_json((folder / LINEAGE).read_bytes())
    except (OSError, ValidationError):
        raise UserError(f"{folder}: already there, without a readable {LINEAGE}; fix: move or delete it") from None


def origin(folder: Path, job: DpoJob) -> Origin:
    """``folder`` as a job's lineage notes it: the path is from the new model, so that a run folder can be moved whole.

    It tells nothing of the machine.
    """
    return Origin(Path(os.path.relpath(folder, job.output)).as_posix(), fingerprint_model(folder))
