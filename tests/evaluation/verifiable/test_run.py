"""IFEval and tasks with known answers in plan, loop, report, and ``metareward evaluate``."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up import lines
from run_folders import begin_recipe, model_folder
from scripted_models import reply
from typer.testing import CliRunner, Result

from metareward.cli.evaluate import evaluate_app
from metareward.engines.base import Engine, ScriptedEngine
from metareward.errors import UserError
from metareward.evaluation.verifiable.answers import Checked, read_tasks
from metareward.evaluation.verifiable.instructions import (
    Followed,
    InstructedPrompt,
    Instruction,
)
from metareward.evaluation.verifiable.run import answer_scores, instruction_scores, read_responses
from metareward.generation.progress import ANSWERS, SILENT
from metareward.pipeline import benchmarks as benchmarking
from metareward.pipeline import stages
from metareward.pipeline.benchmarks import benchmark_runs
from metareward.pipeline.plan import plan
from metareward.report.benchmark_tables import benchmark_tables
from metareward.report.facts import gather
from metareward.types import Messages, Sampling

RUNNER = CliRunner()


def run(*words: object) -> Result:
    return RUNNER.invoke(evaluate_app, [str(word) for word in words])


def ifeval_file(folder: Path) -> Path:
    rows = [
        {"key": i, "prompt": f"Follow {i}.", "instruction_id_list": [kind, "punctuation:no_comma"], "kwargs": [{}, {}]}
        for i, kind in enumerate(("change_case:english_lowercase", "startend:quotation"))
    ]
    return lines(folder / "input_data.jsonl", rows)


def tasks_file(folder: Path) -> Path:
    rows = [{"id": f"t{i}", "prompt": f"{i} + {i}?", "kind": "number", "answer": 2 * i} for i in range(4)]
    return lines(folder / "tasks.jsonl", rows)


def responses(folder: Path, name: str, *texts: str) -> Path:
    return lines(folder / name, [{"prompt": f"Follow {i}.", "response": text} for i, text in enumerate(texts)])


def speaker(t: int) -> Callable[[Messages, Sampling, int], str]:
    """M_t adds numbers up to t, and follows instructions from M1 on."""

    def said(messages: Messages, sampling: Sampling, index: int) -> str:
        text = messages[-1].content
        if found := re.fullmatch(r"(\d) \+ \d\?", text):
            number = int(found[1])
            return f"The answer is {2 * number}." if number <= t else "I don't know."
        if text.startswith("Follow"):
            return '"it is a quiet day and we walk home."' if t else "No, no."
        return reply(messages, sampling, index)

    return said


def test_both_are_planned_run_and_reported_for_every_model(tmp_path: Path) -> None:
    listed = (
        f"{{kind: ifeval, questions: {ifeval_file(tmp_path)}}}, {{kind: verifiable, questions: {tasks_file(tmp_path)}}}"
    )
    of = begin_recipe(tmp_path, f"benchmarks=[{listed}]")
    made = plan(of.recipe).benchmarks
    assert made is not None
    assert [[(role.role, role.calls) for role in each.roles] for each in made] == [[(ANSWERS, 2), (ANSWERS, 4)]] * 3
    for t in (1, 2):
        model_folder(of.model(t), f"m{t}")
    for t in range(3):
        assert benchmarking.needs_model(of, t)
        asyncio.run(benchmarking.ask_model(of, t, ScriptedEngine(speaker(t)), SILENT))
        asyncio.run(benchmarking.ask_others(of, t, SILENT))
        assert not benchmarking.needs_model(of, t)
        asyncio.run(stages.evaluate_model(of, t, ScriptedEngine(speaker(t)), SILENT))
    instructions, tasks = benchmark_tables(gather(of.run))
    assert (instructions.title, tasks.title) == ("ifeval: IFEval", "verifiable: Tasks with a known answer")
    assert [row[:2] for row in instructions.rows] == [("M0", "0.00"), ("M1", "100.00"), ("M2", "100.00")]
    assert [row[:2] for row in tasks.rows] == [("M0", "25.00"), ("M1", "50.00"), ("M2", "75.00")]
    assert [row[3:] for row in tasks.rows] == [("100.00", str(3 - t), "4", "0") for t in range(3)]
    for each in benchmark_runs(of, 1):
        stored = [json.loads(line) for line in (each.folder / "verdicts.jsonl").read_text().splitlines()]
        assert len(stored) == (2 if each.benchmark.name == "ifeval" else 4)
        told = run(each.benchmark.kind, "--questions", each.local.files().__next__()[0], "--responses", each.answers)
        assert told.exit_code == 0 and "M1" in told.output, told.exception


def test_evaluate_ifeval_on_stored_responses(tmp_path: Path) -> None:
    one = responses(tmp_path, "one.jsonl", "hello my friend how are you", '"Yes."')
    other = responses(tmp_path, "other.jsonl", "Sure, here:\nhello my friend how are you")
    words = ("ifeval", "--questions", ifeval_file(tmp_path), "--responses", one, "--responses", other)
    told = run(*words, "--json", tmp_path / "out.json")
    assert told.exit_code == 0, told.exception
    assert "other: partial, 1 of 2 questions have no response." in told.output
    first, second = json.loads((tmp_path / "out.json").read_text())["models"]
    names = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
    assert [first[name] for name in names] == [100, 100, 100, 100]
    assert [second[name] for name in names] == [0, 100, 0, 100]
    assert (second["n_questions"], second["n_judged"], second["n_missing"]) == (2, 1, 1)
    assert second["verdicts"] == [{"key": "0", "strict": [False, False], "loose": [True, True]}]
    assert second["kinds"]["punctuation:no_comma"] == {"strict": 0, "loose": 100, "n": 1}
    assert "startend:quotation" not in second["kinds"]


def test_evaluate_tasks_on_stored_responses(tmp_path: Path) -> None:
    rows = [{"id": f"t{i}", "model": "mine", "response": text} for i, text in enumerate(("0", "3", "none", "so 6"))]
    given = lines(tmp_path / "r.jsonl", rows)
    words = ("verifiable", "--questions", tasks_file(tmp_path), "--responses", given, "--json", tmp_path / "out.json")
    assert run(*words).exit_code == 0
    (model,) = json.loads((tmp_path / "out.json").read_text())["models"]
    assert (model["model"], model["accuracy"], model["n_unreadable"]) == ("mine", 50, 1)
    assert model["accuracy_readable"] == pytest.approx(200 / 3)
    assert model["verdicts"][3] == {"id": "t3", "outcome": "correct", "answer": "6"}
    line = "give --responses, a file of the model's responses, or --engine to ask a model"
    assert line == str(run("verifiable", "--questions", tasks_file(tmp_path)).exception)


def test_kinds_that_need_nltk_s_data_are_told_before_a_model_is_asked(tmp_path: Path) -> None:
    row = {"key": 1, "prompt": "Go.", "instruction_id_list": ["ratio:stop_words"], "kwargs": [{"percentage": 10}]}
    questions, asked = lines(tmp_path / "q.jsonl", [row]), list[str]()

    async def opened(name: str) -> Engine:
        asked.append(name)
        return ScriptedEngine(lambda messages, sampling, i: "Go.")

    words = ["ifeval", "--questions", questions, "--responses", tmp_path / "r.jsonl", "--engine", "mine"]
    told = RUNNER.invoke(evaluate_app, [str(word) for word in words], obj=opened)
    assert re.fullmatch(
        r"instruction ratio:stop_words: needs NLTK's stopwords; fix: python -m nltk\.downloader "
        r"averaged_perceptron_tagger_eng stopwords \(.*\), or name a folder with them in NLTK_DATA",
        str(told.exception),
    )
    assert isinstance(told.exception, UserError) and not asked and not (tmp_path / "r.jsonl").exists()


def test_a_model_s_responses_never_replace_a_file_of_the_users(tmp_path: Path) -> None:
    given = lines(tmp_path / "r.jsonl", [{"id": "t0", "model": "theirs", "response": "0"}])
    before = given.read_bytes()

    async def opened(name: str) -> Engine:
        return ScriptedEngine(lambda messages, sampling, i: "so 6")

    def asked(file: str) -> Result:
        words = ["verifiable", "--questions", tasks_file(tmp_path), "--responses", tmp_path / file, "--engine", "mine"]
        return RUNNER.invoke(evaluate_app, [str(word) for word in words], obj=opened)

    assert "r.jsonl: is there already, not written with --engine; fix: " in str(asked("r.jsonl").exception)
    assert given.read_bytes() == before
    assert asked("new.jsonl").exit_code == asked("new.jsonl").exit_code == 0  # the second time from what is stored


def test_scores_by_prompt_and_by_instruction() -> None:
    kinds = [("a:x", "a:y"), ("a:x",), ("b:z",)]
    prompts = [InstructedPrompt(str(i), "", tuple(Instruction(k, {}) for k in each)) for i, each in enumerate(kinds)]
    followed = {"0": Followed((True, False), (True, True)), "1": Followed((True,), (True,), errors=0)}
    found = instruction_scores(prompts, followed, 0)
    assert (found["prompt_strict"], found["prompt_loose"]) == (50, 100)
    assert (found["instruction_strict"], found["instruction_loose"]) == (pytest.approx(200 / 3), 100)
    assert (found["n_judged"], found["n_missing"], found["n_instructions"]) == (2, 1, 3)
    nothing = instruction_scores(prompts, {}, 0)
    assert nothing["prompt_strict"] is None and nothing["kinds"] == {}


def test_a_regex_that_took_too_long_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    tasks = read_tasks(tasks_file(tmp_path))
    checked = {"t0": Checked("timeout", None), "t1": Checked("correct", "2"), "t2": Checked("unreadable", None)}
    found: dict[str, Any] = answer_scores(tasks, checked, 0)
    assert (found["accuracy"], found["accuracy_readable"]) == (50, 100)
    counted = [found[f"n_{name}"] for name in ("questions", "judged", "missing", "timeout", "unreadable")]
    assert counted == [4, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "c", "response": ""}], r'r.jsonl:1: field "prompt": is that of none of the questions'),
        ([{"key": "3", "response": ""}], r'r.jsonl:1: field "key": is that of none of the questions'),
        ([{"key": "1", "prompt": "b", "response": ""}], r'field "prompt": isn\'t that of question 1'),
        ([{"id": "1", "response": ""}, {"prompt": "a", "response": ""}], r'r.jsonl:2: field "prompt": repeats'),
        ([{"key": 1, "response": None}], r'field "response": is missing or no text; fix'),
        ([{"key": 1, "response": ["x"]}], r'field "response": is missing or no text; fix'),
        ([{"key": i, "model": f"m{i}", "response": ""} for i in (1, 2)], r'r.jsonl:2: field "model": is not m1; fix'),
    ],
)
def test_responses_that_don_t_fit_are_refused(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*" + message):
        read_responses(lines(tmp_path / "r.jsonl", rows), {"1": "a", "2": "b"})
