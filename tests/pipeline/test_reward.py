"""A judge as a trainer's reward: a failure is never a number."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean

import pytest
from builders import judgment

import metareward as mr
from metareward.pipeline.reward import JudgeReward


class Longer:
    """Scores an answer by its length; can't serve an answer with "broken", writes nothing readable about "mumbled"."""

    async def judge(self, prompt: mr.Prompt, answer: str, n: int) -> Sequence[mr.Judgment]:
        if "broken" in answer:
            raise mr.EngineError("the server said 500")
        return [judgment(index, None if "mumbled" in answer else float(len(answer) + index)) for index in range(n)]


@pytest.fixture
def reward() -> Iterator[JudgeReward]:
    made = mr.as_reward(Longer(), n=3, min_valid=2)
    yield made
    made.close()


def test_rewards_are_means_and_failures_are_none(reward: JudgeReward) -> None:
    turns = [[{"role": "user", "content": "Hi"}]] * 2
    answers = [[{"role": "assistant", "content": text}] for text in ("abcd", "broken")]
    assert asyncio.run(reward(prompts=turns, completions=answers, completion_ids=[[1], [2]])) == [5.0, None]
    assert asyncio.run(reward(prompts=["Hi", "Hi"], completions=["ab", "mumbled"])) == [3.0, None]
    assert reward.failures == 2


def test_one_answer_s_failure_is_raised(reward: JudgeReward) -> None:
    assert asyncio.run(reward.score("Hi", "abc")) == 4.0
    with pytest.raises(mr.EngineError, match="said 500"):
        asyncio.run(reward.score("Hi", "broken"))
    with pytest.raises(mr.EngineError, match="0 of 3 judgments could be read, 2 are needed"):
        asyncio.run(reward.score("Hi", "mumbled"))


def test_verl_gets_the_mean_of_the_same_prompt_for_a_failure(reward: JudgeReward) -> None:
    prompts = ["Hi", "Hi", "Hi", "Bye", "Bye"]
    scores = reward.verl(
        data_sources=["x"] * 5,
        solution_strs=["a", "abc", "broken", "broken", "mumbled"],
        ground_truths=[None] * 5,
        extra_infos=[{"prompt": each} for each in prompts],
    )
    assert scores == [2.0, 4.0, 3.0, 3.0, 3.0]
    with pytest.raises(mr.UserError, match="no answer of this batch could be judged"):
        reward.verl(solution_strs=["broken"], extra_infos=[{"prompt": "Hi"}])
    with pytest.raises(mr.UserError, match=r"extra_info\.prompt: missing"):
        reward.verl(solution_strs=["a"], extra_infos=[{}])


def test_a_judge_that_never_answers_ends_the_training(reward: JudgeReward) -> None:
    def call(*answers: str) -> list[float | None]:
        return asyncio.run(reward(prompts=["Hi"] * len(answers), completions=list(answers)))

    for answers in (("broken",), ("broken", "broken"), ("broken", "a"), ("broken",), ("broken",)):
        call(*answers)
    with pytest.raises(mr.UserError, match="no answer of the last 3 calls could be judged: the server said 500"):
        call("broken", "broken")


def test_a_judge_is_opened_once_in_the_reward_s_own_loop_and_closed() -> None:
    opened: list[object] = []
    closed: list[object] = []

    class Engine:
        async def aclose(self) -> None:
            closed.append(asyncio.get_running_loop())

    class Opened(Longer):
        engine = Engine()

    async def open_judge() -> Opened:
        await asyncio.sleep(0.01)
        opened.append(asyncio.get_running_loop())
        return Opened()

    reward = mr.as_reward(open_judge)
    for _ in range(2):
        assert asyncio.run(reward(prompts=["Hi", "Hi"], completions=["a", "b"])) == [2.0, 2.0]
    reward.close()
    reward.close()
    assert len(opened) == 1 and closed == opened


@pytest.mark.parametrize(("n", "min_valid"), [(3, 0), (2, 3)])
def test_numbers_out_of_range_are_refused(n: int, min_valid: int) -> None:
    with pytest.raises(ValueError, match="min_valid must be 1 to n"):
        mr.as_reward(Longer(), n, min_valid)


@pytest.mark.slow
def test_grpo_of_the_pocket_model_by_its_own_judge_with_masked_failures(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "support/grpo_process.py"  # in pytest TRL takes tests/engines/vllm for vLLM
    done = subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True, text=True, timeout=600)
    found = json.loads(done.stdout.splitlines()[-1])
    rewards, advantages = (list(chain.from_iterable(found[name])) for name in ("rewards", "advantages"))
    failed = [math.isnan(each) for each in rewards]
    assert 0 < sum(failed) < len(failed)
    assert sum(failed) == found["failures"]
    assert {advantage for advantage, bad in zip(advantages, failed, strict=True) if bad} == {0.0}
    assert {advantage for advantage, bad in zip(advantages, failed, strict=True) if not bad} != {0.0}
    assert found["changed"]
    means = [fmean(each for each in call if not math.isnan(each)) for call in found["rewards"]]
    assert found["logged"] == pytest.approx(means, abs=1e-4)
