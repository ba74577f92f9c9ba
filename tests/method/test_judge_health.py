"""Figures of judge health by hand, their intervals, and what a judge must do for a figure to move."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import candidate, dispute, record, records
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from metareward.method.diagnostics import disputes
from metareward.method.judge_health import (
    Figure,
    Judged,
    Scale,
    answer_figures,
    edge_scores,
    evaluation_figures,
    judged_answers,
    length_ratio,
    one_score,
    pair_figures,
    readable_as_written,
    readable_by_score,
    readable_by_truth,
    readable_judgments,
    record_figures,
    score_entropy,
    share,
    verdict_figures,
)
from metareward.method.pairs import PairRules, build_pairs
from metareward.method.stats import resampled_interval, share_interval
from metareward.types import Prompt, PromptRecord, Reading, Scored, Tied, Truncated, Unparsed, Won

SCALE = Scale(0.0, 5.0)
MISSING = Unparsed("missing")


def value(figure: Figure | None) -> float:
    assert figure is not None
    return figure.value


def judged(*answers: Sequence[Reading | float | None], truths: Sequence[float] = ()) -> list[Judged]:
    """Answers to prompts of their own, with these judgments."""
    known = [*truths, *(None for _ in answers)]
    return [
        Judged(f"p{number}", candidate(0, scores), truth)
        for number, (scores, truth) in enumerate(zip(answers, known, strict=False))
    ]


# --- intervals ---


def test_wilson_s_interval_of_independent_flags() -> None:
    """Newcombe (1998), table I: 81 of 263 is 0.3080 (0.2553 to 0.3662) by Wilson's method."""
    found = share_interval([number < 81 for number in range(263)], range(263))
    assert [found.low, found.high] == pytest.approx([0.2553, 0.3662], abs=2e-3)


def test_equal_flags_count_once_for_each_group() -> None:
    found = share_interval([False] * 100, [number // 50 for number in range(100)])
    assert (found.mean, found.low, found.n) == (0.0, 0.0, 100)
    assert found.high == pytest.approx(1.96**2 / (2 + 1.96**2), abs=1e-3)  # as 0 of 2


def test_one_group_is_one_observation() -> None:
    found = share_interval([True, False] * 50, ["p"] * 100)
    assert found.low < 0.1 and found.high > 0.9


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=60))
def test_shares_lie_in_their_intervals(rows: list[tuple[bool, int]]) -> None:
    found = share_interval([flag for flag, _ in rows], [group for _, group in rows])
    assert 0 <= found.low <= found.mean <= found.high <= 1
    flipped = share_interval([not flag for flag, _ in rows], [group for _, group in rows])
    assert [flipped.low, flipped.high] == pytest.approx([1 - found.high, 1 - found.low])


def test_flags_that_agree_within_prompts_have_the_interval_of_the_prompts() -> None:
    draw = random.Random(1)
    flags = [draw.random() < 0.3 for _ in range(200)]
    alone = share_interval(flags, range(200))
    repeated = share_interval([flag for flag in flags for _ in range(20)], [n for n in range(200) for _ in range(20)])
    assert repeated.low == pytest.approx(alone.low, abs=0.002) and repeated.high == pytest.approx(alone.high, abs=0.002)


def test_shares_are_covered_by_their_intervals() -> None:
    """40 prompts of 10 judgments, whose readable share varies by prompt: about 95 % of intervals hold the mean."""
    draw = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        of_prompt = draw.beta(4, 1, size=40)
        flags = (draw.random((40, 10)) < of_prompt[:, None]).ravel().tolist()
        found = share_interval(flags, [number // 10 for number in range(400)])
        held += found.low <= 0.8 <= found.high
    assert 0.91 <= held / 300 <= 0.985


def test_a_ratio_s_interval_is_nearly_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = resampled_interval(np.stack([values, np.ones(400)], axis=1), lambda sums: sums[:, 0] / sums[:, 1], 400)
    assert found is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)


def test_an_undefined_ratio_is_none() -> None:
    assert resampled_interval(np.zeros((3, 2)), lambda sums: sums[:, 0] / sums[:, 1], 3) is None


def test_bins_are_tenths_of_the_scale() -> None:
    assert [Scale(1.0, 11.0).bin(score) for score in (1, 2, 6, 6.4, 11)] == [0, 1, 5, 5, 10]


def test_answers_keep_their_prompts_and_get_their_truths() -> None:
    of = [record([candidate(0, [3]), candidate(1, [4])], name="a"), record([candidate(0, [5])], name="b")]

    def truth(prompt: Prompt, answer: str) -> float:
        return len(prompt.id + answer) + ord(prompt.id)

    found = judged_answers(of, truth)
    assert [(each.prompt_id, each.answer) for each in found] == [
        (each.prompt.id, answer) for each in of for answer in each.candidates_K
    ]
    assert [each.truth for each in found] == [truth(each.prompt, a.text) for each in of for a in each.candidates_K]
    assert {each.truth for each in judged_answers(of)} == {None}


# --- judgments ---


def test_readable_judgments_are_counted_with_the_reasons_of_the_others() -> None:
    found = readable_judgments(judged([5, MISSING, Truncated()], [4, MISSING, 3]))
    assert found is not None
    assert (found.value, found.n, found.prompts) == (0.5, 6, 2)
    assert found.detail == "2 missing, 1 truncated"
    assert readable_judgments([]) is None
    unusual = readable_judgments(judged([Unparsed("out_of_range"), 3]))
    assert unusual is not None and unusual.detail == "1 out of range"


def test_of_constrained_verdicts_those_count_that_they_replaced() -> None:
    """A judge that can't write a score of good answers any more is seen although every judgment has one."""
    plain = judged([5, MISSING], [MISSING, MISSING], [1, 2], [0, 1], truths=[5, 5, 1, 0])
    drawn = [
        replace(
            each,
            answer=replace(
                each.answer,
                judgments_N=tuple(
                    replace(judgment, reading=Scored(0.0), written=judgment.reading)
                    for judgment in each.answer.judgments_N
                ),
            ),
        )
        for each in plain
    ]
    assert value(readable_judgments(drawn)) == 1.0 and readable_as_written(plain) is None
    assert readable_as_written(drawn) == readable_judgments(plain)
    assert value(readable_by_truth(drawn, SCALE)) == value(readable_by_truth(plain, SCALE)) == -0.75


def noisy(
    readable: Callable[[int, random.Random], bool], count: int = 120, n: int = 7, with_reference: bool = False
) -> list[Judged]:
    """Answers of true quality 0 to 5 whose judgments are off by one at most, ``readable`` by true quality."""
    draw = random.Random(3)
    answers = []
    for number in range(count):
        truth = number % 6
        scores = [min(5, max(0, truth + draw.choice((-1, 0, 0, 1)))) for _ in range(n)]
        readings = [Scored(float(score)) if readable(truth, draw) else MISSING for score in scores]
        answers.append(
            Judged(f"p{number}", candidate(0, readings), float(truth), float(truth) if with_reference else None)
        )
    return answers


@pytest.mark.parametrize("with_reference", [False, True])
def test_readability_that_does_not_depend_on_quality(with_reference: bool) -> None:
    of = noisy(lambda truth, draw: draw.random() < 0.8, with_reference=with_reference)
    for found in (readable_by_score(of), readable_by_truth(of, SCALE)):
        assert found is not None and found.low < 0 < found.high and abs(found.value) < 0.08


@pytest.mark.parametrize("with_reference", [False, True])
def test_readability_that_falls_for_perfect_answers(with_reference: bool) -> None:
    of = noisy(lambda truth, draw: draw.random() < (0.4 if truth == 5 else 0.95), with_reference=with_reference)
    by_score, by_truth = readable_by_score(of), readable_by_truth(of, SCALE)
    assert by_score is not None and by_score.high < -0.2
    assert by_truth is not None and by_truth.value == pytest.approx(-0.55, abs=0.1)
    assert by_truth.prompts == 20  # those with a perfect answer


def test_readability_that_rises_with_quality() -> None:
    found = readable_by_score(noisy(lambda truth, draw: draw.random() < 0.4 + 0.1 * truth))
    assert found is not None and found.low > 0.2


def test_without_a_difference_in_quality_there_is_no_dependence() -> None:
    assert readable_by_score(judged([3, 3, None], [3, 3, 3])) is None
    assert readable_by_truth(judged([3, 3], [3, None], truths=(5, 5)), SCALE) is None
    assert readable_by_truth(judged([3, 3], [3, None]), SCALE) is None  # no oracle


def test_the_only_readable_judgment_has_no_other_to_be_ranked_by() -> None:
    found = readable_by_score(judged([5, None, None], [1, 1, 2]))
    assert found is not None
    assert found.n == 2 + 3  # the two unreadable ones are ranked by the readable one


def test_the_change_of_readability_is_a_linear_fit_on_ranks() -> None:
    of = [
        replace(each, reference=reference)
        for each, reference in zip(judged([MISSING, 3], [MISSING], [4, 4, MISSING], [2]), (1, 1, 3, 1), strict=True)
    ]
    ranks, readable = rankdata([1, 1, 1, 3, 3, 3, 1]), [0, 1, 0, 1, 1, 0, 1]
    assert value(readable_by_score(of)) == pytest.approx(np.polyfit(ranks / 7, readable, 1)[0])


@pytest.mark.parametrize("swapped", [False, True])
def test_a_comparison_by_truth_counts_the_prompts_of_the_smaller_group(swapped: bool) -> None:
    truths = (1, 1, 5, 5, 5) if swapped else (5, 5, 1, 1, 1)
    found = readable_by_truth(judged([4], [MISSING], [3], [3], [MISSING], truths=truths), SCALE)
    assert found is not None
    assert abs(found.value) == pytest.approx(2 / 3 - 1 / 2)
    assert (found.n, found.prompts) == (5, 2)


def test_the_ends_are_a_tenth_of_the_scale() -> None:
    for scale, inside, outside in (
        (SCALE, (4.5, 0.5), (4.49, 0.51)),
        (Scale(1.0, 11.0), (10.0, 2.0), (9.9, 2.1)),
    ):
        ends = edge_scores(judged([*inside, *outside]), scale)
        assert (ends["top_scores"].value, ends["bottom_scores"].value) == (0.25, 0.25)


def test_entropy_is_of_prompts_that_both_have_judged() -> None:
    first = judged(*[[1, 2, 3, 4]] * 6)
    later = [*judged(*[[1, 1, 2, 2]] * 6), Judged("other", candidate(0, [5, 5, 4, 3]))]
    found = score_entropy(later, [*first, Judged("another", candidate(0, [5, 0]))], SCALE)
    assert found is not None
    assert [found.value, found.low, found.high] == pytest.approx([0.5] * 3)  # the same in every resample
    assert found.prompts == 6


def test_the_most_frequent_score_and_the_ends_of_the_scale() -> None:
    of = judged([3, 3, 3, 5], [3, 0.4, None, 4.6])
    assert value(one_score(of, SCALE)) == pytest.approx(4 / 7)
    ends = edge_scores(of, SCALE)
    assert [ends["top_scores"].value, ends["bottom_scores"].value] == pytest.approx([2 / 7, 1 / 7])
    assert one_score(judged([None]), SCALE) is None and edge_scores(judged([None]), SCALE) == {}


def test_expected_scores_that_hardly_differ_are_one_score() -> None:
    assert value(one_score(judged([3.01, 2.98, 3.1, 2.9]), SCALE)) == 1.0


def test_entropy_against_the_first_model() -> None:
    first = judged([1, 2, 3, 4], [4, 3, 2, 1])
    assert value(score_entropy(first, first, SCALE)) == 1.0
    assert value(score_entropy(judged([1, 2, 1, 2], [1, 2, 1, 2]), first, SCALE)) == pytest.approx(0.5)
    assert value(score_entropy(judged([3, 3, 3, 3], [3, 3, 3, 3]), first, SCALE)) == 0.0
    assert score_entropy(first, judged([3, 3], [3, 3]), SCALE) is None  # M0's scores have no entropy
    assert score_entropy([], first, SCALE) is None


# --- meta-judgments ---


def test_verdicts_by_hand() -> None:
    """Judgments 0..2 score 4, 4, 2: the first pair flips, the others go to the higher and to the lower score."""
    verdicts = {(0, 1): 0, (1, 0): 1, (0, 2): 0, (2, 0): 0, (1, 2): 2, (2, 1): 2}
    found = verdict_figures(disputes([record([candidate(0, [4, 4, 2])], dispute(verdicts, 3))]))
    assert found["readable_verdicts"].value == 1.0
    assert found["first_position"].value == pytest.approx(4 / 6)
    assert found["position_flips"].value == pytest.approx(1 / 3)
    assert found["higher_score_wins"].value == 0.5


def test_verdicts_count_their_prompts() -> None:
    of = [record([candidate(0, [4, 2])], dispute({(0, 1): 0, (1, 0): 1}, 2), name) for name in ("a", "b", "b")]
    found = verdict_figures(disputes(of))
    assert {name: (figure.n, figure.prompts) for name, figure in found.items()} == {
        "readable_verdicts": (6, 2),
        "first_position": (6, 2),
        "position_flips": (3, 2),
    }


def test_the_higher_score_wins_where_scores_differ_and_the_order_does_not_matter() -> None:
    verdicts = {(0, 1): 0, (1, 0): 0, (0, 2): 0, (2, 0): 2, (1, 2): 1, (2, 1): 1}
    found = verdict_figures(disputes([record([candidate(0, [4, 4, 2])], dispute(verdicts, 3))]))
    assert (found["higher_score_wins"].value, found["higher_score_wins"].n) == (1.0, 1)


def test_of_constrained_winners_those_count_that_they_replaced() -> None:
    made = dispute({(0, 1): 0, (1, 0): 1}, 2)
    first, second = made.meta
    metas = (replace(first, written=MISSING), replace(second, written=Won(1)))
    found = verdict_figures(disputes([record([candidate(0, [4, 2])], replace(made, meta=metas))]))
    assert (found["readable_verdicts"].value, found["verdicts_as_written"].value) == (1.0, 0.5)


def test_ties_are_readable_and_decide_nothing() -> None:
    found = verdict_figures(disputes([record([candidate(0, [4, 2])], dispute({(0, 1): Tied(), (1, 0): None}, 2))]))
    assert set(found) == {"readable_verdicts"}
    assert (found["readable_verdicts"].value, found["readable_verdicts"].detail) == (0.5, "1 missing")


# --- answers and pairs ---


def truth_of(qualities: dict[str, float]) -> Callable[[Prompt, str], float]:
    return lambda _, answer: qualities[answer]


def test_prompts_that_lost_their_best_answer() -> None:
    best_lost = record([candidate(0, [5, None, None], text="best"), candidate(1, [2, 2, 2], text="bad")], name="a")
    kept = record([candidate(0, [5, 5, None], text="best"), candidate(1, [2, 2, 2], text="bad")], name="b")
    found = answer_figures([best_lost, kept], 2, truth_of({"best": 5, "bad": 1}))
    assert found["lost_best"].value == found["lost_best_by_truth"].value == 0.5
    assert found["left_out_answers"].value == 0.25


def test_a_tie_for_the_best_is_lost_only_as_a_whole() -> None:
    """By truth two answers are perfect, and one of them is kept; by the judgments the lost one is the best."""
    answers = [candidate(0, [5, None], text="one"), candidate(1, [3, 3], text="two"), candidate(2, [1, 1], text="bad")]
    found = answer_figures([record(answers)], 2, truth_of({"one": 5, "two": 5, "bad": 1}))
    assert (found["lost_best"].value, found["lost_best_by_truth"].value) == (1.0, 0.0)


def test_an_unreadable_prompt_has_no_best_answer_by_judgments_but_one_in_truth() -> None:
    found = answer_figures([record([candidate(0, [None, None], text="one")])], 2, truth_of({"one": 5}))
    assert "lost_best" not in found and found["lost_best_by_truth"].value == 1.0


def test_ties_and_cut_off_answers() -> None:
    answers = [candidate(0, [3, 3]), candidate(1, [2, 4]), replace(candidate(2, [5, 5]), finish="length")]
    found = answer_figures([record(answers)], 2)
    assert found["tied_answers"].value == found["answers_cut_off"].value == pytest.approx(1 / 3)


def test_answers_with_a_reward_are_not_left_out() -> None:
    found = answer_figures([record([replace(candidate(0, []), reward=1.0), replace(candidate(1, []), reward=2.0)])], 2)
    assert set(found) == {"tied_answers", "answers_cut_off"}


def test_answers_of_all_records_are_counted() -> None:
    of = [
        record([replace(candidate(0, []), reward=1.0), replace(candidate(1, []), reward=2.0)], name="a"),
        record([candidate(0, [3, 3]), candidate(1, [3, 3])], name="b"),
        record([candidate(0, [3, 3]), candidate(1, [2, None])], name="c"),
    ]
    found = answer_figures(of, 2, lambda prompt, answer: ord(prompt.id) + len(answer))
    assert (found["tied_answers"].value, found["tied_answers"].n) == (0.5, 2)
    assert (found["left_out_answers"].value, found["left_out_answers"].n) == (0.25, 4)
    assert found["lost_best"].n == found["lost_best_by_truth"].n == 2


def test_judge_pairs_have_a_share_and_lengths() -> None:
    answers = [candidate(0, [5, 1, 3], chars=30), candidate(1, [1, 1, 1], chars=20)]
    texts = ["xx" * 10, "x" * 10, "x" * 15]
    judgments = tuple(replace(each, text=text) for each, text in zip(answers[0].judgments_N, texts, strict=True))
    answers[0] = replace(answers[0], judgments_N=judgments)
    order = {(m, n): min(m, n) for m in range(3) for n in range(3) if m != n}  # 0 beats 1 beats 2
    pairs, _ = build_pairs([record(answers, dispute(order, 3))], PairRules(min_valid=1))
    found = pair_figures([record(answers), record([], name="none")], pairs, judge_pairs=True)
    assert [(pair.kind, len(pair.chosen), len(pair.rejected)) for pair in pairs] == [
        ("actor", 30, 20),
        ("judge", 20, 15),
    ]
    more = pair_figures([record(answers)], [pairs[0], *pairs], judge_pairs=True)
    assert more["judge_pair_share"].value == pytest.approx(1 / 3)
    assert {name: figure.value for name, figure in found.items()} == {
        "actor_pairs": 0.5,
        "judge_pairs": 0.5,
        "judge_pair_share": 0.5,
        "chosen_answer_length": 1.5,
        "chosen_judgment_length": pytest.approx(20 / 15),
    }


def test_pairs_per_prompt_and_their_lengths() -> None:
    good = [candidate(0, [5, 5], chars=30), candidate(1, [1, 1], chars=20)]
    of = [record(good, name="a"), record([candidate(0, [3, 3])], name="b")]
    pairs, _ = build_pairs(of, PairRules(judge_pairs=False))
    found = pair_figures(of, pairs, judge_pairs=False)
    assert (found["actor_pairs"].value, found["chosen_answer_length"].value) == (0.5, 1.5)
    assert not {"judge_pairs", "judge_pair_share", "chosen_judgment_length"} & set(found)
    assert pair_figures(of, pairs, judge_pairs=True)["judge_pairs"].value == 0.0


def test_length_ratios_weigh_texts_by_length() -> None:
    assert value(length_ratio([("a", 30, 10), ("b", 10, 30)])) == 1.0
    assert length_ratio([]) is None and length_ratio([("a", 3, 0)]) is None


# --- together ---


@settings(max_examples=30)
@given(st.lists(records(), max_size=4))
def test_figures_are_finite_and_lie_in_their_intervals(of: list[PromptRecord]) -> None:
    of = [replace(each, prompt=replace(each.prompt, id=f"p{number}")) for number, each in enumerate(of)]
    rules = PairRules(min_valid=2)
    pairs, _ = build_pairs(of, rules)
    found = record_figures(of, pairs, SCALE, rules.min_valid, True, lambda _, answer: float(len(answer) % 6))
    own = judged_answers(of)
    found |= evaluation_figures(own, own, own, disputes(of), SCALE)
    for name, figure in found.items():
        assert figure.low <= figure.value <= figure.high, name
        assert math.isfinite(figure.low) and math.isfinite(figure.high), name
        assert figure.n >= 1 and figure.prompts >= 0


def written(of: Sequence[Judged]) -> list[Judged]:
    """The same judgments as constrained ones that replaced another verdict."""
    return [
        replace(
            each,
            answer=replace(
                each.answer, judgments_N=tuple(replace(j, written=MISSING) for j in each.answer.judgments_N)
            ),
        )
        for each in of
    ]


def test_which_answers_the_figures_of_an_evaluation_are_of() -> None:
    own = written(judged([4, MISSING], [5, 2], truths=(5, 1)))
    anchors = [replace(each, reference=float(n)) for n, each in enumerate(judged([3, 1], [MISSING, 3], truths=(5, 2)))]
    first = judged([3, 2], [1, 4])
    compared = tuple(disputes([record([candidate(0, [4, 2])], dispute({(0, 1): 0, (1, 0): 1}, 2))]))
    none: list[Judged] = []
    for of, others, by_first in ((own, none, none), (anchors, anchors, first)):
        everything = [*own, *others]
        due = {
            "readable_judgments": readable_judgments(everything),
            "readable_as_written": readable_as_written(everything),
            "readable_by_score": readable_by_score(of),
            "readable_by_truth": readable_by_truth(everything, SCALE),
            "one_score": one_score(of, SCALE),
            "score_entropy": score_entropy(others, by_first, SCALE),
            **edge_scores(own, SCALE),
            **verdict_figures(compared),
        }
        assert None not in (due["one_score"], due["readable_by_score"], due["readable_by_truth"])
        found = evaluation_figures(own, others, by_first, compared, SCALE)
        assert found == {name: figure for name, figure in due.items() if figure is not None}


def test_the_figures_of_an_iteration() -> None:
    answers = [[candidate(0, [5, None, 3]), candidate(1, [1, 2, 1])], [candidate(0, [4, 4, None], text="best")]]
    of = [record(each, name=name) for name, each in zip("ab", answers, strict=True)]
    pairs, _ = build_pairs(of, PairRules(judge_pairs=False))

    def truth(_: Prompt, answer: str) -> float:
        return 5.0 if answer == "best" else 1.0

    own = judged_answers(of, truth)
    judging = {
        "readable_judgments": readable_judgments(own),
        "readable_by_score": readable_by_score(own),
        "readable_by_truth": readable_by_truth(own, SCALE),
        **edge_scores(own, SCALE),
    }
    assert None not in judging.values()
    assert record_figures(of, pairs, SCALE, 2, False, truth) == {
        **judging,
        **answer_figures(of, 2, truth),
        **pair_figures(of, pairs, False),
    }
    assert "readable_as_written" in record_figures(
        [replace(each, candidates_K=tuple(w.answer for w in written(judged_answers([each])))) for each in of],
        pairs,
        SCALE,
        2,
        False,
    )
    assert record_figures(of, pairs, SCALE, 2, True)["judge_pairs"].value == 0.0


def test_no_records_have_no_figures() -> None:
    assert record_figures([], (), SCALE, 2, True) == {}
    assert evaluation_figures((), (), (), (), SCALE) == {}


def test_the_first_model_is_compared_with_none() -> None:
    own = judged([4, 3], [2, None])
    assert "score_entropy" not in evaluation_figures(own, (), (), (), SCALE)
    later = evaluation_figures(own, own, own, (), SCALE)
    assert later["score_entropy"].value == 1.0
    assert later["readable_judgments"].n == 8  # its own answers and M0's


def test_a_share_of_nothing_is_absent() -> None:
    assert share([]) is None
