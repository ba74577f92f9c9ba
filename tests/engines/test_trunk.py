"""Prompts that begin alike share their trunk's keys and values while they are continued, and it can't be told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WORDS
from torch import Tensor
from transformers import AutoModelForCausalLM

from metareward.engines.attention import Scores, merge
from metareward.engines.checkpoint import Checkpoint, load
from metareward.engines.decoder import Decoder
from metareward.engines.local import LocalEngine
from metareward.engines.selfcheck import check_rows
from metareward.engines.shared_prefix import SlotShape, Step
from metareward.engines.trunk import families, trunk_part
from metareward.types import Completion, Message, Messages, Sampling

CPU = torch.device("cpu")


def pairs(head: int, count: int, tail: int = 20) -> list[Messages]:
    """Conversations of about 200 tokens: the first 170 or so follow from ``head``, the rest differ."""
    shared = " ".join(WORDS[(head * 5 + i * (1 + head % 3)) % len(WORDS)] for i in range(165))
    ends = (" ".join(WORDS[(i * 7 + k * (2 + i % 4)) % len(WORDS)] for k in range(tail)) for i in range(count))
    return [(Message("user", f"{head}: {shared} {end}"),) for end in ends]


def plain(scores: Scores, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    raw = (query @ keys.transpose(2, 3) * scores.scale).double()
    capped = raw if scores.softcap is None else torch.tanh(raw / scores.softcap) * scores.softcap
    return torch.softmax(capped if mask is None else capped + mask, dim=-1).float() @ values


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("samples", [1, 3])
def test_families_see_what_each_slot_would_see_alone(softcap: float | None, samples: int) -> None:
    torch.manual_seed(1)
    scores = Scores(0.3, None, softcap)
    keys, values = torch.randn(2, 5, 2, 64, 16)
    keys[3], values[3], keys[4], values[4] = keys[0], values[0], keys[0], values[0]
    query, own_keys, own_values = torch.randn(5, 2, samples, 16), *torch.randn(2, 5, 2, 9, 16)
    alike = families({0: b"a", 3: b"a", 1: b"b", 4: b"a", 2: b"c"}, CPU)
    assert sorted(family.slots.tolist() for family in alike) == [[0, 3, 4], [1], [2]]
    shared = trunk_part(query, keys, values, None, scores, alike)
    merged = merge([scores.part(query, own_keys, own_values, None), shared])
    both = torch.cat([keys, own_keys], dim=2), torch.cat([values, own_values], dim=2)
    torch.testing.assert_close(merged, plain(scores, query, *both, None), rtol=1e-5, atol=1e-5)


def test_a_slot_in_no_family_sees_no_trunk() -> None:
    scores = Scores(0.3, None, None)
    query, own_keys, own_values = torch.randn(3, 2, 1, 16), *torch.randn(2, 3, 2, 9, 16)
    keys, values = torch.randn(2, 3, 2, 64, 16)
    own = scores.part(query, own_keys, own_values, None)
    merged = merge([own, trunk_part(query, keys, values, None, scores, families({1: b"a"}, CPU))])
    assert torch.equal(merged[::2], own[0][::2]) and not torch.equal(merged[1], own[0][1])


def test_what_a_window_hides_weighs_nothing() -> None:
    scores = Scores(0.3, 8, None)
    query, keys, values = torch.randn(2, 2, 3, 16), *torch.randn(2, 2, 2, 40, 16)
    hidden = torch.full((2, 1, 1, 40), -torch.inf)
    own_keys, own_values = torch.randn(2, 2, 2, 9, 16)
    own = scores.part(query, own_keys, own_values, torch.zeros(2, 1, 1, 9))
    alike = families({0: b"a", 1: b"a"}, CPU)
    parts = [own, scores.part(query, keys, values, hidden), trunk_part(query, keys, values, hidden, scores, alike)]
    torch.testing.assert_close(merge(parts), own[0])


def answers(engine: LocalEngine, asked: Sequence[Messages], sampling: Sampling) -> list[Completion]:
    async def all_at_once() -> list[Completion]:
        written = await asyncio.gather(*(engine.complete(messages, sampling, 1) for messages in asked))
        return [each for (each,) in written]

    return asyncio.run(all_at_once())


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma2", "gemma3"])
def test_greedy_equals_generate(kind: str, deterministic: bool, folders: dict[str, Path]) -> None:
    asked = [*pairs(1, 5), *pairs(2, 2), *pairs(3, 1)]
    engine = LocalEngine.open(folders[kind], device="cpu", dtype="float32", rows=6, deterministic=deterministic)
    ours = answers(engine, asked, Sampling(0.0, 1.0, 8))
    asyncio.run(engine.aclose())
    checkpoint = load(folders[kind], "cpu", "float32")
    model = AutoModelForCausalLM.from_pretrained(folders[kind], dtype=torch.float32)
    for messages, got in zip(asked, ours, strict=True):
        prompt = torch.tensor([checkpoint.encode(messages)])
        # Otherwise this would say nothing about trunks.
        assert 192 < prompt.shape[1] <= 248
        ids = model.generate(prompt, do_sample=False, max_new_tokens=8)
        assert got.text == checkpoint.decode(ids[0, prompt.shape[1] :].tolist())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_text_alone_and_among_relatives(dtype: str, llama: Path) -> None:
    asked = [*pairs(1, 9), *pairs(2, 3), *pairs(3, 1)]
    engine = LocalEngine.open(llama, device="cpu", dtype=dtype, rows=13, deterministic=True)
    together = answers(engine, asked, Sampling(1.0, 0.95, 16, seed=4))
    alone = [answers(engine, [messages], Sampling(1.0, 0.95, 16, seed=4))[0] for messages in asked]
    asyncio.run(engine.aclose())
    assert together == alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_shapes_with_a_trunk_pass_the_check(dtype: str, llama: Path) -> None:
    check_rows(load(llama, "cpu", dtype), SlotShape(9, 1, 256, 8, trunk=128), width=32, batch=6)


class Uneven:
    """A model whose results depend on how many families there are: as if its kernels did."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.seen: list[int] = []
        self._attention = checkpoint.attention
        checkpoint.model.model.norm.register_forward_hook(self._nudge)

    def _nudge(self, _: Any, __: Any, hidden: Tensor) -> Tensor:
        step = self._attention.under_way
        if not isinstance(step, Step):
            return hidden
        self.seen.append(len(step.families))
        return hidden * (1 + 1e-4 * len(step.families))


@torch.inference_mode()
def test_where_company_could_be_told_there_is_no_trunk(llama: Path) -> None:
    checkpoint = load(llama, "cpu", "float32")
    uneven = Uneven(checkpoint)
    decoder = Decoder(checkpoint, rows=6, deterministic=True, memory=1 << 30)
    texts: list[str] = []

    def submit(messages: Messages) -> None:
        decoder.submit(messages, Sampling(0.0, 1.0, 6), 1, lambda many: texts.append(many[0].text), print)

    for messages in pairs(1, 4):
        submit(messages)
    while decoder.advance():
        pass
    assert len(texts) == 4
    # The check saw 6 families, then one; what was served saw none.
    assert set(uneven.seen) == {6, 1, 0} and uneven.seen[-5:] == [0] * 5
