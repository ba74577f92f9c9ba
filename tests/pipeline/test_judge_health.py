"""Bad judges are stopped or warned about by the right gate, healthy ones aren't, and a stopped run can go on."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chat_server import Answer, Body, FakeChatServer, choice, completion
from pocket_script import SMALL, Reply, careful, pocket_experiment, scripted
from run_folders import log_entries, model_folder
from whole_runs import documents

from metareward.cli.main import main
from metareward.config.schema import load_recipe
from metareward.engines.base import ScriptedEngine
from metareward.errors import JudgeHealthError
from metareward.generation.progress import SILENT
from metareward.method.health_checks import HealthCheck
from metareward.pipeline import stages
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.judge_health import check_health
from metareward.pipeline.loop import run_recipe
from metareward.pipeline.status import status_text
from metareward.report.facts import gather, read_health
from metareward.report.judge_health import headline
from metareward.report.write import page
from metareward.storage.run_dir import RunDir
from metareward.types import Message, Sampling


def evaluate(of: BoundRecipe, t: int, reply: Reply) -> None:
    asyncio.run(stages.evaluate_model(of, t, ScriptedEngine(reply), SILENT))


def generate(of: BoundRecipe, t: int, reply: Reply) -> ScriptedEngine:
    engine = ScriptedEngine(reply)
    asyncio.run(stages.generate(of, t, engine, SILENT))
    return engine


def run_iteration(of: BoundRecipe, t: int, before: Reply, after: Reply) -> None:
    """What the loop does in iteration ``t``, with the two models given: M_t is said to be trained."""
    if t == 1:
        evaluate(of, 0, before)
        check_health(of)
    generate(of, t, before)
    stages.make_pairs(of, t)
    check_health(of)
    model_folder(of.model(t), f"m{t}")
    evaluate(of, t, after)
    check_health(of)


def fired(of: BoundRecipe, action: str) -> set[str]:
    """The gates that fired with this action, in any check."""
    found = (each for check in read_health(of.run) for each in check.fired)
    return {each.name for each in found if each.limit.action == action}


def checks(of: BoundRecipe) -> list[tuple[str, str]]:
    return [(check.model, check.stage) for check in read_health(of.run)]


# --- planted judges ---


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
def test_healthy_runs_have_no_warning(tmp_path: Path, seed: int) -> None:
    of = pocket_experiment(tmp_path, f"seed={seed}")
    run_iteration(of, 1, scripted(skill=0.3), scripted(skill=0.5))
    assert checks(of) == [("M0", "evaluation"), ("M0", "records"), ("M1", "evaluation")]
    assert fired(of, "warn") == fired(of, "stop") == set()


def mute(truth: int, draw: random.Random) -> str:
    return "Rather good."


def test_a_judge_without_verdicts_stops_the_run_before_iteration_1(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path)
    evaluate(of, 0, scripted(mute))
    with pytest.raises(JudgeHealthError) as stop:
        check_health(of)
    line = str(stop.value)
    assert "\n" not in line
    assert "stopped after the evaluation of M0 by the gate unusable_judge: 0 % of 160 judgments" in line
    assert "160 missing" in line and "the limit is at least 20 %" in line
    assert "judgments.rubric" in line  # the remedy
    assert line.endswith("run again with --set judge_health.unusable_judge.action=warn")
    assert not of.run.iteration(1).records.exists()


def test_a_judge_that_says_3_to_all_stops_the_run(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path)
    evaluate(of, 0, scripted(lambda truth, draw: "Score: 3"))
    with pytest.raises(JudgeHealthError, match="gate one_score: 100 % of 160 scores"):
        check_health(of)


def shy(truth: int, draw: random.Random) -> str:
    """A judge that was taught to write nothing readable about good answers."""
    return careful(truth, draw) if truth < 5 or draw.random() < 0.3 else "Score: good"


def test_a_judge_that_fails_good_answers_is_warned_about(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path)
    run_iteration(of, 1, scripted(), scripted(shy, skill=0.4))
    assert fired(of, "warn") == {"readable_judgments", "readable_by_truth", "readable_by_score"}
    run_iteration(of, 2, scripted(shy, skill=0.4), scripted(shy, skill=0.5))
    assert {"lost_best_by_truth", "left_out_answers"} <= fired(of, "warn")
    assert fired(of, "stop") == set()


def test_without_an_oracle_the_other_judgments_show_it(tmp_path: Path) -> None:
    """The pocket world without its oracle: what is left are the judgments of M0 and of the judge itself."""
    of = pocket_experiment(tmp_path, "iterations.2=drop")
    prompts = [{"id": each.id, "prompt": each.messages[0].content} for each in (*of.held_out, *of.prompts(1))]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    blind = pocket_experiment(tmp_path / "blind", f"prompts.source={tmp_path}/prompts.jsonl", "iterations.2=drop")
    assert blind.oracle is None
    run_iteration(blind, 1, scripted(shy, skill=0.4), scripted(shy, skill=0.4))
    found = {
        (check.stage, check.model)
        for check in read_health(blind.run)
        for each in check.fired
        if each.name == "readable_by_score"
    }
    assert ("records", "M0") in found


def test_a_meta_judge_that_prefers_the_first_is_warned_about(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path)
    evaluate(of, 0, scripted(comparing=lambda lead, draw: "A"))
    check_health(of)
    assert fired(of, "warn") == {"first_position", "position_flips"}


def test_a_meta_judge_without_verdicts_stops_a_run_that_needs_it(tmp_path: Path) -> None:
    silent = scripted(comparing=lambda lead, draw: "?")
    of = pocket_experiment(tmp_path / "meta")
    evaluate(of, 0, silent)
    with pytest.raises(JudgeHealthError, match="gate unusable_meta_judge: 0 % of 80 meta-judgments"):
        check_health(of)
    none = pocket_experiment(tmp_path / "self", *(f"iterations.{t}.judge_pairs=false" for t in (1, 2)))
    evaluate(none, 0, silent)
    check_health(none)


def test_a_judge_that_falls_silent_is_stopped_after_the_first_prompts(tmp_path: Path) -> None:
    """It judges the held-out prompts well, and no other."""
    of = pocket_experiment(tmp_path, "prompts.per_iteration=120", "iterations.2=drop")
    evaluate(of, 0, scripted())
    check_health(of)
    with pytest.raises(
        JudgeHealthError, match=r"after the first prompts of iteration 1 \(by M0\) by the gate unusable"
    ):
        generate(of, 1, scripted(mute))
    assert checks(of) == [("M0", "evaluation"), ("M0", "first prompts")]
    with pytest.raises(JudgeHealthError):  # at once, from what is stored
        assert generate(of, 1, scripted(mute)).calls == []
    on = resumed(of, "judge_health.unusable_judge.action=note")
    check_health(on)
    generate(on, 1, scripted())
    assert not stages.records_pending(on, 1)


REWARD = """
class Length:
    async def score(self, prompt, answers):
        return [float(len(answer)) for answer in answers]
"""


def test_a_judge_that_a_reward_replaces_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "length_of_answers.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    no_judge_pairs = (f"iterations.{t}.judge_pairs=false" for t in (1, 2))
    of = pocket_experiment(tmp_path, "reward=length_of_answers:Length", *no_judge_pairs)
    evaluate(of, 0, scripted(mute))
    check_health(of)
    assert read_health(of.run) == ()


# --- stop, resume ---


def resumed(of: BoundRecipe, *changes: str) -> BoundRecipe:
    """The same run with other gates."""
    again = BoundRecipe(of.run, load_recipe(str(of.run.resolved), changes))
    again.check()  # the gates are no part of what the records depend on
    return again


def test_a_stopped_run_goes_on_with_the_gate_set_to_warn(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path)
    evaluate(of, 0, scripted(lambda truth, draw: "Score: 3"))
    for _ in range(2):  # it stops again
        with pytest.raises(JudgeHealthError):
            check_health(of)
    (entry,) = {json.dumps(each) for each in read_log(of, "judge health")}
    assert json.loads(entry)["fired"] == "one_score (stop)"
    on = resumed(of, "judge_health.one_score.action=warn")
    check_health(on)
    assert fired(on, "warn") == {"one_score"} and fired(on, "stop") == set()
    generate(on, 1, scripted())


def read_log(of: BoundRecipe, event: str) -> list[dict[str, object]]:
    return [{name: value for name, value in each.items() if name != "time"} for each in log_entries(of.run, event)]


def test_what_was_let_through_stays_let_through(tmp_path: Path) -> None:
    """Once iteration 1 has pairs, M0's evaluation stops nothing, with or without the changed setting."""
    of = pocket_experiment(tmp_path)
    evaluate(of, 0, scripted(lambda truth, draw: "Score: 3"))
    on = resumed(of, "judge_health.one_score.action=warn")
    check_health(on)
    generate(on, 1, scripted())
    stages.make_pairs(on, 1)
    check_health(of)
    assert fired(of, "warn") == {"one_score"}  # as it was


def test_gates_are_no_part_of_the_records_fingerprints(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path)
    on = resumed(of, "judge_health.one_score.threshold=0.5", "judge_health.top_scores.action=stop")
    assert of.generation_fingerprint(1) == on.generation_fingerprint(1)
    assert of.evaluation_fingerprint(0) == on.evaluation_fingerprint(0)


def test_the_last_model_stops_nothing(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path, "iterations.2=drop")
    run_iteration(of, 1, scripted(), scripted(mute))
    assert fired(of, "stop") == {"unusable_judge"}


def test_status_says_what_stopped_the_run_and_how_to_go_on(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path)
    evaluate(of, 0, scripted(mute))
    with pytest.raises(JudgeHealthError):
        check_health(of)
    text = status_text(of.run)
    assert text.splitlines()[0].endswith(
        f"stopped by judge health; `metareward run {of.run.path} "
        "--set judge_health.unusable_judge.action=warn` resumes it"
    )
    assert "judge health: 1 stop" in text
    assert "  stop: unusable_judge in the evaluation of M0: 0 % of 160 judgments" in text


def test_the_report_of_a_stopped_run_names_the_gate(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path)
    evaluate(of, 0, scripted(mute))
    with pytest.raises(JudgeHealthError):
        check_health(of)
    found = headline(gather(of.run))
    assert found is not None
    assert str(found).startswith("Judge: 0 % of M0's judgments are readable; 1 stop")
    html = page(of.run)
    assert 'href="#gate-unusable_judge"' in html and 'id="gate-unusable_judge"' in html


# --- through the command line ---


@contextmanager
def served(reply: Reply) -> Iterator[FakeChatServer]:
    """A chat server of the scripted model, in a thread of its own."""

    def manner(body: Body, _: int) -> Answer:
        messages = tuple(Message(each["role"], each["content"]) for each in body["messages"])
        sampling = Sampling(body["temperature"], body["top_p"], body["max_tokens"], body["seed"])
        return Answer(completion(*(choice(reply(messages, sampling, i), i) for i in range(body["n"]))))

    loop, server = asyncio.new_event_loop(), FakeChatServer(manner)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.live(), loop).result()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.die(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and the last line of standard error of ``metareward``."""
    monkeypatch.setattr(sys, "argv", ["metareward", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code, capsys.readouterr().err.splitlines()[-1]


def test_a_useless_judge_costs_an_evaluation_and_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(scripted(mute)) as server:
        engine = f"engine={{kind: openai, base_urls: ['{server.url}']}}"
        changes = [*SMALL, engine]
        words = ["run", "pocket", "--out", str(tmp_path / "run"), *(w for each in changes for w in ("--set", each))]
        code, line = command(monkeypatch, capsys, *words)
        assert code == 3
        assert line.startswith(f"metareward: {tmp_path}/run: stopped after the evaluation of M0 by the gate unusable")
        run = RunDir(tmp_path / "run")
        assert run.report.is_file() and documents(run.iteration(1).records) == {}
        asked = len(server.bodies)
        assert asked == 2 * 40  # one request for answers, one for judgments
        assert command(monkeypatch, capsys, *words) == (3, line)
        assert len(server.bodies) == asked  # from what is stored
        code, line = command(monkeypatch, capsys, *words, "--set", "judge_health.unusable_judge.action=warn")
        assert code == 2 and "iteration 1 gave no pairs" in line
        assert len(server.bodies) > asked


# --- the shipped model ---

REAL = (
    "prompts.per_iteration=60",
    "prompts.held_out=60",
    "benchmarks=[]",
    *(f"iterations.{t}=drop" for t in (2, 3, 4)),
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_shipped_model_has_no_warning(tmp_path: Path) -> None:
    run_recipe(load_recipe("pocket", REAL), tmp_path / "run", "")
    checked = read_health(RunDir(tmp_path / "run"))
    assert [check.model for check in checked] == ["M0", "M0", "M1"]
    assert [each.finding for check in checked for each in check.fired if each.limit.action != "note"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_shipped_model_cut_off_in_its_judgments_is_stopped_before_iteration_1(tmp_path: Path) -> None:
    with pytest.raises(JudgeHealthError, match=r"gate unusable_judge: 0 % of 120 judgments .* 120 truncated"):
        run_recipe(load_recipe("pocket", [*REAL, "judgments.max_tokens=2"]), tmp_path / "run", "")
    assert documents(RunDir(tmp_path / "run").iteration(1).records) == {}


def test_checks_are_json(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path)
    evaluate(of, 0, scripted())
    check_health(of)
    (check,) = json.loads(of.run.judge_health.read_text())
    assert check["results"][0]["finding"].startswith("100 % of 160 judgments have a readable score")
    assert isinstance(read_health(of.run)[0], HealthCheck)
