"""Probabilities of a verdict's tokens in bfloat16: from float32 products, without a say of the rest of the batch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from metareward.engines.local.checkpoint import Checkpoint, load
from metareward.engines.local.engine import LocalEngine
from metareward.engines.local.kv_cache import BucketShape
from metareward.engines.local.model_runner import Chunk, ModelRunner
from metareward.types import Completion, Messages, Sampling

Conversation = Callable[[int, int], Messages]
CHOICES = (" four", " three")
CHOOSE = Sampling(0.0, 1.0, 1, top_logprobs=4, choices=CHOICES)


@pytest.fixture(scope="module")
def checkpoint(llama: Path) -> Checkpoint:
    return load(llama, "cpu", "bfloat16")


def ask(folder: Path, *requests: tuple[Messages, Sampling]) -> list[Completion]:
    async def once() -> list[Completion]:
        engine = LocalEngine.open(folder, device="cpu", dtype="bfloat16", max_num_seqs=8, deterministic=True)
        try:
            written = await asyncio.gather(*(engine.complete(*request, 1) for request in requests))
        finally:
            await engine.aclose()
        return [each[0] for each in written]

    return asyncio.run(once())


@torch.inference_mode()
def test_logits_are_float32_products_of_the_same_inputs(checkpoint: Checkpoint, llama: Path) -> None:
    runner = ModelRunner(checkpoint, BucketShape(slots=2, samples=1, prompt=16, suffix=2), chunk_size=8)
    logits_BV = runner.prefill([Chunk(0, list(range(20, 28)), 0, 8), Chunk(1, list(range(40, 48)), 0, 8)], 3)
    head, inputs = checkpoint.verdict_head, runner.head_inputs
    assert head is not None and inputs is not None and logits_BV.dtype == torch.bfloat16
    weight = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).lm_head.weight
    exact = inputs.double() @ weight.double().T
    tokens = torch.arange(64).expand(len(inputs), 64)
    found = head.logits(inputs, tokens)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), exact[:, :64], atol=1e-6)
    assert torch.allclose(logits_BV.double(), exact, rtol=2**-7, atol=2**-7)
    assert not torch.equal(found.bfloat16().float(), found), "bfloat16 would round them"
    # Neither other rows nor other tokens change a logit.
    assert torch.equal(head.logits(inputs[1:2], tokens[1:2, 32:]), found[1:2, 32:])


def test_a_verdicts_probabilities_are_those_of_exact_logits(llama: Path, conversation: Conversation) -> None:
    requests = [(conversation(number, 9), CHOOSE) for number in range(6)]
    written = ask(llama, *requests)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).eval().requires_grad_(False)
    tokens = [tokenizer.encode(choice, add_special_tokens=False)[0] for choice in CHOICES]
    for (messages, _), completion in zip(requests, written, strict=True):
        dicts = [{"role": each.role, "content": each.content} for each in messages]
        ids = tokenizer.apply_chat_template(dicts, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1].float()
        odds = hidden @ model.lm_head.weight[tokens].float().T
        found = {each.text: each.logprob for each in completion.steps[0].top_logprobs}
        assert sum(map(math.exp, found.values())) == pytest.approx(1, abs=1e-6)
        # The engine's attention rounds otherwise than the model's own.
        assert found[" four"] - found[" three"] == pytest.approx(float(odds[0] - odds[1]), abs=0.1)


def test_probabilities_do_not_depend_on_the_batch(llama: Path, conversation: Conversation) -> None:
    noted = Sampling(1.0, 1.0, 3, 5, top_logprobs=4)
    others = [(conversation(number, 9), Sampling(1.0, 1.0, 3, number)) for number in range(5)]
    many = Sampling(0.0, 1.0, 1, top_logprobs=4, choices=tuple(f" {n}" for n in range(9)))
    for request in ((conversation(7, 9), CHOOSE), (conversation(8, 9), noted)):
        alone = ask(llama, request)[0]
        together = ask(llama, *others, (conversation(9, 9), noted), request, (conversation(6, 9), many))[6]
        assert together == alone and alone.steps[0].top_logprobs


def test_a_text_is_the_same_with_and_without_probabilities(llama: Path, conversation: Conversation) -> None:
    plain, noted = (ask(llama, (conversation(1, 5), Sampling(1.0, 0.9, 12, 5, top_logprobs=n)))[0] for n in (0, 3))
    assert plain.text == noted.text


def test_models_that_change_their_logits_keep_their_own(folders: dict[str, Path]) -> None:
    """Gemma 2 caps them."""
    assert load(folders["gemma2"], "cpu", "bfloat16").verdict_head is None
    assert load(folders["qwen"], "cpu", "bfloat16").verdict_head is not None
    assert load(folders["qwen"], "cpu", "float32").verdict_head is None
