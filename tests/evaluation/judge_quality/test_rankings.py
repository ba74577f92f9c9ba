"""A scoring judge against human rankings: the metrics by hand and against pair-by-pair counting."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import builders  # noqa: F401  (sets hypothesis up)
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import lines, ranked_trees
from scipy.stats import kendalltau, spearmanr

from metareward.errors import UserError
from metareward.evaluation.judge_quality.data import Item, Response, read_rankings
from metareward.evaluation.judge_quality.rankings import (
    chance_ranking_quality,
    ranking_quality,
    score_histogram,
    scored_by_length,
)
from metareward.evaluation.judge_quality.tables import rankings_table
from metareward.types import Message

SAID = (Message("user", "Why?"),)


def item(name: str, ranks: Sequence[float], scores: Sequence[float | None]) -> Item:
    responses = [
        Response("x" * (10 + i), rank, (score,)) for i, (rank, score) in enumerate(zip(ranks, scores, strict=True))
    ]
    return Item(name, SAID, tuple(responses))


@pytest.mark.parametrize("judge", [len, lambda text: min(5, len(text) // 150), lambda text: 3])
def test_the_metrics_are_those_of_counting(tmp_path: Path, judge: Callable[[str], float]) -> None:
    """Pair by pair, and with SciPy's correlations."""
    items = [
        replace(each, responses=tuple(replace(r, scores_N=(float(judge(r.text)),)) for r in each.responses))
        for each in read_rankings(ranked_trees(tmp_path / "trees.jsonl", trees=15))
    ]
    credits, exact, fives, best_of, rank_correlations, taus = [], [], [], [], [], []
    for each in items:
        scores, ranks = [r.score or 0.0 for r in each.responses], [r.rank or 0.0 for r in each.responses]
        leads = [(scores[a] - scores[b]) * (ranks[b] - ranks[a]) for a, b in combinations(range(3), 2)]
        credits += [0.5 if lead == 0 else float(lead > 0) for lead in leads]
        exact.append(all(lead > 0 for lead in leads))
        fives += [rank == 0 for score, rank in zip(scores, ranks, strict=True) if score >= 5]
        top = [rank == 0 for score, rank in zip(scores, ranks, strict=True) if score == max(scores)]
        best_of.append(sum(top) / len(top))
        if len(set(scores)) > 1:
            quality = [-rank for rank in ranks]
            rank_correlations.append(spearmanr(scores, quality).statistic)
            taus.append(kendalltau(scores, quality).statistic)
    found = ranking_quality(items)
    assert (found.n_prompts, found.n_pairs, found.n_tied_pairs) == (30, 90, credits.count(0.5))
    assert found.pairwise_accuracy_ties_half == pytest.approx(fmean(credits))
    decided = [credit for credit in credits if credit != 0.5]
    assert found.pairwise_accuracy_without_ties == (pytest.approx(fmean(decided)) if decided else None)
    assert found.exact_match == pytest.approx(fmean(exact))
    assert (found.five_best, found.n_fives) == (pytest.approx(fmean(fives)) if fives else None, len(fives))
    assert found.best_of_match_ties_shared == pytest.approx(fmean(best_of))
    assert found.mean_spearman_defined == (pytest.approx(fmean(rank_correlations)) if rank_correlations else None)
    assert found.mean_kendall_tau_b_defined == (pytest.approx(fmean(taus)) if taus else None)


def test_the_length_only_judge_stands_in_every_table(tmp_path: Path) -> None:
    items = read_rankings(ranked_trees(tmp_path / "trees.jsonl"))
    rows = dict(rankings_table(items, "mine", 5.0).rows)
    assert list(rows) == ["length only", "chance"]  # the file holds no scores of a judge
    assert rows["length only"]["pairwise_accuracy_ties_half"] == pytest.approx(7 / 9)  # in every third row 1 of 3
    assert rows["length only"]["five_best"] is None
    assert rows["chance"]["pairwise_accuracy_ties_half"] == 0.5
    assert list(dict(rankings_table(scored_by_length(items), "mine", 5.0).rows)) == ["mine", "length only", "chance"]


def test_the_metrics_by_hand() -> None:
    items = [item("a", [0, 1, 2], [5, 5, 1]), item("b", [1, 0], [5, 3]), item("c", [0, 1], [4, None])]
    found = ranking_quality(items)
    # a: pairs tied, right, right; b: wrong; c has one readable score and is out
    assert (found.n_prompts, found.n_pairs, found.n_tied_pairs) == (2, 4, 1)
    assert found.pairwise_accuracy_ties_half == 2.5 / 4
    assert found.pairwise_accuracy_without_ties == 2 / 3
    assert found.exact_match == 0
    assert (found.five_best, found.n_fives) == (1 / 3, 3)
    assert found.best_of_match_ties_shared == 0.25
    assert found.n_unreadable == 1


def test_the_mean_is_that_of_the_readable_judgments() -> None:
    assert Response("", None, (4.0, None, 5.0)).score == 4.5
    assert Response("", None, (None,)).score is Response("").score is None


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, 0.0, 2.5, 5.0])), max_size=5), max_size=5))
def test_incomplete_data_gives_numbers_or_none_never_nan(drawn: list[list[tuple[int, float | None]]]) -> None:
    items = [item(str(i), [rank for rank, _ in row], [score for _, score in row]) for i, row in enumerate(drawn)]
    for _, measures in rankings_table(items, "mine", 5.0).rows:
        json.dumps(measures, allow_nan=False)  # raises for NaN


@given(st.lists(st.permutations(range(4)), min_size=1, max_size=4))
def test_negated_scores_reverse_the_metrics(ranks: list[list[int]]) -> None:
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
    found, chance = asdict(ranking_quality(items)), chance_ranking_quality(items)
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
def test_invalid_rankings_are_refused(tmp_path: Path, row: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        read_rankings(lines(tmp_path / "a.jsonl", [row]))


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "p", "responses": []}
    with pytest.raises(UserError, match="repeats"):
        read_rankings(lines(tmp_path / "a.jsonl", [row, row]))
