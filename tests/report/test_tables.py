"""Win rates and pair bars."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from fake_run import fake_run
from rich.console import Console

from metareward.evaluation.held_out import WinRate
from metareward.report.facts import Evaluation, PairSummary
from metareward.report.tables import pair_bars, win_rate_rows, win_rates_text
from metareward.report.write import write_report

WON = WinRate("M0", "oracle", 62.54, 55.0, 70.01, 58.0, 3.24, 100, 30, 20, 2, 0.00001)
OWN = WinRate("M0", "itself", 50.0, 40.0, 60.0, None, None, 0, 0, 3, 0, None)


def evaluation(*win_rates: WinRate) -> Evaluation:
    return Evaluation("M2", 3, 1.0, {}, {}, win_rates)


def test_each_comparison_is_a_row() -> None:
    first, second = win_rate_rows([evaluation(WON, OWN)])
    assert first == (("M2 vs. M0", "oracle", "62.5 (55.0–70.0)", "58.0 ± 3.2", "100", "20", "30", "2", "p < 0.001"))
    assert second[1:4] == ("M2", "50.0 (40.0–60.0)", "–") and second[-1] == "–"


def test_the_terminal_shows_win_rates_against_m0() -> None:
    assert win_rates_text([evaluation()]) is None
    later = WinRate("M1", "oracle", 51.0, 45.0, 57.0, 50.0, 3.0, 10, 9, 1, 0, 1.0)
    table, stream = win_rates_text([evaluation(WON, later)]), io.StringIO()
    Console(file=stream, width=100).print(table)
    assert "M2 vs. M0" in stream.getvalue() and "vs. M1" not in stream.getvalue()


def test_the_page_has_win_rates(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    path = run.iteration(1).evaluation / "model.json"
    found = json.loads(path.read_text())
    fields = {name: getattr(WON, name) for name in WON.__dataclass_fields__}
    path.write_text(json.dumps({**found, "win_rates": [fields]}))
    write_report(run)
    page = run.report.read_text()
    assert "M1 vs. M0" in page and "62.5 (55.0–70.0)" in page and 'href="#win-rates"' in page


def summary(iteration: int, actors: int, judges: int, **dropped: dict[str, int]) -> PairSummary:
    return PairSummary(iteration, 10, actors, judges, dropped)


def test_bars_add_up_to_all_prompts() -> None:
    found = pair_bars([summary(1, 6, 3, actor={"all_scores_equal": 3}, judge={"no_variance": 5, "too_few_battles": 2})])
    assert [bar.label for bar in found] == ["actor pairs", "judge pairs"]
    for bar in found:
        assert sum(segment.count for segment in bar.segments) == 10
        assert sum(segment.percent for segment in bar.segments) == pytest.approx(100)
    assert found[0].segments[-1].label == "generation failed"


def test_a_reason_keeps_its_shade_through_all_pair_bars() -> None:
    found = pair_bars(
        [
            summary(1, 8, 0, actor={"all_scores_equal": 2}),
            summary(2, 5, 0, actor={"tiers_overlap": 1, "all_scores_equal": 4}),
        ]
    )
    shades = [{s.label: s.shade for s in bar.segments} for bar in found]
    assert shades[0]["all answers scored the same"] == shades[1]["all answers scored the same"] == 1


def test_no_bar_where_no_judge_pairs_are_built() -> None:
    assert [bar.label for bar in pair_bars([summary(1, 10, 0, actor={}, judge={})])] == ["actor pairs"]


def test_a_win_rate_without_variation_has_no_interval() -> None:
    all_won = WinRate("M0", "oracle", 100.0, 100.0, 100.0, None, None, 4, 0, 0, 0, 0.125)
    assert win_rate_rows([evaluation(all_won)])[0][2] == "100.0 (all equal)"
