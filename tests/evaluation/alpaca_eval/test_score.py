"""AlpacaEval 2: win rates, the leaderboard's regression against a second implementation, and their properties."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import builders  # noqa: F401  (sets hypothesis up)
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import comparisons, json_file, swapped, table
from scipy.optimize import minimize
from sklearn.model_selection import GroupKFold

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
    fit_difficulties,
    is_large_change,
    length_adjusted,
    length_controlled,
    length_feature,
    win_rate_of_weights,
)
from metareward.evaluation.alpaca_eval.run import AlpacaEvalCommand, published_rates
from metareward.evaluation.alpaca_eval.score import UNOFFICIAL, AlpacaResult, evaluate, mean_chars, win_rate

shares = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
compared = st.lists(st.tuples(shares, st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=30)


def rows_of(drawn: list[tuple[float, int, int]], missing: int = 0) -> tuple[list[float | None], list[tuple[int, int]]]:
    kept: list[float | None] = [None if i < missing else share for i, (share, _, _) in enumerate(drawn)]
    return kept, [(base, own) for _, base, own in drawn]


def rate(each: AlpacaResult) -> float:
    assert each.controlled is not None
    return each.controlled.win_rate


# --- properties ---


@given(compared)
def test_swapping_the_models_gives_100_minus_the_win_rate(drawn: list[tuple[float, int, int]]) -> None:
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
def test_incomplete_data_gives_numbers_or_none_never_nan(drawn: list[tuple[float, int, int]], missing: int) -> None:
    rows = comparisons(*rows_of(drawn, missing))
    (each,) = evaluate([Annotations("m", "b", "", rows)], instructions=40)
    json.dumps(each.as_dict(), allow_nan=False)  # raises for NaN
    unread = min(missing, len(rows))
    assert (each.raw.n_total, each.n_unreadable, each.n_missing) == (len(rows) - unread, unread, 40 - len(rows))
    assert (each.controlled is None) == (each.raw.win_rate is None) == (unread == len(rows))


@given(compared, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(drawn: list[tuple[float, int, int]], random: object) -> None:
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
    feature = length_feature(rows)
    assert feature[0] == 0 and feature[1] == -feature[2] > 0
    assert length_feature(comparisons([0.5, 0.5], [(9, 9), (9, 9)])).tolist() == [0, 0]


def test_large_changes_are_those_that_upstream_warns_of() -> None:
    assert is_large_change(9.4, 39.2) and is_large_change(60, 40)
    assert not is_large_change(22, 35) and not is_large_change(50, 58)


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


def test_length_control_removes_the_effect_of_length() -> None:
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


def test_the_method_names_the_regression() -> None:
    models = judge_that_likes_length(1.0, 0.0, rows=30)
    hard, gamed = np.linspace(-1, 1, 30), Gamed(np.full(10, 0.5), np.linspace(-2, 2, 10), np.linspace(-1, 1, 10))
    assert [each.method for each in evaluate(models)] == ["length, constant, difficulty fitted on these 2 models"] * 2
    assert evaluate(models[:1])[0].method == "length, constant"
    assert evaluate(models, hard)[0].method == "length, constant, difficulty from the file"
    assert evaluate(models, hard, gamed)[0].method == "length, constant, difficulty from the file"  # another baseline
    official = evaluate([replace(each, baseline=BASELINE) for each in models], hard, gamed)
    assert {each.method for each in official} == {UNOFFICIAL}
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
    assert win_rate_of_weights(one, hard, one).win_rate == 50
    assert win_rate_of_weights(one, hard, other).win_rate == pytest.approx(
        100 - win_rate_of_weights(other, hard, one).win_rate
    )


def test_difficulty_is_found_where_models_share_instructions() -> None:
    generator = np.random.default_rng(5)
    hard = generator.normal(size=60)
    models = []
    for quality in (-1.0, 0.0, 0.5, 1.0):
        share = 1 / (1 + np.exp(-(quality + hard)))
        models.append(comparisons(share.tolist(), [(int(n), int(n)) for n in generator.integers(1, 99, 60)]))
    found = fit_difficulties(models)
    assert np.corrcoef([found[i] for i in range(60)], hard)[0, 1] > 0.99


def test_rows_without_a_difficulty_are_refused() -> None:
    rows = comparisons([0.5, 0.6], [(1, 2), (3, 4)])
    with pytest.raises(UserError, match="go up to row 1, the difficulties to 0"):
        evaluate([Annotations("m", "b", "", rows)], np.zeros(1))


# --- files ---

ROW = {"instruction": "Say hi.", "output_1": "hello", "output_2": "hi", "generator_1": "b", "generator_2": "m"}


def test_the_folder_s_model_name_wins_over_the_file_s(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "NullModel" / "judge"
    folder.mkdir(parents=True)
    (each,) = read_annotations(json_file(folder / "annotations.json", [{**ROW, "preference": 2}]))
    assert (each.model, each.differing_name) == ("NullModel", "m")
    assert evaluate([each])[0].notes == ("the file calls the model 'm'; the folder's name is taken",)


def test_a_historic_0_is_a_draw_and_null_is_unreadable(tmp_path: Path) -> None:
    values = (0, 1.5, None, float("nan"), 1, 2)
    rows = [{**ROW, "instruction": f"{i}", "preference": value} for i, value in enumerate(values)]
    (each,) = read_annotations(json_file(tmp_path / "a.json", rows))
    assert [row.preference for row in each.rows] == [0.5, 0.5, None, None, 0, 1]
    assert (each.rows[0].baseline_chars, each.rows[0].model_chars) == (5, 2)
    (result,) = evaluate([each])
    assert (result.raw.n_total, result.n_unreadable) == (4, 2)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({**ROW, "preference": 3}, 'field "preference": is 3'),
        ({**ROW, "preference": "much"}, 'field "preference": is not a number'),
        ({**ROW, "output_2": None, "preference": 1}, 'field "output_2": is missing'),
    ],
)
def test_invalid_annotations_are_refused(tmp_path: Path, row: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        read_annotations(json_file(tmp_path / "a.json", [row]))


def test_instructions_missing_from_the_reference_are_refused(tmp_path: Path) -> None:
    path = json_file(tmp_path / "a.json", [{**ROW, "preference": 1}])
    with pytest.raises(UserError, match="not in the reference"):
        read_annotations(path, {"Say bye.": 0})


def test_tables_are_read_and_checked(tmp_path: Path) -> None:
    hard = table(tmp_path / "hard.csv", [{"index": i, "instruction_difficulty": i / 2} for i in range(3)])
    assert read_difficulty(hard).tolist() == [0, 0.5, 1]
    with pytest.raises(UserError, match="isn't numbered 0, 1, 2"):
        read_difficulty(table(tmp_path / "gap.csv", [{"index": 1, "instruction_difficulty": 0}]))
    row = {"preference": 0.4, "std_delta_len": 1.0, "instruction_difficulty": 0.1}
    assert read_gamed(table(tmp_path / "gamed.csv", [row])).length_R.tolist() == [1.0]
    with pytest.raises(UserError, match="between 0 and 1"):
        read_gamed(table(tmp_path / "bad.csv", [{**row, "preference": 1.4}]))
    upstream = {"": "m", "np.tanh(std_delta_len)": -1, "instruction_difficulty": 2}
    upstream["not_gamed_baseline.astype(float)"] = 3
    assert read_weights(table(tmp_path / "weights.csv", [upstream])) == {"m": Weights(-1, 2, 3)}


def test_repeated_instructions_among_outputs_are_refused(tmp_path: Path) -> None:
    output = {"instruction": "Say hi.", "output": "hi", "generator": "m"}
    with pytest.raises(UserError, match="repeats"):
        read_outputs(json_file(tmp_path / "o.json", [output, output]))


def test_gamed_rows_need_difficulties(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--gamed: needs --difficulty"):
        AlpacaEvalCommand(annotations=(tmp_path,), gamed=tmp_path).results()


@pytest.mark.parametrize("shares", [[1.0], [0.0, 0.0], [0.3, None, 0.9], [None], [0.5, 0.5, 0.5]])
def test_the_official_fit_on_a_handful_of_rows_is_a_number_or_none(shares: list[float | None]) -> None:
    generator = np.random.default_rng(4)
    gamed = Gamed(generator.uniform(size=40), generator.normal(size=40), generator.normal(size=40))
    rows = comparisons(shares, [(100 + i, 90 + 7 * i) for i in range(len(shares))])
    (each,) = evaluate([Annotations("m", BASELINE, "", rows)], generator.normal(size=40), gamed)
    told = json.dumps(each.as_dict(), allow_nan=False)  # raises for NaN
    assert not each.official and "length_adjusted_winrate" in told
    assert (each.controlled is None) == (shares == [None])
    assert each.controlled is None or 0 < each.controlled.win_rate < 100


# --- the leaderboard's regression, written down a second time


def lasso(x: np.ndarray, p: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """The b that minimises |b|_1 + C sum w (log(1 + exp(x b)) - p x b), as the difference of two positive parts."""

    def loss(parts: np.ndarray) -> tuple[float, np.ndarray]:
        logits = x @ (parts[:3] - parts[3:])
        slope = strength * x.T @ (weights * (1 / (1 + np.exp(-logits)) - p))
        value = strength * weights @ (np.logaddexp(0, logits) - p * logits) + parts.sum()
        return float(value), np.concatenate([1 + slope, 1 - slope])

    found = minimize(loss, np.zeros(6), jac=True, bounds=[(0, None)] * 6, options={"ftol": 1e-13, "gtol": 1e-9})
    return np.asarray(found.x[:3] - found.x[3:])


def cross_validated(x: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """C from ten values by five folds of the mean weighted log loss. Row i and its copy with the other label are one
    group of `GroupKFold`, which deals groups of one size to the folds from the last to the first."""
    twice = GroupKFold(5).split(np.zeros(2 * len(p)), groups=np.tile(np.arange(len(p)), 2))
    held_out = [np.unique(test % len(p)) for _, test in twice]

    def log_loss(strength: float, test: np.ndarray) -> float:
        rest = np.setdiff1d(np.arange(len(p)), test)
        chance = 1 / (1 + np.exp(-x[test] @ lasso(x[rest], p[rest], weights[rest], strength)))
        return float(np.mean(-weights[test] * (p[test] * np.log(chance) + (1 - p[test]) * np.log(1 - chance))))

    strengths = np.logspace(-4, 4, 10)
    losses = [np.mean([log_loss(strength, test) for test in held_out]) for strength in strengths]
    return lasso(x, p, weights, float(strengths[int(np.argmin(losses))]))


@pytest.mark.parametrize(("liking", "quality"), [(1.0, -0.5), (0.2, 1.0)])
def test_the_length_controlled_win_rate_is_the_leaderboard_s_regression(liking: float, quality: float) -> None:
    model = judge_that_likes_length(liking, quality, rows=120)[0]
    generator = np.random.default_rng(8)
    hard = generator.normal(size=120)
    gamed = Gamed(generator.uniform(size=60), generator.normal(size=60), generator.normal(size=60))
    difference = np.array([row.baseline_chars - row.model_chars for row in model.rows])
    own = np.column_stack([np.tanh(difference / difference.std(ddof=1)), hard, np.ones(120)])
    baseline = np.column_stack([np.tanh(gamed.length_R), gamed.difficulty_R, np.zeros(60)])
    p = np.concatenate([gamed.preference_R, [row.preference or 0.0 for row in model.rows]])
    b = cross_validated(np.vstack([baseline, own]), p, np.repeat([0.1, 1.0], [60, 120]))
    found = length_controlled(model.rows, hard, gamed)
    assert found is not None
    assert found.win_rate == pytest.approx(100 * np.mean(1 / (1 + np.exp(-(b[1] * hard + b[2])))), abs=0.05)
    assert list(found.predictions_P) == pytest.approx((1 / (1 + np.exp(-(b[1] * hard + b[2])))).tolist(), abs=2e-3)


# --- from files to the leaderboard's columns


def stored_run(folder: Path, count: int = 40, gap: int = 7) -> AlpacaEvalCommand:
    """Upstream's layout for one model that lacks the output to instruction ``gap``, and its three tables."""
    generator = np.random.default_rng(2)
    base, own = (generator.integers(5, 60, count).tolist() for _ in range(2))
    difficulty = generator.normal(size=count)
    preferences = (1 + 1 / (1 + np.exp(-(0.8 + 1.5 * difficulty)))).round(10).tolist()
    rows = [
        {
            "instruction": f"Task {i}",
            "output_1": "b" * base[i],
            "generator_1": BASELINE,
            "output_2": "m" * own[i],
            "generator_2": "me",
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": preferences[i],
        }
        for i in range(count)
        if i != gap
    ]
    results_folder = folder / "results" / "me" / "weighted_alpaca_eval_gpt4_turbo"
    results_folder.mkdir(parents=True)
    outputs = [{"instruction": row["instruction"], "output": row["output_2"], "generator": "me"} for row in rows]
    reference = [{"instruction": f"Task {i}", "output": "b" * base[i], "generator": BASELINE} for i in range(count)]
    hard = [{"index": i, "instruction_difficulty": float(difficulty[i])} for i in range(count)]
    gamed = [
        {"preference": float(generator.uniform()), "std_delta_len": float(generator.normal()), **each} for each in hard
    ]
    return AlpacaEvalCommand(
        annotations=(json_file(results_folder / "annotations.json", rows),),
        outputs=json_file(folder / "model_outputs.json", outputs),
        reference=json_file(folder / "reference.json", reference),
        difficulty=table(folder / "hard.csv", hard),
        gamed=table(folder / "gamed.csv", gamed),
    )


def test_the_raw_columns_of_stored_annotations(tmp_path: Path) -> None:
    files = stored_run(tmp_path)
    (found,) = files.results()
    rows = json.loads(files.annotations[0].read_text(encoding="utf-8"))
    p = [row["preference"] - 1 for row in rows]
    wins = sum(share > 0.5 for share in p)
    expected = {
        "model": "me",
        "baseline": BASELINE,
        "win_rate": 100 * statistics.fmean(p),
        "standard_error": 100 * statistics.stdev(p) / math.sqrt(len(p)),
        "discrete_win_rate": 100 * wins / len(p),
        "n_wins": wins,
        "n_wins_base": len(p) - wins,
        "n_draws": 0,
        "n_total": 39,
        "n_missing": 1,
        "avg_length": sum(len(row["output_2"]) for row in rows) // 40,
    }
    columns = found.as_dict()
    assert {name: columns[name] for name in expected} == {
        name: pytest.approx(value, rel=1e-12) if isinstance(value, float) else value for name, value in expected.items()
    }
    assert not found.official and "length_adjusted_winrate" in columns


def test_rows_after_a_gap_keep_their_difficulty_only_by_instruction(tmp_path: Path) -> None:
    files = stored_run(tmp_path)
    (by_place,), (by_instruction,) = files.results(), files.model_copy(update={"by_instruction": True}).results()
    assert any("counted by place" in note for note in by_place.notes)
    assert not any("counted by place" in note for note in by_instruction.notes)
    (numbered,) = read_annotations(files.annotations[0], {f"Task {i}": i for i in range(40)})
    assert [row.row for row in numbered.rows] == [i for i in range(40) if i != 7]
    assert files.difficulty is not None and files.gamed is not None
    fitted = length_controlled(numbered.rows, read_difficulty(files.difficulty), read_gamed(files.gamed))
    assert fitted is not None and rate(by_instruction) == fitted.win_rate != rate(by_place)


def test_published_weights_give_their_rates(tmp_path: Path) -> None:
    hard = [-1.0, 0.5, 2.0]
    weights = table(tmp_path / "w.csv", [{"model": "m", "w_len": -1.2, "w_difficulty": 0.7, "w_const": 0.3}])
    difficulty = table(
        tmp_path / "hard.csv", [{"index": i, "instruction_difficulty": each} for i, each in enumerate(hard)]
    )
    found = published_rates(weights, difficulty)["m"]
    shares = [1 / (1 + math.exp(-(0.7 * each + 0.3))) for each in hard]
    assert list(found.predictions_P) == pytest.approx(shares, abs=1e-12)
    assert found.win_rate == pytest.approx(100 * statistics.fmean(shares), abs=1e-10)
    assert found.standard_error == pytest.approx(100 * statistics.stdev(shares) / math.sqrt(3), abs=1e-10)
