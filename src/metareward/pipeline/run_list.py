"""``metareward list``: the run folders in a folder, with the state of each. Reads only."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from metareward.errors import UserError
from metareward.pipeline.status import IterationStatus, Status, status
from metareward.report.facts import Evaluation, gather
from metareward.report.judge_health import entry_counts
from metareward.storage.run_dir import RunDir
from metareward.text import escape_control

State = Literal["running", "stopped", "finished", "damaged"]
_DEPTH = 4


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One run: ``iteration`` of ``iterations`` is done, ``stage`` comes next or runs now, empty for a finished run.

    ``updated``: seconds since the epoch of the last line in its log. ``headline``: the last model's first figure.
    ``note``: of a damaged run what is wrong, of others what judge health says.
    """

    path: str
    state: State
    iteration: int = 0
    iterations: int = 0
    stage: str = ""
    model: str = ""
    updated: float | None = None
    headline: str = ""
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def list_runs(folder: Path) -> tuple[ListedRun, ...]:
    """Every run in ``folder`` or below it, by path. Raises `UserError` when there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; fix: name one that holds run folders, such as runs")
    try:
        found = sorted(_run_folders(folder, 0))
    except OSError as error:
        raise UserError(f"{error.filename}: can't be read: {error.strerror}; fix: name another folder") from None
    return tuple(_listed(RunDir(path)) for path in found)


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if RunDir(folder).resolved.is_file():
        yield folder  # nothing below it is a run
    elif depth < _DEPTH:
        with os.scandir(folder) as found:
            inside = [Path(each.path) for each in found if each.is_dir() and not each.name.startswith(".")]
        for each in inside:
            try:
                yield from _run_folders(each, depth + 1)
            except OSError:  # not ours to read, or gone since
                continue


def _listed(run: RunDir) -> ListedRun:
    try:
        found, facts = status(run), gather(run)
        _check_models(run, found)
    except UserError as error:
        return ListedRun(str(run.path), "damaged", updated=_updated(run), note=str(error))
    done = sum(each.done for each in found.iterations if each.t)
    state: State = "running" if found.holder else "finished" if found.complete else "stopped"
    return ListedRun(
        path=str(run.path),
        state=state,
        iteration=done,
        iterations=len(found.recipe.iterations),
        stage="" if state == "finished" else _stage(found),
        model=found.recipe.model,
        updated=_updated(run),
        headline=_headline(facts.evaluations),
        note=f"judge health: {entry_counts(found.health)}" if found.health else "",
    )


def _check_models(run: RunDir, found: Status) -> None:
    """Raise `UserError` when the model of a finished iteration is gone."""
    for each in found.iterations:
        if each.t and each.done and not each.trained:
            model = run.iteration(each.t).model
            raise UserError(f"{model}: M{each.t} is gone, though its iteration is done; fix: restore it")


def _updated(run: RunDir) -> float | None:
    try:
        return next(path for path in (run.log, run.resolved) if path.is_file()).stat().st_mtime
    except (OSError, StopIteration):
        return None


def _stage(found: Status) -> str:
    """What is done now or comes next."""
    for each in found.iterations:
        stage = _pending(each, found.recipe.prompts.per_iteration)
        if stage:
            return stage
    return "report"


def _pending(each: IterationStatus, prompts: int) -> str:
    if each.t and not each.done:
        if each.actor_pairs is None:
            return f"generating ({each.finished} of {prompts})" if each.finished + each.failed < prompts else "pairs"
        if not each.trained:
            return f"training M{each.t}"
    if not each.evaluated:
        return f"evaluating M{each.t}"
    return "benchmarks" if each.t and not each.done else ""


def _headline(evaluations: Sequence[Evaluation]) -> str:
    """The last model's quality by the oracle, or its win rate against M0, or its answers' length."""
    if not evaluations:
        return ""
    first, last = evaluations[0], evaluations[-1]
    for key, words in (("answer_quality", "quality"), ("answer_chars", "answer length")):
        win_rate = next((each for each in last.win_rates if each.against == "M0"), None)
        if key != "answer_quality" and win_rate is not None:
            interval = f"{win_rate.low:.1f} to {win_rate.high:.1f}"
            return f"win rate against M0 {win_rate.win_rate:.1f} % ({interval}), judge {win_rate.judge}"
        if key in last.metrics:
            now, before = last.metrics[key], first.metrics.get(key)
            earlier = f" ({first.model}: {before.mean:.2f})" if before is not None and first is not last else ""
            return f"{words} of {last.model} {now.mean:.2f}{earlier}"
    return ""


def list_table(runs: Sequence[ListedRun]) -> Table:
    """One row a run."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("run", "state", "done", "stage", "model", "updated", "figures"):
        table.add_column(name, overflow="fold", no_wrap=name in ("state", "done", "updated"))
    for each in runs:
        done = f"{each.iteration} of {each.iterations}" if each.iterations else ""
        figures = "; ".join(part for part in (each.headline, each.note) if part)
        cells = (each.path, each.state, done, each.stage, each.model, age(each.updated), figures)
        table.add_row(*map(escape_control, cells))
    return table


def age(moment: float | None) -> str:
    """How long ago a moment was: ``3 min ago``."""
    if moment is None:
        return ""
    seconds = max(0.0, time.time() - moment)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "now"
