"""The benchmarks on samples of published data that are part of the repository: published numbers, exactly."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from metareward.cli.evaluate import evaluate_app
from metareward.evaluation.arena_hard.run import results as arena_results
from metareward.evaluation.judge_quality.data import read_pairs, read_verdicts
from metareward.evaluation.judge_quality.pairs import SECTIONS, combine, judged_pairs, llmbar_statistics, pair_quality
from metareward.evaluation.mt_bench.data import (
    prompt_name,
    question_about,
    read_answers,
    read_prompts,
    read_questions,
    read_references,
    read_score,
)
from metareward.evaluation.mt_bench.run import results as mt_bench_results

FOLDER = Path(__file__).parents[1] / "golden" / "published"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").split("\n") if line]


def document(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_every_file_is_named_with_its_source_and_licence() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.name != "README.md"]
    assert [path.name for path in files if path.name not in text] == []
    assert sum(path.stat().st_size for path in files) < 300_000


def test_ifeval_verdicts_are_upstream_s(tmp_path: Path) -> None:
    folder = FOLDER / "ifeval"
    words = ["ifeval", "--questions", folder / "questions.jsonl", "--responses", folder / "responses.jsonl"]
    told = CliRunner().invoke(evaluate_app, [*map(str, words), "--json", str(tmp_path / "o.json")])
    assert told.exit_code == 0, told.exception
    (model,) = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))["models"]
    expected = [{**row, "key": str(row["key"])} for row in rows("ifeval/verdicts.jsonl")]
    assert model["verdicts"] == expected and len(model["kinds"]) == 25 and model["n_checker_errors"] == 0
    assert model["prompt_strict"] == pytest.approx(100 * sum(all(row["strict"]) for row in expected) / len(expected))


def test_arena_hard_scores_and_intervals_are_the_published_ones() -> None:
    with (FOLDER / "arena_hard/expected.csv").open(encoding="utf-8") as file:
        expected = {row["model"]: {k: float(v) for k, v in row.items() if k != "model"} for row in csv.DictReader(file)}
    (result,) = arena_results(FOLDER / "arena_hard/judgments.csv", None, "v0.1", "claude-3.7-sonnet")
    assert {each.model for each in result.models} == set(expected)
    for each in result.models:
        stored = expected[each.model]
        assert each.score == pytest.approx(stored["published_no_control"], abs=0.006)
        assert each.score == pytest.approx(stored["upstream_bt"], abs=6e-5)
        assert each.n_battles == stored["n_battles"]
        for found, name in ((each.questions, "question"), (each.rows, "row")):
            assert found is not None
            ends = (stored[f"{name}_boot_lo"], stored[f"{name}_boot_hi"])
            assert (found.low, found.high) == pytest.approx(ends, abs=0.6)


def test_mt_bench_averages_are_the_published_ones() -> None:
    found = {each.model: asdict(each) for each in mt_bench_results(FOLDER / "mt_bench/scores.jsonl")}
    for model, numbers in document("mt_bench/expected.json").items():
        assert {name: found[model][name] for name in numbers} == pytest.approx(numbers, abs=1e-9)


def test_mt_bench_prompts_are_those_that_were_sent_and_their_scores_are_read_again() -> None:
    folder = FOLDER / "mt_bench"
    questions, references = read_questions(folder / "questions.jsonl"), read_references(folder / "references.jsonl")
    prompts, answers = read_prompts(folder / "judge_prompts.jsonl"), read_answers(folder / "answers.jsonl")
    sent = rows("mt_bench/judgments.jsonl")
    assert len(sent) == 6 and len({row["judge"][1] for row in sent}) == 4
    for row in sent:
        question = questions[row["question_id"]]
        answer = answers[row["model"]][question.id]
        _, user = question_about(prompts, question, answer, references.get(question.id), row["turn"])
        assert user.content == row["user_prompt"]
        assert row["judge"] == ["gpt-4", prompt_name(question.category, row["turn"])]
        assert read_score(row["judgment"]) == row["score"]


def test_llmbar_s_statistics_are_the_published_ones() -> None:
    pairs, verdicts = read_pairs(FOLDER / "judge_quality/pairs.jsonl"), FOLDER / "judge_quality/verdicts.jsonl"
    judges = {name: judged_pairs(pairs, those) for name, those in read_verdicts(verdicts).items()}
    for name, published in document("judge_quality/statistics.json").items():
        found = llmbar_statistics(judges[name])
        for measure, value in published.items():
            # "95 / 100 = 95.0%" is 0.95.
            number = float(value.rpartition("=")[2].strip(" %")) / 100 if isinstance(value, str) else value
            assert found[measure] == pytest.approx(number, abs=1e-9), (name, measure)
    assert pair_quality(judges["GPT-4/Vanilla"]).accuracy == 0.955


def test_rewardbench_s_example_has_its_section_scores() -> None:
    stored = document("judge_quality/rewardbench.json")
    assert {name: list(those) for name, those in SECTIONS.items()} == stored["subset_mapping"]
    assert {name: n for those in SECTIONS.values() for name, n in those.items()} == stored["example_counts"]
    known = {
        name: value for name, value in stored["example_subset_accuracies"].items() if name in stored["example_counts"]
    }
    assert combine(known, {}, {}) == pytest.approx(stored["example_section_scores"], abs=1e-9)
