"""The judge is checked once before iteration 1, on its world's pairs, a file's or the package's, as the recipe says."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from pocket_script import Reply, careful, pocket_experiment, scripted
from run_folders import log_entries

from metareward.config.schema import load_recipe
from metareward.engines.base import ScriptedEngine
from metareward.errors import JudgeHealthError
from metareward.evaluation.judge_quality.check import JudgeCheck
from metareward.generation.progress import SILENT
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.judge_check import check_before_first, check_is_settled, check_judge, cost_line
from metareward.pipeline.plan import plan
from metareward.report.facts import gather
from metareward.report.write import page
from metareward.types import Messages, Sampling

GOOD = """
class Good:
    async def score(self, prompt, answers):
        return [float("g" in each) for each in answers]
"""
NO_META = ("iterations.1.judge_pairs=false", "iterations.2.judge_pairs=false")


def by_length(messages: Messages, sampling: Sampling, index: int) -> str:
    """Answers as the scripted model does; a longer answer gets more points."""
    text = messages[-1].content
    if "Judge kind" not in text:
        return scripted()(messages, sampling, index)
    return f"Score: {min(5, len(text.partition('Answer:')[2]) // 12)}"


def before_first(of: BoundRecipe, reply: Reply) -> ScriptedEngine:
    engine = ScriptedEngine(reply)
    asyncio.run(check_before_first(of, engine, SILENT))
    return engine


def check(of: BoundRecipe, reply: Reply) -> JudgeCheck:
    return asyncio.run(check_judge(of, ScriptedEngine(reply), SILENT))


def test_a_careful_judge_passes_and_is_asked_once(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path, "judge_check.action=stop")
    engine = before_first(of, scripted(careful))
    asked = [call.n for call in engine.calls if call.role == "judge"]
    found = gather(of.run).judge_check
    assert found is not None and found.beats_length
    assert found.source == "M0's answers, labelled by the oracle" and 20 <= found.n_pairs <= 48
    assert found.asked.judgments == sum(asked) == found.n_pairs * 2 * 4
    assert found.readable is not None and found.readable.value == 1.0
    assert found.position_flips is not None  # the recipe has a meta-judge
    assert before_first(of, scripted()).calls == []
    assert log_entries(of.run, "judge check") != []
    assert "The judge sees more than length" in page(of.run)


@pytest.mark.parametrize("action", ["stop", "warn", "note"])
def test_a_judge_by_length_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, action: str) -> None:
    of = pocket_experiment(tmp_path, f"judge_check.action={action}", *NO_META)
    with caplog.at_level(logging.WARNING):
        if action == "stop":
            with pytest.raises(JudgeHealthError, match=r"isn't shown to beat length alone.*judge_check.action=warn"):
                before_first(of, by_length)
            with pytest.raises(JudgeHealthError):  # again, from what is stored
                assert before_first(of, by_length).calls == []
            on = BoundRecipe(of.run, load_recipe(str(of.run.resolved), ["judge_check.action=warn"]))
            on.check()
            assert check_is_settled(on)
        else:
            before_first(of, by_length)
            assert check_is_settled(of)
    assert ("isn't shown to beat" in caplog.text) == (action == "warn")
    found = gather(of.run).judge_check
    assert found is not None and found.position_flips is None
    assert "prefers the longer answer" in page(of.run)


def test_a_stopped_run_checks_a_changed_judge_again(tmp_path: Path) -> None:
    """Nothing was made, so the folder isn't bound to the recipe of the first start, and its result goes."""
    of = pocket_experiment(tmp_path, "judge_check.action=stop", *NO_META)
    with pytest.raises(JudgeHealthError):
        before_first(of, by_length)
    again = BoundRecipe(of.run, load_recipe(str(of.run.resolved), ["judge_check.count=40"]))
    again.begin("")
    before_first(again, scripted(careful))
    found = gather(of.run).judge_check
    assert found is not None and found.beats_length and found.n_pairs <= 40


def test_no_check_unless_it_is_asked_for(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path)
    assert check_is_settled(of) and before_first(of, by_length).calls == []
    assert gather(of.run).judge_check is None


def test_a_file_of_pairs_and_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"input": "x", "output_1": "good" * i, "output_2": "ba" * j, "label": 1}
        for i, j in ((1, 5), (5, 1), (2, 9), (9, 2)) * 4
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({**row, "id": str(i), "input": str(i)}) for i, row in enumerate(rows)))
    (tmp_path / "good_reward.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    of = pocket_experiment(tmp_path, f"judge_check.pairs={path}", "reward=good_reward:Good", *NO_META)
    found = check(of, by_length)
    assert (found.source, found.n_pairs, found.asked.completions) == (str(path), 16, 0)
    assert found.beats_length and found.readable is None


def test_the_package_s_pairs_where_there_is_no_oracle(tmp_path: Path) -> None:
    of = pocket_experiment(tmp_path, *NO_META)
    recipe = load_recipe(str(of.run.resolved), ["prompts.source=other.jsonl"])
    found = check(BoundRecipe(of.run, recipe), lambda messages, sampling, index: "Score: 3")
    assert (found.source, found.n_pairs) == ("the package's pairs", 48)
    assert found.judge.ties is not None and found.judge.ties.value == 1.0
    assert any("ties" in each for each in found.advice)


def test_a_plan_counts_the_check() -> None:
    recipe = load_recipe("smollm2")
    without = plan(load_recipe("smollm2", ["judge_check.action=null"]))
    made = plan(load_recipe("smollm2", ["judge_check.action=warn"]))
    assert [role.calls for role in made.check] == [48 * 6, 96, 0]
    assert made.tokens == without.tokens + sum(role.tokens for role in made.check)
    assert without.check == ()
    assert cost_line(recipe).startswith("asks for at most 288 answers of at most 160 tokens, 96 judgments")
