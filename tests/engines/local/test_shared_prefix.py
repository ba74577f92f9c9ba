"""Prompts with common prefixes share their keys and values while decoding, which changes no result."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WORDS
from torch import Tensor
from transformers import AutoModelForCausalLM

from metareward.engines.local.attention import ScoreFunction, fully_masked, merge
from metareward.engines.local.checkpoint import Checkpoint, load
from metareward.engines.local.engine import EngineCore, LocalEngine
from metareward.engines.local.kv_cache import BucketShape
from metareward.engines.local.selfcheck import check_batch_invariance
from metareward.engines.local.shared_prefix import DecodePass, group_attention, prefix_groups
from metareward.types import Completion, Message, Messages, Sampling

CPU = torch.device("cpu")


def pairs(head: int, count: int, tail: int = 20) -> list[Messages]:
    """Conversations of about 200 tokens: the first 170 or so follow from ``head``, the rest differ."""
    shared = " ".join(WORDS[(head * 5 + i * (1 + head % 3)) % len(WORDS)] for i in range(165))
    ends = (" ".join(WORDS[(i * 7 + k * (2 + i % 4)) % len(WORDS)] for k in range(tail)) for i in range(count))
    return [(Message("user", f"{head}: {shared} {end}"),) for end in ends]


def plain(scores: ScoreFunction, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    raw = (query @ keys.transpose(2, 3) * scores.scale).double()
    capped = raw if scores.softcap is None else torch.tanh(raw / scores.softcap) * scores.softcap
    return torch.softmax(capped if mask is None else capped + mask, dim=-1).float() @ values


def unlike(count: int) -> list[Messages]:
    """Conversations as long as those of `pairs`, without a common prefix."""
    return [pairs(100 + i, 1)[0] for i in range(count)]


@pytest.mark.parametrize("stack", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("prefixes", ["abaca", "aaaaa", "abcde", "aabbb"])
def test_group_attention_equals_attention_of_each_slot(
    prefixes: str, samples: int, softcap: float | None, stack: bool
) -> None:
    torch.manual_seed(1)
    scores = ScoreFunction(0.3, None, softcap)
    keys, values = torch.randn(2, 5, 2, 64, 16)
    for slot, name in enumerate(prefixes):
        keys[slot], values[slot] = keys[prefixes.index(name)], values[prefixes.index(name)]
    query, own_keys, own_values = torch.randn(5, 2, samples, 16), *torch.randn(2, 5, 2, 9, 16)
    groups = prefix_groups({slot: name.encode() for slot, name in enumerate(prefixes)}, CPU)
    assert sum(len(group.slots) for group in groups) == 5 and len(groups) == len(set(prefixes))
    shared = group_attention(query, keys, values, None, scores, groups, stack_queries=stack)
    merged = merge([scores.partial(query, own_keys, own_values, None), shared])
    both = torch.cat([keys, own_keys], dim=2), torch.cat([values, own_values], dim=2)
    torch.testing.assert_close(merged, plain(scores, query, *both, None), rtol=1e-5, atol=1e-5)


def test_only_the_first_slot_of_a_group_is_read() -> None:
    scores = ScoreFunction(0.3, None, None)
    query, keys, values = torch.randn(3, 2, 1, 16), *torch.randn(2, 3, 2, 64, 16)
    groups = prefix_groups({1: b"a", 0: b"a", 2: b"a"}, CPU)
    out, logs = group_attention(query, keys, values, None, scores, groups, stack_queries=True)
    keys[0], keys[2], values[0], values[2] = torch.full((4, 2, 64, 16), torch.nan)
    again, logs_again = group_attention(query, keys, values, None, scores, groups, stack_queries=True)
    assert torch.equal(out, again) and torch.equal(logs, logs_again)


def test_outputs_of_slots_in_no_group_are_finite() -> None:
    query, keys, values = torch.randn(5, 2, 1, 16), *torch.randn(2, 5, 2, 64, 16)
    groups = prefix_groups({1: b"a", 3: b"a"}, CPU)
    for part in group_attention(query, keys, values, None, ScoreFunction(0.3, None, None), groups, stack_queries=False):
        assert part.isfinite().all()


@pytest.mark.parametrize("stack", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_bit_depends_on_the_size_of_the_group(dtype: torch.dtype, stack: bool) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(101, 2, 1, 64).to(dtype), *torch.randn(2, 101, 2, 96, 64).to(dtype)

    def first_slot(size: int) -> tuple[Tensor, Tensor]:
        groups = prefix_groups({slot: b"a" if slot < size else str(slot).encode() for slot in range(101)}, CPU)
        out, logs = group_attention(
            query, keys, values, None, ScoreFunction(0.125, None, None), groups, stack_queries=stack
        )
        return out[0], logs[0]

    alone = first_slot(1)
    for size in (2, 8, 33, 60, 100, 101):
        assert all(torch.equal(a, b) for a, b in zip(alone, first_slot(size), strict=True)), size


@pytest.mark.parametrize("stack", [True, False])
def test_columns_outside_the_window_weigh_nothing(stack: bool) -> None:
    scores = ScoreFunction(0.3, 8, None)
    query, keys, values = torch.randn(2, 2, 3, 16), *torch.randn(2, 2, 2, 40, 16)
    hidden = torch.full((2, 1, 1, 40), -torch.inf)
    own_keys, own_values = torch.randn(2, 2, 2, 9, 16)
    own = scores.partial(query, own_keys, own_values, torch.zeros(2, 1, 1, 9))
    groups = prefix_groups({0: b"a", 1: b"a"}, CPU)
    shared = group_attention(query, keys, values, hidden, scores, groups, stack_queries=stack)
    rest = scores.partial(query, keys, values, hidden, fully_masked(hidden))
    torch.testing.assert_close(merge([own, rest, shared]), own[0])


def answers(
    engine: LocalEngine, asked: Sequence[Messages], sampling: Sampling, n: int = 1
) -> list[Sequence[Completion]]:
    async def all_at_once() -> list[Sequence[Completion]]:
        return await asyncio.gather(*(engine.complete(messages, sampling, n) for messages in asked))

    return asyncio.run(all_at_once())


@lru_cache
def generated(folder: Path) -> list[str]:
    """What `generate` says to each of `ASKED`."""
    checkpoint, texts = load(folder, "cpu", "float32"), []
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for messages in ASKED:
        prompt = torch.tensor([checkpoint.encode(messages)])
        # Long enough to have split points.
        assert 192 < prompt.shape[1] <= 248
        ids = model.generate(prompt, do_sample=False, max_new_tokens=8)
        texts.append(checkpoint.decode(ids[0, prompt.shape[1] :].tolist()))
    return texts


ASKED = [*pairs(1, 5), *pairs(2, 2), *pairs(3, 1)]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma2", "gemma3"])
def test_greedy_equals_generate(kind: str, deterministic: bool, n: int, folders: dict[str, Path]) -> None:
    engine = LocalEngine.open(
        folders[kind], device="cpu", dtype="float32", max_num_seqs=6 * n, deterministic=deterministic
    )
    ours = answers(engine, ASKED, Sampling(0.0, 1.0, 8), n)
    asyncio.run(engine.aclose())
    assert [{each.text for each in many} for many in ours] == [{text} for text in generated(folders[kind])]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_does_not_depend_on_prompts_with_the_same_prefix(dtype: str, n: int, llama: Path) -> None:
    asked = [*pairs(1, 9), *pairs(2, 3), *pairs(3, 1)]
    engine = LocalEngine.open(llama, device="cpu", dtype=dtype, max_num_seqs=13 * n, deterministic=True)
    batched = answers(engine, asked, Sampling(1.0, 0.95, 16, seed=4), n)
    alone = [answers(engine, [messages], Sampling(1.0, 0.95, 16, seed=4), n)[0] for messages in asked]
    asyncio.run(engine.aclose())
    assert batched == alone


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_long_text_does_not_depend_on_longer_ones(dtype: str, llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    # So long that the suffix has several parts, of which shorter completions use only the first.
    sampling, asked = Sampling(1.0, 0.95, 300, seed=5), [*pairs(1, 2), *pairs(2, 3, tail=4), *pairs(3, 3, tail=30)]
    engine = LocalEngine.open(folder, device="cpu", dtype=dtype, max_num_seqs=4, deterministic=True)
    batched = answers(engine, asked, sampling)
    alone = [answers(engine, [messages], sampling)[0] for messages in asked]
    asyncio.run(engine.aclose())
    assert batched == alone
    assert max(each.tokens for (each,) in batched) == 300 and len({each.text for (each,) in batched}) == len(asked)


@torch.inference_mode()
def test_without_determinism_only_shared_prefixes_form_groups(llama: Path) -> None:
    checkpoint = load(llama, "cpu", "float32")
    model = GroupDependent(checkpoint)
    for asked, levels in ((pairs(1, 4), 2), (unlike(4), 0)):
        core = EngineCore(checkpoint, max_num_seqs=4, deterministic=False, memory=1 << 30)
        for messages in asked:
            core.submit(messages, Sampling(0.0, 1.0, 6), 1, lambda _: None, print)
        while core.run_pass():
            pass
        # One group per split point in use; the last split point lies after the common prefix.
        assert model.seen[-4:] == [levels] * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_shapes_with_split_points_pass_the_check(dtype: str, llama: Path) -> None:
    check_batch_invariance(
        load(llama, "cpu", dtype),
        BucketShape(9, 1, 256, 8, split_points=(128, 160, 192), trim=32),
        chunk_size=32,
        batch=6,
    )


class GroupDependent:
    """A model whose results depend on the number of prefix groups, as if its kernels did."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.seen: list[int] = []
        self._attention = checkpoint.attention
        checkpoint.model.model.norm.register_forward_hook(self._nudge)

    def _nudge(self, _: Any, __: Any, hidden: Tensor) -> Tensor:
        step = self._attention.forward_context
        if not isinstance(step, DecodePass):
            return hidden
        self.seen.append(sum(map(len, step.groups)))
        return hidden * (1 + 1e-4 * self.seen[-1])


@torch.inference_mode()
def test_prefixes_are_not_shared_if_results_would_depend_on_the_batch(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = load(llama, "cpu", "float32")
    model = GroupDependent(checkpoint)
    core = EngineCore(checkpoint, max_num_seqs=6, deterministic=True, memory=1 << 30)
    texts: list[str] = []

    def submit(messages: Messages) -> None:
        core.submit(messages, Sampling(0.0, 1.0, 6), 1, lambda many: texts.append(many[0].text), print)

    for messages in pairs(1, 4):
        submit(messages)
    while core.run_pass():
        pass
    assert len(texts) == 4
    warnings = [record.getMessage() for record in caplog.records]
    assert all(str(llama) in each and "engine.deterministic" in each and "\n" not in each for each in warnings)
    assert ["finished samples" in each for each in warnings] == [True, False]
    # With three split points the checks saw 18 groups, then three; the requests saw none.
    assert set(model.seen) == {18, 3, 0} and model.seen[-5:] == [0] * 5


@torch.inference_mode()
def test_where_every_shape_depends_on_the_batch_one_error_comes_soon_and_no_warning(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, passes = load(llama, "cpu", "float32"), list[int]()

    def leak(_: Any, __: Any, hidden: Tensor) -> Tensor:
        passes.append(len(hidden))
        return hidden + 1e-5 * hidden.mean(dim=0, keepdim=True)

    checkpoint.model.model.norm.register_forward_hook(leak)
    core, errors, counts = (
        EngineCore(checkpoint, max_num_seqs=64, deterministic=True, memory=1 << 30),
        [],
        [len(passes)],
    )
    for messages in pairs(1, 2):
        core.submit(messages, Sampling(0.0, 1.0, 6), 1, lambda _: None, lambda error: errors.append(str(error)))
        assert not core.run_pass()
        counts.append(len(passes))
    assert len(errors) == 2 and errors[0] == errors[1]
    assert "64 requests of 1 completions" in errors[0] and "fix: set engine.deterministic to false" in errors[0]
    assert counts[1] - counts[0] <= 12 and counts[2] == counts[1]
    assert not caplog.records
