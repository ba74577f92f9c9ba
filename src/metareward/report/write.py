"""Writes the report: one HTML file that loads nothing, runs nothing and is the same for the same run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from metareward.report.benchmark_tables import benchmark_tables
from metareward.report.charts import histogram_charts, position_charts, training_charts, trend_charts
from metareward.report.facts import Run
from metareward.report.gather import bars, gather, setting_rows
from metareward.report.labels import drop_words, reading_count_words, reading_words, signed, verdict_words, visible
from metareward.report.metrics_table import Row, rows, show
from metareward.report.prompt_trace import examples
from metareward.report.tables import COLUMNS as CONTEST_COLUMNS
from metareward.report.tables import contests, sentences, unfinished
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
    environment.globals.update(
        reading_words=reading_words, verdict_words=verdict_words, drop_words=drop_words, signed=signed
    )
    return environment


def _finalize(value: object) -> object:
    """Every text that reaches the page, wherever it comes from, is made visible; our own markup already is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _context(run: RunDir, facts: Run) -> dict[str, object]:
    measured = facts.evaluations
    table = rows(measured) if measured else ()
    context: dict[str, object] = {
        "run": facts,
        "css": Markup(files("metareward.report").joinpath("page.css").read_text(encoding="utf-8")),
        "sentences": sentences(facts),
        "missing": unfinished(facts),
        "facts": tuple(_facts(facts)),
        "trends": trend_charts(measured),
        "groups": [(group, tuple(members)) for group, members in groupby(table, key=_group)],
        "contests": contests(measured),
        "contest_columns": CONTEST_COLUMNS,
        "benchmarks": benchmark_tables(facts),
        "any_good_side": any(row.metric.better != "neither" for row in table),
        "bars": bars(facts.summaries),
        "reading_codes": tuple(dict.fromkeys(code for s in facts.summaries for code, n in s.readings.items() if n)),
        "failures": tuple(_failures(facts)),
        "reading_count_words": reading_count_words,
        "histograms": histogram_charts(measured),
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
    ("trends", "change", "Model by model"),
    ("trends", "table", "All measurements"),
    ("contests", "contests", "Model against model"),
    ("benchmarks", "benchmarks", "Benchmarks"),
    ("bars", "yield", "Prompts"),
    ("histograms", "scores", "Scores"),
    ("positions", "position", "Meta-judge"),
    ("bars", "findings", "Findings"),
    ("trainings", "training", "Training"),
    ("examples", "examples", "Worked examples"),
)


def _sections(context: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The parts of the page that this run has something for."""
    for key, anchor, title in _SECTIONS:
        if context[key]:
            yield anchor, title
    yield "made", "How it was made"


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    recipe = run.recipe
    done = sum(iteration.done for iteration in run.iterations[1:])
    yield "Model", recipe.model
    yield "Seed", str(recipe.seed)
    yield "Iterations", f"{done} of {len(recipe.iterations)} done"
    yield "Prompts each", f"{recipe.prompts.per_iteration:,}"
    yield "Answers × judgments", f"{recipe.answers.k} × {recipe.judgments.n}"
    yield "Judge pairs in", _judged(run)
    if run.evaluations:
        yield "Held-out prompts", f"{run.evaluations[-1].prompts:,}"
    if run.summaries:
        yield "Warnings", str(sum(len(summary.findings) for summary in run.summaries))
    yield "Time, all stages", duration(sum(iteration.seconds for iteration in run.iterations))
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
    """One line an iteration for prompts that the engine could not serve."""
    for iteration in run.iterations:
        if iteration.failed:
            key, error = iteration.failed[0]
            count = len(iteration.failed)
            yield f"Iteration {iteration.number}: {count} prompts failed, the first ({key}) with: {error}"


def _judged(run: Run) -> str:
    judged = [str(number) for number, settings in run.recipe.iterations.items() if settings.judge_pairs]
    return f"iteration {', '.join(judged)}" if judged else "no iteration (Self-Rewarding)"


def _chars(value: float | None) -> str:
    return "–" if value is None else show("chars", value)


def _share(value: float | None) -> str:
    return "–" if value is None else show("share", value)
