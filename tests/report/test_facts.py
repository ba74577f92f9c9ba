import json
from pathlib import Path

import pytest
from fake_run import start

from metareward.errors import UserError
from metareward.report.facts import Measure, gather
from metareward.storage.run_dir import RunDir


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


def test_a_run_without_results_is_empty(tmp_path: Path) -> None:
    run = gather(start(tmp_path / "begun"))
    assert len(run.iterations) == 5
    assert run.evaluations == () and run.summaries == ()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        gather(RunDir(tmp_path))


def test_an_incomplete_last_line_of_a_log_is_skipped(copied: RunDir) -> None:
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
def test_a_metric_without_values_is_absent(copied: RunDir, empty: object) -> None:
    path = copied.iteration(0).evaluation / "model.json"
    found = json.loads(path.read_text())
    found["metrics"]["answer_quality"] = empty
    path.write_text(json.dumps(found))
    assert "answer_quality" not in gather(copied).evaluations[0].metrics


def test_non_finite_training_metrics_are_kept(copied: RunDir) -> None:
    path = copied.iteration(1).path / "training.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n')
    assert gather(copied).iterations[1].training["loss"].steps == (1.0, 2.0)
