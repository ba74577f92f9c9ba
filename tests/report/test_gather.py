import json
from io import StringIO
from pathlib import Path

import pytest
from fake_run import MEANS, start
from rich.console import Console

from metareward.errors import UserError
from metareward.report.facts import Measure
from metareward.report.gather import gather, table_text
from metareward.report.metrics_table import rows
from metareward.storage.run_dir import RunDir


def printed(run: RunDir, width: int = 80) -> str:
    buffer = StringIO()
    Console(file=buffer, width=width).print(table_text(run))
    return buffer.getvalue()


def test_a_finished_run_is_read_whole(whole: RunDir) -> None:
    run = gather(whole)
    assert [e.model for e in run.evaluations] == ["M0", "M1", "M2", "M3", "M4"]
    assert [s.iteration for s in run.summaries] == [1, 2, 3, 4]
    assert run.evaluations[1].metrics["answer_quality"] == Measure(3.0, 2.87, 3.13, 300)
    assert sum(run.evaluations[0].histograms["own"].values()) == 900
    assert set(run.iterations[1].training) == {"loss", "margin", "accuracy"}
    assert len(run.iterations[1].training["loss"].steps) == 18
    assert run.iterations[1].seconds == pytest.approx(107.0)
    assert dict(run.environment)["packages torch"] == "2.9.0"
    assert all(iteration.done for iteration in run.iterations[1:])


def test_a_run_that_has_only_begun_is_read_as_empty(tmp_path: Path) -> None:
    run = gather(start(tmp_path / "begun"))
    assert len(run.iterations) == 5
    assert run.evaluations == () and run.summaries == ()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        gather(RunDir(tmp_path))


def test_a_torn_last_line_of_a_growing_log_is_left_out(copied: RunDir) -> None:
    log = copied.iteration(1).path / "training.jsonl"
    log.write_text(log.read_text() + '{"step": 19, "lo')
    assert len(gather(copied).iterations[1].training["loss"].steps) == 18


def test_a_broken_line_is_named(copied: RunDir) -> None:
    log = copied.iteration(1).path / "training.jsonl"
    log.write_text("garbage\n" + log.read_text())
    with pytest.raises(UserError, match=r"training\.jsonl:1: .*; fix: "):
        gather(copied)


@pytest.mark.parametrize("text", ["{", '{"model": 3}', "[]"])
def test_an_unreadable_evaluation_is_named(copied: RunDir, text: str) -> None:
    (copied.iteration(0).evaluation / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json: .*; fix: "):
        gather(copied)


@pytest.mark.parametrize("empty", [None, {"mean": None, "low": None, "high": None, "n": 0}, {"mean": 1.0, "n": 4}])
def test_a_metric_with_nothing_behind_it_is_absent(copied: RunDir, empty: object) -> None:
    path = copied.iteration(0).evaluation / "model.json"
    found = json.loads(path.read_text())
    found["metrics"]["answer_quality"] = empty
    path.write_text(json.dumps(found))
    assert "answer_quality" not in gather(copied).evaluations[0].metrics


def test_values_that_are_no_number_do_not_stop_the_reading(copied: RunDir) -> None:
    path = copied.iteration(1).path / "training.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n')
    assert gather(copied).iterations[1].training["loss"].steps == (1.0, 2.0)


def test_the_table_has_a_row_for_each_metric_that_is_there(whole: RunDir, unmeasured: RunDir) -> None:
    with_oracle, without = rows(gather(whole).evaluations), rows(gather(unmeasured).evaluations)
    assert {row.metric.key for row in with_oracle} == set(MEANS)
    assert "answer_quality" not in {row.metric.key for row in without}
    assert rows(()) == ()


def test_a_metric_nobody_has_heard_of_is_shown_all_the_same(copied: RunDir) -> None:
    path = copied.iteration(0).evaluation / "model.json"
    found = json.loads(path.read_text())
    found["metrics"]["answer_wit"] = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    path.write_text(json.dumps(found))
    assert rows(gather(copied).evaluations)[-1].metric.label == "answer wit"


def test_differences_are_to_m0_and_clear_only_when_intervals_are_apart(whole: RunDir) -> None:
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
