"""Which models of a run differ: the tables and the plot of paired differences in the report."""

from __future__ import annotations

from pathlib import Path

from fake_run import run_with_annotations

from metareward.report.benchmark_tables import comparison_text, run_comparisons
from metareward.report.facts import gather
from metareward.report.write import page


def test_the_report_says_which_models_differ_with_a_plot(tmp_path: Path) -> None:
    run = run_with_annotations(tmp_path / "run")
    ((name, comparisons),) = run_comparisons(run, gather(run))
    assert name == "by-oracle"
    assert [(each.a, each.b, each.differ) for each in comparisons] == [
        ("M0", "M1", True),
        ("M0", "M2", True),
        ("M1", "M2", True),
    ]
    table = comparison_text(name, comparisons)
    assert table.notes[0] == "Different at 5 % over all 3 comparisons (Holm): M0 and M1, M0 and M2, M1 and M2."
    html = page(run)
    assert "by-oracle: which models differ" in html and "by-oracle: paired differences" in html
    assert "by-oracle: paired differences: 3 of 3 pairs of models differ; M1 minus M0 +" in html


def test_models_with_different_judges_or_baselines_are_not_compared(tmp_path: Path) -> None:
    for name, run in (
        ("judges", run_with_annotations(tmp_path / "judges", judges=("M1", "M2"))),
        ("baselines", run_with_annotations(tmp_path / "baselines", baseline="other")),
    ):
        assert run_comparisons(run, gather(run)) == (), name
