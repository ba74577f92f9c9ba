from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from builders import candidate, judgment, meta, prompt, readings
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from metareward.evaluation.held_out import Comparison, HeldOut, held_out_metrics, score_histogram
from metareward.method.stats import mean_interval
from metareward.types import Candidate, MetaJudgment, Prompt, Tied, Truncated, Unparsed


class Truth:
    """An answer's true score is its length; a judgment is wrong by how far its score is off."""

    full_score = 5.0

    def answer_score(self, prompt: Prompt, answer: str) -> float:
        assert prompt.messages
        return float(min(len(answer), 5))

    def judgment_error(self, prompt: Prompt, answer: str, judgment: str, score: float) -> tuple[float, ...]:
        assert judgment
        return (abs(score - self.answer_score(prompt, answer)),)


def held_out(
    name: str, own: Sequence[Candidate], anchors: Sequence[Candidate] = (), comparisons: Sequence[Comparison] = ()
) -> HeldOut:
    return HeldOut(prompt(name=name), tuple(own), tuple(anchors) or tuple(own), tuple(comparisons))


# M0's answers: true scores 2 and 4. Its judgments: 2 (right), 4, unreadable; 4 (right), 5, 1.
FIRST = held_out("a", [candidate(0, [2, 4, None], text="aa")])
SECOND = held_out("b", [candidate(0, [4, 5, 1], text="bbbb")])
ANCHORS = {"a": FIRST, "b": SECOND}


def means(records: Sequence[HeldOut], truth: Truth | None = None) -> dict[str, float]:
    return {name: found["mean"] for name, found in held_out_metrics(records, ANCHORS, truth, 0).items()}


def counts(records: Sequence[HeldOut], truth: Truth | None = None) -> dict[str, float]:
    return {name: found["n"] for name, found in held_out_metrics(records, ANCHORS, truth, 0).items()}


def test_the_metrics_without_an_oracle() -> None:
    assert means([FIRST, SECOND]) == {
        "answer_chars": 3.0,
        "answer_truncated": 0.0,
        "answer_self_score": pytest.approx((2 + 4 + 4 + 5 + 1) / 5),
        "anchor_score": pytest.approx((2 + 4 + 4 + 5 + 1) / 5),
        "judgment_valid": pytest.approx(5 / 6),
        "judgment_chars": 10.0,
    }


def test_the_metrics_by_an_oracle() -> None:
    found = means([FIRST, SECOND], Truth())
    assert found["answer_quality"] == 3.0
    assert found["answer_perfect"] == 0.0
    assert found["judgment_exact"] == pytest.approx(2 / 5)
    # ranks of 2, 4 | 4, 5, 1 are 2, 3.5, 3.5, 5, 1; those of the truth 1.5, 1.5, 4, 4, 4
    assert found["judgment_rank_correlation"] == pytest.approx(1.25 / math.sqrt(9.5 * 7.5))
    assert found["judgment_mean_rank_correlation"] == pytest.approx(1.0)  # 3 and 10/3


def test_answer_perfect_counts_only_the_top_score() -> None:
    own = [candidate(n, [3], text="x" * chars) for n, chars in enumerate((5, 7, 4, 0))]
    found = means([held_out("a", own)], Truth())
    assert found["answer_perfect"] == 2 / 4
    assert found["answer_quality"] == (5 + 5 + 4 + 0) / 4


@pytest.mark.parametrize("reading", [None, Unparsed("ambiguous"), Unparsed("out_of_range"), Truncated()])
def test_unreadable_judgments_change_only_judgment_valid(reading: Unparsed | Truncated | None) -> None:
    with_it = [held_out("a", [candidate(0, [3, 3], text="aaa")]), held_out("b", [candidate(0, [1, reading], text="b")])]
    without = [held_out("a", [candidate(0, [3, 3], text="aaa")]), held_out("b", [candidate(0, [1], text="b")])]
    one, other = means(with_it, Truth()), means(without, Truth())
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} == {"judgment_valid"}
    assert one["judgment_valid"] == 3 / 4


def test_repeated_answers_count_each_time() -> None:
    own = [candidate(0, [5], text="aaaa"), candidate(1, [5], text="aaaa"), candidate(2, [1], text="a")]
    record = held_out("a", own)
    assert counts([record], Truth())["answer_quality"] == 3
    assert means([record], Truth())["answer_quality"] == 3.0


def test_own_answers_and_anchors_have_separate_metrics() -> None:
    record = held_out("a", [candidate(0, [5, 5], text="a" * 40)], [candidate(0, [1, 2], text="aa")])
    found = means([record], Truth())
    assert found["answer_chars"] == 40
    assert (found["answer_self_score"], found["anchor_score"]) == (5.0, 1.5)
    assert found["judgment_exact"] == 0.5


def compared(*verdicts: Tied | int | None) -> HeldOut:
    """Judgments 0 (score 2, right) and 1 (score 4, wrong by 2) of M0's answer, 0 shown first."""
    return held_out("a", FIRST.own, comparisons=[Comparison(0, meta(0, 1, verdict)) for verdict in verdicts])


def test_a_meta_judge_is_right_when_the_better_judgment_wins() -> None:
    found = means([compared(0, 0, 1, Tied())], Truth())
    assert found["meta_accuracy"] == (1 + 1 + 0 + 0.5) / 4
    assert found["meta_valid"] == 1.0
    assert found["meta_first_position"] == pytest.approx(2 / 3)  # a tie has no winner


def test_the_better_judgment_may_be_the_second_one_or_the_only_readable_one() -> None:
    def accuracy(*metas: MetaJudgment) -> float:
        own = [candidate(0, [2, 4, None], text="aa"), candidate(1, [4, 2], text="aaa")]  # the last are as good
        record = held_out(
            "a", own, comparisons=[Comparison(1, meta(0, 1, 0)), *(Comparison(0, each) for each in metas)]
        )
        return held_out_metrics([record], {"a": record}, Truth(), 0)["meta_accuracy"]["mean"]

    assert [accuracy(meta(1, 0, winner)) for winner in (0, 1)] == [1.0, 0.0]
    assert [accuracy(meta(0, 1, winner)) for winner in (0, 1)] == [1.0, 0.0]
    assert [accuracy(meta(2, 1, winner)) for winner in (1, 2)] == [1.0, 0.0]
    assert accuracy(meta(1, 0, 0), meta(0, 1, 1)) == 0.5


def test_unreadable_meta_judgments_count_only_in_meta_valid() -> None:
    record = compared(0, None)
    assert means([record], Truth())["meta_valid"] == 0.5
    assert counts([record], Truth())["meta_accuracy"] == counts([record])["meta_first_position"] == 1


def test_pairs_of_equally_good_judgments_are_not_in_meta_accuracy() -> None:
    own = [candidate(0, [2, 4], text="aaa")]  # each is off by one
    record = held_out("a", own, comparisons=[Comparison(0, meta(0, 1, 0))])
    found = held_out_metrics([record], {"a": record}, Truth(), 0)
    assert "meta_accuracy" not in found
    assert found["meta_valid"]["n"] == 1


def test_meta_accuracy_compares_with_the_judgments_of_m0() -> None:
    """Its own judgments of the anchors have other scores; the ones compared are M0's."""
    anchors = [candidate(0, [5, 2, 0], text="aa")]
    record = held_out("a", [candidate(0, [1], text="new")], anchors, [Comparison(0, meta(0, 1, 0))])
    assert means([record], Truth())["meta_accuracy"] == 1.0


def test_undefined_metrics_are_absent() -> None:
    assert held_out_metrics([], ANCHORS, Truth(), 0) == {}
    silent = held_out("a", [candidate(0, [None, Truncated()], text="aa")])
    found = held_out_metrics([silent], ANCHORS, Truth(), 0)
    assert not {"anchor_score", "judgment_exact", "judgment_rank_correlation", "meta_valid"} & found.keys()
    assert found["judgment_valid"]["mean"] == 0.0


def test_constant_scores_have_no_rank_correlation() -> None:
    records = [held_out(name, [candidate(0, [3, 3], text="a" * chars)]) for name, chars in (("a", 2), ("b", 4))]
    assert "judgment_rank_correlation" not in held_out_metrics(records, ANCHORS, Truth(), 0)


def test_the_histogram_counts_single_scores() -> None:
    record = held_out("a", [candidate(0, [4.5, 4.5, None], text="a")], [candidate(0, [5, 0, Truncated()], text="b")])
    assert score_histogram([record, record]) == {"own": {"4.5": 4}, "anchor": {"0": 2, "5": 2}}
    assert score_histogram([]) == {"own": {}, "anchor": {}}


def test_intervals_resample_prompts_not_single_values() -> None:
    """Ten equal answers to one prompt are as sure as one."""
    few = [held_out(name, [candidate(0, [3], text="a" * chars)]) for name, chars in (("a", 1), ("b", 3), ("c", 5))]
    many = [held_out(each.prompt.id, each.own * 10) for each in few]
    one, ten = (
        held_out_metrics(few, ANCHORS, None, 0)["answer_chars"],
        held_out_metrics(many, ANCHORS, None, 0)["answer_chars"],
    )
    assert (one["low"], one["high"]) == (ten["low"], ten["high"])
    assert one["low"] < one["mean"] < one["high"]


def test_intervals_are_of_the_seed() -> None:
    lengths = [n * n for n in range(1, 12)]
    records = [held_out(str(chars), [candidate(0, [3], text="a" * chars)]) for chars in lengths]
    ends = set()
    for seed in range(3):
        due = mean_interval(lengths, [str(chars) for chars in lengths], seed)
        found = held_out_metrics(records, ANCHORS, None, seed)["answer_chars"]
        assert found == {"mean": due.mean, "low": due.low, "high": due.high, "n": 11}
        ends.add((due.low, due.high))
    assert len(ends) == 3


def test_rank_correlations_resample_prompts() -> None:
    scores = ([1, 2, 4], [2, 2], [3, 5, 5, 4], [1, 3], [5, 4])
    records = [held_out(f"p{n}", [candidate(0, own, text="a" * n)]) for n, own in enumerate(scores)]
    by_id = {each.prompt.id: each for each in records}
    rows = [[(score, min(n, 5)) for score in own] for n, own in enumerate(scores)]

    def correlation(sample: Sequence[tuple[int, int]]) -> float:
        return float(spearmanr([given for given, _ in sample], [truth for _, truth in sample]).statistic)

    whole = correlation([*chain(*rows)])
    for seed in (0, 1):
        generator, drawn = np.random.default_rng(seed), [whole]
        for _ in range(400):
            sample = [row for prompt in generator.integers(5, size=5) for row in rows[prompt]]
            if all(len(set(column)) > 1 for column in zip(*sample, strict=True)):
                drawn.append(correlation(sample))
        due = [whole, *np.quantile(drawn, [0.025, 0.975])]
        found = held_out_metrics(records, by_id, Truth(), seed)["judgment_rank_correlation"]
        assert [found[name] for name in ("mean", "low", "high")] == pytest.approx(due, abs=0.002)
        assert found["n"] == 13


def test_rewards_and_cut_off_answers() -> None:
    own = [replace(candidate(n, [3]), reward=reward) for n, reward in enumerate((0.5, None, 2.0))]
    found = means([held_out("a", [*own, replace(candidate(3, [3]), finish="length")])])
    assert (found["answer_reward"], found["answer_truncated"]) == (1.25, 0.25)


@st.composite
def worlds(draw: st.DrawFn) -> list[HeldOut]:
    records = []
    for number in range(draw(st.integers(1, 5))):
        answers = [
            Candidate(
                index,
                draw(st.text(max_size=6)),
                "stop",
                1,
                tuple(judgment(n, each) for n, each in enumerate(draw(st.lists(readings, max_size=4)))),
            )
            for index in range(draw(st.integers(1, 3)))
        ]
        records.append(held_out(f"p{number}", answers))
    return records


@settings(max_examples=8)
@given(worlds(), st.integers(0, 3))
def test_metrics_are_finite_inside_their_interval_and_deterministic(records: list[HeldOut], seed: int) -> None:
    anchors = {record.prompt.id: record for record in records}
    found = held_out_metrics(records, anchors, Truth(), seed)
    for figures in found.values():
        assert figures["n"] > 0
        assert figures["low"] <= figures["mean"] <= figures["high"]
    json.dumps(found, allow_nan=False)
    assert found == held_out_metrics(records, anchors, Truth(), seed)
