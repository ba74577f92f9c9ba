"""A benchmark and a judge of the user's own: one class each, found in plan, run, report and ``metareward evaluate``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from made_up import lines
from pydantic import Field
from run_folders import begin_recipe, begin_with_record, bound_recipe, model_folder
from scripted_models import reply
from typer.testing import CliRunner

from metareward.cli.evaluate import evaluate_commands
from metareward.config.schema import load_recipe
from metareward.engines.base import ScriptedEngine
from metareward.errors import UserError
from metareward.evaluation.base import (
    Benchmark,
    Column,
    EvaluateCommand,
    Evaluated,
    EvaluateSession,
    Figures,
    Requests,
    Results,
    ResultTable,
    ScoringInputs,
)
from metareward.evaluation.benchmarks import BENCHMARKS
from metareward.generation.progress import ANSWERS, SILENT
from metareward.pipeline import benchmarks as benchmarking
from metareward.pipeline import stages
from metareward.pipeline.benchmarks import benchmark_runs
from metareward.pipeline.plan import plan
from metareward.report.benchmark_tables import benchmark_tables
from metareward.report.facts import gather
from metareward.report.write import write_report
from metareward.types import Judgment, Message, Messages, Prompt, Sampling, Scored

# --- the benchmark, as a user would write it in a file of their own ---

COLUMNS = (Column("exact %", "exact", 1, unit="share"), Column("asked", "n_asked"))


class ArithmeticCommand(EvaluateCommand):
    """Sums: the share of exact answers."""

    answers: Path = Field(description="A JSON Lines file of answers.")

    async def evaluate(self, session: EvaluateSession) -> Evaluated:
        figures = exact(self.answers)
        return Evaluated((ResultTable("Sums", COLUMNS, (("me", figures),)),), {"benchmark": "arithmetic", **figures})


class Arithmetic(Benchmark):
    """Sums of two small numbers, checked by a program: no judge is asked."""

    count: int = Field(4, ge=1, description="How many sums")

    title: ClassVar[str] = "Sums"
    command: ClassVar[type[EvaluateCommand]] = ArithmeticCommand

    @property
    def has_requests(self) -> bool:
        return True

    def requests(self) -> Requests:
        return Requests([Prompt(str(i), (Message("user", f"{i} + {i} ="),)) for i in range(self.count)])

    async def score(self, inputs: ScoringInputs) -> Results:
        return [{"model": inputs.model.name, **exact(inputs.model.answers)}]

    def columns(self, rows: Sequence[Figures]) -> tuple[Column, ...]:
        return COLUMNS


def exact(answers: Path) -> Figures:
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    return {"exact": sum(row["turns"] == [str(2 * int(row["id"]))] for row in rows) / len(rows), "n_asked": len(rows)}


# --- what finds it ---


def adds(t: int) -> Callable[[Messages, Sampling, int], str]:
    """M_t adds small numbers only, the better the larger t is."""

    def said(messages: Messages, sampling: Sampling, index: int) -> str:
        text = messages[-1].content
        number = int(text.split(" + ")[0]) if " + " in text else None
        return reply(messages, sampling, index) if number is None else str(2 * number if number <= t else 0)

    return said


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file of the benchmark lies in the folder in which the command runs."""
    source = Path(__file__).read_text(encoding="utf-8")
    (tmp_path / "own_benchmark.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


OWN = "benchmarks=[{kind: 'own_benchmark:Arithmetic', name: sums, count: 3}]"


def test_a_benchmark_named_by_import_path_is_planned_run_and_reported(tmp_path: Path) -> None:
    run = begin_recipe(tmp_path, OWN)
    made = plan(run.recipe)
    assert made.benchmarks is not None
    assert [[(role.role, role.calls) for role in each.roles] for each in made.benchmarks] == [[(ANSWERS, 3)]] * 3
    for t in (1, 2):
        model_folder(run.model(t), f"m{t}")
    for t in range(3):
        assert benchmarking.needs_model(run, t)
        asyncio.run(benchmarking.ask_model(run, t, ScriptedEngine(adds(t)), SILENT))
        asyncio.run(benchmarking.ask_others(run, t, SILENT))
        asyncio.run(stages.evaluate_model(run, t, ScriptedEngine(adds(t)), SILENT))
    (result,) = (json.loads(each.result.read_text()) for each in benchmark_runs(run, 1))
    assert (result["model"], result["judge"], result["results"][0]["exact"]) == ("M1", None, 2 / 3)
    (table,) = benchmark_tables(gather(run.run))
    assert (table.title, table.columns) == ("sums: Sums", ("", "exact %", "asked"))
    assert table.rows == (("M0", "33.3", "3"), ("M1", "66.7", "3"), ("M2", "100.0", "3"))
    write_report(run.run)
    assert "sums: Sums" in run.run.report.read_text(encoding="utf-8")


def test_one_line_in_the_dict_makes_a_kind_and_a_command(tmp_path: Path) -> None:
    benchmarks: dict[str, type[Benchmark]] = {**BENCHMARKS, "arithmetic": Arithmetic}
    recipe = load_recipe("pocket", ["benchmarks=[{kind: arithmetic, count: 5}, {kind: judge_quality}]"], benchmarks)
    assert [each.name for each in recipe.benchmarks] == ["arithmetic", "judge_quality"]
    assert (made := plan(recipe).benchmarks) is not None and made[0].roles[0].calls == 5
    answers = lines(tmp_path / "a.jsonl", [{"id": "1", "turns": ["2"]}, {"id": "2", "turns": ["5"]}])
    app = evaluate_commands(benchmarks)
    shown = CliRunner().invoke(app, ["arithmetic", "--answers", str(answers), "--json", str(tmp_path / "out.json")])
    assert shown.exit_code == 0, shown.exception
    assert "50.00" in shown.output and json.loads((tmp_path / "out.json").read_text())["exact"] == 0.5
    assert "arithmetic" in CliRunner().invoke(app, ["--help"]).output


def test_a_changed_benchmark_is_refused_in_a_run_that_began_with_another(tmp_path: Path) -> None:
    source, changing = tmp_path / "changing_benchmark.py", OWN.replace("own_benchmark", "changing_benchmark")
    source.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    begin_with_record(tmp_path, changing)
    bound_recipe(tmp_path, changing).check()
    with source.open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    with pytest.raises(UserError, match="the source of changing_benchmark:Arithmetic"):
        bound_recipe(tmp_path, changing).check()


class Lengths:
    """A judge that counts words."""

    async def judge(self, prompt: Prompt, answer: str, n: int) -> list[Judgment]:
        return [Judgment(i, "", 0, Scored(float(min(5, len(answer.split())))), "") for i in range(n)]


def test_a_judge_named_by_import_path_grades(tmp_path: Path) -> None:
    lengths = [{"text": "x " * n, "rank": 3 - n} for n in (1, 2, 3)]
    lines(tmp_path / "ranked.jsonl", [{"id": f"r{i}", "prompt": "Rank.", "responses": lengths} for i in range(2)])
    judged = "{kind: judge_quality, questions: ranked.jsonl, judge: 'own_benchmark:Lengths'}"
    run = begin_recipe(tmp_path, f"benchmarks=[{judged}]")
    assert not benchmarking.needs_model(run, 0)
    asyncio.run(benchmarking.ask_others(run, 0, SILENT))
    (result,) = (json.loads(each.result.read_text()) for each in benchmark_runs(run, 0))
    first = result["results"][0]["judges"][0]
    assert (first["judge"], first["exact_match"], first["n_pairs"]) == ("own_benchmark:Lengths", 1.0, 6)
