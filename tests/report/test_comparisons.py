"""Which models of a run differ: the tables and the plot of paired differences in the report."""

from __future__ import annotations

from pathlib import Path

from fake_run import fake_run
from made_up import json_file

from metareward.report.benchmark_tables import comparison_text, run_comparisons
from metareward.report.facts import gather
from metareward.report.write import page
from metareward.storage.run_dir import RunDir


def run_with_annotations(path: Path, baseline: str = "M0", judges: tuple[str, str] = ("oracle", "oracle")) -> RunDir:
    run = fake_run(path, models=3)
    for t, judge in enumerate(judges, 1):
        folder = run.path / f"iter-{t}" / "eval" / "by-oracle"
        folder.mkdir(parents=True)
        rows = [
            {
                "index": i,
                "instruction": f"Do {i}.",
                "output_1": "a",
                "output_2": "b",
                "generator_1": baseline if t == 1 else "M0",
                "generator_2": f"M{t}",
                "annotator": judge,
                "preference": 1.5 if t == 1 and i % 2 else 2.0 - (i % 5) / 100,
            }
            for i in range(40)
        ]
        json_file(folder / "annotations.json", rows)
    return run


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
    assert 'aria-label="by-oracle: paired differences: 3 of 3 pairs of models differ"' in html


def test_models_with_different_judges_or_baselines_are_not_compared(tmp_path: Path) -> None:
    for name, run in (
        ("judges", run_with_annotations(tmp_path / "judges", judges=("M1", "M2"))),
        ("baselines", run_with_annotations(tmp_path / "baselines", baseline="other")),
    ):
        assert run_comparisons(run, gather(run)) == (), name
