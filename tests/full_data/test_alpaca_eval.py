"""AlpacaEval 2 on its published annotations: the leaderboard's numbers."""

from __future__ import annotations

import asyncio
import csv
import json
import time
from collections.abc import Mapping
from pathlib import Path

import builders  # noqa: F401  (sets hypothesis up)
import numpy as np
import pytest
from made_up import judge_client, token

from metareward.engines.base import ScriptedEngine
from metareward.evaluation.alpaca_eval.data import (
    BASELINE,
    read_difficulty,
    read_outputs,
    read_weights,
)
from metareward.evaluation.alpaca_eval.length_control import (
    win_rate_of_weights,
)
from metareward.evaluation.alpaca_eval.run import (
    AlpacaEvalCommand,
    annotate,
    label_judge,
    matchups,
    model_first,
    published_rates,
)
from metareward.evaluation.alpaca_eval.score import AlpacaResult
from metareward.evaluation.compare import load_label_prompt
from metareward.types import Completion

pytestmark = pytest.mark.full_data


KEPT = 250  # stored judgments that are repeated


def rate(each: AlpacaResult) -> float:
    assert each.controlled is not None
    return each.controlled.win_rate


@pytest.fixture(scope="module")
def board(alpaca_data: Path) -> Mapping[str, Mapping[str, str]]:
    with (alpaca_data / "leaderboard_rows.csv").open(encoding="utf-8") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def stored(alpaca_data: Path) -> dict[str, AlpacaResult]:
    files = AlpacaEvalCommand(
        annotations=(alpaca_data / "annotations_compact.csv",),
        difficulty=alpaca_data / "instruction_difficulty.csv",
        gamed=alpaca_data / "df_gamed_reconstructed.csv",
    )
    return {each.model: each for each in files.results()}


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
    assert max(off.values()) < 0.001
    for model, each in stored.items():
        assert not each.official and "length_adjusted_winrate" in each.as_dict()  # the table doesn't name the judge
        recorded = board[model]["lc_standard_error"]
        if recorded:
            assert each.controlled is not None
            assert each.controlled.standard_error == pytest.approx(float(recorded), abs=2e-4)


def test_it_is_what_the_official_package_gives(stored: Mapping[str, AlpacaResult], alpaca_data: Path) -> None:
    with (alpaca_data / "expected_official_package.csv").open(encoding="utf-8") as file:
        expected = {row["model"]: row for row in csv.DictReader(file)}
    for model, each in stored.items():
        assert rate(each) == pytest.approx(float(expected[model]["LC"]), abs=1e-9)


def test_published_weights_give_the_published_rates(alpaca_data: Path, board: Mapping[str, Mapping[str, str]]) -> None:
    found = published_rates(alpaca_data / "leaderboard_rows.csv", alpaca_data / "instruction_difficulty.csv")
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
        predictions = win_rate_of_weights(weights[row["model"]], hard).predictions_P
        assert np.abs(np.array(predictions) - row["glm_preference"]).max() < 1e-8


@pytest.mark.parametrize("model", ["gemma-7b-it", "phi-2"])
def test_whole_annotation_files_give_the_same(
    alpaca_data: Path, stored: Mapping[str, AlpacaResult], model: str
) -> None:
    folder = alpaca_data / "results" / model
    files = AlpacaEvalCommand(
        annotations=(folder / "weighted_alpaca_eval_gpt4_turbo" / "annotations.json",),
        outputs=folder / "model_outputs.json",
        difficulty=alpaca_data / "instruction_difficulty.csv",
        gamed=alpaca_data / "df_gamed_reconstructed.csv",
    )
    began = time.process_time()
    (each,) = files.results()
    assert time.process_time() - began < 2
    assert each.raw == stored[model].raw
    assert rate(each) == pytest.approx(rate(stored[model]), abs=1e-9)
    assert each.baseline == BASELINE and each.model == model
    assert each.avg_length == stored[model].avg_length
    assert each.n_missing == (2 if model == "phi-2" else 0)
    assert bool(each.notes) == (model == "phi-2") != each.official
    assert ("length_controlled_winrate" in each.as_dict()) == each.official


def test_rows_found_by_instruction_keep_their_difficulty(alpaca_data: Path, stored: Mapping[str, AlpacaResult]) -> None:
    """Upstream counts rows by place, which shifts after a gap; with the reference they are counted by instruction."""
    folder = alpaca_data / "results" / "phi-2" / "weighted_alpaca_eval_gpt4_turbo"
    files = AlpacaEvalCommand(
        annotations=(folder / "annotations.json",),
        reference=alpaca_data / "instructions_and_reference.jsonl",
        difficulty=alpaca_data / "instruction_difficulty.csv",
        gamed=alpaca_data / "df_gamed_reconstructed.csv",
    )
    (by_place,), (by_instruction,) = files.results(), files.model_copy(update={"by_instruction": True}).results()
    assert rate(by_place) == pytest.approx(rate(stored["phi-2"]), abs=1e-9)
    assert any("counted by place" in note for note in by_place.notes)
    assert not any("counted by place" in note for note in by_instruction.notes)
    assert 0.3 < abs(rate(by_instruction) - rate(by_place)) < 0.7  # the published 4.40 would be 3.89


def test_stored_preferences_follow_from_order_and_probabilities(alpaca_data: Path, tmp_path: Path) -> None:
    """The stored judge, asked again by our judge client: the same questions, order and preferences."""
    folder = alpaca_data / "results" / "phi-2"
    path = folder / "weighted_alpaca_eval_gpt4_turbo" / "annotations.json"
    stored = json.loads(path.read_text(encoding="utf-8"))[:KEPT]
    prompt = load_label_prompt(alpaca_data / "judge_prompt_alpaca_eval_clf.txt")
    said: dict[str, Completion] = {}
    for row in stored:
        if isinstance(row["raw_completion"], dict):
            (step,) = row["raw_completion"]["logprobs"]["content"]
            probabilities = {each["token"]: 2.718281828459045 ** each["logprob"] for each in step["top_logprobs"]}
            pair = (row["output_1"], row["output_2"])
            shown = pair[::-1] if model_first(row["instruction"]) else pair
            said[prompt.query(row["instruction"], *shown)[-1].content] = token(step["token"], **probabilities)
    engine = ScriptedEngine(lambda messages, sampling, i: said[messages[-1].content])
    reference = read_outputs(alpaca_data / "instructions_and_reference.jsonl")
    own = read_outputs(folder / "model_outputs.json")[:KEPT]
    judge = label_judge(judge_client(engine, tmp_path / "cache.sqlite"), prompt)
    rows = asyncio.run(annotate(judge, matchups(reference, own)))
    assert len(engine.calls) == len(said) == KEPT - 1  # identical outputs are not judged
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in stored]
    for row, before in zip(rows, stored, strict=True):
        assert row["preference"] == pytest.approx(before["preference"], abs=1e-8)
