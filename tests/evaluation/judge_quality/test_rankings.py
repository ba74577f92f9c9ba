"""A grading judge against human rankings: the expected values of three toy judges, and the rules by hand."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import builders  # noqa: F401  (sets hypothesis up)
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import lines

from metareward.errors import UserError
from metareward.evaluation.judge_quality.data import Item, Response, read_rankings
from metareward.evaluation.judge_quality.rankings import (
    chance_ranking_quality,
    ranking_quality,
    score_histogram,
    scored_by_length,
)
from metareward.evaluation.judge_quality.run import rankings_table
from metareward.types import Message

SAID = (Message("user", "Why?"),)


def item(name: str, ranks: Sequence[float], scores: Sequence[float | None]) -> Item:
    responses = [
        Response("x" * (10 + i), rank, (score,)) for i, (rank, score) in enumerate(zip(ranks, scores, strict=True))
    ]
    return Item(name, SAID, tuple(responses))


TOY: dict[str, Callable[[str], float]] = {
    "char_length": lambda text: float(len(text)),
    "length_bucket_0_5": lambda text: float(min(5, len(text) // 200)),
    "constant_3": lambda text: 3.0,
}


@pytest.mark.parametrize("judge", TOY)
def test_the_toy_judges_have_their_expected_values(judge_data: Path, judge: str) -> None:
    items = read_rankings(judge_data / "oasst_rankings.jsonl")
    graded = [
        replace(each, responses=tuple(replace(r, scores_N=(TOY[judge](r.text),)) for r in each.responses))
        for each in items
    ]
    found = ranking_quality(graded).as_dict()
    expected = json.loads((judge_data / "oasst_expected_baseline_judges.json").read_text(encoding="utf-8"))[judge]
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-9)), name


def test_the_length_only_judge_stands_in_every_table(judge_data: Path) -> None:
    items = read_rankings(judge_data / "oasst_rankings.jsonl")
    rows = dict(rankings_table(items, "mine", 5.0).rows)
    assert list(rows) == ["length only", "chance"]  # the file holds no scores of a judge
    assert rows["length only"]["pairwise_accuracy_ties_half"] == pytest.approx(0.6957, abs=1e-4)
    assert rows["length only"]["five_best"] is None
    assert rows["chance"]["pairwise_accuracy_ties_half"] == 0.5
    assert list(dict(rankings_table(scored_by_length(items), "mine", 5.0).rows)) == ["mine", "length only", "chance"]


def test_the_rules_by_hand() -> None:
    items = [item("a", [0, 1, 2], [5, 5, 1]), item("b", [1, 0], [5, 3]), item("c", [0, 1], [4, None])]
    found = ranking_quality(items)
    # a: pairs tied, right, right; b: wrong; c has one readable score and is out
    assert (found.n_prompts, found.n_pairs, found.n_tied_pairs) == (2, 4, 1)
    assert found.pairwise_accuracy_ties_half == 2.5 / 4
    assert found.pairwise_accuracy_without_ties == 2 / 3
    assert found.exact_match == 0
    assert (found.five_best, found.n_fives) == (1 / 3, 3)
    assert found.best_of_match_ties_shared == 0.25
    assert found.n_unparsable == 1


def test_the_mean_is_that_of_the_readable_judgments() -> None:
    assert Response("", None, (4.0, None, 5.0)).score == 4.5
    assert Response("", None, (None,)).score is Response("").score is None


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, 0.0, 2.5, 5.0])), max_size=5), max_size=5))
def test_a_partial_set_gives_numbers_or_none_never_nan(drawn: list[list[tuple[int, float | None]]]) -> None:
    items = [item(str(i), [rank for rank, _ in row], [score for _, score in row]) for i, row in enumerate(drawn)]
    for _, measures in rankings_table(items, "mine", 5.0).rows:
        json.dumps(measures, allow_nan=False)  # raises for NaN


@given(st.lists(st.permutations(range(4)), min_size=1, max_size=4))
def test_turning_the_scores_round_turns_the_measures_round(ranks: list[list[int]]) -> None:
    up = [item(str(i), row, [float(rank) for rank in row]) for i, row in enumerate(ranks)]
    down = [item(str(i), row, [-float(rank) for rank in row]) for i, row in enumerate(ranks)]
    worst, best = ranking_quality(up), ranking_quality(down)
    assert (best.pairwise_accuracy_ties_half, worst.pairwise_accuracy_ties_half) == (1, 0)
    assert (best.exact_match, worst.exact_match) == (1, 0)
    assert best.mean_spearman_defined == pytest.approx(1) and worst.mean_kendall_tau_b_defined == pytest.approx(-1)


def test_chance_is_what_random_scores_reach_on_average() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    shapes = [[0, 1, 2], [0, 1], [0, 0, 1, 2]] * 400
    items = [item(str(i), ranks, generator.permutation(len(ranks)).tolist()) for i, ranks in enumerate(shapes)]
    found, chance = ranking_quality(items).as_dict(), chance_ranking_quality(items)
    for name in ("pairwise_accuracy_ties_half", "exact_match", "best_of_match_ties_shared", "mean_spearman_defined"):
        assert found[name] == pytest.approx(chance[name], abs=0.05), name


def test_single_scores_are_counted() -> None:
    responses = (Response("", 0, (5.0, 4.5, None)), Response("", 1, (5.0, 0.0)))
    assert score_histogram([Item("a", SAID, responses)]) == {"0": 1, "4.5": 1, "5": 2}
    assert list(score_histogram([Item("a", SAID, responses)])) == ["0", "4.5", "5"]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"id": "a", "responses": []}, 'field "prompt": is missing'),
        ({"id": "a", "prompt": "p", "responses": [{"rank": 1}]}, 'responses.0.: field "text": is missing'),
        ({"id": "a", "conversation": [{"role": "x", "text": "y"}], "responses": []}, "is 'x'"),
        (
            {
                "id": "a",
                "prompt": "p",
                "responses": [{"text": "a"}],
                "comparisons": [{"first": 0, "second": 1, "winner": 0}],
            },
            "not about two responses",
        ),
    ],
)
def test_rankings_that_don_t_fit_are_told(tmp_path: Path, row: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        read_rankings(lines(tmp_path / "a.jsonl", [row]))


def test_an_id_stands_for_one_row(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "p", "responses": []}
    with pytest.raises(UserError, match="repeats"):
        read_rankings(lines(tmp_path / "a.jsonl", [row, row]))
