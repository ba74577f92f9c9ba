"""``metareward evaluate`` on the public data: the tables and the JSON hold the published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from metareward.cli.evaluate import evaluate_app
from metareward.engines.base import Engine, ScriptedEngine
from metareward.types import Messages, Sampling

pytestmark = pytest.mark.full_data
RUNNER = CliRunner()


def run(*words: object, engine: object = None) -> Result:
    return RUNNER.invoke(evaluate_app, [str(word) for word in words], obj=engine)


def numbers(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_alpaca_with_the_leaderboard_s_tables(alpaca_data: Path, tmp_path: Path) -> None:
    annotations = alpaca_data / "annotations_compact.csv"
    tables = (
        "--difficulty",
        alpaca_data / "instruction_difficulty.csv",
        "--gamed",
        alpaca_data / "df_gamed_reconstructed.csv",
    )
    told = run("alpaca-eval", "--annotations", annotations, *tables, "--json", tmp_path / "out.json")
    assert told.exit_code == 0, told.exception
    assert "length-adjusted" in told.output and "86.46" in told.output  # the table names no judge, so it is unofficial
    models = {each["model"]: each for each in numbers(tmp_path / "out.json")["models"]}
    assert models["NullModel"]["length_adjusted_winrate"] == pytest.approx(86.4578, abs=0.01)
    folder = alpaca_data / "results" / "gemma-7b-it" / "weighted_alpaca_eval_gpt4_turbo"
    told = run("alpaca-eval", "--annotations", folder / "annotations.json", *tables, "--json", tmp_path / "out.json")
    assert "LC win rate" in told.output and "not comparable" not in told.output
    (gemma,) = numbers(tmp_path / "out.json")["models"]
    assert gemma["official"] and gemma["length_controlled_winrate"] == pytest.approx(10.426, abs=0.001)


def test_alpaca_from_published_weights(alpaca_data: Path) -> None:
    told = run(
        "alpaca-eval",
        "--weights",
        alpaca_data / "leaderboard_rows.csv",
        "--difficulty",
        alpaca_data / "instruction_difficulty.csv",
    )
    assert told.exit_code == 0 and "22.92" in told.output


def test_arena(arena_data: Path, tmp_path: Path) -> None:
    words = ("--judgments", arena_data / "ko_judgments.csv", "--answers", arena_data / "ko_answer_style.csv")
    told = run("arena-hard", *words, "--baseline", "claude-3.7-sonnet", "--rounds", 50, "--json", tmp_path / "out.json")
    assert told.exit_code == 0, told.exception
    assert "85.83" in told.output and "by question" in told.output
    (category,) = numbers(tmp_path / "out.json")["categories"]
    assert category["models"][0]["controlled"]["style"] == pytest.approx(84.46, abs=0.1)
    assert category["models"][0]["questions"]["low"] < 85.83


def test_mt_bench(mt_bench_data: Path, tmp_path: Path) -> None:
    words = ("--judgments", mt_bench_data / "gpt-4_single.jsonl", "--questions", mt_bench_data / "question.jsonl")
    told = run("mt-bench", *words, "--json", tmp_path / "out.json")
    assert told.exit_code == 0, told.exception
    assert "7.17" in told.output and "humanities" in told.output
    assert numbers(tmp_path / "out.json")["models"][0]["average"] == pytest.approx(7.165625)


def test_judge_on_pairs(judge_data: Path, tmp_path: Path) -> None:
    words = (
        "--pairs",
        judge_data / "llmbar_natural.jsonl",
        "--verdicts",
        judge_data / "llmbar_natural_evaluators.jsonl",
    )
    told = run("judge-quality", *words, "--json", tmp_path / "out.json")
    assert told.exit_code == 0, told.exception
    assert "95.50" in told.output and "length only" in told.output and "chance" in told.output
    first = numbers(tmp_path / "out.json")["judges"][0]
    assert first["llmbar"]["kappa_False"] == pytest.approx(0.26775689528923596)


def test_judge_by_an_engine_and_a_protocol(judge_data: Path, tmp_path: Path) -> None:
    def reply(messages: Messages, sampling: Sampling, i: int) -> str:
        return f"Score: {min(5, len(messages[-1].content) // 800)}"

    async def opened(name: str) -> Engine:
        return ScriptedEngine(reply)

    head = (judge_data / "oasst_rankings.jsonl").read_text(encoding="utf-8").split("\n")[:4]
    (tmp_path / "r.jsonl").write_text("\n".join(head), encoding="utf-8")
    words = (
        "--rankings",
        tmp_path / "r.jsonl",
        "--protocol",
        "human",
        "--judgments",
        2,
        "--cache",
        tmp_path / "k.sqlite",
    )
    told = run("judge-quality", *words, "--judge-engine", "mine", "--json", tmp_path / "out.json", engine=opened)
    assert told.exit_code == 0, told.exception
    assert [each["judge"] for each in numbers(tmp_path / "out.json")["judges"]] == ["mine", "length only", "chance"]
