"""Arena-Hard on published judgments of 12 models: scores, style control and intervals of the leaderboard."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import builders  # noqa: F401  (sets hypothesis up)
import pytest

from metareward.evaluation.arena_hard.data import (
    read_answers,
    read_judge_prompt,
    read_questions,
)
from metareward.evaluation.arena_hard.run import game_query, results
from metareward.evaluation.arena_hard.score import ArenaResult

pytestmark = pytest.mark.full_data


BASELINE = "claude-3.7-sonnet"


@pytest.fixture(scope="module")
def expected(arena_data: Path) -> Mapping[str, Mapping[str, str]]:
    with (arena_data / "ko_expected.csv").open(encoding="utf-8") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def stored(arena_data: Path) -> ArenaResult:
    answers = arena_data / "ko_answer_style.csv"
    (result,) = results(arena_data / "ko_judgments.csv", answers, "v0.1", BASELINE)
    return result


def test_scores_are_the_published_ones(stored: ArenaResult, expected: Mapping[str, Mapping[str, str]]) -> None:
    assert len(stored.models) == 12
    for each in stored.models:
        assert each.score == pytest.approx(float(expected[each.model]["published_no_control"]), abs=0.006)
        assert each.score == pytest.approx(float(expected[each.model]["upstream_bt"]), abs=6e-5)
        assert each.n_battles == int(expected[each.model]["n_battles"])
        assert int(each.avg_tokens or 0) == int(float(expected[each.model]["published_avg_tokens"]))


def test_style_controlled_scores_are_upstream_s(stored: ArenaResult, expected: Mapping[str, Mapping[str, str]]) -> None:
    for each in stored.models:
        for control, score in each.controlled.items():
            wanted = float(expected[each.model][f"upstream_{control}_control"])
            assert score == pytest.approx(wanted, abs=0.05), (each.model, control)


def test_style_coefficients_are_upstream_s(stored: ArenaResult, arena_data: Path) -> None:
    wanted = json.loads((arena_data / "ko_expected_style_coefs.json").read_text(encoding="utf-8"))
    for control, found in stored.coefficients.items():
        assert list(found.values()) == pytest.approx(wanted[f"{control}_control"], abs=0.002)


def test_intervals_are_the_published_ones(stored: ArenaResult, expected: Mapping[str, Mapping[str, str]]) -> None:
    for each in stored.models:
        assert each.questions is not None and each.rows is not None
        for found, name in ((each.questions, "question"), (each.rows, "row")):
            assert found.low == pytest.approx(float(expected[each.model][f"{name}_boot_lo"]), abs=0.6)
            assert found.high == pytest.approx(float(expected[each.model][f"{name}_boot_hi"]), abs=0.6)
        assert each.questions.high - each.questions.low > 1.2 * (each.rows.high - each.rows.low)


def test_upstream_s_own_files_are_read(arena_data: Path) -> None:
    questions = read_questions(arena_data / "v0.1_question.jsonl")
    answers = read_answers(arena_data / "v0.1_baseline_gpt-4-0314.jsonl")
    assert len(questions) == len(answers) == 500
    assert {question.id for question in questions} == {answer.question for answer in answers}
    tokens = [answer.style.tokens or 0 for answer in answers]
    assert sum(tokens) / 500 == pytest.approx(423.26, abs=0.005)
    assert "{question_1}" in read_judge_prompt(arena_data / "judge_config.yaml").template


def test_the_stored_configuration_asks_as_upstream_does(arena_data: Path) -> None:
    prompt = read_judge_prompt(arena_data / "judge_config.yaml")
    system, user = game_query(prompt, "Why?", "one", "other")
    assert system.content.endswith('Example output: "My final verdict is tie: [[A=B]]".')
    assert user.content == (
        "<|User Prompt|>\nWhy?\n\n<|The Start of Assistant A's Answer|>\none\n<|The End of Assistant A's Answer|>\n\n"
        "<|The Start of Assistant B's Answer|>\nother\n<|The End of Assistant B's Answer|>"
    )
