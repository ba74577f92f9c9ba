"""The state of a run folder: what is done, what is pending, and whether a run is active. Reads only, takes no lock."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metareward.config.schema import Recipe
from metareward.generation.usage import ServerUsageTotal
from metareward.method.health_checks import HealthCheck
from metareward.report.facts import Iteration, gather
from metareward.report.independent_judge import judge_lines, pending_lines
from metareward.report.judge_health import entry_counts, health_lines
from metareward.storage.custody import weights_deleted
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.text import escape_control

_HEAD = ("", "prompts", "actor pairs", "judge pairs", "trained", "evaluated")
_LOG_LINES = 5


@dataclass(frozen=True, slots=True)
class IterationStatus:
    """Iteration ``t`` of a run; iteration 0 is the evaluation of M0. Pairs are None until they are built.

    ``finished`` and ``failed`` count annotated prompts, ``measured`` held-out prompts, ``benchmarks`` results.
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
    weights_deleted: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """A run folder as it is now. ``holder``: the process that holds the lock, None if no run is active.

    ``health`` are the results of the gates on judge health. ``judges``: a line on each independent judge; ``pending``:
    one on each result that lacks verdicts.
    """

    path: Path
    recipe: Recipe
    iterations: tuple[IterationStatus, ...]
    holder: str | None
    last_lines: tuple[str, ...]
    health: tuple[HealthCheck, ...] = ()
    judges: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    server_usage: tuple[ServerUsageTotal, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def stopping_gates(self) -> tuple[str, ...]:
        """The gates that stopped the run in its last check."""
        return tuple(each.name for each in self.health[-1].stopping) if self.health else ()

    @property
    def complete(self) -> bool:
        """Whether every iteration is done."""
        return all(each.done for each in self.iterations if each.t > 0)


def status(run: RunDir) -> Status:
    """Read the folder. Raises `UserError` if it is no run folder or a file in it can't be read."""
    facts = gather(run)
    return Status(
        path=run.path,
        recipe=facts.recipe,
        iterations=tuple(_iteration(run, each) for each in facts.iterations),
        holder=run.holder(),
        last_lines=_last_log_lines(run.log),
        health=facts.health,
        judges=judge_lines(facts),
        pending=pending_lines(facts),
        server_usage=facts.server_usage,
        warnings=facts.warnings,
    )


def _iteration(run: RunDir, facts: Iteration) -> IterationStatus:
    folder, summary = run.iteration(facts.number), facts.summary
    finished, failed = _count_records(folder.records)
    return IterationStatus(
        t=facts.number,
        finished=finished,
        failed=failed,
        actor_pairs=summary.actor_pairs if summary else None,
        judge_pairs=summary.judge_pairs if summary else None,
        trained=(folder.model / "config.json").is_file(),
        measured=_count_records(folder.evaluation / "records.sqlite")[0],
        evaluated=facts.evaluation is not None,
        done=facts.done,
        benchmarks=len(facts.benchmarks),
        weights_deleted=weights_deleted(folder.model),
    )


def _count_records(records: Path) -> tuple[int, int]:
    """(finished, failed) prompts of a record store, zeros if there is none."""
    if not records.is_file():
        return 0, 0
    with RecordStore.read(records) as store:
        return len(store.keys()), len(store.failures())


def _last_log_lines(log: Path) -> tuple[str, ...]:
    """The end of the log: time, event and its fields; a line that isn't JSON is kept as it is."""
    if not log.is_file():
        return ()
    shown = []
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in deque(file, _LOG_LINES):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, Mapping):
                shown.append(line.rstrip("\n"))
                continue
            fields = (f"{key}={value}" for key, value in entry.items() if key not in ("time", "event"))
            shown.append(" ".join([f"{entry.get('time', '-')} ", str(entry.get("event", "-")), *fields]))
    return tuple(shown)


def status_text(run: RunDir) -> str:
    """The status of a run as a few lines for the terminal."""
    found = status(run)
    rows = [_HEAD, *(_row(each, found.recipe) for each in found.iterations)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    state = "finished" if found.complete else f"not running; `metareward run {found.path}` resumes it"
    if found.stopping_gates and not found.complete:
        settings = " ".join(f"--set judge_health.{gate}.action=warn" for gate in found.stopping_gates)
        state = f"stopped by judge health; `metareward run {found.path} {settings}` resumes it"
    done, planned = sum(each.done for each in found.iterations if each.t), len(found.recipe.iterations)
    lines = [
        f"{found.path}: {f'running ({found.holder})' if found.holder else state}",
        f"model {found.recipe.model}, {done} of {planned} iterations done",
        "",
        *table,
    ]
    health = health_lines(found.health)
    if found.health:
        lines += ["", f"judge health: {entry_counts(found.health)}", *(f"  {line}" for line in health)]
    if found.judges:
        lines += ["", "independent judge:", *(f"  {line}" for line in found.judges)]
    if found.pending:
        lines += ["", "benchmarks that lack verdicts:", *(f"  {line}" for line in found.pending)]
    if found.server_usage:
        lines += ["", "server usage:", *(f"  {_usage_line(each)}" for each in found.server_usage)]
    if found.warnings:
        lines += ["", f"warnings ({len(found.warnings)}), the last ones:"]
        lines += [f"  {warning}" for warning in found.warnings[-_LOG_LINES:]]
    if found.last_lines:
        lines += ["", "last lines of the log:", *(f"  {line}" for line in found.last_lines)]
    return escape_control("\n".join(lines) + "\n")


def _usage_line(each: ServerUsageTotal) -> str:
    """Client, server and its counts, without those that are 0."""
    rare = ((each.failed, "failed"), (each.cached, "from cache"), (each.filtered, "filtered"))
    counts = [f"{each.requests:,} requests", *(f"{count:,} {words}" for count, words in rare if count)]
    counts += [f"{each.prompt_tokens:,} prompt tokens", f"{each.completion_tokens:,} completion tokens"]
    return f"{each.client} at {each.server}: {', '.join(counts)}"


def _row(each: IterationStatus, recipe: Recipe) -> tuple[str, ...]:
    evaluated = f"{each.measured} prompts so far" if each.measured else "pending"
    if each.evaluated:
        benchmarks = f", {each.benchmarks} benchmark{'s' if each.benchmarks > 1 else ''}" if each.benchmarks else ""
        evaluated = f"yes{benchmarks}"
    if each.t == 0:
        return ("M0", "", "", "", "given", evaluated)
    total = recipe.prompts.per_iteration
    prompts = f"{each.finished:>{len(str(total))}}/{total}{f' ({each.failed} failed)' if each.failed else ''}"
    actor, judge = ("pending" if pairs is None else str(pairs) for pairs in (each.actor_pairs, each.judge_pairs))
    judge = judge if recipe.iterations[each.t].judge_pairs else "none planned"
    trained = f"M{each.t}{' (weights deleted)' if each.weights_deleted else ''}" if each.trained else "pending"
    return (f"M{each.t}", prompts, actor, judge, trained, evaluated)
