"""Judge health in the report: the headline, the entries of gates that fired, the figures by model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import recipe_of, start

from metareward.method.gates import GATES
from metareward.method.health_checks import HealthCheck, Stage, check_gates
from metareward.method.judge_health import Figure
from metareward.report.facts import Run, gather
from metareward.report.judge_health import (
    entries,
    entry_counts,
    figure_tables,
    headline,
    health_charts,
    health_lines,
    models,
)

LIMITS = {name: gate.limit for name, gate in GATES.items()}
SURE = 400  # prompts


def check(stage: Stage, model: str, iteration: int, values: Mapping[str, float], prompts: int = SURE) -> HealthCheck:
    """A check of figures with narrow intervals."""
    figures = {name: Figure(value, value - 0.01, value + 0.01, 1000, prompts) for name, value in values.items()}
    return HealthCheck(stage, model, iteration, check_gates(figures, LIMITS))


SICK = (
    check("evaluation", "M0", 0, {"readable_judgments": 0.97, "one_score": 0.3}),
    check("records", "M0", 1, {"readable_judgments": 0.98, "judge_pairs": 0.02}),
    check("evaluation", "M1", 1, {"readable_judgments": 0.7, "one_score": 0.5, "readable_by_truth": -0.4}),
    check("records", "M1", 2, {"readable_judgments": 0.5, "lost_best": 0.3}),
    check("evaluation", "M2", 2, {"readable_judgments": 0.4, "one_score": 0.99, "first_position": 0.99}),
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return gather(start(tmp_path / "run"))


def test_one_entry_for_each_gate_most_serious_first() -> None:
    found = entries(SICK)
    assert [(entry.severity, entry.gate.name) for entry in found] == [
        ("stop", "one_score"),
        ("warning", "readable_judgments"),
        ("warning", "readable_by_truth"),
        ("warning", "lost_best"),
        ("warning", "first_position"),
        ("note", "judge_pairs"),
    ]
    assert len(found[1].found) == 3
    assert found[1].earlier == "the evaluation of M1, the records of iteration 2 (by M1)"
    assert entry_counts(SICK) == "1 stop, 4 warnings"
    assert entry_counts(SICK[:1]) == "no warnings"


def test_lines_for_the_terminal_have_the_latest_figure_and_no_notes() -> None:
    lines = health_lines(SICK)
    assert len(lines) == 5
    assert lines[1].startswith("warning: readable_judgments, 3 times, the last in the evaluation of M2: 40 % of 1,000")


def test_the_headline_names_the_most_serious_problems(run: Run) -> None:
    assert headline(run) is None
    assert str(headline(replace(run, health=SICK))) == (
        "Judge: 40 % of M2's judgments are readable (97 % of M0's); 1 stop, 4 warnings: nearly all answers get the "
        "same score; too few judgments have a readable score; readability depends on an answer's true quality; 2 more."
    )
    healthy = str(headline(replace(run, health=SICK[:2])))
    assert healthy == "Judge: 98 % of M0's judgments are readable; no gate of judge health warns."


def test_a_share_of_few_judgments_is_no_headline_by_itself(run: Run) -> None:
    few = check("records", "M0", 1, {"readable_judgments": 0.0}, prompts=1)
    assert str(headline(replace(run, health=(few,)))) == (
        "Judge: 0 % of M0's judgments are readable, too few to tell (n 1,000); no gate of judge health warns."
    )


def test_the_figures_stand_by_model_with_their_limits(run: Run) -> None:
    sick = replace(run, health=SICK)
    assert models(sick) == ("M0", "M1", "M2")
    (title, rows), (other, _) = figure_tables(sick)
    assert (title, other) == ("On held-out prompts", "On the prompts of the next iteration")
    readable = rows[0]
    assert readable.label == "Readable judgments"
    assert readable.limits == "at least 20 % (stop), at least 90 % (warning)"
    cells = [cell for cell in readable.cells if cell is not None]
    assert [cell.value for cell in cells] == ["97 %", "70 %", "40 %"]
    assert [cell.anchor for cell in cells] == [None, "gate-readable_judgments", "gate-readable_judgments"]
    truth = next(row for row in rows if row.label.startswith("Readability, perfect"))
    assert truth.cells[0] is None and truth.cells[1] is not None and truth.cells[1].value == "−40 points"


def test_thin_data_are_called_too_few(run: Run) -> None:
    thin = replace(run, health=(check("evaluation", "M0", 0, {"one_score": 1.0}, prompts=4),))
    ((_, (row,)),) = figure_tables(thin)
    assert row.cells[0] is not None and row.cells[0].unclear and row.cells[0].anchor is None
    assert entries(thin.health) == ()


def test_charts_have_a_line_for_what_was_measured(run: Run) -> None:
    charts = health_charts(replace(run, health=SICK))
    assert [chart.title for chart in charts] == [
        "Readable judgments",
        "Readability and quality",
        "Left out by min_valid",
    ]
    assert [text for _, text in charts[0].values] == ["97.0\u202f% → 40.0\u202f%", "98.0\u202f% → 50.0\u202f%"]
    assert health_charts(run) == ()


def test_the_recipe_s_limits_are_those_of_the_gates(tmp_path: Path) -> None:
    assert recipe_of(start(tmp_path / "run")).gate_limits == LIMITS
