"""Benchmarks that a recipe chose, inside the loop: asked once, gone on with after a stop, counted and shown."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer as Served
from chat_server import Body, FakeChatServer, Troubled, choice, completion, error
from made_up import LABEL_PROMPT, lines
from rich.console import Console
from run_folders import HELD_OUT, begin_recipe, model_folder, write_recipe
from scripted_models import reply

from metareward.config.schema import load_recipe
from metareward.engines.base import EngineError, ScriptedEngine
from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.run import AlpacaEval
from metareward.evaluation.arena_hard import data as arena_files
from metareward.evaluation.arena_hard.data import count_style
from metareward.evaluation.arena_hard.run import mirrored_games
from metareward.evaluation.compare import OracleJudge
from metareward.generation.progress import SILENT
from metareward.method.judge import TOP_LOGPROBS
from metareward.pipeline import benchmarks as benchmarking
from metareward.pipeline import stages
from metareward.pipeline.benchmarks import BenchmarkRun, benchmark_runs
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pocket.world import PocketOracle, prompts
from metareward.report.benchmark_tables import benchmark_tables, benchmarks_text
from metareward.report.facts import gather
from metareward.report.write import write_report
from metareward.types import Completion, Messages, ModelRole, Sampling, Step, TopLogprob

QUESTIONS = 6
GRADER = [
    {
        "name": name,
        "system_prompt": "s",
        "prompt_template": f"Rate it. {{question{'_2' if turns else ''}}} {{answer{'_2' if turns else ''}}}",
    }
    for name, turns in (("single-v1", 0), ("single-v1-multi-turn", 2))
]
CONFIG = 'system_prompt: "Judge them."\nprompt_template: ["Battle: {question_1}\\nA: {answer_1}\\nB: {answer_2}"]\n'


def speaker(t: int) -> Callable[[Messages, Sampling, int], str]:
    """M_t in every role of every benchmark; what it says follows from what it is asked and from the seed."""

    def said(messages: Messages, sampling: Sampling, index: int) -> str:
        text = messages[-1].content
        draw = hashlib.sha256(repr((messages, sampling.seed, index, t)).encode()).digest()[0]
        if "Battle:" in text:
            return ("[[A>B]]", "[[B>A]]", "[[A=B]]", "none")[draw % 4]
        if "Rate it." in text:
            return f"[[{draw % 10 + 1}]]" if draw % 5 else "none"
        if "Output m:" in text:
            return ("m", "M", "x")[draw % 3]
        spoken = reply(messages, sampling, index)
        return spoken if "<answer>" in text else f"{spoken} {draw} {'!' * t}"

    return said


class Stopping:
    """The same, that is ended after some requests, as by a kill."""

    def __init__(self, t: int, after: int) -> None:
        self.inner, self.left = ScriptedEngine(speaker(t)), after

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        if not self.left:
            raise UserError("killed")
        self.left -= 1
        return await self.inner.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        pass


class Refusing(Stopping):
    """The same, that can't serve what holds a word."""

    def __init__(self, t: int, word: str) -> None:
        super().__init__(t, 10**6)
        self.word = word

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        if any(self.word in message.content for message in messages):
            raise EngineError("too long")
        return await super().complete(messages, sampling, n, role)


def furnished(folder: Path, *benchmarks: str, changes: tuple[str, ...] = ()) -> BoundRecipe:
    """A run whose M1 and M2 are there, with every kind of benchmark."""
    folder.mkdir(exist_ok=True)
    lines(folder / "alpaca.jsonl", [{"instruction": f"Do {i}.", "id": f"a{i}"} for i in range(QUESTIONS)])
    turns = [{"question_id": f"q{i}", "category": "c", "turns": [{"content": f"Fight {i}."}]} for i in range(QUESTIONS)]
    lines(folder / "arena.jsonl", turns)
    two = [{"question_id": 81 + i, "category": "writing", "turns": [f"w{i}", f"v{i}"]} for i in range(2)]
    lines(folder / "mt.jsonl", two)
    lines(folder / "grader.jsonl", GRADER)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "clf.txt").write_text(LABEL_PROMPT, encoding="utf-8")
    ranked = [{"text": text, "rank": rank} for rank, text in enumerate(("good", "fair", "bad"))]
    lines(folder / "ranked.jsonl", [{"id": f"r{i}", "prompt": f"Rank {i}.", "responses": ranked} for i in range(3)])
    write_recipe(folder)
    listed = ", ".join(benchmarks or EVERY).replace("DIR", str(folder))
    of = begin_recipe(folder, *changes, f"benchmarks=[{listed}]")
    for t in (1, 2):
        model_folder(of.model(t), f"m{t}")
    return of


HELD = "{name: held, kind: alpaca_eval}"
OWN = "{name: own, kind: alpaca_eval, questions: DIR/alpaca.jsonl, against: previous, judgments: 2}"
LABEL = "{name: label, kind: alpaca_eval, questions: DIR/alpaca.jsonl, prompt: DIR/clf.txt, models: [2]}"
HARD = "{name: hard, kind: arena_hard, questions: DIR/arena.jsonl, prompt: DIR/config.yaml}"
MT = "{name: mt, kind: mt_bench, questions: DIR/mt.jsonl, prompt: DIR/grader.jsonl}"
PEOPLE = "{name: people, kind: judge_quality, questions: DIR/ranked.jsonl}"
EVERY = (HELD, OWN, LABEL, HARD, MT, PEOPLE)


def go(of: BoundRecipe, t: int, engine: Any = None) -> ScriptedEngine:
    """What the loop does with M_t, but for generating."""
    engine = engine or ScriptedEngine(speaker(t))

    async def use() -> None:
        if stages.evaluation_pending(of, t):
            await stages.evaluate_model(of, t, engine, SILENT)
        await benchmarking.ask_model(of, t, engine, SILENT)
        await benchmarking.ask_others(of, t, SILENT)

    asyncio.run(use())
    return engine  # type: ignore[no-any-return]


def all_of_it(of: BoundRecipe) -> dict[str, Any]:
    for t in range(3):
        go(of, t)
    return found(of)


def found(of: BoundRecipe) -> dict[str, Any]:
    """Everything in the folders of benchmarks but the stores, which keep what was done in another order."""
    paths = (path for t in range(3) for each in benchmark_runs(of, t) for path in each.folder.glob("*.json*"))
    return {str(path.relative_to(of.run.path)): path.read_text() for path in paths}


def run_of(of: BoundRecipe, t: int, name: str) -> BenchmarkRun:
    return next(each for each in benchmark_runs(of, t) if each.benchmark.name == name)


def result(of: BoundRecipe, t: int, name: str) -> dict[str, Any]:
    return dict(json.loads(run_of(of, t, name).result.read_text()))


def test_every_benchmark_of_every_model_is_done_once(tmp_path: Path) -> None:
    of = furnished(tmp_path)
    all_of_it(of)
    done = {(t, each.benchmark.name) for t in range(3) for each in benchmark_runs(of, t) if each.result.is_file()}
    every = {(t, name) for t in (1, 2) for name in ("held", "own", "hard", "mt", "people")}
    assert done == {*every, (0, "mt"), (0, "people"), (2, "label")}
    engine = ScriptedEngine(speaker(0))
    for t in range(3):
        assert not benchmarking.needs_model(of, t)
        go(of, t, engine)
    assert engine.calls == []


def test_the_numbers_are_the_benchmarks_own(tmp_path: Path) -> None:
    of = furnished(tmp_path)
    all_of_it(of)
    (held,) = result(of, 2, "held")["results"]
    assert (held["model"], held["baseline"], held["n_judged"] + held["n_unreadable"]) == ("M2", "M0", HELD_OUT)
    own = result(of, 2, "own")
    assert own["against"] == "M1" and own["results"][0]["preferences"] == "scores of each alone"
    assert own["results"][0]["n_missing"] == 0 and own["results"][0]["length_adjusted_winrate"] is not None
    rows = json.loads((run_of(of, 2, "own").folder / "annotations.json").read_text())
    assert [row["index"] for row in rows] == list(range(QUESTIONS))
    assert {row["generator_1"] for row in rows} == {"M1"} and {row["generator_2"] for row in rows} == {"M2"}
    (hard,) = result(of, 1, "hard")["results"]
    assert hard["baseline"] == "M0" and hard["models"][0]["n_questions"] <= QUESTIONS
    (mt,) = result(of, 0, "mt")["results"]
    assert mt["n_valid"] + mt["n_failed"] == 4 and mt["model"] == "M0"
    people = result(of, 1, "people")["results"][0]
    assert [each["judge"] for each in people["judges"]] == ["M1", "length only", "chance"]
    assert people["judges"][0]["n_prompts"] == 3


def test_a_benchmark_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole = furnished(tmp_path / "a")
    of = furnished(tmp_path / "b")
    for t in range(3):
        asyncio.run(stages.evaluate_model(of, t, ScriptedEngine(speaker(t)), SILENT))
        asyncio.run(stages.evaluate_model(whole, t, ScriptedEngine(speaker(t)), SILENT))
        stops = (Stopping(t, after) for after in (3, 7, 12, 20))
        asked = sum(stopped(of, t, engine) for engine in stops) + len(go(of, t).calls)
        at_once = len(go(whole, t).calls)
        assert at_once <= asked <= at_once + 2 * 4  # each stop may lose the first requests of questions under way
    assert {key: text.replace("/b/", "/a/") for key, text in found(of).items()} == found(whole)


def stopped(of: BoundRecipe, t: int, engine: Stopping) -> int:
    """How many requests were answered before the end."""
    with contextlib.suppress(UserError):
        go(of, t, engine)
    return len(engine.inner.calls)


def test_what_isn_t_answered_is_counted_and_nothing_becomes_nan(tmp_path: Path) -> None:
    of = furnished(tmp_path)
    go(of, 0)
    go(of, 1, Refusing(1, "Do 3."))
    (own,) = result(of, 1, "own")["results"]
    assert (own["n_missing"], own["n_judged"] + own["n_unreadable"]) == (1, QUESTIONS - 1)
    with pytest.raises(UserError, match=r"all 6 prompts failed; the last one, .*: too long"):
        go(of, 2, Refusing(2, "Output m:"))


def test_arena_and_mt_bench_by_a_judge_who_knows_only_its_rubric(tmp_path: Path) -> None:
    held = "{name: held, kind: arena_hard}"
    hard = HARD.replace(", prompt: DIR/config.yaml", ", judgments: 2")
    mt = MT.replace(", prompt: DIR/grader.jsonl", "")
    of = furnished(tmp_path, held, hard, mt)
    all_of_it(of)
    for name, questions in (("held", HELD_OUT), ("hard", QUESTIONS)):
        rows = [json.loads(line) for line in (run_of(of, 2, name).folder / "judgments.jsonl").read_text().splitlines()]
        verdicts = [tuple(game["score"] for game in row["games"]) for row in rows]
        mirrored = {("A>B", "B>A"), ("B>A", "A>B"), ("A=B", "A=B"), (None, None)}
        assert len(rows) == questions and set(verdicts) <= mirrored and len(set(verdicts)) > 1
        (told,) = result(of, 2, name)["results"]
        (score,) = told["models"]
        wins, draws = verdicts.count(("B>A", "A>B")), verdicts.count(("A=B", "A=B"))
        readable = questions - verdicts.count((None, None))
        assert score["score"] == pytest.approx(100 * (wins + draws / 2) / readable)
    (turns,) = result(of, 0, "mt")["results"]
    assert turns["n_valid"] + turns["n_failed"] == 4 and 0 <= turns["average"] <= 5
    assert [table.title for table in benchmark_tables(gather(of.run))] == [
        "held: Arena-Hard v0.1, against M0, judged by each model itself by the run's rubric",
        "hard: Arena-Hard v0.1, against M0, judged by each model itself by the run's rubric",
        "mt: MT-Bench, judged by each model itself by the run's rubric",
    ]


def test_the_oracle_judges_arena_too(tmp_path: Path) -> None:
    questions = [(arena_files.Question(each.id, "", "?"), each) for each in prompts(6, 1, held_out=True)]
    base = {each.id: answer(each.id, "M0", "no idea") for each, _ in questions}
    own = base | {questions[0][0].id: answer(questions[0][0].id, "M1", "what is this")}
    rows = asyncio.run(mirrored_games(OracleJudge(PocketOracle()), questions, base, own))
    assert [row["games"] for row in rows] == [[{"score": "A=B"}, {"score": "A=B"}]] * 6
    recipe = load_recipe("pocket", ["benchmarks=[{kind: arena_hard, judge: oracle, against: previous}]"])
    assert recipe.benchmarks[0].asked_judge is None


def test_expected_scores_hold_where_a_model_judges_questions_of_a_file(tmp_path: Path) -> None:
    """What was written is 3, the tokens possible there are 3 and 5: the score is 4."""
    asked: set[int] = set()

    def judge(messages: Messages, sampling: Sampling, index: int) -> Completion:
        asked.add(sampling.top_logprobs)
        likely = tuple(TopLogprob(token, math.log(0.5)) for token in ("3", "5"))
        return Completion("Score: 3", "stop", 2, (Step("Score: ", ()), Step("3", likely)))

    of = furnished(tmp_path, PEOPLE, changes=("judgments.score=expected",))
    asyncio.run(benchmarking.ask_model(of, 0, ScriptedEngine(judge), SILENT))
    people = result(of, 0, "people")["results"][0]
    assert people["judges"][0]["score_histogram"] == {"4": 27}
    assert asked == {TOP_LOGPROBS}


def answer(question: str, by: str, text: str) -> arena_files.Answer:
    return arena_files.Answer(question, by, text, count_style(text, None))


def test_a_judge_that_reads_nothing_leaves_dashes(tmp_path: Path) -> None:
    of = furnished(tmp_path, OWN, MT)
    go(of, 0)

    def dumb(messages: Messages, sampling: Sampling, index: int) -> str:
        text = messages[-1].content
        return "none" if "<answer>" in text or "Rate it." in text else speaker(1)(messages, sampling, index)

    go(of, 1, ScriptedEngine(dumb))
    (own,), (mt,) = result(of, 1, "own")["results"], result(of, 1, "mt")["results"]
    assert (own["win_rate"], own["n_judged"], own["n_unreadable"]) == (None, 0, QUESTIONS)
    assert (mt["average"], mt["n_failed"]) == (None, 4)
    shown = benchmark_tables(gather(of.run))
    assert shown[0].rows[0][1] == "-" and shown[0].rows[0][-1] == f"{QUESTIONS} unreadable"
    assert shown[1].rows[-1][1] == "-"


def test_a_judge_on_a_server_is_asked_when_the_model_is_put_away(tmp_path: Path) -> None:
    """Also by a server that throttles and fails, which changes nothing; what it refuses is counted."""

    refused: list[str] = []

    def manner(body: Body, _: int) -> Served:
        if any(text in body["messages"][-1]["content"] for text in refused):
            return error(400, "filtered")
        return Served(completion(*(choice(f"Score: {(i + len(str(body))) % 5}", i) for i in range(body["n"]))))

    async def judged(folder: Path, server: FakeChatServer) -> BoundRecipe:
        far = f"{{name: far, kind: alpaca_eval, judge: '{server.url}#j', judgments: 2, models: [1]}}"
        of = furnished(folder, far)
        refused.append(of.held_out[0].messages[-1].content)
        for t in (0, 1):
            await stages.evaluate_model(of, t, ScriptedEngine(speaker(t)), SILENT)
            assert not benchmarking.needs_model(of, t)
            await benchmarking.ask_others(of, t, SILENT)
        return of

    async def both() -> tuple[BoundRecipe, BoundRecipe, int]:
        async with FakeChatServer(manner) as server:
            calm = await judged(tmp_path / "calm", server)
            asked = len(server.bodies)
            server.manner = Troubled(manner, every=4)
            return calm, await judged(tmp_path / "troubled", server), asked

    calm, troubled, asked = asyncio.run(both())
    (far,) = result(calm, 1, "far")["results"]
    assert (far["n_judged"], far["n_refused"]) == (HELD_OUT - 1, 1) and asked > HELD_OUT
    assert result(troubled, 1, "far") == result(calm, 1, "far")


@pytest.mark.parametrize(
    "name", ["alpaca.jsonl", "arena.jsonl", "mt.jsonl", "grader.jsonl", "config.yaml", "clf.txt", "ranked.jsonl"]
)
def test_a_file_that_isn_t_there_is_told_before_anything_is_made(tmp_path: Path, name: str) -> None:
    of = furnished(tmp_path)
    benchmarking.check(of)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=name):
        benchmarking.check(of)


def test_files_aren_t_needed_when_all_is_done(tmp_path: Path) -> None:
    of = furnished(tmp_path, MT)
    all_of_it(of)
    (tmp_path / "mt.jsonl").unlink()
    benchmarking.check(of)


def test_an_official_length_control_needs_both_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"benchmarks\.0\.gamed: expected both difficulty and gamed, or neither"):
        load_recipe("pocket", ["benchmarks=[{kind: alpaca_eval, difficulty: a.csv}]"])


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("[{kind: mt_bench}]", "benchmarks.0.questions: must be given: File of"),
        ("[{kind: arena_hard, prompt: p}]", "questions: expected a file, as its judge has the benchmark's prompt"),
        ("[{kind: arena_hard, against: f}]", "expected m0 or previous, as the held-out prompts are this run's"),
        ("[{kind: mt_bench, questions: q, references: r}]", "expected nothing without prompt"),
        ("[{kind: mt_bench, questions: q, judge: oracle}]", "expected another judge: the oracle compares"),
        ("[{kind: alpaca_eval, version: v2}]", "benchmarks.0.version: unknown key; not a setting of this kind"),
        ("[{kind: alpaca_eval, models: [9]}]", "benchmarks.0.models: [9]: expected at most 4"),
        ("[{kind: alpaca_eval, judge: oracle, questions: q}]", 'benchmarks.0.judge: "oracle": expected another judge'),
        ("[{kind: judge_quality, judge: far}]", "expected itself: on held-out prompts each model is measured"),
        ("[{kind: alpaca_eval, modls: [1]}]", "benchmarks.0.modls: unknown key; the nearest known one is"),
        ("[{kind: alpaca}]", 'benchmarks.0.kind: "alpaca": expected one of alpaca_eval, arena_hard, mt_bench'),
        ("[{name: x}]", "benchmarks.0"),
        ("[3]", "benchmarks.0: 3: expected a section"),
        ("3", "expected a list"),
        ("[{kind: alpaca_eval, name: a/b}]", 'benchmarks.0.name: "a/b": expected letters, digits'),
        ("[{kind: alpaca_eval}, {kind: alpaca_eval}]", 'benchmarks.1.name: "alpaca_eval": expected a name of its own'),
        ("[{kind: nowhere.at_all:X}]", "benchmarks: kind: can't import nowhere.at_all:X"),
        ("[{kind: json:dumps}]", "benchmarks: kind: json:dumps is no subclass of Benchmark"),
    ],
)
def test_settings_that_don_t_fit_are_told(setting: str, line: str) -> None:
    with pytest.raises(UserError) as stop:
        load_recipe("pocket", [f"benchmarks={setting}"])
    assert line in str(stop.value)


def test_a_baseline_may_be_a_file(tmp_path: Path) -> None:
    outputs = [{"instruction": f"Do {i}.", "output": f"x{i}", "generator": "far"} for i in range(1, QUESTIONS)]
    fights = [
        {"question_id": f"q{i}", "model_id": "far", "choices": [{"turns": [{"content": f"y{i}"}]}]} for i in range(3)
    ]
    tmp_path.mkdir(exist_ok=True)
    lines(tmp_path / "base.jsonl", outputs)
    lines(tmp_path / "fights.jsonl", fights)
    own, hard = (each.removesuffix("}") for each in (OWN.replace("against: previous, ", ""), HARD))
    of = furnished(tmp_path, own + ", against: DIR/base.jsonl}", hard + ", against: DIR/fights.jsonl}")
    go(of, 0)
    (own_0,), (hard_0,) = result(of, 0, "own")["results"], result(of, 0, "hard")["results"]
    assert (own_0["model"], own_0["baseline"], own_0["n_judged"] + own_0["n_unreadable"]) == ("M0", "far", 5)
    assert hard_0["baseline"] == "far" and hard_0["models"][0]["model"] == "M0"


def test_the_demo_evaluates_every_model_by_the_oracle_and_by_itself(tmp_path: Path) -> None:
    asked = {each.name: each for each in load_recipe("pocket").benchmarks if isinstance(each, AlpacaEval)}
    assert {name: each.judge for name, each in asked.items()} == {"by-oracle": "oracle", "by-itself": "itself"}
    chosen = (f"{{kind: alpaca_eval, name: {name}, judge: {each.judge}}}" for name, each in asked.items())
    of = furnished(tmp_path, *chosen, changes=("prompts.source=pocket",))
    all_of_it(of)
    for name, t in itertools.product(asked, (1, 2)):
        assert asked[name] in of.recipe.benchmarks
        (told,) = result(of, t, name)["results"]
        assert told["n_judged"] + told["n_unreadable"] == HELD_OUT and 0 <= told["win_rate"] <= 100
        assert told["length_adjusted_winrate"] is not None and told["baseline"] == "M0"


def test_a_list_of_benchmarks_replaces_a_preset_s() -> None:
    recipe = load_recipe("pocket", ["benchmarks=[{kind: judge_quality}]"])
    assert [(each.kind, each.name) for each in recipe.benchmarks] == [("judge_quality", "judge_quality")]
    assert load_recipe("pocket", ["benchmarks=[]"]).benchmarks == ()


def test_the_report_and_the_terminal_show_them(tmp_path: Path) -> None:
    of = furnished(tmp_path)
    all_of_it(of)
    facts = gather(of.run)
    shown = {table.title.partition(":")[0]: table for table in benchmark_tables(facts)}
    assert list(shown) == ["held", "own", "label", "hard", "mt", "people"]
    assert [row[0] for row in shown["own"].rows] == ["M1 against M0", "M2 against M1"]
    assert [row[0] for row in shown["people"].rows[:3]] == ["M0", "M0: length only", "M0: chance"]
    assert all(len(row) == len(table.columns) for table in shown.values() for row in table.rows)
    write_report(of.run)
    page, stream = of.run.report.read_text(), io.StringIO()
    Console(file=stream, width=100).print(benchmarks_text(facts))
    for title in (table.title for table in shown.values()):
        assert title.split(",")[0] in page and title.split(",")[0] in stream.getvalue()
    assert 'href="#benchmarks"' in page
