"""Objects that a recipe names by import path: a reward instead of judgments, a judge instead of the rubric."""

from __future__ import annotations

import json
import sys
import time

import pytest
from tiny_models import tiny_llama
from whole_runs import Workspace, documents, invoke, kill_tree, write_inputs

from metareward.errors import UserError
from metareward.storage.records import record_from_json
from metareward.storage.run_dir import RunDir

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="walks through /proc")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A model, prompts and a recipe."""
    folder = tmp_path_factory.mktemp("objects")
    tiny_llama(folder / "model", verdicts=True)
    write_inputs(folder)
    return Workspace(folder)


REWARD = """
class Length:
    async def score(self, prompt, answers):
        return [float(len(answer)) for answer in answers]
"""
JUDGE = """
from metareward import Judgment, Scored, Unparsed

class EvenOdd:
    async def judge(self, prompt, answer, n):
        good = Scored(5.0 if len(answer) % 2 else 2.0)
        return [Judgment(i, "by rule", 0, good if i else Unparsed("missing")) for i in range(n)]
"""
NO_JUDGE_PAIRS = ("--set", "iterations.1.judge_pairs=false", "--set", "iterations.2=drop")


@pytest.mark.slow
def test_a_reward_scores_a_resumed_run_and_a_changed_reward_is_refused(place: Workspace) -> None:
    source = place.folder / "length_reward.py"
    source.write_text(REWARD)
    words = ("--set", "reward=length_reward:Length", *NO_JUDGE_PAIRS)
    killed = place.start("rewarded", *words)
    run = RunDir(place.folder / "rewarded")
    until = time.monotonic() + 300
    while not _annotated(run):
        assert time.monotonic() < until and killed.poll() is None
        time.sleep(0.05)
    kill_tree(killed)
    code, _, errors = place.run("rewarded", *words)
    assert code == 0, errors
    for document in documents(run.iteration(1).records).values():
        for candidate in record_from_json(document).candidates_K:
            assert candidate.reward == len(candidate.text) and candidate.judgments_N == ()
    measured = json.loads((run.iteration(1).evaluation / "model.json").read_text())["metrics"]
    assert measured["answer_reward"]["mean"] == pytest.approx(measured["answer_chars"]["mean"])
    assert "answer_self_score" in measured
    source.write_text(REWARD.replace("float(len", "2.0 * float(len"))
    code, _, errors = place.run("rewarded", *words)
    assert code == 2 and "the recipe has changed since this run began: reward's source (" in errors


def _annotated(run: RunDir) -> int:
    try:
        return len(documents(run.iteration(1).records))
    except UserError:  # the store isn't there yet
        return 0


@pytest.mark.slow
def test_a_judge_takes_the_place_of_the_rubric(place: Workspace) -> None:
    (place.folder / "rule_judge.py").write_text(JUDGE)
    code, _, errors = place.run("ruled", "--set", "judge=rule_judge:EvenOdd", *NO_JUDGE_PAIRS)
    assert code == 0, errors
    run = RunDir(place.folder / "ruled")
    for document in documents(run.iteration(1).records).values():
        for candidate in record_from_json(document).candidates_K:
            assert [judgment.text for judgment in candidate.judgments_N] == ["by rule"] * 3
            assert candidate.judgments_N[0].reading.kind == "unparsed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reward=no_such_module:R", *NO_JUDGE_PAIRS[1::2]), "reward: can't import no_such_module:R"),
        (("reward=length_reward:Length",), "iterations.1.judge_pairs: true: expected false, as reward is an object"),
        (("reward=a:B", "judge=a:B", *NO_JUDGE_PAIRS[1::2]), "expected nothing, as judge is given"),
        (("reward=nocolon",), "expected"),
    ],
)
def test_errors_before_the_start(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(place.folder)
    (place.folder / "length_reward.py").write_text(REWARD)
    settings = [each for word in words for each in ("--set", word)]
    refusal = invoke(["run", "recipe.yaml", "--out", "refused", *settings]).exception
    assert isinstance(refusal, UserError) and message in str(refusal) and "\n" not in str(refusal)
    assert not (place.folder / "refused").exists()
