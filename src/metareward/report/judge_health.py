"""Judge health in the report and on the terminal: a headline, the gates that fired, figures and charts by model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from metareward.evaluation.judge_quality.check import JudgeCheck, PairFigures
from metareward.method.gates import GATES, Action, Gate, show_range, show_value
from metareward.method.health_checks import GateResult, HealthCheck, Stage
from metareward.method.judge_health import Figure
from metareward.report.charts import Chart, line_chart
from metareward.report.facts import Measure, Run
from metareward.report.tables import Form

_WORDS: dict[Action, tuple[str, str]] = {
    "stop": ("stop", "stops"),
    "warn": ("warning", "warnings"),
    "note": ("note", "notes"),
}
_MOST_PROBLEMS = 3  # in the headline


@dataclass(frozen=True, slots=True)
class Entry:
    """A gate that fired, in one check or several; ``found`` are these checks with the gate's results, in order."""

    gate: Gate
    found: tuple[tuple[HealthCheck, GateResult], ...]

    @property
    def anchor(self) -> str:
        """The entry's id on the page."""
        return _anchor(self.gate)

    @property
    def severity(self) -> str:
        """The most serious of ``stop``, ``warning`` and ``note``."""
        actions = [result.limit.action for _, result in self.found]
        return next(words[0] for action, words in _WORDS.items() if action in actions)

    @property
    def earlier(self) -> str:
        """Where it fired before the last time."""
        return ", ".join(check.where for check, _ in self.found[:-1])


def _anchor(gate: Gate) -> str:
    return f"gate-{gate.name}"


def entries(checks: Sequence[HealthCheck]) -> tuple[Entry, ...]:
    """Every gate that fired, stops first, then warnings, then notes."""
    fired = [(check, result) for check in checks for result in check.fired]
    found = [Entry(gate, tuple(each for each in fired if each[1].name == gate.name)) for gate in GATES.values()]
    severities = [words[0] for words in _WORDS.values()]
    return tuple(sorted((e for e in found if e.found), key=lambda entry: severities.index(entry.severity)))


def entry_counts(checks: Sequence[HealthCheck]) -> str:
    """``1 stop, 2 warnings``, or ``no warnings``: the number of gates; notes aren't counted."""
    severities = [entry.severity for entry in entries(checks)]
    counted = [(severities.count(one), one, many) for one, many in (_WORDS["stop"], _WORDS["warn"])]
    return ", ".join(f"{n} {one if n == 1 else many}" for n, one, many in counted if n) or "no warnings"


def health_lines(checks: Sequence[HealthCheck]) -> tuple[str, ...]:
    """One line for each gate that stopped or warned, with its latest figure, for the terminal."""
    lines = []
    for entry in entries(checks):
        check, result = entry.found[-1]
        if entry.severity != "note":
            times = f", {len(entry.found)} times, the last" if len(entry.found) > 1 else ""
            lines.append(f"{entry.severity}: {entry.gate.name}{times} in {check.where}: {result.finding}")
    return tuple(lines)


@dataclass(frozen=True, slots=True)
class Headline:
    """The judge's state in a sentence: ``text``, then ``problems`` with the anchors of their entries."""

    text: str
    problems: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """The sentence as plain text."""
        problems = "; ".join(problem for problem, _ in self.problems)
        return f"{self.text}: {problems}." if problems else f"{self.text}."


def headline(run: Run) -> Headline | None:
    """How many judgments of the first and the last model are readable, and what warns; None before any check."""
    if not run.health:
        return None
    text = "Judge"
    results = [(check.model, each) for check in run.health for each in check.results]
    readable = [(model, each) for model, each in results if each.name == "readable_judgments"]
    if readable:
        (first, before), (last, now) = readable[0], readable[-1]
        text += f": {show_value('share', now.figure.value)} of {last}'s judgments are readable"
        text += f" ({show_value('share', before.figure.value)} of {first}'s)" if first != last else ""
        text += f", too few to tell (n {now.figure.n:,})" if now.outcome == "unclear" else ""
    serious = [entry for entry in entries(run.health) if entry.severity != "note"]
    if not serious:
        return Headline(f"{text}; no gate of judge health warns")
    shown = [(entry.gate.problem, entry.anchor) for entry in serious[:_MOST_PROBLEMS]]
    shown += [(f"{len(serious) - len(shown)} more", "judge-health")] if len(serious) > len(shown) else []
    return Headline(f"{text}; {entry_counts(run.health)}", tuple(shown))


# --- figures by model ---


@dataclass(frozen=True, slots=True)
class FigureCell:
    """A figure of one model. ``anchor`` is that of its entry if a gate fired; ``unclear`` if the data are too few."""

    value: str
    interval: str
    n: int
    unclear: bool
    anchor: str | None


@dataclass(frozen=True, slots=True)
class FigureRow:
    """A figure over all models; None for a model without it. ``limits`` are its gates' limits, as in the last check."""

    label: str
    limits: str
    cells: tuple[FigureCell | None, ...]


def models(run: Run) -> tuple[str, ...]:
    """The models that were checked, in order."""
    return tuple(sorted({check.model for check in run.health}, key=lambda model: int(model[1:])))


def figure_tables(run: Run) -> tuple[tuple[str, tuple[FigureRow, ...]], ...]:
    """Title and rows of the figures on held-out prompts, and of those on the prompts that each model annotated."""
    titles = {"evaluation": "On held-out prompts", "records": "On the prompts of the next iteration"}
    tables = []
    for stage, title in titles.items():
        checks = {check.model: check for check in run.health if check.stage == stage}
        rows = tuple(_figure_rows([checks.get(model) for model in models(run)]))
        tables += [(title, rows)] if rows else []
    return tuple(tables)


def _figure_rows(checks: Sequence[HealthCheck | None]) -> Iterator[FigureRow]:
    """A row for each figure; several gates can have the same figure."""
    by_figure: dict[str, list[Gate]] = {}
    for gate in GATES.values():
        by_figure.setdefault(gate.figure or gate.name, []).append(gate)
    for gates in by_figure.values():
        cells = tuple(None if check is None else _cell(check, gates) for check in checks)
        results = [each for check in checks if check for each in check.results if each.gate in gates]
        if results:
            last = {each.name: f"{each.shown_limit} ({_WORDS[each.limit.action][0]})" for each in results}
            yield FigureRow(gates[0].label, ", ".join(last.values()), cells)


def _cell(check: HealthCheck, gates: Sequence[Gate]) -> FigureCell | None:
    results = [each for each in check.results if each.gate in gates]
    if not results:
        return None
    form, figure = results[0].gate.form, results[0].figure
    fired = next((_anchor(each.gate) for each in results if each.fired), None)
    interval = show_range(form, figure.low, figure.high)
    unclear = any(each.outcome == "unclear" for each in results)
    return FigureCell(show_value(form, figure.value), interval, figure.n, unclear, fired)


# Title, note, form, and by line: the label, the stage and the gate whose figure it is.
_CHARTS: tuple[tuple[str, str, Form, tuple[tuple[str, Stage, str], ...]], ...] = (
    (
        "Readable judgments",
        "Share of judgments with a score",
        "share",
        (("held-out prompts", "evaluation", "readable_judgments"), ("next iteration", "records", "readable_judgments")),
    ),
    (
        "Readability and quality",
        "Change of the readable share; 0: readability does not depend on quality",
        "points",
        (
            ("worst to best answer", "evaluation", "readable_by_score"),
            ("perfect minus other answers", "evaluation", "readable_by_truth"),
        ),
    ),
    (
        "Left out by min_valid",
        "Of the prompts that the model annotated",
        "share",
        (("answers", "records", "left_out_answers"), ("prompts without their best answer", "records", "lost_best")),
    ),
)


def health_charts(run: Run) -> tuple[Chart, ...]:
    """The charts of the figures that matter most, by model."""
    names, drawn = models(run), []
    found = {
        (check.stage, check.model, each.name): Measure(f.value, f.low, f.high, f.n)
        for check in run.health
        for each in check.results
        if (f := each.figure)
    }
    for place, (title, note, form, series) in enumerate(_CHARTS):
        lines = [
            (label, [(x, found[stage, model, gate]) for x, model in enumerate(names) if (stage, model, gate) in found])
            for label, stage, gate in series
        ]
        lines = [line for line in lines if line[1]]
        if lines:
            drawn.append(
                line_chart(f"health-{place}", title, note, form, lines, names, 0.0 if form == "points" else None)
            )
    return tuple(drawn)


# --- the check of the judge before a run ---

CHECK_COLUMNS = ("right", "if longer", "if shorter", "ties", "prefers longer")
CHECK_NOTE = (
    "If longer, if shorter: right on pairs whose better answer is the longer, the shorter. A tie is half right. Below "
    "each share its 95 % interval; chance: what 19 of 20 random judges keep to."
)


def check_rows(check: JudgeCheck) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """The judge and those beside it: name, and under `CHECK_COLUMNS` shares in percent with their intervals."""
    return tuple((name, tuple(map(_share_cell, _ordered(figures)))) for name, figures in check.rows)


def _ordered(figures: PairFigures) -> tuple[Figure | None, ...]:
    return (figures.right, figures.right_if_longer, figures.right_if_shorter, figures.ties, figures.prefers_longer)


def _share_cell(figure: Figure | None) -> tuple[str, str]:
    if figure is None:
        return "–", ""
    return f"{100 * figure.value:.0f} %", f"{100 * figure.low:.0f} to {100 * figure.high:.0f}"


def check_lines(check: JudgeCheck) -> tuple[str, ...]:
    """What was found beside the table, what to do, and what it cost; the finding first."""
    others = (
        ("Judgments with a score", check.readable),
        ("Meta-judgments with a winner", check.readable_verdicts),
        ("Meta-judgments won by the judgment shown first", check.first_position),
        ("Meta-judgments that change with the order", check.position_flips),
    )
    found = (f"{name}: {' ('.join(_share_cell(each))})." for name, each in others if each is not None)
    asked = check.asked
    cost = f"Cost: {asked.completions:,} completions, {asked.tokens:,} tokens, {asked.seconds:.0f} seconds."
    return (check.finding, *check.advice, *found, cost)


def check_table(check: JudgeCheck) -> Group:
    """The check for the terminal, at most 80 columns."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=CHECK_NOTE, caption_justify="left")
    table.add_column(f"{check.n_pairs} pairs", no_wrap=True)
    for name in CHECK_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for name, cells in check_rows(check):
        table.add_row(name, *(Text.assemble(value, "\n", (interval, "dim")) for value, interval in cells))
    return Group(Text(f"Pairs: {check.source}"), table, *map(Text, check_lines(check)))
