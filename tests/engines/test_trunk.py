"""Prompts that begin alike share their trunk's keys and values while they are continued, and it can't be told."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WORDS
from torch import Tensor
from transformers import AutoModelForCausalLM

from metareward.engines.attention import Scores, merge, sees_nothing
from metareward.engines.checkpoint import Checkpoint, load
from metareward.engines.decoder import Decoder
from metareward.engines.local import LocalEngine
from metareward.engines.selfcheck import check_rows
from metareward.engines.shared_prefix import Step
from metareward.engines.slot_memory import SlotShape
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


def unlike(count: int) -> list[Messages]:
    """Conversations as long as those of `pairs`, with nothing in common from the first word on."""
    return [pairs(100 + i, 1)[0] for i in range(count)]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("trunks", ["abaca", "aaaaa", "abcde", "aabbb"])
def test_families_see_what_each_slot_would_see_alone(
    trunks: str, samples: int, softcap: float | None, together: bool
) -> None:
    torch.manual_seed(1)
    scores = Scores(0.3, None, softcap)
    keys, values = torch.randn(2, 5, 2, 64, 16)
    for slot, name in enumerate(trunks):
        keys[slot], values[slot] = keys[trunks.index(name)], values[trunks.index(name)]
    query, own_keys, own_values = torch.randn(5, 2, samples, 16), *torch.randn(2, 5, 2, 9, 16)
    alike = families({slot: name.encode() for slot, name in enumerate(trunks)}, CPU)
    assert sum(len(family.slots) for family in alike) == 5 and len(alike) == len(set(trunks))
    shared = trunk_part(query, keys, values, None, scores, alike, together=together)
    merged = merge([scores.part(query, own_keys, own_values, None), shared])
    both = torch.cat([keys, own_keys], dim=2), torch.cat([values, own_values], dim=2)
    torch.testing.assert_close(merged, plain(scores, query, *both, None), rtol=1e-5, atol=1e-5)


def test_only_the_first_slot_of_a_family_is_read() -> None:
    scores = Scores(0.3, None, None)
    query, keys, values = torch.randn(3, 2, 1, 16), *torch.randn(2, 3, 2, 64, 16)
    alike = families({1: b"a", 0: b"a", 2: b"a"}, CPU)
    out, logs = trunk_part(query, keys, values, None, scores, alike, together=True)
    keys[0], keys[2], values[0], values[2] = torch.full((4, 2, 64, 16), torch.nan)
    again, logs_again = trunk_part(query, keys, values, None, scores, alike, together=True)
    assert torch.equal(out, again) and torch.equal(logs, logs_again)


def test_slots_in_no_family_get_numbers() -> None:
    query, keys, values = torch.randn(5, 2, 1, 16), *torch.randn(2, 5, 2, 64, 16)
    alike = families({1: b"a", 3: b"a"}, CPU)
    for part in trunk_part(query, keys, values, None, Scores(0.3, None, None), alike, together=False):
        assert part.isfinite().all()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_bit_depends_on_how_many_relatives_there_are(dtype: torch.dtype, together: bool) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(101, 2, 1, 64).to(dtype), *torch.randn(2, 101, 2, 96, 64).to(dtype)

    def first(relatives: int) -> tuple[Tensor, Tensor]:
        alike = families({slot: b"a" if slot < relatives else str(slot).encode() for slot in range(101)}, CPU)
        out, logs = trunk_part(query, keys, values, None, Scores(0.125, None, None), alike, together=together)
        return out[0], logs[0]

    alone = first(1)
    for relatives in (2, 8, 33, 60, 100, 101):
        assert all(torch.equal(a, b) for a, b in zip(alone, first(relatives), strict=True)), relatives


@pytest.mark.parametrize("together", [True, False])
def test_what_a_window_hides_weighs_nothing(together: bool) -> None:
    scores = Scores(0.3, 8, None)
    query, keys, values = torch.randn(2, 2, 3, 16), *torch.randn(2, 2, 2, 40, 16)
    hidden = torch.full((2, 1, 1, 40), -torch.inf)
    own_keys, own_values = torch.randn(2, 2, 2, 9, 16)
    own = scores.part(query, own_keys, own_values, torch.zeros(2, 1, 1, 9))
    alike = families({0: b"a", 1: b"a"}, CPU)
    trunk = trunk_part(query, keys, values, hidden, scores, alike, together=together)
    rest = scores.part(query, keys, values, hidden, sees_nothing(hidden))
    torch.testing.assert_close(merge([own, rest, trunk]), own[0])


def answers(
    engine: LocalEngine, asked: Sequence[Messages], sampling: Sampling, n: int = 1
) -> list[Sequence[Completion]]:
    async def all_at_once() -> list[Sequence[Completion]]:
        return await asyncio.gather(*(engine.complete(messages, sampling, n) for messages in asked))

    return asyncio.run(all_at_once())


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma2", "gemma3"])
def test_greedy_equals_generate(kind: str, deterministic: bool, n: int, folders: dict[str, Path]) -> None:
    asked = [*pairs(1, 5), *pairs(2, 2), *pairs(3, 1)]
    engine = LocalEngine.open(folders[kind], device="cpu", dtype="float32", rows=6 * n, deterministic=deterministic)
    ours = answers(engine, asked, Sampling(0.0, 1.0, 8), n)
    asyncio.run(engine.aclose())
    checkpoint = load(folders[kind], "cpu", "float32")
    model = AutoModelForCausalLM.from_pretrained(folders[kind], dtype=torch.float32)
    for messages, got in zip(asked, ours, strict=True):
        prompt = torch.tensor([checkpoint.encode(messages)])
        # Otherwise this would say nothing about trunks.
        assert 192 < prompt.shape[1] <= 248
        ids = model.generate(prompt, do_sample=False, max_new_tokens=8)
        assert {each.text for each in got} == {checkpoint.decode(ids[0, prompt.shape[1] :].tolist())}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_text_alone_and_among_relatives(dtype: str, n: int, llama: Path) -> None:
    asked = [*pairs(1, 9), *pairs(2, 3), *pairs(3, 1)]
    engine = LocalEngine.open(llama, device="cpu", dtype=dtype, rows=13 * n, deterministic=True)
    together = answers(engine, asked, Sampling(1.0, 0.95, 16, seed=4), n)
    alone = [answers(engine, [messages], Sampling(1.0, 0.95, 16, seed=4), n)[0] for messages in asked]
    asyncio.run(engine.aclose())
    assert together == alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_long_text_alone_and_beside_longer_ones(dtype: str, llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    # So long that a text's columns are in several parts, of which shorter ones use the first alone.
    sampling, asked = Sampling(1.0, 0.95, 300, seed=5), [*pairs(1, 2), *pairs(2, 3, tail=4), *pairs(3, 3, tail=30)]
    engine = LocalEngine.open(folder, device="cpu", dtype=dtype, rows=4, deterministic=True)
    together = answers(engine, asked, sampling)
    alone = [answers(engine, [messages], sampling)[0] for messages in asked]
    asyncio.run(engine.aclose())
    assert together == alone
    assert max(each.tokens for (each,) in together) == 300 and len({each.text for (each,) in together}) == len(asked)


@torch.inference_mode()
def test_without_the_promise_only_what_is_shared_is_looked_at_together(llama: Path) -> None:
    checkpoint = load(llama, "cpu", "float32")
    watch = Uneven(checkpoint)
    for asked, levels in ((pairs(1, 4), 2), (unlike(4), 0)):
        decoder = Decoder(checkpoint, rows=4, deterministic=False, memory=1 << 30)
        for messages in asked:
            decoder.submit(messages, Sampling(0.0, 1.0, 6), 1, lambda _: None, print)
        while decoder.advance():
            pass
        # One family to each cut that is in use; the last cut is beyond what the texts have in common.
        assert watch.seen[-4:] == [levels] * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_shapes_with_a_trunk_pass_the_check(dtype: str, llama: Path) -> None:
    check_rows(load(llama, "cpu", dtype), SlotShape(9, 1, 256, 8, cuts=(128, 160, 192), trim=32), width=32, batch=6)


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
        self.seen.append(sum(map(len, step.families)))
        return hidden * (1 + 1e-4 * self.seen[-1])


@torch.inference_mode()
def test_where_company_could_be_told_there_is_no_trunk(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    (warning,) = (record.getMessage() for record in caplog.records)
    assert str(llama) in warning and "engine.deterministic" in warning and "\n" not in warning
    # With three cuts the check saw 18 families, then three; what was served saw none.
    assert set(uneven.seen) == {18, 3, 0} and uneven.seen[-5:] == [0] * 5
