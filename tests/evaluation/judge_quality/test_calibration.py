"""Calibration, agreement among judges and macro averages, against scikit-learn, NumPy and hand-made examples."""

from __future__ import annotations

import json
from pathlib import Path

import builders  # noqa: F401  (sets hypothesis up)
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import lines
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, precision_recall_fscore_support
from typer.testing import CliRunner

from metareward.cli.evaluate import evaluate_app
from metareward.errors import UserError
from metareward.evaluation.judge_quality.calibration import (
    BINS,
    calibration,
    verdict_calibration,
    write_reliability_plot,
)
from metareward.evaluation.judge_quality.data import (
    Item,
    Pair,
    PairVerdicts,
    Response,
    Winner,
    verdicts_from_scores,
)
from metareward.evaluation.judge_quality.pairs import JudgedPair, pair_quality
from metareward.evaluation.judge_quality.tables import krippendorff_alpha
from metareward.types import Message

# Off the edges between bins, which scikit-learn counts to the bin below.
PROBABILITIES = st.integers(0, 999).map(lambda n: (n + 0.5) / 1000)


@given(st.lists(st.tuples(PROBABILITIES, st.booleans()), min_size=1, max_size=60))
def test_bins_and_brier_are_scikit_learn_s(drawn: list[tuple[float, bool]]) -> None:
    predicted, observed = map(list, zip(*drawn, strict=True))
    found = calibration(predicted, observed)
    assert found is not None
    true, mean = calibration_curve(observed, predicted, n_bins=BINS)
    assert [each.observed for each in found.bins] == pytest.approx(list(true))
    assert [each.predicted for each in found.bins] == pytest.approx(list(mean))
    assert found.brier == pytest.approx(brier_score_loss(observed, predicted, labels=[False, True]))
    assert sum(each.n for each in found.bins) == found.n == len(drawn)
    assert 0 <= found.ece <= 1 and 0.5 <= found.confidence <= 1


@given(st.lists(st.tuples(PROBABILITIES, st.booleans()), min_size=1, max_size=40))
def test_ece_is_the_mean_gap_by_hand(drawn: list[tuple[float, bool]]) -> None:
    gaps = 0.0
    for place in range(BINS):
        inside = [(p, y) for p, y in drawn if place / BINS <= p < (place + 1) / BINS]
        gaps += abs(sum(p for p, _ in inside) - sum(y for _, y in inside))
    found = calibration([p for p, _ in drawn], [y for _, y in drawn])
    assert found is not None and found.ece == pytest.approx(gaps / len(drawn))


def test_a_judge_that_means_its_probabilities_is_calibrated() -> None:
    generator = np.random.default_rng(1)
    p_N = generator.random(20_000)
    honest = calibration(list(p_N), list(generator.random(20_000) < p_N))
    sure = calibration(list((p_N > 0.5).astype(float)), list(generator.random(20_000) < p_N))
    assert honest is not None and sure is not None
    assert honest.ece < 0.02 and honest.brier == pytest.approx(1 / 6, abs=0.01)
    assert sure.ece == pytest.approx(0.25, abs=0.02) and sure.confidence == 1
    assert calibration([], []) is None


def test_probabilities_are_about_output_1_in_both_orders() -> None:
    labels: dict[str, Winner] = {"a": 1, "b": 2, "c": 0}
    verdicts = [
        PairVerdicts("a", (1, 1), (0.9, 0.7)),
        PairVerdicts("b", (1, None), (0.6, None)),
        PairVerdicts("c", (0, 0), (0.5, 0.5)),  # no output is better
        PairVerdicts("unlabelled", (1,), (1.0,)),
    ]
    found = verdict_calibration(labels, verdicts)
    assert found is not None and found.n == 3
    assert found.brier == pytest.approx((0.1**2 + 0.3**2 + 0.6**2) / 3)


def test_the_probability_of_a_scoring_judge_is_the_share_of_its_pairs_of_scores() -> None:
    def pair(*scores: tuple[float | None, ...]) -> Pair:
        responses = tuple(Response("x", None, each) for each in scores)
        return Pair(Item("p", (Message("user", "?"),), responses), 1, "", None)

    cases = [pair((5.0, 3.0), (3.0, None)), pair((1.0,), (2.0,)), pair((None,), (1.0,)), pair((), ())]
    assert [verdicts_from_scores([each])[0].probabilities for each in cases] == [(0.75,), (0.0,), (None,), (None,)]


winners = st.sampled_from([None, 0, 1, 2])


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2]), winners), min_size=1, max_size=30))
def test_macro_averages_are_scikit_learn_s(drawn: list[tuple[Winner, Winner | None]]) -> None:
    found = pair_quality([JudgedPair(str(i), label, (said,), (1, 2)) for i, (label, said) in enumerate(drawn)])
    labels, said = ([str(each) for each in column] for column in zip(*drawn, strict=True))
    classes = sorted((set(labels) | set(said)) - {"None"})
    expected = precision_recall_fscore_support(labels, said, labels=classes, average="macro", zero_division=0)
    assert (found.macro_precision, found.macro_recall, found.macro_f1) == pytest.approx(expected[:3])


def verdicts(*winners: Winner | None) -> list[PairVerdicts]:
    return [PairVerdicts(str(i), (winner,)) for i, winner in enumerate(winners)]


def test_krippendorff_s_alpha() -> None:
    """By the definition: 1 - observed / expected disagreement, over pairs of values within units."""
    one, other = verdicts(1, 1, 2, 2, 1), verdicts(1, 2, 2, 2, None)
    # Coincidences of four units: (1,1) 2, (2,2) 4, (1,2) and (2,1) 1 each; values: 1 three times, 2 five times.
    assert krippendorff_alpha([one, other]) == pytest.approx(1 - 7 * 2 / (3 * 5 * 2))
    assert krippendorff_alpha([one, one]) == 1
    assert krippendorff_alpha([one]) is None and krippendorff_alpha([]) is None
    assert krippendorff_alpha([verdicts(1, 1), verdicts(1, 1)]) is None  # nothing to tell apart
    assert krippendorff_alpha([verdicts(1, None), verdicts(None, 2)]) is None  # nothing judged by both


def test_evaluate_shows_alpha_and_calibration_and_draws_a_plot(tmp_path: Path) -> None:
    rows = [{"id": f"p{i}", "input": "q", "output_1": "a", "output_2": "bb", "label": 1 + i % 2} for i in range(4)]
    pairs = lines(tmp_path / "p.jsonl", rows)
    given = [
        {"id": f"p{i}", "evaluator": name, "winner_original_order": 1 + i % 2, "probability_original_order": p}
        for name, p in (("$sure$", 0.99), ("unsure", 0.5))
        for i in range(4)
    ]
    words = ["judge-quality", "--pairs", pairs, "--verdicts", lines(tmp_path / "v.jsonl", given)]
    words += ["--plot", tmp_path / "new" / "plot.svg", "--json", tmp_path / "out.json"]
    told = CliRunner().invoke(evaluate_app, [str(each) for each in words])
    assert told.exit_code == 0, told.exception
    assert "Krippendorff's alpha among the judges: 1.000." in told.output and "ECE" in told.output
    sure, unsure = json.loads((tmp_path / "out.json").read_text())["judges"][:2]
    assert sure["calibration"]["ece"] == pytest.approx(0.49) and unsure["calibration"]["ece"] == 0
    assert (tmp_path / "new" / "plot.svg").read_text().startswith("<?xml")
    told = CliRunner().invoke(evaluate_app, ["judge-quality", "--pairs", str(pairs), "--plot", "x.svg"])
    assert "--plot: no judge gave probabilities" in str(told.exception)
    with pytest.raises(UserError, match=r"x\.tex: no format of that name; fix: end it in \.svg or \.png"):
        write_reliability_plot(Path("x.tex"), {})
