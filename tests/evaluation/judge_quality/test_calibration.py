"""Calibration, agreement among judges and macro averages, against scikit-learn, NumPy and hand-made examples."""

from __future__ import annotations

import json
import math
import re
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
from metareward.engines.base import Engine, ScriptedEngine
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
from metareward.types import Completion, Message, Messages, Sampling, Step, TopLogprob

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


chances = st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6).map(lambda each: [p / sum(each) for p in each])


@given(st.lists(chances, min_size=1, max_size=3), st.lists(chances, min_size=1, max_size=3))
def test_with_distributions_it_is_that_of_the_scores_that_could_have_been(
    one: list[list[float]], other: list[list[float]]
) -> None:
    def response(given: list[list[float]]) -> Response:
        means = tuple(sum(s * p for s, p in enumerate(each)) for each in given)
        known = tuple({float(s): p for s, p in enumerate(each)} for each in given)
        return Response("x", None, (*means, None), distributions_N=known)

    pair = Pair(Item("p", (Message("user", "?"),), (response(one), response(other))), 1, "", None)
    ((probability,),) = (each.probabilities for each in verdicts_from_scores([pair]))
    by_hand = [
        sum(a[s] * b[t] * (1.0 if s > t else 0.5 if s == t else 0.0) for s in range(6) for t in range(6))
        for a in one
        for b in other
    ]
    assert probability == pytest.approx(sum(by_hand) / len(by_hand))


def test_one_expected_score_shows_that_a_judge_means_its_probabilities(tmp_path: Path) -> None:
    """A judge gives a 5 with the probability in the output, else a 1: output 1 is better with (1 + a - b) / 2.

    Ten pairs to each probability, labelled in just these proportions.
    """
    levels = ((0.95, 0.15, 9), (0.75, 0.35, 7), (0.25, 0.25, 5), (0.15, 0.75, 2))
    rows = [
        {"id": f"{a} {i}", "input": f"{i}?", "output_1": f"<{a}>", "output_2": f"<{b}>", "label": 1 if i < wins else 2}
        for a, b, wins in levels
        for i in range(10)
    ]
    pairs = lines(tmp_path / "pairs.jsonl", rows)

    def reply(messages: Messages, sampling: Sampling, i: int) -> Completion:
        five = float(re.findall(r"<(0\.\d+)>", messages[-1].content)[-1])
        drawn = "5" if sampling.seed % 1000 < 1000 * five else "1"
        both = tuple(TopLogprob(name, math.log(p)) for name, p in (("5", five), ("1", 1 - five)))
        steps = (Step("Score: ", ()), Step(drawn, both)) if sampling.top_logprobs else ()
        return Completion(f"Score: {drawn}", "stop", 2, steps)

    async def opened(_: str) -> Engine:
        return ScriptedEngine(reply)

    found = {}
    for name, words in (("sampled", []), ("expected", ["--expected"])):
        given = ["judge-quality", "--pairs", str(pairs), "--judgments", "1", "--judge-engine", "mine", *words]
        given += ["--cache", str(tmp_path / f"{name}.sqlite"), "--json", str(tmp_path / "out.json")]
        told = CliRunner().invoke(evaluate_app, given, obj=opened)
        assert told.exit_code == 0, told.exception
        found[name] = json.loads((tmp_path / "out.json").read_text())["judges"][0]
    sampled, expected = (found[name]["calibration"] for name in ("sampled", "expected"))
    assert expected["ece"] == pytest.approx(0, abs=1e-9) and sampled["ece"] > 0.05
    assert expected["brier"] < sampled["brier"] and expected["n"] == sampled["n"] == 40
    assert found["expected"]["n_ties"] < found["sampled"]["n_ties"]


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
