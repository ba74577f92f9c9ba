from pathlib import Path

from fake_run import fake_record, fake_run, finish, start, write_built, write_evaluation, write_records, write_training

from metareward.report.facts import Evaluation, Iteration, Measure, Run, gather
from metareward.report.write import sentences, unfinished
from metareward.storage.run_dir import RunDir


def run_with(tmp_path: Path, **metrics: list[tuple[float, float, float]]) -> Run:
    """A run whose models have these (mean, low, high), one model a place."""
    count = max(len(values) for values in metrics.values())
    evaluations = [
        Evaluation(f"M{t}", 10, 1.0, {key: Measure(*values[t], 10) for key, values in metrics.items()}, {})
        for t in range(count)
    ]
    recipe = gather(start(tmp_path / "run")).recipe
    iterations = (Iteration(t, True, (), None, {}, each, True, 1.0) for t, each in enumerate(evaluations))
    return Run("run", recipe, (), tuple(iterations))


def plain(text: str) -> str:
    return text.replace("\u202f", " ")


def test_a_rise_is_reported_only_if_the_intervals_do_not_overlap(tmp_path: Path) -> None:
    rose = sentences(run_with(tmp_path, answer_quality=[(2.41, 2.3, 2.5), (3.81, 3.7, 3.9)]))
    assert plain(rose[0]) == (
        "Mean answer quality rose from 2.41 (M0) to 3.81 of 5 (M1); the 95 % intervals do not overlap."
    )
    unclear = sentences(run_with(tmp_path, answer_quality=[(2.41, 2.3, 2.5), (2.55, 2.45, 2.65)]))
    assert "rose" not in unclear[0] and "no evidence of a change" in unclear[0]


def test_a_fall_is_reported(tmp_path: Path) -> None:
    assert "fell" in sentences(run_with(tmp_path, answer_quality=[(3.0, 2.9, 3.1), (2.0, 1.9, 2.1)]))[0]


def test_touching_intervals_overlap(tmp_path: Path) -> None:
    touching = sentences(run_with(tmp_path, answer_quality=[(2.0, 1.9, 2.1), (2.2, 2.1, 2.3)]))
    assert "no evidence of a change" in touching[0]


def test_an_earlier_peak_is_reported_if_the_intervals_do_not_overlap(tmp_path: Path) -> None:
    clear = sentences(run_with(tmp_path, answer_quality=[(2.0, 1.9, 2.1), (3.8, 3.7, 3.9), (3.0, 2.9, 3.1)]))
    assert "highest at M1, 3.80" in clear[0]
    unclear = sentences(run_with(tmp_path, answer_quality=[(2.0, 1.9, 2.1), (3.1, 3.0, 3.2), (3.0, 2.9, 3.1)]))
    assert "M1" not in unclear[0]


def test_equal_numbers_are_printed_once(tmp_path: Path) -> None:
    same = sentences(run_with(tmp_path, answer_quality=[(2.0, 1.9, 2.1), (2.0, 1.9, 2.1)]))
    assert same[0] == "Mean answer quality is 2.00 of 5 at M0 and at M1."


def test_without_an_oracle_the_self_assigned_score_is_called_no_evidence(unmeasured: RunDir) -> None:
    found = sentences(gather(unmeasured))
    assert "the model gives its own answers rose" in found[0]
    assert "no evidence of quality" in found[-1]


def test_runs_with_no_or_one_evaluated_model(tmp_path: Path) -> None:
    assert sentences(gather(start(tmp_path / "none"))) == ("No model of this run has been evaluated yet.",)
    assert "Only M0" in sentences(gather(fake_run(tmp_path / "one", models=1)))[0]


def missing(run: RunDir) -> tuple[str, ...]:
    return unfinished(gather(run))


def test_a_finished_run_lacks_nothing(whole: RunDir) -> None:
    assert missing(whole) == ()


def test_the_missing_stage_of_an_unfinished_run_is_named(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    assert missing(run) == (
        "M0 is not evaluated yet, so there is nothing to compare to.",
        "Iterations 1 to 4: not started.",
    )
    write_evaluation(run.iteration(0), 0)
    write_records(run, 1, [fake_record(1, number) for number in range(12)])
    assert missing(run)[0] == "Iteration 1: answers and judgments are being generated; its pairs are not built yet."
    write_built(run, 1)
    assert missing(run)[0] == "Iteration 1: its pairs are built, but M1 is not trained yet."
    write_training(run.iteration(1), 1)
    assert missing(run)[0] == "Iteration 1: M1 has a training log, but is not evaluated yet."
    write_evaluation(run.iteration(1), 1)
    finish(run.iteration(1))
    assert missing(run) == ("Iterations 2 to 4: not started.",)


def test_a_single_iteration_that_has_not_started(tmp_path: Path) -> None:
    run = start(tmp_path / "run", ["iterations.2=drop", "iterations.3=drop", "iterations.4=drop"])
    write_evaluation(run.iteration(0), 0)
    assert missing(run) == ("Iteration 1: not started.",)
