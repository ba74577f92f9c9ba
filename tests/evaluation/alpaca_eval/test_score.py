"""AlpacaEval 2: the stored annotations give the published numbers, and the numbers have the properties they should."""

import csv
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import builders  # noqa: F401  (sets hypothesis up)
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import comparisons, json_file, swapped, table

from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.data import (
    BASELINE,
    Annotations,
    Gamed,
    Weights,
    read_annotations,
    read_difficulty,
    read_gamed,
    read_outputs,
    read_weights,
)
from metareward.evaluation.alpaca_eval.length_control import (
    joint_difficulty,
    large_change,
    length_adjusted,
    length_controlled,
    predicted,
    scaled_difference,
)
from metareward.evaluation.alpaca_eval.run import AlpacaFiles, published, results
from metareward.evaluation.alpaca_eval.score import OFFICIAL, AlpacaResult, evaluate
from metareward.evaluation.alpaca_eval.win_rate import mean_chars, win_rate

shares = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
compared = st.lists(st.tuples(shares, st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=30)


def rows_of(drawn: list[tuple[float, int, int]], missing: int = 0) -> tuple[list[float | None], list[tuple[int, int]]]:
    kept: list[float | None] = [None if i < missing else share for i, (share, _, _) in enumerate(drawn)]
    return kept, [(base, own) for _, base, own in drawn]


# --- the published numbers ---


@pytest.fixture(scope="module")
def board(alpaca_data: Path) -> Mapping[str, Mapping[str, str]]:
    with (alpaca_data / "leaderboard_rows.csv").open(encoding="utf-8") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def stored(alpaca_data: Path) -> dict[str, AlpacaResult]:
    files = AlpacaFiles(
        (alpaca_data / "annotations_compact.csv",),
        difficulty=alpaca_data / "instruction_difficulty.csv",
        gamed=alpaca_data / "df_gamed_reconstructed.csv",
    )
    return {each.model: each for each in results(files)}


def test_raw_columns_are_those_of_the_leaderboard(
    stored: Mapping[str, AlpacaResult], board: Mapping[str, Mapping[str, str]]
) -> None:
    assert len(stored) == 6
    for model, each in stored.items():
        told = each.as_dict()
        for name in ("win_rate", "standard_error", "discrete_win_rate"):
            assert told[name] == pytest.approx(float(board[model][name]), abs=1e-8), (model, name)
        for name in ("n_wins_base", "n_draws", "n_total", "avg_length"):
            assert told[name] == int(board[model][name]), (model, name)


def test_length_controlled_win_rates_are_those_of_the_leaderboard(
    stored: Mapping[str, AlpacaResult], board: Mapping[str, Mapping[str, str]]
) -> None:
    off = {model: abs(rate(each) - float(board[model]["length_controlled_winrate"])) for model, each in stored.items()}
    assert max(off.values()) < 0.01  # 0.0007 with the versions that are pinned
    for model, each in stored.items():
        assert each.official and "length_controlled_winrate" in each.as_dict()
        recorded = board[model]["lc_standard_error"]
        if recorded:
            assert each.controlled is not None
            assert each.controlled.standard_error == pytest.approx(float(recorded), abs=2e-4)


def rate(each: AlpacaResult) -> float:
    assert each.controlled is not None
    return each.controlled.win_rate


def test_it_is_what_the_official_package_gives(stored: Mapping[str, AlpacaResult], alpaca_data: Path) -> None:
    with (alpaca_data / "expected_official_package.csv").open(encoding="utf-8") as file:
        expected = {row["model"]: row for row in csv.DictReader(file)}
    for model, each in stored.items():
        assert rate(each) == pytest.approx(float(expected[model]["LC"]), abs=1e-6)


def test_published_weights_give_the_published_rates(alpaca_data: Path, board: Mapping[str, Mapping[str, str]]) -> None:
    found = published(alpaca_data / "leaderboard_rows.csv", alpaca_data / "instruction_difficulty.csv")
    assert found["Meta-Llama-3-8B-Instruct"].win_rate == pytest.approx(22.9188, abs=5e-5)
    off = {
        model: abs(each.win_rate - float(board[model]["length_controlled_winrate"])) for model, each in found.items()
    }
    assert max(off.values()) < 0.2  # the weights of two models are of another run
    assert sum(each < 1e-6 for each in off.values()) >= 48


def test_predictions_for_single_instructions_are_the_published_ones(alpaca_data: Path) -> None:
    weights = read_weights(alpaca_data / "leaderboard_rows.csv")
    hard = read_difficulty(alpaca_data / "instruction_difficulty.csv")
    told = [json.loads(line) for line in (alpaca_data / "glm_preferences.jsonl").read_text("utf-8").split("\n") if line]
    known = [row for row in told if row["model"] in weights]
    assert len(known) >= 4
    for row in known:
        predictions = predicted(weights[row["model"]], hard).predictions_P
        assert np.abs(np.array(predictions) - row["glm_preference"]).max() < 1e-8


@pytest.mark.parametrize("model", ["gemma-7b-it", "phi-2"])
def test_whole_annotation_files_give_the_same(
    alpaca_data: Path, stored: Mapping[str, AlpacaResult], model: str
) -> None:
    folder = alpaca_data / "results" / model
    files = AlpacaFiles(
        (folder / "weighted_alpaca_eval_gpt4_turbo" / "annotations.json",),
        outputs=folder / "model_outputs.json",
        difficulty=alpaca_data / "instruction_difficulty.csv",
        gamed=alpaca_data / "df_gamed_reconstructed.csv",
    )
    began = time.process_time()
    (each,) = results(files)
    assert time.process_time() - began < 2
    assert each.raw == stored[model].raw
    assert rate(each) == pytest.approx(rate(stored[model]), abs=1e-9)
    assert each.baseline == BASELINE and each.model == model
    assert each.avg_length == stored[model].avg_length
    assert each.n_missing == (2 if model == "phi-2" else 0)
    assert bool(each.notes) == (model == "phi-2")


def test_rows_found_by_instruction_keep_their_difficulty(alpaca_data: Path, stored: Mapping[str, AlpacaResult]) -> None:
    """Upstream counts rows by place, which shifts after a gap; with the reference they are counted by instruction."""
    folder = alpaca_data / "results" / "phi-2" / "weighted_alpaca_eval_gpt4_turbo"
    files = AlpacaFiles(
        (folder / "annotations.json",),
        reference=alpaca_data / "instructions_and_reference.jsonl",
        difficulty=alpaca_data / "instruction_difficulty.csv",
        gamed=alpaca_data / "df_gamed_reconstructed.csv",
    )
    (by_place,), (by_instruction,) = results(files), results(replace(files, by_instruction=True))
    assert rate(by_place) == pytest.approx(rate(stored["phi-2"]), abs=1e-9)
    assert any("counted by place" in note for note in by_place.notes) and not by_instruction.notes
    assert 0.3 < abs(rate(by_instruction) - rate(by_place)) < 0.7  # the published 4.40 would be 3.89


# --- properties ---


@given(compared)
def test_swapping_the_models_turns_w_into_100_minus_w(drawn: list[tuple[float, int, int]]) -> None:
    rows = comparisons(*rows_of(drawn))
    here, there = (evaluate([Annotations("m", "b", "", each)])[0] for each in (rows, swapped(rows)))
    for name in ("win_rate", "discrete_win_rate"):
        assert getattr(here.raw, name) == pytest.approx(100 - getattr(there.raw, name), abs=1e-9)
    assert (here.raw.n_wins, here.raw.n_draws) == (there.raw.n_wins_base, there.raw.n_draws)
    assert here.raw.standard_error == pytest.approx(there.raw.standard_error, abs=1e-9)
    assert rate(here) == pytest.approx(100 - rate(there), abs=1e-6)
    assert here.controlled is not None and there.controlled is not None
    assert here.controlled.standard_error == pytest.approx(there.controlled.standard_error, abs=1e-6)


@given(compared, st.integers(0, 30))
def test_a_partial_set_gives_numbers_or_none_never_nan(drawn: list[tuple[float, int, int]], missing: int) -> None:
    rows = comparisons(*rows_of(drawn, missing))
    (each,) = evaluate([Annotations("m", "b", "", rows)], instructions=40)
    json.dumps(each.as_dict(), allow_nan=False)  # raises for NaN
    unread = min(missing, len(rows))
    assert (each.raw.n_total, each.n_unparsable, each.n_missing) == (len(rows) - unread, unread, 40 - len(rows))
    assert (each.controlled is None) == (each.raw.win_rate is None) == (unread == len(rows))


@given(compared, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_is_nothing(drawn: list[tuple[float, int, int]], random: object) -> None:
    rows = list(comparisons(*rows_of(drawn)))
    (here,) = evaluate([Annotations("m", "b", "", tuple(rows))])
    random.shuffle(rows)  # type: ignore[attr-defined]
    (there,) = evaluate([Annotations("m", "b", "", tuple(rows))])
    assert here.raw.win_rate == pytest.approx(there.raw.win_rate, abs=1e-9)
    assert rate(here) == pytest.approx(rate(there), abs=1e-6)


def test_raw_numbers_by_hand() -> None:
    found = win_rate([1.0, 0.25, 0.5, 0.75])
    assert (found.win_rate, found.discrete_win_rate) == (62.5, 62.5)
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (2, 1, 1, 4)
    assert found.standard_error == pytest.approx(100 * np.std([1, 0.25, 0.5, 0.75], ddof=1) / 2)
    assert win_rate([0.9]).standard_error is None
    assert win_rate([]).win_rate is None
    assert (mean_chars([3, 4]), mean_chars([6], missing=1), mean_chars([])) == (3, 3, None)


def test_the_length_feature_is_0_at_equal_lengths() -> None:
    rows = comparisons([0.5, 0.5, 0.5], [(100, 100), (300, 100), (100, 300)])
    feature = scaled_difference(rows)
    assert feature[0] == 0 and feature[1] == -feature[2] > 0
    assert scaled_difference(comparisons([0.5, 0.5], [(9, 9), (9, 9)])).tolist() == [0, 0]


def test_a_change_that_upstream_would_warn_of() -> None:
    assert large_change(9.4, 39.2) and large_change(60, 40)
    assert not large_change(22, 35) and not large_change(50, 58)


# --- the regression on made-up data ---


def judge_that_likes_length(liking: float, quality: float, rows: int = 400, seed: int = 3) -> list[Annotations]:
    """Two models against one baseline: (quality, longer by some) and the same at the baseline's lengths."""
    generator = np.random.default_rng(seed)
    base = generator.integers(500, 3000, rows)
    own = base + generator.integers(-200, 1200, rows)
    found = []
    for name, lengths in (("long", own), ("even", base + generator.integers(-500, 500, rows))):
        share = 1 / (1 + np.exp(-(quality + liking * (lengths - base) / 1000)))
        pairs = list(zip(base.tolist(), lengths.tolist(), strict=True))
        found.append(Annotations(name, "b", "", comparisons(share.tolist(), pairs)))
    return found


def test_length_is_taken_out_of_the_rate() -> None:
    long, even = evaluate(judge_that_likes_length(2.0, -0.5))
    assert long.raw.win_rate is not None and even.raw.win_rate is not None
    assert long.raw.win_rate > even.raw.win_rate + 15
    wanted = 100 / (1 + np.exp(0.5))
    assert abs(rate(long) - wanted) < 6 and abs(rate(even) - wanted) < 3


def test_the_adjusted_rate_s_standard_error_is_the_bootstrap_s() -> None:
    rows = judge_that_likes_length(1.0, 0.3)[0].rows
    noisy = np.random.default_rng(1).uniform(size=len(rows)) < np.array([row.preference for row in rows])
    rows = tuple(replace(row, preference=float(won)) for row, won in zip(rows, noisy, strict=True))
    fitted = length_adjusted(rows)
    generator = np.random.default_rng(2)
    again = [length_adjusted([rows[i] for i in generator.integers(len(rows), size=len(rows))]) for _ in range(200)]
    spread = np.std([each.win_rate for each in again if each is not None])
    assert fitted is not None and fitted.standard_error == pytest.approx(spread, rel=0.15)


def test_names_say_which_regression_it_was() -> None:
    models = judge_that_likes_length(1.0, 0.0, rows=30)
    hard, gamed = np.linspace(-1, 1, 30), Gamed(np.full(10, 0.5), np.linspace(-2, 2, 10), np.linspace(-1, 1, 10))
    assert [each.method for each in evaluate(models)] == ["length, constant, difficulty fitted on these 2 models"] * 2
    assert evaluate(models[:1])[0].method == "length, constant"
    assert evaluate(models, hard)[0].method == "length, constant, difficulty from the file"
    assert evaluate(models, hard, gamed)[0].method == "length, constant, difficulty from the file"  # another baseline
    official = evaluate([replace(each, baseline=BASELINE) for each in models], hard, gamed)
    assert {each.method for each in official} == {OFFICIAL}
    assert "length_adjusted_winrate" in evaluate(models)[0].as_dict()
    assert "length_controlled_winrate" not in evaluate(models)[0].as_dict()


def test_the_baseline_against_itself_is_50() -> None:
    rows = comparisons([0.5] * 4, [(9, 9), (5, 5), (7, 7), (1, 1)])
    gamed = Gamed(np.array([0.9]), np.array([1.0]), np.array([0.0]))
    for fitted in (length_adjusted(rows), length_controlled(rows, np.zeros(4), gamed)):
        assert fitted is not None
        assert (fitted.win_rate, fitted.standard_error, fitted.weights) == (50.0, 0.0, Weights(0, 0, 0))


def test_two_models_are_compared_through_their_weights() -> None:
    one, other = Weights(-1, 0.5, 1.0), Weights(-1, 0.8, -0.3)
    hard = np.linspace(-1, 1, 9)
    assert predicted(one, hard, one).win_rate == 50
    assert predicted(one, hard, other).win_rate == pytest.approx(100 - predicted(other, hard, one).win_rate)


def test_difficulty_is_found_where_models_share_instructions() -> None:
    generator = np.random.default_rng(5)
    hard = generator.normal(size=60)
    models = []
    for quality in (-1.0, 0.0, 0.5, 1.0):
        share = 1 / (1 + np.exp(-(quality + hard)))
        models.append(comparisons(share.tolist(), [(int(n), int(n)) for n in generator.integers(1, 99, 60)]))
    found = joint_difficulty(models)
    assert np.corrcoef([found[i] for i in range(60)], hard)[0, 1] > 0.99


def test_difficulties_that_don_t_reach_are_told() -> None:
    rows = comparisons([0.5, 0.6], [(1, 2), (3, 4)])
    with pytest.raises(UserError, match="go up to row 1, the difficulties to 0"):
        evaluate([Annotations("m", "b", "", rows)], np.zeros(1))


# --- files ---

ROW = {"instruction": "Say hi.", "output_1": "hello", "output_2": "hi", "generator_1": "b", "generator_2": "m"}


def test_the_folder_names_the_model_where_the_file_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "NullModel" / "judge"
    folder.mkdir(parents=True)
    (each,) = read_annotations(json_file(folder / "annotations.json", [{**ROW, "preference": 2}]))
    assert (each.model, each.differing_name) == ("NullModel", "m")
    assert evaluate([each])[0].notes == ("the file calls the model 'm'; the folder's name is taken",)


def test_a_historic_0_is_a_draw_and_null_is_unreadable(tmp_path: Path) -> None:
    rows = [{**ROW, "preference": value} for value in (0, 1.5, None, float("nan"), 1, 2)]
    (each,) = read_annotations(json_file(tmp_path / "a.json", rows))
    assert [row.preference for row in each.rows] == [0.5, 0.5, None, None, 0, 1]
    assert (each.rows[0].baseline_chars, each.rows[0].model_chars) == (5, 2)
    (result,) = evaluate([each])
    assert (result.raw.n_total, result.n_unparsable) == (4, 2)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({**ROW, "preference": 3}, 'field "preference": is 3'),
        ({**ROW, "preference": "much"}, 'field "preference": is not a number'),
        ({**ROW, "output_2": None, "preference": 1}, 'field "output_2": is missing'),
    ],
)
def test_annotations_that_don_t_fit_are_told(tmp_path: Path, row: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        read_annotations(json_file(tmp_path / "a.json", [row]))


def test_an_instruction_that_the_reference_lacks_is_told(tmp_path: Path) -> None:
    path = json_file(tmp_path / "a.json", [{**ROW, "preference": 1}])
    with pytest.raises(UserError, match="not in the reference"):
        read_annotations(path, {"Say bye.": 0})


def test_tables_are_read_and_checked(tmp_path: Path) -> None:
    hard = table(tmp_path / "hard.csv", [{"index": i, "instruction_difficulty": i / 2} for i in range(3)])
    assert read_difficulty(hard).tolist() == [0, 0.5, 1]
    with pytest.raises(UserError, match="doesn't count 0, 1, 2"):
        read_difficulty(table(tmp_path / "gap.csv", [{"index": 1, "instruction_difficulty": 0}]))
    row = {"preference": 0.4, "std_delta_len": 1.0, "instruction_difficulty": 0.1}
    assert read_gamed(table(tmp_path / "gamed.csv", [row])).length_R.tolist() == [1.0]
    with pytest.raises(UserError, match="between 0 and 1"):
        read_gamed(table(tmp_path / "bad.csv", [{**row, "preference": 1.4}]))
    upstream = {"": "m", "np.tanh(std_delta_len)": -1, "instruction_difficulty": 2}
    upstream["not_gamed_baseline.astype(float)"] = 3
    assert read_weights(table(tmp_path / "weights.csv", [upstream])) == {"m": Weights(-1, 2, 3)}


def test_a_repeated_instruction_among_outputs_is_told(tmp_path: Path) -> None:
    output = {"instruction": "Say hi.", "output": "hi", "generator": "m"}
    with pytest.raises(UserError, match="repeats"):
        read_outputs(json_file(tmp_path / "o.json", [output, output]))


def test_gamed_rows_need_difficulties(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--gamed: needs --difficulty"):
        results(AlpacaFiles((tmp_path,), gamed=tmp_path))


@pytest.mark.parametrize("shares", [[1.0], [0.0, 0.0], [0.3, None, 0.9], [None], [0.5, 0.5, 0.5]])
def test_the_official_fit_on_a_handful_of_rows_is_a_number_or_none(shares: list[float | None]) -> None:
    generator = np.random.default_rng(4)
    gamed = Gamed(generator.uniform(size=40), generator.normal(size=40), generator.normal(size=40))
    rows = comparisons(shares, [(100 + i, 90 + 7 * i) for i in range(len(shares))])
    (each,) = evaluate([Annotations("m", BASELINE, "", rows)], generator.normal(size=40), gamed)
    told = json.dumps(each.as_dict(), allow_nan=False)  # raises for NaN
    assert each.official and "length_controlled_winrate" in told
    assert (each.controlled is None) == (shares == [None])
    assert each.controlled is None or 0 < each.controlled.win_rate < 100
