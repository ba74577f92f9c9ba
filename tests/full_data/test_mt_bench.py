"""MT-Bench on stored GPT-4 judgments: the same prompts, scores and averages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import builders  # noqa: F401  (sets hypothesis up)
import pytest

from metareward.evaluation.mt_bench.data import (
    prompt_name,
    question_about,
    read_answers,
    read_prompts,
    read_questions,
    read_references,
    read_score,
)
from metareward.evaluation.mt_bench.run import results

pytestmark = pytest.mark.full_data


JUDGMENTS = "gpt-4_single.jsonl"


@pytest.fixture(scope="module")
def judgments(mt_bench_data: Path) -> list[Mapping[str, object]]:
    text = (mt_bench_data / JUDGMENTS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_every_stored_prompt_is_rendered_byte_for_byte(mt_bench_data: Path, judgments: list[dict[str, object]]) -> None:
    questions = read_questions(mt_bench_data / "question.jsonl")
    references = read_references(mt_bench_data / "reference_answer_gpt-4.jsonl")
    prompts = read_prompts(mt_bench_data / "judge_prompts.jsonl")
    answers = read_answers(mt_bench_data / "model_answer")
    assert (len(questions), len(references), len(judgments)) == (80, 30, 320)
    for row in judgments:
        question, turn = questions[int(str(row["question_id"]))], int(str(row["turn"]))
        answer = answers[str(row["model"])][question.id]
        _, user = question_about(prompts, question, answer, references.get(question.id), turn)
        assert user.content == row["user_prompt"]
        assert row["judge"] == ["gpt-4", prompt_name(question.category, turn)]


def test_every_stored_score_is_read_again(judgments: list[dict[str, object]]) -> None:
    assert [read_score(str(row["judgment"])) for row in judgments] == [row["score"] for row in judgments]


def test_averages_are_the_published_ones(mt_bench_data: Path) -> None:
    expected = json.loads((mt_bench_data / "expected_scores.json").read_text(encoding="utf-8"))
    found = {each.model: asdict(each) for each in results(mt_bench_data / JUDGMENTS)}
    assert set(found) == set(expected)
    for model, numbers in expected.items():
        for name, value in numbers.items():
            assert found[model][name] == pytest.approx(value, abs=1e-6), (model, name)


def test_categories_make_up_the_average(mt_bench_data: Path) -> None:
    for each in results(mt_bench_data / JUDGMENTS, mt_bench_data / "question.jsonl"):
        assert len(each.categories) == 8 and each.n_missing == 0
        assert all(category.n_valid == 20 for category in each.categories.values())
        averages = [category.average or 0 for category in each.categories.values()]
        assert sum(averages) / 8 == pytest.approx(each.average)
