from dataclasses import replace

import pytest

from metareward.report.charts import histogram_charts, position_charts, training_charts, trend_charts
from metareward.report.facts import Curve, Evaluation, Iteration, Measure, PairSummary
from metareward.report.gather import bars, gather
from metareward.report.metrics_table import metric_for, show
from metareward.report.svg import BLUE, drawing
from metareward.storage.run_dir import RunDir


def evaluation(t: int, mean: float, half: float = 0.1, key: str = "answer_quality") -> Evaluation:
    return Evaluation(f"M{t}", 9, 1.0, {key: Measure(mean, mean - half, mean + half, 9)}, {})


def iteration(number: int, *values: float) -> Iteration:
    curve = Curve(tuple(map(float, range(1, len(values) + 1))), values)
    return Iteration(number, True, (), None, {"loss": curve}, None, True, 0.0)


def summary(iteration: int, actors: int, judges: int, **dropped: dict[str, int]) -> PairSummary:
    return PairSummary(iteration, 10, actors, judges, dropped)


def test_the_same_numbers_give_the_same_picture(whole: RunDir) -> None:
    measured = gather(whole).evaluations
    assert trend_charts(measured) == trend_charts(measured)


def test_there_is_a_chart_for_what_was_measured_and_no_other(whole: RunDir, unmeasured: RunDir) -> None:
    titles = [chart.title for chart in trend_charts(gather(whole).evaluations)]
    assert titles[:3] == ["Answer quality", "Perfect answers", "Answer length"]
    assert "Answer quality" not in [chart.title for chart in trend_charts(gather(unmeasured).evaluations)]
    assert trend_charts(()) == ()


def test_the_number_to_look_at_is_the_first_and_the_last() -> None:
    (chart,) = trend_charts([evaluation(0, 2.0), evaluation(1, 3.0), evaluation(2, 2.5)])
    assert chart.leads == (("blue", "2.00 → 2.50"),)
    assert chart.svg.count("M1") == 1


@pytest.mark.parametrize("half", [0.0, 1e-12, 0.5])
def test_intervals_of_any_width_can_be_drawn(half: float) -> None:
    for key in ("answer_quality", "answer_perfect", "answer_chars", "judgment_rank_correlation"):
        assert trend_charts([evaluation(0, 0.0, half, key)])
        assert trend_charts([evaluation(0, 1.0, half, key), evaluation(1, 1.0, half, key)])


def test_scores_between_the_points_share_a_bar() -> None:
    counts = {"own": {4.75: 1, 4.9: 1, 3.0: 2}, "anchor": {}}
    (chart,) = histogram_charts([replace(evaluation(1, 2.0), histograms=counts)])
    assert chart.leads == (("blue", "mean 3.91"),)
    assert histogram_charts([evaluation(0, 2.0)]) == ()


def test_position_is_drawn_where_judgments_were_compared(whole: RunDir) -> None:
    summaries = gather(whole).summaries
    charts = position_charts(summaries)
    assert [chart.title for chart in charts] == [
        "Higher-scored judgment wins",
        "Verdicts that flip with the order",
        "First shown wins",
    ]
    assert "iteration 2" in charts[0].svg and "iteration 3" not in charts[0].svg
    assert position_charts(summaries[2:]) == ()


def test_each_training_is_a_line_with_its_models_name() -> None:
    (chart,) = training_charts([iteration(1, 0.69, 0.6, 0.5), iteration(2, 0.69, 0.55, 0.4)])
    assert ">M1<" in chart.svg and ">M2<" in chart.svg
    assert training_charts([]) == ()


@pytest.mark.parametrize("values", [(0.69,), (0.69, float("nan")), (float("nan"),), (float("inf"), 1e300)])
def test_short_and_runaway_trainings_are_drawn_as_far_as_they_can(values: tuple[float, ...]) -> None:
    assert len(training_charts([iteration(1, *values)])) == 1


def test_labels_are_text_and_escaped() -> None:
    with drawing("x", 'a "caption" <b>') as chart:
        chart.axes.plot([0, 1], [0, 1], color=BLUE)
        chart.axes.set_xlabel("<script>$x$ & y")
    assert "&lt;script&gt;$x$ &amp; y" in chart.svg
    assert 'aria-label="a &quot;caption&quot; &lt;b&gt;"' in chart.svg


def test_bars_add_up_to_all_prompts() -> None:
    found = bars([summary(1, 6, 3, actor={"all_scores_equal": 3}, judge={"no_variance": 5, "too_few_battles": 2})])
    assert [bar.label for bar in found] == ["Actor pairs", "Judge pairs"]
    for bar in found:
        assert sum(segment.count for segment in bar.segments) == 10
        assert sum(segment.percent for segment in bar.segments) == pytest.approx(100)
    assert found[0].segments[-1].words == "prompt failed"


def test_a_reason_keeps_its_shade_through_all_bars() -> None:
    found = bars(
        [
            summary(1, 8, 0, actor={"all_scores_equal": 2}),
            summary(2, 5, 0, actor={"tiers_overlap": 1, "all_scores_equal": 4}),
        ]
    )
    shades = [{s.words: s.shade for s in bar.segments} for bar in found]
    assert shades[0]["all answers scored the same"] == shades[1]["all answers scored the same"] == 1


def test_no_bar_for_judge_pairs_that_nobody_asked_for() -> None:
    assert [bar.label for bar in bars([summary(1, 10, 0, actor={}, judge={})])] == ["Actor pairs"]


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
def test_numbers_are_shown_with_the_digits_they_deserve(form: str, value: float, shown: str) -> None:
    assert show(form, value) == shown  # type: ignore[arg-type]


def test_differences_carry_a_sign_and_shares_differ_by_points() -> None:
    assert metric_for("answer_quality").show_change(-0.5) == "−0.50"
    assert metric_for("answer_perfect").show_change(0.11) == "+11.0 points"
    assert metric_for("judgment_exact").show_interval(0.1, 0.2) == "10.0 to 20.0\u202f%"


def test_a_training_that_ran_away_is_named() -> None:
    (chart,) = training_charts([iteration(1, 0.69, 0.6), iteration(2, 0.69, float("nan"), float("inf"))])
    assert chart.note.endswith(". M2 is no finite number from step 2")
