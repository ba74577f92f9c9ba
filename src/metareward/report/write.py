"""Writes the report: one HTML file without scripts or external files, the same bytes for the same run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from metareward.report.benchmark_tables import benchmark_tables
from metareward.report.charts import histogram_charts, position_charts, training_charts, trend_charts
from metareward.report.examples import examples
from metareward.report.facts import Run
from metareward.report.gather import gather, setting_rows
from metareward.report.headline import sentences, unfinished
from metareward.report.labels import escape_control, format_rating, reading_code_label, reading_label, verdict_label
from metareward.report.metrics_table import Row, rows, show
from metareward.report.tables import WIN_RATE_COLUMNS, pair_bars, win_rate_rows
from metareward.storage.atomic import write_atomic
from metareward.storage.run_dir import RunDir

_TEMPLATES = ("page.html.j2", "parts.html.j2", "example.html.j2")

# Meta-Rewarding (arXiv 2407.19594) Table 5, in per cent: higher and lower score wins; bias at same, different, all.
_CITED = (("63.0 %", "37.0 %", "47.8 %", "41.1 %", "43.9 %"), ("97.7 %", "2.3 %", "87.8 %", "56.2 %", "68.1 %"))


def write_report(run: RunDir) -> Path:
    """Write ``report.html`` into the run folder, finished or not, and return its path.

    Raises `UserError` for a folder that is no run, a file in it that can't be read, and a disk that can't be written.
    """
    write_atomic(run.report, page(run))
    return run.report


def page(run: RunDir) -> str:
    """The report's HTML."""
    facts = gather(run)
    return _environment().get_template("page.html.j2").render(_context(run, facts))


def _environment() -> Environment:
    folder = files("metareward.report")
    sources = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in _TEMPLATES}
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(reading_label=reading_label, verdict_label=verdict_label, format_rating=format_rating)
    return environment


def _finalize(value: object) -> object:
    """Escape control characters in every text of the page, except in our own markup."""
    return escape_control(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _context(run: RunDir, facts: Run) -> dict[str, object]:
    evaluated = facts.evaluations
    table = rows(evaluated) if evaluated else ()
    context: dict[str, object] = {
        "run": facts,
        "css": Markup(files("metareward.report").joinpath("page.css").read_text(encoding="utf-8")),
        "sentences": sentences(facts),
        "missing": unfinished(facts),
        "facts": tuple(_facts(facts)),
        "trends": trend_charts(evaluated),
        "groups": [(group, tuple(members)) for group, members in groupby(table, key=_group)],
        "win_rates": win_rate_rows(evaluated),
        "win_rate_columns": WIN_RATE_COLUMNS,
        "benchmarks": benchmark_tables(facts),
        "any_direction": any(row.metric.better != "neither" for row in table),
        "bars": pair_bars(facts.summaries),
        "reading_codes": tuple(dict.fromkeys(code for s in facts.summaries for code, n in s.readings.items() if n)),
        "failures": tuple(_failures(facts)),
        "reading_code_label": reading_code_label,
        "histograms": histogram_charts(evaluated),
        "positions": position_charts(facts.summaries),
        "cited": _CITED,
        "any_findings": any(summary.findings for summary in facts.summaries),
        "trainings": training_charts(facts.iterations),
        "examples": examples(run, facts),
        "recipe": setting_rows(facts.recipe.resolved()),
        "chars": _chars,
        "share": _share,
    }
    return context | {"sections": tuple(_sections(context))}


def _group(row: Row) -> str:
    return row.metric.group


_SECTIONS = (
    ("trends", "trends", "Metrics by model"),
    ("trends", "metrics", "All metrics"),
    ("win_rates", "win-rates", "Win rates"),
    ("benchmarks", "benchmarks", "Benchmarks"),
    ("bars", "pairs", "Preference pairs"),
    ("histograms", "scores", "Judge scores"),
    ("positions", "meta-judge", "Meta-judge bias"),
    ("bars", "findings", "Findings"),
    ("trainings", "training", "Training"),
    ("examples", "examples", "Example prompts"),
)


def _sections(context: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(anchor, title) of the sections that this run has content for."""
    for key, anchor, title in _SECTIONS:
        if context[key]:
            yield anchor, title
    yield "setup", "Recipe and environment"


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    recipe = run.recipe
    done = sum(iteration.done for iteration in run.iterations[1:])
    yield "Model", recipe.model
    yield "Seed", str(recipe.seed)
    yield "Iterations", f"{done} of {len(recipe.iterations)} done"
    yield "Prompts per iteration", f"{recipe.prompts.per_iteration:,}"
    yield "K answers × N judgments", f"{recipe.answers.k} × {recipe.judgments.n}"
    yield "Judge pairs built in", _judge_pair_iterations(run)
    if run.evaluations:
        yield "Held-out prompts", f"{run.evaluations[-1].prompts:,}"
    if run.summaries:
        yield "Findings", str(sum(len(summary.findings) for summary in run.summaries))
    yield "Total time", duration(sum(iteration.seconds for iteration in run.iterations))
    known = dict(run.environment)
    if "started" in known:
        yield "Started (UTC)", known["started"][:16].replace("T", " ")
    for name, key in _FROM_ENVIRONMENT:
        if key in known:
            yield name, known[key]


_FROM_ENVIRONMENT = (
    ("metareward", "packages metareward"),
    ("torch", "packages torch"),
    ("Processor", "processor"),
)


def duration(seconds: float) -> str:
    """``42 s``, ``8 min 20 s`` or ``3 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _failures(run: Run) -> Iterator[str]:
    """One line for each iteration with prompts that failed."""
    for iteration in run.iterations:
        if iteration.failed:
            key, error = iteration.failed[0]
            count = len(iteration.failed)
            prompts = "1 prompt" if count == 1 else f"{count} prompts"
            yield f"Iteration {iteration.number}: {prompts} failed; the error of the first ({key}): {error}"


def _judge_pair_iterations(run: Run) -> str:
    numbers = [str(number) for number, settings in run.recipe.iterations.items() if settings.judge_pairs]
    return f"iteration {', '.join(numbers)}" if numbers else "no iteration (Self-Rewarding)"


def _chars(value: float | None) -> str:
    return "–" if value is None else show("chars", value)


def _share(value: float | None) -> str:
    return "–" if value is None else show("share", value)
