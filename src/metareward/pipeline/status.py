"""What a run has done, what it owes, and whether it is at work now. Looks only; a run in progress isn't disturbed."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metareward.config.schema import Recipe
from metareward.generation.usage import ServerUsageTotal
from metareward.report.facts import Iteration
from metareward.report.gather import gather
from metareward.report.labels import escape_control
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore

_HEAD = ("", "prompts", "actor pairs", "judge pairs", "trained", "evaluated")
_LOG_LINES = 5


@dataclass(frozen=True, slots=True)
class IterationStatus:
    """Iteration ``t`` of a run; iteration 0 only evaluates the model it starts from. None: not there yet.

    ``finished`` and ``failed`` count prompts generated for, ``measured`` held-out prompts, ``benchmarks`` results.
    """

    t: int
    finished: int
    failed: int
    actor_pairs: int | None
    judge_pairs: int | None
    trained: bool
    measured: int
    evaluated: bool
    done: bool
    benchmarks: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """A run folder as it is now. ``holder`` says who runs in it, if anyone."""

    path: Path
    recipe: Recipe
    iterations: tuple[IterationStatus, ...]
    holder: str | None
    last_lines: tuple[str, ...]
    server_usage: tuple[ServerUsageTotal, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing is owed."""
        return all(each.done for each in self.iterations if each.t > 0)


def status(run: RunDir) -> Status:
    """Reads the folder. Raises `UserError` when it is no run folder or a file in it can't be read."""
    facts = gather(run)
    return Status(
        path=run.path,
        recipe=facts.recipe,
        iterations=tuple(_iteration(run, each) for each in facts.iterations),
        holder=run.holder(),
        last_lines=_last_lines(run.log),
        server_usage=facts.server_usage,
        warnings=facts.warnings,
    )


def status_text(run: RunDir) -> str:
    """The status of a run as a few lines for the terminal."""
    found = status(run)
    recipe = found.recipe
    width = len(str(recipe.prompts.per_iteration))
    rows = [_HEAD, *(_row(each, recipe, width) for each in found.iterations)]
    lines = [f"{found.path}: {_state(found)}", f"model {recipe.model}, {_owed(found)}", "", *_aligned(rows)]
    if found.server_usage:
        lines += ["", "server usage:"]
        lines += [f"  {each.client} at {each.server}: {_usage_counts(each)}" for each in found.server_usage]
    if found.warnings:
        lines += ["", f"warnings ({len(found.warnings)}), the last ones:"]
        lines += [f"  {warning}" for warning in found.warnings[-_LOG_LINES:]]
    if found.last_lines:
        lines += ["", "last lines of the log:", *(f"  {line}" for line in found.last_lines)]
    return escape_control("\n".join(lines) + "\n")


def _usage_counts(each: ServerUsageTotal) -> str:
    """The counts as text, without those that are 0."""
    rare = ((each.failed, "failed"), (each.cached, "from cache"), (each.filtered, "filtered"))
    counts = [f"{each.requests:,} requests", *(f"{count:,} {words}" for count, words in rare if count)]
    return ", ".join([*counts, f"{each.prompt_tokens:,} prompt tokens, {each.completion_tokens:,} completion tokens"])


def _iteration(run: RunDir, facts: Iteration) -> IterationStatus:
    folder = run.iteration(facts.number)
    finished, failed = _counts(folder.records)
    made = facts.summary
    return IterationStatus(
        t=facts.number,
        finished=finished,
        failed=failed,
        actor_pairs=made.actor_pairs if made else None,
        judge_pairs=made.judge_pairs if made else None,
        trained=(folder.model / "config.json").is_file(),
        measured=_counts(folder.evaluation / "records.sqlite")[0],
        evaluated=facts.evaluation is not None,
        done=facts.done,
        benchmarks=len(facts.benchmarks),
    )


def _counts(records: Path) -> tuple[int, int]:
    if not records.is_file():
        return 0, 0
    with RecordStore.read(records) as store:
        return len(store.keys()), len(store.failures())


def _last_lines(log: Path) -> tuple[str, ...]:
    """The end of the log: time, event and its facts; a line that isn't such an entry stays as it is."""
    if not log.is_file():
        return ()
    with log.open(encoding="utf-8", errors="replace") as file:
        return tuple(_readable(line.rstrip("\n")) for line in deque(file, _LOG_LINES))


def _readable(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, Mapping):
        return line
    facts = (f"{key}={value}" for key, value in entry.items() if key not in ("time", "event"))
    return " ".join([f"{entry.get('time', '-')} ", str(entry.get("event", "-")), *facts])


def _state(found: Status) -> str:
    if found.holder:
        return f"running ({found.holder})"
    return "finished" if found.complete else "not running; the same `metareward run` goes on from here"


def _owed(found: Status) -> str:
    planned = len(found.recipe.iterations)
    done = sum(each.done for each in found.iterations if each.t > 0)
    return f"{done} of {planned} iterations done"


def _row(each: IterationStatus, recipe: Recipe, width: int) -> tuple[str, ...]:
    if each.t == 0:
        return ("M0", "", "", "", "given", _evaluated(each))
    of = recipe.prompts.per_iteration
    failed = f" ({each.failed} failed)" if each.failed else ""
    judge = "none planned" if not recipe.iterations[each.t].judge_pairs else _count(each.judge_pairs)
    trained = f"M{each.t}" if each.trained else "owed"
    prompts = f"{each.finished:>{width}}/{of}{failed}"
    return (f"M{each.t}", prompts, _count(each.actor_pairs), judge, trained, _evaluated(each))


def _count(pairs: int | None) -> str:
    return "owed" if pairs is None else str(pairs)


def _evaluated(each: IterationStatus) -> str:
    if each.evaluated:
        benchmarks = f", {each.benchmarks} benchmark{'s' if each.benchmarks > 1 else ''}" if each.benchmarks else ""
        return f"yes{benchmarks}"
    return f"{each.measured} prompts so far" if each.measured else "owed"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
