"""Which epoch of a training becomes the model: each is kept, each is measured, and a rule fixed beforehand chooses.

The papers kept early epochs (Meta-Rewarding appendix A.3: 6, 4, 2 and 2 of 10) without saying by which rule. Here a
rule names one figure measured on held-out prompts, how far the length of answers may grow, and how much worse than the
best an earlier epoch may be and still be taken: later epochs have had more time to learn the judge's faults.

Training with ``keep_epochs`` makes ``<output>-epochs/epoch-<k>/``, each a whole model. Whoever measured them calls
`choose_epoch`, and `adopt` makes the chosen one the output.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metareward.errors import UserError
from metareward.training.job import DpoJob
from metareward.training.newfolder import flush_folder

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EpochRule:
    """The best epoch by ``figure``; ``lowest`` says that less is better.

    The earliest epoch is taken that comes within ``margin`` of the best. An epoch whose ``length`` figure is more than
    ``longest`` times the start model's is out, unless all are: then the shortest is taken.
    """

    figure: str
    lowest: bool = False
    margin: float = 0.0
    length: str = "answer_chars"
    longest: float | None = None


@dataclass(frozen=True, slots=True)
class EpochChoice:
    """The ``epoch`` that is taken, counted from 1, and ``why``, in a sentence for the log."""

    epoch: int
    why: str


def choose_epoch(measured: Mapping[int, Figures], rule: EpochRule, start: Figures) -> EpochChoice:
    """The epoch that ``rule`` picks among those ``measured``; ``start`` are the start model's figures.

    An epoch without a number for the figure is out. Raises `UserError` when that is all of them.
    """
    numbers = {epoch: _number(figures, rule.figure) for epoch, figures in sorted(measured.items())}
    known = {epoch: -value if rule.lowest else value for epoch, value in numbers.items() if value is not None}
    if not known:
        raise UserError(f"checkpoint rule: no epoch has a number for {rule.figure}; fix: choose by another figure")
    short = {epoch: value for epoch, value in known.items() if _short_enough(measured[epoch], rule, start)}
    if not short:
        epoch = min(known, key=lambda epoch: measured[epoch][rule.length])
        grown = f"its {rule.length} grew least; all grew to more than {rule.longest:g} times the start model's"
        return EpochChoice(epoch, f"epoch {epoch}: {grown}")
    best = max(short.values())
    epoch = next(epoch for epoch, value in short.items() if value >= best - rule.margin)
    return EpochChoice(epoch, _reason(epoch, numbers, set(known) - set(short), rule))


def _number(figures: Figures, name: str) -> float | None:
    value = figures.get(name)
    return value if value is not None and math.isfinite(value) else None


def _short_enough(figures: Figures, rule: EpochRule, start: Figures) -> bool:
    if rule.longest is None:
        return True
    now, before = _number(figures, rule.length), _number(start, rule.length)
    return now is None or before is None or now <= rule.longest * before


def _reason(epoch: int, numbers: Mapping[int, float | None], long: set[int], rule: EpochRule) -> str:
    all_of_them = ", ".join(f"{each}: {'-' if value is None else f'{value:.4g}'}" for each, value in numbers.items())
    wanted = f"{'lowest' if rule.lowest else 'highest'} {rule.figure}"
    room = f", or the earliest within {rule.margin:g} of it" if rule.margin else ""
    out = f"; too long: {', '.join(map(str, sorted(long)))}" if long else ""
    return f"epoch {epoch} by {wanted}{room} ({all_of_them}{out})"


def epoch_folder(job: DpoJob, epoch: int) -> Path:
    """Where the model of an ``epoch`` (from 1) is kept."""
    return job.product / f"epoch-{epoch}"


def adopt(job: DpoJob, epoch: int, keep_rest: bool = False) -> None:
    """Make the model of ``epoch`` the output of ``job``, and throw the others away unless they are to be kept.

    Killed in between, it can be called again. Raises `UserError` when that epoch isn't there.
    """
    chosen = epoch_folder(job, epoch)
    if not job.output.exists():
        if not chosen.is_dir():
            raise UserError(f"{chosen}: no model of this epoch; fix: train again")
        flush_folder(chosen)
        chosen.rename(job.output)
    if not keep_rest:
        shutil.rmtree(job.product, ignore_errors=True)
