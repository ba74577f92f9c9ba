"""The report: one HTML file without scripts or external files, the same bytes for the same run folder.

Its headline is computed from the run's metrics. A change is only called a rise or a fall when the two 95 % intervals do
not overlap. Without an oracle, a sentence says that a model's score of its own answers is no evidence of quality.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from metareward.errors import UserError
from metareward.report.benchmark_tables import benchmark_tables, comparison_text, run_comparisons
from metareward.report.charts import comparison_chart, histogram_charts, position_charts, training_charts, trend_charts
from metareward.report.examples import answers_before_after, examples
from metareward.report.facts import Evaluation, Run, gather, setting_rows
from metareward.report.independent_judge import costs, independent_judges, judge_sentences, pending_lines
from metareward.report.judge_health import (
    CHECK_COLUMNS,
    CHECK_NOTE,
    check_lines,
    check_rows,
    entries,
    entry_counts,
    figure_tables,
    headline,
    health_charts,
    models,
)
from metareward.report.labels import (
    characters,
    format_rating,
    reading_code_label,
    reading_label,
    score_label,
    verdict_label,
)
from metareward.report.tables import METRICS, WIN_RATE_COLUMNS, pair_bars, paired_rows, rows, show, win_rate_rows
from metareward.storage.atomic import write_atomic
from metareward.storage.run_dir import RunDir
from metareward.text import escape_control

# Meta-Rewarding (arXiv 2407.19594) Table 5, in per cent: higher and lower score wins; bias at same, different, all.
_CITED = (("63.0 %", "37.0 %", "47.8 %", "41.1 %", "43.9 %"), ("97.7 %", "2.3 %", "87.8 %", "56.2 %", "68.1 %"))
_LABELS = (characters, format_rating, reading_label, score_label, verdict_label)
LONG_TEXT = 20_000  # characters of one text on a page
_POSITION_COLUMNS = (
    *("higher score wins", "lower score wins"),
    *(f"{what}, {which}" for what in ("flips", "first wins") for which in ("same score", "different score", "all")),
)


def write_report(run: RunDir) -> Path:
    """Write ``report.html`` into the run folder, finished or not, and return its path.

    Its last line is a digest of what precedes it. Raises `UserError` for a folder that is no run, a file in it that
    can't be read, and a disk that can't be written.
    """
    text = page(run)
    write_atomic(run.report, f"{text}{_digest_line(text.encode())}")
    return run.report


def is_whole(report: Path) -> bool:
    """Whether a report is what `write_report` wrote; one without a digest in its last line may be.

    Raises `UserError` when it can't be read.
    """
    try:
        content = report.read_bytes()
    except OSError as error:
        raise UserError(f"{report}: can't be read: {error.strerror}; fix: delete it to write it again") from None
    size = len(_digest_line(b""))
    stated, line = content[-size:], _digest_line(content[:-size]).encode()
    return stated == line or not stated.startswith(line[:12])


def _digest_line(page: bytes) -> str:
    return f"\n<!-- sha256 {hashlib.sha256(page).hexdigest()} -->\n"


def page(run: RunDir) -> str:
    """The report's HTML."""
    template = html_environment("metareward.report").get_template("page.html.j2")
    return template.render(_context(run, gather(run)))


@lru_cache
def html_environment(package: str) -> Environment:
    """Templates of a package, in which every text is escaped, invisible characters, too; `_LABELS` can be called.

    One for all pages: compiling the report's templates takes longer than filling them.
    """

    def escape(value: object) -> object:
        """Escape control characters in every text of the page, except in our own markup."""
        return escape_control(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update({label.__name__: label for label in _LABELS}, long_text=LONG_TEXT)
    return environment


def _context(run: RunDir, facts: Run) -> dict[str, object]:
    evaluated = facts.evaluations
    table = rows(evaluated)
    failures = []
    for number, failed in ((each.number, each.failed) for each in facts.iterations if each.failed):
        prompts = "1 prompt" if len(failed) == 1 else f"{len(failed)} prompts"
        failures.append(
            f"Iteration {number}: {prompts} failed; the error of the first ({failed[0][0]}): {failed[0][1]}"
        )
    context: dict[str, object] = {
        "run": facts,
        "css": Markup(files("metareward.report").joinpath("page.css").read_text(encoding="utf-8")),
        "sentences": sentences(facts),
        "judge": headline(facts),
        "missing": unfinished(facts),
        "facts": tuple(_facts(facts)),
        "trends": trend_charts(evaluated),
        "groups": [(group, tuple(members)) for group, members in groupby(table, key=lambda row: row.metric.group)],
        "win_rates": win_rate_rows(evaluated),
        "win_rate_columns": WIN_RATE_COLUMNS,
        "benchmarks": benchmark_tables(facts),
        "comparisons": [
            (comparison_text(name, found), comparison_chart(name, found)) for name, found in run_comparisons(run, facts)
        ],
        "paired": paired_rows(table),
        "any_direction": any(row.metric.better != "neither" for row in table),
        "bars": pair_bars(facts.summaries),
        "reading_codes": tuple(dict.fromkeys(code for s in facts.summaries for code, n in s.readings.items() if n)),
        "failures": failures,
        "reading_code_label": reading_code_label,
        "histograms": histogram_charts(evaluated),
        "positions": position_charts(facts.summaries),
        "cited": _CITED,
        "position_columns": _POSITION_COLUMNS,
        "judge_check": facts.judge_check,
        "check_columns": CHECK_COLUMNS,
        "check_note": CHECK_NOTE,
        "check_rows": check_rows(facts.judge_check) if facts.judge_check else (),
        "check_lines": check_lines(facts.judge_check) if facts.judge_check else (),
        "health": facts.health,
        "health_entries": entries(facts.health),
        "health_charts": health_charts(facts),
        "health_tables": figure_tables(facts),
        "health_models": models(facts),
        "trainings": training_charts(facts.iterations),
        "examples": examples(run, facts),
        "before_after": answers_before_after(run, facts),
        "recipe": setting_rows(facts.recipe.resolved()),
        "chars": partial(show, "chars"),
        "share": partial(show, "share"),
    }
    context["compared"] = context["paired"] or context["comparisons"]
    sections = [(anchor, title) for key, anchor, title in _SECTIONS if context[key]]
    return context | {"sections": [*sections, ("setup", "Recipe and environment")]}


_SECTIONS = (
    ("judge_check", "judge-check", "Judge on labelled pairs"),
    ("health", "judge-health", "Judge health"),
    ("compared", "comparisons", "Paired comparisons"),
    ("trends", "trends", "Metrics by model"),
    ("trends", "metrics", "All metrics"),
    ("win_rates", "win-rates", "Win rates"),
    ("health", "judge-figures", "Figures of judge health"),
    ("benchmarks", "benchmarks", "Benchmarks"),
    ("bars", "pairs", "Preference pairs"),
    ("histograms", "scores", "Judge scores"),
    ("positions", "meta-judge", "Meta-judge bias"),
    ("trainings", "training", "Training"),
    ("examples", "examples", "Example prompts"),
    ("before_after", "before-after", "Answers before and after"),
)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    recipe = run.recipe
    done = sum(iteration.done for iteration in run.iterations[1:])
    yield "Model", recipe.model
    yield "Seed", str(recipe.seed)
    yield "Iterations", f"{done} of {len(recipe.iterations)} done"
    yield "Prompts per iteration", f"{recipe.prompts.per_iteration:,}"
    yield "K answers × N judgments", f"{recipe.answers.k} × {recipe.judgments.n}"
    numbers = [str(number) for number, settings in recipe.iterations.items() if settings.judge_pairs]
    yield "Judge pairs built in", f"iteration {', '.join(numbers)}" if numbers else "no iteration (Self-Rewarding)"
    if run.evaluations:
        yield "Held-out prompts", f"{run.evaluations[-1].prompts:,}"
    if run.health:
        yield "Judge health", entry_counts(run.health)
    for judge, _ in independent_judges(run):
        yield "Independent judge", "; ".join((judge.judge, *costs(run, judge)))
    yield "Total time", duration(sum(iteration.seconds for iteration in run.iterations))
    known = dict(run.environment)
    if "started" in known:
        yield "Started (UTC)", known["started"][:16].replace("T", " ")
    names = {"metareward": "packages metareward", "torch": "packages torch", "Processor": "processor"}
    yield from ((name, known[key]) for name, key in names.items() if key in known)


def duration(seconds: float) -> str:
    """``42 s``, ``8 min 20 s`` or ``3 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(frozen=True, slots=True)
class _Subject:
    """A metric as the subject of a sentence; ``unit`` follows the last number."""

    key: str
    words: str
    unit: str = ""


_SELF_SCORE = _Subject("answer_self_score", "The mean score the model gives its own answers")
_INDEPENDENT = _Subject("independent_score", "The mean score of the model's answers by the independent judge")
_PASSES = _Subject("answer_perfect", "The share of answers that pass")
_QUALITY = _Subject("answer_quality", "Mean answer quality")
_SUBJECTS = (
    _QUALITY,
    _INDEPENDENT,
    _Subject("judgment_rank_correlation", "The rank correlation of single readable judgments with the oracle's scores"),
    _Subject("meta_accuracy", "Meta-judge accuracy"),
    _Subject("answer_chars", "Mean answer length", " characters"),
)


def sentences(run: Run) -> tuple[str, ...]:
    """The headline first, then one sentence for each further metric that the first and the last model have."""
    evaluated = run.evaluations
    if not evaluated:
        return ("No model of this run has been evaluated yet.",)
    if len(evaluated) == 1:
        return (f"Only {evaluated[0].model} has been evaluated so far, so there is nothing to compare yet.",)
    by_oracle = "answer_quality" in evaluated[-1].metrics
    by_program = (_PASSES,) if "constraints_met" in evaluated[-1].metrics else ()
    subjects: tuple[_Subject, ...] = (_INDEPENDENT, _SELF_SCORE, *_SUBJECTS[2:])
    if by_oracle:
        subjects = (*by_program, *_SUBJECTS)
    names = [judge.judge for judge, _ in independent_judges(run)]
    if names:  # the first one's scores are among the metrics
        named = replace(_INDEPENDENT, words=f"{_INDEPENDENT.words} {names[0]}")
        subjects = tuple(named if each is _INDEPENDENT else each for each in subjects)
    scale = f" of {run.recipe.judgments.max_score:g}"
    subjects = tuple(replace(each, unit=scale) if each in (_QUALITY, _SELF_SCORE) else each for each in subjects)
    found = [sentence for subject in subjects if (sentence := _sentence(subject, evaluated)) is not None]
    found[1:1] = judge_sentences(run)
    if not by_oracle and _SELF_SCORE.key in evaluated[-1].metrics:
        found.append("No oracle scored this run: the score a model gives its own answers is no evidence of quality.")
    return tuple(found) or ("The first and the last model share no metric to compare.",)


def _sentence(subject: _Subject, evaluated: Sequence[Evaluation]) -> str | None:
    first, last = evaluated[0], evaluated[-1]
    before, after = first.metrics.get(subject.key), last.metrics.get(subject.key)
    if before is None or after is None:
        return None
    metric = METRICS[subject.key]
    start, end = metric.show(before.mean), metric.show(after.mean)
    if start == end:
        return f"{subject.words} is {end}{subject.unit} at {first.model} and at {last.model}."
    paired = last.differences.get(subject.key) if first.model == "M0" else None
    if paired is None:
        clear = after.apart_from(before)
        basis = f"the 95\u202f% intervals {'do not overlap' if clear else 'overlap'}"
    else:
        clear, interval = paired.excludes_zero, metric.show_changes(paired.low, paired.high)
        basis = f"paired difference {metric.show_change(paired.mean)}, 95\u202f% interval {interval}"
    if not clear:
        values = f"{start} ({first.model}) and {end}{subject.unit} ({last.model})"
        return f"{subject.words}: {values}; {basis}, so there is no evidence of a change."
    verb = "rose" if after.mean > before.mean else "fell"
    text = f"{subject.words} {verb} from {start} ({first.model}) to {end}{subject.unit} ({last.model}); {basis}."
    candidates = [(e.metrics[subject.key], e.model) for e in evaluated if subject.key in e.metrics]
    best, model = max(candidates, key=lambda candidate: candidate[0].mean)
    if metric.better == "higher" and best.apart_from(after):
        text += f" It was highest at {model}, {metric.show(best.mean)}, and fell again."
    return text


def unfinished(run: Run) -> tuple[str, ...]:
    """One line for each iteration that is not finished; empty for a finished run."""
    lines = []
    if run.iterations[0].evaluation is None:
        lines.append("M0 is not evaluated yet, so there is nothing to compare to.")
    for each in run.iterations[1:]:
        stages = (
            (each.summary, "answers and judgments are being generated; its pairs are not built yet."),
            (each.training, f"its pairs are built, but {each.model} is not trained yet."),
            (each.evaluation, f"{each.model} has a training log, but is not evaluated yet."),
        )
        missing = next((text for done, text in stages if not done), None) if each.generated else None
        if missing is not None:
            lines.append(f"Iteration {each.number}: {missing}")
    pending = [str(each.number) for each in run.iterations[1:] if not each.generated]
    if pending:
        numbers = f"Iteration {pending[0]}" if len(pending) == 1 else f"Iterations {pending[0]} to {pending[-1]}"
        lines.append(f"{numbers}: not started.")
    return (*lines, *pending_lines(run))
