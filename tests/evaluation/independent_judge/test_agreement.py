"""Better or only more confident: agreement with an independent judge, against SciPy and on made-up judges."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from metareward.evaluation.independent_judge.agreement import (
    JudgeChange,
    JudgedAnswer,
    agreement,
    changes,
    judge_change,
)
from metareward.method.stats import Interval

scores = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=4).map(tuple)
judged = st.lists(st.builds(JudgedAnswer, st.sampled_from("abcdefgh"), scores, scores), min_size=2, max_size=12)


@settings(max_examples=30, deadline=None)
@given(judged)
def test_every_figure_is_what_its_definition_says(answers: list[JudgedAnswer]) -> None:
    found = agreement(answers, 0.5)
    singles = [(score, each.reference) for each in answers for score in each.scores_N]
    pairs = [pair for each in answers for pair in itertools.permutations(each.scores_N, 2)]
    assert found["exact"].mean == pytest.approx(np.mean([abs(s - r) <= 0.5 for s, r in singles]))
    assert found["error"].mean == pytest.approx(np.mean([s - r for s, r in singles]))
    if pairs:
        assert found["self_agreement"].mean == pytest.approx(np.mean([a == b for a, b in pairs]))
        assert found["self_agreement"].n == len(pairs) // 2
    for name, rows in (
        ("rank_correlation", singles),
        ("mean_rank_correlation", [(np.mean(each.scores_N), each.reference) for each in answers]),
    ):
        one, other = np.round(np.array(rows), 9).T
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            assert found[name].mean == pytest.approx(spearmanr(one, other).statistic, abs=1e-6)
            assert found[name].low <= found[name].mean <= found[name].high
        else:
            assert name not in found
    assert not {"exact", "error"} & agreement(answers, None).keys()


def judges(
    quality_A: np.ndarray, preference: float, noise: float, seed: int, n: int = 3, levels: int = 6
) -> tuple[JudgedAnswer, ...]:
    """Judgments by a preference that has this correlation with quality, with this much noise in each; the independent
    judge sees the quality itself."""
    draw = np.random.default_rng(seed)
    view_A = preference * quality_A + np.sqrt(1 - preference**2) * np.random.default_rng(7).standard_normal(
        len(quality_A)
    )
    scores_AN = view_A[:, None] + noise * draw.standard_normal((len(quality_A), n))

    def on_scale(values: np.ndarray) -> tuple[float, ...]:
        return tuple(float(v) for v in np.clip(np.round(values * levels / 6 + 2.5), 0, levels - 1))

    return tuple(
        JudgedAnswer(f"p{i}", on_scale(s_N), (float(q),))
        for i, (s_N, q) in enumerate(zip(scores_AN, quality_A, strict=True))
    )


QUALITY = np.random.default_rng(1).standard_normal(400)
BEFORE = judges(QUALITY, 0.5, 1.0, 2)


def test_the_correlation_without_noise_is_found_whatever_the_noise() -> None:
    for preference, noise in itertools.product((0.3, 0.6, 0.9), (0.3, 1.0)):
        found = agreement(judges(QUALITY, preference, noise, 3, levels=60), None)
        true = spearmanr(
            QUALITY, [each.scores_N[0] for each in judges(QUALITY, preference, 0.0, 3, levels=60)]
        ).statistic
        assert found["disattenuated"].mean == pytest.approx(true, abs=0.06)
        assert found["disattenuated"].low - 0.02 <= true <= found["disattenuated"].high + 0.02
        assert found["rank_correlation"].mean < found["disattenuated"].mean


@pytest.mark.slow
def test_its_interval_covers_it_in_most_draws() -> None:
    covered = 0
    for draw in range(400):
        quality = np.random.default_rng(100 + draw).standard_normal(200)
        generator = np.random.default_rng(500 + draw)
        view = 0.6 * quality + 0.8 * generator.standard_normal(200)
        scores_AN = view[:, None] + generator.standard_normal((200, 3))
        answers = [
            JudgedAnswer(str(i), tuple(map(float, s)), (float(q),))
            for i, (s, q) in enumerate(zip(scores_AN, quality, strict=True))
        ]
        interval = agreement(answers, None)["disattenuated"]
        covered += interval.low <= 6 / np.pi * np.arcsin(0.6 / 2) <= interval.high  # Spearman of a normal pair
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (judges(QUALITY, 0.8, 1.0, 4), "better"),
        (judges(QUALITY, 0.8, 0.3, 4), "better"),
        (judges(QUALITY, 0.5, 0.3, 4), "less noisy"),
        (judges(QUALITY, 0.1, 0.3, 4), "worse"),
        (judges(QUALITY, 0.5, 1.0, 4), "unclear"),
        (tuple(JudgedAnswer(each.prompt_id, (5.0, 5.0, 5.0), each.reference_N) for each in BEFORE), "more confident"),
    ],
)
def test_what_changed_is_told_apart(after: Sequence[JudgedAnswer], said: JudgeChange) -> None:
    assert judge_change(changes(after, BEFORE, None)) == said


def test_a_judge_that_only_gets_more_confident_is_never_called_better() -> None:
    """The same preference, less noise, six draws: single judgments agree better, the preference doesn't."""
    said = [
        judge_change(changes(judges(QUALITY, 0.4, 0.4, s), judges(QUALITY, 0.4, 1.0, s + 50), None)) for s in range(6)
    ]
    assert said.count("better") <= 1 and said.count("less noisy") >= 4


def test_a_change_is_the_difference_of_the_figures() -> None:
    after = judges(QUALITY, 0.8, 0.5, 4)
    now, before, changed = agreement(after, 0.5), agreement(BEFORE, 0.5), changes(after, BEFORE, 0.5)
    assert changed.keys() == now.keys() == before.keys()
    for name, interval in changed.items():
        assert interval.mean == pytest.approx(now[name].mean - before[name].mean)
    assert all(
        interval.mean == interval.low == interval.high == 0 for interval in changes(BEFORE, BEFORE, 0.5).values()
    )


def test_one_judgment_of_each_answer_tells_nothing_of_certainty() -> None:
    one = [JudgedAnswer(each.prompt_id, each.scores_N[:1], each.reference_N) for each in BEFORE]
    better = [JudgedAnswer(each.prompt_id, each.reference_N, each.reference_N) for each in BEFORE]
    assert not {"self_agreement", "reliability", "disattenuated"} & agreement(one, None).keys()
    assert judge_change(changes(better, one, None)) == "better"


def test_nothing_to_count_is_absent() -> None:
    assert agreement([], 0.5) == {} and changes([], [], 0.5) == {}
    assert judge_change({}) == "unclear"
    assert judge_change({"self_agreement": Interval(0.1, 0.05, 0.2, 9)}) == "more confident"
