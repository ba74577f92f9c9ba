"""The outcome of an experiment's arms: figures of every model, their differences over seeds, tables, a page.

A difference is the second arm's figure minus the first's with the same seed, where both have the same prompts and M0.
Its 95 % interval is Student's t over the S differences, so it is about seeds and needs two; it isn't corrected for the
number of figures and comparisons that one looks at.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from math import isfinite

import numpy as np
from markupsafe import Markup

from metareward.method.paired import Array, paired_difference
from metareward.report.benchmark_tables import BenchmarkTable
from metareward.report.charts import Chart, line_chart
from metareward.report.facts import Measure, Run, gather, read_figures
from metareward.report.tables import Metric, metric_for
from metareward.report.write import html_environment
from metareward.storage.records import read_records
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore

# What a run cost, beside the metrics of its models; no seconds, as a run takes over work of another one, and several
# may run at once.
_COSTS: Mapping[str, str] = {
    "completions": "Completions generated for training",
    "tokens": "Tokens generated for training",
    "pairs": "Pairs trained on",
}
_CHARTED = ("answer_quality", "judgment_exact", "judgment_rank_correlation", "answer_chars", "judgment_valid")
# What tables show of the last model.
MAIN = (*_CHARTED, "answer_perfect", "judgment_mean_rank_correlation", "meta_accuracy", "independent_score")


@dataclass(frozen=True, slots=True)
class ArmFigure:
    """One figure of one model, or of the whole run (``model`` "run"), in one arm with one seed."""

    arm: str
    seed: int
    model: str
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class ArmDifference:
    """``second`` minus ``first``: the mean over ``seeds`` seeds and its interval, None where there is none."""

    first: str
    second: str
    model: str
    metric: str
    seeds: int
    first_mean: float
    second_mean: float
    difference: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """``higher``, ``lower``, ``can't tell``; ``equal`` where every seed gives the same."""
        if self.low is None or self.high is None:
            return "equal" if self.difference == 0 else "can't tell"
        if self.low <= 0 <= self.high:
            return "equal" if self.low == self.high == 0 else "can't tell"
        return "higher" if self.low > 0 else "lower"


def run_figures(arm: str, seed: int, run: RunDir) -> tuple[ArmFigure, ...]:
    """All figures of a run, as far as it is: of each evaluated model, and what all of it cost."""
    facts = gather(run)
    found = [
        ArmFigure(arm, seed, each.model, metric, measure.mean)
        for each in facts.evaluations
        for metric, measure in each.metrics.items()
    ]
    for t, _ in enumerate(facts.evaluations):
        health = read_figures(run.iteration(t).evaluation / "model.json")
        found += [
            ArmFigure(arm, seed, f"M{t}", f"gate {name}", each.value)
            for name, each in health.items()
            if each.value is not None and isfinite(each.value)
        ]
    found += [ArmFigure(arm, seed, "run", metric, value) for metric, value in _costs(run, facts).items()]
    return tuple(found)


def _costs(run: RunDir, facts: Run) -> dict[str, float]:
    completions = tokens = 0
    for iteration in facts.iterations[1:]:
        path = run.iteration(iteration.number).records
        if not path.is_file():
            continue
        with RecordStore.read(path) as store:
            for record in read_records(store):
                judged = [*chain.from_iterable(answer.judgments_N for answer in record.candidates_K)]
                compared = record.dispute.meta if record.dispute else ()
                completions += len(record.candidates_K) + len(record.duplicates)
                completions += sum(each.attempts for each in judged) + sum(each.attempts for each in compared)
                tokens += sum(each.tokens for each in record.candidates_K)
                tokens += sum(each.tokens for each in judged) + sum(each.tokens for each in compared)
    pairs = sum(summary.actor_pairs + summary.judge_pairs for summary in facts.summaries)
    return {"completions": completions, "tokens": tokens, "pairs": pairs}


def differences(figures: Sequence[ArmFigure], pairs: Sequence[tuple[str, str]]) -> tuple[ArmDifference, ...]:
    """The differences of every figure that both arms of a pair have with the same seed, for each of ``pairs``."""
    by_arm: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for each in figures:
        by_arm.setdefault(each.arm, {}).setdefault((each.model, each.metric), {})[each.seed] = each.value
    found = []
    for first, second in pairs:
        mine, theirs = by_arm.get(first, {}), by_arm.get(second, {})
        for key in mine:
            seeds = sorted(mine[key].keys() & theirs.get(key, {}).keys())
            if seeds:
                values = ([[side[key][seed] for seed in seeds]] for side in (mine, theirs))
                found.append(_difference(first, second, key, *map(np.array, values)))
    return tuple(found)


def _difference(first: str, second: str, key: tuple[str, str], a_1S: Array, b_1S: Array) -> ArmDifference:
    paired = paired_difference(a_1S, b_1S)
    return ArmDifference(
        first, second, *key, a_1S.shape[1], paired.mean_a, paired.mean_b, paired.difference, paired.low, paired.high
    )


# --- files ---


def figures_csv(figures: Sequence[ArmFigure]) -> str:
    """One line a figure: ``arm,seed,model,metric,value``."""
    return _csv(
        ("arm", "seed", "model", "metric", "value"),
        ((each.arm, each.seed, each.model, each.metric, f"{each.value:.6g}") for each in figures),
    )


def read_figures_csv(text: str) -> tuple[ArmFigure, ...]:
    """The figures of `figures_csv`."""
    rows = csv.DictReader(io.StringIO(text))
    return tuple(ArmFigure(r["arm"], int(r["seed"]), r["model"], r["metric"], float(r["value"])) for r in rows)


def differences_csv(found: Sequence[ArmDifference]) -> str:
    """One line a difference, with its interval and a verdict."""
    header = ("first", "second", "model", "metric", "seeds", "first_mean", "second_mean", "difference", "low", "high")
    return _csv(
        (*header, "verdict"),
        (
            (
                *(each.first, each.second, each.model, each.metric, each.seeds),
                *("" if v is None else f"{v:.6g}" for v in _numbers(each)),
                each.verdict,
            )
            for each in found
        ),
    )


def _numbers(each: ArmDifference) -> tuple[float | None, ...]:
    return each.first_mean, each.second_mean, each.difference, each.low, each.high


def _csv(header: Sequence[str], rows: Iterator[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


# --- tables and page ---


def _metric(key: str) -> Metric:
    return Metric("Cost", key, _COSTS[key], "chars", "lower", "") if key in _COSTS else metric_for(key)


def difference_tables(found: Sequence[ArmDifference]) -> tuple[BenchmarkTable, ...]:
    """For each pair of arms the main figures of its last model and the costs, with differences and verdicts."""
    tables = []
    for first, second in dict.fromkeys((each.first, each.second) for each in found):
        mine = [each for each in found if (each.first, each.second) == (first, second)]
        last = max((each.model for each in mine if each.model != "run"), key=_number, default="run")
        order = {metric: place for place, metric in enumerate(MAIN)}
        shown = sorted((e for e in mine if e.model == last and e.metric in order), key=lambda e: order[e.metric])
        shown += [each for each in mine if each.model == "run"]
        columns = ("Figure", first, second, "difference [95 % interval]", "verdict", "seeds")
        tables.append(BenchmarkTable(f"{second} against {first}, {last}", columns, tuple(map(_cells, shown)), ()))
    return tuple(tables)


def interval_text(each: ArmDifference) -> str:
    """``+0.48 [+0.29, +0.66]``; shares in percentage points."""
    metric = _metric(each.metric)
    if each.low is None or each.high is None:
        return metric.show_change(each.difference)
    low, high = (metric.show_change(value).removesuffix(" points") for value in (each.low, each.high))
    return f"{metric.show_change(each.difference)} [{low}, {high}]"


def _cells(each: ArmDifference) -> tuple[str, ...]:
    metric = _metric(each.metric)
    means = (metric.show(each.first_mean), metric.show(each.second_mean))
    return (metric.label, *means, interval_text(each), each.verdict, str(each.seeds))


def _number(model: str) -> int:
    return int(model[1:])


def arm_charts(figures: Sequence[ArmFigure], pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[Chart]]]:
    """For each pair of arms the main figures over the models: means over seeds, with their intervals."""
    for number, (first, second) in enumerate(pairs):
        charts = []
        for metric in _CHARTED:
            lines = [(arm, _line(figures, arm, metric)) for arm in (first, second)]
            if not all(line for _, line in lines):
                continue
            models = [f"M{t}" for t in range(1 + max(x for _, line in lines for x, _ in line))]
            entry = metric_for(metric)
            charts.append(line_chart(f"pair{number}-{metric}", entry.label, entry.meaning, entry.form, lines, models))
        if charts:
            yield f"{second} against {first}", charts


def _line(figures: Sequence[ArmFigure], arm: str, metric: str) -> list[tuple[int, Measure]]:
    by_model: dict[int, list[float]] = {}
    for each in figures:
        if (each.arm, each.metric) == (arm, metric):
            by_model.setdefault(_number(each.model), []).append(each.value)
    return [(t, _over_seeds(values)) for t, values in sorted(by_model.items())]


def _over_seeds(values: Sequence[float]) -> Measure:
    """The mean over seeds with its interval, which is the value itself where there is one seed."""
    found = paired_difference(np.zeros((1, len(values))), np.array([values]))
    low, high = (found.difference if each is None else each for each in (found.low, found.high))
    return Measure(found.difference, low, high, len(values))


@dataclass(frozen=True, slots=True)
class ArmsReport:
    """What the page of an experiment says. ``arms``: (name, changes); ``states``: (arm, state of each seed)."""

    title: str
    description: str
    recipe: str
    seeds: tuple[int, ...]
    arms: tuple[tuple[str, str], ...]
    states: tuple[tuple[str, str], ...]
    figures: tuple[ArmFigure, ...]
    pairs: tuple[tuple[str, str], ...]

    @property
    def differences(self) -> tuple[ArmDifference, ...]:
        """The differences of the pairs."""
        return differences(self.figures, self.pairs)

    def page(self) -> str:
        """The report as one HTML file without scripts or external files."""
        template = html_environment("metareward.report").get_template("arms.html.j2")
        css = Markup(files("metareward.report").joinpath("page.css").read_text(encoding="utf-8"))
        found = self.differences
        return template.render(
            report=self, css=css, tables=difference_tables(found), charts=list(arm_charts(self.figures, self.pairs))
        )
