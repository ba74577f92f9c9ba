from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metareward.report.arms import (
    ArmFigure,
    ArmsReport,
    difference_tables,
    differences,
    differences_csv,
    figures_csv,
    read_figures_csv,
)

QUALITY = {"a": [3.0, 3.2, 3.1, 2.9], "b": [3.5, 3.6, 3.7, 3.3]}


def figures(metric: str = "answer_quality", model: str = "M1") -> tuple[ArmFigure, ...]:
    return tuple(
        ArmFigure(arm, seed, model, metric, value)
        for arm, values in QUALITY.items()
        for seed, value in enumerate(values, 1)
    )


def report(found: tuple[ArmFigure, ...], title: str = "Try") -> ArmsReport:
    return ArmsReport(
        title=title,
        description="",
        recipe="pocket",
        seeds=(1, 2, 3, 4),
        arms=(("a", ""), ("b", "answers.k=2")),
        states=(("a", "4 of 4 finished"), ("b", "4 of 4 finished")),
        figures=found,
        pairs=(("a", "b"),),
    )


def test_a_difference_is_paired_by_seed_with_students_interval() -> None:
    (found,) = differences(figures(), (("a", "b"),))
    paired = stats.ttest_rel(QUALITY["b"], QUALITY["a"])
    interval = paired.confidence_interval(0.95)
    assert found.difference == pytest.approx(0.475)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.seeds, found.verdict) == (4, "higher")
    assert differences(figures(), (("b", "a"),))[0].verdict == "lower"


def test_only_seeds_of_both_arms_count() -> None:
    partial = [each for each in figures() if (each.arm, each.seed) != ("b", 4)]
    assert differences(partial, (("a", "b"),))[0].seeds == 3
    one = [each for each in figures() if each.seed == 1]
    (found,) = differences(one, (("a", "b"),))
    assert (found.low, found.high, found.verdict) == (None, None, "can't tell")
    assert differences([each for each in figures() if each.arm == "a"], (("a", "b"),)) == ()


def test_arms_that_are_the_same_are_equal() -> None:
    same = [replace(each, arm=arm) for each in figures() if each.arm == "a" for arm in ("a", "b")]
    assert differences(same, (("a", "b"),))[0].verdict == "equal"


@given(
    st.lists(
        st.builds(
            ArmFigure,
            arm=st.sampled_from("ab"),
            seed=st.integers(0, 9),
            model=st.sampled_from(["M0", "run"]),
            metric=st.text('ab_," ', min_size=1, max_size=9),
            value=st.floats(-1e6, 1e6).map(lambda value: float(f"{value:.6g}")),
        )
    )
)
def test_the_table_of_figures_is_read_as_it_was_written(found: list[ArmFigure]) -> None:
    assert list(read_figures_csv(figures_csv(found))) == found


def test_tables_show_the_last_model_and_the_costs() -> None:
    found = (*figures(), *figures(model="M2"), *figures("completions", "run"), *figures("odd_figure", "M2"))
    (table,) = difference_tables(differences(found, (("a", "b"),)))
    assert table.title == "b against a, M2"
    assert [row[0] for row in table.rows] == ["Answer quality (oracle)", "Completions generated for training"]
    assert table.rows[0][1:] == ("3.05", "3.53", "+0.47 [+0.32, +0.63]", "higher", "4")
    rows = list(csv.DictReader(io.StringIO(differences_csv(differences(found, (("a", "b"),))))))
    assert {(row["model"], row["metric"], row["verdict"]) for row in rows} == {
        ("M1", "answer_quality", "higher"),
        ("M2", "answer_quality", "higher"),
        ("M2", "odd_figure", "higher"),
        ("run", "completions", "higher"),
    }


def test_the_page_has_every_arm_and_shows_texts_as_texts() -> None:
    page = report((*figures(model="M0"), *figures()), "<script>x</script>\u202e").page()
    assert "&lt;script&gt;" in page and "<script" not in page and "⟨U+202E⟩" in page
    assert page.count("<svg") == 1 and "4 of 4 finished" in page and "answers.k=2" in page
    assert "No two arms" in report(()).page()
