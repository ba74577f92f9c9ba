"""``metareward evaluate`` as it is typed: tables, JSON, one line for a mistake, engines through the context."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up import LABEL_PROMPT, json_file, lines
from typer.testing import CliRunner, Result

from metareward.cli.evaluate import evaluate_app
from metareward.engines.base import Engine, ScriptedEngine
from metareward.errors import UserError
from metareward.types import Messages, Sampling

RUNNER = CliRunner()
BAD_NAME = "m\x1b[2J[bold]"


def run(*words: object, engine: object = None) -> Result:
    return RUNNER.invoke(evaluate_app, [str(word) for word in words], obj=engine)


def numbers(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def annotation(i: int, preference: float | None) -> dict[str, object]:
    texts = {"instruction": f"Do {i}.", "output_1": "x" * (i + 5), "output_2": "y" * (2 * i + 1)}
    return texts | {"generator_1": "base", "generator_2": BAD_NAME, "preference": preference}


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return json_file(tmp_path / "a.json", [annotation(i, 1 + i / 10 if i else None) for i in range(10)])


def test_alpaca_on_stored_annotations_alone(tmp_path: Path, annotations: Path) -> None:
    told = run("alpaca-eval", "--annotations", annotations, "--json", tmp_path / "out.json")
    assert told.exit_code == 0, told.exception
    assert "50.00" in told.output and "length-adjusted" in told.output and "LC win rate" not in told.output
    assert "\x1b" not in told.output and "m␛[2J[bold]" in told.output  # a model's name is only text
    (model,) = numbers(tmp_path / "out.json")["models"]
    assert (model["win_rate"], model["n_judged"], model["n_unreadable"]) == (pytest.approx(50), 9, 1)
    assert "length_adjusted_winrate" in model and "length_controlled_winrate" not in model


def test_alpaca_by_an_engine(tmp_path: Path) -> None:
    rows = [annotation(i, None) for i in range(6)]
    keys = {"outputs": ("output_2", "me"), "reference": ("output_1", "base")}
    for name, (key, generator) in keys.items():
        json_file(
            tmp_path / f"{name}.json",
            [{"instruction": row["instruction"], "output": row[key], "generator": generator} for row in rows],
        )
    (tmp_path / "clf.txt").write_text(LABEL_PROMPT, encoding="utf-8")
    files = [each for name in keys for each in (f"--{name}", tmp_path / f"{name}.json")]
    asked: list[str] = []

    async def opened(name: str) -> Engine:
        asked.append(name)
        return ScriptedEngine(lambda m, s, i: "m" if "Output m: y" in m[-1].content else "M")

    words = ("alpaca-eval", *files, "--prompt", tmp_path / "clf.txt", "--annotations", tmp_path / "made.json")
    told = run(*words, "--judge-engine", "gpt", engine=opened)
    assert told.exit_code == 0, told.exception
    assert asked == ["gpt"] and "100.00" in told.output and "the label that the judge wrote" in told.output
    again = run("alpaca-eval", "--annotations", tmp_path / "made.json")
    assert "100.00" in again.output  # what was made is an annotation file like any other


def test_a_judge_may_think_first(tmp_path: Path) -> None:
    room: set[int] = set()

    def reply(messages: Messages, sampling: Sampling, i: int) -> str:
        room.add(sampling.max_tokens)
        return "<think>m or M? The one by the model.</think>\n" + (
            "m" if "Output m: own" in messages[-1].content else "M"
        )

    async def opened(name: str) -> Engine:
        return ScriptedEngine(reply)

    (tmp_path / "clf.txt").write_text(LABEL_PROMPT, encoding="utf-8")
    for who in ("base", "own"):
        rows = [{"instruction": f"Do {i}.", "output": f"{who} {i}", "generator": who} for i in range(5)]
        json_file(tmp_path / f"{who}.json", rows)
    words = ["alpaca-eval", "--outputs", tmp_path / "own.json", "--reference", tmp_path / "base.json"]
    words += ["--prompt", tmp_path / "clf.txt", "--judge-engine", "mine", "--json", tmp_path / "out.json"]
    aloud, silent = tmp_path / "aloud.json", tmp_path / "silent.json"
    unread = run(*words, "--annotations", aloud, engine=opened)
    assert unread.exit_code and "none of its rows has a readable preference" in str(unread.exception)
    assert run(*words, "--annotations", silent, "--thinking", "200", engine=opened).exit_code == 0
    assert numbers(tmp_path / "out.json")["models"][0]["win_rate"] == 100
    assert room == {1, 201}
    again = run(*words, "--annotations", aloud, "--thinking", "200", engine=opened)
    assert again.exit_code and "thinking (absent) -> 200" in str(again.exception)


def test_arena_hard_on_stored_judgments(tmp_path: Path) -> None:
    games = [{"score": "A<B"}, {"score": "A>B"}]
    rows = [{"question_id": f"q{i}", "model": "me", "baseline": "base", "games": games} for i in range(4)]
    judgments = lines(tmp_path / "j.jsonl", rows)
    shown = run("arena-hard", "--judgments", judgments, "--rounds", 20, "--json", tmp_path / "out.json")
    assert shown.exit_code == 0, shown.exception
    assert "100.00" in shown.output and "by question" in shown.output and "by row" in shown.output
    (category,) = numbers(tmp_path / "out.json")["categories"]
    assert (category["models"][0]["score"], category["models"][0]["n_questions"]) == (100.0, 4)


def test_mt_bench_on_stored_judgments(tmp_path: Path) -> None:
    questions = [{"question_id": 81, "category": "writing", "turns": ["a", "b"]}]
    rows = [{"question_id": 81, "model": "me", "turn": turn, "score": 6 + turn} for turn in (1, 2)]
    words = ("--judgments", lines(tmp_path / "j.jsonl", rows), "--questions", lines(tmp_path / "q.jsonl", questions))
    shown = run("mt-bench", *words, "--json", tmp_path / "out.json")
    assert shown.exit_code == 0, shown.exception
    assert "7.50" in shown.output and "me by category" in shown.output and "writing" in shown.output
    assert numbers(tmp_path / "out.json")["models"][0]["average"] == 7.5


def test_judge_quality_on_stored_scores(tmp_path: Path) -> None:
    pairs = [
        {"id": str(i), "input": "Why?", "output_1": "no", "output_2": "yes, as", "label": 2, "score_1": 1, "score_2": i}
        for i in range(4)
    ]
    shown = run("judge-quality", "--pairs", lines(tmp_path / "p.jsonl", pairs), "--json", tmp_path / "out.json")
    assert shown.exit_code == 0, shown.exception
    assert "62.50" in shown.output and "length only" in shown.output and "chance" in shown.output
    assert numbers(tmp_path / "out.json")["judges"][0]["accuracy"] == 0.625


def test_judge_on_sections(tmp_path: Path) -> None:
    row = {"subset": "donotanswer", "chosen": "no", "rejected": "yes", "score_chosen": 2, "score_rejected": 1}
    told = run("judge-quality", "--sections", lines(tmp_path / "r.jsonl", [row]))
    assert told.exit_code == 0 and "Safety" in told.output and "100.00" in told.output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("alpaca-eval", "give --annotations"),
        ("alpaca-eval --annotations none.json", "none.json: can't be read"),
        ("alpaca-eval --weights none.csv", "--weights: needs --difficulty"),
        ("alpaca-eval --annotations a --by-instruction", "--by-instruction: needs --reference"),
        ("alpaca-eval --annotations a --judge-engine x", "engine x: no engine can be opened here"),
        ("alpaca-eval --annotations hub:a/b", "hub:a/b: doesn't name one file"),
        ("arena-hard --judgments none.jsonl", "none.jsonl: can't be read"),
        ("arena-hard --judgments none.jsonl --version v1", "--version v1: no such version"),
        ("mt-bench --judgments none.jsonl", "none.jsonl: can't be read"),
        ("judge-quality", "give one of --rankings"),
        ("judge-quality --rankings none.jsonl --protocol x", "--protocol x: no such protocol"),
        ("judge-quality --rankings none.jsonl --rubric none", "no prompt text named 'none'"),
    ],
)
def test_a_user_s_mistake_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, line: str) -> None:
    monkeypatch.chdir(tmp_path)
    told = run(*words.split())
    assert isinstance(told.exception, UserError)
    assert str(told.exception).startswith(line) and "\n" not in str(told.exception)


HEAVY = (
    *("torch", "transformers", "trl", "datasets", "pyarrow", "pandas", "matplotlib", "sklearn", "huggingface_hub"),
    *("httpx2", "tenacity", "krippendorff", "nltk", "langdetect", "scipy.optimize", "scipy.stats", "jinja2"),
    *("metareward.config", "metareward.pipeline", "metareward.training", "metareward.engines.openai"),
)


def test_stored_results_are_evaluated_without_anything_heavy(tmp_path: Path, annotations: Path) -> None:
    """All in one process, which says what it has imported."""
    games = [{"question_id": f"q{i}", "model": "me", "baseline": "b", "games": [{"score": "A<B"}] * 2} for i in (0, 1)]
    grades = [{"question_id": 81, "model": "me", "turn": turn, "score": 6} for turn in (1, 2)]
    pair = {"id": "1", "input": "Why?", "output_1": "no", "output_2": "yes", "label": 2, "score_1": 1, "score_2": 2}
    task = {"id": "1", "prompt": "1 + 1?", "kind": "number", "answer": 2}
    responses = lines(tmp_path / "r.jsonl", [{"id": "1", "response": "2"}])
    rows = json.loads(annotations.read_text(encoding="utf-8"))
    other = json_file(tmp_path / "other.json", [{**row, "generator_2": "other"} for row in rows])
    commands: list[list[object]] = [
        ["--help"],
        ["alpaca-eval", "--annotations", annotations],
        ["arena-hard", "--judgments", lines(tmp_path / "j.jsonl", games), "--rounds", "20"],
        ["mt-bench", "--judgments", lines(tmp_path / "g.jsonl", grades)],
        ["judge-quality", "--pairs", lines(tmp_path / "p.jsonl", [pair])],
        ["verifiable", "--questions", lines(tmp_path / "t.jsonl", [task]), "--responses", responses],
        ["compare", "--first", annotations, "--second", other],
    ]
    code = """
import json, sys
from metareward.cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["metareward", "evaluate", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
print("imported", *sys.modules)
"""
    words = json.dumps([[str(word) for word in command] for command in commands])
    said = subprocess.run([sys.executable, "-c", code, words], capture_output=True, text=True, check=True).stdout
    modules = said.rsplit("imported", 1)[1].split()
    assert "metareward.evaluation.benchmarks" in modules
    assert [name for name in modules if name.startswith(HEAVY)] == []


def test_every_command_explains_itself() -> None:
    for command in ("", "alpaca-eval", "arena-hard", "mt-bench", "judge-quality"):
        assert "Usage:" in run(*command.split(), "--help").output
