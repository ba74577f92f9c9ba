"""GRPO of the pocket model by its own judge, which can't judge answers of an odd length; prints what TRL made of it."""

from __future__ import annotations

import json
import sys
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import metareward as mr
from metareward.pocket import world

BATCH = 16


class OftenDown(mr.RubricJudge):
    """The pocket model's judgments, but none of answers of an odd length."""

    async def judge(self, prompt: mr.Prompt, answer: str, n: int) -> tuple[mr.Judgment, ...]:
        if len(answer) % 2:
            raise mr.EngineError("down")
        return await super().judge(prompt, answer, n)


async def open_judge() -> mr.Judge:
    return OftenDown(await mr.open_engine("pocket"), mr.Rubric.load("pocket_judge"), mr.Sampling(1.0, 0.95, 48))


class Watched(GRPOTrainer):  # type: ignore[misc]
    """Keeps the rewards and advantages of every call."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        made = super()._generate_and_score_completions(inputs)
        for name, kept in (("rewards", self._logs["rewards"]["judge"]), ("advantages", self._logs["advantages"])):
            FOUND[name].append(list(kept)[-BATCH:])
        return made


FOUND: dict[str, Any] = {"rewards": [], "advantages": []}


def main() -> None:
    prompts = [[{"role": "user", "content": each.messages[-1].content}] for each in world.prompts(BATCH, 1)]
    reward = mr.as_reward(open_judge, n=3)
    trainer = Watched(
        model=AutoModelForCausalLM.from_pretrained(world.MODEL, local_files_only=True),
        processing_class=AutoTokenizer.from_pretrained(world.MODEL, local_files_only=True, padding_side="left"),
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        args=GRPOConfig(
            output_dir=sys.argv[1],
            per_device_train_batch_size=BATCH,
            num_generations=8,
            max_completion_length=40,
            max_steps=4,
            learning_rate=1e-4,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
        ),
    )
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    reward.close()
    history = trainer.state.log_history
    FOUND["logged"] = [each["rewards/judge/mean"] for each in history if "rewards/judge/mean" in each]
    FOUND["failures"] = reward.failures
    FOUND["changed"] = any(bool((value != before[name]).any()) for name, value in trainer.model.named_parameters())
    print(json.dumps(FOUND))


if __name__ == "__main__":
    main()
