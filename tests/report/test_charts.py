from dataclasses import replace

import pytest

from metareward.report.charts import histogram_charts, position_charts, training_charts, trend_charts
from metareward.report.facts import Curve, Evaluation, Iteration, Measure, gather
from metareward.report.svg import BLUE, drawing
from metareward.storage.run_dir import RunDir


def evaluation(t: int, mean: float, half: float = 0.1, key: str = "answer_quality") -> Evaluation:
    return Evaluation(f"M{t}", 9, 1.0, {key: Measure(mean, mean - half, mean + half, 9)}, {})


def iteration(number: int, *values: float) -> Iteration:
    curve = Curve(tuple(map(float, range(1, len(values) + 1))), values)
    return Iteration(number, True, (), None, {"loss": curve}, None, True, 0.0)


def test_charts_are_deterministic(whole: RunDir) -> None:
    measured = gather(whole).evaluations
    assert trend_charts(measured) == trend_charts(measured)


def test_only_measured_metrics_have_a_chart(whole: RunDir, unmeasured: RunDir) -> None:
    titles = [chart.title for chart in trend_charts(gather(whole).evaluations)]
    assert titles[:3] == ["Answer quality", "Perfect answers", "Answer length"]
    assert "Answer quality" not in [chart.title for chart in trend_charts(gather(unmeasured).evaluations)]
    assert trend_charts(()) == ()


def test_a_chart_states_the_first_and_the_last_value() -> None:
    (chart,) = trend_charts([evaluation(0, 2.0), evaluation(1, 3.0), evaluation(2, 2.5)])
    assert chart.values == (("blue", "2.00 → 2.50"),)
    assert chart.svg.count(">M1<") == 1


@pytest.mark.parametrize("half", [0.0, 1e-12, 0.5])
def test_intervals_of_any_width_can_be_drawn(half: float) -> None:
    for key in ("answer_quality", "answer_perfect", "answer_chars", "judgment_rank_correlation"):
        assert trend_charts([evaluation(0, 0.0, half, key)])
        assert trend_charts([evaluation(0, 1.0, half, key), evaluation(1, 1.0, half, key)])


def test_scores_are_binned_to_half_points() -> None:
    counts = {"own": {4.75: 1, 4.9: 1, 3.0: 2}, "anchor": {}}
    (chart,) = histogram_charts([replace(evaluation(1, 2.0), histograms=counts)])
    assert chart.values == (("blue", "mean 3.91"),)
    assert histogram_charts([evaluation(0, 2.0)]) == ()
    (unread,) = histogram_charts([replace(evaluation(1, 2.0), histograms={"own": {}, "anchor": {3.0: 2}})])
    assert "no score of its own answers" in unread.svg and "3 100.0" in unread.svg


def test_bias_charts_cover_iterations_with_meta_judgments(whole: RunDir) -> None:
    summaries = gather(whole).summaries
    charts = position_charts(summaries)
    assert [chart.title for chart in charts] == [
        "Higher-scored judgment wins",
        "Verdicts that flip with the order",
        "First-position win rate",
    ]
    assert "iteration 2" in charts[0].svg and "iteration 3" not in charts[0].svg
    assert position_charts(summaries[2:]) == ()


def test_each_training_is_a_line_labelled_with_its_model() -> None:
    (chart,) = training_charts([iteration(1, 0.69, 0.6, 0.5), iteration(2, 0.69, 0.55, 0.4)])
    assert ">M1<" in chart.svg and ">M2<" in chart.svg
    assert training_charts([]) == ()


@pytest.mark.parametrize("values", [(0.69,), (0.69, float("nan")), (float("nan"),), (float("inf"), 1e300)])
def test_short_and_diverged_trainings_are_drawn(values: tuple[float, ...]) -> None:
    assert len(training_charts([iteration(1, *values)])) == 1


def test_labels_are_text_and_escaped() -> None:
    with drawing("x", 'a "caption" <b>') as chart:
        chart.axes.plot([0, 1], [0, 1], color=BLUE)
        chart.axes.set_xlabel("<script>$x$ & y")
    assert "&lt;script&gt;$x$ &amp; y" in chart.svg
    assert 'aria-label="a &quot;caption&quot; &lt;b&gt;"' in chart.svg


def test_the_first_step_that_is_not_finite_is_named() -> None:
    (chart,) = training_charts([iteration(1, 0.69, 0.6), iteration(2, 0.69, float("nan"), float("inf"))])
    assert chart.note.endswith(". M2: not finite from step 2")
