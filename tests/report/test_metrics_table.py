import json
from io import StringIO
from pathlib import Path

import pytest
from fake_run import MEANS, start
from rich.console import Console

from metareward.report.facts import gather
from metareward.report.tables import metric_for, metrics_text, rows, show
from metareward.report.write import page
from metareward.storage.run_dir import RunDir


def printed(run: RunDir, width: int = 80) -> str:
    buffer = StringIO()
    Console(file=buffer, width=width).print(metrics_text(gather(run).evaluations))
    return buffer.getvalue()


def test_the_table_has_a_row_for_each_metric_that_is_there(whole: RunDir, unmeasured: RunDir) -> None:
    with_oracle, without = rows(gather(whole).evaluations), rows(gather(unmeasured).evaluations)
    assert {row.metric.key for row in with_oracle} == set(MEANS)
    assert "answer_quality" not in {row.metric.key for row in without}
    assert rows(()) == ()


def test_an_unknown_metric_is_shown(copied: RunDir) -> None:
    path = copied.iteration(0).evaluation / "model.json"
    found = json.loads(path.read_text())
    found["metrics"]["answer_wit"] = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    path.write_text(json.dumps(found))
    assert rows(gather(copied).evaluations)[-1].metric.label == "answer wit"


def test_differences_are_to_m0_and_clear_only_without_overlap(whole: RunDir) -> None:
    found = {row.metric.key: row for row in rows(gather(whole).evaluations)}
    quality, meta, length = (found[key] for key in ("answer_quality", "meta_accuracy", "answer_chars"))
    assert quality.cells[0] is not None and quality.cells[0].change is None
    last = quality.cells[-1]
    assert last is not None and last.change == pytest.approx(1.37) and last.verdict(quality.metric) == "better"
    overlapping = meta.cells[-1]
    assert overlapping is not None and overlapping.verdict(meta.metric) == ""
    shorter = length.cells[-1]
    assert shorter is not None and shorter.verdict(length.metric) == "clear", "shorter is neither better nor worse"


def test_the_terminal_table_fits_80_columns(whole: RunDir) -> None:
    text = printed(whole)
    assert "2.41" in text and "2.28–2.54" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_terminal_table_of_a_run_without_models_is_empty(tmp_path: Path) -> None:
    assert "M0" not in printed(start(tmp_path / "begun")).replace("M0's", "")


@pytest.mark.parametrize(
    ("form", "value", "shown"),
    [
        ("score", 2.414, "2.41"),
        ("correlation", -0.316, "−0.32"),
        ("share", 0.4712, "47.1\u202f%"),
        ("chars", 30.04, "30.0"),
        ("chars", 2003.4, "2,003"),
        ("score", float("nan"), "not a number"),
    ],
)
def test_values_are_formatted_by_form(form: str, value: float, shown: str) -> None:
    assert show(form, value) == shown  # type: ignore[arg-type]


def test_differences_have_a_sign_and_shares_differ_by_points() -> None:
    assert metric_for("answer_quality").show_change(-0.5) == "−0.50"
    assert metric_for("answer_perfect").show_change(0.11) == "+11.0 points"
    assert metric_for("judgment_exact").show_interval(0.1, 0.2) == "10.0 to 20.0\u202f%"


def test_values_without_variation_have_no_interval() -> None:
    assert metric_for("answer_perfect").show_interval(1.0, 1.0) == "all values equal"


def test_a_paired_difference_decides_what_is_clear(copied: RunDir) -> None:
    """Intervals that overlap, and a difference on the same prompts that excludes zero; and the other way round."""
    path = copied.iteration(1).evaluation / "model.json"
    found = json.loads(path.read_text())
    near = json.loads((copied.iteration(0).evaluation / "model.json").read_text())["metrics"]["answer_quality"]
    found["metrics"]["answer_quality"] = {**near, "mean": near["mean"] + 0.03}
    found["differences"] = {
        "answer_quality": {"mean": 0.03, "low": 0.02, "high": 0.04, "n": 300},
        "answer_chars": {"mean": -9.0, "low": -20.0, "high": 2.0, "n": 300},
        "answer_perfect": None,
    }
    path.write_text(json.dumps(found))
    by_key = {row.metric.key: row for row in rows(gather(copied).evaluations)}
    quality, length, perfect = (by_key[key].cells[1] for key in ("answer_quality", "answer_chars", "answer_perfect"))
    assert quality is not None and quality.clear and quality.paired is not None
    assert length is not None and not length.clear
    assert perfect is not None and perfect.paired is None
    told = page(copied).replace("\u202f", " ")
    assert '<span class="interval">+0.02 to +0.04</span>' in told
    assert "paired difference +0.03, 95 % interval +0.02 to +0.04" in told
