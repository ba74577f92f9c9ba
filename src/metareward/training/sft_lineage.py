"""Where a model that was taught by examples comes from: what it started as, and which examples it saw.

Written as ``lineage.json`` into its folder, like that of a model trained by DPO; there is no reference model here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from metareward.data.files import resolve_files
from metareward.errors import UserError
from metareward.training.lineage import LINEAGE, Origin, digest, origins, settings_of
from metareward.training.sft_job import SftJob


@dataclass(frozen=True, slots=True)
class SftLineage:
    """What ``lineage.json`` holds.

    ``examples`` and ``too_long`` count the examples learned from, and those left out for their length, by kind;
    ``longest`` and ``limit`` are in tokens. ``sources`` are digests of the files of examples.
    """

    start: Origin
    sources: tuple[str, ...]
    examples: Mapping[str, int]
    too_long: Mapping[str, int]
    longest: int
    limit: int
    steps: int
    seed: int
    settings: Mapping[str, str | int | float | None]
    versions: Mapping[str, str]
    method: Literal["sft"] = "sft"

    def to_json(self) -> str:
        """The text of ``lineage.json``: equal for equal runs."""
        return _LINEAGE.dump_json(self, indent=2).decode() + "\n"


_LINEAGE = TypeAdapter(SftLineage)


def start_of(job: SftJob) -> Origin:
    """The model that a job starts from, with its digest."""
    return origins(job.as_dpo())[0]


def sources_of(job: SftJob) -> tuple[str, ...]:
    """The digests of a job's files of examples; a folder counts by the files in it."""
    found = (path for source in job.data for path in resolve_files(source))
    return tuple(digest(file) for path in found for file in _files(path))


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def sft_settings_of(job: SftJob) -> dict[str, str | int | float | None]:
    """The settings of a job that bear on the weights it makes."""
    ours = {field.name for field in fields(job)}
    return {name: value for name, value in settings_of(job.as_dpo()).items() if name in ours}


def read_sft_lineage(job: SftJob) -> SftLineage:
    """What is written in ``job.output``. Raises `UserError` when there is no readable lineage of such a model."""
    try:
        return _LINEAGE.validate_json((job.output / LINEAGE).read_bytes())
    except (OSError, ValidationError):
        raise UserError(
            f"{job.output}: already there, without a readable {LINEAGE} of a supervised run; fix: move or delete it"
        ) from None


def already_taught(job: SftJob) -> SftLineage | None:
    """The lineage of ``job.output`` when this very job made it, None when nothing is there.

    Raises `UserError` naming what differs when something else is there: a model is never written over.
    """
    if not job.output.exists():
        return None
    lineage = read_sft_lineage(job)
    wanted = {**sft_settings_of(job), "start": start_of(job).sha256, "data": sources_of(job)}
    there = {**lineage.settings, "start": lineage.start.sha256, "data": lineage.sources}
    differing = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if differing:
        which = ", ".join(differing)
        raise UserError(f"{job.output}: a model made with other values of {which} is here; fix: move or delete it")
    return lineage
