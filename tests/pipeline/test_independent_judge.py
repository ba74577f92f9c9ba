"""An independent judge in the loop: asked once for each answer, its failures counted and survived, its cost planned."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import itertools
import json
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from chat_server import Answer, Body, FakeChatServer, Manner, choice, completion, error, served_beside
from pocket_script import pocket_experiment, scripted
from rich.console import Console
from run_folders import HELD_OUT, begin_recipe, begin_with_record, bound_recipe, log_entries, model_folder
from scripted_models import reply
from whole_runs import invoke

from metareward.config.schema import load_recipe
from metareward.engines.base import ScriptedEngine
from metareward.errors import UserError
from metareward.evaluation.independent_judge.run import IndependentJudge
from metareward.evaluation.judges import judge_name
from metareward.generation.progress import ANSWERS, JUDGMENTS, SILENT, Progress
from metareward.generation.throughput import Rates
from metareward.generation.verdicts import RubricGrader, VerdictRules
from metareward.method.judge import Rubric
from metareward.pipeline import benchmarks as benchmarking
from metareward.pipeline import stages
from metareward.pipeline.benchmarks import BenchmarkRun, benchmark_runs
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.engines import judge_fingerprint
from metareward.pipeline.loop import run_recipe
from metareward.pipeline.plan import measure_recipe, measured_rates, plan, plan_table
from metareward.pipeline.status import status, status_text
from metareward.pocket.world import PocketOracle
from metareward.report.benchmark_tables import benchmark_tables, run_comparisons
from metareward.report.facts import gather
from metareward.report.write import write_report
from metareward.storage.run_dir import mark_done
from metareward.storage.store import RecordStore
from metareward.types import Judgment, Messages, Prompt, Sampling, Scored

T = TypeVar("T")
MODELS = 3


def speaker(t: int) -> Callable[[Messages, Sampling, int], str]:
    """M_t: its answers name their model and sample, so that each is another text."""

    def said(messages: Messages, sampling: Sampling, index: int) -> str:
        spoken = reply(messages, sampling, index)
        return spoken if "<answer>" in messages[-1].content else f"{spoken} M{t}, {sampling.seed % 97}"

    return said


def score_of(body: Body, number: int) -> int:
    """The judge's score: 0 to 5 by what it is asked and the number of the judgment."""
    asked = body["messages"][-1]["content"]
    return (hashlib.sha256(asked.encode()).digest()[0] + number % 2) % 6


def judging(body: Body, _: int = 0) -> Answer:
    return Answer(completion(*(choice(f"Fine.\nScore: {score_of(body, i)}", i) for i in range(body["n"]))))


def asked(body: Body) -> str:
    return str(body["messages"][-1]["content"])


@dataclass(frozen=True)
class Loop:
    """A run with three models, evaluated but not judged yet, and a server that judges."""

    of: BoundRecipe
    server: FakeChatServer

    async def judge(self, *ts: int, progress: Progress = SILENT) -> None:
        for t in ts or range(MODELS):
            await benchmarking.ask_others(self.of, t, progress)

    def run_of(self, t: int, name: str = "far") -> BenchmarkRun:
        return next(each for each in benchmark_runs(self.of, t) if each.benchmark.name == name)

    def figures(self, t: int, name: str = "far") -> dict[str, Any]:
        (found,) = json.loads(self.run_of(t, name).result.read_text())["results"]
        return dict(found)

    def texts(self, t: int) -> list[str]:
        return [answer.text for record in stages.held_out_of(self.of, t) for answer in record.own[:1]]


InLoop = Callable[..., Any]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose three models are evaluated, by no benchmark."""

    async def evaluate() -> None:
        for t in range(MODELS):
            if t:
                model_folder(of.model(t), f"m{t}")
            await stages.evaluate_model(of, t, ScriptedEngine(speaker(t)), SILENT)

    of = begin_recipe(tmp_path_factory.mktemp("evaluated"), "benchmarks=[]")
    asyncio.run(evaluate())
    return of.run.path


@pytest.fixture
def in_loop(evaluated: Path) -> InLoop:
    """Does some work on a copy of the run in a folder, whose benchmark ``far`` has the given settings."""

    def do(folder: Path, work: Callable[[Loop], Awaitable[T]], settings: str = "", manner: Manner = judging) -> T:
        async def go() -> T:
            async with FakeChatServer(manner) as server:
                listed = f"benchmarks=[{{kind: independent_judge, name: far, judge: '{server.url}#j'{settings}}}]"
                of = begin_recipe(folder, listed)
                for t in range(MODELS):
                    shutil.copytree(evaluated / f"iter-{t}", of.run.iteration(t).path, dirs_exist_ok=True)
                return await work(Loop(of, server))

        folder.mkdir(exist_ok=True)
        return asyncio.run(go())

    return do


def test_every_model_is_judged_and_no_answer_twice(tmp_path: Path, in_loop: InLoop) -> None:
    async def work(loop: Loop) -> None:
        assert not any(benchmarking.needs_model(loop.of, t) for t in range(MODELS))
        await loop.judge()
        answers = [loop.texts(t) for t in range(MODELS)]
        assert len(loop.server.bodies) == len({asked(body) for body in loop.server.bodies}) == MODELS * HELD_OUT
        by_answer = {
            text: body for texts in answers for text in texts for body in loop.server.bodies if text in asked(body)
        }
        for t, texts in enumerate(answers):
            found = loop.figures(t)
            judged = [[score_of(by_answer[text], i) for i in range(3)] for text in texts]
            assert found["metrics"]["score"]["mean"] == pytest.approx(sum(map(sum, judged)) / 3 / HELD_OUT)
            assert (found["n_judged"], found["n_judgments"], found["n_refused"]) == (HELD_OUT, 3 * HELD_OUT, 0)
            base = [[score_of(by_answer[text], i) for i in range(3)] for text in answers[0]]
            wins = [sum(own) > sum(first) for own, first in zip(judged, base, strict=True)]
            if t:
                assert found["win_rate"]["wins"] == sum(wins) and found["win_rate"]["against"] == "M0"
                assert found["own_win_rate"]["judge"] == "itself" and found["judge_change"] is not None
            else:
                assert found["win_rate"] is None and found["judge_change"] is None
        await loop.judge()
        assert len(loop.server.bodies) == MODELS * HELD_OUT

    in_loop(tmp_path, work)


def test_the_models_judgments_of_m0_s_answers_are_held_to_it(tmp_path: Path, in_loop: InLoop) -> None:
    async def work(loop: Loop) -> None:
        await loop.judge()
        for t in range(MODELS):
            hits = []
            for record in stages.held_out_of(loop.of, t):
                answer = record.anchors_K[0]
                body = next(body for body in loop.server.bodies if answer.text in asked(body))
                reference = sum(score_of(body, i) for i in range(3)) / 3
                scores = [j.reading.score for j in answer.judgments_N if j.reading.kind == "scored"]
                hits += [abs(score - reference) <= 0.5 for score in scores]
            found = loop.figures(t)
            assert found["n_judgments_compared"] == len(hits)
            assert found["metrics"]["exact"]["mean"] == pytest.approx(sum(hits) / len(hits))
            assert 0 <= found["metrics"]["pair_confidence"]["mean"] <= 1 if t else True

    in_loop(tmp_path, work)


class Killed(Progress):
    """Ends the work after so many replies, as a kill does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, stage: str, totals: Any) -> None: ...

    def advance(self, kind: str, count: int) -> None:
        if kind == JUDGMENTS:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("killed")

    def finish(self) -> None: ...


def test_a_killed_judge_goes_on_where_it_was(tmp_path: Path, in_loop: InLoop) -> None:
    async def whole(loop: Loop) -> str:
        await loop.judge()
        return "".join(loop.run_of(t).result.read_text().replace(loop.server.url, "") for t in range(MODELS))

    async def stopped(loop: Loop) -> str:
        for after in (0, 1, 3, 2):
            for t in range(MODELS):
                before, place = stored(loop), len(loop.server.bodies)
                with contextlib.suppress(RuntimeError):
                    await loop.judge(t, progress=Killed(after))
                again = {asked(body) for body in loop.server.bodies[place:]}
                assert not again & before
        return await whole(loop)

    def stored(loop: Loop) -> set[str]:
        """The questions whose answers are on disk."""
        keys = {
            key.split(" ")[1]
            for path in loop.of.run.verdicts.glob("far/*.sqlite")
            for key, _ in RecordStore.read(path).documents()
        }
        texts = {text for t in range(MODELS) for text in loop.texts(t)}
        digests = {hashlib.sha256(text.encode()).hexdigest()[:16]: text for text in texts}
        return {asked(body) for body in loop.server.bodies for key in keys if digests[key] in asked(body)}

    assert in_loop(tmp_path / "a", stopped) == in_loop(tmp_path / "b", whole)


def test_a_second_run_shares_verdicts_on_the_same_answers(tmp_path: Path, in_loop: InLoop) -> None:
    async def work(loop: Loop) -> int:
        await loop.judge()
        return len(loop.server.bodies)

    shared = f", cache_dir: {tmp_path}/cache"
    first, second = in_loop(tmp_path / "a", work, shared), in_loop(tmp_path / "b", work, shared)
    assert (first, second) == (MODELS * HELD_OUT, 0)  # at another port: where a judge is isn't who it is
    assert in_loop(tmp_path / "c", work, shared + ", judgments: 2") == MODELS * HELD_OUT
    assert judge_name("http://127.0.0.1:1#j") == judge_name("http://other#j") == "#j"


def test_a_judge_that_is_gone_costs_nothing_but_its_verdicts(
    tmp_path: Path, in_loop: InLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(loop: Loop) -> None:
        await loop.judge(0)
        await loop.server.die()
        await loop.judge(1, 2)
        assert not loop.run_of(1).result.is_file() and benchmarking.pending(loop.of)
        assert "benchmarks.far: not all of M1 is judged" in caplog.text
        (line,) = status(loop.of.run).pending
        assert line.startswith("far: not all of M1, M2 is judged: http://127.0.0.1") and "asks again" in line
        assert "benchmarks that lack verdicts" in status_text(loop.of.run)
        write_report(loop.of.run)
        assert "not all of M1, M2 is judged" in loop.of.run.report.read_text()
        await loop.server.live()
        await loop.judge()
        assert not benchmarking.pending(loop.of) and status(loop.of.run).pending == ()
        assert not loop.of.run.report.is_file()  # it lacked these results
        assert loop.figures(2)["n_judged"] == HELD_OUT

    in_loop(tmp_path, work)


def test_refusals_and_unreadable_verdicts_are_counted_apart(tmp_path: Path, in_loop: InLoop) -> None:
    def manner(body: Body, place: int) -> Answer:
        number = int(asked(body).split("about ")[1].split(".")[0])
        if number % HELD_OUT == 0:
            return error(400, "too long")
        texts = ("no idea", "Score: 9", "Score: 3") if number % HELD_OUT == 1 else ("none",) * 3
        texts = ("Score: 3",) * 3 if number % HELD_OUT > 2 else texts
        return Answer(completion(*(choice(text, i) for i, text in enumerate(texts))))

    async def work(loop: Loop) -> None:
        await loop.judge(0)
        found = loop.figures(0)
        numbers = [int(record.prompt.id[1:]) % HELD_OUT for record in stages.held_out_of(loop.of, 0)]
        refused, mixed, none = (numbers.count(kind) for kind in range(3))
        assert (found["n_refused"], found["n_unreadable"]) == (refused, none)
        assert found["n_missing"] == mixed + 3 * none and found["n_out_of_range"] == mixed
        assert found["metrics"]["score"]["mean"] == 3 and found["n_judged"] == HELD_OUT - refused - none
        # One refusal of five is more than a few: what there is is shown, and the next start asks again.
        assert bool(refused) == loop.run_of(0).pending.is_file()
        shown = benchmark_tables(gather(loop.of.run))[0]
        assert f"{none} unreadable, {refused} refused" in shown.rows[0]
        rows = [json.loads(line) for line in (loop.run_of(0).folder / "verdicts.jsonl").read_text().splitlines()]
        assert [row["status"] for row in rows].count("refused") == refused
        assert all((row["score"] is None) == (row["status"] != "judged") for row in rows)

    in_loop(tmp_path, work, manner=manner)


def test_its_rubric_and_sampling_are_its_own(tmp_path: Path, in_loop: InLoop) -> None:
    rubric = tmp_path / "strict.txt"
    rubric.write_text("Be strict.\nQuestion: {question}\nAnswer: {answer}\nEnd with Score: 1 to 10.", encoding="utf-8")
    own = (
        ", judgments: 2, temperature: 0.3, top_p: 0.5, max_tokens: 77, min_score: 1, max_score: 10, system_prompt: Sys"
    )

    async def work(loop: Loop) -> None:
        await loop.judge()
        body = loop.server.bodies[0]
        assert (body["temperature"], body["top_p"], body["max_tokens"], body["n"]) == (0.3, 0.5, 77, 2)
        assert body["messages"][0]["content"] == "Sys" and asked(body).startswith("Be strict.")
        found = loop.figures(2)
        assert not found["same_scale"] and "exact" not in found["metrics"] and "excess" not in found["metrics"]
        columns = [column for table in benchmark_tables(gather(loop.of.run)) for column in table.columns]
        assert "exact %" not in columns and "rank corr." in columns

    in_loop(tmp_path, work, f", rubric: {rubric}{own}")


def test_left_out_settings_are_the_run_s() -> None:
    plain = {"kind": "independent_judge", "judge": "far"}
    run = RubricGrader(Rubric.load("judge"), 9, Sampling(0.8, 0.9, 64), True, VerdictRules(True, 2))
    assert IndependentJudge.model_validate(plain).grader(run) == replace(run, n=3)
    own = {
        "scores": "sampled",
        "verdict": "text",
        "retries": 0,
        "verdict_format": {"kind": "boxed"},
        "temperature": 0.0,
    }
    changed = IndependentJudge.model_validate(plain | own).grader(run)
    assert (changed.expected, changed.rules, changed.rubric.kind) == (False, VerdictRules(), "boxed")
    assert (changed.n, changed.sampling) == (1, Sampling(0.0, 0.9, 64))  # greedy judgments are all the same


def test_a_comparison_by_rubric_asks_about_m0_s_answers_once(tmp_path: Path, in_loop: InLoop) -> None:
    async def work(loop: Loop) -> None:
        listed = f"benchmarks=[{{kind: alpaca_eval, name: wins, judge: '{loop.server.url}#j'}}]"
        compared = Loop(begin_recipe(tmp_path, listed), loop.server)
        await compared.judge()
        assert len(loop.server.bodies) == MODELS * HELD_OUT
        assert compared.figures(2, "wins")["n_judged"] == HELD_OUT
        moved = listed.replace(loop.server.url, "http://127.0.0.1:1")
        begin_recipe(tmp_path, moved)  # the same judge at another address
        with pytest.raises(UserError, match=r'benchmarks\.wins\.judge \("#j" -> "#k"\)'):
            begin_recipe(tmp_path, moved.replace("#j", "#k"))

    in_loop(tmp_path, work)


def test_it_may_come_and_go_but_a_name_is_one_measurement(tmp_path: Path) -> None:
    far = "{kind: independent_judge, name: far, judge: 'http://127.0.0.1:1#j'}"
    plain = begin_with_record(tmp_path, "benchmarks=[]")
    before = plain.generation_fingerprint(1)
    added = begin_recipe(tmp_path, f"benchmarks=[{far}]")
    assert added.generation_fingerprint(1) == before and benchmarking.pending(added)
    assert [each["name"] for each in gather(added.run).recipe.resolved()["benchmarks"]] == ["far"]
    assert log_entries(added.run, "benchmarks changed")[-1]["names"] == ["far"]
    other = far.replace("}", ", judgments: 7}")
    with pytest.raises(UserError, match=r"benchmarks\.far\.judgments \(3 -> 7\); fix: set it back, or the benchmark"):
        begin_recipe(tmp_path, f"benchmarks=[{other}]")
    begin_recipe(tmp_path, f"benchmarks=[{far}, {other.replace('far', 'more')}]")
    begin_recipe(tmp_path, "benchmarks=[]")
    with pytest.raises(UserError, match=r"benchmarks\.far\.judgments"):  # its results are still there
        begin_recipe(tmp_path, f"benchmarks=[{other}]")
    priced = far.replace("}", ", models: [0, 2], price: {prompt: 1, completion: 2}}")
    begin_recipe(tmp_path, f"benchmarks=[{priced}]")
    with pytest.raises(UserError, match=r"judgments\.n"):
        begin_recipe(tmp_path, f"benchmarks=[{far}]", "judgments.n=2")


def test_a_finished_run_is_measured_by_what_is_added(tmp_path: Path, evaluated: Path) -> None:
    of = begin_recipe(tmp_path, "benchmarks=[]")
    for t in range(MODELS):
        shutil.copytree(evaluated / f"iter-{t}", of.run.iteration(t).path, dirs_exist_ok=True)
    for t in range(1, MODELS):
        asyncio.run(stages.generate(of, t, ScriptedEngine(speaker(t - 1)), SILENT))
        stages.make_pairs(of, t)
        mark_done(of.run.iteration(t).done, {})
    write_report(of.run)
    assert not run_recipe(of.recipe, of.run.path, "")
    with served_beside(judging) as server:
        far = f"benchmarks=[{{kind: independent_judge, name: far, judge: '{server.url}#j', judgments: 1}}]"
        recipe = bound_recipe(tmp_path, far).recipe
        assert run_recipe(recipe, of.run.path, "")
        assert len(server.bodies) == MODELS * HELD_OUT and "far: Independent judge" in of.run.report.read_text()
        assert not run_recipe(recipe, of.run.path, "")
        assert len(server.bodies) == MODELS * HELD_OUT


def test_another_model_in_the_judge_s_folder_is_noticed(tmp_path: Path) -> None:
    judge = model_folder(tmp_path / "judge", "one")
    near = f"benchmarks=[{{kind: independent_judge, judge: {judge}}}]"
    begin_with_record(tmp_path, near)
    model_folder(judge, "two")
    with pytest.raises(UserError, match=r"benchmarks\.independent_judge: judge .*judge"):
        bound_recipe(tmp_path, near).check()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("judge: itself", 'benchmarks.0.judge: "itself": expected a judge beside the model'),
        ("judge: oracle", "expected a judge beside the model"),
        ("judge: far, min_score: 3, max_score: 2", "benchmarks.0.min_score: 3.0: expected a number below max_score"),
        ("judgments: 2", "benchmarks.0.judge: must be given"),
    ],
)
def test_settings_that_don_t_fit_are_told(settings: str, line: str) -> None:
    with pytest.raises(UserError) as stop:
        load_recipe("pocket", [f"benchmarks=[{{kind: independent_judge, {settings}}}]"])
    assert line in str(stop.value)


@pytest.mark.parametrize(
    ("judge", "line"),
    [
        ("nowhere/judge", "nowhere/judge: no model here"),
        ("http://127.0.0.1:1", "say which model the server is asked for"),
        ("nowhere.yaml", "nowhere.yaml"),
        ("nowhere.at_all:Judge", "can't import nowhere.at_all:Judge"),
        ("pocket, rubric: nowhere.txt", "nowhere.txt"),
    ],
)
def test_a_judge_that_can_t_be_is_told_before_anything_is_made(tmp_path: Path, judge: str, line: str) -> None:
    of = bound_recipe(
        tmp_path,
        f"benchmarks=[{{kind: independent_judge, judge: '{judge}'}}]".replace(", r", "', r").replace("txt'", "txt"),
    )
    with pytest.raises(UserError, match=line):
        benchmarking.check(of)
    assert not of.run.path.exists()


def test_a_judge_s_recipe_needs_a_model_and_an_engine_only(tmp_path: Path, in_loop: InLoop) -> None:
    async def work(loop: Loop) -> None:
        judge = tmp_path / "judge.yaml"
        engine = f"{{kind: openai, base_urls: ['{loop.server.url}'], model: j, max_concurrency: 2}}"
        judge.write_text(f"model: elsewhere\nengine: {engine}\n", encoding="utf-8")
        again = begin_recipe(tmp_path, f"benchmarks=[{{kind: independent_judge, name: near, judge: {judge}}}]")
        await benchmarking.ask_others(again, 0, SILENT)
        assert loop.server.most_under_way == 2
        assert Loop(again, loop.server).figures(0, "near")["n_judged"] == HELD_OUT
        judge.write_text("extends: pocket\n", encoding="utf-8")  # a whole recipe, with benchmarks of its own
        assert judge_fingerprint(str(judge)).keys() >= {"judge's files", "judge's engine.kind"}

    in_loop(tmp_path, work)


def test_the_plan_tells_calls_tokens_and_money() -> None:
    judge = (
        "benchmarks=[{kind: independent_judge, name: far, judge: 'http://x#j', judgments: 4, max_tokens: 50, retries: 1"
    )
    price = ", price: {prompt: 2, completion: 10, currency: EUR}"
    held = ["prompts.held_out=10", "answers.max_tokens=30"]
    made = plan(load_recipe("pocket", [f"{judge}{price}}}]", *held]))
    assert made.benchmarks is not None
    assert [[(r.role, r.calls, r.tokens) for r in each.roles] for each in made.benchmarks] == [
        [(JUDGMENTS, 40, 4000)]
    ] * 5
    (told,) = made.judges
    assert (told.name, told.calls, told.completion_tokens, told.seconds) == ("far", 200, 20_000, None)
    assert 200 * 30 < told.prompt_tokens < 200 * 400 and told.prompts_known
    assert told.price == f"{(told.prompt_tokens * 2 + 20_000 * 10) / 1e6:,.2f} EUR"
    stream = io.StringIO()
    Console(file=stream, width=200).print(plan_table(made))
    assert (
        f"judge far: 200 judgments, about {told.prompt_tokens:,} prompt tokens, 20,000 completion tokens; 0."
        in stream.getvalue()
    )
    measured = plan(load_recipe("pocket", [f"{judge}}}]", *held]), Rates(judges={"far": (5.0, 0.1)})).judges[0]
    assert (measured.completion_tokens, measured.price) == (1000, None)
    assert measured.seconds == pytest.approx(20)
    # M0 isn't measured itself, but its answers are judged beside M4's.
    late = plan(load_recipe("pocket", [f"{judge}, models: [4]}}]", *held])).judges[0]
    assert late.calls == 80


@pytest.mark.slow
def test_measuring_asks_the_judge_for_a_moment(tmp_path: Path) -> None:
    with served_beside(judging) as server:
        engine = f"engine={{kind: openai, base_urls: ['{server.url}'], model: m}}"
        far = f"benchmarks=[{{kind: independent_judge, name: far, judge: '{server.url}#j', judgments: 2}}]"
        of = bound_recipe(tmp_path, engine, far)
        rates = measure_recipe(of.recipe, 0.1)
    tokens, seconds = rates.judges["far"]
    assert tokens > 0 and seconds > 0 and rates.tokens_each.keys() >= {ANSWERS, JUDGMENTS}
    assert plan(of.recipe, rates).judges[0].seconds == pytest.approx(2 * HELD_OUT * MODELS * seconds)


def test_a_run_tells_the_next_plan_what_its_judge_took(tmp_path: Path, in_loop: InLoop) -> None:
    async def work(loop: Loop) -> Rates:
        await loop.judge()
        return measured_rates(loop.of.run)

    tokens, seconds = in_loop(tmp_path, work).judges["far"]
    assert tokens == pytest.approx(5 / 3, abs=0.4) and seconds > 0  # the server counts 5 tokens for three judgments


def test_report_status_and_terminal_show_it(tmp_path: Path, in_loop: InLoop) -> None:
    async def work(loop: Loop) -> None:
        await loop.judge()
        facts = gather(loop.of.run)
        answers, judges = benchmark_tables(facts)
        assert answers.title == f"far: Independent judge {loop.server.url}#j, by the run's rubric: answers"
        assert [row[0] for row in answers.rows] == [row[0] for row in judges.rows] == ["M0", "M1", "M2"]
        assert judges.rows[0][-1] == "-" and judges.rows[2][-1] in {
            "better",
            "less noisy",
            "more confident",
            "worse",
            "unclear",
        }
        assert {"independent_score", "independent_self_agreement"} <= facts.evaluations[1].metrics.keys()
        ((name, compared),) = run_comparisons(loop.of.run, facts)
        assert name == "far" and [(each.a, each.b) for each in compared] == [("M0", "M1"), ("M0", "M2"), ("M1", "M2")]
        write_report(loop.of.run)
        page = loop.of.run.report.read_text()
        for words in (
            "by the independent judge",
            "held to the independent judge",
            "Agreement with the independent judge",
        ):
            assert words in page
        (line,) = status(loop.of.run).judges
        score = loop.figures(2)["metrics"]["score"]["mean"]
        assert f"M2 {score:.2f}" in line and "judging: " in line
        (used,) = gather(loop.of.run).server_usage
        cost = (3 * used.prompt_tokens + 9 * used.completion_tokens) / 1e6
        assert line.endswith(f"{cost:.2f} USD") and used.completion_tokens > 0

    in_loop(tmp_path, work, ", price: {prompt: 3, completion: 9}")


def test_the_command_gives_the_figures_of_the_loop(tmp_path: Path, in_loop: InLoop) -> None:
    async def work(loop: Loop) -> list[dict[str, Any]]:
        await loop.judge()
        return [loop.figures(t) for t in range(MODELS)]

    in_run = in_loop(tmp_path, work)
    with served_beside(judging) as server:
        words = ["evaluate", "independent-judge", "--run", str(tmp_path / "run"), "--judge-engine", f"{server.url}#j"]
        words += ["--cache", str(tmp_path / "cache"), "--max-tokens", "64", "--json", str(tmp_path / "out.json")]
        shown = invoke(words)
        assert shown.exit_code == 0, shown.output
        assert "the models as judges of M0's answers" in shown.output
        asked_once = len(server.bodies)
        assert invoke(words).exit_code == 0 and len(server.bodies) == asked_once
    found = json.loads((tmp_path / "out.json").read_text())["models"]
    for one, other in itertools.zip_longest(found, in_run):
        assert one["metrics"]["score"]["mean"] == other["metrics"]["score"]["mean"]
        assert one["metrics"]["exact"]["mean"] == other["metrics"]["exact"]["mean"]
        assert one["n_judged"] == other["n_judged"]


class Truth:
    """The pocket world's oracle as a judge of a user's own."""

    async def judge(self, prompt: Prompt, answer: str, n: int) -> list[Judgment]:
        return [Judgment(i, "", 0, Scored(PocketOracle().answer_score(prompt, answer))) for i in range(n)]


def test_held_to_the_truth_its_figures_are_those_of_the_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An independent implementation: what the run computes by the oracle on the same answers."""
    (tmp_path / "truth_judge.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    of = pocket_experiment(tmp_path, "benchmarks=[{kind: independent_judge, judge: 'truth_judge:Truth', judgments: 2}]")
    for t, skill in ((0, 0.2), (1, 0.7)):
        if t:
            model_folder(of.model(t), "m1")
        asyncio.run(stages.evaluate_model(of, t, ScriptedEngine(scripted(skill=skill)), SILENT))
        asyncio.run(benchmarking.ask_others(of, t, SILENT))
    for t in (0, 1):
        known = json.loads(stages.evaluation_result(of, t).read_text())
        (run,) = benchmark_runs(of, t)
        (found,) = json.loads(run.result.read_text())["results"]
        names = {"score": "answer_quality", "exact": "judgment_exact", "rank_correlation": "judgment_rank_correlation"}
        for ours, theirs in {**names, "mean_rank_correlation": "judgment_mean_rank_correlation"}.items():
            assert found["metrics"][ours]["mean"] == pytest.approx(known["metrics"][theirs]["mean"])
            assert found["metrics"][ours]["n"] == known["metrics"][theirs]["n"]
        if t:
            by_oracle = next(each for each in known["win_rates"] if each["judge"] == "oracle")
            for key in ("win_rate", "wins", "losses", "draws", "length_adjusted", "p_value"):
                assert found["win_rate"][key] == by_oracle[key]
        assert found["reference"] == {"self_agreement": 1.0, "reliability": pytest.approx(1.0)}
