"""Token probabilities of the local engine, against a plain forward pass of the same model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from metareward.engines.local.engine import LocalEngine
from metareward.engines.local.worker import completion_from_json, completion_to_json
from metareward.types import Completion, Messages, Sampling

Conversation = Callable[[int, int], Messages]


def ask(folder: Path, messages: Messages, sampling: Sampling, n: int, deterministic: bool) -> list[Completion]:
    async def once() -> list[Completion]:
        engine = LocalEngine.open(folder, device="cpu", dtype="float32", max_num_seqs=8, deterministic=deterministic)
        quiet = engine.complete(messages, Sampling(1.0, 1.0, 12, 5), n)  # in the same bucket, without top_logprobs
        given, others = await asyncio.gather(engine.complete(messages, sampling, n), quiet)
        await engine.aclose()
        assert all(other.steps == () for other in others)
        return list(given)

    return asyncio.run(once())


@pytest.mark.parametrize("deterministic", [True, False])
def test_probabilities_are_those_of_the_model(llama: Path, conversation: Conversation, deterministic: bool) -> None:
    messages = conversation(3, 9)
    given = ask(llama, messages, Sampling(1.7, 0.9, 12, 3, top_logprobs=4), 2, deterministic)
    tokenizer, model = AutoTokenizer.from_pretrained(llama), AutoModelForCausalLM.from_pretrained(llama).eval()
    turns = [{"role": message.role, "content": message.content} for message in messages]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    for completion in given:
        assert "".join(step.text for step in completion.steps) == completion.text
        assert len(completion.steps) == completion.tokens
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([asked])).logits[0, -1], -1)
        first = completion.steps[0].top_logprobs
        values, ids = logprobs.topk(4)
        assert [each.logprob for each in first] == pytest.approx(values.tolist(), abs=1e-4)
        assert [each.text for each in first] == [tokenizer.decode([token]) for token in ids.tolist()]


def test_same_text_with_and_without(llama: Path, conversation: Conversation) -> None:
    plain, noted = (
        ask(llama, conversation(1, 5), Sampling(1.0, 1.0, 12, 5, top_logprobs=count), 2, True) for count in (0, 3)
    )
    assert [each.text for each in plain] == [each.text for each in noted]


def test_workers_pass_them_on(llama: Path, conversation: Conversation) -> None:
    for completion in ask(llama, conversation(2, 5), Sampling(1.0, 1.0, 12, 6, top_logprobs=3), 2, True):
        assert completion_from_json(completion_to_json(completion)) == completion
